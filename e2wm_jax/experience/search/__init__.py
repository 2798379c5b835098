"""Plans for goals."""
