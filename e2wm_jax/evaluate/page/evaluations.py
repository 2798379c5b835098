"""Evaluations as they lie on disk: what `eval all --out` has left, or a file of predictions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.results import read_results
from e2wm_jax.storage.files import read_json_lines

RESULTS_FILE, PREDICTIONS = "results.json", "predictions"


@dataclass(frozen=True)
class StoredEvaluation:
    """What `eval all --out` has left in a directory, or a single file of predictions."""

    label: str
    sets: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # name -> {"kind", metrics, "intervals", ...}
    facts: Mapping[str, Any] = field(default_factory=dict)
    predictions: Mapping[str, Path] = field(default_factory=dict)  # set -> JSON lines
    data: tuple[str, ...] = ()  # where the sets lay


def is_evaluation(path: Path) -> bool:
    """Whether something like an evaluation lies there."""
    return (path / RESULTS_FILE).is_file() or (path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz")))


def read_evaluation(path: Path, label: str) -> StoredEvaluation:
    """The evaluation in a directory of `eval all --out`, or with the predictions in one file.

    Raises:
        InputError: if there is none, or it is not of the form that the command writes.
    """
    if path.is_file():
        return StoredEvaluation(label, predictions={path.name.split(".")[0]: path}, facts={label: str(path)})
    if not (path / RESULTS_FILE).is_file():
        raise InputError(
            f"{path}: no {RESULTS_FILE} in it; give the --out of `e2wm eval all`, or a file of predictions"
        )
    record = read_results(path / RESULTS_FILE)
    adapters = " ".join(map(str, record["adapter"])) or "no adapter"
    facts = {label: f"{record.get('model', '?')}, {adapters}"}
    files = {file.name.split(".")[0]: file for file in sorted((path / PREDICTIONS).glob("*.jsonl"))}
    return StoredEvaluation(label, record["sets"], facts, files, tuple(record["settings"].get("data", ())))


def _records(path: Path | None) -> dict[int, dict[str, Any]]:
    """The lines of a file of predictions that are about examples, by index."""
    lines = (record for _, record in read_json_lines(path)) if path else ()
    return {record["index"]: record for record in lines if isinstance(record.get("index"), int)}


def pairs(evaluations: Sequence[StoredEvaluation]) -> Iterator[tuple[str, list[dict[int, dict[str, Any]]]]]:
    """Of every set the predictions of each evaluation."""
    for name in dict.fromkeys(name for one in evaluations for name in one.predictions):
        yield name, [_records(one.predictions.get(name)) for one in evaluations]


def asked(records: Mapping[int, Mapping[str, Any]]) -> set[int]:
    """The examples that were questions."""
    return {n for n, record in records.items() if {"choice", "gold"} <= record.keys()}
