"""The forward pass of any family: one scan over its layers, with or without a cache of keys and values.

Letters as in `layers`; S places of a cache.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from e2wm_jax.config import LlamaConfig, ModelConfig
from e2wm_jax.models import llama
from e2wm_jax.models import weight_table as tables
from e2wm_jax.models.family import Family
from e2wm_jax.models.layers import Params, attention, linear
from e2wm_jax.models.weight_table import WeightTable

FAMILIES: dict[type[ModelConfig], Family] = {LlamaConfig: llama}


def family_of(config: ModelConfig) -> Family:
    """The family that a configuration belongs to."""
    return FAMILIES[type(config)]


def weight_table(config: ModelConfig) -> WeightTable:
    """Every weight of the model: path in our tree -> its specification."""
    return family_of(config).weight_table(config)


def initialize(config: ModelConfig, key: jax.Array, dtype: jnp.dtype | str = jnp.float32) -> Params:
    """Random weights: norms 1, biases 0, everything else normal with `initializer_range`."""
    return tables.initialize(
        weight_table(config), config.num_layers, key, initializer_range=config.initializer_range, dtype=dtype
    )


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, the same number in all rows."""

    keys: jax.Array  # [L, B, S, G, K]
    values: jax.Array
    positions: jax.Array  # [B, S] int32
    segments: jax.Array  # [B, S] int32
    length: jax.Array  # [] int32: places taken


def empty_cache(config: ModelConfig, batch_size: int, places: int, dtype: jnp.dtype | str) -> Cache:
    """A cache for ``places`` tokens of each row."""
    shape = (config.num_layers, batch_size, places, config.num_kv_heads, config.head_dim)
    nobody = jnp.full((batch_size, places), -1, jnp.int32)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), nobody, nobody, jnp.int32(0))


def hidden_states(
    config: ModelConfig,
    params: Params,
    ids: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    *,
    remat: bool = False,
) -> jax.Array:
    """Final normed hidden states [B, T, D] of ids, positions and segments, each [B, T] (`visibility`).

    With `remat` the backward pass recomputes each layer from its input instead of keeping its activations.
    """
    family = family_of(config)
    context = family.context(config, positions)
    order = jnp.arange(ids.shape[1])
    visible, distance = visibility(segments, segments, order, order), _distance(positions, positions)

    def body(x: jax.Array, layer: tuple[Params, Any]) -> tuple[jax.Array, None]:
        p, window = layer
        mask = _within(visible, distance, window)
        return family.layer(config, x, p, context, lambda q, k, v, scale=None: (attention(q, k, v, mask, scale), None))

    x = family.embed(config, params, ids, positions)
    x, _ = jax.lax.scan(jax.checkpoint(body) if remat else body, x, (params["layers"], _windows(config)))
    return family.finish(config, params, x)


def extend(
    config: ModelConfig, params: Params, cache: Cache, ids: jax.Array, positions: jax.Array, segments: jax.Array
) -> tuple[jax.Array, Cache]:
    """`hidden_states` [B, T, D] of T more tokens behind those of the cache, and the cache with them in it.

    The cache must have T places left: beyond its end tokens would overwrite each other.
    """
    family, start = family_of(config), cache.length
    context = family.context(config, positions)

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), start, axis=1)

    all_positions, all_segments = put(cache.positions, positions), put(cache.segments, segments)
    order = jnp.arange(all_segments.shape[1])
    visible = visibility(segments, all_segments, start + jnp.arange(ids.shape[1]), order)
    distance = _distance(positions, all_positions)

    def body(x: jax.Array, layer: tuple[Params, Any, jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        p, window, keys, values = layer
        mask = _within(visible, distance, window)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, scale: float | None = None) -> tuple[jax.Array, Any]:
            kept = put(keys, k), put(values, v)
            return attention(q, *kept, mask, scale), kept

        return family.layer(config, x, p, context, attend)

    x = family.embed(config, params, ids, positions)
    x, (keys, values) = jax.lax.scan(body, x, (params["layers"], _windows(config), cache.keys, cache.values))
    cache = Cache(keys, values, all_positions, all_segments, start + ids.shape[1])
    return family.finish(config, params, x), cache


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Output scores [..., V] of hidden states [..., D]."""
    with jax.named_scope("head"):
        return linear(hidden, params["embed" if config.tied else "head"])


def visibility(queries: jax.Array, keys: jax.Array, query_order: jax.Array, key_order: jax.Array) -> jax.Array:
    """Who sees whom, [B, T, S], from the segments of queries [B, T] and keys [B, S] and their places [T], [S].

    A token sees earlier tokens of its own segment and of segment 0.  An ordinary row is all 0; packed documents are
    1, 2, ...; answer options 1, 2, ... behind a prefix in segment 0 share that prefix; padding is -1.
    """
    own = queries[:, :, None] == keys[:, None, :]
    prefix = keys[:, None, :] == 0
    return (own | prefix) & (query_order[:, None] >= key_order[None, :])


def _distance(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """How far behind a query [B, T] each key [B, S] is, in positions, [B, T, S]."""
    return queries[:, :, None] - keys[:, None, :]


def _windows(config: ModelConfig) -> jax.Array | None:
    """[L] how many tokens each layer sees, or None if all see all."""
    if not any(config.windows):
        return None
    return jnp.array([window or jnp.iinfo(jnp.int32).max for window in config.windows], jnp.int32)


def _within(visible: jax.Array, distance: jax.Array, window: jax.Array | None) -> jax.Array:
    """The mask [B, 1, T, S] of a layer."""
    return (visible if window is None else visible & (distance < window))[:, None]
