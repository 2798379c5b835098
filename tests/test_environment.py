"""What surrounds a process: precision and devices of jax, its cache, streams, paths that cannot be."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2wm_jax import cli, lora
from e2wm_jax.cli import main
from e2wm_jax.running import compilation_cache
from e2wm_jax.running.environment import device_error

ROOT = Path(__file__).parents[1]


def e2wm(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program itself, in an environment of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    return subprocess.run(
        [sys.executable, "-m", "e2wm_jax", *words],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


# ------------------------------------------------------------------------------------------------------------ precision


def test_dropout_is_the_same_with_64_bits():
    keys = jax.random.split(jax.random.key(3), 2)
    kept = lora._kept(keys, 0.3, (5, 7))
    with jax.enable_x64(True):
        again = lora._kept(keys, 0.3, (5, 7))
    np.testing.assert_array_equal(kept, again)


@pytest.mark.slow
def test_a_shell_for_64_bits_and_a_full_cache_change_no_number(tiny_llama, tmp_path, variables):
    """One training as it is, one with jax's 64 bits asked for, one that finds its programs compiled."""
    (tmp_path / "task.json").write_text('{"input": "a", "ref": "b c d"}\n' * 4)
    logs = []
    others = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    for number, variables in enumerate(({}, {}, others)):
        quick = "--xla_backend_optimization_level=0"
        cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XLA_FLAGS": quick}
        words = f"train --model {tiny_llama} --data task.json --steps 2 --batch-size 2 --out run{number} --json"
        words += "" if number else " --no-compilation-cache"
        done = e2wm(*words.split(), folder=tmp_path, **cache, **variables)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "cache/e2wm").exists() == (number > 0)
        files = [tmp_path / f"run{number}" / name for name in ("metrics.jsonl", "adapter/adapter_model.safetensors")]
        logs.append([file.read_bytes() for file in files])
    assert logs[0] == logs[1] == logs[2]


# ---------------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def variables(monkeypatch, tmp_path):
    """No variable of jax's cache, and a home of this test."""
    for name in (compilation_cache.FOLDER, compilation_cache._ENABLED, compilation_cache._LEAST_SECONDS):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_compiled_programs_are_kept_in_the_users_cache_folder(variables):
    compilation_cache.keep_compiled()
    folder = compilation_cache.folder_in_use()
    assert folder is not None
    assert folder.is_relative_to(variables / "cache/e2wm/compiled")
    assert folder.is_dir()
    assert folder == compilation_cache.default_folder()


def test_a_folder_of_the_environment_stays(variables, monkeypatch):
    monkeypatch.setenv(compilation_cache.FOLDER, "elsewhere")
    compilation_cache.keep_compiled()
    assert compilation_cache.folder_in_use() == Path("elsewhere")
    compilation_cache.keep_compiled(wanted=False)
    assert compilation_cache.folder_in_use() is None


def test_without_a_folder_to_write_to_nothing_is_kept(variables, monkeypatch):
    (variables / "cache").write_text("a file")
    compilation_cache.keep_compiled()
    assert compilation_cache.folder_in_use() is None


def test_what_was_unused_for_longest_goes_first(variables, monkeypatch):
    for number in range(6):
        path = variables / f"{number}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (number, number))
    monkeypatch.setattr(compilation_cache, "_LARGEST", 50)
    compilation_cache._prune(variables)
    assert sorted(path.name for path in variables.iterdir()) == ["4-cache", "5-cache"]
    assert compilation_cache.size(variables) == 20


# -------------------------------------------------------------------------------------------------- devices and streams


@pytest.mark.slow
def test_devices_that_are_not_there_are_one_line(tiny_llama, tmp_path):
    (tmp_path / "text.txt").write_text("The cup is on the table.\n")
    words = f"eval perplexity --model {tiny_llama} --data text.txt --json --no-compilation-cache".split()
    for variable, value, says in (
        ("JAX_PLATFORMS", "cuda", "JAX_PLATFORMS=cuda: jax finds no such device"),
        ("JAX_PLATFORM_NAME", "gpu", "JAX_PLATFORM_NAME=gpu: jax finds no such device"),
        ("JAX_NUM_CPU_DEVICES", "many", "JAX_NUM_CPU_DEVICES=many: jax cannot read"),
    ):
        done = e2wm(*words, folder=tmp_path, **{variable: value})
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert (done.returncode, done.stdout, len(errors)) == (2, "", 1), done.stderr
        assert says in errors[0]
        assert "Traceback" not in done.stderr


def test_other_errors_are_not_taken_for_those_of_devices():
    jnp.ones(2).block_until_ready()
    assert device_error(RuntimeError("out of cheese")) is None


def test_text_that_a_stream_has_not_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    cli._take_any_text()
    print("café \udcff")
    sys.stdout.flush()
    assert raw.getvalue() == b"caf\\xe9 \\udcff\n"


def test_closed_streams_are_no_error(monkeypatch, capsys):
    for stream in ("stdout", "stderr", "stdin"):
        monkeypatch.setattr(sys, stream, None)
    assert main(["doctor", "--print-config"]) == 0
    assert main(["nonsense"]) == 2


# ---------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train --model m --data gs://b/a.json --out o", "--data gs://b/a.json: gs:// addresses are not read"),
        ("train --model m --data a.json --out gs://b/run", "--out gs://b/run: gs:// addresses are not read or written"),
        ("train --model s3://b/m --data a.json --out o", "--model s3://b/m: s3:// addresses"),
        ("train --model m --data a.json --out o --adapter hdfs://x/y", "--adapter hdfs://x/y: hdfs:// addresses"),
        ("fisher --model m --data a.txt https://x.org/b.txt --out o", "--data https://x.org/b.txt: https:// addresses"),
        ("collect --policy random --out gs://b/run", "--out gs://b/run: gs:// addresses"),
        ("report gs://b/run", "PATH gs://b/run: gs:// addresses"),
        ("train --model m --data a.json --out file/run", "--out file/run: {here}/file is a file, no folder"),
        ("eval qa --model m --data a.json --predictions file/p", "--predictions file/p: {here}/file is a file"),
    ],
)
def test_places_that_cannot_be_are_refused_before_any_work(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(words.split()) == 2
    assert f"error: {says.format(here=tmp_path)}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert main(["train", "--model", "m", "--data", "a.json", "--out", str(tmp_path / "run")]) == 2
    assert f"--out {tmp_path}/run: {tmp_path} is not writable" in capsys.readouterr().err


def test_a_prompt_may_speak_of_addresses(tmp_path, capsys):
    words = ["generate", "--model", "m", "--prompt", "What is http://x.org?", "--print-config"]
    assert main(words) == 0
    assert json.dumps("What is http://x.org?") in capsys.readouterr().out
