"""Leaves whose cotangent is a sum of squared gradients, and the output head in chunks, by document."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2wm_jax.fisher import head as heads
from e2wm_jax.fisher import squares
from e2wm_jax.fisher.squares import Documents, SquaredMatrix, SquaredTable, SquaredVector
from e2wm_jax.models.layers import add, layer_norm, linear, lookup, matmul, multiply, negative_log_likelihood, rms_norm

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Two rows of 9 tokens; documents of 4, 3 and 7 tokens, an empty place, and tokens that belong to none.
SLOTS = np.array([[0, 0, 0, 0, 4, 1, 1, 1, 4], [4, 2, 2, 2, 2, 2, 2, 2, 4]], np.int32)
DOCUMENTS = Documents(jnp.asarray(SLOTS), jnp.array([0, 5, 10, 0]), jnp.array([4, 3, 7, 0]), 8, 3, 1, "xla")
VOCAB, WIDTH = 11, 6
IDS = np.array([[3, 5, 3, 3, 3, 5, 3, 7, 7], [1, 10, 3, 0, 10, 10, 0, 2, 5]], np.int32)  # repeated within and across


def normal(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def one_by_one(loss: Callable[[jax.Array, jax.Array], jax.Array], w: jax.Array) -> np.ndarray:
    """Squared gradients of loss(w, mask [B, T] of a document), summed over documents in float64."""
    gradient = jax.jit(jax.grad(loss))
    gradients = [gradient(w, jnp.float32(np.equal(SLOTS, j))) for j in range(3)]
    return np.sum([np.asarray(g, np.float64) ** 2 for g in gradients], axis=0)


def summed(use: Callable[[Any], jax.Array], leaf: Any) -> jax.Array:
    """The cotangent of the leaf's total, of a loss over all tokens that belong to a document."""
    mask = jnp.float32(np.not_equal(SLOTS, 4))

    def loss(total: jax.Array) -> jax.Array:
        return weighed(use(leaf.replace(total=total)), mask)

    return jax.jit(jax.grad(loss))(leaf.total)


def weighed(y: jax.Array, mask: jax.Array) -> jax.Array:
    """A loss that is no linear function of y [B, T, ...]."""
    per_token = jnp.sum(jnp.sin(y.astype(jnp.float32)).reshape(*y.shape[:2], -1), axis=-1)
    return jnp.sum(per_token * mask)


def close(found: jax.Array, expected: np.ndarray, tolerance: float) -> None:
    assert found.dtype == jnp.float32
    assert expected.max() > 1e-2
    assert np.abs(found - expected).max() / expected.max() < tolerance


TOLERANCE = {"float32": 1e-6, "bfloat16": 0.02}  # a document's own gradient is rounded to bfloat16 before its square
VECTORS: dict[str, tuple[tuple[int, ...], Callable[[jax.Array, Any], jax.Array]]] = {
    "scale": ((2, 9, WIDTH), multiply),
    "bias": ((2, 9, WIDTH), add),
    "scale of every head": ((2, 9, 3, WIDTH), multiply),
    "rms norm": ((2, 9, 3, WIDTH), lambda x, w: rms_norm(x, w, 1e-5)),
    "layer norm": ((2, 9, WIDTH), lambda x, w: layer_norm(x, {"weight": w}, 1e-5)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str, dtype: str) -> None:
    shape, use = VECTORS[name]
    x, w = normal(0, *shape, dtype=dtype), normal(1, WIDTH, dtype=dtype)
    total = jnp.full(w.shape, 0.5)
    found = summed(lambda leaf: use(x, leaf), SquaredVector(w, total, DOCUMENTS))
    close(found - total, one_by_one(lambda w, mask: weighed(use(x, w), mask), w), TOLERANCE[dtype])


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrices(dtype: str, group: int) -> None:
    x, w = normal(0, 2, 9, WIDTH, dtype=dtype), normal(1, 5, WIDTH, dtype=dtype) / 3
    total = jnp.full(w.shape, 0.5)
    found = summed(lambda leaf: matmul(x, leaf), SquaredMatrix(w, total, DOCUMENTS.replace(group=group)))
    close(found - total, one_by_one(lambda w, mask: weighed(matmul(x, w), mask), w), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tables(dtype: str) -> None:
    w = normal(1, VOCAB, WIDTH, dtype=dtype)
    total = jnp.full(w.shape, 0.5)
    found = summed(lambda leaf: lookup(IDS, leaf), SquaredTable(w, total, DOCUMENTS))
    close(found - total, one_by_one(lambda w, mask: weighed(lookup(IDS, w), mask), w), TOLERANCE[dtype])
    unread = np.setdiff1d(np.arange(VOCAB), IDS[SLOTS != 4])
    assert len(unread)
    np.testing.assert_array_equal(found[unread], total[unread])


def test_small_squares_are_not_lost_in_bfloat16_totals() -> None:
    """The total is float32 whatever the weight is: 1 + 2^-10 would be 1 in bfloat16."""
    x, w = jnp.full((2, 9, 4), 2.0**-7, jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)

    def loss(total: jax.Array) -> jax.Array:
        return jnp.sum(matmul(x, SquaredMatrix(w, total, DOCUMENTS)).astype(jnp.float32))

    found = jax.jit(jax.grad(loss))(jnp.ones((3, 4)))
    np.testing.assert_array_equal(found, np.full((3, 4), 1 + (16 + 9 + 49) * 2.0**-14, np.float32))


def test_gradients_pass_through_and_weights_get_none() -> None:
    x, w, total = normal(0, 2, 9, WIDTH), normal(1, WIDTH, WIDTH), jnp.zeros((WIDTH, WIDTH))
    vector, ones = w[0], jnp.zeros(WIDTH)
    leaves: dict[str, tuple[Callable[..., jax.Array], Any, Any]] = {
        "matmul": (matmul, SquaredMatrix(w, total, DOCUMENTS), w),
        "multiply": (multiply, SquaredVector(vector, ones, DOCUMENTS), vector),
        "add": (add, SquaredVector(vector, ones, DOCUMENTS), vector),
    }
    for use, leaf, plain in leaves.values():
        y, pull = jax.vjp(lambda x, leaf, use=use: use(x, leaf), x, leaf)
        expected, expected_pull = jax.vjp(lambda x, use=use, plain=plain: use(x, plain), x)
        np.testing.assert_array_equal(y, expected)
        dx, cotangent = pull(jnp.cos(y))
        np.testing.assert_array_equal(dx, expected_pull(jnp.cos(y))[0])
        assert not cotangent.weight.any()


# ------------------------------------------------------------------------------------------------------------ the head


def head_case(*, bias: bool) -> tuple[jax.Array, dict[str, jax.Array], np.ndarray, jax.Array]:
    hidden, head = normal(0, 2, 9, WIDTH), {"weight": normal(1, VOCAB, WIDTH)}
    if bias:
        head["bias"] = normal(2, VOCAB)
    weights = jnp.where(SLOTS == 4, 0, jax.random.uniform(jax.random.key(4), SLOTS.shape))
    return hidden, head, np.roll(IDS, -1, axis=1), weights


def chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(heads, "CHUNK", size)


@pytest.mark.parametrize("chunk", [4, 11, 4096])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_its_gradients(chunk: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks(monkeypatch, chunk)
    hidden, head, labels, weights = head_case(bias=bias)
    # Scores beyond the range of exp: the sums must be rescaled on the way.
    hidden = hidden * jnp.where(np.arange(9) == 5, 60, 1)[:, None]

    def loss(hidden: jax.Array, head: dict[str, jax.Array], mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        nll = negative_log_likelihood(linear(hidden, head), labels)
        return jnp.sum(nll * weights * mask), nll

    found = jax.jit(heads.loss_and_gradient)(hidden, head, labels, weights)
    (_, nll), expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(hidden, head, jnp.ones(SLOTS.shape))
    np.testing.assert_allclose(found.nll, nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.dh, expected, rtol=1e-5, atol=1e-6)

    totals = jax.tree.map(lambda w: jnp.full(w.shape, 0.25), head)
    updated = jax.jit(heads.add_squares)(totals, hidden, head, found, weights, DOCUMENTS)
    for name, w in head.items():
        close(
            updated[name] - 0.25,
            one_by_one(lambda w, mask, name=name: loss(hidden, head | {name: w}, mask)[0], w),
            3e-6,
        )


@pytest.mark.parametrize("bias", [False, True])
def test_a_table_that_is_the_head_too_has_its_cross_terms(bias: bool) -> None:
    """The square of the sum of both gradients; and L of words that are read, of words that are not."""
    hidden, head, labels, weights = head_case(bias=bias)
    table = head["weight"]

    def loss(table: jax.Array, mask: jax.Array) -> jax.Array:
        nll = negative_log_likelihood(linear(hidden, head | {"weight": table}), labels)
        return jnp.sum(nll * weights * mask) + weighed(lookup(IDS, table), mask)

    @jax.jit
    def of_head(total: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = heads.loss_and_gradient(hidden, head, labels, weights)
        total = heads.add_squares({"weight": total}, hidden, head, found, weights, DOCUMENTS)["weight"]
        return total, heads.own_rows(hidden, head, IDS, found, weights, DOCUMENTS)

    total, rows = of_head(jnp.zeros(table.shape))
    leaf = SquaredTable(table, total, DOCUMENTS, rows)
    expected = one_by_one(loss, table)
    close(summed(lambda leaf: lookup(IDS, leaf), leaf), expected, 2e-6)
    apart = summed(lambda leaf: lookup(IDS, leaf), leaf.replace(head_rows=None))
    assert np.abs(apart - expected).max() > 0.1 * expected.max()


def test_draws_follow_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pearson's statistic of 20000 draws of one token is that of the model's own probabilities, and of no others."""
    chunks(monkeypatch, 4)  # 11 words: the last chunk overlaps the one before
    draws, hidden, head = 20000, normal(0, 1, 1, WIDTH), {"weight": normal(1, VOCAB, WIDTH), "bias": normal(2, VOCAB)}
    p = np.asarray(jax.nn.softmax(linear(hidden, head)[0, 0]), np.float64)

    @jax.jit
    def draw(seed: int) -> heads.HeadPass:
        keys = heads.token_keys(seed, jnp.arange(draws), jnp.arange(draws)[:, None], jnp.full((draws, 1), 3, jnp.int32))
        unused, weights = jnp.zeros((draws, 1), jnp.int32), jnp.ones((draws, 1))
        repeated = jnp.broadcast_to(hidden, (draws, 1, WIDTH))
        return heads.loss_and_gradient(repeated, head, unused, weights, keys)

    def drawn(seed: int) -> np.ndarray:
        found = draw(seed)
        np.testing.assert_allclose(np.exp(-found.nll[:, 0]), p[found.labels[:, 0]], rtol=1e-4)
        return np.asarray(found.labels[:, 0])

    def statistic(labels: np.ndarray, p: np.ndarray) -> float:
        return float(np.sum((np.bincount(labels, minlength=VOCAB) - draws * p) ** 2 / (draws * p)))

    labels = drawn(0)
    assert statistic(labels, p) < 35  # ten degrees of freedom: one in ten thousand is above
    assert statistic(labels, np.roll(p, 1)) > 1000
    # Draws of other documents, and of another seed, are independent of these: they agree as often as chance has it.
    for other in (np.roll(labels, 1), drawn(1)):
        assert abs(np.mean(labels == other) - np.sum(p**2)) < 5 * np.sqrt(np.sum(p**2) / draws)


def test_tokens_of_no_document_are_of_no_consequence() -> None:
    g, x = normal(0, 2, 9, 5), normal(1, 2, 9, WIDTH)
    outside = jnp.asarray(SLOTS == 4)[..., None]
    total, vector, table = jnp.zeros((5, WIDTH)), jnp.zeros(5), jnp.zeros((VOCAB, 5))

    @jax.jit
    def all_of(g: jax.Array) -> list[jax.Array]:
        return [
            squares.square_matrix(total, g, x, DOCUMENTS),
            squares.square_vector(vector, g, DOCUMENTS),
            squares.square_table(table, g, IDS, None, DOCUMENTS),
        ]

    for found, expected in zip(all_of(jnp.where(outside, 7, g)), all_of(jnp.where(outside, 0, g)), strict=True):
        np.testing.assert_array_equal(found, expected)
