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
    __all__, __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "EWC": "e2wm_jax.regularizers.ewc",
            "FACTOR_EWC": "e2wm_jax.regularizers.factor_ewc",
            "KFAC": "e2wm_jax.regularizers.kfac",
            "KL_FORWARD": "e2wm_jax.regularizers.kl",
            "KL_REVERSE": "e2wm_jax.regularizers.kl",
            "L2": "e2wm_jax.regularizers.l2",
            "MAS": "e2wm_jax.regularizers.mas",
            "Material": "e2wm_jax.regularizers.regularizer",
            "NONE": "e2wm_jax.regularizers.none",
            "ONLINE_EWC": "e2wm_jax.regularizers.online_ewc",
            "Options": "e2wm_jax.regularizers.regularizer",
            "REGULARIZERS": "e2wm_jax.regularizers.catalogue",
            "REPLAY": "e2wm_jax.regularizers.replay",
            "ROW_COLUMN": "e2wm_jax.regularizers.row_column",
            "RWALK": "e2wm_jax.regularizers.rwalk",
            "Regularizer": "e2wm_jax.regularizers.regularizer",
            "SI": "e2wm_jax.regularizers.si",
            "Scope": "e2wm_jax.regularizers.regularizer",
            "ewc_penalty": "e2wm_jax.regularizers.ewc",
            "l2_penalty": "e2wm_jax.regularizers.l2",
            "lora_ewc_penalty": "e2wm_jax.regularizers.quadratic",
            "sharded_ewc_penalty": "e2wm_jax.regularizers.quadratic",
        },
    )
