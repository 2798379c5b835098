"""What a command says while it works: activities, compilations, bars and messages that keep out of each other's way."""

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from e2wm_jax.data import tokenizer
from e2wm_jax.running import compilation, progress
from e2wm_jax.storage.model_files import ModelFiles


@pytest.fixture
def quick(monkeypatch) -> None:
    """Patience of a hundredth of the usual."""
    for name in ("_PATIENCE", "_SILENCE", "_LOG_EVERY", "_FRAME"):
        monkeypatch.setattr(progress, name, getattr(progress, name) / 100)


def until(happens: Callable[[], bool]) -> None:
    """Wait for it, ten seconds at most."""
    end = time.monotonic() + 10
    while not happens() and time.monotonic() < end:
        time.sleep(0.01)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("quick")
def test_what_takes_long_is_said_again_and_again_in_a_log(capsys):
    err: list[str] = []
    with progress.busy("loading the model"):
        until(lambda: err.append(capsys.readouterr().err) or len("".join(err).splitlines()) > 2)
    first, *others = "".join(err).splitlines()
    assert first == "loading the model ..."
    assert others
    assert all(re.fullmatch(r"loading the model \.\.\. \d+ s", line) for line in others)


def test_what_takes_a_moment_is_not_said(capsys):
    with progress.busy("loading the model"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("quick")
def test_of_activities_in_one_another_the_inner_one_is_said(capsys):
    err: list[str] = []
    with progress.busy("outer"), progress.busy("inner"):
        until(lambda: err.append(capsys.readouterr().err) or any(err))
    assert "".join(err).startswith("inner ...\n")


@pytest.mark.usefixtures("quick")
def test_a_terminal_shows_a_wheel_and_takes_it_away(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress.busy("loading the model"):
        until(lambda: "loading" in terminal.getvalue())
    assert re.search(r"\r[-|/\\] loading the model, 0 s", terminal.getvalue())
    assert re.search(r"\r +\r$", terminal.getvalue())


@pytest.mark.usefixtures("quick")
def test_a_worker_process_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress.multiprocessing, "parent_process", object)
    with progress.busy("loading the model"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_messages_beside_a_bar_have_lines_of_their_own(capsys):
    with progress.progress_bar("train", 2, "step") as bar:
        bar.update()
        progress.say("step 1: left out")
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert "step 1: left out" in lines
    assert all(line.startswith(("train: ", "step 1: left out")) for line in lines)
    assert lines[-1].startswith("train: 100%")


@pytest.mark.usefixtures("quick")
def test_compilations_are_said_by_name_and_their_seconds_counted(capsys, monkeypatch):
    compilation.say_compilations()
    before, started = compilation.compile_seconds(), time.monotonic()

    @jax.jit
    def many_products(x):
        for _ in range(100):
            x = jnp.sin(x) @ jax.jit(jnp.cos)(x)  # traced inside the other: counted once
        return x

    many_products(jnp.ones((3, 3))).block_until_ready()
    wall, seconds = time.monotonic() - started, compilation.compile_seconds() - before
    assert 0.1 * wall < seconds < wall
    assert "compiling many_products ..." in capsys.readouterr().err

    again = compilation.compile_seconds()
    many_products(jnp.ones((3, 3))).block_until_ready()
    assert compilation.compile_seconds() - again < 0.1 * seconds
    monkeypatch.setattr(compilation._LISTENER, "speaks", False)
    jax.clear_caches()


def test_a_jax_without_such_events_is_no_error(monkeypatch):
    monkeypatch.setattr(compilation, "_REGISTERED", [])
    monkeypatch.delattr(jax.monitoring, "register_scalar_listener")
    assert compilation.compile_seconds() >= 0


@pytest.mark.parametrize(("rows", "columns", "widest"), [(24, 60, 60), (24, 200, 100), (0, 0, 100)])
def test_bars_and_wheels_fit_the_terminal_also_one_without_a_size(monkeypatch, quick, rows, columns, widest):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.progress_bar("train", 3, "step") as bar:
            bar.update(2)
            with progress.busy("compiling"):
                time.sleep(0.2)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "3/3" not in shown
    assert "compiling, 0 s" in shown
    assert max(len(state) for state in re.split(r"[\r\n]", shown) if "train:" in state) == widest


def test_a_command_says_that_it_loads_the_tokenizer(monkeypatch, quick, capsys):
    err: list[str] = []
    monkeypatch.setattr(
        tokenizer, "load_tokenizer", lambda _: until(lambda: err.append(capsys.readouterr().err) or any(err))
    )
    tokenizer.open_tokenizer(ModelFiles("my-model", Path("my-model"), "hf"))
    assert "".join(err).startswith("loading the tokenizer ...\n")
