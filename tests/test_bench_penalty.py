"""The benchmark of the penalty: its sides compute the same, and its report says what was measured."""

import json

import pytest

from e2wm_jax.bench import harness, penalty
from e2wm_jax.bench.jobs.penalty import STEPS, StepCase
from e2wm_jax.bench.ours import penalty as our_penalty
from e2wm_jax.bench.peers import penalty as peer_penalty
from e2wm_jax.bench.penalty import PenaltyBenchSettings, run
from e2wm_jax.cli import COMMANDS
from e2wm_jax.config import MODELS
from e2wm_jax.errors import InputError

CASE = {"modules": 2, "size": 96, "rank": 3, "seed": 4}


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    monkeypatch.setattr(harness, "LEAST_SECONDS", 0.0)


def test_our_sides_and_the_official_expression_compute_one_value(torch_oracle):
    ours, official = our_penalty.penalties(CASE), peer_penalty.official(CASE)
    wanted = official["official"]()
    assert wanted["seconds"] > 0
    assert official["official"]()["value"] == wanted["value"]  # nothing is left over from the call before
    assert ours["plain"]()["value"] == pytest.approx(wanted["value"], rel=1e-5)
    for dtype, bound, bytes_each in (("float32", 1e-5, 4), ("bfloat16", 1e-2, 2), ("uint8", 1e-2, 1 + 4 * 2 / 96)):
        found = ours["fused"](dtype=dtype, implementation="xla")
        assert found["value"] == pytest.approx(wanted["value"], rel=bound)
        assert found["bytes_per_entry"] == pytest.approx(bytes_each)
        assert found["temporaries_mib"] < 1
    assert ours["read"]().keys() == {"seconds", "temporaries_mib"}


def test_report_of_a_small_run(monkeypatch, tmp_path, capsys):
    """In processes of its own, without torch."""
    monkeypatch.setattr(penalty, "has_transformers", lambda: False)
    settings = PenaltyBenchSettings(
        modules=1, size=64, rank=2, dtypes=("float32", "uint8"), steps=("none",), repeats=1, out=tmp_path / "p.html"
    )
    report = json.loads(json.dumps(run(settings)))
    rows = report["penalty"]
    assert list(rows) == ["reading F once", "plain, autodiff", "float32", "uint8"]
    assert rows["float32"]["value_error"] < 1e-5
    assert 0 < rows["uint8"]["value_error"] < 1e-2
    for row in rows.values():
        assert row["over_read"] == pytest.approx(row["seconds"] / rows["reading F once"]["seconds"])
        assert row["speedup_over_plain"] == pytest.approx(rows["plain, autodiff"]["seconds"] / row["seconds"])
        assert row["speedup"] is None
    assert report["steps"] == {}
    penalty.show(report)
    shown = capsys.readouterr().out
    assert "x reading F" in shown
    assert "uint8" in shown
    assert "<svg" in (tmp_path / "p.html").read_text()


@pytest.mark.slow
def test_steps_with_and_without_the_penalty(monkeypatch, capsys):
    monkeypatch.setitem(STEPS, "tiny", StepCase(MODELS["tiny"], "q_proj", 2, 8, "float32"))
    step = our_penalty.training({"name": "tiny", "rank": 2, "seed": 0})["step"]
    assert step(dtype="uint8")["seconds"] > 0
    rows = {"without": {"seconds": 0.5}, "uint8": {"seconds": 0.505, "overhead": 1.01}}
    penalty.show({"penalty": {}, "steps": {"tiny": rows}})
    assert "step tiny: 500.0 ms without the penalty; with uint8 1.010 times that" in capsys.readouterr().out


def test_wrong_settings_are_refused_before_anything_runs():
    with pytest.raises(InputError, match=r"--steps c9: unknown; choose from small-qv, .*, none"):
        run(PenaltyBenchSettings(steps=("c9",)))
    with pytest.raises(InputError, match="--rank 0: must be at least 1"):
        run(PenaltyBenchSettings(rank=0))


def test_it_is_a_command():
    assert COMMANDS["bench penalty"].function == "bench.penalty.run"
