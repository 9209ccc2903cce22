"""What an answer is worth: built-in rewards, a user's own, worker processes with deadlines, the sandbox."""
