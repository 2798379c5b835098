"""Training under faults: killed again and again, a full disk, damaged checkpoints; the end is always the same."""

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from e2wm_jax.cli import main
from e2wm_jax.storage.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[1]
KILLS = 20
EXAMPLES = 30

# Imports once, then a process for each attempt: what `python -m e2wm_jax train` is after its imports. The parent never
# touches a device, so that its children may. An attempt is killed
#   "row": after a new row of the metrics;  "write": after a checkpoint's writing has begun;  "any": after its start;
# each time a moment later; None: not at all. Prints [attempt, signal or exit code] as JSON.
DRIVER = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import e2wm_jax.train.run
from e2wm_jax.cli import main
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.storage.model_files import locate

attempts, words = json.loads(sys.argv[1]), sys.argv[2:]
out, model = (words[words.index(name) + 1] for name in ("--out", "--model"))
out, log = Path(out), Path(out) / "metrics.jsonl"
load_tokenizer(locate(model))  # for what it imports
rng = random.Random(0)

def rows():
    return log.read_bytes().count(b"\\n") if log.is_file() else 0

def writing():
    return {path.name for path in (out / "checkpoints").glob("*tmp*")}

def due(kind, state):
    if kind == "write":
        return bool(writing() - state["writing"])
    return rows() >= state["rows"] or (kind == "any" and time.monotonic() > state["until"])

for kind in attempts:
    # Rows behind the last checkpoint are dropped and written again, so that the new ones are those beyond.
    state = {"rows": rows() + rng.choice([1, 2]), "writing": writing(), "until": time.monotonic() + rng.uniform(0, 4)}
    later = rng.choice([0, 0.003, 0.01, 0.04])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = main(words)
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = None
    while status is None:
        if kind and due(kind, state):
            time.sleep(later)
            os.kill(child, signal.SIGKILL)
            kind = None
        found, ended = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(ended) if found else None
        time.sleep(0.002)
    last = sorted(int(path.name) for path in (out / "checkpoints").glob("*") if path.name.isdigit())[-1:]
    print(json.dumps([status, rows(), last]), flush=True)
"""


@pytest.fixture(scope="module")
def words(tiny_llama, tmp_path_factory) -> list[str]:
    """The command but for --out: eighty steps of four of thirty examples."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    lines = [{"input": f"Count {'x ' * n}", "ref": str(n)} for n in (rng.randrange(1, 12) for _ in range(EXAMPLES))]
    (folder / "count.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        *("train", "--model", str(tiny_llama), "--data", str(folder / "count.json")),
        *("--steps", "80", "--batch-size", "4", "--max-length", "48", "--lr", "0.003"),
        *("--lora.rank", "4", "--lora.dropout", "0.1", "--regularizer", "l2", "--strength", "0.01"),
        *("--checkpoint-every", "2", "--keep-checkpoints", "2", "--keep-best", "1"),
    ]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, str]:
    """The environment of runs that compile once together."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def attempts(out: Path, kinds: list[str | None], words: list[str], environment: dict[str, str]) -> list[list[Any]]:
    """[exit code, rows, last checkpoint] after each attempt at the run."""
    command = [sys.executable, "-c", DRIVER, json.dumps(kinds), *words, "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


@pytest.fixture(scope="module")
def left_alone(words, compiled, tmp_path_factory) -> Path:
    """The run that nobody disturbs."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert [code for code, *_ in attempts(out, [None], words, compiled)] == [0]
    return out


def assert_same_run(found: Path, expected: Path) -> None:
    """Metrics and adapter to the byte, and the same checkpoints."""
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    steps = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (found, expected)]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_killed_twenty_times_ends_as_the_run_left_alone(words, compiled, left_alone, tmp_path):
    out = tmp_path / "run"
    kinds = [("row", "write", "write", "any")[number % 4] for number in range(KILLS)]
    seen = attempts(out, [*kinds, None], [*words, "--resume"], compiled)
    print(seen)
    assert [code for code, *_ in seen] == [-9] * KILLS + [0]
    assert_same_run(out, left_alone)
    examples = [name for row in read_metrics(out / "metrics.jsonl") for name in row["examples"]]
    for start in range(0, len(examples), EXAMPLES):  # each epoch, every example once
        assert set(Counter(examples[start : start + EXAMPLES]).values()) == {1}


# ------------------------------------------------------------------------------------------------- disk and checkpoints


@pytest.fixture
def copy(left_alone, tmp_path) -> Path:
    """A finished run, to be spoiled."""
    return Path(shutil.copytree(left_alone, tmp_path / "run"))


def test_full_disk_ends_the_run_with_a_line_and_it_can_go_on(words, left_alone, copy, capsys):
    """The kernel refuses to write files of more than half a megabyte: the next checkpoint."""
    shutil.rmtree(copy / "checkpoints/80")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        assert main([*words, "--out", str(copy), "--resume"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert "resuming after step 78 of 80" in said
    assert said.splitlines()[-1] == (
        f"error: {copy}/checkpoints: cannot write the checkpoint of step 80: File too large; "
        "make room and --resume: earlier checkpoints are kept, the newest is 78"
    )
    assert "Traceback" not in said
    assert main([*words, "--out", str(copy), "--resume"]) == 0
    assert_same_run(copy, left_alone)


@pytest.mark.parametrize("spoilt", ["arrays", "position", "everything"])
def test_resume_from_the_checkpoint_before_a_damaged_one(words, left_alone, copy, capsys, spoilt):
    """Bits of the largest file of arrays; a position that says another step; a directory with nothing in it."""
    newest = copy / "checkpoints/80"
    if spoilt == "arrays":
        path = max((newest / "state").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
        data = bytearray(path.read_bytes())
        for place in range(0, len(data), 64):
            data[place] ^= 1
        path.write_bytes(data)
    elif spoilt == "position":
        path = newest / "position/metadata"
        path.write_text(path.read_text().replace('"step": 80', '"step": 79'))
    else:
        shutil.rmtree(newest)
        newest.mkdir()
    assert main([*words, "--out", str(copy), "--resume"]) == 0
    said = capsys.readouterr().err
    assert f"{newest}: damaged checkpoint (" in said
    assert "; using checkpoint 78\nresuming after step 78 of 80\n" in said
    shutil.rmtree(copy / "checkpoints/80.damaged")
    assert_same_run(copy, left_alone)


def test_resume_without_a_whole_checkpoint_starts_again(words, compiled, left_alone, copy):
    for path in (copy / "checkpoints").iterdir():
        (path / "position/metadata").write_bytes(b"")
    # All eighty steps are run again, so by a process like the first: how many threads XLA has is in the last bits.
    command = [sys.executable, "-m", "e2wm_jax", *words, "--out", str(copy), "--resume"]
    done = subprocess.run(command, env=compiled, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "there is no other, so nothing is restored" in done.stderr
    for path in (copy / "checkpoints").glob("*.damaged"):
        shutil.rmtree(path)
    assert_same_run(copy, left_alone)


def test_output_that_cannot_be_written_is_refused_with_a_line(words, tmp_path, capsys):
    """A disk that has no room for the first file; and a place where nobody may make a directory."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert main([*words, "--out", str(tmp_path / "run")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "error: File too large; make room; --resume continues a run"
    if not Path("/sys/kernel").is_dir():
        pytest.skip("only Linux has /sys")
    assert main([*words, "--out", "/sys/kernel/run"]) == 2
    said = capsys.readouterr().err.splitlines()
    reason = r"\((Operation not permitted|Permission denied)\)"
    refused = rf"error: --out /sys/kernel/run: nothing can be written to /sys/kernel {reason}; give another place"
    assert re.fullmatch(refused, said[-1]), said[-1]
