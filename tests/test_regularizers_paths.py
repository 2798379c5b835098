"""Regularizers on the adapters' own entries, against the formulas written out in float64 and against theory."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import relative_error

from e2wm_jax import lora
from e2wm_jax.config import LlamaConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.lora import Adapters, AdapterSpec, Scope, TargetSpec
from e2wm_jax.models import decoder, spread
from e2wm_jax.models.weights import flatten, unflatten
from e2wm_jax.regularizers.factor_ewc import FACTOR_EWC, factor_fisher
from e2wm_jax.regularizers.path import INTERVAL, RWALK, SI
from e2wm_jax.regularizers.regularizer import Material, PenaltyOptions, Regularizer, Update
from e2wm_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
    tied=True,
    initializer_range=0.3,
)
# Layer 0 of q is padded from rank 2 to 3, layer 1 of down has no adapter, and every scale is another.
SPEC: AdapterSpec = (
    TargetSpec("layers.q", ranks=(2, 3), alphas=(3.0, 4.5)),
    TargetSpec("layers.down", ranks=(2, 0), alphas=(6.0, 0.0), rslora=True),
)
SCOPE = Scope(TINY, SPEC)
ALL = [FACTOR_EWC, SI, RWALK]
PATHS = [SI, RWALK]


@pytest.fixture(scope="module")
def params() -> Any:
    return decoder.initialize(TINY, jax.random.key(7))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Documents of two lengths, one of them an answer behind a prompt, with a task weight."""
    rng = np.random.default_rng(3)
    drawn = [rng.integers(0, TINY.vocab_size, length).astype(np.int32) for length in (5, 12, 12, 5, 5)]
    return [Row(drawn[0], 1), Row(drawn[1], 6, 0.7), *(Row(ids, 1) for ids in drawn[2:])]


@pytest.fixture(scope="module")
def exact(params: Any, rows: list[Row]) -> list[Adapters]:
    """Each row's squared gradients at `moved()`."""
    return [squares_by_hand(params, moved(), row) for row in rows]


def start() -> Adapters:
    return lora.initialize(TINY, SPEC, jax.random.key(1))


def moved(seed: int = 0) -> Adapters:
    """Adapters off the start, padding still zero."""
    rng = np.random.default_rng(seed)

    def shifted(target: TargetSpec, name: str, value: jax.Array) -> jax.Array:
        active = np.arange(target.rank) < np.asarray(target.ranks)[:, None, None]
        noise = rng.normal(0, 0.2, value.shape) * (active if name == "b" else active.swapaxes(1, 2))
        return value + jnp.asarray(noise, jnp.float32)

    adapters = start()
    return {
        target.path: {name: shifted(target, name, value) for name, value in adapters[target.path].items()}
        for target in SPEC
    }


def material(params: Any, adapters: Adapters, rows: list[Row], scope: Scope = SCOPE, **options: Any) -> Material:
    return Material(scope, params, adapters, None, rows, PenaltyOptions(**{"max_length": 16, **options}))


def leaves(tree: Any) -> np.ndarray:
    """All numbers of a tree, in float64."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def steps(seed: int, number: int, at: Adapters) -> Iterator[Update]:
    """Random steps with random gradients; padding stays."""
    key = jax.random.key(seed)

    def noise(key: jax.Array, scale: float) -> Adapters:
        flat, kind = jax.tree.flatten(at)
        keys = jax.random.split(key, len(flat))
        drawn = [scale * jax.random.normal(k, leaf.shape) * (leaf != 0) for k, leaf in zip(keys, flat, strict=True)]
        return jax.tree.unflatten(kind, drawn)

    for step in range(number):
        one, two = jax.random.split(jax.random.fold_in(key, step))
        after = jax.tree.map(jnp.add, at, noise(one, 0.05))
        yield Update(at, after, noise(two, 0.3))
        at = after


def walk(regularizer: Regularizer, updates: list[Update]) -> Any:
    assert regularizer.observe is not None
    observe, path = jax.jit(regularizer.observe), regularizer.begin(updates[0].before)
    for update in updates:
        path = observe(path, update)
    return path


def value(regularizer: Regularizer, adapters: Adapters, state: Any) -> float:
    assert regularizer.penalty is not None
    return float(regularizer.penalty(SCOPE, adapters, state))


def squares_by_hand(params: Any, adapters: Adapters, row: Row) -> Adapters:
    """From the gradient G of the merged weight: dL/dA = s B^T G, dL/dB = s G A^T."""
    flat = flatten(lora.merge(params, adapters, SPEC))
    gradients = _weight_gradients(flat, row.ids, row.first_target)
    found = {}
    for target in SPEC:
        g = np.asarray(gradients[f"{target.path}.weight"], np.float64)
        a, b = (np.asarray(adapters[target.path][name], np.float64) for name in ("a", "b"))
        s = target.scales[:, None, None]
        found[target.path] = {"a": (s * b.swapaxes(1, 2) @ g) ** 2, "b": (s * g @ a.swapaxes(1, 2)) ** 2}
    return found


@partial(jax.jit, static_argnums=2)
def _weight_gradients(flat: dict[str, jax.Array], ids: jax.Array, first_target: int) -> dict[str, jax.Array]:
    """Of the mean over a document's predicted tokens, alone in its batch, without padding."""
    positions = jnp.arange(len(ids))[None]

    def loss(weights: dict[str, jax.Array]) -> jax.Array:
        whole = unflatten({**flat, **weights})
        hidden = decoder.hidden_states(TINY, whole, ids[None], positions, jnp.zeros_like(positions))
        log_p = jax.nn.log_softmax(decoder.logits(TINY, whole, hidden)[0, :-1])
        return -jnp.mean(log_p[jnp.arange(len(ids) - 1), ids[1:]][first_target - 1 :])

    paths = [f"{target.path}.weight" for target in SPEC]
    return jax.grad(loss)({path: flat[path] for path in paths})


@pytest.mark.parametrize("batch_size", [2, 5])
def test_factor_fisher_is_that_of_single_documents(params, rows, exact, batch_size):
    found = factor_fisher(material(params, moved(), rows, batch_size=batch_size))
    expected = jax.tree.map(lambda *squares: np.mean(squares, axis=0), *exact)
    for one, ours in _pairs(expected, found):
        assert relative_error(ours, one) < 1e-5


def test_factor_fisher_is_the_same_on_a_mesh(params, rows):
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    scope, split = SCOPE._replace(mesh=mesh), spread.place(TINY, params, mesh)
    one = factor_fisher(material(params, moved(), rows, batch_size=2))
    many = factor_fisher(material(split, moved(), rows, scope, batch_size=2))  # 4 rows a batch: one per device
    assert relative_error(leaves(many), leaves(one)) < 1e-6


def test_at_the_start_the_fisher_sees_only_b(params, rows):
    fisher = FACTOR_EWC.prepare(material(params, start(), rows))["fisher"]
    assert all(not np.any(factors["a"]) for factors in fisher.values())
    assert all(np.any(factors["b"]) for factors in fisher.values())


def test_factor_fisher_decays_and_its_anchor_moves(params, rows, exact):
    state = FACTOR_EWC.prepare(material(params, start(), rows))
    after = FACTOR_EWC.next_task(material(params, moved(), rows[:2], decay=0.25), state, ())
    expected = 0.25 * leaves(state["fisher"]) + np.mean([leaves(squares) for squares in exact[:2]], axis=0)
    assert relative_error(leaves(after["fisher"]), expected) < 1e-5
    assert value(FACTOR_EWC, moved(), after) == 0
    expected = np.sum(leaves(after["fisher"]) * (leaves(moved(1)) - leaves(moved())) ** 2)
    np.testing.assert_allclose(value(FACTOR_EWC, moved(1), after), expected, rtol=1e-5)


@pytest.mark.parametrize("regularizer", ALL)
def test_penalty_is_zero_where_a_task_starts_with_zero_gradient(params, rows, regularizer):
    here = material(params, start(), rows)
    state = regularizer.prepare(here)
    assert value(regularizer, start(), state) == 0
    if regularizer.observe is not None:
        assert value(regularizer, moved(), state) == 0, "nothing is known before a first task"
        state = regularizer.next_task(
            material(params, moved(), rows), state, walk(regularizer, list(steps(0, 20, start())))
        )
        here = material(params, moved(), rows)
    assert value(regularizer, here.adapters, state) == 0
    assert value(regularizer, moved(5), state) > 0
    slope = jax.grad(lambda adapters: regularizer.penalty(SCOPE, adapters, state))(here.adapters)
    assert not np.any(leaves(slope))


@pytest.mark.parametrize("regularizer", ALL)
def test_gradient_by_finite_differences(params, rows, regularizer):
    state = regularizer.prepare(material(params, start(), rows))
    if regularizer.observe is not None:
        path = walk(regularizer, list(steps(0, 20, start())))
        state = regularizer.next_task(material(params, moved(), rows), state, path)
    adapters = moved(4)
    slope = jax.grad(lambda adapters: regularizer.penalty(SCOPE, adapters, state))(adapters)
    direction = jax.tree.map(lambda x, y: x - y, moved(5), adapters)

    def along(t: float) -> float:
        return value(regularizer, jax.tree.map(lambda x, d: x + t * d, adapters, direction), state)

    # A quadratic function's central difference is exact, so the step may be large and rounding small.
    np.testing.assert_allclose((along(0.5) - along(-0.5)), leaves(slope) @ leaves(direction), rtol=1e-5)


@pytest.mark.parametrize("regularizer", ALL)
def test_padded_ranks_weigh_nothing(params, rows, regularizer):
    state = regularizer.prepare(material(params, moved(), rows))
    if regularizer.observe is not None:
        path = walk(regularizer, list(steps(0, 20, moved())))
        state = regularizer.next_task(material(params, moved(2), rows), state, path)
    importance = state["fisher" if regularizer is FACTOR_EWC else "importance"]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    for target in SPEC:
        for layer, rank in enumerate(target.ranks):
            assert not np.any(importance[target.path]["a"][layer, rank:])
            assert not np.any(importance[target.path]["b"][layer, :, rank:])
    assert np.any(leaves(importance))


@pytest.mark.parametrize("regularizer", ALL)
def test_state_and_path_outlive_donated_adapters(params, rows, regularizer):
    """The training step gives its adapters' buffers away."""
    adapters = moved()
    state, path = regularizer.prepare(material(params, adapters, rows)), regularizer.begin(adapters)
    later = regularizer.next_task(material(params, adapters, rows), state, path)
    for leaf in jax.tree.leaves(adapters):
        leaf.delete()
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((state, path, later)))


@pytest.mark.parametrize("regularizer", PATHS)
def test_state_keeps_its_shapes_from_task_to_task(params, rows, regularizer):
    """So the compiled step serves all tasks."""
    state = regularizer.prepare(material(params, start(), rows))
    later = regularizer.next_task(material(params, moved(), rows), state, walk(regularizer, list(steps(0, 3, start()))))
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (state, later)]
    assert shapes[0] == shapes[1]


# --- synaptic intelligence


def test_omega_of_a_fine_path_is_the_loss_that_was_saved():
    """Along a continuous path the sum of -g dphi is exactly the fall of the loss (Zenke et al. 2017, eq. 3)."""
    goal = moved(3)

    def loss(adapters: Adapters) -> jax.Array:
        return sum(jnp.sum((1 + k) * jnp.square(x - y)) for k, (x, y) in enumerate(_pairs(adapters, goal)))

    @jax.jit
    def step(carry: Any, _: None) -> tuple[Any, None]:
        adapters, optimizer, path = carry
        gradient = jax.grad(loss)(adapters)
        updates, optimizer = transformation.update(gradient, optimizer)
        after = optax.apply_updates(adapters, updates)
        return (after, optimizer, SI.observe(path, Update(adapters, after, gradient))), None

    transformation = optax.adam(1e-4)
    adapters = start()
    carry = (adapters, transformation.init(adapters), SI.begin(adapters))
    (end, _, path), _ = jax.lax.scan(step, carry, length=3000)
    saved = float(loss(adapters) - loss(end))
    assert saved > 0.5 * float(loss(adapters)), "the path is to go somewhere"
    np.testing.assert_allclose(leaves(path["omega"]).sum(), saved, rtol=2e-3)


def test_importance_of_two_tasks_by_hand(params, rows):
    state, total = SI.prepare(material(params, start(), rows)), 0.0
    at = start()
    for task, number in enumerate((4, 3)):
        updates = list(steps(task, number, at))
        at = updates[-1].after
        state = SI.next_task(material(params, at, rows, decay=0.5, damping=0.01), state, walk(SI, updates))
        omega = sum(-leaves(u.gradient) * (leaves(u.after) - leaves(u.before)) for u in updates)
        change = leaves(at) - leaves(updates[0].before)
        total = np.maximum(0.5 * total + omega / (change**2 + 0.01), 0)
        np.testing.assert_allclose(leaves(state["importance"]), total, rtol=1e-4, atol=1e-5 * total.max())
    assert np.any(total == 0), "some entry made the loss rise, so the cut at zero was seen"
    expected = np.sum(total * (leaves(moved(1)) - leaves(at)) ** 2)
    np.testing.assert_allclose(value(SI, moved(1), state), expected, rtol=1e-5)


# --- Riemannian walk


def walk_by_hand(updates: list[Update]) -> tuple[np.ndarray, np.ndarray]:
    """(F~, s), one entry of the lists per step."""
    g = [leaves(update.gradient) for update in updates]
    at = [leaves(updates[0].before), *(leaves(update.after) for update in updates)]
    fisher, score = g[0] ** 2, np.zeros_like(g[0])
    for first in range(0, len(updates) - 9, 10):
        drop = sum(-g[k] * (at[k + 1] - at[k]) for k in range(first, first + 10))
        score = score + np.maximum(drop, 0) / (0.5 * fisher * (at[first + 10] - at[first]) ** 2 + 1e-3)
        fisher = 0.9 * np.mean(np.square(g[first : first + 10]), axis=0) + 0.1 * fisher
    return fisher, score


@pytest.mark.parametrize("number", [3, 10, 37])
def test_rwalk_path_by_hand(number):
    updates = list(steps(1, number, moved()))
    path, (fisher, score) = walk(RWALK, updates), walk_by_hand(updates)
    np.testing.assert_allclose(leaves(path["fisher"]), fisher, rtol=1e-5)
    np.testing.assert_allclose(leaves(path["score"]), score, rtol=1e-3, atol=1e-5 * max(score.max(), 1))
    assert np.any(score) == (number >= INTERVAL)


def test_rwalk_importance_of_two_tasks_by_hand(params, rows):
    state, at, averaged = RWALK.prepare(material(params, start(), rows)), start(), None
    for task in range(2):
        updates = list(steps(task, 20, at))
        at = updates[-1].after
        state = RWALK.next_task(material(params, at, rows), state, walk(RWALK, updates))
        fisher, score = walk_by_hand(updates)
        averaged = score if averaged is None else (averaged + score) / 2
        expected = fisher / fisher.max() + averaged / averaged.max()
        np.testing.assert_allclose(leaves(state["importance"]), expected, rtol=1e-3, atol=1e-5)
    expected = np.sum(expected * (leaves(moved(1)) - leaves(at)) ** 2)
    np.testing.assert_allclose(value(RWALK, moved(1), state), expected, rtol=1e-3)


def _pairs(one: Adapters, other: Adapters) -> Any:
    return zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
