"""`e2wm eval plans`: plans carried out in the world."""
