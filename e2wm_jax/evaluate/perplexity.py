"""Perplexity on general text: what the model has kept.

    nats = sum of the negative log-likelihoods of all predicted tokens / their number

The published E2WM tables give 2^nats where perplexity is e^nats; both are reported under their own names.
"""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax.data.batch import Row
from e2wm_jax.data.loader import sorted_batches
from e2wm_jax.data.source import TaskExample, read_documents
from e2wm_jax.data.tokenize import document_rows, task_rows
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.model import Evaluated, check_positions, load_evaluated, row_nll, rows_per_pass
from e2wm_jax.evaluate.predictions import Predictions, Record, content_digest, identity
from e2wm_jax.evaluate.settings import PerplexitySettings
from e2wm_jax.evaluate.statistics import bootstrap_interval
from e2wm_jax.evaluate.table import show_scores
from e2wm_jax.progress import progress_bar
from e2wm_jax.sharding import make_mesh


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
    mesh = None if settings.mesh is None else make_mesh(settings.mesh)
    records = predict(
        load_evaluated(settings.model, settings.adapter, settings.base_dtype, mesh=mesh),
        dict(enumerate(documents)),
        max_length=settings.max_length,
        batch_size=settings.batch_size,
        special_tokens=settings.special_tokens,
        path=settings.predictions,
        resume=settings.resume,
    )
    return {**summary(records), "intervals": intervals(records)}


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
        InputError: as `predict`.
    """
    return summary(
        predict(
            evaluated,
            dict(enumerate(documents)),
            max_length=max_length,
            batch_size=batch_size,
            special_tokens=special_tokens,
        )
    )


def show(result: dict[str, Any]) -> None:
    """A line per score, with its interval."""
    show_scores(result)


def predict(
    evaluated: Evaluated,
    documents: Mapping[int, str],
    *,
    max_length: int,
    batch_size: int = 8,
    special_tokens: bool = False,
    path: Path | None = None,
    resume: bool = False,
) -> list[Record]:
    """{"index", "nats" (their sum), "tokens", "bytes"} of the predicted tokens of every document, by its index in the
    file; also in ``path``, if given.  Documents of fewer than two tokens predict nothing and are left out.

    Raises:
        InputError: if no document has two tokens, one is longer than the model's positions, or as `Predictions`.
    """
    made = identity(
        evaluated,
        content_digest(list(documents.items())),
        max_length=max_length,
        examples=len(documents),
        batch_size=batch_size,
        special_tokens=special_tokens,
    )
    rows, sizes = document_tokens(evaluated, documents, max_length=max_length, special_tokens=special_tokens)
    predictions = Predictions(path, made, rows, resume=resume)
    indices = list(rows)
    done = {place for place, index in enumerate(indices) if index in predictions.done}
    for batch in _row_nats(evaluated, list(rows.values()), max_length, batch_size, name="perplexity", done=done):
        predictions.add(
            [
                {"index": indices[place], "nats": nats, "tokens": tokens, "bytes": sizes[indices[place]]}
                for place, nats, tokens in batch
            ]
        )
    return predictions.finish()


def document_tokens(
    evaluated: Evaluated, documents: Mapping[int, str], *, max_length: int, special_tokens: bool = False
) -> tuple[dict[int, Row], dict[int, int]]:
    """The row of every document that predicts something, and how many bytes its predicted tokens are, by index.

    Raises:
        InputError: if there is none, or one has more tokens than the model positions.
    """
    rows: dict[int, Row] = {}
    sizes: dict[int, int] = {}
    for index, document in documents.items():
        own = document_rows(evaluated.tokenizer, [document], max_length=max_length, special_tokens=special_tokens)
        for row, size in zip(*own, strict=True):
            check_positions(evaluated, len(row.ids), f"document {index + 1}", "lower --max-length")
            rows[index], sizes[index] = row, size
    if not rows:
        raise InputError("no document of two tokens or more; nothing can be predicted")
    return rows, sizes


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Nats, e^nats, 2^nats and bits per byte over all predicted tokens."""
    total, tokens, size = (sum(record[key] for record in records) for key in ("nats", "tokens", "bytes"))
    nats = total / tokens
    return {
        "nats": nats,
        "perplexity": math.exp(nats),
        "perplexity_2_nats": 2**nats,
        "bits_per_byte": total / math.log(2) / size,
        "tokens": tokens,
        "documents": len(records),
    }


def intervals(records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """The 95 % intervals over documents, which are drawn again whole: tokens of one text depend on each other."""
    total, tokens, size = (np.array([record[key] for record in records]) for key in ("nats", "tokens", "bytes"))
    low, high = bootstrap_interval(total / tokens, weights=tokens)
    bits = bootstrap_interval(total / np.maximum(size, 1) / math.log(2), weights=size)
    return {
        "nats": (low, high),
        "perplexity": (math.exp(low), math.exp(high)),
        "perplexity_2_nats": (2**low, 2**high),
        "bits_per_byte": bits,
    }


def answer_nats(evaluated: Evaluated, examples: list[TaskExample], *, max_length: int, batch_size: int = 8) -> float:
    """Mean negative log-likelihood in nats of the reference answers' tokens of {"input", "ref"} examples.

    Raises:
        InputError: if `max_length` leaves an example without answer tokens.
    """
    rows, _ = task_rows(evaluated.tokenizer, examples, max_length=max_length)
    total, tokens = 0.0, 0
    for batch in _row_nats(evaluated, rows, max_length, batch_size, name="answers"):
        total += sum(nats for _, nats, _ in batch)
        tokens += sum(number for _, _, number in batch)
    return total / tokens


def _row_nats(
    evaluated: Evaluated, rows: Sequence[Row], max_length: int, batch_size: int, *, name: str, done: Container[int] = ()
) -> Iterator[list[tuple[int, float, int]]]:
    """After every forward pass: place in ``rows``, sum in nats over the targets, and their number; passes of which all
    rows are done are left out."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
    size = rows_per_pass(evaluated, batch_size)
    with progress_bar(name, len(rows), "row") as bar:
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            if not all(place in done for place in chosen):
                ((batch, _),) = sorted_batches([rows[place] for place in chosen], size, max_length)
                counted = batch.weights > 0
                losses = np.where(counted, row_nll(evaluated, batch), 0)
                yield [(place, float(losses[row].sum()), int(counted[row].sum())) for row, place in enumerate(chosen)]
            bar.update(len(chosen))
