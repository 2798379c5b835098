"""What `e2wm doctor` tells."""

import importlib.metadata
import os

import jax
import pytest

from e2wm_jax import doctor
from e2wm_jax.cli import main


def test_extras_that_are_missing_are_named_whole(capsys, monkeypatch):
    """Names of extras stand in brackets, which a formatter of text may take for its own."""
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("lm-eval", "datasets") else "1.0")
    monkeypatch.setattr(doctor, "_CHECKS", {"nothing": lambda: None})
    monkeypatch.setattr(doctor, "_out_of_bounds", lambda versions: [])
    result = doctor.run(doctor.DoctorSettings())
    assert result["ok"], result["problems"]
    doctor.show(result)
    shown = " ".join(capsys.readouterr().out.split())
    assert "lm-eval - optional: e2wm eval harness; pip install 'e2wm_jax[harness]'" in shown
    assert "datasets - optional: --data of Parquet files and data sets; pip install 'e2wm_jax[datasets]'" in shown


def broken() -> None:
    raise ImportError("libstrange.so: cannot open shared object file")


def test_each_problem_is_one_line_with_the_way_out(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_CHECKS", {"texts are compared (rouge-score)": broken})
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "qwix" else "0.1")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["jax<0.13,>=0.10", 'peft>=1; extra == "test"'])
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")

    def none_there() -> None:
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", none_there)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    problems = [line for line in lines if line.startswith("problem ")]
    assert problems[:2] == [
        "problem qwix is missing: pip install qwix",
        "problem jax 0.1: must be <0.13,>=0.10: pip install 'jax<0.13,>=0.10'",
    ]
    assert problems[2].startswith("problem JAX_PLATFORMS=cuda: jax finds no such device on this machine")
    assert "rouge-score): ImportError: libstrange.so: cannot open shared object file; pip install" in problems[3]
    assert len(problems) == 4
    assert lines[-1] == "not complete: see the problems"


@pytest.mark.parametrize("name", ["weights are quantized (qwix)", "texts are compared (rouge-score)"])
def test_what_the_base_install_needs_works_here(name):
    doctor._CHECKS[name]()


def test_where_compiled_programs_are_is_shown(monkeypatch, tmp_path):
    (tmp_path / "program").write_bytes(bytes(10))
    monkeypatch.setitem(os.environ, "JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert doctor._caches() == {"compiled programs": {"folder": str(tmp_path), "bytes": 10}}
    monkeypatch.setitem(os.environ, "JAX_ENABLE_COMPILATION_CACHE", "0")
    assert doctor._caches()["compiled programs"]["folder"] is None
