"""`python -m e2wm_jax` is the `e2wm` command."""

import sys

from e2wm_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
