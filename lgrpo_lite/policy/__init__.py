"""The network that is trained: loaded, adapted, laid out, measured, saved."""
