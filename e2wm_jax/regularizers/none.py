"""Nothing: plain LoRA.

    0

The control of every comparison.  What LoRA's low rank alone protects: Biderman et al. 2024.  No state, no memory.
"""

from e2wm_jax.regularizers.regularizer import Regularizer

NONE = Regularizer(formula="0", reference="LoRA alone, Hu et al. 2021")
