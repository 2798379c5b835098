"""`python -m e2wm_jax` is the `e2wm` command."""

import sys

from e2wm_jax.cli import program

if __name__ == "__main__":
    sys.exit(program())
