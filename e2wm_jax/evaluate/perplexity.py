"""Perplexity on general text: what the model has kept.

    nats = sum of the negative log-likelihoods of all predicted tokens / their number

The published E2WM tables give 2^nats where perplexity is e^nats; both are reported under their own names.
"""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax.data.batch import Row
from e2wm_jax.data.loader import sorted_batches, sorted_shapes
from e2wm_jax.data.source import TaskExample, read_documents
from e2wm_jax.data.tokenize import check_ids, document_rows, say_cut, task_rows
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.model import (
    Evaluated,
    Opened,
    check_finite,
    load_evaluated,
    open_evaluated,
    row_nll,
    rows_per_pass,
)
from e2wm_jax.evaluate.predictions import Predictions, Record, content_digest, identity
from e2wm_jax.evaluate.results import is_number, power
from e2wm_jax.evaluate.settings import PerplexitySettings
from e2wm_jax.evaluate.statistics import bootstrap_interval
from e2wm_jax.evaluate.table import show_scores
from e2wm_jax.evaluate.texts.prompting import Fitted, Need, Prompting, fit
from e2wm_jax.running.progress import progress_bar
from e2wm_jax.sharding import make_mesh


def run(settings: PerplexitySettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, before weights are read; NonFiniteError for scores that are not finite.
    """
    check_at_least(
        ("--max-length", settings.max_length, 2),
        ("--samples", settings.samples, 1),
        ("--batch-size", settings.batch_size, 1),
    )
    documents = read_documents(settings.data, columns=settings.columns)[: settings.samples]
    mesh = None if settings.mesh is None else make_mesh(settings.mesh)
    prompting = Prompting(settings.special_tokens, settings.too_long)
    opened = open_evaluated(settings.model)
    fitted = fitting(opened, dict(enumerate(documents)), prompting, max_length=settings.max_length, name=settings.data)
    records = predict(
        load_evaluated(opened, settings.adapter, settings.base_dtype, mesh=mesh),
        fitted.examples,
        prompting,
        max_length=settings.max_length,
        batch_size=settings.batch_size,
        path=settings.predictions,
        resume=settings.resume,
        name=settings.data,
    )
    return {**summary(records), **fitted.counts, "intervals": intervals(records)}


def perplexity(
    evaluated: Evaluated,
    documents: list[str],
    prompting: Prompting = Prompting(),
    *,
    max_length: int,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Nats, e^nats, 2^nats and bits per byte over the predicted tokens of all documents.

    Raises:
        InputError: as `predict`.
    """
    found = predict(evaluated, dict(enumerate(documents)), prompting, max_length=max_length, batch_size=batch_size)
    return summary(found)


def show(result: dict[str, Any]) -> None:
    """A line per score, with its interval."""
    show_scores(result)


def predict(
    evaluated: Evaluated,
    documents: Mapping[int, str],
    prompting: Prompting = Prompting(),
    *,
    max_length: int,
    batch_size: int = 8,
    path: Path | None = None,
    resume: bool = False,
    name: str = "the text",
) -> list[Record]:
    """{"index", "nats" (their sum), "tokens", "bytes"} of the predicted tokens of every document, by its index in the
    file; also in ``path``, if given.  Documents of fewer than two tokens predict nothing and are left out.

    Args:
        name: of the documents' file, for messages.

    Raises:
        InputError: if no document has two tokens, one is longer than the model's positions, or as `Predictions`;
            NonFiniteError for scores that are not finite.
    """
    made = identity(
        evaluated,
        content_digest(list(documents.items())),
        max_length=max_length,
        examples=len(documents),
        batch_size=batch_size,
        **asdict(prompting),
    )
    if prompting.too_long == "truncate":
        max_length = min(max_length, evaluated.config.max_positions)
    rows, sizes = _document_tokens(evaluated, documents, prompting, max_length=max_length, name=name)
    predictions = Predictions(path, made, rows, resume=resume, is_record=_is_record)
    indices = list(rows)
    done = {place for place, index in enumerate(indices) if index in predictions.done}
    for batch in _row_nats(evaluated, list(rows.values()), max_length, batch_size, name="perplexity", done=done):
        for place, nats, _ in batch:
            check_finite(nats, _place(name, indices[place]))
        predictions.add(
            [
                {"index": indices[place], "nats": nats, "tokens": tokens, "bytes": sizes[indices[place]]}
                for place, nats, tokens in batch
            ]
        )
    return predictions.finish()


def fitting(
    model: Opened | Evaluated,
    documents: Mapping[int, str],
    prompting: Prompting,
    *,
    max_length: int,
    name: str = "the text",
) -> Fitted:
    """The documents for which the model has room, or is given it, without a forward pass.

    Raises:
        InputError: if none predicts a token, one has a token without a row, or is too long.
    """
    rows, _ = _document_tokens(model, documents, prompting, max_length=max_length, name=name)
    say_cut(list(rows.values()), max_length)
    needs = {index: Need(_place(name, index), len(row.ids)) for index, row in rows.items()}
    way_out = "lower --max-length; --too-long truncate cuts documents, --too-long skip leaves them out"
    return fit(documents, needs, model.config.max_positions, prompting.too_long, way_out)


def _place(name: str, index: int) -> str:
    return f"{name}: document {index + 1}"


def _document_tokens(
    model: Opened | Evaluated, documents: Mapping[int, str], prompting: Prompting, *, max_length: int, name: str
) -> tuple[dict[int, Row], dict[int, int]]:
    """The row of every document that predicts something, and how many bytes its predicted tokens are, by index."""
    rows: dict[int, Row] = {}
    sizes: dict[int, int] = {}
    for index, document in documents.items():
        special = prompting.special_tokens
        own = document_rows(model.tokenizer, [document], max_length=max_length, special_tokens=special)
        for row, size in zip(*own, strict=True):
            check_ids(model.tokenizer, model.config.vocab_size, [(_place(name, index), row.ids)])
            rows[index], sizes[index] = row, size
    if not rows:
        raise InputError(f"{name}: no document of two tokens or more; nothing can be predicted")
    return rows, sizes


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Nats, e^nats, 2^nats and bits per byte over all predicted tokens; None for a power that no float64 holds, and for
    bits per byte of tokens that stand for no text."""
    total, tokens, size = (sum(record[key] for record in records) for key in ("nats", "tokens", "bytes"))
    nats = total / tokens
    return {
        "nats": nats,
        "perplexity": power(math.e, nats),
        "perplexity_2_nats": power(2, nats),
        "bits_per_byte": total / math.log(2) / size if size else None,
        "tokens": tokens,
        "documents": len(records),
    }


def intervals(records: Sequence[Record]) -> dict[str, tuple[float | None, float | None]]:
    """The 95 % intervals over documents, which are drawn again whole: tokens of one text depend on each other; None for
    an end that no float64 holds."""
    total, tokens, size = (np.array([record[key] for record in records]) for key in ("nats", "tokens", "bytes"))
    ends = bootstrap_interval(total / tokens, weights=tokens)
    low, high = ends
    found: dict[str, tuple[float | None, float | None]] = {
        "nats": ends,
        "perplexity": (power(math.e, low), power(math.e, high)),
        "perplexity_2_nats": (power(2, low), power(2, high)),
    }
    if size.all():
        found["bits_per_byte"] = bootstrap_interval(total / size / math.log(2), weights=size)
    return found


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
    shapes = sorted_shapes(rows, size, max_length)
    with progress_bar(name, len(rows), "row") as bar:
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            if not all(place in done for place in chosen):
                ((batch, _),) = sorted_batches([rows[place] for place in chosen], size, max_length, shapes)
                counted = batch.weights > 0
                losses = np.where(counted, row_nll(evaluated, batch), 0)
                yield [(place, float(losses[row].sum()), int(counted[row].sum())) for row, place in enumerate(chosen)]
            bar.update(len(chosen))


def _is_record(record: Record) -> bool:
    counts = [record.get(key) for key in ("tokens", "bytes")]
    return is_number(record.get("nats")) and all(type(n) is int and n >= 0 for n in counts) and record["tokens"] > 0
