"""square_sum on a Hopper GPU (Pallas Mosaic GPU). Not measured on a GPU: selectable, never chosen by default.

Letters as in square_sum.py. A thread block owns one output tile at a time, 128 rows by `columns`, and walks through
all documents. Three warpgroups share the work: the third copies token blocks of g and x into a ring of `steps` slots
of shared memory and runs ahead across documents and tiles; the first two each multiply 64 rows of their own from g
with the common block of x on the tensor cores. A document's product and the sum of squares both stay in registers (64
and 64 of a thread's at 128 columns), so its end costs a few hundred cycles and no memory traffic. Where a document
fills only part of a token block, each warpgroup first zeroes the other tokens in its part of g.

With `cluster` 2, two thread blocks on neighbouring multiprocessors stack their tiles and share each copy of x.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

TOKENS = 64  # tokens of a block: transposed operands of the tensor cores come in tiles of 64
ROWS = 64  # rows of one multiplying warpgroup: those of one wgmma
MULTIPLIERS = 2  # warpgroups that multiply; one more copies
REGISTERS = 232, 40  # per thread of a multiplying and of the copying warpgroup: 2 x 232 + 40 of the 512 there are
PIECE = 64  # what N, D and the columns of a tile are multiples of: SWIZZLE bytes of bfloat16
SWIZZLE = 128  # bytes of a shared-memory row, whose pieces TMA permutes against bank conflicts


class Documents(NamedTuple):
    """Where documents lie in the stream cut into blocks of TOKENS: int32 [J], empty slots last."""

    first: Any  # first token block
    blocks: Any  # token blocks touched
    low: Any  # first token within the first block
    high: Any  # one past the last token, within the last block
    count: Any  # [1]: the first so many slots are documents


class Scratch(NamedTuple):
    """Shared memory of a thread block. `filled` and `free` hand a slot over and back."""

    g: Any  # [steps, MULTIPLIERS, TOKENS, ROWS]
    x: Any  # [steps, TOKENS, columns]
    sums: Any  # [MULTIPLIERS, ROWS, columns] float32: the tile of total
    filled: Any  # barriers [steps]
    free: Any  # barriers [steps]
    loaded: Any  # barriers [MULTIPLIERS]: a warpgroup's part of total is in `sums`


class Tiling(NamedTuple):
    """How the result is cut and walked. A tile is that of a whole cluster."""

    rows: int  # tiles along N
    columns: int  # tiles along D
    width: int  # columns of a tile
    cluster: int  # thread blocks stacked in a tile
    steps: int  # slots of the ring
    snake: int  # tiles of a row walked before the next row, so that tiles at work together share g and x in the L2

    def walk(self, body: Any) -> jax.Array:
        """Run body(first row, columns, steps so far) -> steps on each tile of this thread block; all steps in the end.

        A step is one token block of one document of one tile. Every warpgroup counts them alike.
        """

        def tile(info: plgpu.NDLoopInfo, carry: jax.Array) -> jax.Array:
            row, column = plgpu.planar_snake(info.index[0], (self.rows, self.columns), 1, self.snake)
            block = row * self.cluster + jax.lax.axis_index("cluster")
            return body(block * (MULTIPLIERS * ROWS), pl.ds(column * self.width, self.width), carry)

        size = self.rows * self.columns
        return plgpu.nd_loop((size,), collective_axes="block", init_carry=jnp.int32(0))(tile)


def documents(starts: jax.Array, lengths: jax.Array) -> Documents:
    """The documents' places, from the arguments of square_sum."""
    order = jnp.argsort(lengths <= 0, stable=True)
    starts, ends = starts[order], (starts + lengths)[order]
    first = starts // TOKENS
    columns = (first, (ends - 1) // TOKENS - first + 1, starts % TOKENS, (ends - 1) % TOKENS + 1)
    return Documents(*(column.astype(jnp.int32) for column in (*columns, jnp.sum(lengths > 0)[None])))


def square_sum_hopper(
    total: jax.Array,
    g: jax.Array,
    x: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    *,
    columns: int | None = None,
    cluster: int = 1,
    steps: int = 4,
    snake: int = 8,
    multiprocessors: int | None = None,
    interpret: Any = None,
) -> jax.Array:
    """square_sum in one pass over the tokens per output tile; `total` [N, D] is updated in place.

    Any M, and N and D that are multiples of 64: a tile that reaches beyond the weight is read as zeros there and
    written up to the edge; a stream whose length is no multiple of 64 is copied once to be padded.

    Args:
        total, g, x, starts, lengths: As of square_sum; g and x bfloat16.
        columns: Columns of a tile, a multiple of 64; None is 128, or D where that is 64.
        cluster: Thread blocks that share each copy of x: 1 or 2.
        steps: Token blocks in flight.
        snake: Tiles of a row walked before the next row.
        multiprocessors: How many to use; None is all of the first device, or 132 where it is no GPU.
        interpret: `plgpu.InterpretGPUParams()` emulates the kernel on any machine; from jax 0.11 on.

    Raises:
        ValueError: for other dtypes or sizes.
    """
    (length, outputs), inputs = g.shape, x.shape[1]
    columns = columns or min(inputs, 2 * PIECE)
    rows = cluster * MULTIPLIERS * ROWS
    if not g.dtype == x.dtype == jnp.bfloat16:
        raise ValueError(f"{g.dtype=}, {x.dtype=}: the Hopper kernel multiplies bfloat16; use implementation='xla'")
    if outputs % PIECE or inputs % PIECE or columns % PIECE or columns > inputs:
        raise ValueError(
            f"a weight of {outputs} x {inputs} in tiles of {columns} columns: the Hopper kernel takes multiples of "
            f"{PIECE}; use implementation='xla'"
        )
    if length % TOKENS:
        g, x = (jnp.pad(a, ((0, -length % TOKENS), (0, 0))) for a in (g, x))
    count: int = getattr(jax.devices()[0], "core_count", 132) if multiprocessors is None else multiprocessors
    tiles = pl.cdiv(outputs, rows), pl.cdiv(inputs, columns)
    tiling = Tiling(*tiles, columns, cluster, steps, min(snake, tiles[1]))
    sums = jax.new_ref(total)
    kernel = pl.kernel(
        functools.partial(_kernel, tiling),
        mesh=plgpu.Mesh(
            grid=(count // cluster,),
            grid_names=("block",),
            cluster=(cluster,),
            cluster_names=("cluster",),
            num_threads=MULTIPLIERS + 1,
            thread_name="warpgroup",
        ),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpret,
        name="square_sum",
    )
    kernel(documents(starts, lengths), g, x, sums)
    return jax.freeze(sums)


def _kernel(tiling: Tiling, places: Documents, g: jax.Ref, x: jax.Ref, total: jax.Ref) -> None:
    steps, width = tiling.steps, tiling.width
    free: Any = plgpu.Barrier(num_arrivals=MULTIPLIERS, num_barriers=steps)
    if tiling.cluster > 1:  # a slot is free when it is in all thread blocks that get the next copy of x
        free = plgpu.ClusterBarrier(collective_axes=("cluster",), num_arrivals=MULTIPLIERS, num_barriers=steps)
    scratch = Scratch(
        g=plgpu.SMEM((steps, MULTIPLIERS, TOKENS, ROWS), g.dtype, transforms=_layout(g.dtype)),
        x=plgpu.SMEM((steps, TOKENS, width), x.dtype, transforms=_layout(x.dtype)),
        sums=plgpu.SMEM((MULTIPLIERS, ROWS, width), total.dtype, transforms=_layout(total.dtype)),
        filled=plgpu.Barrier(num_arrivals=MULTIPLIERS + 1, num_barriers=steps),
        free=free,
        loaded=plgpu.Barrier(num_barriers=MULTIPLIERS),
    )

    def work(*scratch: jax.Ref) -> None:
        group = jax.lax.axis_index("warpgroup")
        pl.when(group == MULTIPLIERS)(lambda: _copy(tiling, places, g, x, Scratch(*scratch)))
        pl.when(group < MULTIPLIERS)(lambda: _multiply(tiling, places, total, Scratch(*scratch), group))

    pl.run_scoped(work, *scratch, collective_axes="warpgroup")


def _copy(tiling: Tiling, places: Documents, g: jax.Ref, x: jax.Ref, scratch: Scratch) -> None:
    """The copying warpgroup: fill slot after slot, `steps` ahead of the multiplying ones."""
    plgpu.set_max_registers(REGISTERS[1], action="decrease")

    def tile(row: jax.Array, columns: pl.Slice, step: jax.Array) -> jax.Array:
        def block(first: jax.Array, k: jax.Array, step: jax.Array) -> jax.Array:
            slot = jax.lax.rem(step, tiling.steps)
            filled = scratch.filled.at[slot]
            pl.when(step >= tiling.steps)(lambda: plgpu.barrier_wait(scratch.free.at[slot]))
            tokens = pl.ds((first + k) * TOKENS, TOKENS)
            for part in range(MULTIPLIERS):
                rows = pl.ds(row + part * ROWS, ROWS)
                plgpu.copy_gmem_to_smem(g.at[tokens, rows], scratch.g.at[slot, part], filled)
            shared = "cluster" if tiling.cluster > 1 else None
            plgpu.copy_gmem_to_smem(x.at[tokens, columns], scratch.x.at[slot], filled, collective_axes=shared)
            return step + 1

        def document(j: jax.Array, step: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, places.blocks[j], functools.partial(block, places.first[j]), step)

        return jax.lax.fori_loop(0, places.count[0], document, step)

    end = tiling.walk(tile)

    @pl.loop(jax.lax.max(end - tiling.steps, 0), end)
    def _(step: jax.Array) -> None:  # the last slots come back too: no barrier is left half way
        plgpu.barrier_wait(scratch.free.at[jax.lax.rem(step, tiling.steps)])


def _multiply(tiling: Tiling, places: Documents, total: jax.Ref, scratch: Scratch, group: jax.Array) -> None:
    """A multiplying warpgroup: its rows of every tile's documents."""
    plgpu.set_max_registers(REGISTERS[0], action="increase")
    sums, loaded = scratch.sums.at[group], scratch.loaded.at[group]

    def slot(step: jax.Array) -> jax.Array:
        return jax.lax.rem(step, tiling.steps)

    def document(j: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        begin, squares = carry
        blocks, low, high = places.blocks[j], places.low[j], places.high[j]  # read once, not in the loop over blocks

        def block(product: Any, k: jax.Array) -> None:
            step = begin + k
            plgpu.barrier_wait(scratch.filled.at[slot(step)])
            g = scratch.g.at[slot(step), group]
            own = jnp.where(k == 0, low, 0), jnp.where(k == blocks - 1, high, TOKENS)
            pl.when((own[0] > 0) | (own[1] < TOKENS))(lambda: _mask(g, *own))
            plgpu.wgmma(product, g.transpose((1, 0)), scratch.x.at[slot(step)])
            plgpu.wgmma_wait(1)  # the product before this one is done, and with it that slot
            pl.when(k > 0)(lambda: plgpu.barrier_arrive(scratch.free.at[slot(step - 1)]))

        def multiply(product: jax.Ref) -> jax.Array:
            pl.loop(0, blocks)(functools.partial(block, product))
            return product[...]  # waits for the last product

        product = pl.run_scoped(multiply, plgpu.ACC((ROWS, tiling.width), jnp.float32))
        end = begin + blocks
        plgpu.barrier_arrive(scratch.free.at[slot(end - 1)])
        return end, squares + product * product

    def tile(row: jax.Array, columns: pl.Slice, step: jax.Array) -> jax.Array:
        own = total.at[pl.ds(row + group * ROWS, ROWS), columns]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the tile before has left shared memory
        plgpu.copy_gmem_to_smem(own, sums, loaded)
        zero = plgpu.layout_cast(jnp.zeros((ROWS, tiling.width), jnp.float32), plgpu.Layout.WGMMA)
        step, squares = jax.lax.fori_loop(0, places.count[0], document, (step, zero))
        plgpu.barrier_wait(loaded)
        sums[...] = sums[...] + squares
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(sums, own)
        return step

    tiling.walk(tile)
    plgpu.wait_smem_to_gmem(0)


def _mask(g: jax.Ref, low: jax.Array, high: jax.Array) -> None:
    """Zero a block's tokens outside low .. high - 1."""
    token = plgpu.layout_cast(jax.lax.broadcasted_iota(jnp.int32, g.shape, 0), plgpu.Layout.WGMMA)
    g[...] = g[...] * ((token >= low) & (token < high)).astype(g.dtype)
    plgpu.commit_smem()


def _layout(dtype: Any) -> tuple[plgpu.TilingTransform, plgpu.SwizzleTransform]:
    """A layout of blocks in shared memory that TMA writes and the tensor cores read."""
    return plgpu.TilingTransform((8, SWIZZLE // jnp.dtype(dtype).itemsize)), plgpu.SwizzleTransform(SWIZZLE)
