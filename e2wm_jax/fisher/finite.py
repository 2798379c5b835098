"""What a Fisher pass raises where a loss, a gradient or a total is NaN or infinite."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from e2wm_jax.errors import InputError


class NonFiniteError(FloatingPointError):
    """Loss, gradients or their squares of some examples are not finite numbers."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__(f"loss, gradient or its square is not finite for examples {numbers}")
        self.numbers = numbers  # their places in the data, from 0


def check_finite(totals: Mapping[str, Any]) -> None:
    """Refuse sums that are not finite though every gradient is: squares above 3e38.

    Raises:
        InputError: naming the parameter.
    """
    for path, total in totals.items():
        if not bool(_all_finite(total)):
            most = float(jnp.finfo(total.dtype).max)
            raise InputError(
                f"{path}: squares of gradients exceed {total.dtype} (gradients above {most**0.5:.2g}); leave the "
                "parameter out with --params (select), or check the model and its loss"
            )


@jax.jit
def _all_finite(total: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(total))
