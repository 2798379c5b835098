"""Episodes without a goal."""
