"""Step after 10: many runs side by side, what each gained and what it forgot."""
