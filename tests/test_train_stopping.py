"""Runs that end before their last step: when held-out rows have no more to gain, or time is up."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from e2wm_jax.config import LoraConfig
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.lora import Scope
from e2wm_jax.models.weights import load
from e2wm_jax.storage.adapter_files import read_adapter
from e2wm_jax.storage.metrics import read_metrics
from e2wm_jax.storage.model_files import locate
from e2wm_jax.train.run import run
from e2wm_jax.train.sequence.run import run as run_sequence
from e2wm_jax.train.sequence.settings import SequenceSettings
from e2wm_jax.train.settings import TrainSettings
from e2wm_jax.train.watch.stopping import Validated, exhausted, lowest
from e2wm_jax.train.watch.validation import held_out_rows, validation_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([], 1, False),
        ([3.0], 1, False),
        ([3.0, 2.0, 1.0], 1, False),
        ([3.0, 2.0, 2.0], 1, True),
        ([3.0, 2.0, 2.5], 2, False),
        ([3.0, 2.0, 2.5, 2.1], 2, True),
        ([3.0, 2.0, 2.5, 2.1], None, False),
        ([3.0, math.nan, 2.0], 1, False),
        ([math.nan, 2.0, math.nan], 1, True),
    ],
)
def test_patience_by_hand(losses, patience, expected):
    validated = [Validated(step, nats) for step, nats in enumerate(losses, start=1)]
    assert exhausted(validated, patience) is expected
    if losses:
        assert lowest(validated).nats == min(loss for loss in losses if not math.isnan(loss))


@pytest.fixture(scope="module")
def given(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is learned is not what is held out, at a rate at which that soon shows."""
    folder = tmp_path_factory.mktemp("data")
    for name, refs in (("a", "1212"), ("held-out", "2121")):
        rows = [{"input": f"In the hall: cup {n}. How many?", "ref": ref} for n, ref in enumerate(refs)]
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lora = LoraConfig(rank=2, alpha=4.0, targets="q_proj", dropout=0.0)
    shared = {"model": str(tiny_llama), "lora": lora, "batch_size": 4, "max_length": 48, "lr": 0.1}
    files = {"data": (str(folder / "a.json"),), "validation": (str(folder / "held-out.json"),)}
    return {**shared, **files, "schedule": "constant", "checkpoint_every": 1, "steps": 30}


def test_patience_ends_the_run_with_the_best_adapter(given, tmp_path, capsys):
    settings = TrainSettings(out=tmp_path / "run", patience=2, **given)
    result = run(settings)
    rows = read_metrics(tmp_path / "run/validation.jsonl")
    best = min(rows[1:], key=lambda row: row["nats"])
    assert rows[0]["step"] == 0
    assert result["steps"] == best["step"] + 2 < given["steps"]
    assert result["stopped"] == "--patience 2"
    assert f"the held-out loss was lowest at step {best['step']}" in capsys.readouterr().err

    def loss() -> float:
        model = load(given["model"])
        held_out = held_out_rows(
            settings, load_tokenizer(locate(given["model"])), model.config, given["validation"], "-"
        )
        adapters, spec = read_adapter(tmp_path / "run/adapter", model.config)
        return validation_loss(Scope(model.config, spec), model.params, adapters, held_out, 4, 48)

    assert loss() == pytest.approx(best["nats"], rel=1e-5)
    # Resumed it has no more patience than before; with more it goes on.
    again = run(TrainSettings(out=tmp_path / "run", patience=2, resume=True, **given))
    assert again["steps"] == result["steps"]
    assert read_metrics(tmp_path / "run/validation.jsonl") == rows
    more = run(TrainSettings(out=tmp_path / "run", patience=3, resume=True, **given))
    assert more["steps"] > result["steps"]


def test_time_that_is_up_ends_the_run_with_a_checkpoint(given, tmp_path, capsys):
    options = {**given, "validation": (), "checkpoint_every": 100, "steps": 6}
    result = run(TrainSettings(out=tmp_path / "run", max_minutes=1e-9, **options))
    assert (result["steps"], result["stopped"]) == (1, "--max-minutes 1e-09")
    assert "stopped after step 1: --max-minutes 1e-09 are over; continue with --resume" in capsys.readouterr().err
    assert (tmp_path / "run/adapter/adapter_config.json").is_file()
    assert "stopped" not in run(TrainSettings(out=tmp_path / "run", resume=True, max_minutes=60.0, **options))
    run(TrainSettings(out=tmp_path / "whole", **options))
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 0}, "--patience 0: must be at least 1"),
        ({"patience": 2, "validation": ()}, "--patience 2: needs held-out rows to go by; give --validation FILE"),
        ({"max_minutes": 0.0}, "--max-minutes 0.0: must be a finite number above 0"),
    ],
)
def test_what_cannot_be_is_refused(given, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(TrainSettings(out=tmp_path / "run", **{**given, **changes}))
    if "validation" not in changes:
        tasks = {"tasks": given["data"] * 2, "tests": given["data"] * 2}
        of_tasks = {name: value for name, value in given.items() if name not in ("data", "steps")} | changes
        with pytest.raises(InputError, match="a sequence trains each task to its last step"):
            run_sequence(SequenceSettings(out=tmp_path / "run", steps=1, **tasks, **of_tasks))


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b'{"loss": 1}', b'{"step": "1"}', b'{"step": 1}', b"\xff\xfe", b"[" * 10_000]
)
@pytest.mark.parametrize("name", ["metrics.jsonl", "validation.jsonl"])
def test_a_damaged_log_is_one_line(given, tmp_path, name, line):
    options = {**given, "steps": 1}
    if not (out := tmp_path.parent / "finished").is_dir():
        run(TrainSettings(out=out, **options))
    whole = (out / name).read_bytes()
    (out / name).write_bytes(line + b"\n" + whole)
    with pytest.raises(InputError, match=rf"{name}:1: not a row with a step, .*; remove the line"):
        run(TrainSettings(out=out, resume=True, **options))
    (out / name).write_bytes(whole)
