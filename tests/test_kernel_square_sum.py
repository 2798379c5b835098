"""square_sum: documents anywhere in the stream, each squared on its own; every implementation against a plain loop."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from e2wm_jax.kernels.square_sum import square_sum
from e2wm_jax.kernels.square_sum_hopper import square_sum_hopper
from e2wm_jax.kernels.square_sum_tpu import side, square_sum_tpu, visits

TOKENS, OUTPUTS, INPUTS = 300, 24, 40
# (start, length): unaligned, neighbours without a gap, a gap, empty slots among them, one of one token, and the last
# one ending with the stream, where a window is cut short.
DOCUMENTS = ((3, 70), (73, 33), (0, 0), (110, 96), (206, 1), (280, 20), (0, 0))
WINDOW = 100


def example(
    dtype: jnp.dtype | type = jnp.float32, tokens: int = TOKENS, outputs: int = OUTPUTS, inputs: int = INPUTS
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A total that is not zero, g and x."""
    draw = np.random.default_rng(0)
    total = draw.uniform(size=(outputs, inputs))
    g, x = draw.normal(size=(tokens, outputs)), draw.normal(size=(tokens, inputs))
    return jnp.asarray(total, jnp.float32), jnp.asarray(g, dtype), jnp.asarray(x, dtype)


def slots(documents: tuple[tuple[int, int], ...]) -> tuple[jax.Array, jax.Array]:
    starts, lengths = np.asarray(documents, np.int32).T
    return jnp.asarray(starts), jnp.asarray(lengths)


def by_hand(total: jax.Array, g: jax.Array, x: jax.Array, documents: tuple[tuple[int, int], ...]) -> np.ndarray:
    """One document and one token after the other, in float64."""
    result = np.asarray(total, np.float64)
    g, x = np.asarray(g, np.float64), np.asarray(x, np.float64)
    for start, length in documents:
        product = np.zeros_like(result)
        for token in range(start, start + length):
            product += np.outer(g[token], x[token])
        result = result + product**2
    return result


def assert_close(found: jax.Array, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    """Error as a share of the largest entry: what is summed in float32 cannot know an entry near zero better."""
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance * np.max(expected))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_any_layout(group: int, dtype: type) -> None:
    total, g, x = example(dtype)
    summed = jax.jit(square_sum, static_argnames=("window", "group"))
    found = summed(total, g, x, *slots(DOCUMENTS), window=WINDOW, group=group)
    assert_close(found, by_hand(total, g, x, DOCUMENTS))


def test_documents_in_any_order() -> None:
    total, g, x = example()
    found = square_sum(total, g, x, *slots(DOCUMENTS[::-1]), window=WINDOW)
    assert_close(found, by_hand(total, g, x, DOCUMENTS))


@pytest.mark.parametrize("window", [96, 97, TOKENS])
def test_result_does_not_depend_on_the_window(window: int) -> None:
    total, g, x = example()
    assert_close(square_sum(total, g, x, *slots(DOCUMENTS), window=window), by_hand(total, g, x, DOCUMENTS))


def test_no_documents_change_nothing() -> None:
    total, g, x = example()
    found = square_sum(total, g, x, *slots(((5, 0), (9, 0))), window=10, group=2)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(total))


def test_carried_through_a_scan() -> None:
    """Layers' totals as the carry of a scan, as the Fisher pass does it."""
    total, g, x = example()
    gs, xs = jnp.stack([g, 2 * g, g[::-1]]), jnp.stack([x, x[::-1], -x])

    @jax.jit
    def accumulate(total: jax.Array, gs: jax.Array, xs: jax.Array) -> jax.Array:
        def step(total: jax.Array, layer: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            return square_sum(total, *layer, *slots(DOCUMENTS), window=WINDOW), None

        return jax.lax.scan(step, total, (gs, xs))[0]

    expected = np.asarray(total, np.float64)
    for layer in range(3):
        expected = by_hand(expected, gs[layer], xs[layer], DOCUMENTS)
    assert_close(accumulate(total, gs, xs), expected)


def test_total_is_updated_in_place() -> None:
    """A loop that copied the total would cost as much as the squares; a gather would hold every window at once."""
    total, g, x = example()
    compiled = (
        jax.jit(square_sum, static_argnames=("window",), donate_argnums=0)
        .lower(total, g, x, *slots(DOCUMENTS), window=WINDOW)
        .compile()
    )
    assert compiled.memory_analysis().alias_size_in_bytes == total.nbytes
    program = compiled.as_text()
    assert re.search(rf"f32\[{OUTPUTS},{INPUTS}\]\S* dot\(", program)  # the names looked for are those of this program
    assert not re.search(rf"f32\[{OUTPUTS},{INPUTS}\]\S* copy\(", program)
    assert not re.search(r"f32\S* gather\(", program)


@pytest.mark.parametrize(("tokens", "dtype"), [(128, jnp.float32), (512, jnp.bfloat16)])
def test_tpu_in_interpret_mode(tokens: int, dtype: type) -> None:
    """Token blocks that several documents share, and a last one cut short or padded."""
    total, g, x = example(dtype)
    emulated = jax.jit(functools.partial(square_sum_tpu, tokens=tokens, interpret=True))
    found = emulated(total, g, x, *slots(DOCUMENTS))
    assert_close(found, by_hand(total, g, x, DOCUMENTS))


def test_tpu_tiles_cut_short_at_both_edges() -> None:
    total, g, x = example(jnp.bfloat16, 500, 136, 140)
    documents = ((400, 100), (0, 256), (0, 0), (320, 33))
    emulated = jax.jit(functools.partial(square_sum_tpu, tokens=256, tile=128, interpret=True))
    found = emulated(total, g, x, *slots(documents))
    assert_close(found, by_hand(total, g, x, documents))


def test_tpu_visits_by_hand() -> None:
    """Blocks of 128: document (100, 60) ends in block 1, where (160, 96) begins; two visits are left over."""
    plan = jax.jit(functools.partial(visits, blocks=2, size=128))(*slots(((100, 60), (0, 0), (160, 96))))
    assert np.asarray(plan).tolist() == [
        [0, 1, 1, 1, 1],
        [100, 0, 32, 32, 32],
        [128, 32, 128, 32, 32],
        [1, 0, 1, 0, 0],
        [0, 1, 1, 0, 0],
    ]


@pytest.mark.parametrize(("size", "expected"), [(40, 40), (512, 512), (576, 384), (2048, 512), (1536, 512)])
def test_tpu_sides(size: int, expected: int) -> None:
    assert side(size, 512) == expected


@pytest.mark.parametrize("tile", [{"tokens": 100}, {"tile": 100}])
def test_tpu_refuses_sizes(tile: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be a multiple of 128"):
        square_sum_tpu(*example(), *slots(DOCUMENTS), **tile)


def lowered(implementation: str, platform: str, dtype: type, tokens: int, outputs: int, inputs: int) -> str:
    """The program for another platform, which needs no such device."""
    shapes = [((outputs, inputs), jnp.float32), ((tokens, outputs), dtype), ((tokens, inputs), dtype)]
    shapes += [((8,), jnp.int32)] * 2
    function = jax.jit(functools.partial(square_sum, window=tokens, implementation=implementation), donate_argnums=0)
    traced = function.trace(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(8192, 2048, 8192), (1000, 576, 1536), (300, 24, 40)])
def test_tpu_lowers(shape: tuple[int, int, int], dtype: type) -> None:
    program = lowered("pallas_tpu", "tpu", dtype, *shape)
    assert "tpu_custom_call" in program
    assert "output_operand_alias" in program, "the total is not updated in place"


@pytest.mark.parametrize("shape", [(8192, 2048, 8192), (1000, 576, 192)])
def test_hopper_lowers(shape: tuple[int, int, int]) -> None:
    program = lowered("mosaic_gpu", "cuda", jnp.bfloat16, *shape)
    assert "mosaic_gpu" in program
    assert "output_operand_alias" in program, "the total is not updated in place"


@pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="Mosaic GPU has an interpret mode from jax 0.11 on; older here"
)
@pytest.mark.parametrize(
    ("outputs", "inputs", "options"),
    [
        (128, 128, {"multiprocessors": 1}),
        (192, 64, {"multiprocessors": 3, "steps": 3}),  # a tile beyond the edge, and a thread block without a tile
        (320, 64, {"multiprocessors": 2, "cluster": 2, "steps": 2}),
    ],
)
def test_hopper_in_interpret_mode(
    outputs: int, inputs: int, options: dict[str, int], capfd: pytest.CaptureFixture
) -> None:
    total, g, x = example(jnp.bfloat16, TOKENS, outputs, inputs)
    emulated = plgpu.InterpretGPUParams(detect_races=True)
    found = square_sum_hopper(total, g, x, *slots(DOCUMENTS), **options, interpret=emulated)
    assert_close(found, by_hand(total, g, x, DOCUMENTS))
    assert "RACE" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("outputs", "inputs", "dtype", "message"),
    [
        (128, 128, jnp.float32, "multiplies bfloat16; use implementation='xla'"),
        (100, 128, jnp.bfloat16, "a weight of 100 x 128 in tiles of 128 columns: the Hopper kernel takes multiples"),
        (128, 40, jnp.bfloat16, "a weight of 128 x 40 in tiles of 40 columns"),
    ],
)
def test_hopper_refuses(outputs: int, inputs: int, dtype: type, message: str) -> None:
    total, g, x = example(dtype, TOKENS, outputs, inputs)
    with pytest.raises(ValueError, match=message):
        square_sum(total, g, x, *slots(DOCUMENTS), window=WINDOW, implementation="mosaic_gpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window=0: must be from 1 to the 300 tokens"),
        ({"window": 301}, "window=301: must be from 1 to"),
        ({"group": 0}, "group=0: must be at least 1"),
        ({"implementation": "cuda"}, "implementation='cuda': must be one of xla, pallas_tpu, mosaic_gpu"),
        ({"total": jnp.zeros((INPUTS, OUTPUTS))}, r"total.shape=\(40, 24\)"),
        ({"total": jnp.zeros((OUTPUTS, INPUTS), jnp.bfloat16)}, "summed in float32"),
    ],
)
def test_refuses(change: dict, message: str) -> None:
    total, g, x = example()
    starts, lengths = slots(DOCUMENTS)
    given = {"total": total, "g": g, "x": x, "starts": starts, "lengths": lengths, "window": WINDOW} | change
    with pytest.raises(ValueError, match=message):
        square_sum(**given)
