"""What comes out of a run: the adapter, or a merged model that was verified."""
