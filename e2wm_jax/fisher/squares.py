"""Weights whose gradient is the sum of squared gradients of single documents.

Each stands where an array stood (`models.layers.Matrix`, `Table`, `Vector`) and holds, beside the weight, a float32
`total` of its shape, which the forward pass ignores.  The backward pass gives, as the cotangent of `total`,

    total + sum_j (d L_j / d w)^2          j over the documents of the batch, L = sum_j L_j

so one ordinary batched backward pass with respect to the totals is an exact Fisher pass: no gradient of a single
document is kept, none of the batch is formed, and weights that stay plain arrays cost nothing.  The total is a leaf of
its own because a cotangent has its primal's dtype: squares of bfloat16 weights would be rounded to bfloat16.

A weight may be read once per forward pass only, or the square of a sum would become a sum of squares; tests hold the
families to that, and the one exception, a table that is also the output head, has its cross terms (`SquaredTable`).

Letters: B rows, T tokens, J documents, K documents of a row, D inputs, N outputs, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from e2wm_jax.fisher.documents import DocumentBatch
from e2wm_jax.kernels.square_sum import square_sum
from e2wm_jax.models import exchange
from e2wm_jax.models.layers import Matrix, Table, add, lookup, matmul, multiply

_EXACT = jax.lax.Precision.HIGHEST  # sums of float32 numbers stay float32 sums on accelerators too


class Split(NamedTuple):
    """How a weight is split over a mesh axis inside `jax.shard_map`: it is gathered for use, its squares scattered."""

    axis: str
    dimension: int
    by_exchange: bool = False  # `models.exchange`

    def all_gather(self, part: jax.Array) -> jax.Array:
        """A device's part of an array -> the whole."""
        if self.by_exchange:
            return exchange.all_gather(part, self.axis, self.dimension)
        return jax.lax.all_gather(part, self.axis, axis=self.dimension, tiled=True)

    def scattered(self, whole: jax.Array) -> jax.Array:
        """Each device's own array -> this device's part of their sum."""
        if self.by_exchange:
            return exchange.scatter_sum(whole, self.axis, self.dimension)
        return jax.lax.psum_scatter(whole, self.axis, scatter_dimension=self.dimension, tiled=True)


@struct.dataclass
class Documents:
    """Where the documents of a batch lie, and how their products are squared."""

    slots: jax.Array  # [B, T] int32: the document of each token, J for none
    starts: jax.Array  # [J] int32
    lengths: jax.Array  # [J] int32
    window: int = struct.field(pytree_node=False)
    per_row: int = struct.field(pytree_node=False)
    group: int = struct.field(pytree_node=False)
    kernel: str = struct.field(pytree_node=False)


def documents_of(batch: DocumentBatch, group: int, kernel: str) -> Documents:
    """What the squares need of a batch."""
    return Documents(batch.slots, batch.starts, batch.lengths, batch.window, batch.per_row, group, kernel)


def square_matrix(
    total: jax.Array, g: jax.Array, x: jax.Array, documents: Documents, split: Split | None = None
) -> jax.Array:
    """total [N, D] + sum_j (sum_{t in j} g_t x_t^T)^2 of g [B, T, N], x [B, T, D]; the total may be a device's part."""
    flat_g, flat_x = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])

    def squares(total: jax.Array) -> jax.Array:
        return square_sum(
            total,
            flat_g,
            flat_x,
            documents.starts,
            documents.lengths,
            window=documents.window,
            group=documents.group,
            implementation=documents.kernel,
        )

    return _added(total, (flat_g.shape[-1], flat_x.shape[-1]), squares, split)


def square_vector(total: jax.Array, g: jax.Array, documents: Documents) -> jax.Array:
    """total [D] + sum_j (sum_{t in j} g_t)^2 of g [B, T, ..., D]; axes between are summed as tokens are."""
    per_token = jnp.sum(g.astype(jnp.float32), axis=tuple(range(2, g.ndim - 1)))
    # Documents are counted from the first of their row: there are fewer of them in a row than in the batch.
    slots, none = documents.slots, documents.starts.shape[0]
    place = jnp.where(slots < none, slots - jnp.min(slots, axis=1, keepdims=True), -1)
    own = place[:, None] == jnp.arange(documents.per_row)[:, None]
    sums = jnp.einsum("bkt,btd->bkd", own.astype(jnp.float32), per_token, precision=_EXACT)
    return total + jnp.sum(jnp.square(sums), axis=(0, 1))


def same_word(ids: jax.Array, documents: Documents) -> jax.Array:
    """[B, T, T]: whether two tokens are of one document and the same word."""
    slots = documents.slots
    real = slots < documents.starts.shape[0]
    equal = (ids[:, :, None] == ids[:, None, :]) & (slots[:, :, None] == slots[:, None, :])
    return equal & real[:, :, None]


def square_table(
    total: jax.Array,
    g: jax.Array,
    ids: jax.Array,
    head_rows: jax.Array | None,
    documents: Documents,
    split: Split | None = None,
) -> jax.Array:
    """total [V, D] + the squares of a lookup's gradient g [B, T, D].

    The gradient S_j of document j is the sum of g over the places of each word: one product with the matrix of equal
    words gives it at every place, and the first place of a word in its document counts.  With ``head_rows`` [B, T, D],
    the rows L_j[ids] of the output head's gradient, and L_j^2 in the total, the table gets (L_j + S_j)^2.
    """
    same = same_word(ids, documents)
    sums = jnp.einsum("bts,bsd->btd", same.astype(jnp.float32), g.astype(jnp.float32), precision=_EXACT)
    found = jnp.square(sums) if head_rows is None else jnp.square(sums) + 2 * head_rows * sums
    # A share at each place would do too, but adding a hundred parts to a total rounds a hundred times.
    found = jnp.where(jnp.any(jnp.tril(same, -1), axis=-1, keepdims=True), 0, found)
    return _added(total, (total.shape[0], g.shape[-1]), lambda total: total.at[ids].add(found), split)


def _added(
    total: jax.Array, shape: tuple[int, int], squares: Callable[[jax.Array], jax.Array], split: Split | None
) -> jax.Array:
    if split is None:
        return squares(total)
    whole = squares(jnp.zeros(shape, jnp.float32))
    return total + split.scattered(whole)


@struct.dataclass
class SquaredMatrix:
    """A matrix [N, D], of any kind, and its total; without a total, a matrix whose product is known.

    ``product`` [B, T, N] is what x W^T was in an earlier pass over the same x: it is not computed again.
    """

    weight: jax.Array | Matrix
    total: jax.Array | None
    documents: Documents
    product: jax.Array | None = None
    split: Split | None = struct.field(pytree_node=False, default=None)

    def matmul(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] -> x W^T [B, T, N]."""
        return _matmul(x, self)


@dataclass(frozen=True)
class RecordedMatrix:
    """A matrix that writes its product down: products[name] = x W^T."""

    weight: jax.Array | Matrix
    name: str
    products: dict[str, jax.Array]  # of the trace that it is used in

    def matmul(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] -> x W^T [B, T, N]."""
        product = matmul(x, self.weight)
        self.products[self.name] = product
        return product


@struct.dataclass
class SquaredTable:
    """A table [V, D], of any kind, and its total; ``head_rows`` if it is the output head too (`square_table`)."""

    weight: jax.Array | Table
    total: jax.Array
    documents: Documents
    head_rows: jax.Array | None = None
    split: Split | None = struct.field(pytree_node=False, default=None)

    def lookup(self, ids: jax.Array) -> jax.Array:
        """ids [B, T] -> rows [B, T, D]."""
        return _lookup(ids, self)


@struct.dataclass
class SquaredVector:
    """A norm's scale or a bias [D], and its total."""

    weight: jax.Array
    total: jax.Array
    documents: Documents

    def multiply(self, x: jax.Array) -> jax.Array:
        """x [B, T, ..., D] * w."""
        return _multiply(x, self)

    def add(self, x: jax.Array) -> jax.Array:
        """x [B, T, ..., D] + w."""
        return _add(x, self)


def _with_total(leaf: Any, total: jax.Array | None) -> Any:
    """The cotangent of a leaf: of its total only."""
    return jax.tree.map(lambda _: None, leaf).replace(total=total)


def _pull(function: Callable[..., jax.Array], x: jax.Array, g: jax.Array) -> jax.Array:
    return jax.vjp(function, x)[1](g)[0]


@jax.custom_vjp
def _matmul(x: jax.Array, leaf: SquaredMatrix) -> jax.Array:
    if leaf.product is not None:
        return leaf.product
    return jax.vjp(lambda x: matmul(x, leaf.weight), x)[0]  # not `matmul` itself: see `fused`, on rounded products


def _matmul_backward(saved: tuple[jax.Array, SquaredMatrix], g: jax.Array) -> tuple[jax.Array, SquaredMatrix]:
    x, leaf = saved
    total = None if leaf.total is None else square_matrix(leaf.total, g, x, leaf.documents, leaf.split)
    return _pull(lambda x: matmul(x, leaf.weight), x, g), _with_total(leaf, total)


_matmul.defvjp(lambda x, leaf: (_matmul(x, leaf), (x, leaf)), _matmul_backward)


@jax.custom_vjp
def _lookup(ids: jax.Array, leaf: SquaredTable) -> jax.Array:
    return lookup(ids, leaf.weight)


def _lookup_backward(saved: tuple[jax.Array, SquaredTable], g: jax.Array) -> tuple[None, SquaredTable]:
    ids, leaf = saved
    return None, _with_total(leaf, square_table(leaf.total, g, ids, leaf.head_rows, leaf.documents, leaf.split))


_lookup.defvjp(lambda ids, leaf: (_lookup(ids, leaf), (ids, leaf)), _lookup_backward)


@jax.custom_vjp
def _multiply(x: jax.Array, leaf: SquaredVector) -> jax.Array:
    return multiply(x, leaf.weight)


def _multiply_backward(saved: tuple[jax.Array, SquaredVector], g: jax.Array) -> tuple[jax.Array, SquaredVector]:
    x, leaf = saved
    total = square_vector(leaf.total, g.astype(jnp.float32) * x.astype(jnp.float32), leaf.documents)
    return multiply(g, leaf.weight), _with_total(leaf, total)


_multiply.defvjp(lambda x, leaf: (_multiply(x, leaf), (x, leaf)), _multiply_backward)


@jax.custom_vjp
def _add(x: jax.Array, leaf: SquaredVector) -> jax.Array:
    return add(x, leaf.weight)


def _add_backward(leaf: SquaredVector, g: jax.Array) -> tuple[jax.Array, SquaredVector]:
    return g, _with_total(leaf, square_vector(leaf.total, g, leaf.documents))


_add.defvjp(lambda x, leaf: (_add(x, leaf), leaf), _add_backward)
