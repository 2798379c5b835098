"""What penalties on tokens share: the head that turns hidden states into scores, which no adapter touches."""

from typing import NamedTuple

from e2wm_jax.models.layers import Params
from e2wm_jax.regularizers.regularizer import Scope


class Head(NamedTuple):
    """The output head, and into how many equal parts the mesh splits its vocabulary (`models.frozen_head`)."""

    weights: Params  # {"weight": [V, D], optional "bias": [V]}
    parts: int


def head_of(scope: Scope, params: Params) -> Head:
    """The head of the base model."""
    tensor = 1 if scope.mesh is None else scope.mesh.shape["tensor"]
    whole = scope.config.vocab_size % tensor != 0  # such a head is copied to every device: `sharding.partition`
    return Head(params["embed" if scope.config.tied else "head"], 1 if whole else tensor)
