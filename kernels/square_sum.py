"""Sum of squared per-document weight gradients: the reduction inside the Fisher pass.

Letters: M tokens of the batch in one flat stream, J documents, N outputs and D inputs of a linear layer W [N, D].
With x [M, D] the layer's inputs and g [M, N] the cotangents of its outputs, document j's gradient of W is
sum_t g_t x_t^T over the document's own tokens; the diagonal Fisher needs the sum over documents of its square.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

RUNGS = 4  # window sizes per weight, in equal steps: a short document is not multiplied as a long one
_UNROLLED = 2  # documents: each holds a product [N, D]


def square_sum(
    total: jax.Array,
    g: jax.Array,
    x: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    *,
    window: int,
    group: int = 1,
    implementation: str = "xla",
) -> jax.Array:
    """`total + sum_j (sum_{t in document j} g_t x_t^T)^2`, with no more than `group` products [N, D] alive at a time.

    Of two documents, both products may be alive.

    Sums are float32: products of bfloat16 are exact in it, float32 inputs are multiplied at full precision.

    Args:
        total: The sum so far, float32 [N, D]; updated in place where the caller donates or carries it.
        g: Cotangents of the layer's outputs [M, N], float32 or bfloat16.
        x: The layer's inputs [M, D], float32 or bfloat16.
        starts: First token of each document, int32 [J].
        lengths: Its number of tokens, int32 [J]; 0 is no document. Documents are in any order and do not overlap.
            Tokens outside all of them belong to none: g and x may hold any finite numbers there.
        window: At least the longest length and at most M, known when compiling.
        group: Documents multiplied at once by "xla", all as long as the window; with 1, which suits a CPU, each is
            multiplied at about its own length. The others ignore it.
        implementation: A name of IMPLEMENTATIONS. "xla" runs everywhere and is what the others are tested against.

    Raises:
        ValueError: for shapes that do not fit together, a window outside 1..M, a group below 1, or an unknown name.
    """
    (tokens, outputs), inputs = g.shape, x.shape[1]
    if x.shape[0] != tokens or total.shape != (outputs, inputs) or starts.shape != lengths.shape or starts.ndim != 1:
        raise ValueError(
            f"{total.shape=}, {g.shape=}, {x.shape=}, {starts.shape=}, {lengths.shape=}: "
            "must be [N, D], [M, N], [M, D], [J], [J]"
        )
    if total.dtype != jnp.float32:
        raise ValueError(f"{total.dtype=}: squares of gradients are summed in float32")
    if not 1 <= window <= tokens:
        raise ValueError(f"{window=}: must be from 1 to the {tokens} tokens of the stream")
    if group < 1:
        raise ValueError(f"{group=}: must be at least 1")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"{implementation=}: must be one of {', '.join(IMPLEMENTATIONS)}")
    with jax.named_scope("square_sum"):
        return IMPLEMENTATIONS[implementation](total, g, x, starts, lengths, window, group)


def _xla(
    total: jax.Array, g: jax.Array, x: jax.Array, starts: jax.Array, lengths: jax.Array, window: int, group: int
) -> jax.Array:
    # Documents first, empty slots last: the loop ends with the last document, so empty slots cost nothing.
    order = jnp.argsort(lengths <= 0, stable=True)
    starts, lengths, count = starts[order], lengths[order], jnp.sum(lengths > 0)
    if group == 1:
        sizes = sorted({-(-window * k // RUNGS) for k in range(1, RUNGS + 1)})
        products = [functools.partial(_product_of_one, g, x, size=size) for size in sizes]

        def add_one(j: int | jax.Array, total: jax.Array) -> jax.Array:
            smallest = jnp.sum(lengths[j] > jnp.array(sizes[:-1]))
            return total + jnp.square(jax.lax.switch(smallest, products, starts[j], lengths[j]))

        if starts.size > _UNROLLED:
            return jax.lax.fori_loop(0, count, add_one, total)
        for j in range(starts.size):  # a loop would copy the total before and after: an eighth of one document's time
            total = add_one(j, total)
        return total

    starts, lengths = (jnp.pad(a, (0, -a.size % group)) for a in (starts, lengths))

    def add_group(step: jax.Array, total: jax.Array) -> jax.Array:
        slots = [step * group + k for k in range(group)]
        # Stacked slices, not a vmap of them, which would be a gather.
        windows = [_window(g, x, starts[slot], lengths[slot], window) for slot in slots]
        products = _product("ktn,ktd->knd", *(jnp.stack(part) for part in zip(*windows, strict=True)))
        return total + jnp.sum(jnp.square(products), 0)

    return jax.lax.fori_loop(0, (count + group - 1) // group, add_group, total)


def _window(g: jax.Array, x: jax.Array, start: jax.Array, length: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """`size` tokens of g and x with the document among them, g zero outside it."""
    # A slice that would end after the stream is moved to its end, so the document begins later within it.
    begin = jnp.minimum(start, g.shape[0] - size)
    place = jnp.arange(size) + begin - start
    g, x = (jax.lax.dynamic_slice_in_dim(a, begin, size) for a in (g, x))
    return jnp.where(((place >= 0) & (place < length))[:, None], g, 0), x


def _product_of_one(g: jax.Array, x: jax.Array, start: jax.Array, length: jax.Array, *, size: int) -> jax.Array:
    return _product("tn,td->nd", *_window(g, x, start, length, size))


def _product(letters: str, g: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.einsum(letters, g, x, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _pallas_tpu(
    total: jax.Array, g: jax.Array, x: jax.Array, starts: jax.Array, lengths: jax.Array, window: int, group: int
) -> jax.Array:
    from e2wm_jax.kernels.square_sum_tpu import square_sum_tpu

    del window, group
    return square_sum_tpu(total, g, x, starts, lengths)


def _mosaic_gpu(
    total: jax.Array, g: jax.Array, x: jax.Array, starts: jax.Array, lengths: jax.Array, window: int, group: int
) -> jax.Array:
    from e2wm_jax.kernels.square_sum_hopper import square_sum_hopper

    del window, group
    return square_sum_hopper(total, g, x, starts, lengths)


Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, int, int], jax.Array]
IMPLEMENTATIONS: dict[str, Kernel] = {"xla": _xla, "pallas_tpu": _pallas_tpu, "mosaic_gpu": _mosaic_gpu}
