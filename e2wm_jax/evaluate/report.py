"""Evaluations as pictures: every set's score with its interval and baseline, before and after; what was written."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.results import headline, is_number, majority_of, read_results
from e2wm_jax.files import read_json_lines
from e2wm_jax.report import (
    Point,
    Section,
    bar_chart,
    details,
    key_values,
    paragraph,
    scatter_chart,
    table,
    texts,
)
from e2wm_jax.report.blocks import Cell

RESULTS_FILE, PREDICTIONS = "results.json", "predictions"
_LONGEST = 700  # characters of a text that is shown
# Of each kind the score that is drawn, the first that is there; title of its chart and whether a majority is known.
_SCORES = {
    "qa": (("accuracy",), "Questions", "accuracy"),
    "generate": (("rougeL", "lcs"), "Answers written freely", "ROUGE-L, or overlap of paths"),
    "babi": (("mean",), "bAbI", "accuracy"),
    "perplexity": (("nats",), "General text", "nats per token (lower is better)"),
}
Scores = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Evaluation:
    """What `eval all --out` has left in a directory, or a single file of predictions."""

    label: str
    sets: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # name -> {"kind", metrics, "intervals", ...}
    facts: Mapping[str, Any] = field(default_factory=dict)
    predictions: Mapping[str, Path] = field(default_factory=dict)  # set -> JSON lines
    data: tuple[str, ...] = ()  # where the sets lay


def is_evaluation(path: Path) -> bool:
    """Whether something like an evaluation lies there."""
    return (path / RESULTS_FILE).is_file() or (path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz")))


def read_evaluation(path: Path, label: str) -> Evaluation:
    """The evaluation in a directory of `eval all --out`, or with the predictions in one file.

    Raises:
        InputError: if there is none, or it is not of the form that the command writes.
    """
    if path.is_file():
        return Evaluation(label, predictions={path.name.split(".")[0]: path}, facts={label: str(path)})
    if not (path / RESULTS_FILE).is_file():
        raise InputError(
            f"{path}: no {RESULTS_FILE} in it; give the --out of `e2wm eval all`, or a file of predictions"
        )
    record = read_results(path / RESULTS_FILE)
    adapters = " ".join(map(str, record["adapter"])) or "no adapter"
    facts = {label: f"{record.get('model', '?')}, {adapters}"}
    files = {file.name.split(".")[0]: file for file in sorted((path / PREDICTIONS).glob("*.jsonl"))}
    return Evaluation(label, record["sets"], facts, files, tuple(record["settings"].get("data", ())))


def sections(evaluations: Sequence[Evaluation], examples: int) -> list[Section]:
    """Bars, tables, and what changed from the first to the last of the evaluations, with so many examples of a set."""
    found = []
    if any(one.sets for one in evaluations):
        found.append(
            Section("Scores", [_who(evaluations), *_trade_off(evaluations), *_bars(evaluations), *_tables(evaluations)])
        )
    changes = list(_changed(evaluations))
    if changes:
        headers = ["set", "right both times", "gained", "lost", "wrong both times"]
        found.append(Section("Questions gained and lost", [table(headers, changes)]))
    if answers := list(written(evaluations, examples)):
        found.append(Section("What was written", answers))
    return found


def _who(evaluations: Sequence[Evaluation]) -> str:
    return key_values({key: value for one in evaluations for key, value in one.facts.items()})


def _trade_off(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """Skill against general text, means over the sets that all evaluations have."""
    common = set.intersection(*(set(one.sets) for one in evaluations))
    kinds = {name: evaluations[0].sets[name]["kind"] for name in common}
    skills = sorted(name for name in common if kinds[name] in ("qa", "generate"))
    corpora = sorted(name for name in common if kinds[name] == "perplexity")
    if len(evaluations) < 2 or not skills or not corpora:
        return

    def mean(one: Evaluation, names: list[str]) -> float:
        return sum(one.sets[name][headline(one.sets[name])] for name in names) / len(names)

    yield scatter_chart(
        [Point(one.label, mean(one, corpora), mean(one, skills)) for one in evaluations],
        title="Skill against general text",
        x_label="general text, nats per token, mean over corpora",
        y_label="skill, mean over sets",
        better=("lower", "higher"),
        base=evaluations[0].label,
        order=[one.label for one in evaluations],
    )


def _bars(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """One chart for each kind of set."""
    order = [one.label for one in evaluations]
    for kind, (_, title, unit) in _SCORES.items():
        values: Scores = {}
        errors: dict[str, dict[str, tuple[float, float] | None]] = {}
        baselines: dict[str, float | None] = {}
        for one in evaluations:
            for name, result in one.sets.items():
                if result["kind"] == kind and (metric := _headline(result)) is not None:
                    values.setdefault(name, {})[one.label] = result[metric]
                    errors.setdefault(name, {})[one.label] = _spread(result, metric, result[metric])
                    baselines[name] = majority_of(result)
        if values:
            yield bar_chart(values, title=title, x_label=unit, baselines=baselines, errors=errors, order=order)
    yield from _babi(evaluations, order)


def _headline(result: Mapping[str, Any]) -> str | None:
    """The score of a set that is drawn."""
    metrics, *_ = _SCORES.get(result["kind"], ((),))
    return next((metric for metric in metrics if is_number(result.get(metric))), None)


def _babi(evaluations: Sequence[Evaluation], order: list[str]) -> Iterator[str]:
    values: Scores = {}
    errors: dict[str, dict[str, tuple[float, float] | None]] = {}
    baselines: dict[str, float | None] = {}
    for one in evaluations:
        for result in one.sets.values():
            if result["kind"] == "babi" and isinstance(result.get("accuracy"), dict):
                for task, score in result["accuracy"].items():
                    name = f"task {task}"
                    values.setdefault(name, {})[one.label] = score
                    errors.setdefault(name, {})[one.label] = _spread(result, task, score)
                    majority = result.get("majority")
                    baselines[name] = majority.get(task) if isinstance(majority, dict) else None
    if values:
        chart = bar_chart(
            values, title="bAbI by task", x_label="accuracy", baselines=baselines, errors=errors, order=order
        )
        yield details("bAbI by task", chart)


def _spread(result: Mapping[str, Any], metric: str, score: float) -> tuple[float, float] | None:
    ends = (result.get("intervals") or {}).get(metric)
    if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(map(is_number, ends)):
        return None
    return (score - ends[0], ends[1] - score)


def _tables(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """Every number of every set, folded; and what is known to be wrong with a set."""
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(name for one in evaluations for name in one.sets):
        kept = [_numbers(one.sets.get(name, {})) for one in evaluations]
        for metric in dict.fromkeys(key for result in kept for key in result):
            rows.append([name, metric, *(result.get(metric) for result in kept)])
    yield details("Every number", table(["set", "metric", *(one.label for one in evaluations)], rows))
    defects = {
        name: result["defects"] for one in evaluations for name, result in one.sets.items() if result.get("defects")
    }
    if defects:
        said = [[name, str(defect)] for name, found in defects.items() for defect in found]
        yield details("Known defects of the sets", table(["set", "defect"], said))


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """All scores of a set, those of its examples without defects too."""
    clean = {f"{key}, clean": value for key, value in (result.get("clean") or {}).items()}
    return {key: value for key, value in {**result, **clean}.items() if is_number(value)}


def _records(path: Path | None) -> dict[int, dict[str, Any]]:
    """The lines of a file of predictions that are about examples, by index."""
    lines = (record for _, record in read_json_lines(path)) if path else ()
    return {record["index"]: record for record in lines if isinstance(record.get("index"), int)}


def _pairs(evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, list[dict[int, dict[str, Any]]]]]:
    """Of every set the predictions of each evaluation."""
    for name in dict.fromkeys(name for one in evaluations for name in one.predictions):
        yield name, [_records(one.predictions.get(name)) for one in evaluations]


def _changed(evaluations: Sequence[Evaluation]) -> Iterator[list[Cell]]:
    """Of every set of questions: how many were answered right by the first and by the last."""
    if len(evaluations) < 2:
        return
    for name, (first, *_, last) in _pairs(evaluations):
        asked = [set(n for n, record in one.items() if {"choice", "gold"} <= record.keys()) for one in (first, last)]
        common = sorted(asked[0] & asked[1])
        right = [tuple(one[n]["choice"] == one[n]["gold"] for one in (first, last)) for n in common]
        if right:
            yield [name, *(right.count(kind) for kind in ((True, True), (False, True), (True, False), (False, False)))]


def written(evaluations: Sequence[Evaluation], examples: int) -> Iterator[str]:
    """Examples of each generation set, evenly spaced: prompt, reference, and what each model wrote."""
    for name, kept in _pairs(evaluations):
        known = [n for n in sorted(set.union(*map(set, kept))) if any("prediction" in one.get(n, {}) for one in kept)]
        shown = known[:: max(len(known) // examples, 1)][:examples] if examples else []
        prompts = _prompts(evaluations, name) if shown else {}
        blocks = [
            texts(
                {**({"prompt": _cut(prompts[n])} if n in prompts else {}), **_parts(evaluations, kept, n)},
                title=f"{name}, example {n}",
            )
            for n in shown
        ]
        if blocks:
            yield paragraph(f"{name}: {len(blocks)} of {len(known)} examples, evenly spaced.")
            yield from blocks


def _prompts(evaluations: Sequence[Evaluation], name: str) -> dict[int, str]:
    """The prompts of a generation set, where its file still lies where it lay."""
    from e2wm_jax.data.source import read_task
    from e2wm_jax.evaluate.sets import find_sets  # it brings what evaluates

    for source in dict.fromkeys(source for one in evaluations for source in one.data):
        with contextlib.suppress(InputError):
            for found in find_sets(source):
                if (found.name, found.kind) == (name, "generate"):
                    return {n: example.input for n, example in enumerate(read_task(found.path))}
    return {}


def _parts(evaluations: Sequence[Evaluation], kept: list[dict[int, dict[str, Any]]], n: int) -> dict[str, str]:
    found = [one.get(n, {}) for one in kept]
    said = {key: next((str(one[key]) for one in found if key in one), None) for key in ("reference", "answer")}
    parts = {key: _cut(text) for key, text in said.items() if text is not None}
    wrote = zip(evaluations, found, strict=True)
    return parts | {one.label: _cut(str(record["prediction"])) for one, record in wrote if "prediction" in record}


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 150]} […] {text[-150:]}"
