"""Decoders as pure functions over nested dicts of arrays."""

from typing import TYPE_CHECKING

from e2wm_jax import lazy

if TYPE_CHECKING:
    from e2wm_jax.models.decoding.generate import Decoding
    from e2wm_jax.models.head import target_logits, target_nll
    from e2wm_jax.models.weights import Model, flatten, load, unflatten
else:
    __all__, __getattr__, __dir__ = lazy.exports(__name__)
