"""What several commands draw with: the live screen, progress, curves."""
