"""What a recipe says: its schema, the parts of an algorithm, reading a file, a name or a user's function."""
