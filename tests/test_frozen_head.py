"""Losses under a frozen output head: against log_softmax written out in float64; what the compiled program holds."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error
from jax.sharding import NamedSharding, PartitionSpec

from e2wm_jax.models import frozen_head
from e2wm_jax.models.frozen_head import token_kl, token_nll
from e2wm_jax.models.quantized import dense, quantize
from e2wm_jax.sharding import make_mesh

WIDTH, VOCAB = 12, 61
LOSSES = ("nll", "forward", "reverse")

pytestmark = pytest.mark.usefixtures("quick_compilation")


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def a_head(kind: str, vocab: int = VOCAB) -> dict[str, Any]:
    head = {"weight": jnp.asarray(normal(1, vocab, WIDTH))}
    if "int8" in kind:
        head["weight"] = quantize(head["weight"], "int8")
    if "bias" in kind:
        head["bias"] = jnp.asarray(normal(2, vocab))
    return head


def states(tokens: tuple[int, ...] = (2, 9)) -> tuple[jax.Array, jax.Array]:
    """Tuned and base; of one token the scores are beyond the range of exp."""
    hidden, change = normal(3, *tokens, WIDTH), normal(4, *tokens, WIDTH)
    hidden[-1, 5] *= 60
    change[-1, 5] *= 60
    return jnp.asarray(hidden), jnp.asarray(hidden + 0.3 * change)


def labels_of(hidden: jax.Array, vocab: int = VOCAB) -> np.ndarray:
    labels = np.random.default_rng(5).integers(0, vocab, hidden.shape[:-1])
    labels.flat[:2] = 0, vocab - 1
    return labels


def loss(name: str, hidden: jax.Array, base: jax.Array, head: Any, labels: Any, parts: int = 1) -> jax.Array:
    if name == "nll":
        return token_nll(hidden, head, labels, parts=parts)
    return token_kl(hidden, base, head, direction=name, parts=parts)  # type: ignore[arg-type]


def value_and_gradient(
    name: str, hidden: jax.Array, base: jax.Array, head: Any, labels: Any, parts: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Per token, with cotangents that differ."""

    def weighted(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = loss(name, hidden, base, head, labels, parts)
        return jnp.sum(value * cotangents(value.shape)), value

    gradient, value = jax.jit(jax.grad(weighted, has_aux=True))(hidden)
    return value, gradient


def cotangents(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(6).uniform(0.5, 2, shape).astype(np.float32)


def expected(name: str, hidden: Any, base: Any, head: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """The plain form and its `jax.grad`, in float64."""
    with jax.enable_x64(True):
        hidden, base, weight = (jnp.asarray(np.asarray(x, np.float64)) for x in (hidden, base, dense(head["weight"])))
        bias = np.asarray(head["bias"], np.float64) if "bias" in head else 0

        def weighted(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
            p, p0 = (jax.nn.log_softmax(x @ weight.T + bias) for x in (hidden, base))
            if name == "nll":
                value = -jnp.take_along_axis(p, labels[..., None], axis=-1)[..., 0]
            else:
                over, of = (p0, p) if name == "forward" else (p, p0)
                value = jnp.sum(jnp.exp(over) * (over - of), axis=-1)
            return jnp.sum(value * cotangents(value.shape)), value

        gradient, value = jax.jit(jax.grad(weighted, has_aux=True))(hidden)
        return np.asarray(value), np.asarray(gradient)


# ---------------------------------------------------------------------------------------------------------- the numbers


def test_by_hand() -> None:
    """Two words with scores 0 and x have p = 1 / (1 + e^-x) of the second."""
    head = {"weight": jnp.array([[0.0], [1.0]])}
    x, x0 = np.log(3.0), np.log(1.0)  # p = 1/4, 3/4; p0 = 1/2, 1/2
    hidden, base = jnp.full((1, 1, 1), x), jnp.full((1, 1, 1), x0)
    assert token_nll(hidden, head, jnp.array([[1]])).item() == pytest.approx(np.log(4 / 3), rel=1e-6)
    forward = token_kl(hidden, base, head, direction="forward").item()
    reverse = token_kl(hidden, base, head, direction="reverse").item()
    assert forward == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-5)
    assert reverse == pytest.approx(0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2), rel=1e-5)


# 61 words: 9 chunks; 2, the second of one new word; fewer than a chunk.
@pytest.mark.parametrize(("chunk", "kind"), [(7, ""), (7, "int8, bias"), (60, "bias"), (4096, "bias")])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient(name: str, kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_head, "CHUNK", chunk)
    head, (hidden, base) = a_head(kind), states()
    labels = labels_of(hidden)
    value, gradient = value_and_gradient(name, hidden, base, head, labels)
    expected_value, expected_gradient = expected(name, hidden, base, head, labels)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(value, expected_value, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    # Where nothing is differentiated, the same number.
    np.testing.assert_allclose(jax.jit(partial(loss, name))(hidden, base, head, labels), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_the_vocabulary_make_no_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_head, "CHUNK", 12)  # 32 = 5 x 6 + 2 and 16 = 5 x 3 + 1 words of a part
    head, (hidden, base) = a_head("int8, bias", vocab=64), states()
    labels = labels_of(hidden, vocab=64)
    whole = value_and_gradient(name, hidden, base, head, labels)
    for parts in (2, 4):
        in_parts = value_and_gradient(name, hidden, base, head, labels, parts)
        for one, other in zip(in_parts, whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)
    with pytest.raises(ValueError, match="parts=3 must divide the vocabulary of 64 words"):
        loss(name, hidden, base, head, labels, parts=3)


def test_divergences_are_those_of_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_head, "CHUNK", 7)
    head, (hidden, base) = a_head("bias"), states()
    found = {}
    for name in ("forward", "reverse"):
        same, gradient = value_and_gradient(name, hidden, hidden, head, None)
        assert not np.any(same)
        assert np.abs(gradient).max() < 1e-6
        found[name] = np.asarray(jax.jit(partial(loss, name))(hidden, base, head, None))
        assert found[name].min() > 1e-3
        near = jax.jit(partial(loss, name))(hidden, hidden * (1 + 1e-6), head, None)
        assert 0 <= np.min(near) <= np.max(near) < 1e-5  # less than what rounding leaves, which may not be negative
    assert relative_error(found["forward"], found["reverse"]) > 0.1
    swapped = jax.jit(partial(loss, "reverse"))(base, hidden, head, None)
    np.testing.assert_allclose(swapped, found["forward"], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_only_hidden_states_get_a_gradient(name: str) -> None:
    head, (hidden, base) = a_head("bias"), states()
    labels = labels_of(hidden)
    of_hidden, of_base, of_head = jax.grad(lambda *x: jnp.sum(loss(name, *x, labels)), argnums=(0, 1, 2))(
        hidden, base, head
    )
    assert np.any(of_hidden)
    assert not any(np.any(g) for g in (of_base, *jax.tree.leaves(of_head)))


def in_bfloat16(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A head, and the same with its numbers as they are read."""
    head = a_head(kind)
    weight = quantize(normal(1, VOCAB, WIDTH), "int8", "bfloat16") if "int8" in kind else head["weight"]
    head["weight"] = weight if "int8" in kind else weight.astype(jnp.bfloat16)
    return head, {**head, "weight": dense(weight).astype(jnp.bfloat16)}


@pytest.mark.parametrize("kind", ["bias", "int8"])
@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and sums are float32; rounded are the weights of the pull and the gradient."""
    monkeypatch.setattr(frozen_head, "CHUNK", 7)
    (head, as_read), (hidden, base) = in_bfloat16(kind), (x.astype(jnp.bfloat16) for x in states())
    labels = labels_of(hidden)
    value, gradient = value_and_gradient(name, hidden, base, head, labels)
    expected_value, expected_gradient = expected(name, hidden, base, as_read, labels)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    print(relative_error(value, expected_value), relative_error(gradient, expected_gradient))
    np.testing.assert_allclose(value, expected_value, rtol=2e-5, atol=2e-5)
    assert relative_error(gradient, expected_gradient) < 2.0**-7


@pytest.mark.parametrize("name", ["forward", "reverse"])
def test_bfloat16_where_the_models_almost_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference of two pulls in bfloat16, p W - p0 W, would be mostly rounding."""
    monkeypatch.setattr(frozen_head, "CHUNK", 7)
    head, as_read = in_bfloat16("bias")
    hidden = jnp.asarray(normal(3, 2, 9, WIDTH), jnp.bfloat16)
    base = hidden.at[..., 0].multiply(1 + 2.0**-7)
    value, gradient = value_and_gradient(name, hidden, base, head, None)
    expected_value, expected_gradient = expected(name, hidden, base, as_read, None)
    print(np.max(expected_value), relative_error(value, expected_value), relative_error(gradient, expected_gradient))
    np.testing.assert_allclose(value, expected_value, rtol=1e-2, atol=5e-7)
    assert relative_error(gradient, expected_gradient) < 2.0**-7


# ---------------------------------------------------------------------------------------------------------- the program


@pytest.mark.parametrize("name", LOSSES)
def test_under_checkpoint_scan_and_vmap(name: str) -> None:
    head, (hidden, base) = a_head("bias"), states()
    labels = labels_of(hidden)

    def row(hidden: jax.Array, base: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.sum(loss(name, hidden, base, head, labels) * cotangents(labels.shape))

    def by_scan(hidden: jax.Array) -> jax.Array:
        step = jax.checkpoint(lambda total, x: (total + row(*x), None))
        return jax.lax.scan(step, jnp.float32(0), (hidden, base, labels))[0]

    def by_vmap(hidden: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(row)(hidden, base, labels))

    def one_by_one(hidden: jax.Array) -> jax.Array:
        return sum((row(*x) for x in zip(hidden, base, labels, strict=True)), jnp.float32(0))

    plain, *others = (jax.jit(jax.value_and_grad(way))(hidden) for way in (one_by_one, by_scan, by_vmap))
    for other in others:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), other, plain)


@pytest.mark.parametrize("name", LOSSES)
def test_products_with_the_head(name: str) -> None:
    """Scores once; the pull in the same pass, and only where there is a gradient."""
    head, (hidden, base) = a_head("bias"), states()

    def total(hidden: jax.Array) -> jax.Array:
        return jnp.sum(loss(name, hidden, base, head, labels_of(hidden)))

    counts = [str(jax.make_jaxpr(f)(hidden)).count("dot_general[") for f in (total, jax.value_and_grad(total))]
    assert counts == [1, 2]


@pytest.mark.parametrize("name", LOSSES)
def test_no_array_of_tokens_times_vocabulary(
    name: str, full_compilation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_head, "CHUNK", 1024)
    vocab, (hidden, base) = 9001, states((3, 50))
    head = a_head("bias", vocab)
    labels = labels_of(hidden, vocab)
    step = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(loss(name, *x))))
    compiled = step.lower(hidden, base, head, labels).compile()
    found = {tuple(map(int, sizes.split(","))) for sizes in re.findall(r"\w\d+\[([\d,]+)\]", compiled.as_text())}
    assert any(
        1024 in shape and np.prod(shape) >= 150 * 1024 for shape in found
    )  # the search finds a chunk's scores ...
    assert {shape for shape in found if vocab in shape} == {(vocab, WIDTH), (vocab,)}  # ... and only the head is whole
    temporary, scores = compiled.memory_analysis().temp_size_in_bytes, 4 * 150 * vocab
    print(f"{name}: temporaries {temporary / 2**20:.2f} MiB, all scores {scores / 2**20:.2f} MiB")
    assert temporary < scores


@pytest.mark.skipif(jax.device_count() < 8, reason=f"needs 8 devices, there are {jax.device_count()}")
@pytest.mark.parametrize(("name", "kind"), [("nll", "int8, bias"), ("forward", "bias"), ("reverse", "int8")])
def test_a_split_vocabulary_stays_where_it_is(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of what the parts found go round once, after the last chunk; words never do."""
    monkeypatch.setattr(frozen_head, "CHUNK", 20)
    head, (hidden, base) = a_head(kind, vocab=64), states((4, 9))
    labels = labels_of(hidden, vocab=64)
    plain = value_and_gradient(name, hidden, base, head, labels)
    mesh = make_mesh("data=2,tensor=4")

    def on(x: Any, axis: str) -> Any:
        return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(axis))), x)

    def program(parts: int) -> Callable[..., Any]:
        def weighted(hidden: jax.Array, base: jax.Array, head: Any, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
            value = loss(name, hidden, base, head, labels, parts)
            return jnp.sum(value * cotangents(value.shape)), value

        given = (*(on(x, "data") for x in (hidden, base)), on(head, "tensor"), on(labels, "data"))
        compiled = jax.jit(jax.grad(weighted, has_aux=True)).lower(*given).compile()
        return compiled, *compiled(*given)

    split, gradient, value = program(parts=4)
    for one, other in zip((value, gradient), plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)
    assert {kind for kind, _ in collectives(split)} == {"all-reduce"}
    assert max(np.prod(shape) for _, shape in collectives(split)) == 2 * 9 * WIDTH  # of a device's rows
    assert " while(" in split.as_text()
    assert not collectives(split, within_loops=True)
    together, *_ = program(parts=1)
    assert ("all-gather", (64, WIDTH)) in collectives(together)  # the search finds what is there


def collectives(compiled: Any, *, within_loops: bool = False) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and shape of what goes between devices."""
    text = compiled.as_text()
    found = []
    for shape, kind in re.findall(
        r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(",
        text[: text.index("\nENTRY")] if within_loops else text,
    ):
        for sizes in re.findall(r"\w+\[([\d,]*)\]", shape):
            found.append((kind, tuple(int(size) for size in sizes.split(",") if size)))
    return found
