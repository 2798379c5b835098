"""Sums of squares of the weight change against sums written out in float64, and what they cost in memory.

What the regularizers make of them: test_regularizers_weights.py.
"""

import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2wm_jax.config import MODELS, LlamaConfig, LoraConfig, ModelConfig
from e2wm_jax.fisher.storage import Fisher, encode
from e2wm_jax.kernels.weighted_square import weighted_square
from e2wm_jax.lora import Adapters, AdapterSpec, TargetSpec, adapter_spec, delta, initialize
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.regularizers.quadratic import (
    fisher_partition,
    l2_penalty,
    lora_ewc_penalty,
    place_fisher,
    rowmax127,
    sharded_ewc_penalty,
)
from e2wm_jax.sharding import make_mesh

TINY = MODELS["tiny"]
PLAIN = adapter_spec(TINY, LoraConfig(rank=3, alpha=12.0))
# Layer 0 of q is padded from rank 2 to 4, layer 1 of v has no adapter, and every scale is another.
UNEVEN: AdapterSpec = (
    TargetSpec("layers.q", ranks=(2, 4), alphas=(3.0, 20.0)),
    TargetSpec("layers.v", ranks=(3, 0), alphas=(6.0, 0.0), rslora=True),
)
PENALTIES: dict[str, Callable[[Adapters, AdapterSpec, Fisher], jax.Array]] = {
    "l2": lambda adapters, spec, fisher: l2_penalty(adapters, spec),
    "ewc": lora_ewc_penalty,
}
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
@pytest.mark.parametrize("name", PENALTIES)
def test_penalty_is_zero_at_the_start_and_positive_off_it(name, spec):
    fisher = random_fisher(TINY, spec)
    assert PENALTIES[name](initialize(TINY, spec, jax.random.key(0)), spec, fisher) == 0
    assert PENALTIES[name](moved(spec), spec, fisher) > 0


@SPECS
def test_ewc_equals_the_sum_written_out(spec):
    adapters, fisher = moved(spec), random_fisher(TINY, spec)
    np.testing.assert_allclose(lora_ewc_penalty(adapters, spec, fisher), by_hand(adapters, spec, fisher), rtol=1e-5)


@SPECS
def test_l2_equals_the_sum_written_out(spec):
    adapters = moved(spec)
    np.testing.assert_allclose(l2_penalty(adapters, spec), by_hand(adapters, spec, None), rtol=1e-5)


def test_ewc_with_a_fisher_of_ones_is_l2():
    adapters = moved(UNEVEN)
    ones = {path: jnp.ones_like(value) for path, value in random_fisher(TINY, UNEVEN).items()}
    np.testing.assert_allclose(lora_ewc_penalty(adapters, UNEVEN, ones), l2_penalty(adapters, UNEVEN), rtol=1e-5)


@SPECS
@pytest.mark.parametrize("name", PENALTIES)
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
    gradient = jax.grad(lora_ewc_penalty)(adapters, spec, fisher)
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
    gradient = jax.grad(lora_ewc_penalty)(moved(UNEVEN), UNEVEN, random_fisher(TINY, UNEVEN))
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


@pytest.mark.parametrize("dtype", ["bfloat16", "uint8"])
def test_rowmax127_of_a_stored_fisher(dtype):
    """The codes of what the format has kept; for the official run's strengths, store F in float32."""
    fisher = random_fisher(TINY, PLAIN)["layers.q.weight"]
    codes, exact = rowmax127(encode(fisher, dtype)), rowmax127(fisher)
    assert codes.dtype == jnp.float32
    assert float(jnp.max(jnp.abs(codes - exact))) <= 1
    assert np.any(codes)


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
    step = jax.jit(jax.value_and_grad(lambda adapters, fisher: lora_ewc_penalty(adapters, spec, fisher)))
    memory = step.lower(adapters, fisher).compile().memory_analysis()
    one_stack = 4 * layers * width * width
    assert memory.argument_size_in_bytes > one_stack  # F itself
    assert memory.temp_size_in_bytes < one_stack / 2


# -------------------------------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize("dtype", ["bfloat16", "uint8"])
def test_ewc_reads_stored_fishers_and_differentiates(dtype):
    spec = UNEVEN
    adapters, fisher = moved(spec), random_fisher(TINY, spec)
    stored = {path: encode(value, dtype) for path, value in fisher.items()}
    value, gradient = jax.jit(jax.value_and_grad(lambda adapters, f: lora_ewc_penalty(adapters, spec, f)))(
        adapters, stored
    )
    exact, exact_gradient = jax.value_and_grad(lora_ewc_penalty)(adapters, spec, fisher)
    np.testing.assert_allclose(value, exact, rtol=1e-3)
    for found, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact_gradient), strict=True):
        np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())


Factors = tuple[jax.Array, jax.Array]


def trained(fisher: jax.Array, strength: float) -> tuple[Factors, float]:
    """A and B of rank 4 fitted to a random matrix against the penalty; and sum F change^2 / (mean F sum change^2),
    which is 1 for a change that does not care about F."""
    rng = np.random.default_rng(3)
    _, outputs, inputs = fisher.shape
    goal = jnp.asarray(rng.normal(0, 0.05, (outputs, inputs)), jnp.float32)
    factors = (
        jnp.asarray(rng.uniform(-1, 1, (1, 4, inputs)) / np.sqrt(inputs), jnp.float32),
        jnp.asarray(rng.normal(0, 0.02, (1, outputs, 4)), jnp.float32),
    )

    def loss(factors: Factors) -> jax.Array:
        return jnp.sum((factors[1][0] @ factors[0][0] - goal) ** 2)

    def step(factors: Factors, _: None) -> tuple[Factors, None]:
        _, *pull = weighted_square(*factors, fisher, jnp.ones(1))
        total = jax.tree.map(lambda g, p: g + strength * p, jax.grad(loss)(factors), tuple(pull))
        return jax.tree.map(lambda x, g: x - 0.02 * g, factors, total), None

    factors = jax.jit(lambda start: jax.lax.scan(step, start, None, length=400)[0])(factors)
    square = np.asarray(factors[1] @ factors[0]) ** 2
    return factors, float(np.mean(fisher * square) / (np.mean(fisher) * np.mean(square)))


@pytest.mark.parametrize(
    ("strength", "avoids", "bounds"),
    [
        (0.0, (0.7, 1.5), {"bfloat16": 1.5e-3, "uint8": 3e-3}),
        (30.0, (0.0, 0.2), {"bfloat16": 1.5e-3, "uint8": 1e-2}),
    ],
    ids=["free", "held"],
)
def test_error_of_the_gradient_by_storage_type(strength, avoids, bounds):
    """Adapters trained under the penalty avoid large F, so that small entries, which 8 bits know less well, count."""
    fisher = jnp.asarray(np.random.default_rng(0).gamma(0.2, 1, (1, 96, 128)), jnp.float32)
    (a, b), avoided = trained(fisher, strength)
    assert avoids[0] < avoided < avoids[1]
    exact = weighted_square(a, b, fisher, jnp.ones(1))
    for dtype, bound in bounds.items():
        found = weighted_square(a, b, encode(fisher, dtype), jnp.ones(1))
        errors = [float(jnp.linalg.norm(x - y) / jnp.linalg.norm(y)) for x, y in zip(found, exact, strict=True)]
        print(
            f"{dtype}, F-weighted change {avoided:.3f}: value {errors[0]:.1e}, dA {errors[1]:.1e}, dB {errors[2]:.1e}"
        )
        assert 0 < max(errors) < bound


# ------------------------------------------------------------------------------------------------------------- sharding

WIDE = LlamaConfig(
    vocab_size=16,
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_positions=16,
)
WIDE_SPEC = adapter_spec(WIDE, LoraConfig(rank=4, targets="q_proj,v_proj,down_proj"))


def wide_adapters() -> Adapters:
    adapters = initialize(WIDE, WIDE_SPEC, jax.random.key(0))
    rng = np.random.default_rng(0)
    for factors in adapters.values():
        factors["b"] = jnp.asarray(rng.normal(0, 0.1, factors["b"].shape), jnp.float32)
    return adapters


def largest_results(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Elements of the largest array that each kind of collective makes on a device."""
    found: dict[str, int] = {}
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    for result, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", compiled.as_text()):
        shapes = re.findall(r"\w\d+\[([\d,]*)\]", result)
        sizes = [math.prod(int(size) for size in shape.split(",") if size) for shape in shapes]
        found[kind] = max([found.get(kind, 0), *sizes])
    return found


@pytest.mark.parametrize(("mesh_text", "dtype"), [("data=2,fsdp=2,tensor=2", "uint8"), ("data=8", "float32")])
def test_on_a_mesh_every_device_reads_its_part_of_f_and_little_travels(mesh_text, dtype):
    mesh, adapters = make_mesh(mesh_text), wide_adapters()
    exact = random_fisher(WIDE, WIDE_SPEC)
    fisher = place_fisher(mesh, WIDE, {path: encode(value, dtype) for path, value in exact.items()})
    for path, value in fisher.items():
        for leaf in jax.tree.leaves(value):
            assert leaf.addressable_shards[0].data.size == leaf.size / 8, path

    def on_mesh(adapters: Adapters, fisher: Fisher) -> jax.Array:
        return sharded_ewc_penalty(mesh, WIDE, adapters, WIDE_SPEC, fisher)

    compiled = jax.jit(jax.value_and_grad(on_mesh)).lower(adapters, fisher).compile()
    here = {path: encode(value, dtype) for path, value in exact.items()}
    expected = jax.jit(jax.value_and_grad(lambda adapters, f: lora_ewc_penalty(adapters, WIDE_SPEC, f)))(adapters, here)
    for found, wanted in zip(jax.tree.leaves(compiled(adapters, fisher)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-5, atol=2e-6 * np.abs(wanted).max())

    travels = largest_results(compiled)
    print(mesh_text, dtype, travels)
    factors = max(leaf.size for leaf in jax.tree.leaves(adapters))
    smallest_part = min(math.prod(value.shape) for value in fisher.values()) // 8
    assert factors < smallest_part
    assert travels["all-reduce"] <= factors
    assert max(travels.values()) <= factors


def test_f_is_split_over_as_many_axes_as_divide_it():
    mesh = make_mesh("data=2,fsdp=2,tensor=2")

    def partition(outputs: int, inputs: int, dtype: str) -> tuple:
        value = encode(np.ones((1, outputs, inputs), np.float32), dtype)
        return tuple(fisher_partition(mesh, WIDE, "layers.q.weight", value))

    assert partition(64, 128, "float32") == (None, ("data", "tensor"), "fsdp")
    assert partition(66, 128, "float32") == (None, "tensor", "fsdp")
    assert partition(64, 130, "float32") == (None, ("data", "tensor"), "fsdp")
    assert partition(64, 192, "uint8") == (None, ("data", "tensor"), None)  # three blocks of codes
