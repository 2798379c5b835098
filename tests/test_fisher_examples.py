"""The Fisher of any function over any pytree: by hand, by a loop in float64, on one device and on eight."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import relative_error
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from e2wm_jax.config import MODELS
from e2wm_jax.data.batch import Row
from e2wm_jax.errors import InputError
from e2wm_jax.fisher import examples
from e2wm_jax.fisher.diagonal import document_fisher
from e2wm_jax.fisher.documents import document_batches
from e2wm_jax.fisher.examples import NonFiniteError, fisher_diagonal, sampled_nll
from e2wm_jax.models import decoder
from e2wm_jax.models.layers import negative_log_likelihood

pytestmark = pytest.mark.usefixtures("quick_compilation")

COUNT = 21  # no multiple of a batch, a microbatch or eight devices
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(COUNT, 5)).astype(np.float32), RNG.normal(size=COUNT).astype(np.float32)
LINEAR = {"weight": RNG.normal(size=5).astype(np.float32), "bias": np.float32([0.3])}


def squared_error(params: Any, example: Any) -> jax.Array:
    x, y = example
    return 0.5 * (x @ params["weight"] + params["bias"][0] - y) ** 2


def by_hand(weights: Any = None) -> dict[str, np.ndarray]:
    """d/dw (w x + b - y)^2 / 2 = error x, d/db = error."""
    x, y = X.astype(np.float64), Y.astype(np.float64)
    error = x @ LINEAR["weight"] + LINEAR["bias"][0] - y
    squares = np.concatenate([error[:, None] * x, error[:, None]], axis=1) ** 2
    mean = np.average(squares, axis=0, weights=weights)
    return {"weight": mean[:5], "bias": mean[5:]}


def assert_equal(found: Any, expected: Any, rtol: float = 2e-6) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "scan", "batch_size": 4},
        {"microbatch": 1},
        {"microbatch": 4, "batch_size": 9},
        {"microbatch": 100, "batch_size": 100},
    ],
)
def test_linear_regression_by_hand_whatever_the_batches(options):
    assert_equal(fisher_diagonal(squared_error, LINEAR, (X, Y), **options), by_hand())


@pytest.mark.parametrize("kind", [list, iter])
def test_batches_as_they_come(kind):
    """Of unequal sizes, and the last a single example."""
    parts = [(0, 4), (4, 14), (14, 20), (20, 21)]
    batches = kind([(X[start:end], jnp.asarray(Y[start:end])) for start, end in parts])
    done: list[int] = []
    found = fisher_diagonal(squared_error, LINEAR, batches, microbatch=3, progress=done.append)
    assert_equal(found, by_hand())
    assert done == [4, 14, 20, 21]


def test_one_compilation_for_batches_of_about_one_size():
    traced = []

    def loss(params, example):
        traced.append(1)
        return squared_error(params, example)

    for options in ({"batch_size": 8, "microbatch": 4}, {"batch_size": 20}, {"batch_size": 8, "method": "scan"}):
        traced.clear()
        assert_equal(fisher_diagonal(loss, LINEAR, (X, Y), **options), by_hand())
        assert len(traced) <= 2, options  # by value_and_grad, and once more by scan


def test_batches_of_torch(torch_oracle):
    """As its data loaders give them."""
    batches = torch_oracle.utils.data.DataLoader(list(zip(X, Y, strict=True)), batch_size=8)
    assert_equal(fisher_diagonal(squared_error, LINEAR, ((x, y) for x, y in batches)), by_hand())
    assert_equal(fisher_diagonal(squared_error, LINEAR, map(tuple, batches)), by_hand())


def test_weights_and_padding():
    """Padding may hold what has no finite gradient."""
    weights = RNG.integers(0, 4, COUNT).astype(np.float32)
    y = np.where(weights > 0, Y, np.nan)
    data = {"x": X, "y": y, "weight": weights}

    def loss(params, example):
        return squared_error(params, (example["x"], example["y"]))

    for method in ("vmap", "scan"):
        found = fisher_diagonal(
            loss, LINEAR, data, method=method, microbatch=4, batch_size=6, weight=lambda example: example["weight"]
        )
        assert_equal(found, by_hand(weights))
    mask = fisher_diagonal(loss, LINEAR, data, weight=lambda example: example["weight"] > 0)
    assert_equal(mask, by_hand(weights > 0))


def test_selected_leaves_only_and_whole_numbers_are_passed_over():
    class Params(NamedTuple):
        weight: Any
        bias: Any
        steps: Any
        name: Any

    params = Params(LINEAR["weight"], LINEAR["bias"], jnp.arange(3), len)  # len: not an array at all

    def loss(params, example):
        assert params.name is len
        return squared_error(params._asdict(), example) + 0 * params.steps[0]

    assert_equal(fisher_diagonal(loss, params, (X, Y)), Params(**by_hand(), steps=None, name=None))
    found = fisher_diagonal(loss, params, (X, Y), select=lambda path: path == "bias")
    assert_equal(found, Params(None, by_hand()["bias"], None, None))


class Net(nn.Module):
    """Two layers with a norm between them, whose running statistics are no parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.LayerNorm()(jnp.tanh(nn.Dense(4)(x))))


def test_a_flax_module_against_a_loop_over_examples():
    net, labels = Net(), RNG.integers(0, 3, COUNT)
    variables = net.init(jax.random.key(0), X[0])

    def loss(variables, example):
        x, label = example
        return -jax.nn.log_softmax(net.apply(variables, x))[label]

    expected, gradient_of = jax.tree.map(jnp.zeros_like, variables), jax.jit(jax.grad(loss))
    for example in zip(X, labels, strict=True):
        gradient = gradient_of(variables, example)
        expected = jax.tree.map(lambda total, g: total + g**2 / COUNT, expected, gradient)
    assert_equal(fisher_diagonal(loss, variables, (X, labels)), expected, rtol=2e-5)
    selected = fisher_diagonal(loss, variables, (X, labels), select=lambda path: path.startswith("params.Dense_1"))
    assert selected["params"]["Dense_0"] == {"bias": None, "kernel": None}
    assert_equal(selected["params"]["Dense_1"], expected["params"]["Dense_1"], rtol=2e-5)


class Nnx(nnx.Module):
    """A module that holds its own random numbers beside its parameters."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(5, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(self.linear(x))


def test_an_nnx_state():
    labels = RNG.integers(0, 3, COUNT)
    graph, state = nnx.split(Nnx(nnx.Rngs(0)))

    def loss(state, example):
        x, label = example
        return -jax.nn.log_softmax(nnx.merge(graph, state)(x))[label]

    found = fisher_diagonal(loss, state, (X, labels))
    kernel, bias = (np.asarray(state["linear"][name][...], np.float64) for name in ("kernel", "bias"))
    scores = X @ kernel + bias
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True) - np.eye(3)[labels]
    whole = fisher_diagonal(
        lambda module, example: loss(nnx.state(module), example), nnx.merge(graph, state), (X, labels)
    )
    np.testing.assert_allclose(whole.linear.bias.get_value(), np.mean(p**2, 0), rtol=2e-5)  # a module is a pytree too
    np.testing.assert_allclose(found["linear"]["bias"].get_value(), np.mean(p**2, 0), rtol=2e-5)
    np.testing.assert_allclose(
        found["linear"]["kernel"].get_value(), np.mean(X[:, :, None] ** 2 * p[:, None] ** 2, 0), rtol=2e-5
    )
    assert len(jax.tree.leaves(found)) == 2  # no seeds, no counts


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 4}])
def test_eight_devices_give_the_numbers_of_one(axes):
    """Gradients are squared before they are summed over devices; F lies where the parameters do."""
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
    params = {"w": RNG.normal(size=(8, 5)).astype(np.float32), "v": RNG.normal(size=8).astype(np.float32)}

    def loss(params, example):
        x, y = example
        return (params["v"] @ jnp.tanh(params["w"] @ x) - y) ** 2

    expected = fisher_diagonal(loss, params, (X, Y), method="scan")
    split = {"w": P("fsdp") if "fsdp" in axes else P(), "v": P()}
    placed = {name: jax.device_put(leaf, NamedSharding(mesh, split[name])) for name, leaf in params.items()}
    sharding = NamedSharding(mesh, P(("data", "fsdp") if "fsdp" in axes else "data"))
    for own, method, microbatch in [
        (placed, "vmap", 8),
        (placed, "scan", 1),
        (params, "vmap", 16),
        (params, "vmap", 1),
    ]:
        found = fisher_diagonal(
            loss, own, (X, Y), method=method, microbatch=microbatch, batch_size=16, sharding=sharding
        )
        assert_equal(found, expected, rtol=1e-5)
        if own is placed:
            assert all(found[name].sharding == placed[name].sharding for name in found)


def test_bfloat16_parameters_are_squared_and_summed_in_float32():
    """A sum in bfloat16 would stand still at 256 of the 2048 ones."""
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    found = fisher_diagonal(lambda params, x: jnp.sum(params["w"]) * x, params, np.ones(2048, np.float32))
    assert found["w"].dtype == jnp.float32
    np.testing.assert_array_equal(found["w"], 1.0)


def test_labels_drawn_from_the_model():
    """By the same keys in a loop; and close to E_x p (1 - p) x^2, the true Fisher of softmax regression."""
    count, key = 4000, jax.random.key(3)
    x = np.random.default_rng(1).normal(size=(count, 3)).astype(np.float32)
    params = {"w": np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)}

    def logits(params, x):
        return params["w"] @ x

    loss = sampled_nll(logits)
    found = fisher_diagonal(loss, params, x[:10], key=key, microbatch=3, batch_size=7)["w"]
    squares = []
    for number in range(10):
        label = jax.random.categorical(jax.random.fold_in(key, number), logits(params, x[number]))
        p = jax.nn.softmax(logits(params, x[number]))
        squares.append(np.outer(p - np.eye(4)[label], x[number]) ** 2)
    np.testing.assert_allclose(found, np.mean(squares, axis=0), rtol=1e-5)

    p = jax.nn.softmax(x @ params["w"].T)
    true = np.mean((p * (1 - p))[:, :, None] * x[:, None] ** 2, axis=0)
    many = fisher_diagonal(loss, params, x, key=key, microbatch=500, batch_size=1000)["w"]
    np.testing.assert_allclose(many, true, rtol=0.1)


def test_our_decoders_against_their_own_pass():
    config = MODELS["tiny"]
    params = decoder.initialize(config, jax.random.key(0))
    rows = [Row(RNG.integers(0, config.vocab_size, 9).astype(np.int32), 1) for _ in range(5)]
    ids = np.stack([row.ids for row in rows])

    def loss(params, ids):
        inputs, positions = ids[None, :-1], jnp.arange(8)[None]
        hidden = decoder.hidden_states(config, params, inputs, positions, jnp.zeros_like(inputs))
        return jnp.mean(negative_log_likelihood(decoder.logits(config, params, hidden), ids[None, 1:]))

    found = fisher_diagonal(loss, params, ids, select=lambda path: path in ("layers.q.weight", "embed.weight"))
    theirs = document_fisher(config, params, document_batches(rows, 5, 16)).values
    assert relative_error(found["layers"]["q"]["weight"], theirs["layers.q.weight"]) < 1e-5
    assert relative_error(found["embed"]["weight"], theirs["embed.weight"]) < 1e-5


def test_memory_scan_holds_one_gradient_and_vmap_those_of_a_microbatch(full_compilation):
    width, count = 256, 16
    params = {name: jnp.ones((width, width)) for name in "ab"}
    size, data = 2 * width * width * 4, jnp.ones((count, width))

    def loss(params, x):
        return jnp.sum(jnp.tanh(params["a"] @ jnp.tanh(params["b"] @ x)))

    def temporary(microbatch: int | None) -> float:
        def add(totals, params, x):
            return examples.add_squares(loss, totals, params, x, jnp.ones(count), microbatch=microbatch)

        compiled = jax.jit(add, donate_argnums=0).lower(jax.tree.map(jnp.zeros_like, params), params, data).compile()
        return compiled.memory_analysis().temp_size_in_bytes / size

    scan, two, all_at_once = temporary(None), temporary(2), temporary(count)
    assert scan < 3
    assert two < 5
    assert all_at_once > count / 2  # copies of one of the two matrices at least
    assert scan <= two < all_at_once


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, Y[:3]), r"\(21, 5\), \(3,\).*leading axis"),
        ((X, np.float32(1)), "leading axis"),
        ((X[:0], Y[:0]), "one or more"),
        ([], "there are 0"),
    ],
)
def test_data_that_are_no_examples_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        fisher_diagonal(squared_error, LINEAR, data)


def test_other_mistakes_are_named():
    with pytest.raises(InputError, match=r"of 2 is selected; there are, e\.g\., bias, weight"):
        fisher_diagonal(squared_error, LINEAR, (X, Y), select=lambda path: path == "layers.q")
    for wrong in ({"method": "fused"}, {"microbatch": 0}, {"batch_size": -1}):
        with pytest.raises(InputError, match="method is vmap or scan, the numbers are 1 or more"):
            fisher_diagonal(squared_error, LINEAR, (X, Y), **wrong)
    with pytest.raises(InputError, match="weight of example 2 is -1"):
        fisher_diagonal(squared_error, LINEAR, (X, Y), weight=lambda example: jnp.where(example[1] == Y[2], -1, 1))
    with pytest.raises(InputError, match=r"shape \(5,\) for an example"):
        fisher_diagonal(squared_error, LINEAR, (X, Y), weight=lambda example: example[0])
    with pytest.raises(InputError, match="weights sum to 0"):
        fisher_diagonal(squared_error, LINEAR, (X, Y), weight=lambda example: False)
    y = np.where(np.isin(np.arange(COUNT), (3, 17)), np.inf, Y)
    with pytest.raises(NonFiniteError, match=r"\[3\]") as found:
        fisher_diagonal(squared_error, LINEAR, (X, y), batch_size=5)
    assert found.value.numbers == [3]
    y = np.where(np.isin(np.arange(COUNT), (3, 17)), 1e25, Y)
    for method in ("vmap", "scan"):  # gradients that are numbers, and their squares are not
        with pytest.raises(NonFiniteError, match=r"\[3, 17\]"):
            fisher_diagonal(squared_error, LINEAR, (X, y), method=method)
        with pytest.raises(
            InputError, match=r"^weight: squares of gradients exceed float32 \(gradients above 1\.8e\+19"
        ):
            fisher_diagonal(lambda w, x: 1.5e19 * w["weight"].sum(), LINEAR, (X, Y), method=method)
