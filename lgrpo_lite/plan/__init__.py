"""The memory plan: what a run takes of a GPU at each of its moments, and settings that make it fit."""
