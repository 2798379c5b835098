"""The forward pass of any family: one scan over its layers, with or without a cache of keys and values.

Letters as in `layers`; S places of a cache.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from e2wm_jax.config import GPTJConfig, GPTNeoConfig, GPTNeoXConfig, LlamaConfig, ModelConfig, OPTConfig
from e2wm_jax.models.families import gpt_neo, gpt_neox, gptj, llama, opt
from e2wm_jax.models.families import weight_table as tables
from e2wm_jax.models.families.family import Family
from e2wm_jax.models.families.weight_table import WeightTable
from e2wm_jax.models.layers import Params, attention, cached_attention, linear
from e2wm_jax.options.choices import Remat

FAMILIES: dict[type[ModelConfig], Family] = {
    GPTNeoConfig: gpt_neo,
    GPTJConfig: gptj,
    OPTConfig: opt,
    LlamaConfig: llama,
    GPTNeoXConfig: gpt_neox,
}


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


_KEPT = {
    "layers": None,  # only each layer's input
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # and what weights were multiplied to
}


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, the same number in all rows."""

    layers: tuple[tuple[jax.Array, jax.Array], ...]  # of each layer: keys and values, [B, G, S, K] each
    positions: jax.Array  # [B, S] int32
    segments: jax.Array  # [B, S] int32
    length: jax.Array  # [] int32: places taken


def unstack(params: Params) -> Params:
    """The parameters with one tree per layer, in place of arrays with a leading layer axis; the cache needs them so.

    A step that reads few tokens costs what it takes to read the weights.  A scan copies each layer's slice before it
    multiplies, on a CPU in bfloat16 at a tenth of the speed of memory, so the slices are made once, here and not under
    `jit`.  Parameters that are unstacked already are returned as they are.
    """
    layers = params["layers"]
    if isinstance(layers, tuple):
        return params
    number = len(jax.tree.leaves(layers)[0])
    return {**params, "layers": tuple(jax.tree.map(itemgetter(i), layers) for i in range(number))}


def hidden_states(
    config: ModelConfig,
    params: Params,
    ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    *,
    remat: Remat = "none",
) -> Float[Array, "B T D"]:
    """Final normed hidden states; tokens of a row see each other where their segments are the same (`visibility`)."""
    family, step = family_of(config), layer_step(config, positions, segments)

    def body(x: jax.Array, layer: tuple[Params, Any]) -> tuple[jax.Array, None]:
        return step(x, *layer), None

    if remat != "none":
        body = jax.checkpoint(body, policy=_KEPT[remat])
    x = family.embed(config, params, ids, positions)
    if isinstance(params["layers"], tuple):
        for layer in zip(params["layers"], _windows_one_by_one(config), strict=True):
            x, _ = body(x, layer)
    else:
        x, _ = jax.lax.scan(body, x, (params["layers"], windows(config)))
    return family.finish(config, params, x)


def layer_step(
    config: ModelConfig, positions: jax.Array, segments: jax.Array
) -> Callable[[jax.Array, Params, jax.Array | int | None], jax.Array]:
    """step(x [B, T, D], a layer's weights, its window (`windows`)) -> the next layer's input, without a cache."""
    family = family_of(config)
    context = family.context(config, positions)
    order = jnp.arange(positions.shape[1])
    visible, distance = visibility(segments, segments, order, order), _distance(positions, positions)

    def step(x: jax.Array, p: Params, window: jax.Array | int | None) -> jax.Array:
        mask = _within(visible, distance, window)
        x, _ = family.layer(config, x, p, context, lambda q, k, v, scale=None: (attention(q, k, v, mask, scale), None))
        return x

    return step


def activation_dtype(config: ModelConfig, params: Params) -> jnp.dtype:
    """The dtype of hidden states."""
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(lambda p, t: family_of(config).embed(config, p, t, t), params, token).dtype


def prefill(
    config: ModelConfig, params: Params, ids: jax.Array, positions: jax.Array, segments: jax.Array, *, places: int
) -> tuple[jax.Array, Cache]:
    """`hidden_states` [B, T, D] of unstacked parameters, and a cache that holds the T tokens and ``places`` more."""
    family = family_of(config)
    context = family.context(config, positions)
    order = jnp.arange(ids.shape[1])
    visible, distance = visibility(segments, segments, order, order), _distance(positions, positions)

    def grown(array: jax.Array, axis: int, value: int = 0) -> jax.Array:
        pads = [(0, places if axis == i else 0) for i in range(array.ndim)]
        return jnp.pad(array, pads, constant_values=value)

    x, layers = family.embed(config, params, ids, positions), []
    for p, window in zip(params["layers"], _windows_one_by_one(config), strict=True):
        mask = _within(visible, distance, window)

        def attend(q: Any, k: Any, v: Any, scale: float | None = None, mask: Any = mask) -> tuple[jax.Array, Any]:
            return attention(q, k, v, mask, scale), (k, v)

        x, kept = family.layer(config, x, p, context, attend)
        keys, values = (grown(_kept_in(part.swapaxes(1, 2)), axis=2) for part in kept)
        layers.append((keys, values))
    cache = Cache(tuple(layers), grown(positions, 1, -1), grown(segments, 1, -1), jnp.int32(ids.shape[1]))
    return family.finish(config, params, x), cache


def _kept_in(part: jax.Array) -> jax.Array:
    """On a CPU bfloat16 is kept in float32: XLA there would convert a whole cache of it to and fro at every update."""
    wide = part.dtype == jnp.bfloat16 and jax.default_backend() == "cpu"
    return part.astype(jnp.float32) if wide else part


def extend(
    config: ModelConfig,
    params: Params,
    cache: Cache,
    ids: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    visible: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """`hidden_states` [B, T, D] of T more tokens behind those of the cache, and the cache with them in it.

    Parameters are unstacked.  ``visible`` [B, T, S] says who sees which place of the cache, where it is not what the
    segments say (`visibility`).  The cache must have T places left: beyond its end tokens would overwrite each other.
    """
    family, start = family_of(config), cache.length
    context = family.context(config, positions)

    def put(whole: jax.Array, part: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), start, axis)

    all_positions, all_segments = put(cache.positions, positions, 1), put(cache.segments, segments, 1)
    if visible is None:
        order = jnp.arange(all_segments.shape[1])
        visible = visibility(segments, all_segments, start + jnp.arange(ids.shape[1]), order)
    distance = _distance(positions, all_positions)

    x, layers = family.embed(config, params, ids, positions), []
    for p, window, (keys, values) in zip(params["layers"], _windows_one_by_one(config), cache.layers, strict=True):
        mask = _within(visible, distance, window)

        def attend(
            q: Any, k: Any, v: Any, scale: float | None = None, mask: Any = mask, keys: Any = keys, values: Any = values
        ) -> tuple[jax.Array, Any]:
            kept = put(keys, k.swapaxes(1, 2), 2), put(values, v.swapaxes(1, 2), 2)
            return cached_attention(q, *kept, mask, scale), kept

        x, kept = family.layer(config, x, p, context, attend)
        layers.append(kept)
    cache = Cache(tuple(layers), all_positions, all_segments, start + ids.shape[1])
    return family.finish(config, params, x), cache


def logits(config: ModelConfig, params: Params, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Output scores of hidden states."""
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


def windows(config: ModelConfig) -> jax.Array | None:
    """How many tokens each layer sees, [L], or None if all see all."""
    if not any(config.windows):
        return None
    return jnp.array([window or jnp.iinfo(jnp.int32).max for window in config.windows], jnp.int32)


def _windows_one_by_one(config: ModelConfig) -> list[int | None]:
    """`windows` for layers that are not scanned: None for those that see all."""
    return [window or None for window in config.windows or (0,) * config.num_layers]


def _within(visible: jax.Array, distance: jax.Array, window: jax.Array | int | None) -> jax.Array:
    """The mask [B, 1, T, S] of a layer."""
    return (visible if window is None else visible & (distance < window))[:, None]
