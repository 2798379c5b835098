"""`e2wm demo`: the whole flow."""
