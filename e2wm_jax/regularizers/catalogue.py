"""All regularizers by name."""

import difflib

from e2wm_jax.errors import InputError
from e2wm_jax.regularizers.ewc import EWC
from e2wm_jax.regularizers.factor_ewc import FACTOR_EWC
from e2wm_jax.regularizers.kfac import KFAC
from e2wm_jax.regularizers.mas import MAS
from e2wm_jax.regularizers.online_ewc import ONLINE_EWC
from e2wm_jax.regularizers.path import RWALK, SI
from e2wm_jax.regularizers.quadratic import L2
from e2wm_jax.regularizers.regularizer import Regularizer
from e2wm_jax.regularizers.row_column import ROW_COLUMN
from e2wm_jax.regularizers.text import KL_FORWARD, KL_REVERSE, REPLAY

# The control of every comparison: what LoRA's low rank alone protects (Biderman et al. 2024).
NONE = Regularizer(formula="0", reference="LoRA alone, Hu et al. 2021")

REGULARIZERS: dict[str, Regularizer] = {
    "none": NONE,
    "l2": L2,
    "ewc": EWC,
    "online-ewc": ONLINE_EWC,
    "factor-ewc": FACTOR_EWC,
    "mas": MAS,
    "si": SI,
    "rwalk": RWALK,
    "row-column": ROW_COLUMN,
    "kfac": KFAC,
    "kl-forward": KL_FORWARD,
    "kl-reverse": KL_REVERSE,
    "replay": REPLAY,
}


def regularizer(name: str) -> Regularizer:
    """The regularizer of this name.

    Raises:
        InputError: if there is none, naming the nearest and all others.
    """
    if name not in REGULARIZERS:
        (nearest,) = difflib.get_close_matches(name, REGULARIZERS, n=1, cutoff=0)
        raise InputError(
            f"--regularizer {name}: there is none of this name; perhaps {nearest}? known: {', '.join(REGULARIZERS)}"
        )
    return REGULARIZERS[name]
