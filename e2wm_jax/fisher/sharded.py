"""The fused pass over a mesh of devices.

Rows are split over "data" and "fsdp": each device squares its own documents and adds them to totals of its own, which
are summed once, at the end of the pass, so that weights that are copied cost no communication per batch.  A weight that
is split over "fsdp" is gathered where it is used, layer by layer, and its squares are scattered back; its totals are
kept apart over "data" only.  "tensor" is left to the compiler: it splits features, never tokens, and a document's
product over its tokens stays on its device.

`jax.shard_map` with ``check_vma=False``: under the check, the gradient of a replicated input is summed over devices
before anything could square it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from e2wm_jax.config import ModelConfig
from e2wm_jax.fisher import fused
from e2wm_jax.fisher.documents import DocumentBatch
from e2wm_jax.fisher.squares import Split
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.exchange import exchangeable
from e2wm_jax.models.layers import Params
from e2wm_jax.models.weights import flatten, unflatten
from e2wm_jax.sharding import batch_sharding, partition

_ROWS = ("data", "fsdp")


def add_squares(config: ModelConfig, options: fused.FusedOptions, params: Params, mesh: Mesh) -> Any:
    """`fused.add_squares` as a jitted function (totals, params, batch) of arrays on the mesh.

    Totals have a leading axis of devices (`zeros`); losses are of all documents of the batch.
    """
    splits = _splits(config, params, mesh)
    options = options._replace(splits=tuple(splits.items()))
    table = weight_table(config)

    def local(totals: Any, params: Params, batch: DocumentBatch) -> tuple[Any, fused.Losses]:
        own = {path: total[0] for path, total in totals.items()}
        updated, losses = fused.add_squares(config, options, own, params, batch)
        return {path: total[None] for path, total in updated.items()}, losses

    def weight_spec(path: str) -> P:
        split = splits.get(path)
        return _manual(split, len(table[path].shape), stacked=table[path].stacked) if split else P()

    total_specs = {path: P(_kept_apart(splits.get(path)), *weight_spec(path)) for path in table}
    param_specs = unflatten({path: weight_spec(path) for path in flatten(params)})

    def step(totals: Any, params: Params, batch: DocumentBatch) -> tuple[Any, fused.Losses]:
        specs = {path: total_specs[path] for path in totals}
        mapped = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs, param_specs, P(_ROWS)),
            out_specs=(specs, P(_ROWS)),
            axis_names=set(_ROWS),
            check_vma=False,
        )
        return mapped(totals, params, batch)

    return jax.jit(step, donate_argnums=0)


def zeros(config: ModelConfig, params: Params, shapes: dict[str, tuple[int, ...]], mesh: Mesh) -> dict[str, jax.Array]:
    """Totals before the pass: each weight's shape behind an axis of the devices that add up apart."""
    table, splits, made = weight_table(config), _splits(config, params, mesh), {}
    for path, shape in shapes.items():
        spec = table[path]
        axes = _kept_apart(splits.get(path))
        # An axis that keeps totals apart cannot split them too.
        where = [None if axis in axes else axis for axis in partition(mesh, spec.shape, spec.axes)]
        sharding = NamedSharding(mesh, P(axes, *((None,) if spec.stacked else ()), *where))
        devices = int(np.prod([mesh.shape[axis] for axis in axes]))
        made[path] = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding)((devices, *shape), jnp.float32)
    return made


def put(batch: DocumentBatch, mesh: Mesh) -> DocumentBatch:
    """This host's parts of a batch -> the batch on the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


def summed(config: ModelConfig, totals: dict[str, jax.Array], mesh: Mesh) -> dict[str, Any]:
    """The totals over all devices, split as their weights are; with several hosts each as a numpy array on all."""
    table, found = weight_table(config), {}
    for path, total in totals.items():
        spec = table[path]
        where = P(*((None,) if spec.stacked else ()), *partition(mesh, spec.shape, spec.axes))
        several = jax.process_count() > 1
        sharding = NamedSharding(mesh, P() if several else where)
        one = jax.jit(lambda total: jnp.sum(total, axis=0), out_shardings=sharding)(total)
        found[path] = np.asarray(one) if several else one
    return found


def on_host(array: Any) -> np.ndarray:
    """All of an array, wherever its parts are."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _splits(config: ModelConfig, params: Params, mesh: Mesh) -> dict[str, Split]:
    """The weights that "fsdp" splits, and along which of a layer's dimensions.  Codes of quantized ones are copied."""
    if mesh.shape["fsdp"] == 1:
        return {}
    flat, found = flatten(params), {}
    for path, spec in weight_table(config).items():
        where = partition(mesh, spec.shape, spec.axes)
        if "fsdp" in where and isinstance(flat[path], jax.Array):
            found[path] = Split("fsdp", where.index("fsdp"), exchangeable(mesh, "fsdp"))
    return found


def _kept_apart(split: Split | None) -> tuple[str, ...]:
    return _ROWS if split is None else ("data",)


def _manual(split: Split, dimensions: int, *, stacked: bool) -> P:
    """The part of a weight's sharding that `jax.shard_map` handles: its split over "fsdp"."""
    axes = [split.axis if dimension == split.dimension else None for dimension in range(dimensions)]
    return P(*((None,) if stacked else ()), *axes)
