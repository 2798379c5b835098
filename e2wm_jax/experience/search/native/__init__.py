"""The searches on a core, compiled by numba."""
