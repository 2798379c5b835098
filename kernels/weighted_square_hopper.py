"""The products behind `weighted_square` on a Hopper GPU (Pallas Mosaic GPU).  Not measured on a GPU: selectable, never
chosen by default.

A thread block is one warpgroup and owns `ROWS` rows of a layer.  Copies of F run ahead of it through shared memory,
tile by tile; a tile becomes P = F * B A in registers, is summed along its rows into dB, which stays in shared memory to
the end, and along its columns into the block's own part of dA.  Everything is float32 arithmetic on the ordinary cores,
48 operations an entry at rank 8, about what they do in the time in which memory delivers an entry.  The parts of dA,
R / ROWS of F's size, are added up by XLA.

A tile has `BLOCK` columns, so that codes bring one scale a row.

Letters: L layers, N outputs, D inputs, R rank.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from e2wm_jax.errors import InputError
from e2wm_jax.fisher.storage import BLOCK, SquareRootCodes, StoredFisher, decode

ROWS = 64  # of a thread block: a warpgroup's layout has tiles of 64 rows
STEPS = 4  # tiles in flight
_TILE = plgpu.Layout.WGMMA
_ALONG_ROWS, _ALONG_COLUMNS = _TILE.reduce(1), _TILE.reduce(0)  # where a vector with an entry per row, column lives


def products(a: jax.Array, b: jax.Array, fisher: StoredFisher, *, interpret: Any = None) -> tuple[jax.Array, jax.Array]:
    """B^T (F * B A) [L, R, D] and (F * B A) A^T [L, N, R].

    Args:
        a: [L, R, D] float32.
        b: [L, N, R] float32.
        fisher: [L, N, D] in any storage type, N and D multiples of 64.
        interpret: `plgpu.InterpretGPUParams()` emulates the kernel on any machine; from jax 0.11 on.

    Raises:
        InputError: for other sizes.
    """
    layers, outputs, rank = b.shape
    inputs = a.shape[2]
    if outputs % ROWS or inputs % BLOCK:
        raise InputError(f"mosaic_gpu: matrices of {outputs} x {inputs}; it takes multiples of {BLOCK}, use xla")
    if isinstance(fisher, SquareRootCodes):  # scales of neighbouring rows side by side
        fisher = SquareRootCodes(fisher.codes, jnp.swapaxes(fisher.scales, 1, 2))
    leaves, structure = jax.tree.flatten(fisher)
    parts = outputs // ROWS
    kernel = plgpu.kernel(
        partial(_kernel, structure),
        out_type=[
            jax.ShapeDtypeStruct((layers, parts, rank, inputs), jnp.float32),
            jax.ShapeDtypeStruct((layers, rank, outputs), jnp.float32),
        ],
        grid=(parts, layers),
        grid_names=("part", "layer"),
        scratch_types=[
            plgpu.SMEM((rank, ROWS), jnp.float32),
            plgpu.SMEM((rank, ROWS), jnp.float32),
            plgpu.SMEM((2, rank, BLOCK), jnp.float32),
        ],
        interpret=interpret,
    )
    da, db = kernel(a, jnp.swapaxes(b, 1, 2), *leaves)
    return jnp.sum(da, axis=1), jnp.swapaxes(db, 1, 2)


def _kernel(structure: Any, a: Any, b: Any, *refs: Any) -> None:
    *fisher, da, db, b_here, db_here, da_slots = refs
    rank, inputs = a.shape[1], a.shape[2]
    layer, part = jax.lax.axis_index("layer"), jax.lax.axis_index("part")
    rows = pl.ds(part * ROWS, ROWS)

    @partial(pl.run_scoped, barrier=plgpu.Barrier())
    def _(barrier: Any) -> None:
        plgpu.copy_gmem_to_smem(b.at[layer, :, rows], b_here, barrier)
        plgpu.barrier_wait(barrier)

    for r in range(rank):
        db_here[r] = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), _ALONG_ROWS)

    def one_tile(index: Any, *tile: Any) -> None:
        *stored, a_here = tile
        da_here = da_slots.at[jax.lax.rem(index[0], 2)]
        a_rows = [_load(a_here.at[r], _ALONG_COLUMNS) for r in range(rank)]
        b_columns = [_load(b_here.at[r], _ALONG_ROWS) for r in range(rank)]
        change = sum(_over(x, 0) * _over(y, 1) for x, y in zip(b_columns, a_rows, strict=True))
        pull = _decoded(structure, stored) * change
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)  # what this slot held has left
        for r in range(rank):
            along = jnp.sum(pull * _over(a_rows[r], 1), axis=1)
            db_here[r] = _load(db_here.at[r], _ALONG_ROWS) + along
            da_here[r] = jnp.sum(pull * _over(b_columns[r], 0), axis=0)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(da_here, da.at[layer, part, :, pl.ds(index[0] * BLOCK, BLOCK)])

    of_tile = plgpu.BlockSpec((ROWS, BLOCK), lambda j: (part, j), transforms=_layout(fisher[0].dtype))
    of_scales = plgpu.BlockSpec((1, ROWS), lambda j: (j, part))
    of_columns = plgpu.BlockSpec((rank, BLOCK), lambda j: (0, j))
    plgpu.emit_pipeline(
        one_tile,
        grid=(inputs // BLOCK,),
        in_specs=[*(of_tile, of_scales)[: len(fisher)], of_columns],
        max_concurrent_steps=STEPS,
    )(*(leaf.at[layer] for leaf in fisher), a.at[layer])
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(db_here, db.at[layer, :, rows])
    plgpu.wait_smem_to_gmem(0)


def _load(ref: Any, layout: Any) -> jax.Array:
    """A part of shared memory into registers; jax 0.10 wants an index besides, which 0.11 warns of."""
    return plgpu.load(ref, *([()] if jax.__version_info__ < (0, 11) else []), layout=layout)


def _over(x: jax.Array, axis: int) -> jax.Array:
    """A vector along rows (axis 0) or columns (axis 1) of a tile, the same along the other."""
    return jax.lax.broadcast_in_dim(x, (ROWS, BLOCK), (axis,))


def _decoded(structure: Any, stored: list[Any]) -> jax.Array:
    values = [_load(stored[0], _TILE)]
    if len(stored) == 1:
        return decode(jax.tree.unflatten(structure, values))
    scale = _load(stored[1].at[0], _ALONG_ROWS)
    return jnp.square(values[0].astype(jnp.float32) * _over(scale, 0))


def _layout(dtype: Any) -> tuple[plgpu.TilingTransform, plgpu.SwizzleTransform]:
    """A tile in shared memory without bank conflicts."""
    size = jnp.dtype(dtype).itemsize
    swizzle = min(128, BLOCK * size)
    return plgpu.TilingTransform((8, swizzle // size)), plgpu.SwizzleTransform(swizzle)
