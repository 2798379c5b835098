"""The quadratic penalties against sums written out in float64, and what they cost in memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2wm_jax.config import MODELS, LlamaConfig, LoraConfig, ModelConfig
from e2wm_jax.lora import Adapters, AdapterSpec, TargetSpec, adapter_spec, delta, initialize
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.regularizers.quadratic import PENALTIES, Fisher, ewc_penalty, l2_penalty, no_penalty, rowmax127

TINY = MODELS["tiny"]
PLAIN = adapter_spec(TINY, LoraConfig(rank=3, alpha=12.0))
# Layer 0 of q is padded from rank 2 to 4, layer 1 of v has no adapter, and every scale is another.
UNEVEN: AdapterSpec = (
    TargetSpec("layers.q", ranks=(2, 4), alphas=(3.0, 20.0)),
    TargetSpec("layers.v", ranks=(3, 0), alphas=(6.0, 0.0), rslora=True),
)
SPECS = pytest.mark.parametrize("spec", [PLAIN, UNEVEN], ids=["plain", "uneven"])


def moved(spec: AdapterSpec, seed: int = 0) -> Adapters:
    """Adapters off the start, padding still zero."""
    rng = np.random.default_rng(seed)
    adapters = initialize(TINY, spec, jax.random.key(seed))
    for target in spec:
        shape = adapters[target.path]["b"].shape
        active = np.arange(target.rank) < np.asarray(target.ranks)[:, None, None]
        adapters[target.path]["b"] = jnp.asarray(rng.normal(0, 0.1, shape) * active, jnp.float32)
    return adapters


def random_fisher(config: ModelConfig, spec: AdapterSpec, seed: int = 1) -> Fisher:
    rng = np.random.default_rng(seed)
    shapes = {f"{target.path}.weight": weight_table(config)[f"{target.path}.weight"].shape for target in spec}
    return {
        path: jnp.asarray(rng.gamma(0.3, size=(config.num_layers, *shape)), jnp.float32)
        for path, shape in shapes.items()
    }


def by_hand(adapters: Adapters, spec: AdapterSpec, fisher: Fisher | None) -> float:
    """sum F (s B A)^2 over matrices, layer by layer, in float64; F = 1 without `fisher`."""
    total = 0.0
    for target in spec:
        a, b = (np.asarray(adapters[target.path][name], np.float64) for name in ("a", "b"))
        for layer, (rank, alpha) in enumerate(zip(target.ranks, target.alphas, strict=True)):
            if rank:
                scale = alpha / (math.sqrt(rank) if target.rslora else rank)
                change = scale * b[layer, :, :rank] @ a[layer, :rank]
                weights = 1.0 if fisher is None else np.asarray(fisher[f"{target.path}.weight"][layer], np.float64)
                total += float(np.sum(weights * change**2))
    return total


@SPECS
@pytest.mark.parametrize("name", ["none", "l2", "ewc"])
def test_penalty_is_zero_at_the_start_and_positive_off_it(name, spec):
    fisher = random_fisher(TINY, spec)
    assert PENALTIES[name](initialize(TINY, spec, jax.random.key(0)), spec, fisher) == 0
    assert (PENALTIES[name](moved(spec), spec, fisher) > 0) == (name != "none")


def test_no_penalty_pulls_nowhere():
    gradient = jax.grad(no_penalty)(moved(PLAIN), PLAIN, {})
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


@SPECS
def test_ewc_equals_the_sum_written_out(spec):
    adapters, fisher = moved(spec), random_fisher(TINY, spec)
    np.testing.assert_allclose(ewc_penalty(adapters, spec, fisher), by_hand(adapters, spec, fisher), rtol=1e-5)


@SPECS
def test_l2_equals_the_sum_written_out(spec):
    adapters = moved(spec)
    np.testing.assert_allclose(l2_penalty(adapters, spec, {}), by_hand(adapters, spec, None), rtol=1e-5)


def test_ewc_with_a_fisher_of_ones_is_l2():
    adapters = moved(UNEVEN)
    ones = {path: jnp.ones_like(value) for path, value in random_fisher(TINY, UNEVEN).items()}
    np.testing.assert_allclose(ewc_penalty(adapters, UNEVEN, ones), l2_penalty(adapters, UNEVEN, {}), rtol=1e-5)


@SPECS
@pytest.mark.parametrize("name", ["l2", "ewc"])
def test_gradients_equal_autodiff_of_the_plain_expression(name, spec):
    adapters, fisher = moved(spec), random_fisher(TINY, spec)

    def plain(adapters: Adapters) -> jax.Array:
        weights = {path: 1.0 if name == "l2" else value for path, value in fisher.items()}
        return sum(
            (jnp.sum(weights[f"{target.path}.weight"] * delta(adapters, target) ** 2) for target in spec),
            start=jnp.float32(0),
        )

    ours = jax.jit(jax.grad(lambda adapters: 0.7 * PENALTIES[name](adapters, spec, fisher)))(adapters)
    expected = jax.grad(lambda adapters: 0.7 * plain(adapters))(adapters)
    for found, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


@SPECS
def test_ewc_gradients_equal_finite_differences(spec):
    """The sum is a polynomial, so central differences in float64 are exact up to their third order."""
    adapters, fisher = moved(spec), random_fisher(TINY, spec)
    gradient = jax.grad(ewc_penalty)(adapters, spec, fisher)
    rng = np.random.default_rng(2)
    for target in spec:
        for name in ("a", "b"):
            direction = rng.normal(size=adapters[target.path][name].shape)

            def along(step: float, path: str = target.path, name: str = name, direction: np.ndarray = direction):
                changed = jax.tree.map(lambda x: np.asarray(x, np.float64), adapters)
                changed[path][name] = changed[path][name] + step * direction
                return by_hand(changed, spec, fisher)

            slope = (along(1e-5) - along(-1e-5)) / 2e-5
            found = float(np.sum(np.asarray(gradient[target.path][name], np.float64) * direction))
            # `by_hand` leaves the padding out: the gradient there must be zero for the two to agree.
            np.testing.assert_allclose(found, slope, rtol=1e-4)


def test_padding_of_lower_ranks_gets_no_gradient():
    gradient = jax.grad(ewc_penalty)(moved(UNEVEN), UNEVEN, random_fisher(TINY, UNEVEN))
    assert not np.any(gradient["layers.q"]["a"][0, 2:])
    assert not np.any(gradient["layers.q"]["b"][0, :, 2:])
    assert not np.any(gradient["layers.v"]["a"][1])
    assert np.any(gradient["layers.q"]["a"][1, 2:])


def test_rowmax127_by_hand():
    fisher = jnp.asarray(
        [[[1.0, 0.5, 0.0], [0.0, 0.0, 0.0], [2e-9, 1.2e-9, 7e-12]], [[3.0, 3.0, 1.0], [1.0, 0.1, 0.01], [5, 4, 0]]]
    )
    expected = [[[127, 64, 0], [0, 0, 0], [127, 76, 0]], [[127, 127, 42], [127, 13, 1], [127, 102, 0]]]
    codes = rowmax127(fisher)
    np.testing.assert_array_equal(codes, expected)
    assert codes.dtype == jnp.float32


def test_ewc_never_holds_the_weight_change_of_all_layers():
    layers, width = 12, 256
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=width,
        intermediate_size=width,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=4,
        head_dim=width // 4,
        max_positions=16,
    )
    spec = adapter_spec(config, LoraConfig(rank=4, targets=r".*\.q_proj"))
    adapters = jax.eval_shape(lambda key: initialize(config, spec, key), jax.random.key(0))
    fisher = {"layers.q.weight": jax.ShapeDtypeStruct((layers, width, width), jnp.float32)}
    step = jax.jit(jax.value_and_grad(lambda adapters, fisher: ewc_penalty(adapters, spec, fisher)))
    memory = step.lower(adapters, fisher).compile().memory_analysis()
    one_stack = 4 * layers * width * width
    assert memory.argument_size_in_bytes > one_stack  # F itself
    assert memory.temp_size_in_bytes < one_stack / 2
