"""The pieces every decoder is made of, and the one place where a weight meets an activation.

Letters: B batch, T tokens, M predicted tokens, D model width, H query heads, G key/value heads, K head size,
F feed-forward width, V vocabulary, L layers, N outputs of a linear map.

Weights keep the layout of Hugging Face checkpoints ([outputs, inputs], [V, D]), so import, export, LoRA and Fisher
files are plain key maps without transposes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

Params = dict[str, Any]  # nested dicts; leaves are arrays, or a Matrix, Table or Vector in their place

# A function whose backward pass keeps its inputs only and computes the rest again.  For what costs no product with a
# weight: to write and read what a scan keeps of every layer takes longer than to make it.  Without the barriers of
# `jax.checkpoint`, a compiler that sees both passes at once makes it once.
_remade = partial(jax.checkpoint, prevent_cse=False)

_tanh_gelu = _remade(partial(jax.nn.gelu, approximate=True))
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {  # by their names in Hugging Face configurations
    "gelu": _remade(partial(jax.nn.gelu, approximate=False)),
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
}


_FEW_ROWS = 64  # at most so many are those of a decoding step
_TALL = 16  # times as many outputs as inputs


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
    if not isinstance(w, jax.Array):
        return w.matmul(x)
    if x.dtype == w.dtype == jnp.bfloat16 and x.size <= _FEW_ROWS * x.shape[-1]:
        # Reading w is what a few rows cost.  Only in this form XLA on a CPU reads it as it is; otherwise it makes a
        # float32 copy of it first.  Not for many rows: the backward pass would mix float32 with bfloat16.
        rows = x.reshape(-1, x.shape[-1])
        y = jax.lax.dot_general(rows, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        return y.astype(x.dtype).reshape(*x.shape[:-1], -1)
    if x.size <= _FEW_ROWS * x.shape[-1] and w.shape[0] >= _TALL * w.shape[1]:
        # A tall matrix, an output head, is read twice as fast from the left by XLA on a CPU.
        return jnp.einsum("nd,...d->n...", w, x).reshape(w.shape[0], -1).T.reshape(*x.shape[:-1], -1)
    return jnp.einsum("...d,nd->...n", x, w)


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
    return multiply(_over_root_mean_square(x, eps), w)


@partial(_remade, static_argnums=1)
def _over_root_mean_square(x: jax.Array, eps: float) -> jax.Array:
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)).astype(x.dtype)


def layer_norm(x: jax.Array, p: Mapping[str, Any], eps: float) -> jax.Array:
    """Layer norm (Ba et al. 2016) with parameters {optional "weight": [D], optional "bias": [D]}; statistics in
    float32, scale and shift in the model's dtype."""
    y = _over_standard_deviation(x, eps)
    y = multiply(y, p["weight"]) if "weight" in p else y
    return add(y, p["bias"]) if "bias" in p else y


@partial(_remade, static_argnums=1)
def _over_standard_deviation(x: jax.Array, eps: float) -> jax.Array:
    x32 = x.astype(jnp.float32)
    centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    return (centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + eps)).astype(x.dtype)


@_remade
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up (Shazeer 2020)."""
    return jax.nn.silu(gate) * up


@partial(_remade, static_argnums=4)
def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float | None = None) -> jax.Array:
    """Dot-product attention scaled by 1 / sqrt(K) unless told otherwise, softmax in float32.

    q [B, T, H, K]; k, v [B, S, G, K], each shared by H / G query heads; mask [B, 1, T, S] -> [B, T, H, K].
    """
    batch, tokens, _, size = q.shape
    shared, seen = k.shape[2], k.shape[1]
    # Queries of a shared key one after another: products of two axes, and no transposed scores.
    grouped = q.reshape(batch, tokens, shared, -1, size).transpose(0, 2, 3, 1, 4).reshape(batch, shared, -1, size)
    scores = jnp.einsum("bgqk,bsgk->bgqs", grouped, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, shared, -1, tokens, seen)
    weights = _masked_softmax(scores, mask[:, :, None], size**-0.5 if scale is None else scale).astype(v.dtype)
    mixed = jnp.einsum("bgqs,bsgk->bgqk", weights.reshape(batch, shared, -1, seen), v)
    return mixed.reshape(batch, shared, -1, tokens, size).transpose(0, 3, 1, 2, 4).reshape(q.shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _masked_softmax(scores: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """Softmax of scale * scores, even where the mask hides everything; only its result is kept for the gradient."""
    scores = jnp.where(mask, scores * scale, -1e30)
    e = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return e / jnp.sum(e, axis=-1, keepdims=True)


def _masked_softmax_forward(
    scores: jax.Array, mask: jax.Array, scale: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    weights = _masked_softmax(scores, mask, scale)
    return weights, (weights, mask)


def _masked_softmax_backward(scale: float, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, None]:
    weights, mask = saved
    scores = weights * (g - jnp.sum(weights * g, axis=-1, keepdims=True)) * scale
    return jnp.where(mask, scores, 0), None


_masked_softmax.defvjp(_masked_softmax_forward, _masked_softmax_backward)


def cached_attention(
    q: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, scale: float | None = None
) -> jax.Array:
    """`attention` to keys and values [B, G, S, K] in a cache's order, which are read once and not copied.

    q [B, T, H, K], mask [B, 1, T, S] -> [B, T, H, K].  Padding queries that see nothing mix everything evenly.
    """
    batch, tokens, heads, size = q.shape
    grouped = q.reshape(batch, tokens, keys.shape[1], -1, size).astype(keys.dtype)
    scores = jnp.einsum("btgrk,bgsk->bgrts", grouped, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, :, None], scores * (size**-0.5 if scale is None else scale), -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bgrts,bgsk->btgrk", weights, values).reshape(batch, tokens, heads, size).astype(q.dtype)


def negative_log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label] in float32: logits [..., V], labels [...] -> [...]."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
