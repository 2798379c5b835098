"""Perplexity on general text: what the model has kept.

    nats = sum of the negative log-likelihoods of all predicted tokens / their number

The published E2WM tables give 2^nats where perplexity is e^nats; both are reported under their own names.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax.config import BaseDType
from e2wm_jax.data.batch import Row
from e2wm_jax.data.loader import sorted_batches
from e2wm_jax.data.source import TaskExample, read_documents
from e2wm_jax.data.tokenize import document_rows, task_rows
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.model import Evaluated, batch_nll, load_evaluated
from e2wm_jax.progress import progress_bar


@dataclass(frozen=True)
class PerplexitySettings:
    """Perplexity of a model on text documents."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    data: str
    """JSON lines with "text", .txt with blank lines between documents (either .gz), or pydoc:held-out."""
    adapter: tuple[Path, ...] = ()
    """PEFT directories to put on the model; several are added up."""
    max_length: int = 800
    """Documents are cut to this many tokens."""
    samples: int | None = None
    """Use the first N documents; all by default."""
    batch_size: int = 8
    """Documents per forward pass."""
    special_tokens: bool = False
    """Add the tokenizer's default special tokens (the official code does not)."""
    base_dtype: BaseDType = "float32"
    """Weights and activations; int8 and nf4 hold the matrices in 8 or 4 bits."""


def run(settings: PerplexitySettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files.
    """
    check_at_least(
        ("--max-length", settings.max_length, 2),
        ("--samples", settings.samples, 1),
        ("--batch-size", settings.batch_size, 1),
    )
    documents = read_documents(settings.data)[: settings.samples]
    evaluated = load_evaluated(settings.model, settings.adapter, settings.base_dtype)
    return perplexity(
        evaluated,
        documents,
        max_length=settings.max_length,
        batch_size=settings.batch_size,
        special_tokens=settings.special_tokens,
    )


def perplexity(
    evaluated: Evaluated,
    documents: list[str],
    *,
    max_length: int,
    batch_size: int = 8,
    special_tokens: bool = False,
) -> dict[str, Any]:
    """Nats, e^nats, 2^nats and bits per byte over the predicted tokens of all documents.

    Raises:
        InputError: if no document has two tokens.
    """
    rows, sizes = document_rows(evaluated.tokenizer, documents, max_length=max_length, special_tokens=special_tokens)
    if not rows:
        raise InputError("no document of two tokens or more; nothing can be predicted")
    total, tokens = _total_nll(evaluated, rows, max_length=max_length, batch_size=batch_size, name="perplexity")
    nats = total / tokens
    return {
        "nats": nats,
        "perplexity": math.exp(nats),
        "perplexity_2_nats": 2**nats,
        "bits_per_byte": total / math.log(2) / sum(sizes),
        "tokens": tokens,
        "documents": len(rows),
    }


def answer_nats(evaluated: Evaluated, examples: list[TaskExample], *, max_length: int, batch_size: int = 8) -> float:
    """Mean negative log-likelihood in nats of the reference answers' tokens of {"input", "ref"} examples.

    Raises:
        InputError: if `max_length` leaves an example without answer tokens.
    """
    rows, _ = task_rows(evaluated.tokenizer, examples, max_length=max_length)
    total, tokens = _total_nll(evaluated, rows, max_length=max_length, batch_size=batch_size, name="answers")
    return total / tokens


def _total_nll(
    evaluated: Evaluated, rows: list[Row], *, max_length: int, batch_size: int, name: str
) -> tuple[float, int]:
    """Sum in nats over all targets of all rows, and their number."""
    config, params, _ = evaluated
    total, tokens = 0.0, 0
    with progress_bar(name, len(rows), "row") as bar:
        for batch, real in sorted_batches(rows, batch_size, max_length):
            counted = batch.weights > 0
            total += float(np.asarray(batch_nll(config, params, batch), np.float64)[counted].sum())
            tokens += int(counted.sum())
            bar.update(real)
    return total, tokens
