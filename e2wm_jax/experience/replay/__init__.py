"""`e2wm replay`: recorded programs, carried out again."""
