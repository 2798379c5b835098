"""Frozen weights spread over the "fsdp" axis of a mesh, all-gathered where they are used.

Letters as in `layers`; S devices of the axis.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e2wm_jax.config import ModelConfig
from e2wm_jax.models import exchange
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.layers import Params, lookup, matmul
from e2wm_jax.models.quantized import dense
from e2wm_jax.models.weights import flatten, unflatten
from e2wm_jax.sharding import partition

AXIS = "fsdp"


@struct.dataclass
class GatheredMatrix:
    """A matrix or a table, of any kind, of which each device of the axis has a share of the rows or of the columns.

    A product gathers the shares, forwards and again backwards: what is kept between the two is this device's own.
    """

    part: Any  # an array, or a Matrix or Table of another kind
    dimensions: tuple[int | None, ...] = struct.field(pytree_node=False)  # of each leaf of one layer: the split one
    by_exchange: bool = struct.field(pytree_node=False, default=False)  # which all-gather: `with_gathered`

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part: a table, which is split by columns, has as many rows as the whole."""
        return jax.tree.leaves(self.part)[0].shape

    def whole(self) -> Any:
        """All rows and columns."""
        leaves, kind = jax.tree.flatten(self.part)
        all_gather = exchange.all_gather if self.by_exchange else partial(jax.lax.all_gather, tiled=True)
        return jax.tree.unflatten(
            kind,
            [
                leaf if dimension is None else all_gather(leaf, AXIS, axis=dimension)
                for leaf, dimension in zip(leaves, self.dimensions, strict=True)
            ],
        )

    def dense(self) -> jax.Array:
        """All of it written out."""
        return dense(self.whole())

    def matmul(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> x W^T [..., N]."""
        return _product(x, self)

    def lookup(self, ids: jax.Array) -> jax.Array:
        """ids [B, T] of this device's rows -> rows [B, T, D]: ids go round, and columns come back."""
        found = lookup(jax.lax.all_gather(ids, AXIS), self.part)  # [S, B, T, a share of D]
        return jax.lax.all_to_all(found, AXIS, split_axis=0, concat_axis=found.ndim - 1, tiled=True)[0]


@jax.custom_vjp
def _product(x: jax.Array, w: GatheredMatrix) -> jax.Array:
    return matmul(x, w.whole())


def _product_forward(x: jax.Array, w: GatheredMatrix) -> tuple[jax.Array, GatheredMatrix]:
    return _product(x, w), w


def _product_backward(w: GatheredMatrix, g: jax.Array) -> tuple[jax.Array, None]:
    whole = w.whole()
    # A product is linear in x, so its value does not matter, and that of the product is never asked for.
    _, pull = jax.vjp(lambda x: matmul(x, whole), jnp.zeros((*g.shape[:-1], whole.shape[-1]), g.dtype))
    return pull(g)[0], None  # the weight is frozen


_product.defvjp(_product_forward, _product_backward)


def specs(config: ModelConfig, params: Params, mesh: Mesh) -> Params:
    """A `PartitionSpec` for every leaf of the parameters: as `sharding.partition` has it for the matrix; of quantized
    ones all leaves are split along the same dimensions, if they all can be."""
    return unflatten({path: _leaf_specs(config, path, value, mesh) for path, value in flatten(params).items()})


def place(config: ModelConfig, params: Params, mesh: Mesh) -> Params:
    """The parameters on the mesh, as `specs` says."""
    where = specs(config, params, mesh)
    return jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), params, where)


def manual_specs(config: ModelConfig, params: Params, mesh: Mesh) -> Params:
    """What of `specs` is the split over "fsdp": the part that `jax.shard_map` sees."""

    def only(spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(*(axis if axis == AXIS else None for axis in spec))

    return jax.tree.map(only, specs(config, params, mesh), is_leaf=lambda x: isinstance(x, PartitionSpec))


def splits(config: ModelConfig, params: Params, mesh: Mesh) -> dict[str, tuple[int | None, ...]]:
    """For every weight that "fsdp" splits, which dimension of each leaf of one layer."""
    if mesh.shape[AXIS] == 1:
        return {}
    found = {
        path: tuple(
            _split(spec[weight_table(config)[path].stacked :]) for spec in _flat_specs(config, path, value, mesh)
        )
        for path, value in flatten(params).items()
    }
    return {path: dimensions for path, dimensions in found.items() if any(d is not None for d in dimensions)}


def with_gathered(params: Params, mesh: Mesh, splits: dict[str, tuple[int | None, ...]]) -> Params:
    """Inside `jax.shard_map`, this device's part of the parameters with a `GatheredMatrix` for every weight of `splits`
    (which go by the shapes outside)."""
    by_exchange = exchange.exchangeable(mesh, AXIS)
    flat = flatten(params)
    return unflatten(
        {path: GatheredMatrix(x, splits[path], by_exchange) if path in splits else x for path, x in flat.items()}
    )


def _split(spec: Sequence[Any]) -> int | None:
    return next((dimension for dimension, axis in enumerate(spec) if axis == AXIS), None)


def _leaf_specs(config: ModelConfig, path: str, value: Any, mesh: Mesh) -> Any:
    return jax.tree.unflatten(jax.tree.structure(value), _flat_specs(config, path, value, mesh))


def _flat_specs(config: ModelConfig, path: str, value: Any, mesh: Mesh) -> list[PartitionSpec]:
    """Of each leaf.  A leaf of fewer dimensions, the scales of rows, has the first of them."""
    table = weight_table(config)[path]
    leaves = jax.tree.leaves(value)
    layers = (None,) if table.stacked else ()
    shapes = [leaf.shape[len(layers) :] for leaf in leaves]
    axes = [
        axis
        if axis is not None and all(shape[d] % mesh.shape[axis] == 0 for shape in shapes if d < len(shape))
        else None
        for d, axis in enumerate(partition(mesh, table.shape, table.axes))
    ]
    return [PartitionSpec(*layers, *axes[: len(shape)]) for shape in shapes]
