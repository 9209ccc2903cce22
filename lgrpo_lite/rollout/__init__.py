"""How a group of answers comes about."""
