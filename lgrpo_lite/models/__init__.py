"""The embedded model and how it was made; shapes of published models."""
