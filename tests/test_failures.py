"""Exceptions that are no fault of the program are one line, all others are seen whole."""

import errno
import os
import resource
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from e2wm_jax import doctor
from e2wm_jax.cli import main
from e2wm_jax.errors import InputError
from e2wm_jax.experience.replay import command as replay_command
from e2wm_jax.experience.replay.command import ReplaySettings
from e2wm_jax.storage.files import parse_json, write_text

SCENE = ["replay", "--scene", "procedural:1"]


def no_memory() -> None:
    np.empty(1 << 55)


def no_device_memory() -> None:
    jnp.zeros(1 << 44).block_until_ready()


def no_memory_in_a_worker() -> None:
    raise RuntimeError("in a worker process, on job 1:\nTraceback (most recent call last):\n  ...\nMemoryError")


def no_fork() -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        (no_memory, "Unable to allocate 256. PiB"),
        (no_device_memory, "RESOURCE_EXHAUSTED: Out of memory allocating 70368744177664 bytes."),
        (no_memory_in_a_worker, "MemoryError"),
        (no_fork, "[Errno 12] Cannot allocate memory"),
    ],
)
def test_what_to_lower_is_named_where_memory_ends(fails, says, monkeypatch, capsys, tmp_path):
    from e2wm_jax.evaluate.texts import continuations

    monkeypatch.setattr(continuations, "run", lambda settings: fails())
    assert main(["generate", "--model", "m", "--prompt", "a"]) == 1
    (line,) = lines_of(capsys)
    assert line.startswith(f"error: out of memory ({says}")
    assert line.endswith("); lower --batch-size or --max-new-tokens or --beams, or give --base-dtype bfloat16")


def test_memory_that_ends_before_there_are_settings_is_said(monkeypatch, capsys):
    def no_room(name: str) -> type:
        raise MemoryError

    monkeypatch.setattr("e2wm_jax.cli.settings_class", no_room)
    assert main(SCENE) == 1
    assert lines_of(capsys) == ["error: out of memory"]


# ---------------------------------------------------------------------------------------------------- disks and paths


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc here")
@pytest.mark.parametrize("out", ["/proc/x", "/dev/null", "a" * 300, "file/run", "loop/run", "a\0b"])
@pytest.mark.parametrize(
    "command", ["collect --policy random", "train --model m --data d", "fisher --model m --data d"]
)
def test_where_nothing_can_be_written_is_refused_before_any_work(command, out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    assert main([*command.split(), "--out", out]) == 2
    (line,) = lines_of(capsys)
    assert line.startswith("error: --out "), line
    assert line.endswith(("give another place", "or make it writable"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def raising(error: Exception):
    def fails(settings: ReplaySettings) -> None:
        raise error

    return fails


def test_any_error_of_a_named_path_is_one_line(tmp_path, monkeypatch, capsys):
    words = ["replay", "--trajectories", str(tmp_path / "t"), "--out", str(tmp_path / "deep/out.jsonl")]
    for name, code in (("deep", errno.ENOENT), ("deep/out.jsonl", errno.ELOOP), ("t/shard-1", errno.EMFILE)):
        error = OSError(code, os.strerror(code), str(tmp_path / name))
        monkeypatch.setattr(replay_command, "run", raising(error))
        assert main(words) == 2
        assert lines_of(capsys) == [f"error: {tmp_path / name}: {os.strerror(code)}; give another place"]


def test_a_disk_that_is_full_is_one_line_whatever_was_written(tmp_path, monkeypatch, capsys):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/else")
    of_rust = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(replay_command, "run", raising(error))
    assert main(SCENE) == 2
    assert lines_of(capsys) == ["error: /somewhere/else: No space left on device; make room"]
    monkeypatch.setattr(replay_command, "run", raising(of_rust))
    assert main(SCENE) == 2
    assert lines_of(capsys) == ["error: No space left on device; make room"]


def test_a_disk_that_fills_while_a_result_is_written(tmp_path, monkeypatch, capsys):
    """The kernel refuses to write more into any file: as on a full disk, but for this process only."""
    monkeypatch.setattr(replay_command, "run", lambda settings: write_text(tmp_path / "result", "x" * 1000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        code = main(SCENE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    (line,) = lines_of(capsys)
    assert line == "error: File too large; make room"
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ faults of the program


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        RecursionError("maximum recursion depth exceeded"),
        RuntimeError("out of cheese"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/of/ours.json"),
        OSError("without a number"),
    ],
)
def test_a_fault_of_the_program_is_seen_whole(error, monkeypatch):
    monkeypatch.setattr(replay_command, "run", raising(error))
    with pytest.raises(type(error)) as seen:
        main(SCENE)
    assert seen.value is error


def test_bad_input_stays_what_it_says(monkeypatch, capsys):
    monkeypatch.setattr(replay_command, "run", raising(InputError("a.json:1: No space left on device (os error 28)")))
    assert main(SCENE) == 2
    assert lines_of(capsys) == ["error: a.json:1: No space left on device (os error 28)"]


# ------------------------------------------------------------------------------------------------------------ XLA_FLAGS


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--nonsense", "Unknown flag in XLA_FLAGS: --nonsense"),
        ("nonsense", 'Could not open file "nonsense" to read flags'),
        ("--xla_cpu_enable_fast_math=maybe", "Couldn't interpret value maybe for flag xla_cpu_enable_fast_math"),
    ],
)
def test_flags_at_which_xla_would_abort_are_refused(flags, says, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert main(SCENE) == 2
    (line,) = lines_of(capsys)
    assert line.startswith(f"error: XLA_FLAGS={flags}: XLA cannot read this environment variable ({says}")
    assert line.endswith("); correct it or unset it")
    monkeypatch.setattr(doctor, "_CHECKS", {})
    assert main(["doctor"]) == 0
    assert f"problem {line.removeprefix('error: ')}" in capsys.readouterr().out
    assert "XLA_FLAGS" not in os.environ


def test_flags_that_xla_knows_are_taken(monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0")
    assert main(SCENE) == 0


# -------------------------------------------------------------------------------------------------------------- nesting


@pytest.mark.parametrize("start", ["[", '{"a":', '[{"b": '])
def test_json_that_no_reader_can_follow_is_refused(start):
    ends = {"[": "]", '{"a":': "}", '[{"b": ': "}]"}[start]
    for depth in (120, 900, 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(start * depth + "1" + ends * depth)
    parse_json(start * 45 + "1" + ends * 45)
    parse_json(f"[{', '.join([start + '1' + ends] * 1000)}]")
