"""The fused penalty against float64, against autodiff, between its implementations, and what it holds in memory."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from e2wm_jax.errors import InputError
from e2wm_jax.fisher.storage import decode, encode
from e2wm_jax.kernels.weighted_square import check_implementation, weighted_square

DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])


def made(layers: int, outputs: int, inputs: int, rank: int, seed: int = 0) -> tuple[jax.Array, ...]:
    """a, b, F heavy-tailed as a language model's, scales."""
    rng = np.random.default_rng(seed)
    shapes = (layers, rank, inputs), (layers, outputs, rank)
    a, b = (jnp.asarray(rng.normal(0, 0.02, shape), jnp.float32) for shape in shapes)
    fisher = jnp.asarray(rng.gamma(0.2, 1e-4, (layers, outputs, inputs)), jnp.float32)
    return a, b, fisher, jnp.asarray(rng.uniform(1, 4, layers), jnp.float32)


def in_float64(a: Any, b: Any, fisher: Any, scales: Any) -> tuple[np.ndarray, ...]:
    """Value, dA, dB, from the formula."""
    a, b, fisher, scales = (np.asarray(x, np.float64) for x in (a, b, fisher, scales))
    scales = scales[:, None, None]
    change = scales * np.einsum("lnr,lrd->lnd", b, a)
    pull = 2 * scales * fisher * change
    return np.sum(fisher * change**2), np.einsum("lnr,lnd->lrd", b, pull), np.einsum("lnd,lrd->lnr", pull, a)


def error(found: Any, expected: Any) -> float:
    """Of vectors as a whole."""
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    "shape",
    [
        (2, 24, 40, 3),  # one tile
        (2, 200, 2048, 4),  # tiles of 64 rows, and 8 rows left
        (1, 1100, 1024, 8),  # tiles of 128 rows, and 76 left
        (1, 5, 300_000, 2),  # rows longer than a tile
    ],
)
def test_value_and_gradients_equal_float64(shape):
    arguments = made(*shape)
    for found, expected in zip(jax.jit(weighted_square)(*arguments), in_float64(*arguments), strict=True):
        assert error(found, expected) < 1e-6


def test_value_and_gradients_equal_autodiff_of_the_plain_expression():
    a, b, fisher, scales = made(3, 256, 256, 8)

    def plain(a: jax.Array, b: jax.Array) -> jax.Array:
        change = scales[:, None, None] * jnp.einsum("lnr,lrd->lnd", b, a)
        return jnp.sum(fisher * change**2)

    value, (da, db) = jax.value_and_grad(plain, (0, 1))(a, b)
    for found, expected in zip(weighted_square(a, b, fisher, scales), (value, da, db), strict=True):
        assert error(found, expected) < 1e-6


@DTYPES
def test_stored_f_is_read_as_the_f_it_decodes_to(dtype):
    a, b, fisher, scales = made(2, 200, 2048 + 40, 4)
    stored = encode(fisher, dtype)
    expected = in_float64(a, b, decode(stored), scales)
    for found, wanted in zip(jax.jit(weighted_square)(a, b, stored, scales), expected, strict=True):
        assert error(found, wanted) < 1e-6


def test_plain_bfloat16_arrays_are_read_too():
    a, b, fisher, scales = made(1, 16, 24, 2)
    rounded = fisher.astype(jnp.bfloat16)
    for found, expected in zip(weighted_square(a, b, rounded, scales), in_float64(a, b, rounded, scales), strict=True):
        assert error(found, expected) < 1e-6


@DTYPES
def test_temporaries_are_below_ten_mebibytes(dtype):
    """8 matrices of 2048 x 2048: F is 128 MiB, and neither B A nor a float32 copy of F ever exists."""
    small = encode(np.ones((1, 1, 2048), np.float32), dtype)
    fisher = jax.tree.map(lambda x: jax.ShapeDtypeStruct((8, 2048, x.shape[2]), x.dtype), small)
    shapes = ((8, 8, 2048), (8, 2048, 8), (8,))
    a, b, scales = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    memory = jax.jit(weighted_square).lower(a, b, fisher, scales).compile().memory_analysis()
    print(f"{dtype}: temporaries {memory.temp_size_in_bytes / 2**20:.1f} MiB")
    assert memory.argument_size_in_bytes > 8 * 2048 * 2048
    assert memory.temp_size_in_bytes <= 10 * 2**20


# ------------------------------------------------------------------------------------------------------------------ TPU


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 512, 1024, 4), "bfloat16"),  # 2 x 2 whole tiles
        ((1, 300, 700, 2), "float32"),  # the last tiles reach beyond the matrix
        ((1, 300, 700, 2), "uint8"),
    ],
)
def test_tpu_kernel_computes_the_same(shape, dtype):
    from e2wm_jax.kernels.weighted_square_tpu import products

    a, b, fisher, scales = made(*shape)
    stored = encode(fisher, dtype)
    da, db = products(a, b, stored, interpret=True)
    factor = 2 * jnp.square(scales)[:, None, None]
    _, expected_da, expected_db = in_float64(a, b, decode(stored), scales)
    assert error(factor * da, expected_da) < 1e-6
    assert error(factor * db, expected_db) < 1e-6


def lowered(implementation: str, platform: str, outputs: int, inputs: int, dtype: str) -> str:
    """The program for another platform, which needs no such device."""
    a, b, _, scales = made(1, outputs, inputs, 8)
    stored = encode(np.ones((1, outputs, inputs), np.float32), dtype)
    function = jax.jit(partial(weighted_square, implementation=implementation))
    return function.trace(a, b, stored, scales).lower(lowering_platforms=(platform,)).as_text()


@DTYPES
@pytest.mark.parametrize(("outputs", "inputs"), [(2048, 2048), (300, 700)])
def test_tpu_kernel_lowers_without_a_tpu(outputs, inputs, dtype):
    assert "tpu_custom_call" in lowered("pallas_tpu", "tpu", outputs, inputs, dtype)


# --------------------------------------------------------------------------------------------------------------- Hopper


@DTYPES
def test_hopper_kernel_lowers_without_a_gpu(dtype):
    assert "mosaic_gpu" in lowered("mosaic_gpu", "cuda", 128, 128, dtype)


@pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="Mosaic GPU has an interpret mode from jax 0.11 on; older here"
)
@pytest.mark.parametrize(
    ("outputs", "inputs", "dtype"),
    [(128, 192, "float32"), (64, 64, "bfloat16"), (64, 128, "uint8"), (128, 128, "uint8")],
)
def test_hopper_kernel_computes_the_same(outputs, inputs, dtype, capfd):
    from e2wm_jax.kernels.weighted_square_hopper import products

    a, b, fisher, scales = made(2, outputs, inputs, 3)
    stored = jax.tree.map(jnp.asarray, encode(fisher, dtype))
    da, db = products(a, b, stored, interpret=plgpu.InterpretGPUParams(detect_races=True))
    assert "RACE" not in capfd.readouterr().out
    factor = 2 * jnp.square(scales)[:, None, None]
    _, expected_da, expected_db = in_float64(a, b, decode(stored), scales)
    assert error(factor * da, expected_da) < 1e-6
    assert error(factor * db, expected_db) < 1e-6


@pytest.mark.parametrize(("outputs", "inputs"), [(96, 64), (64, 72)])
def test_hopper_kernel_refuses_other_sizes(outputs, inputs):
    with pytest.raises(InputError, match=rf"mosaic_gpu: matrices of {outputs} x {inputs}; .* multiples of 64, use xla"):
        weighted_square(*made(1, outputs, inputs, 2), implementation="mosaic_gpu")


# --------------------------------------------------------------------------------------------------------------- choice


def test_a_kernel_for_another_device_is_refused():
    check_implementation("--penalty-kernel", "xla")
    for name, device in (("pallas_tpu", "TPU"), ("mosaic_gpu", "GPU")):
        with pytest.raises(
            InputError, match=f"--penalty-kernel {name}: is a kernel for a {device}, .* on cpu; use xla"
        ):
            check_implementation("--penalty-kernel", name)
