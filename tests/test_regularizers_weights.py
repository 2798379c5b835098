"""Regularizers of the weight change: what they measure against torch, what they add against matrices written out.

The sums of squares themselves, their kernels and their parts on a mesh: test_regularizers.py.
"""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error

from e2wm_jax.config import MODELS, LoraConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.storage import decode, encode
from e2wm_jax.kernels import square_sum
from e2wm_jax.lora import Adapters, AdapterSpec, Scope, TargetSpec, adapter_spec, delta, difference, initialize
from e2wm_jax.models import decoder
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.quantized import Int8Matrix
from e2wm_jax.models.spread import place
from e2wm_jax.models.weights import Model, flatten, load, unflatten
from e2wm_jax.regularizers import ewc, kfac, mas, online_ewc, row_column
from e2wm_jax.regularizers.catalogue import REGULARIZERS, regularizer
from e2wm_jax.regularizers.measure import documents, task_fisher
from e2wm_jax.regularizers.regularizer import Material, PenaltyOptions, State
from e2wm_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = replace(MODELS["tiny"], hidden_size=32, intermediate_size=48, vocab_size=29, head_dim=8)
# Layer 0 of q is padded from rank 2 to 4, layer 1 of v has no adapter, and every scale is another.
SPEC: AdapterSpec = (
    TargetSpec("layers.q", ranks=(2, 4), alphas=(3.0, 20.0)),
    TargetSpec("layers.v", ranks=(3, 0), alphas=(6.0, 0.0), rslora=True),
    TargetSpec("layers.down", ranks=(2, 2), alphas=(1.0, 2.0)),
)
PATHS = tuple(f"{target.path}.weight" for target in SPEC)
HELD = ("l2", "ewc", "online-ewc", "mas", "row-column", "kfac")
DECAY = 0.5


def moved(adapters: Adapters, seed: int, spec: AdapterSpec = SPEC, size: float = 0.1) -> Adapters:
    """Adapters elsewhere, padding still zero."""
    rng, found = np.random.default_rng(seed), {}
    for target in spec:
        active = np.arange(target.rank) < np.asarray(target.ranks)[:, None]
        factors = adapters[target.path]
        steps = {name: rng.normal(0, size, factors[name].shape) for name in ("a", "b")}
        found[target.path] = {
            "a": factors["a"] + jnp.asarray(steps["a"] * active[:, :, None], jnp.float32),
            "b": factors["b"] + jnp.asarray(steps["b"] * active[:, None, :], jnp.float32),
        }
    return found


START = initialize(CONFIG, SPEC, jax.random.key(0))


SCOPE = Scope(CONFIG, SPEC)


@cache
def value_and_gradient(name: str, scope: Scope = SCOPE) -> Callable[[Adapters, State], tuple[jax.Array, Adapters]]:
    """The penalty, compiled as in a step."""
    return jax.jit(jax.value_and_grad(partial(REGULARIZERS[name].penalty, scope)))


def value(name: str, adapters: Adapters, state: State) -> float:
    return float(value_and_gradient(name)(adapters, state)[0])


def material(adapters: Adapters, rows: Sequence[Row] = (), fisher: Any = None) -> Material:
    return Material(SCOPE, {}, adapters, fisher, rows, PenaltyOptions(decay=DECAY, batch_size=2, max_length=24))


def changes(now: Any, then: Adapters | None) -> dict[str, np.ndarray]:
    """s B A - s B* A* of every stack in float64, by path of the weight."""

    def change(adapters: Any, target: TargetSpec) -> np.ndarray:
        a, b = (np.asarray(adapters[target.path][name], np.float64) for name in ("a", "b"))
        return target.scales.astype(np.float64)[:, None, None] * (b @ a)

    return {
        f"{target.path}.weight": change(now, target) - (0 if then is None else change(then, target)) for target in SPEC
    }


# ------------------------------------------------------------------------------------------------------- the difference


def test_the_difference_of_two_adapters_is_an_adapter_of_twice_the_rank():
    then = moved(START, 1)
    now = moved(then, 2)
    found = difference(now, then)
    for target in SPEC:
        assert found[target.path]["a"].shape[1] == found[target.path]["b"].shape[2] == 2 * target.rank
        expected = changes(now, then)[f"{target.path}.weight"]
        np.testing.assert_allclose(delta(found, target), expected, rtol=1e-5, atol=1e-6)
    assert difference(now, None) is now


def test_a_small_difference_keeps_its_digits():
    """The two products agree in their first five digits, the last two of float32 are all that their difference has."""
    then = moved(START, 1)
    now = moved(then, 2, size=1e-6)
    exact = changes(now, then)
    for target in SPEC:
        path = f"{target.path}.weight"
        assert relative_error(delta(difference(now, then), target), exact[path]) < 1e-5
        plain = delta(now, target) - delta(then, target)
        assert relative_error(plain, exact[path]) > 1e-3
        assert not np.any(delta(difference(then, then), target))


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"online-emc: .* perhaps online-ewc\? known: none, l2, ewc"):
        regularizer("online-emc")
    assert regularizer("kfac") is REGULARIZERS["kfac"]


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_entry_says_what_it_is(name):
    found = REGULARIZERS[name]
    assert found.formula
    assert found.reference
    assert found.penalty is None or found.token_penalty is None


# ------------------------------------------------------------------------------- penalties against matrices written out


def random_measure(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Something like what the regularizer measures, without a model."""
    table, layers = weight_table(CONFIG), CONFIG.num_layers
    shapes = {path: table[path].shape for path in PATHS}
    if name != "kfac":
        return {p: jnp.asarray(rng.gamma(0.3, size=(layers, *shape)), jnp.float32) for p, shape in shapes.items()}

    def factor(size: int) -> jax.Array:
        half = rng.normal(size=(layers, size, 5))
        return jnp.asarray(half @ half.swapaxes(1, 2), jnp.float32)

    return {path: {"outputs": factor(n), "inputs": factor(d)} for path, (n, d) in shapes.items()}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Measurements are drawn at random; by regularizer those drawn so far, in order."""
    rng, found = np.random.default_rng(0), {name: [] for name in HELD}

    def draw(name: str, *_: Any) -> Any:
        found[name].append(random_measure(name, rng))
        return found[name][-1]

    for name, module, function in (
        ("ewc", ewc, "task_fisher"),
        ("online-ewc", online_ewc, "task_fisher"),
        ("row-column", row_column, "task_fisher"),
        ("mas", mas, "importance"),
        ("kfac", kfac, "factors"),
    ):
        monkeypatch.setattr(module, function, partial(draw, name))
    for module in (mas, kfac):
        monkeypatch.setattr(module, "adapted", lambda material: material.params)
    return found


def quadratic_form(name: str, measures: Sequence[Any], change: dict[str, np.ndarray]) -> float:
    """The penalty of one anchor with all measures so far, the last with factor 1, from whole matrices in float64."""
    factors = [DECAY ** (len(measures) - 1 - index) for index in range(len(measures))]
    total = 0.0

    def summed(pick: Callable[[Any], Any]) -> np.ndarray:
        return sum(f * np.asarray(pick(m), np.float64) for f, m in zip(factors, measures, strict=True))

    for path, stack in change.items():
        for layer, d in enumerate(stack):
            if name == "l2":
                total += np.sum(d**2)
            elif name == "kfac":
                g = summed(lambda m, at=(path, layer): m[at[0]]["outputs"][at[1]])
                q = summed(lambda m, at=(path, layer): m[at[0]]["inputs"][at[1]]) / sum(factors)
                total += np.trace(g @ d @ q @ d.T)
            else:
                f = summed(lambda m, at=(path, layer): m[at[0]][at[1]])
                if name == "row-column":
                    f = np.outer(f.sum(1), f.sum(0)) / f.sum()
                total += np.sum(f * d**2)
    return float(total)


def by_hand(name: str, measures: Sequence[Any], anchors: Sequence[Adapters | None], now: Any) -> float:
    """The penalty after as many tasks as there are anchors, the first of which is None."""
    if name == "ewc":
        terms = zip(measures, anchors, strict=True)
        return sum(quadratic_form("ewc", [fisher], changes(now, anchor)) for fisher, anchor in terms)
    return quadratic_form(name, measures, changes(now, anchors[-1]))


def after(name: str, tasks: int, measured: dict[str, list[Any]]) -> tuple[State, list[Any], list[Adapters | None]]:
    """State, measures and anchors after so many finished tasks, each of which moved the adapters."""
    fisher = random_measure("ewc", np.random.default_rng(7))
    rows = [Row(np.zeros(3, np.int32), 1)]
    state = REGULARIZERS[name].prepare(material(START, rows, fisher))
    adapters: Adapters = START
    anchors: list[Adapters | None] = [None]
    for task in range(tasks):
        adapters = moved(adapters, 10 + task)
        anchors.append(adapters)
        state = REGULARIZERS[name].next_task(material(adapters, rows, fisher), state, ())
    measures = ([] if REGULARIZERS[name].reads != "fisher" else [fisher]) + measured[name]
    return state, measures, anchors


@pytest.mark.parametrize("tasks", [0, 2])
@pytest.mark.parametrize("name", HELD)
def test_penalty_and_gradient_equal_whole_matrices(name, tasks, measured):
    state, measures, anchors = after(name, tasks, measured)
    now = moved(anchors[-1] or START, 3)
    found, gradient = value_and_gradient(name)(now, state)
    np.testing.assert_allclose(found, by_hand(name, measures, anchors, now), rtol=2e-5)

    rng = np.random.default_rng(4)
    for target in SPEC:
        for factor in ("a", "b"):
            direction = rng.normal(size=now[target.path][factor].shape)

            def along(step: float, path: str = target.path, factor: str = factor, way: np.ndarray = direction) -> float:
                there = jax.tree.map(lambda x: np.asarray(x, np.float64), now)
                there[path][factor] = there[path][factor] + step * way
                return by_hand(name, measures, anchors, there)

            # Of a polynomial of degree 4; in float64 what the central difference leaves out is 1e-8.
            slope = (along(1e-4) - along(-1e-4)) / 2e-4
            pull = float(np.sum(np.asarray(gradient[target.path][factor], np.float64) * direction))
            length = float(np.linalg.norm(gradient[target.path][factor]) * np.linalg.norm(direction))
            np.testing.assert_allclose(pull, slope, rtol=1e-4, atol=1e-5 * length)


@pytest.mark.parametrize("name", HELD)
def test_penalty_is_zero_at_the_start_of_every_task(name, measured):
    for tasks in (0, 2):
        state, _, anchors = after(name, tasks, measured)
        here = anchors[-1] or START
        if name == "ewc" and tasks:  # whose earlier terms have their own anchors
            assert value(name, here, {"terms": state["terms"][-1:]}) == 0
            assert value(name, here, state) == value(name, here, {"terms": state["terms"][:-1]}) > 0
        else:
            assert value(name, here, state) == 0


@pytest.mark.parametrize("name", [name for name in HELD if name != "l2"])
def test_without_a_fisher_or_text_the_first_task_is_free(name, measured):
    now = moved(START, 3)
    state = REGULARIZERS[name].prepare(material(START))
    assert not measured[name]
    assert value(name, now, state) == 0
    anchor = moved(START, 1)
    state = REGULARIZERS[name].next_task(material(anchor), state, ())
    np.testing.assert_allclose(
        value(name, now, state), quadratic_form(name, measured[name], changes(now, anchor)), rtol=2e-5
    )


def test_in_a_single_task_online_ewc_is_ewc(measured):
    now = moved(START, 3)
    values = [value(name, now, after(name, 0, measured)[0]) for name in ("ewc", "online-ewc")]
    assert values[0] == values[1] > 0


def test_row_column_is_ewc_where_every_f_has_rank_one():
    rng, table = np.random.default_rng(0), weight_table(CONFIG)
    shapes = {path: table[path].shape for path in PATHS}
    fisher = {
        path: jnp.asarray(rng.gamma(1, size=(2, n, 1)) * rng.gamma(1, size=(2, 1, d)), jnp.float32)
        for path, (n, d) in shapes.items()
    }
    fisher["layers.v.weight"] = jnp.zeros_like(fisher["layers.v.weight"])  # 0 / 0 must not come of it
    now, before = moved(START, 3), material(START, (), fisher)
    values = [value(name, now, REGULARIZERS[name].prepare(before)) for name in ("ewc", "row-column")]
    np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "uint8"])
@pytest.mark.parametrize("name", ["ewc", "online-ewc", "row-column"])
def test_a_stored_fisher_is_read_in_its_type(name, dtype, measured):
    stored = {path: encode(value, dtype) for path, value in random_measure("ewc", np.random.default_rng(7)).items()}
    exact = {path: decode(value) for path, value in stored.items()}
    now, anchor = moved(START, 3), moved(START, 1)
    state = REGULARIZERS[name].prepare(material(START, (), stored))
    np.testing.assert_allclose(value(name, now, state), by_hand(name, [exact], [None], now), rtol=2e-5)
    if name == "ewc":
        assert state["terms"][0]["fisher"][PATHS[0]].shape == exact[PATHS[0]].shape
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} != {np.dtype(np.float32)}  # not decoded
    state = REGULARIZERS[name].next_task(material(anchor, (), stored), state, ())
    expected = by_hand(name, [exact, *measured[name]], [None, anchor], now)
    np.testing.assert_allclose(value(name, now, state), expected, rtol=2e-5)


@pytest.mark.parametrize("name", HELD)
def test_an_anchor_outlives_the_adapters_that_a_step_gives_away(name, measured):
    adapters = moved(START, 1)
    state = REGULARIZERS[name].next_task(material(adapters), REGULARIZERS[name].prepare(material(START)), ())
    step = jax.jit(lambda adapters: jax.tree.map(lambda x: x + 1, adapters), donate_argnums=0)
    there = step(adapters)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(adapters))
    assert value(name, there, state) > 0


# -------------------------------------------------------------------------------------------- measurements, by torch

MODULES = {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "down": "mlp.down_proj"}
TORCH_SPEC = adapter_spec(MODELS["tiny"], LoraConfig(rank=2, alpha=3.0, targets=",".join(MODULES[n] for n in MODULES)))


def random_rows(count: int = 5, vocab: int = 29, seed: int = 0) -> list[Row]:
    """Of several lengths; most train only the tokens behind a prompt."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 14, count)
    return [Row(rng.integers(0, vocab, n).astype(np.int32), int(rng.integers(1, n - 1)), weight=3.0) for n in lengths]


@pytest.fixture(scope="module")
def pair(save_llama: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any]:
    """A two-layer LLaMA with two query heads per key head: ours, and torch's in float64."""
    folder = tmp_path_factory.mktemp("weights")
    theirs = save_llama(folder, vocab_size=29)
    return load(str(folder)), theirs.double()


def by_torch(pair: tuple[Model, Any], adapters: Adapters, rows: Sequence[Row]) -> dict[str, dict[str, np.ndarray]]:
    """fisher, importance, outputs and inputs of every adapted matrix, document by document through whole scores."""
    import torch

    model = deepcopy(pair[1])
    layers = pair[0].config.num_layers
    taps: dict[str, dict[str, Any]] = {}
    sums: dict[tuple[str, int], dict[str, Any]] = {}
    modules = {}
    for target in TORCH_SPEC:
        change = np.asarray(delta(adapters, target), np.float64)
        for layer in range(layers):
            module = model.get_submodule(f"model.layers.{layer}.{MODULES[target.path.split('.')[1]]}")
            with torch.no_grad():
                module.weight += torch.from_numpy(change[layer])
            modules[target.path, layer] = module

            def tap(module: Any, inputs: Any, output: Any, key: Any = (target.path, layer)) -> None:
                output.retain_grad()
                taps[key] = {"x": inputs[0][0], "y": output}

            module.register_forward_hook(tap)
            n, d = module.weight.shape
            zeros = {"fisher": (n, d), "importance": (n, d), "outputs": (n, n), "inputs": (d, d), "gradient": (n, d)}
            sums[target.path, layer] = {name: torch.zeros(s, dtype=torch.float64) for name, s in zeros.items()}

    tokens = 0
    for row in rows:
        ids = torch.from_numpy(row.ids).long()
        predicting = slice(row.first_target - 1, len(ids) - 1)
        scores = model(ids[None]).logits[0]
        model.zero_grad()
        torch.nn.functional.cross_entropy(scores[predicting], ids[row.first_target :]).backward()
        tokens += len(ids) - 1
        for key, total in sums.items():
            g, x = taps[key]["y"].grad[0], taps[key]["x"].detach()[:-1]
            total["fisher"] += modules[key].weight.grad ** 2
            total["gradient"] += modules[key].weight.grad
            total["outputs"] += sum(torch.outer(one, one) for one in g)
            total["inputs"] += sum(torch.outer(one, one) for one in x)
        model.zero_grad()
        scores = model(ids[None]).logits[0]
        (scores[predicting] ** 2).sum(dim=1).mean().backward()
        for key, total in sums.items():
            total["importance"] += modules[key].weight.grad.abs()

    counts = {"inputs": tokens}
    return {
        name: {
            f"{target.path}.weight": np.stack(
                [sums[target.path, layer][name].numpy() / counts.get(name, len(rows)) for layer in range(layers)]
            )
            for target in TORCH_SPEC
        }
        for name in ("fisher", "importance", "outputs", "inputs", "gradient")
    }


def of_model(pair: tuple[Model, Any], adapters: Adapters, rows: Sequence[Row]) -> Material:
    model = pair[0]
    options = PenaltyOptions(decay=DECAY, batch_size=2, max_length=24)
    return Material(Scope(model.config, TORCH_SPEC), model.params, adapters, None, rows, options)


def torch_adapters(model: Model, seed: int = 1) -> Adapters:
    return moved(initialize(model.config, TORCH_SPEC, jax.random.key(0)), seed, TORCH_SPEC, 0.2)


@pytest.fixture
def one_fisher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three regularizers ask for the same Fisher; it is compiled once for each scope."""
    found: dict[Scope, Any] = {}

    def remembered(material: Material) -> Any:
        if material.scope not in found:
            found[material.scope] = task_fisher(material)
        return found[material.scope]

    for module in (ewc, online_ewc, row_column):
        monkeypatch.setattr(module, "task_fisher", remembered)
    monkeypatch.setattr(square_sum, "RUNGS", 1)  # less to compile; tests/test_kernel_square_sum.py has them all


@pytest.mark.usefixtures("one_fisher")
def test_what_is_measured_after_a_task_equals_torch(pair):
    """Each document by itself, all scores, in float64, at the weights with the adapters merged in."""
    adapters, rows = torch_adapters(pair[0]), random_rows()
    expected = by_torch(pair, adapters, rows)
    done = of_model(pair, adapters, rows)
    states = {
        name: REGULARIZERS[name].next_task(done, REGULARIZERS[name].prepare(material(START)), ()) for name in HELD
    }
    for target in TORCH_SPEC:
        path = f"{target.path}.weight"
        fisher = expected["fisher"][path]
        assert relative_error(states["ewc"]["terms"][0]["fisher"][path], fisher) < 1e-4
        assert relative_error(states["online-ewc"]["fisher"][path], fisher) < 1e-4
        assert relative_error(states["row-column"]["sums"][path]["rows"], fisher.sum(2)) < 1e-4
        assert relative_error(states["row-column"]["sums"][path]["columns"], fisher.sum(1)) < 1e-4
        assert relative_error(states["mas"]["importance"][path], expected["importance"][path]) < 1e-4
        for name in ("outputs", "inputs"):
            assert relative_error(states["kfac"]["sums"]["factors"][path][name], expected[name][path]) < 1e-4, name
        np.testing.assert_array_equal(states["l2"]["anchor"][target.path]["b"], adapters[target.path]["b"])


def test_before_the_first_task_it_is_the_pretrained_model_that_is_measured(pair):
    """Also where training goes on from an adapter: the change is held from the pretrained weights on."""
    rows, still = random_rows(), initialize(pair[0].config, TORCH_SPEC, jax.random.key(0))
    expected = by_torch(pair, still, rows)
    found = {
        name: REGULARIZERS[name].prepare(of_model(pair, torch_adapters(pair[0]), rows)) for name in ("mas", "kfac")
    }
    for target in TORCH_SPEC:
        path = f"{target.path}.weight"
        assert relative_error(found["mas"]["importance"][path], expected["importance"][path]) < 1e-4
        assert relative_error(found["kfac"]["sums"]["factors"][path]["outputs"], expected["outputs"][path]) < 1e-4


def test_kfac_is_the_whole_fisher_where_one_token_matters(pair):
    """Of one text of two tokens the first alone has a gradient: F = vec(g x^T) vec(g x^T)^T, with all its entries."""
    rows = [Row(np.array([3, 17], np.int32), 1)]
    still = initialize(pair[0].config, TORCH_SPEC, jax.random.key(0))
    gradient = by_torch(pair, still, rows)["gradient"]
    now = torch_adapters(pair[0])
    expected = 0.0
    for target in TORCH_SPEC:
        change = np.asarray(delta(now, target), np.float64)
        for layer in range(pair[0].config.num_layers):
            g = gradient[f"{target.path}.weight"][layer].ravel()
            expected += change[layer].ravel() @ np.outer(g, g) @ change[layer].ravel()
    done = of_model(pair, still, rows)
    found, _ = value_and_gradient("kfac", done.scope)(now, kfac.prepare(done))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_kfac_of_a_quantized_model_is_that_of_the_weights_it_stands_for():
    rng, rows = np.random.default_rng(0), random_rows(2)
    flat = flatten(decoder.initialize(CONFIG, jax.random.key(0)))
    written = dict(flat)
    for path in PATHS:
        codes = jnp.asarray(rng.integers(-127, 128, flat[path].shape), jnp.int8)
        flat[path] = Int8Matrix(codes, jnp.full(codes.shape[:-1], 0.003))
        written[path] = flat[path].dense()
    found, expected = (
        kfac.factors(SCOPE, params, documents(Material(SCOPE, params, START, None, rows, PenaltyOptions())))
        for params in map(unflatten, (flat, written))
    )
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert relative_error(one, other) < 1e-5


def test_the_norm_of_scores_with_a_bias_equals_the_scores():
    rng = np.random.default_rng(0)
    weight, bias, hidden = rng.normal(size=(50, 8)), rng.normal(size=50), rng.normal(size=(3, 4, 8))
    head = {"weight": jnp.asarray(weight, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    found = mas.squared_norm(mas.head_products(head), jnp.asarray(hidden, jnp.float32))
    np.testing.assert_allclose(found, np.sum((hidden @ weight.T + bias) ** 2, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("name", ["mas", "kfac"])
def test_no_array_of_tokens_times_vocabulary(name):
    """Of a vocabulary above the chunk of the loss's (`fisher.head`), only rows of weights have its size."""
    config = replace(CONFIG, vocab_size=4999)
    scope, params = Scope(config, SPEC), decoder.initialize(config, jax.random.key(0))
    text = [Row(np.arange(20, dtype=np.int32), 1)] * 2
    (batch,) = documents(Material(scope, params, START, None, text, PenaltyOptions(batch_size=2, max_length=24)))
    if name == "mas":
        totals = {path: jnp.zeros((2, *weight_table(config)[path].shape)) for path in PATHS}
        lowered = mas._add.lower(scope, totals, params, mas.head_products(params["embed"]), batch)
    else:
        totals = random_measure("kfac", np.random.default_rng(0))
        lowered = kfac._add.lower(scope, totals, params, batch)
    shapes = {
        tuple(map(int, shape.split("x")[:-1])) for shape in re.findall(r"tensor<((?:\d+x)+)[a-z]", lowered.as_text())
    }
    large = {shape for shape in shapes if 4999 in shape}
    assert large == {(4999, config.hidden_size)}


# ----------------------------------------------------------------------------------------------------------- on a mesh


@pytest.mark.usefixtures("one_fisher")
@pytest.mark.skipif(jax.device_count() < 8, reason=f"needs 8 devices, there are {jax.device_count()}")
def test_states_and_penalties_on_a_mesh_equal_those_on_one_device():
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    config = replace(CONFIG, vocab_size=32, initializer_range=0.1)
    spec = tuple(target for target in SPEC if target.path != "layers.v")
    params = decoder.initialize(config, jax.random.key(0))
    start = {target.path: START[target.path] for target in spec}
    adapters = moved(start, 1, spec)
    now = moved(adapters, 2, spec)
    rows = random_rows(7)  # of the eight places of two batches one stays empty
    options = PenaltyOptions(decay=DECAY, batch_size=3, max_length=24)
    fisher = random_measure("ewc", np.random.default_rng(3))
    for name in ("ewc", "online-ewc", "mas", "row-column", "kfac"):
        found = []
        for scope, weights in ((Scope(config, spec), params), (Scope(config, spec, mesh), place(config, params, mesh))):
            before = Material(scope, weights, start, fisher, (), options)
            done = Material(scope, weights, adapters, fisher, rows, options)
            state = REGULARIZERS[name].next_task(done, REGULARIZERS[name].prepare(before), ())
            found.append((value_and_gradient(name, scope)(now, state), state))
        for one, several in zip(*map(jax.tree.leaves, found), strict=True):
            assert relative_error(several, one) < 1e-5, name
        large = [
            leaf for leaf in jax.tree.leaves(found[1][1]) if leaf.ndim == 3 and leaf.shape[1] >= 16 <= leaf.shape[2]
        ]
        assert bool(large) == (name != "row-column")
        assert all(leaf.addressable_shards[0].data.size == leaf.size / 8 for leaf in large), name
