"""square_sum on a TPU (Pallas). Not measured: lowered offline and run in interpret mode, on no TPU yet.

Letters as in square_sum.py; V visits. The grid is (tiles of N, tiles of D, V): one output tile stays in fast memory
while all documents go by, token block by token block, and is written once. A visit is one document's share of one
token block; a block that holds the end of one document and the start of the next is visited twice, so documents may
lie anywhere. The list of visits is computed on the device, its length is known when compiling.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

TOKENS = 512  # tokens of a block: what one copy from slow memory brings
CHUNK = 128  # tokens of a chunk: where a document fills only part of a block, only the chunks it touches are multiplied
TILE = 512  # largest side of an output tile: total, product and result are 1 MiB each


class Visits(NamedTuple):
    """One entry per visit, int32 [V]; visits past the last document repeat its block and do nothing."""

    block: jax.Array  # token block
    low: jax.Array  # the document's tokens within the block: low <= token < high
    high: jax.Array
    first: jax.Array  # 1 at the first visit of a document
    last: jax.Array  # 1 at the last


def visits(starts: jax.Array, lengths: jax.Array, *, blocks: int, size: int) -> Visits:
    """The document and token block of every visit, document by document.

    Documents do not overlap, so each adds at most one visit to the number of blocks: V = blocks + J.

    Args:
        starts: First token of each document, int32 [J].
        lengths: Its tokens, int32 [J]; 0 is no document.
        blocks: Token blocks of the stream.
        size: Tokens of a block.
    """
    first_block = starts // size
    spans = jnp.where(lengths > 0, (starts + lengths - 1) // size - first_block + 1, 0)
    ends = jnp.cumsum(spans)
    visit = jnp.arange(blocks + starts.size, dtype=jnp.int32)
    real = visit < ends[-1]
    visit = jnp.minimum(visit, jnp.maximum(ends[-1] - 1, 0))
    document = jnp.minimum(jnp.searchsorted(ends, visit, side="right"), starts.size - 1)
    place = visit - (ends - spans)[document]
    block = jnp.clip(first_block[document] + place, 0, blocks - 1)
    low = jnp.maximum(starts[document] - block * size, 0)
    high = jnp.minimum(starts[document] + lengths[document] - block * size, size)
    columns = (block, low, jnp.where(real, high, low), real & (place == 0), real & (place == spans[document] - 1))
    return Visits(*(column.astype(jnp.int32) for column in columns))


def square_sum_tpu(
    total: jax.Array,
    g: jax.Array,
    x: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    *,
    tokens: int = TOKENS,
    tile: int = TILE,
    interpret: bool = False,
) -> jax.Array:
    """square_sum in one pass over the tokens per output tile; `total` [N, D] is updated in place.

    Any N, D and M: the last tile of a side and the last token block may be cut short.

    Args:
        total, g, x, starts, lengths: As of square_sum.
        tokens: Tokens of a block, a multiple of CHUNK.
        tile: Largest side of an output tile, a multiple of 128.
        interpret: Emulate the kernel on any machine.

    Raises:
        ValueError: for sizes that are no such multiples.
    """
    if tokens % CHUNK or tile % 128:
        raise ValueError(f"{tokens=} must be a multiple of {CHUNK} and {tile=} of 128")
    length, (outputs, inputs) = g.shape[0], total.shape
    tokens = min(tokens, -(-length // CHUNK) * CHUNK)
    if length < tokens:  # a stream shorter than one block
        g, x = (jnp.pad(a, ((0, tokens - length), (0, 0))) for a in (g, x))
    blocks = pl.cdiv(length, tokens)
    plan = visits(starts, lengths, blocks=blocks, size=tokens)
    rows, columns = side(outputs, tile), side(inputs, tile)
    tile_of = pl.BlockSpec((rows, columns), lambda i, j, visit, *_: (i, j))
    kernel = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(plan),
            grid=(pl.cdiv(outputs, rows), pl.cdiv(inputs, columns), plan.block.size),
            in_specs=[
                tile_of,
                pl.BlockSpec((tokens, rows), lambda i, j, visit, block, *_: (block[visit], i)),
                pl.BlockSpec((tokens, columns), lambda i, j, visit, block, *_: (block[visit], j)),
            ],
            out_specs=tile_of,
            scratch_shapes=[pltpu.VMEM((rows, columns), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(total.shape, total.dtype),
        input_output_aliases={len(plan): 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="square_sum",
    )
    return kernel(*plan, total, g, x)


def side(size: int, most: int) -> int:
    """Side of a tile: all of `size` where it fits, else an even share of it in whole vectors of 128."""
    if size <= most:
        return size
    share = pl.cdiv(size, pl.cdiv(size, most))
    return -(-share // 128) * 128


def _kernel(
    block: jax.Ref,
    low: jax.Ref,
    high: jax.Ref,
    first: jax.Ref,
    last: jax.Ref,
    total: jax.Ref,
    g: jax.Ref,
    x: jax.Ref,
    result: jax.Ref,
    product: jax.Ref,
) -> None:
    """One visit. Tiles: total, result and product [rows, columns], g [tokens, rows], x [tokens, columns]."""
    del block
    visit, tokens = pl.program_id(2), g.shape[0]
    begin, end = low[visit], high[visit]

    @pl.when(visit == 0)
    def _() -> None:
        result[...] = total[...]

    @pl.when(first[visit] == 1)
    def _() -> None:
        product[...] = jnp.zeros_like(product)

    whole = (begin == 0) & (end == tokens)

    @pl.when(whole)
    def _() -> None:
        product[...] += _multiply(g[...], x[...])

    for place in range(0, tokens, CHUNK):
        chunk = pl.ds(place, CHUNK)

        @pl.when(~whole & (begin < place + CHUNK) & (end > place))
        def _(place: int = place, chunk: Any = chunk) -> None:
            def own(ref: jax.Ref) -> jax.Array:
                # Both factors: beyond the end of the stream a block holds anything, and 0 times NaN is NaN.
                token = jax.lax.broadcasted_iota(jnp.int32, (CHUNK, ref.shape[1]), 0) + place
                return jnp.where((token >= begin) & (token < end), ref[chunk, :], 0)

            product[...] += _multiply(own(g), own(x))

    @pl.when(last[visit] == 1)
    def _() -> None:
        result[...] += jnp.square(product[...])


def _multiply(g: jax.Array, x: jax.Array) -> jax.Array:
    """g^T x over a block's or chunk's tokens, in float32."""
    exact = g.dtype == x.dtype == jnp.bfloat16  # one pass of the matrix unit; float32 needs several
    if not exact:
        g, x = g.astype(jnp.float32), x.astype(jnp.float32)
    return jax.lax.dot_general(
        g,
        x,
        (((0,), (0,)), ((), ())),
        precision=None if exact else jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
