"""Is the recipe right, and does this machine have what it needs."""
