"""What every process of `e2wm bench fisher` is told: the model, the documents, and where F of ours is to compare with.

No jax and no torch at import: a process first takes its cores (`take_cores`), then starts what it measures.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from e2wm_jax.config import MODELS, DType, GPTNeoConfig, ModelConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.tensor_files import open_tensors

SHAPES: dict[str, ModelConfig] = {
    "neo6": GPTNeoConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1536,
        num_layers=6,
        num_heads=6,
        num_kv_heads=6,
        head_dim=64,
        max_positions=2048,
        tied=True,
    ),
    **MODELS,
}
WRONG: dict[DType, float] = {
    "float32": 5e-3,
    "bfloat16": 0.2,
}  # of the largest F of a tensor; rounding is a tenth of it
PRODUCT = 2048  # rows and columns of the matrices of `product_rate`
_ZIPF = 1.3  # words repeat, as in text, which is what makes tied tables hard


@dataclass(frozen=True)
class Job:
    """One model and its documents."""

    folder: str  # a Hugging Face directory that ours writes and the peers read; "reference" in it is F of ours
    model: str  # as --model; "" for random weights
    shape: str  # of `SHAPES`; "" for a model
    dtype: DType
    params: str
    lengths: tuple[int, ...]  # tokens of each document
    batch_size: int  # documents of an ordinary batch
    step_size: int  # documents of a step of ours
    row: int  # tokens of a packed row
    kernel: str
    keep: float
    group: int
    cores: int
    clock: Literal["wall", "cpu"]
    seed: int


def take_cores(count: int) -> None:
    """Bind this process to ``count`` cores, its threads to come too; 0: leave it."""
    if count and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others measure on the same accelerator
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Timed(Protocol):
    """A job that says by which clock it is measured."""

    @property
    def clock(self) -> Literal["wall", "cpu"]: ...


def seconds_of(job: Timed, function: Callable[[], Any]) -> float:
    """How long it takes, by the job's clock."""
    clock = time.process_time if job.clock == "cpu" else time.perf_counter
    before = clock()
    function()
    return clock() - before


def product_rate(job: Timed, multiply: Callable[[], Any]) -> float:
    """GFLOP/s of a product of two `PRODUCT` x `PRODUCT` matrices: what a library can do at most."""
    return round(2e-9 * PRODUCT**3 / min(seconds_of(job, multiply) for _ in range(4)), 1)


def documents(job: Job, vocabulary: int) -> list[Row]:
    """The corpus: made-up tokens whose frequencies fall off as those of words do."""
    rng = np.random.default_rng(job.seed)
    words = rng.permutation(vocabulary)
    rows = [words[np.minimum(rng.zipf(_ZIPF, length) - 1, vocabulary - 1)] for length in job.lengths]
    return [Row(row.astype(np.int32), 1) for row in rows]


def full_documents(job: Job) -> Job:
    """The same number of tokens, about, in documents of the greatest length."""
    longest = max(job.lengths)
    return replace(job, lengths=(longest,) * max(1, round(sum(job.lengths) / longest)))


def reference_folder(job: Job) -> Path:
    """Where F of ours is."""
    return Path(job.folder, "reference")


def compare(job: Job, tensors: Iterable[tuple[str, np.ndarray]], wanted: set[str] | None = None) -> dict[str, Any]:
    """F by Hugging Face name against the reference's: the greatest error of any tensor, over its greatest F.

    Args:
        wanted: names that should be there; default: all of the reference.
    """
    reference = open_tensors(reference_folder(job))
    wanted = set(reference.names) if wanted is None else wanted
    errors = dict(_errors(reference.read, ((name, value) for name, value in tensors if name in wanted)))
    worst = max(errors, key=errors.__getitem__, default="")
    wrong = sorted(name for name, error in errors.items() if not error <= WRONG[job.dtype])
    return {
        "error": errors.get(worst),
        "worst": worst,
        "tensors": len(errors),
        "missing": len(wanted - errors.keys()),
        "wrong": len(wrong),
        "first_wrong": wrong[0] if wrong else "",
    }


def _errors(read: Any, tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, float]]:
    for name, value in tensors:
        expected = read(name).astype(np.float32)
        if value.shape != expected.shape:
            yield name, float("inf")
            continue
        error = np.max(np.abs(value.astype(np.float32) - expected)) / max(float(np.max(expected)), 1e-30)
        yield name, float(error) if np.isfinite(error) else float("inf")


def watch_memory() -> int:
    """Forget the most memory that the process has held; returns what it holds (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return most_memory()


def most_memory() -> int:
    """Most bytes that the process has held since `watch_memory` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
