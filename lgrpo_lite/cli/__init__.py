"""One module a command: it parses and prints."""
