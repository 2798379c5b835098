"""The household on a core, compiled by numba."""
