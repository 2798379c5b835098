"""How the adapters are held near the pretrained weights: pure functions of (adapters, state)."""

from typing import TYPE_CHECKING

from e2wm_jax import lazy

if TYPE_CHECKING:
    from e2wm_jax.lora import Scope
    from e2wm_jax.regularizers.catalogue import NONE, REGULARIZERS
    from e2wm_jax.regularizers.ewc import EWC, ewc_penalty
    from e2wm_jax.regularizers.factor_ewc import FACTOR_EWC
    from e2wm_jax.regularizers.kfac import KFAC
    from e2wm_jax.regularizers.mas import MAS
    from e2wm_jax.regularizers.online_ewc import ONLINE_EWC
    from e2wm_jax.regularizers.path import RWALK, SI
    from e2wm_jax.regularizers.quadratic import L2, l2_penalty, lora_ewc_penalty, sharded_ewc_penalty
    from e2wm_jax.regularizers.regularizer import Material, PenaltyOptions, Regularizer
    from e2wm_jax.regularizers.regularizer import PenaltyOptions as Options
    from e2wm_jax.regularizers.row_column import ROW_COLUMN
    from e2wm_jax.regularizers.text import KL_FORWARD, KL_REVERSE, REPLAY
else:
    __all__, __getattr__, __dir__ = lazy.exports(__name__)
