"""The training step over eight devices: the same losses on every mesh, what goes between devices, what each holds."""

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from e2wm_jax import lora
from e2wm_jax.config import LlamaConfig, LoraConfig
from e2wm_jax.data.batch import Batch, Row
from e2wm_jax.data.loader import Loader
from e2wm_jax.lora import Scope
from e2wm_jax.models import decoder, exchange, spread
from e2wm_jax.models.layers import Params
from e2wm_jax.models.quantized import quantize_params
from e2wm_jax.models.weights import flatten
from e2wm_jax.regularizers.catalogue import REGULARIZERS
from e2wm_jax.regularizers.regularizer import Material, PenaltyOptions
from e2wm_jax.sharding import make_mesh
from e2wm_jax.storage.metrics import read_metrics
from e2wm_jax.train.feed import put
from e2wm_jax.train.schedules import learning_rates
from e2wm_jax.train.step import Controls, StepConfig, TrainState, initial_state, train_step

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    max_positions=64,
    tied=True,
)
UNTIED = dataclasses.replace(CONFIG, tied=False, attention_bias=True)
SPEC = lora.adapter_spec(CONFIG, LoraConfig(rank=4, targets="all-linear"))
MESHES = ("data=8", "fsdp=8", "data=2,fsdp=2,tensor=2")
STEPS = 20
COLLECTIVE = re.compile(r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.skipif(jax.device_count() < 8, reason=f"needs 8 devices, there are {jax.device_count()}"),
]


def random_rows(number: int = 40, shortest: int = 17, longest: int = 24) -> list[Row]:
    """Random words, and then the same word again and again, which can be learned.

    As lengths are chosen here, all batches are padded to one: a mesh's step takes seconds to compile.
    """
    rng = np.random.default_rng(0)
    rows = []
    for length in rng.integers(shortest, longest, number, endpoint=True):
        ids = rng.integers(0, 64, length).astype(np.int32)
        ids[length // 2 :] = 7
        rows.append(Row(ids, int(length // 2), [1.0, 0.7][length % 2]))
    return rows


def fisher_values() -> dict[str, jax.Array]:
    rng = np.random.default_rng(1)
    table = decoder.weight_table(CONFIG)
    shapes = {f"{target.path}.weight": table[f"{target.path}.weight"].shape for target in SPEC}
    return {path: jnp.asarray(rng.gamma(0.3, size=(2, *shape)), jnp.float32) for path, shape in shapes.items()}


class Run(NamedTuple):
    """What a run begins with."""

    config: StepConfig
    state: TrainState
    params: Params
    constants: Any
    text: Batch | None

    def arguments(self, step: int, rate: Any) -> tuple[Any, ...]:
        """Of `train_step`, but for the state; of one kind, so that a program is compiled once for all tests."""
        batch = put(Loader(random_rows(), 8, 2, 32, 0).step(step).batch, self.config.scope.mesh)
        return Controls(rate, 0.05, 0.01), self.params, self.constants, batch, self.text


def begun(
    mesh_text: str | None,
    *,
    config: LlamaConfig = CONFIG,
    params: Params | None = None,
    regularizer: str = "ewc",
    dropout: float = 0.1,
    **changes: Any,
) -> Run:
    mesh = None if mesh_text is None else make_mesh(mesh_text)
    params = decoder.initialize(config, jax.random.key(0)) if params is None else params
    params = params if mesh is None else spread.place(config, params, mesh)
    step_config = StepConfig(Scope(config, SPEC, mesh, **changes), regularizer, dropout=dropout)
    adapters = lora.initialize(config, SPEC, jax.random.key(1))
    found = REGULARIZERS[regularizer]
    fisher = fisher_values() if found.reads == "fisher" else None
    constants = found.prepare(Material(step_config.scope, params, adapters, fisher, (), PenaltyOptions()))
    text = random_batch(mesh) if found.reads == "text" else None
    return Run(step_config, initial_state(step_config, adapters), params, constants, text)


def trained(mesh_text: str | None, *, steps: int = STEPS, **options: Any) -> list[dict[str, float]]:
    """The metrics of some steps."""
    run = begun(mesh_text, **options)
    state, metrics = run.state, []
    for step, rate in enumerate(learning_rates("linear", 5e-3, STEPS)[:steps], start=1):
        state, one = train_step(run.config, state, *run.arguments(step, rate))
        metrics.append({name: float(value) for name, value in one.items()})
    return metrics


def random_batch(mesh: Any) -> Batch:
    rows = [dataclasses.replace(row, first_target=1, weight=1.0) for row in random_rows(8)]
    return put(Loader(rows, 8, 1, 32, 5).step(1).batch, mesh)


def assert_same(found: list[dict[str, float]], expected: list[dict[str, float]], rtol: float = 1e-5) -> None:
    for name in ("loss", "task_loss", "penalty", "grad_norm", "tokens"):
        ours, theirs = (np.array([row[name] for row in rows]) for rows in (found, expected))
        print(f"{name} differs by at most {np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-9)):.1e}")
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-9, err_msg=name)


@pytest.fixture(scope="module")
def alone() -> list[dict[str, float]]:
    found = trained(None)
    assert found[-1]["task_loss"] < found[0]["task_loss"] - 0.02
    assert found[-1]["penalty"] > 1e-3
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_twenty_losses_are_those_of_one_device(mesh: str, alone: Any) -> None:
    assert_same(trained(mesh), alone)


@pytest.mark.slow
@pytest.mark.parametrize("regularizer", ["kl-forward", "si"])
def test_other_regularizers_are_those_of_one_device(regularizer: str) -> None:
    mesh = "data=2,fsdp=2,tensor=2"
    assert_same(trained(mesh, regularizer=regularizer, steps=4), trained(None, regularizer=regularizer, steps=4))


@pytest.mark.slow
@pytest.mark.parametrize("base", ["int8", "nf4", "bfloat16"])
def test_bases_of_other_types_are_those_of_one_device(base: Any) -> None:
    """Without a penalty and dropout, which do not look at the base."""

    def params() -> Params:
        made = decoder.initialize(UNTIED, jax.random.key(0))
        if base == "bfloat16":
            return jax.tree.map(lambda x: x.astype(base), made)
        return quantize_params(made, UNTIED, base)

    plain: dict[str, Any] = {"config": UNTIED, "regularizer": "none", "dropout": 0.0, "steps": 3}
    expected = trained(None, params=params(), **plain)
    # nf4's blocks of 32 inputs let two devices share a matrix of 64, and not eight.
    for mesh in ("fsdp=8", "data=2,fsdp=2,tensor=2"):
        tolerance = 1e-5 if base != "bfloat16" else 2e-2
        assert_same(trained(mesh, params=params(), **plain), expected, tolerance)


@pytest.mark.slow
def test_packed_and_accumulated_are_one_large_batch() -> None:
    """Without dropout, whose masks depend on where a row lies."""
    found = {}
    for name, options in {
        "whole": {"batch_size": 16, "accumulate": 1},
        "accumulated": {"batch_size": 8, "accumulate": 2},
        "packed": {"batch_size": 16, "accumulate": 1, "pack": True},
    }.items():
        loader = Loader(random_rows(shortest=6, longest=16), max_length=32, seed=0, parts=8, **options)
        config = StepConfig(Scope(CONFIG, SPEC), "none")
        params = decoder.initialize(CONFIG, jax.random.key(0))
        for mesh in (None, make_mesh("data=4,fsdp=2")):
            here = config._replace(scope=config.scope._replace(mesh=mesh))
            state = initial_state(here, lora.initialize(CONFIG, SPEC, jax.random.key(1)))
            spreaded = params if mesh is None else spread.place(CONFIG, params, mesh)
            rows = []
            for step in range(1, 4):
                batch = put(loader.step(step).batch, mesh)
                state, one = train_step(here, state, Controls(5e-3), spreaded, (), batch)
                rows.append({key: float(value) for key, value in one.items()})
            found[name, mesh is None] = rows
    expected = found["whole", True]
    for rows in found.values():
        assert_same(rows, expected)


# --------------------------------------------------------------------------------------------------- compiled programs


@cache
def compiled(mesh_text: str, **options: Any) -> Any:
    run = begun(mesh_text, **options)
    return train_step.lower(run.config, run.state, *run.arguments(1, np.float32(1e-3))).compile()


def collectives(program: Any) -> list[tuple[str, list[tuple[int, ...]]]]:
    """(kind, shapes) of every collective in the optimized program."""
    found = []
    for shapes, kind in COLLECTIVE.findall(program.as_text()):
        sizes = [tuple(map(int, filter(None, s.split(",")))) for s in re.findall(r"\w+\[([\d,]*)\]", shapes)]
        found.append((kind, sizes))
    return found


def size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def test_copied_weights_cost_one_sum_of_the_gradients() -> None:
    """On data=8, once a step: the adapters' gradients are summed, those of the penalty, whose F is split over the
    devices, summed for A and put together for B; and a few scalars."""
    found = collectives(compiled("data=8"))
    adapters = lora.initialize(CONFIG, SPEC, jax.random.key(1))
    of_a, of_b = (sum(factors[name].size for factors in adapters.values()) for name in "ab")
    moved = {
        kind: sum(size(shape) for found_kind, shapes in found if found_kind == kind for shape in shapes)
        for kind in {kind for kind, _ in found}
    }
    assert moved.keys() == {"all-reduce", "all-gather"}
    assert 2 * of_a + of_b <= moved["all-reduce"] <= 2 * of_a + of_b + 100
    assert moved["all-gather"] == of_b
    assert {kind for kind, _ in collectives(compiled("data=8", regularizer="l2"))} == {"all-reduce"}


@pytest.mark.parametrize("remat", ["none", "layers"])
def test_spread_weights_are_gathered_a_layer_at_a_time(remat: Any) -> None:
    # A penalty is the same with either.
    found = collectives(compiled("fsdp=8", **({} if remat == "none" else {"remat": remat, "regularizer": "none"})))
    largest = max(size(spec.shape) for spec in decoder.weight_table(CONFIG).values())
    gathered = [shape for kind, shapes in found if kind == "all-gather" for shape in shapes]
    assert gathered
    # One layer's matrix, or a chunk of the head: never the stack of both layers.
    assert max(map(size, gathered)) <= largest
    assert {kind for kind, _ in found} <= {"all-gather", "all-reduce", "all-to-all"}


def test_what_tensor_splits_stays_split() -> None:
    """On a mesh of three axes devices swap halves of their share of a weight; only the adapters' gradients are put
    together, and ids."""
    found = collectives(compiled("data=2,fsdp=2,tensor=2", regularizer="none"))
    sizes = {kind: [size(shape) for k, shapes in found if k == kind for shape in shapes] for kind, _ in found}
    largest = max(size(spec.shape) for spec in decoder.weight_table(CONFIG).values())
    assert max(sizes["collective-permute"]) <= largest / 4
    adapters = lora.initialize(CONFIG, SPEC, jax.random.key(1))
    assert max(sizes["all-gather"]) <= max(leaf.size for leaf in jax.tree.leaves(adapters))
    assert sum(sizes["all-gather"]) <= sum(leaf.size for leaf in jax.tree.leaves(adapters)) + 2 * 8 * 24


@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_swapping_halves_is_gathering(devices: int, axis: int) -> None:
    mesh = make_mesh(f"fsdp={devices},data={8 // devices}")
    x = jnp.arange(16 * 8, dtype=jnp.float32).reshape(16, 8)
    split = P(*[None] * axis, "fsdp")

    def scattered(whole: jax.Array) -> jax.Array:
        return exchange.scatter_sum(whole * (1 + jax.lax.axis_index("fsdp")), "fsdp", axis)

    over = partial(jax.shard_map, mesh=mesh, check_vma=False)
    together = jax.jit(over(partial(exchange.all_gather, axis_name="fsdp", axis=axis), in_specs=split, out_specs=P()))
    np.testing.assert_array_equal(together(x), x)
    sums = jax.jit(over(scattered, in_specs=P(), out_specs=split))
    np.testing.assert_array_equal(sums(x), x * sum(range(1, devices + 1)))


def test_what_a_device_holds_falls_as_computed() -> None:
    """Weights, F and batch; the adapters and the optimizer are on every device."""
    arguments = {mesh: compiled(mesh).memory_analysis().argument_size_in_bytes for mesh in ("data=8", "fsdp=8")}
    params = flatten(decoder.initialize(CONFIG, jax.random.key(0)))
    split = sum(x.nbytes for path, x in params.items() if x.ndim - path.startswith("layers.") == 2)
    assert arguments["data=8"] - arguments["fsdp=8"] == pytest.approx(split * 7 / 8, rel=1e-3)


def test_no_device_keeps_gathered_layers() -> None:
    """Temporaries of the step grow by each further layer's input, not by its matrices put together."""
    temporary = {}
    for layers in (2, 8):
        config = dataclasses.replace(CONFIG, num_layers=layers, intermediate_size=1536)
        spec = lora.adapter_spec(config, LoraConfig(rank=1, targets="q_proj"))
        mesh = make_mesh("fsdp=8")
        params = spread.place(config, decoder.initialize(config, jax.random.key(0)), mesh)
        step_config = StepConfig(Scope(config, spec, mesh, remat="layers"))
        state = initial_state(step_config, lora.initialize(config, spec, jax.random.key(1)))
        batch = put(Loader(random_rows(), 8, 1, 32, 0).step(1).batch, mesh)
        program = train_step.lower(step_config, state, Controls(1e-3), params, (), batch).compile()
        temporary[layers] = program.memory_analysis().temp_size_in_bytes
    of_a_layer = 3 * 64 * 1536 * 4  # bytes of its feed-forward
    print(f"temporaries {temporary}, matrices of a layer {of_a_layer}")
    assert (temporary[8] - temporary[2]) / 6 < of_a_layer / 10


# ------------------------------------------------------------------------------------------------------- several hosts

_HOST = """
import sys
from e2wm_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


def on_two_hosts(arguments: list[str]) -> list[tuple[int, str, str]]:
    """Run the command in two processes of four devices each; (exit code, stdout, stderr) of both."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = []
    for index in range(2):
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": re.sub(r"device_count=\d+", "device_count=4", os.environ["XLA_FLAGS"]),
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        hosts.append(subprocess.Popen([sys.executable, "-c", _HOST, *arguments], env=environment, **pipes))
    said = [host.communicate(timeout=300) for host in hosts]
    return [(host.returncode, *texts) for host, texts in zip(hosts, said, strict=True)]


@pytest.mark.slow
def test_two_hosts_of_four_devices_train_as_one(tiny_llama: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"input": f"Count {'x' * int(n)}.", "ref": str(n)} for n in rng.integers(1, 20, 24)]
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "--model", str(tiny_llama), "--data", str(tmp_path / "a.json"), "--batch-size", "8"]
    words += ["--steps", "6", "--max-length", "48", "--lr", "0.003", "--regularizer", "l2", "--strength", "0.1"]
    from e2wm_jax.cli import main

    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    two = [*words, "--out", str(tmp_path / "two"), "--distributed", "--checkpoint-every", "3"]
    hosts = on_two_hosts([*two, "--mesh", "data=2,fsdp=2,tensor=2", "--json"])
    assert [code for code, _, _ in hosts] == [0, 0], hosts
    found, expected = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert [row["examples"] for row in found] == [row["examples"] for row in expected]
    assert_same(found, expected)
    # Another mesh goes on where this one stopped: from the checkpoint of step 3 on one device.
    shutil.rmtree(tmp_path / "two/checkpoints/6")
    assert main([*words, "--out", str(tmp_path / "two"), "--checkpoint-every", "3", "--resume"]) == 0
    again = read_metrics(tmp_path / "two/metrics.jsonl")
    assert again[:3] == found[:3]
    assert_same(again, expected)


@pytest.mark.slow
def test_hosts_that_share_rows_train_as_one(tiny_llama: Path, tmp_path: Path) -> None:
    """The tensor axis spans both hosts: each has all rows, and half of every weight."""
    rows = [{"input": f"Count {'x' * n}.", "ref": str(n)} for n in (3, 9, 14, 5)]
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "train",
        "--model",
        str(tiny_llama),
        "--data",
        str(tmp_path / "a.json"),
        "--batch-size",
        "4",
        "--steps",
        "2",
    ]
    words += ["--max-length", "48", "--lr", "0.003", "--validation", str(tmp_path / "a.json")]
    from e2wm_jax.cli import main

    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    mesh = ["--distributed", "--mesh", "tensor=8", "--json"]
    hosts = on_two_hosts([*words, "--out", str(tmp_path / "two"), *mesh])
    assert [code for code, _, _ in hosts] == [0, 0], hosts
    assert_same(*(read_metrics(tmp_path / name / "metrics.jsonl") for name in ("two", "one")))
    found, expected = (read_metrics(tmp_path / name / "validation.jsonl") for name in ("two", "one"))
    np.testing.assert_allclose([row["nats"] for row in found], [row["nats"] for row in expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mesh", "data=3"], "--mesh data=3: 3 x 1 x 1 = 3 devices, but there are 8"),
        (["--mesh", "data=8", "--batch-size", "12"], "--batch-size 12: data x fsdp = 8 devices of --mesh data=8"),
        (["--mesh", "rows=8"], "--mesh rows=8: unknown axis 'rows'"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(
    flags: list[str], message: str, tiny_llama: Path, tmp_path: Path, capsys: Any
) -> None:
    from e2wm_jax.cli import main

    (tmp_path / "a.json").write_text('{"input": "a", "ref": "b"}\n')
    words = ["train", "--model", str(tiny_llama), "--data", str(tmp_path / "a.json"), "--out", str(tmp_path / "run")]
    assert main([*words, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
