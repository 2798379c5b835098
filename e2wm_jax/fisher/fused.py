"""The Fisher of a batch in one backward pass, for the cost of an ordinary gradient.

Forward, each layer's input is kept, and the products of some of its matrices (`products_to_keep`); backward, a scan
over the layers in reverse makes each layer again from those, pulls the gradient through it, and adds the squares of the
documents' weight gradients (`squares`) to the totals it carries: one copy of F, updated in place, and no gradient of a
weight anywhere.

Letters: B rows, T tokens, D model width, L layers, J documents.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from e2wm_jax.config import ModelConfig
from e2wm_jax.fisher import head as heads
from e2wm_jax.fisher.documents import DocumentBatch
from e2wm_jax.fisher.examples import Losses
from e2wm_jax.fisher.squares import (
    Documents,
    RecordedMatrix,
    Split,
    SquaredMatrix,
    SquaredTable,
    SquaredVector,
    documents_of,
)
from e2wm_jax.models.decoder import family_of, layer_step, weight_table, windows
from e2wm_jax.models.layers import Params
from e2wm_jax.models.weights import flatten, unflatten

Flat = Mapping[str, Any]  # path in the parameter tree -> array
_Kept = tuple[jax.Array, dict[str, jax.Array]]  # inputs [L, B, T, D] of the layers, and some of their products
_LAYERS = "layers."
_READ_BY_EMBED = ("embed.weight", "positions.", "project_in.")


class FusedOptions(NamedTuple):
    """What is fixed for a pass: static arguments of the compiled step."""

    reduction: Literal["mean", "sum"] = "mean"
    sampling_seed: int | None = None  # labels are drawn from the model with it; None: they are the text's own
    group: int = 1  # documents whose products are squared at once ...
    kernel: str = "xla"  # ... and by which implementation (`kernels.square_sum`)
    keep: int = 0  # bytes for products of the forward pass that are not made again (`products_to_keep`)
    splits: tuple[tuple[str, Split], ...] = ()  # of the weights that come in parts, inside `jax.shard_map`


def document_weights(batch: DocumentBatch, reduction: Literal["mean", "sum"]) -> jax.Array:
    """Weight of each token's negative log-likelihood in its document's loss, [B, T] float32."""
    if reduction == "sum":
        return batch.predicted
    counts = jnp.zeros(batch.starts.shape[0] + 1).at[batch.slots].add(batch.predicted)
    return batch.predicted / jnp.maximum(counts[batch.slots], 1)


def products_to_keep(config: ModelConfig, tokens: int, budget: int, dtype: jnp.dtype) -> tuple[str, ...]:
    """Names in a layer of the matrices whose products, of all layers and ``tokens``, together fit into budget bytes.

    Keeping one saves its product in the backward pass.  That of the layer's last matrix is never needed there.
    """
    names: list[str] = []
    for path, spec in weight_table(config).items():
        size = config.num_layers * tokens * spec.shape[0] * jnp.dtype(dtype).itemsize
        if path.startswith(_LAYERS) and len(spec.shape) == 2 and path != "layers.down.weight" and size <= budget:
            names.append(path.removeprefix(_LAYERS))
            budget -= size
    return tuple(names)


def add_squares(
    config: ModelConfig, options: FusedOptions, totals: dict[str, jax.Array], params: Params, batch: DocumentBatch
) -> tuple[dict[str, jax.Array], Losses]:
    """totals + sum over the batch's documents of the squared gradient of each, for the paths in ``totals``, which are
    float32 in the shape of the parameters."""
    family, put = family_of(config), _Leaves(config, documents_of(batch, options.group, options.kernel), options.splits)
    weights = document_weights(batch, options.reduction)
    outer, layers = _divide(totals)
    step = layer_step(config, batch.positions, batch.segments)
    params = {**put.all_gather({name: p for name, p in params.items() if name != "layers"}), "layers": params["layers"]}

    embedded = family.embed(config, params, batch.ids, batch.positions)
    last, kept = _forward(config, step, put, params, embedded, options.keep)
    dx, nll, head_rows, outer = _through_head(config, options, put, params, batch, weights, last, outer)
    dx, layers = _backward(config, step, put, params, kept, dx, layers)

    def embed(totals: dict[str, jax.Array]) -> jax.Array:
        squared = put.squared(params, totals, head_rows=head_rows)
        return family.embed(config, squared, batch.ids, batch.positions)

    in_embed = {path: outer[path] for path in outer if path.startswith(_READ_BY_EMBED)}
    (updated,) = jax.vjp(embed, in_embed)[1](dx)
    return {**outer, **updated, **layers}, _losses(nll * weights, dx, batch)


def _forward(
    config: ModelConfig, step: Callable[..., jax.Array], put: "_Leaves", params: Params, x: jax.Array, budget: int
) -> tuple[jax.Array, _Kept]:
    """The last layer's output [B, T, D], and what the backward pass reads: each layer's input, and those products of
    matrices that fit into budget bytes (`products_to_keep`), with a leading axis of layers."""
    keep = products_to_keep(config, math.prod(x.shape[:2]), budget, x.dtype)

    def forward(x: jax.Array, layer: tuple[Params, Any]) -> tuple[jax.Array, _Kept]:
        p, window = layer
        flat: dict[str, Any] = dict(flatten(put.all_gather(p, _LAYERS)))

        def recorded(x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            products: dict[str, jax.Array] = {}
            records = {name: RecordedMatrix(flat[name], name, products) for name in keep}
            return step(x, unflatten({**flat, **records}), window), products

        # Under differentiation, as backwards: where nothing is differentiated, quantized products may be rounded.
        y, _, products = jax.vjp(recorded, x, has_aux=True)
        return y, (x, products)

    return jax.lax.scan(forward, x, (params["layers"], windows(config)))


def _through_head(
    config: ModelConfig,
    options: FusedOptions,
    put: "_Leaves",
    params: Params,
    batch: DocumentBatch,
    weights: jax.Array,
    last: jax.Array,
    outer: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array | None, dict[str, jax.Array]]:
    """From the last layer's output to the loss and back.

    Returns:
        Its gradient [B, T, D], each token's negative log-likelihood [B, T], the rows of a tied head's gradient that the
        embedding's squares need (`head.own_rows`), and the totals outside the layers with what was passed added.
    """
    head_name, keys = "embed" if config.tied else "head", None

    def finish(x: jax.Array, totals: dict[str, jax.Array]) -> jax.Array:
        return family_of(config).finish(config, put.squared(params, totals), x)

    in_finish = {path for path in outer if not path.startswith((*_READ_BY_EMBED, f"{head_name}."))}
    hidden, pull = jax.vjp(finish, last, {path: outer[path] for path in in_finish})
    if options.sampling_seed is not None:
        keys = heads.token_keys(options.sampling_seed, batch.numbers, batch.slots, batch.positions)
    found = heads.loss_and_gradient(hidden, params[head_name], batch.labels, weights, keys)
    of_head = {path.split(".")[1]: outer[path] for path in outer if path.startswith(f"{head_name}.")}
    head_rows = None
    if of_head:
        split = put.splits.get(f"{head_name}.weight")
        of_head = heads.add_squares(of_head, hidden, params[head_name], found, weights, put.documents, split)
        outer = outer | {f"{head_name}.{name}": total for name, total in of_head.items()}
        if config.tied:
            head_rows = heads.own_rows(hidden, params["embed"], batch.ids, found, weights, put.documents)
    dx, updated = pull(found.dh)
    return dx, found.nll, head_rows, outer | updated


def _backward(
    config: ModelConfig,
    step: Callable[..., jax.Array],
    put: "_Leaves",
    params: Params,
    kept: _Kept,
    dx: jax.Array,
    totals: dict[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The gradient of the first layer's input [B, T, D] from that of the last one's output, and the layers' totals with
    their squares added."""

    def backward(
        carry: tuple[jax.Array, dict[str, jax.Array]], layer: tuple[jax.Array, Any, Params, Any]
    ) -> tuple[tuple[jax.Array, dict[str, jax.Array]], None]:
        dx, totals = carry
        index, (x, products), p, window = layer
        p = put.all_gather(p, _LAYERS)
        here = {path: jax.lax.dynamic_index_in_dim(total, index, keepdims=False) for path, total in totals.items()}
        _, pull = jax.vjp(lambda x, here: step(x, put.squared(p, here, products, _LAYERS), window), x, here)
        dx, here = pull(dx)
        update = jax.lax.dynamic_update_index_in_dim
        return (dx, {path: update(total, here[path], index, 0) for path, total in totals.items()}), None

    scanned = (jnp.arange(config.num_layers), kept, params["layers"], windows(config))
    return jax.lax.scan(backward, (dx, totals), scanned, reverse=True)[0]


def _divide(totals: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Those outside the layers, and those of the layers."""
    layers = {path: total for path, total in totals.items() if path.startswith(_LAYERS)}
    return {path: total for path, total in totals.items() if path not in layers}, layers


class _Leaves:
    """What stands for the weights in one pass."""

    def __init__(self, config: ModelConfig, documents: Documents, splits: tuple[tuple[str, Split], ...]) -> None:
        self.table, self.documents, self.splits = weight_table(config), documents, dict(splits)

    def all_gather(self, params: Params, prefix: str = "") -> Params:
        """Whole weights (below ``prefix``) in place of this device's parts."""
        flat = dict(flatten(params))
        for name in flat:
            if split := self.splits.get(prefix + name):
                flat[name] = split.all_gather(flat[name])
        return unflatten(flat)

    def squared(
        self,
        params: Params,
        totals: dict[str, jax.Array],
        products: Mapping[str, jax.Array] = MappingProxyType({}),
        prefix: str = "",
        head_rows: jax.Array | None = None,
    ) -> Params:
        """The parameters (below ``prefix``) with squared leaves where there is a total or a known product."""
        flat: dict[str, Any] = dict(flatten(params))
        for name, product in products.items():
            flat[name] = SquaredMatrix(flat[name], None, self.documents, product)
        for path, total in totals.items():
            name, axes, split = path.removeprefix(prefix), self.table[path].axes, self.splits.get(path)
            if len(axes) == 1:
                flat[name] = SquaredVector(flat[name], total, self.documents)
            elif axes[0] in ("vocab", "positions"):
                rows = head_rows if axes[0] == "vocab" else None
                flat[name] = SquaredTable(flat[name], total, self.documents, rows, split)
            elif name in products:
                flat[name] = flat[name].replace(total=total, split=split)
            else:
                flat[name] = SquaredMatrix(flat[name], total, self.documents, split=split)
        return unflatten(flat)


def _losses(weighted_nll: jax.Array, dx: jax.Array, batch: DocumentBatch) -> Losses:
    """NaN or infinity anywhere in the backward pass reaches the gradient of the document's input."""
    places = batch.starts.shape[0] + 1
    nats = jnp.zeros(places).at[batch.slots].add(jnp.where(batch.predicted > 0, weighted_nll, 0))
    finite = jnp.all(jnp.isfinite(dx), axis=-1) & jnp.isfinite(jnp.where(batch.predicted > 0, weighted_nll, 0))
    return Losses(nats[:-1], jnp.ones(places, bool).at[batch.slots].min(finite)[:-1])
