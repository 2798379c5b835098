"""What every process of `e2wm bench train` is told: the model, the rows of its steps, F, and which cores it has."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from e2wm_jax.bench.jobs.shapes import sizes
from e2wm_jax.bench.settings import TrainBenchSettings
from e2wm_jax.config import MODELS, GPTNeoConfig, LlamaConfig, ModelConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.data.loader import Loader

_SIZES = {"layers": 4, "heads": 8, "words": 4096, "positions": 1024}
SHAPES: dict[str, ModelConfig] = {
    "neo4": GPTNeoConfig(**sizes(256, **_SIZES), tied=True, windows=(0, 128) * 2),
    "llama4": LlamaConfig(**sizes(256, **_SIZES, kv_heads=4, hidden=768), tied=True),
    **MODELS,
}
LR, WEIGHT_DECAY, STRENGTH = 1e-4, 0.01, 1.0
_FISHER = 1e-3  # mean of F: with the adapters that steps start from, a penalty that losses show


@dataclass(frozen=True)
class TrainJob(TrainBenchSettings):
    """One model, by `shape` where it has one, and its steps."""

    folder: str = ""  # "model", "adapter-0", ... and "rows.json" in it


def write_rows(job: TrainJob, rows: Sequence[Row], steps: Sequence[Sequence[int]]) -> None:
    """All rows, and for each step the numbers of those that it reads."""
    record = {"rows": [[row.ids.tolist(), row.first_target, row.weight] for row in rows], "steps": steps}
    Path(job.folder, "rows.json").write_text(json.dumps(record))


def read_rows(job: TrainJob) -> tuple[list[Row], list[list[int]]]:
    """What `write_rows` wrote."""
    record = json.loads(Path(job.folder, "rows.json").read_text())
    return [Row(np.asarray(ids, np.int32), first, weight) for ids, first, weight in record["rows"]], record["steps"]


def loader_of(job: TrainJob, rows: Sequence[Row]) -> Loader:
    """Whose first steps are measured."""
    return Loader(rows, job.batch_size, 1, job.length or job.max_length, job.seed)


def adapter_folder(job: TrainJob, index: int) -> Path:
    """Where the adapter of `TrainJob.targets[index]` starts from, as PEFT reads it."""
    return Path(job.folder, f"adapter-{index}")


def fisher_of(module: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A made-up F [N, D] of one module, by its Hugging Face name: the same in every process."""
    rng = np.random.default_rng([seed, zlib.crc32(module.encode())])
    return np.square(rng.standard_normal(shape, np.float32)) * np.float32(_FISHER)
