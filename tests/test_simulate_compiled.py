"""The cache of compiled code: what it is keyed by, and processes that need it at the same time."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from e2wm_jax.worlds.household.native import jit

# Compiles a function of its own, not before the file "go" is there, and says how often it had to.
PROGRAM = """
import sys, time
from pathlib import Path
from numba.core import event
from e2wm_jax.worlds.household.native.jit import inner, jit

folder, name = Path(sys.argv[1]), sys.argv[2]

class Slow(event.Listener):
    def on_start(self, event):
        (folder / f"{name} compiles").touch()
        while not (folder / "go").exists():
            time.sleep(0.05)
    def on_end(self, event):
        pass

@inner
def one_more(number):
    return number + 1

@jit
def twice(number):
    return one_more(one_more(number))

event.register("numba:compile", Slow())
(folder / f"{name} is ready").touch()
assert twice(3) == 5
print(sum(twice.stats.cache_misses.values()), sum(one_more.stats.cache_misses.values()))
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.05)


def test_of_processes_that_start_together_one_compiles(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def start(name: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, str(program), str(tmp_path), name]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    first = start("first")
    wait_for(tmp_path / "first compiles")
    second = start("second")
    wait_for(tmp_path / "second is ready")
    time.sleep(1)
    (tmp_path / "go").touch()
    assert [process.communicate()[0] for process in (first, second)] == ["1 1\n", "0 0\n"]
    assert not (tmp_path / "second compiles").exists()


def test_the_cache_is_keyed_by_every_source(tmp_path, monkeypatch):
    package = Path(jit.__file__).parents[3]
    for step in ("worlds", "experience"):
        shutil.copytree(package / step, tmp_path / step, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(jit, "__file__", str(tmp_path / Path(jit.__file__).relative_to(package)))
    assert jit._digest() == jit._STAMP
    household = tmp_path / "worlds" / "household"
    sources = (household / "rules.py", household / "graph.py", household / "native" / "order.py")
    for source in (*sources, tmp_path / "experience" / "search" / "planner.py"):
        before = jit._digest()
        source.write_text(source.read_text() + "# changed\n")
        assert jit._digest() != before
