"""Adapters: the arithmetic by hand and by autodiff, then PEFT in both directions."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from e2wm_jax import lora
from e2wm_jax.config import MODELS, LoraConfig, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.lora import Adapters, AdapterSpec, LoraWeight, TargetSpec
from e2wm_jax.models import decoder
from e2wm_jax.models.quantized import dense
from e2wm_jax.models.weights import flatten

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = replace(MODELS["tiny"], num_layers=3)
LOW = TargetSpec("layers.q", ranks=(2, 0, 5), alphas=(4.0, 0.0, 3.0))
FULL = TargetSpec("layers.down", ranks=(3, 3, 3), alphas=(6.0, 6.0, 6.0))


@partial(jax.jit, static_argnames=("config", "spec"))
def scores(config: ModelConfig, params: Any, adapters: Adapters, spec: AdapterSpec, ids: Any) -> jax.Array:
    """Output scores [B, T, V] with the adapters attached."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    params = lora.attach(params, adapters, spec)
    return decoder.logits(config, params, decoder.hidden_states(config, params, ids, positions, jnp.zeros_like(ids)))


def random_ids(vocab: int, length: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (2, length), dtype=np.int32)


def random_adapters(config: ModelConfig, spec: AdapterSpec, seed: int = 1) -> Adapters:
    """Adapters whose B is not zero; padded ranks stay zero."""
    adapters = lora.initialize(config, spec, jax.random.key(seed))
    for target in spec:
        b = 0.1 * jax.random.normal(jax.random.key(seed + 1), adapters[target.path]["b"].shape)
        used = np.arange(target.rank) < np.asarray(target.ranks)[:, None]
        adapters[target.path]["b"] = b * used[:, None, :]
    return adapters


@pytest.fixture(scope="module")
def params() -> Any:
    return decoder.initialize(CONFIG, jax.random.key(0))


# ---------------------------------------------------------------------------------------------------------------- spec


def test_default_targets_are_q_and_v_of_every_layer() -> None:
    spec = lora.adapter_spec(CONFIG, LoraConfig())
    assert [(t.path, t.ranks, t.alphas) for t in spec] == [
        ("layers.q", (8, 8, 8), (32.0, 32.0, 32.0)),
        ("layers.v", (8, 8, 8), (32.0, 32.0, 32.0)),
    ]
    np.testing.assert_array_equal(spec[0].scales, np.float32([4, 4, 4]))


def test_every_linear_map_can_be_a_target() -> None:
    spec = lora.adapter_spec(CONFIG, LoraConfig(targets="all-linear"))
    assert [t.path for t in spec] == [f"layers.{name}" for name in ("q", "k", "v", "o", "gate", "up", "down")]


def test_layers_can_be_chosen_by_the_pattern() -> None:
    spec = lora.adapter_spec(CONFIG, LoraConfig(rank=4, alpha=8, targets=r".*\.layers\.[02]\..*\.(up|k)_proj"))
    assert spec == (
        TargetSpec("layers.k", (4, 0, 4), (8, 0, 8)),
        TargetSpec("layers.up", (4, 0, 4), (8, 0, 8)),
    )
    np.testing.assert_array_equal(spec[0].scales, np.float32([2, 0, 2]))


@pytest.mark.parametrize(
    ("targets", "paths"),
    [
        ("q_proj,v_proj", ("layers.q", "layers.v")),
        ("q_proj v_proj", ("layers.q", "layers.v")),
        ("q_proj, v_proj", ("layers.q", "layers.v")),
        ("down_proj", ("layers.down",)),
        ("self_attn.o_proj,mlp.up_proj", ("layers.o", "layers.up")),
    ],
)
def test_targets_by_name(targets: str, paths: tuple[str, ...]) -> None:
    spec = lora.adapter_spec(CONFIG, LoraConfig(rank=2, alpha=3, targets=targets))
    assert spec == tuple(TargetSpec(path, (2, 2, 2), (3.0, 3.0, 3.0)) for path in paths)


def test_one_layer_by_name() -> None:
    spec = lora.adapter_spec(CONFIG, LoraConfig(rank=2, alpha=3, targets="layers.1.mlp.up_proj,v_proj"))
    assert spec == (TargetSpec("layers.v", (2, 2, 2), (3.0,) * 3), TargetSpec("layers.up", (0, 2, 0), (0.0, 3.0, 0.0)))


def test_ranks_and_alphas_of_their_own() -> None:
    config = LoraConfig(
        rank=4,
        alpha=8,
        targets="q_proj,k_proj",
        rank_pattern="layers.0.self_attn.q_proj=2,layers.[1,2].*k_proj=6,k_proj=5",
        alpha_pattern="(?=k)k_proj=1.5",
    )
    assert lora.adapter_spec(CONFIG, config) == (
        TargetSpec("layers.q", (2, 4, 4), (8.0, 8.0, 8.0)),
        TargetSpec("layers.k", (5, 6, 6), (1.5, 1.5, 1.5)),
    )


def test_rank_stabilized_scale() -> None:
    (target, _) = lora.adapter_spec(CONFIG, LoraConfig(rank=16, alpha=32, rslora=True))
    np.testing.assert_array_equal(target.scales, np.float32([8, 8, 8]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "nothing"}, "--lora.targets 'nothing' matches no linear map"),
        (
            {"targets": "proj"},
            "--lora.targets 'proj' matches no linear map; give a module's name or the end of one, e.g.",
        ),
        ({"targets": "q_proj,v_prj"}, "--lora.targets 'v_prj' matches no linear map"),
        ({"targets": "lm_head"}, "matches no linear map"),
        ({"targets": "q_proj|v_proj"}, "the whole name must match"),
        ({"targets": ".*(q"}, "not a regular expression"),
        ({"targets": ".*q{99999999999}"}, "not a regular expression"),
        ({"rank_pattern": "(?i)q_proj=4"}, "q_proj': not a regular expression"),
        ({"targets": ".*norm"}, "matches no linear map"),
        ({"rank": 0}, "--lora.rank 0: must be at least 1"),
        ({"rank_pattern": "q_proj"}, "--lora.rank-pattern 'q_proj': 'q_proj' is not PATTERN=RANK"),
        ({"rank_pattern": "q_proj=2,v_proj"}, "'v_proj' is not PATTERN=RANK"),
        ({"rank_pattern": "q_proj=0"}, "--lora.rank-pattern 'q_proj=0': RANK must be a whole number, 1 or more"),
        ({"rank_pattern": "q_proj=2.5"}, "RANK must be a whole number"),
        ({"alpha_pattern": "q_proj=nan"}, "--lora.alpha-pattern 'q_proj=nan': ALPHA must be a finite number"),
        ({"alpha_pattern": "(q=2"}, r"--lora.alpha-pattern '\(q': not a regular expression"),
        (
            {"rank_pattern": "up_proj=2"},
            "'up_proj' matches the end of no adapted module, e.g. model.layers.0.self_attn",
        ),
        ({"rank_pattern": "proj=2"}, "'proj' matches the end of no adapted module"),
    ],
)
def test_bad_targets_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lora.adapter_spec(CONFIG, LoraConfig(**settings))


# ---------------------------------------------------------------------------------------------------------- arithmetic


def test_fresh_adapters_are_uniform_a_and_zero_b() -> None:
    adapters = lora.initialize(CONFIG, (LOW, FULL), jax.random.key(0))
    a, b = adapters["layers.down"]["a"], adapters["layers.down"]["b"]
    assert a.shape == (3, 3, 128)
    assert b.shape == (3, 64, 3)
    bound = 128**-0.5
    assert 0.9 * bound < float(jnp.abs(a).max()) <= bound
    assert float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not np.array_equal(a[0], a[1])
    assert not b.any()
    low = np.asarray(adapters["layers.q"]["a"])
    assert [int(np.abs(layer).sum(-1).astype(bool).sum()) for layer in low] == [2, 0, 5]
    again = lora.initialize(CONFIG, (LOW, FULL), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, adapters, again)


def test_fresh_adapters_change_nothing(params: Any) -> None:
    spec, ids = (LOW, FULL), random_ids(256)
    adapters = lora.initialize(CONFIG, spec, jax.random.key(0))
    np.testing.assert_array_equal(scores(CONFIG, params, adapters, spec, ids), scores(CONFIG, params, {}, (), ids))


def test_merged_weights_are_the_adapted_model(params: Any) -> None:
    spec, ids = (LOW, FULL), random_ids(256)
    adapters = random_adapters(CONFIG, spec)
    attached = scores(CONFIG, params, adapters, spec, ids)
    merged = scores(CONFIG, lora.merge(params, adapters, spec), {}, (), ids)
    np.testing.assert_allclose(merged, attached, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(attached - scores(CONFIG, params, {}, (), ids)).max()) > 0.01


def largest_error(ours: Any, expected: Any) -> float:
    """Of the largest weight."""
    found = flatten(ours)
    return max(float(jnp.abs(found[path] - w).max() / jnp.abs(w).max()) for path, w in flatten(expected).items())


def test_unmerging_restores_the_base(params: Any) -> None:
    adapters = random_adapters(CONFIG, (LOW, FULL))
    merged = lora.merge(params, adapters, (LOW, FULL))
    assert largest_error(merged, params) > 0.1
    # Two sums in float32, each rounded by at most half a unit in its last place.
    assert largest_error(lora.unmerge(merged, adapters, (LOW, FULL)), params) < 2 * 2**-23


def test_adapted_weights_written_out_are_merged_weights(params: Any) -> None:
    adapters = random_adapters(CONFIG, (LOW, FULL))
    written = jax.tree.map(
        dense, lora.attach(params, adapters, (LOW, FULL)), is_leaf=lambda w: isinstance(w, LoraWeight)
    )
    assert largest_error(written, lora.merge(params, adapters, (LOW, FULL))) < 1e-6


# ---------------------------------------------------------------------------------------------------- several adapters


def test_several_adapters_add_up(params: Any) -> None:
    """Attached one upon the other, combined to one, and merged one after the other: the same model."""
    specs: list[AdapterSpec] = [
        (LOW, FULL),
        (TargetSpec("layers.q", (3, 1, 0), (2.0, 5.0, 0.0), rslora=True),),
        (FULL,),
    ]
    parts = [(random_adapters(CONFIG, spec, seed), spec) for seed, spec in enumerate(specs)]
    positions = jnp.arange(12)[None].repeat(2, 0)

    @jax.jit
    def run(params: Any) -> jax.Array:
        ids, segments = random_ids(256), jnp.zeros((2, 12), jnp.int32)
        return decoder.logits(CONFIG, params, decoder.hidden_states(CONFIG, params, ids, positions, segments))

    nested = merged = params
    for adapters, spec in parts:
        nested, merged = lora.attach(nested, adapters, spec), lora.merge(merged, adapters, spec)
    expected = run(merged)
    tolerance = 1e-5 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(run(nested), expected, rtol=0, atol=tolerance)
    combined, spec = lora.combine(parts)
    assert spec == (
        TargetSpec("layers.q", (5, 1, 5), (5.0, 1.0, 5.0)),
        TargetSpec("layers.down", (6, 6, 6), (6.0, 6.0, 6.0)),
    )
    np.testing.assert_allclose(run(lora.attach(params, combined, spec)), expected, rtol=0, atol=tolerance)
    assert float(jnp.abs(expected - run(lora.merge(params, *parts[0]))).max()) > 100 * tolerance


def test_weights_of_combined_adapters() -> None:
    parts = [(random_adapters(CONFIG, (spec,), seed), (spec,)) for seed, spec in enumerate((LOW, LOW))]
    combined, (target,) = lora.combine(parts, [0.25, -3.0])
    expected = 0.25 * lora.delta(parts[0][0], LOW) - 3.0 * lora.delta(parts[1][0], LOW)
    np.testing.assert_allclose(lora.delta(combined, target), expected, rtol=1e-5, atol=1e-6)


def test_change_of_a_weight_by_hand(params: Any) -> None:
    adapters = random_adapters(CONFIG, (LOW,))
    change = lora.merge(params, adapters, (LOW,))["layers"]["q"]["weight"] - params["layers"]["q"]["weight"]
    a, b = np.asarray(adapters["layers.q"]["a"]), np.asarray(adapters["layers.q"]["b"])
    np.testing.assert_allclose(change[0], 4 / 2 * b[0, :, :2] @ a[0, :2], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(change[1], np.zeros_like(change[1]))
    np.testing.assert_allclose(change[2], 3 / 5 * b[2] @ a[2], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(lora.delta(adapters, LOW), change, rtol=1e-4, atol=1e-7)


def test_factors_stay_float32_under_a_bfloat16_model(params: Any) -> None:
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    adapters, ids = random_adapters(CONFIG, (FULL,)), random_ids(256)
    out = scores(CONFIG, rounded, adapters, (FULL,), ids)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), scores(CONFIG, params, adapters, (FULL,), ids), atol=0.05)
    merged = lora.merge(rounded, adapters, (FULL,))
    assert {x.dtype for x in flatten(merged).values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 5, 7)])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_written_out_gradient_is_autodiffs(shape: tuple[int, ...], rate: float) -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    x, a, b = (jax.random.normal(k, s) for k, s in zip(keys, (shape, (3, 7), (4, 3)), strict=False))
    keep = jax.random.bernoulli(keys[3], 1 - rate, shape) if rate else None
    scale = jnp.float32(1.7)

    def plain(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        dropped = x if keep is None else jnp.where(keep, x / (1 - rate), 0)
        return scale * (dropped @ a.T) @ b.T

    def ours(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return lora._low_rank(x, a, b, scale, keep, rate)

    np.testing.assert_allclose(ours(x, a, b), plain(x, a, b), rtol=1e-5, atol=1e-6)
    # From one cotangent: through a sine of outputs of size 20, their rounding would be most of a difference.
    cotangent = jax.random.normal(keys[4], (*shape[:-1], 4))
    gradients = [jax.vjp(f, x, a, b)[1](cotangent) for f in (ours, plain)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), *gradients)


def test_gradient_through_the_model_is_that_of_the_merged_weights(params: Any) -> None:
    spec, ids = (LOW, FULL), random_ids(256)
    adapters = random_adapters(CONFIG, spec)

    def attached(adapters: Adapters) -> jax.Array:
        return jnp.sum(jnp.sin(scores(CONFIG, params, adapters, spec, ids)))

    def merged(adapters: Adapters) -> jax.Array:
        return jnp.sum(jnp.sin(scores(CONFIG, lora.merge(params, adapters, spec), {}, (), ids)))

    ours, expected = jax.jit(jax.grad(attached))(adapters), jax.jit(jax.grad(merged))(adapters)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5 * largest), ours, expected)


# ------------------------------------------------------------------------------------------------------------- dropout


def dropping(rate: float, keys: jax.Array | None) -> LoraWeight:
    """An adapted zero matrix whose adapter is the identity: its output is dropout(x)."""
    eye = jnp.eye(50)
    return LoraWeight(jnp.zeros((50, 50)), eye, eye, jnp.float32(1), keys, rate)


def row_keys(seed: int, rows: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), rows)


def test_dropout_drops_its_share_and_scales_the_rest() -> None:
    x = jnp.ones((40, 50, 50))
    y = np.asarray(dropping(0.1, row_keys(0, 40)).matmul(x))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.9], rtol=1e-6)
    assert (y == 0).mean() == pytest.approx(0.1, abs=4 * (0.09 / y.size) ** 0.5)
    shares = (y == 0).mean(axis=(0, 1))  # every input is as likely to be dropped
    assert np.abs(shares - 0.1).max() < 5 * (0.09 / 2000) ** 0.5


def test_dropout_of_a_row_depends_on_its_key_alone() -> None:
    x, keys = jax.random.normal(jax.random.key(9), (4, 6, 50)), row_keys(3, 4)
    whole = dropping(0.5, keys).matmul(x)
    for row in range(4):  # whatever rows lie beside it
        np.testing.assert_array_equal(dropping(0.5, keys[row:]).matmul(x[row:])[0], whole[row])
    assert not np.array_equal(whole, dropping(0.5, row_keys(4, 4)).matmul(x))
    np.testing.assert_array_equal(dropping(0.5, None).matmul(x), x)


def test_dropout_of_an_odd_number_of_inputs() -> None:
    bits = lora._kept(row_keys(0, 64), 0.25, (33, 7))
    assert bits.shape == (64, 33, 7)
    assert float(bits.mean()) == pytest.approx(0.75, abs=0.02)


def test_every_matrix_and_layer_drops_its_own_inputs(params: Any) -> None:
    spec = lora.adapter_spec(CONFIG, LoraConfig())
    adapters = lora.initialize(CONFIG, spec, jax.random.key(0))
    tree = lora.attach(params, adapters, spec, dropout=0.1, dropout_keys=row_keys(5, 3))
    keys = [jax.random.key_data(tree["layers"][name]["weight"].dropout_keys) for name in ("q", "v")]
    assert [part.shape[:2] for part in keys] == [(CONFIG.num_layers, 3)] * 2
    assert len(np.unique(np.concatenate(keys).reshape(-1, keys[0].shape[-1]), axis=0)) == 2 * CONFIG.num_layers * 3
    still = lora.attach(params, adapters, spec, dropout=0.0, dropout_keys=row_keys(5, 3))
    assert still["layers"]["q"]["weight"].dropout_keys is None


# ------------------------------------------------------------------------------------------------------------- padding


def test_padded_ranks_stay_zero_in_training(params: Any) -> None:
    adapters, ids = random_adapters(CONFIG, (LOW,)), random_ids(256)
    optimizer = optax.adamw(0.1, weight_decay=0.01)
    state = optimizer.init(adapters)

    @jax.jit
    def step(adapters: Adapters, state: Any) -> tuple[Adapters, Any]:
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(scores(CONFIG, params, x, (LOW,), ids))))(adapters)
        updates, state = optimizer.update(gradient, state, adapters)
        return optax.apply_updates(adapters, updates), state

    before = jax.tree.map(np.asarray, adapters)["layers.q"]
    for _ in range(3):
        adapters, state = step(adapters, state)
    after = jax.tree.map(np.asarray, adapters)["layers.q"]
    for layer, rank in enumerate(LOW.ranks):
        assert not after["a"][layer, rank:].any()
        assert not after["b"][layer, :, rank:].any()
        assert (after["a"][layer, :rank] != before["a"][layer, :rank]).all()
