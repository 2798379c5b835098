"""Many households side by side on an accelerator, in JAX."""
