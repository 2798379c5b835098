"""`e2wm sequence`: task after task."""
