"""Training and nothing else: one step, the loop around it, and the session around that."""
