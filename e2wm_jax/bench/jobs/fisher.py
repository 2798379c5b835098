"""What each process of `e2wm bench fisher` is told: model, documents, and where F of ours is to compare with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax.bench.jobs.shapes import sizes
from e2wm_jax.bench.settings import FisherBenchSettings
from e2wm_jax.config import MODELS, DType, GPTNeoConfig, ModelConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.storage.tensor_files import open_tensors

NEO6 = GPTNeoConfig(**sizes(384, layers=6, heads=6, words=8192, positions=2048), tied=True)
SHAPES: dict[str, ModelConfig] = {"neo6": NEO6, **MODELS}
# Of the largest F of a tensor; rounding is a tenth of it.
WRONG: dict[DType, float] = {"float32": 5e-3, "bfloat16": 0.2}
_ZIPF = 1.3  # words repeat, as in text, which is what makes tied tables hard


@dataclass(frozen=True)
class FisherJob(FisherBenchSettings):
    """One model, by `shape` where it has one, and its documents."""

    folder: str = ""  # a Hugging Face directory that ours writes and the peers read; "reference" in it is F of ours
    lengths: tuple[int, ...] = ()  # tokens of each document

    @classmethod
    def of(cls, settings: FisherBenchSettings, folder: str) -> "FisherJob":
        """The documents of a run: all of --length, or of unequal lengths."""
        lengths = [settings.length] * settings.batch_size
        if settings.packed:
            rng = np.random.default_rng(settings.seed)
            lengths = rng.integers(settings.shortest, settings.length, settings.documents, endpoint=True).tolist()
        return cls(**vars(settings), folder=folder, lengths=tuple(lengths))


def documents(job: FisherJob, vocabulary: int) -> list[Row]:
    """The corpus: made-up tokens whose frequencies fall off as those of words do."""
    rng = np.random.default_rng(job.seed)
    words = rng.permutation(vocabulary)
    rows = [words[np.minimum(rng.zipf(_ZIPF, length) - 1, vocabulary - 1)] for length in job.lengths]
    return [Row(row.astype(np.int32), 1) for row in rows]


def full_documents(job: FisherJob) -> FisherJob:
    """The same number of tokens, about, in documents of the greatest length."""
    longest = max(job.lengths)
    return replace(job, lengths=(longest,) * max(1, round(sum(job.lengths) / longest)))


def reference_folder(job: FisherJob) -> Path:
    """Where F of ours is."""
    return Path(job.folder, "reference")


def compare(
    job: FisherJob, tensors: Iterable[tuple[str, np.ndarray]], wanted: set[str] | None = None
) -> dict[str, Any]:
    """F by Hugging Face name against the reference's: the greatest error of any tensor, over its greatest F.

    Args:
        wanted: names that should be there; default: all of the reference.
    """
    reference = open_tensors(reference_folder(job))
    wanted = set(reference.names) if wanted is None else wanted
    errors = dict(_errors(reference.read, ((name, value) for name, value in tensors if name in wanted)))
    worst = max(errors, key=errors.__getitem__, default="")
    wrong = sorted(name for name, error in errors.items() if not error <= WRONG[job.base_dtype])
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
