"""What a run folder shows: the live view, its panels, alarms, plots."""
