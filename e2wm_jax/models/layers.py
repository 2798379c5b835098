"""The pieces every decoder is made of, and the one place where a weight meets an activation.

Letters: B batch, T tokens, M predicted tokens, D model width, H query heads, G key/value heads, K head size,
F feed-forward width, V vocabulary, L layers, N outputs of a linear map.

Weights keep the layout of Hugging Face checkpoints ([outputs, inputs], [V, D]), so import, export, LoRA and Fisher
files are plain key maps without transposes.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

Params = dict[str, Any]  # nested dicts; leaves are arrays, or a Matrix, Table or Vector in their place


class Matrix(Protocol):
    """What may stand where a matrix meets an activation: LoRA-adapted, quantized, Fisher-accumulating, ...

    An implementation is a pytree whose leaves carry the leading layer axis like any stacked parameter, so that
    `jax.lax.scan` over layers slices it.  The forward pass never asks which kind it holds.
    """

    def matmul(self, x: jax.Array) -> jax.Array:
        """x [..., inputs] -> [..., outputs], as `x @ W.T`."""
        ...


class Table(Protocol):
    """What may stand where token ids are looked up."""

    def lookup(self, ids: jax.Array) -> jax.Array:
        """ids [B, T] -> rows [B, T, D]."""
        ...


class Vector(Protocol):
    """What may stand where a norm scales or a bias shifts."""

    def multiply(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> x * w."""
        ...

    def add(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> x + w."""
        ...


def matmul(x: jax.Array, w: jax.Array | Matrix) -> jax.Array:
    """x [..., inputs], w [outputs, inputs] -> [..., outputs]."""
    return jnp.einsum("...d,nd->...n", x, w) if isinstance(w, jax.Array) else w.matmul(x)


def lookup(ids: jax.Array, table: jax.Array | Table) -> jax.Array:
    """ids [B, T], table [V, D] -> [B, T, D]."""
    return jnp.take(table, ids, axis=0) if isinstance(table, jax.Array) else table.lookup(ids)


def multiply(x: jax.Array, w: jax.Array | Vector) -> jax.Array:
    """x [..., D] * w [D]."""
    return x * w if isinstance(w, jax.Array) else w.multiply(x)


def add(x: jax.Array, b: jax.Array | Vector) -> jax.Array:
    """x [..., N] + b [N]."""
    return x + b if isinstance(b, jax.Array) else b.add(x)


def linear(x: jax.Array, p: Mapping[str, Any]) -> jax.Array:
    """Linear map with parameters {"weight": [N, D], optional "bias": [N]}."""
    y = matmul(x, p["weight"])
    return add(y, p["bias"]) if "bias" in p else y


def rms_norm(x: jax.Array, w: jax.Array | Vector, eps: float) -> jax.Array:
    """Root-mean-square norm (Zhang & Sennrich 2019); statistics in float32, scale in the model's dtype."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return multiply(normed.astype(x.dtype), w)


def rotary(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, T, 1, K/2] of the rotary position embedding (Su et al. 2021)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Apply `rotary` to x [B, T, heads, K]: dimension i is paired with i + K/2, as Hugging Face stores q and k."""
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float | None = None) -> jax.Array:
    """Dot-product attention scaled by 1 / sqrt(K) unless told otherwise, softmax in float32.

    q [B, T, H, K]; k, v [B, S, G, K], each shared by H / G query heads; mask [B, 1, T, S] -> [B, T, H, K].
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale)


def negative_log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label] in float32: logits [..., V], labels [...] -> [...]."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
