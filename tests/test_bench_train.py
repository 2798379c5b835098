"""The benchmark of the training step: its sides compute the same, and its report says what was measured."""

import importlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from e2wm_jax import lora
from e2wm_jax.bench import train
from e2wm_jax.bench.jobs import train as train_job
from e2wm_jax.bench.jobs.train import TrainJob, adapter_folder, fisher_of, loader_of, read_rows, write_rows
from e2wm_jax.bench.ours import meshes as train_meshes
from e2wm_jax.bench.ours import train as train_methods
from e2wm_jax.bench.peers import peft as train_peers
from e2wm_jax.bench.train import TrainBenchSettings, check, run
from e2wm_jax.cli import COMMANDS
from e2wm_jax.config import MODELS, GPTNeoConfig, LoraConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.errors import InputError
from e2wm_jax.train.watch.throughput import flops_per_token

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = TrainBenchSettings(
    shape="tiny",
    length=32,
    batch_size=2,
    targets=("all-linear",),
    rank=2,
    rounds=1,
    waiting_steps=2,
    regularizers=("none", "l2"),
    meshes=("fsdp=8",),
    mesh_model="tiny",
    cores=1,
)
NEO = GPTNeoConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    max_positions=64,
    tied=True,
    windows=(0, 8),
)


def small_job(folder: Path, shape: str) -> TrainJob:
    """Four rows of unequal lengths, two a step."""
    job = TrainJob(
        folder=str(folder),
        shape=shape,
        base_dtype="float32",
        targets=("all-linear", "q_proj"),
        rank=2,
        dropout=0.0,
        batch_size=2,
        max_length=48,
        cores=1,
        clock="cpu",
        seed=3,
    )
    rng = np.random.default_rng(0)
    sizes = ((40, 3), (33, 10), (36, 4), (47, 5))  # all are padded to 48
    rows = [Row(rng.integers(0, 256, length, np.int32), length - predicted) for length, predicted in sizes]
    write_rows(job, rows, [loader_of(job, rows).step(step).examples for step in (1, 2)])
    (folder / "model").mkdir()
    return job


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "index"), [("tiny", 1), ("neo", 0)])
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_the_peer_computes_our_losses_step_by_step(
    shape: str, index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_oracle: Any
) -> None:
    """With the penalty, from the same adapters: the second loss is behind an update of AdamW."""
    monkeypatch.setitem(train_job.SHAPES, "neo", NEO)
    job = small_job(tmp_path, shape)
    ours, theirs = train_methods.operations(job), train_peers.operations(job)
    ours["save"](weights=True)
    expected = theirs["losses"](index)["losses"]
    assert ours["losses"](index)["losses"] == pytest.approx(expected, rel=1e-5)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)
    step = train_peers.TorchStep(job, index, dropout=0.0)
    assert float(step.penalty().detach()) > 1e-4 * expected[0]  # it is no matter of rounding


def test_both_sides_read_the_same_rows(tmp_path: Path) -> None:
    job = small_job(tmp_path, "tiny")
    rows, orders = read_rows(job)
    assert sorted(number for order in orders for number in order) == [0, 1, 2, 3]
    for step, order in enumerate(orders, start=1):
        batch = loader_of(job, rows).step(step).batch
        lengths = (np.asarray(batch.segments[0]) >= 0).sum(-1).tolist()
        assert lengths == [len(rows[number].ids) for number in order]


def test_f_is_the_same_everywhere_and_another_for_each_module() -> None:
    f = fisher_of("model.layers.0.self_attn.q_proj", (4, 6), 1)
    np.testing.assert_array_equal(f, fisher_of("model.layers.0.self_attn.q_proj", (4, 6), 1))
    assert f.min() >= 0
    assert not np.array_equal(f, fisher_of("model.layers.1.self_attn.q_proj", (4, 6), 1))


class InThisProcess:
    """Stands for a `Peer`: five processes would each import jax."""

    def __init__(self, side: str, case: Any, *, module: str) -> None:
        assert (side, module) in (("ours", train._OURS), ("mesh", train._MESHES))
        case = asdict(case) if side == "ours" else case
        self._operations = importlib.import_module(module).SIDES[side](json.loads(json.dumps(case, default=str)))

    def ask(self, operation: str, **arguments: Any) -> Any:
        return json.loads(json.dumps({"seconds": 0.0, **self._operations[operation](**arguments)}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_report_of_a_small_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """Without torch."""
    monkeypatch.setattr(train, "Peer", InThisProcess)
    monkeypatch.setattr(train_meshes, "LENGTH", 32)
    monkeypatch.setattr(train_peers, "missing", lambda: "pip install torch")
    out = tmp_path / "out"
    report = json.loads(json.dumps(run(replace(SMALL, out=out))))
    assert [row["targets"] for row in report["steps"]] == ["all-linear"]
    for row in report["steps"]:
        assert row["side"] == "ours"
        assert row["tokens_per_second"] == pytest.approx(report["tokens"] / row["seconds"], rel=0.02)
        assert 0 < row["mfu"] < 1
        assert row["peak_bytes"] > row["held_bytes"] > 4 * report["parameters"]
    assert report["tokens"] == 2 * 2 * 32
    assert report["predicted"] == 2 * 2 * 4
    assert [row["regularizer"] for row in report["regularizers"]] == ["none", "l2"]
    assert report["regularizers"][0]["over_none"] == 1
    assert 0 <= report["waiting"]["share"] < 1
    one, spread = report["meshes"]
    spec = lora.adapter_spec(MODELS["tiny"], LoraConfig(rank=2, targets="all-linear"))
    each = flops_per_token(MODELS["tiny"], spec, 32, 0.5)
    work = (each.total + each.attention / 6) * 8 * 32  # scores are made twice
    assert one["gflops"] == pytest.approx(work / 1e9, rel=0.01)
    assert spread["gflops"] == pytest.approx(work / 8 / 1e9, rel=0.01)
    assert one["moved_bytes"] == 0 < spread["collectives"]["all-gather"]
    assert spread["argument_bytes"] < one["argument_bytes"] / 2
    assert spread["unknown_loops"] == 0
    assert report["not_installed"] == {"peft": "pip install torch"}
    train.show(report)
    shown = capsys.readouterr().out
    for word in ("tokens/s", "l2", "fsdp=8", "waiting for data", "not installed"):
        assert word in shown
    assert "<svg" in (out / "report.html").read_text()
    assert json.loads((out / "report.json").read_text())["steps"] == report["steps"]


def test_random_weights_of_any_base(tmp_path: Path) -> None:
    job = small_job(tmp_path, "tiny")
    for dtype, held in (("float32", 4 * 2 * 64 * 128), ("int8", 2 * 64 * 128 + 2 * 128 * 4)):  # with a scale per row
        _, params = train_methods.load_model(replace(job, base_dtype=dtype))
        assert train_methods._bytes(params["layers"]["up"]) == held


def test_a_large_shape_is_refused_on_a_cpu() -> None:
    with pytest.raises(InputError, match=r"--shape gpt-j-6b: 6\.1 B parameters are too many for a CPU"):
        run(replace(SMALL, shape="gpt-j-6b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "gpt-5"}, "--shape gpt-5: unknown; choose from neo4"),
        ({"shape": "tiny", "length": None}, "--shape tiny: has no tokenizer; give the length"),
        ({"length": 1024}, "--length 1024: the model has 512 positions"),
        ({"regularizers": ("ewk",)}, "--regularizer ewk: .*ewc"),
        ({"meshes": ("rows=8",)}, "--mesh rows=8: unknown axis"),
        ({"targets": ()}, "--targets: give at least one"),
        ({"targets": ("nothing",)}, "--lora.targets 'nothing' matches no linear map"),
        ({"rounds": 0}, "--rounds 0: must be at least 1"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(replace(SMALL, **change))


def test_adapters_of_every_choice_have_a_folder(tmp_path: Path) -> None:
    job = small_job(tmp_path, "tiny")
    train_methods.operations(job)["save"](weights=False)
    targets = [
        json.loads((adapter_folder(job, index) / "adapter_config.json").read_text())["target_modules"]
        for index in (0, 1)
    ]
    assert len(targets[0]) == 7
    assert targets[1] == ["q_proj"]


def test_it_is_a_command() -> None:
    assert COMMANDS["bench train"].function == "bench.train.run"
