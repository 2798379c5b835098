"""What all sides of a benchmark are told, without jax and torch."""
