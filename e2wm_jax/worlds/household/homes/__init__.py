"""Where homes come from: files, RobotHow, seeds; and activities made ready in them."""
