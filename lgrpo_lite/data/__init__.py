"""Files and the Hub -> prompts, in an order that can be resumed."""
