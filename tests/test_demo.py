"""The whole flow in its smallest form, on a random model: stages, table, report, and going on after an interruption."""

import json
from pathlib import Path

import pytest

from e2wm_jax.cli import main

pytest.importorskip("virtualhome_eval", reason="needs virtualhome and virtualhome-eval (make setup)")


@pytest.mark.slow
def test_demo_runs_shows_and_continues(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", "--preset", "tiny", "--model", str(tiny_llama), "--out", str(tmp_path / "demo")]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["models"]) == ["base", "LoRA", "EWC-LoRA"]
    report = Path(result["report"]).read_text(encoding="utf-8")
    for heading in ("Result", "Losses", "Fisher by layer", "What the agent did", "How it was made"):
        assert f">{heading}</h2>" in report

    (tmp_path / "demo" / "stages" / "9.json").unlink()  # as if interrupted before the last stage
    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.err.count("done before") == 8
    assert "EWC-LoRA" in shown.out

    assert main([*command, "--seed", "1"]) == 2
    assert "holds a demo with" in capsys.readouterr().err
