"""One search for many goals side by side, in JAX."""
