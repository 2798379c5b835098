"""How the adapters are held near the pretrained weights: pure functions of (adapters, state)."""

from typing import TYPE_CHECKING

from e2wm_jax import lazy

if TYPE_CHECKING:
    from e2wm_jax.regularizers.catalogue import REGULARIZERS
    from e2wm_jax.regularizers.ewc import EWC, ewc_penalty
    from e2wm_jax.regularizers.factor_ewc import FACTOR_EWC
    from e2wm_jax.regularizers.kfac import KFAC
    from e2wm_jax.regularizers.kl import KL_FORWARD, KL_REVERSE
    from e2wm_jax.regularizers.l2 import L2, l2_penalty
    from e2wm_jax.regularizers.mas import MAS
    from e2wm_jax.regularizers.none import NONE
    from e2wm_jax.regularizers.online_ewc import ONLINE_EWC
    from e2wm_jax.regularizers.quadratic import lora_ewc_penalty, sharded_ewc_penalty
    from e2wm_jax.regularizers.regularizer import Material, Options, Regularizer, Scope
    from e2wm_jax.regularizers.replay import REPLAY
    from e2wm_jax.regularizers.row_column import ROW_COLUMN
    from e2wm_jax.regularizers.rwalk import RWALK
    from e2wm_jax.regularizers.si import SI
else:
    __all__, __getattr__, __dir__ = lazy.exports(__name__)
