"""Every algorithm: groups -> batch -> loss, made of bricks, and the one table of names."""
