"""The Fisher over eight devices: the same numbers on every mesh, and what goes between devices in a step."""

import re
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from e2wm_jax.config import LlamaConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.fisher.diagonal import Computation, Estimator, FisherResult, document_fisher
from e2wm_jax.fisher.documents import document_batches
from e2wm_jax.kernels import square_sum
from e2wm_jax.models import decoder
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.layers import Params
from e2wm_jax.models.weights import flatten, unflatten
from e2wm_jax.sharding import make_mesh, stacked, weight_sharding

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=4,
    max_positions=32,
    tied=True,
    attention_bias=True,
)
LENGTHS = (2, 19, 7, 23, 3, 12, 20, 5, 9, 11)
COLLECTIVE = re.compile(r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.skipif(jax.device_count() < 8, reason=f"needs 8 devices, there are {jax.device_count()}"),
]


def random_params(config: LlamaConfig) -> Params:
    """Weights at the scale of a trained model, norms and biases too."""
    flat = flatten(decoder.initialize(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    for path, value in flat.items():
        noise = rng.normal(size=value.shape).astype(np.float32)
        flat[path] = (
            noise / value.shape[-1] ** 0.5 if value.ndim - path.startswith("layers.") == 2 else value + noise / 3
        )
    return unflatten(flat)


def on(mesh: Any, config: LlamaConfig, params: Params) -> Params:
    flat, table = flatten(params), weight_table(config)
    for path, spec in table.items():
        where = weight_sharding(mesh, spec.shape, spec.axes)
        flat[path] = jax.device_put(flat[path], stacked(where) if spec.stacked else where)
    return unflatten(flat)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is compiled while a test runs."""
    compile_, found = jax.stages.Lowered.compile, []

    def kept(lowered: Any) -> Any:
        found.append(compile_(lowered))
        return found[-1]

    monkeypatch.setattr(jax.stages.Lowered, "compile", kept)
    monkeypatch.setattr(square_sum, "RUNGS", 1)  # less to compile; tests/test_kernel_square_sum.py has them all
    return found


def fisher(config: LlamaConfig, mesh_text: str | None, layout: Any, estimator: Estimator) -> FisherResult:
    rng = np.random.default_rng(0)
    rows = [Row(rng.integers(0, config.vocab_size, length).astype(np.int32), 1) for length in LENGTHS]
    params = random_params(config)
    if mesh_text is None:
        batches = document_batches(rows, 5, 32, layout=layout)
        return document_fisher(config, params, batches, estimator=estimator)
    mesh = make_mesh(mesh_text)
    # Ten documents in rows of 32 tokens leave rows, and so whole devices, without any.
    batches = document_batches(rows, 8, 32, layout=layout, parts=mesh.shape["data"] * mesh.shape["fsdp"])
    params = on(mesh, config, params)
    return document_fisher(config, params, batches, estimator=estimator, computation=Computation(mesh=mesh))


@pytest.fixture(scope="module")
def references() -> dict[Any, FisherResult]:
    """By configuration, labels and layout: on one device."""
    return {}


def collectives(step: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and shape of what goes between devices."""
    found = []
    for shape, kind in COLLECTIVE.findall(step.as_text()):
        for sizes in re.findall(r"\w+\[([\d,]*)\]", shape):
            found.append((kind, tuple(int(size) for size in sizes.split(",") if size)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "layout", "labels", "tied"),
    [
        ("data=8", "packed", "sampled", True),
        ("fsdp=8", "packed", "data", True),
        ("data=2,fsdp=2,tensor=2", "rows", "sampled", False),
        ("data=2,tensor=4", "packed", "data", True),
    ],
)
def test_fisher_is_the_same_on_every_mesh(
    mesh: str, layout: str, labels: Any, tied: bool, compiled: list[Any], references: dict[Any, FisherResult]
) -> None:
    config, estimator = replace(CONFIG, tied=tied), Estimator(labels, seed=3)
    if (tied, labels) not in references:
        references[tied, labels] = fisher(config, None, "packed", estimator)
    expected = references[tied, labels]
    compiled.clear()
    found = fisher(config, mesh, layout, estimator)
    assert (found.samples, found.tokens) == (expected.samples, expected.tokens) == (10, sum(LENGTHS) - 10)
    assert found.nats == pytest.approx(expected.nats, rel=1e-6)
    for path, value in expected.values.items():
        error = np.abs(np.asarray(found.values[path]) - value).max() / value.max()
        assert error < 5e-6, path
        assert found.values[path].shape == value.shape

    between = [collective for step in compiled for collective in collectives(step)]
    print(mesh, sorted(set(between)))
    weights = {spec.shape for spec in weight_table(config).values() if len(spec.shape) == 2}
    if mesh == "data=8":
        assert not between
    elif mesh == "fsdp=8":
        # A weight is gathered where it is used, its squares are scattered back, and nothing else moves.
        assert {kind for kind, _ in between} == {"all-gather", "reduce-scatter"}
        parts = {(n // 8, d) for n, d in weights} | {(n, d // 8) for n, d in weights}
        assert {shape for kind, shape in between if kind == "all-gather"} <= weights
        assert {shape for kind, shape in between if kind == "reduce-scatter"} <= parts
    elif mesh == "data=2,fsdp=2,tensor=2":
        # The same by exchanges in pairs, of parts that "tensor" leaves split; what else moves is of tokens.
        quarters = {(n // 2, d // 2) for n, d in weights}
        assert {shape for kind, shape in between if kind == "collective-permute"} == quarters
        assert {shape[:2] for kind, shape in between if kind != "collective-permute"} <= {(2, 24), (1,)}
    elif mesh == "data=2,tensor=4":
        # Sums of what "tensor" splits, over tokens of one device each: never a weight.
        assert {(kind, *shape[:2]) for kind, shape in between} == {("all-reduce", 2, 32)}


def test_collectives_are_found() -> None:
    """The search above finds what is there."""
    mesh = make_mesh("fsdp=8")
    split, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("fsdp",), ()))
    step = (
        jax.jit(lambda x: x * 2, in_shardings=split, out_shardings=whole).lower(np.ones((16, 3), np.float32)).compile()
    )
    assert collectives(step) == [("all-gather", (16, 3))]
