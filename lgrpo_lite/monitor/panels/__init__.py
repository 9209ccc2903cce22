"""The twelve panels of the live view."""
