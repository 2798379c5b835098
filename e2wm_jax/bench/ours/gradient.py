"""The ordinary gradient of a batch, by the book and as cheap as we can make it: what a Fisher pass is measured by.

The gradient of the mean over documents of each document's mean negative log-likelihood, which is no Fisher: squared, it
is the square of a sum.

Letters: B rows, T tokens, D width, V vocabulary, C words of a chunk.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from e2wm_jax.config import ModelConfig
from e2wm_jax.fisher.documents import DocumentBatch
from e2wm_jax.fisher.fused import document_weights
from e2wm_jax.fisher.head import loss_and_gradient
from e2wm_jax.models import decoder
from e2wm_jax.models.decoder import Remat
from e2wm_jax.models.layers import Params, linear, negative_log_likelihood

# Name -> options of `batch_gradient`: the ways to an ordinary gradient among which the fastest is looked for.
WAYS: dict[str, dict[str, Any]] = {
    "stored": {"remat": "none", "chunked": False},
    "stored, chunked loss": {"remat": "none", "chunked": True},
    "recomputed": {"remat": "layers", "chunked": False},
    "recomputed, chunked loss": {"remat": "layers", "chunked": True},
}
_CHUNK = 4096  # words


def batch_gradient(
    config: ModelConfig, params: Params, batch: DocumentBatch, *, remat: Remat = "none", chunked: bool = False
) -> Params:
    """Gradient of the mean loss; the defaults are what `jax.grad` of the plain loss does.

    Args:
        remat: what the backward pass computes again.
        chunked: no array of tokens times vocabulary exists.
    """
    return jax.grad(partial(_mean_loss, config, remat=remat, chunked=chunked))(params, batch)


def _mean_loss(config: ModelConfig, params: Params, batch: DocumentBatch, *, remat: Remat, chunked: bool) -> jax.Array:
    weights = document_weights(batch, "mean") / jnp.sum(batch.lengths > 0)
    hidden = decoder.hidden_states(config, params, batch.ids, batch.positions, batch.segments, remat=remat)
    if chunked:
        return _chunked_loss(hidden, params["embed" if config.tied else "head"], batch.labels, weights)
    return jnp.sum(weights * negative_log_likelihood(decoder.logits(config, params, hidden), batch.labels))


@jax.custom_vjp
def _chunked_loss(hidden: jax.Array, head: Params, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum of weights * negative log-likelihood for hidden [B, T, D], head {"weight": [V, D], optional "bias": [V]}."""
    return jnp.sum(weights * loss_and_gradient(hidden, head, labels, weights).nll)


def _chunked_forward(
    hidden: jax.Array, head: Params, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, tuple[Any, ...]]:
    found = loss_and_gradient(hidden, head, labels, weights)
    return jnp.sum(weights * found.nll), (hidden, head, labels, weights, found.log_normalizer, found.dh)


def _chunked_backward(saved: tuple[Any, ...], g: jax.Array) -> tuple[jax.Array, Params, None, None]:
    hidden, head, labels, weights, log_normalizer, dh = saved
    vocabulary = head["weight"].shape[0]
    size = min(_CHUNK, vocabulary)

    def add_chunk(number: jax.Array, gradient: Params) -> Params:
        # The last chunk overlaps the one before: what is there twice is written twice.
        start = jnp.minimum(number * size, vocabulary - size)
        part = {name: jax.lax.dynamic_slice_in_dim(value, start, size) for name, value in head.items()}
        scores = linear(hidden, part).astype(jnp.float32)
        scores = jnp.exp(scores - log_normalizer[..., None]) * (g * weights)[..., None]
        sums = {"weight": jnp.einsum("btv,btd->vd", scores.astype(hidden.dtype), hidden), "bias": scores.sum((0, 1))}
        return {
            name: jax.lax.dynamic_update_slice_in_dim(value, sums[name].astype(value.dtype), start, 0)
            for name, value in gradient.items()
        }

    gradient = jax.lax.fori_loop(0, -(-vocabulary // size), add_chunk, jax.tree.map(jnp.zeros_like, head))
    own = {"weight": (g * weights)[..., None] * hidden, "bias": g * weights}
    gradient = {
        name: value.at[labels].add(-own[name].astype(value.dtype), mode="promise_in_bounds")
        for name, value in gradient.items()
    }
    return (g * dh).astype(hidden.dtype), gradient, None, None


_chunked_loss.defvjp(_chunked_forward, _chunked_backward)
