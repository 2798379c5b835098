"""Which token comes next: the likeliest, or one drawn from a tempered and cut distribution.

Letters: B rows, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
    """How tokens are drawn; a pytree, None switches a cut off.  The order is temperature, top-k, top-p."""

    temperature: jax.Array | float = 1.0  # scores are divided by it
    top_k: jax.Array | int | None = None  # only the k likeliest (and their equals)
    top_p: jax.Array | float | None = None  # only the likeliest whose mass together reaches p (Holtzman et al. 2020)


def next_token(logits: jax.Array, keys: jax.Array, step: jax.Array, sampling: Sampling | None) -> jax.Array:
    """Tokens [B] from output scores [B, V]: the likeliest, or, with ``sampling``, one drawn with the row's own key.

    A row's draw depends on its key [B] and the step alone, so not on the rows beside it.
    """
    if sampling is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scores = cut(logits.astype(jnp.float32), sampling)
    draw = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row))
    return draw(keys, scores).astype(jnp.int32)


def cut(scores: jax.Array, sampling: Sampling) -> jax.Array:
    """Unnormalized log-probabilities [B, V] that tokens are drawn from: -inf for what is cut off."""
    scores = scores / sampling.temperature
    if (top_k := sampling.top_k) is not None:
        least = _largest_threshold(scores, lambda t: jnp.sum(scores >= t, axis=-1, keepdims=True) >= top_k)
        scores = jnp.where(scores >= least, scores, -jnp.inf)
    if (top_p := sampling.top_p) is not None:
        shares = jax.nn.softmax(scores, axis=-1)
        # What is cut off is added up, not what stays: with p = 1 the smallest shares would be lost in rounding.
        least = _largest_threshold(
            shares, lambda t: jnp.sum(jnp.where(shares < t, shares, 0.0), axis=-1, keepdims=True) <= 1 - top_p
        )
        scores = jnp.where(shares >= least, scores, -jnp.inf)
    return scores


def _largest_threshold(values: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest t [B, 1] among the values' range [B, V] for which enough lies at or above it; the least if none.

    Floats of one sign are ordered like the integers of their bits, so 32 halvings find t exactly, in passes over V that
    cost a fraction of sorting it.
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # enough at low, not at high
        middle = (low & high) + ((low ^ high) >> 1)  # their mean; the sum could overflow
        fits = enough(_float_of(middle))
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    low = _order_of(jnp.min(values, axis=-1, keepdims=True))
    high = _order_of(jnp.max(values, axis=-1, keepdims=True)) + 1
    return _float_of(jax.lax.fori_loop(0, 32, halve, (low, high))[0])


def _order_of(x: jax.Array) -> jax.Array:
    """float32 -> int32 in the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _float_of(order: jax.Array) -> jax.Array:
    """Inverse of `_order_of`."""
    return jax.lax.bitcast_convert_type(jnp.where(order < 0, order ^ 0x7FFFFFFF, order), jnp.float32)
