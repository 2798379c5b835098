"""`e2wm export`."""
