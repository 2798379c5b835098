"""Questions with a choice of answers."""
