"""The products behind `weighted_square` on a TPU: one pass over F, tile by tile.

The grid is (layers, row blocks, column blocks), the last fastest.  A tile of F comes in once, in the type in which it
is stored.  dB of a row block stays on the chip while its column blocks pass, dA of a layer while all of its tiles do.
B and dB are held as [R, N]: a last dimension of 8 would fill a sixteenth of every vector register.

Lowered for TPU and checked in interpret mode; not yet measured on one.

Letters: L layers, N outputs, D inputs, R rank, E blocks of codes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from e2wm_jax.fisher.storage import BLOCK, SquareRootCodes, StoredFisher, decode

ROWS, COLUMNS = 256, 512  # of a tile: 512 KiB in float32, twice for the pipeline


def products(
    a: jax.Array, b: jax.Array, fisher: StoredFisher, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """B^T (F * B A) [L, R, D] and (F * B A) A^T [L, N, R].

    Args:
        a: [L, R, D] float32.
        b: [L, N, R] float32.
        fisher: [L, N, D] in any storage type.
        interpret: run on any device, slowly, for tests.
    """
    layers, outputs, rank = b.shape
    inputs = a.shape[2]
    rows, columns = min(ROWS, outputs), min(COLUMNS, inputs)
    grid = (layers, pl.cdiv(outputs, rows), pl.cdiv(inputs, columns))
    padded = grid[2] * columns  # dA is cut to D afterwards: a tile may reach beyond it

    def of_tile(leaf: jax.Array) -> pl.BlockSpec:
        if leaf.shape[2] == inputs:
            return pl.BlockSpec((1, rows, columns), lambda layer, i, j: (layer, i, j))
        return pl.BlockSpec((1, rows, leaf.shape[2]), lambda layer, i, j: (layer, i, 0))  # scales, of whole rows

    of_columns = pl.BlockSpec((1, rank, columns), lambda layer, i, j: (layer, 0, j))
    of_rows = pl.BlockSpec((1, rank, rows), lambda layer, i, j: (layer, 0, i))
    leaves, structure = jax.tree.flatten(fisher)
    da, db = pl.pallas_call(
        partial(_kernel, structure, outputs, inputs),
        grid=grid,
        in_specs=[of_columns, of_rows, *map(of_tile, leaves)],
        out_specs=[pl.BlockSpec((1, rank, padded), lambda layer, i, j: (layer, 0, 0)), of_rows],
        out_shape=[
            jax.ShapeDtypeStruct((layers, rank, padded), jnp.float32),
            jax.ShapeDtypeStruct((layers, rank, outputs), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
        interpret=interpret,
    )(a, jnp.swapaxes(b, 1, 2), *leaves)
    return da[..., :inputs], jnp.swapaxes(db, 1, 2)


def _kernel(structure: Any, outputs: int, inputs: int, a_ref: Any, b_ref: Any, *refs: Any) -> None:
    *fisher_refs, da_ref, db_ref = refs
    row_block, column_block = pl.program_id(1), pl.program_id(2)
    rows, columns = b_ref.shape[2], a_ref.shape[2]

    @pl.when(column_block == 0)
    def _() -> None:
        db_ref[...] = jnp.zeros_like(db_ref)

    @pl.when((row_block == 0) & (column_block == 0))
    def _() -> None:
        da_ref[...] = jnp.zeros_like(da_ref)

    a = _inside(a_ref[0], 1, column_block * columns, inputs)
    b = _inside(b_ref[0], 1, row_block * rows, outputs)
    tile = _decoded(jax.tree.unflatten(structure, [ref[0] for ref in fisher_refs]), column_block * columns, columns)
    tile = _inside(_inside(tile, 0, row_block * rows, outputs), 1, column_block * columns, inputs)
    pull = tile * _dot(b, a, 0, 0)  # [rows, columns]
    db_ref[0] += _dot(a, pull, 1, 1)
    da_ref[0, :, pl.ds(column_block * columns, columns)] += _dot(b, pull, 1, 0)


def _decoded(tile: StoredFisher, start: jax.Array, columns: int) -> jax.Array:
    """F of a tile in float32; its first column is column ``start`` of the matrix."""
    if not isinstance(tile, SquareRootCodes):
        return decode(tile)
    # Spreading a scale over the 64 lanes of its block is a product with zeros and ones, which is exact.
    shape = (tile.scales.shape[1], columns)
    block_of_column = jax.lax.div(start + jax.lax.broadcasted_iota(jnp.int32, shape, 1), jnp.int32(BLOCK))
    spread = (jax.lax.broadcasted_iota(jnp.int32, shape, 0) == block_of_column).astype(jnp.float32)
    return jnp.square(tile.codes.astype(jnp.int32).astype(jnp.float32) * _dot(tile.scales, spread, 1, 0))


def _inside(x: jax.Array, axis: int, start: jax.Array, end: int) -> jax.Array:
    """x with zeros where it reaches beyond the array along ``axis``; what a block holds there is undefined."""
    if end % x.shape[axis] == 0:
        return x
    return jnp.where(start + jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) < end, x, 0)


def _dot(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """Product over one axis of each, in full float32."""
    return jax.lax.dot_general(
        x,
        y,
        (((x_axis,), (y_axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
