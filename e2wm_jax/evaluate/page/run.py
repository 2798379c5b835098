"""Evaluations as pictures: every set's score with its interval and baseline, before and after; what was written."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from e2wm_jax.evaluate.page.evaluations import StoredEvaluation, asked, pairs
from e2wm_jax.evaluate.page.examples import answered, written
from e2wm_jax.evaluate.results import headline, is_number, majority_of
from e2wm_jax.report import (
    Point,
    Section,
    bar_chart,
    details,
    key_values,
    scatter_chart,
    table,
)
from e2wm_jax.report.blocks import Cell

# Of each kind the score that is drawn, the first that is there; title of its chart and whether a majority is known.
_SCORES = {
    "qa": (("accuracy",), "Questions", "accuracy"),
    "generate": (("rougeL", "lcs"), "Answers written freely", "ROUGE-L, or overlap of paths"),
    "babi": (("mean",), "bAbI", "accuracy"),
    "perplexity": (("nats",), "General text", "nats per token (lower is better)"),
}
Scores = dict[str, dict[str, float | None]]
_Row = tuple[str, str, Mapping[str, Any], str, float | None]  # set or task, model, result, its score, baseline


def sections(evaluations: Sequence[StoredEvaluation], examples: int) -> list[Section]:
    """Bars, tables, and what changed from the first to the last of the evaluations, with so many examples of a set."""
    scored = any(one.sets for one in evaluations)
    scores = [*_trade_off(evaluations), *_bars(evaluations), *_tables(evaluations)] if scored else []
    changes = list(_changed(evaluations))
    headers = ["set", "right both times", "gained", "lost", "wrong both times"]
    return [
        Section("Scores", [_who(evaluations), *scores] if scored else []),
        Section("Questions gained and lost", [table(headers, changes)] if changes else []),
        Section("What was answered", list(answered(evaluations, examples))),
        Section("What was written", list(written(evaluations, examples))),
    ]


def _who(evaluations: Sequence[StoredEvaluation]) -> str:
    return key_values({key: value for one in evaluations for key, value in one.facts.items()})


def _trade_off(evaluations: Sequence[StoredEvaluation]) -> Iterator[str]:
    """Skill against general text, means over the sets that all evaluations have."""
    common = set.intersection(*(set(one.sets) for one in evaluations))
    kinds = {name: evaluations[0].sets[name]["kind"] for name in common}
    skills = sorted(name for name in common if kinds[name] in ("qa", "generate"))
    corpora = sorted(name for name in common if kinds[name] == "perplexity")
    if len(evaluations) < 2 or not skills or not corpora:
        return

    def mean(one: StoredEvaluation, names: list[str]) -> float:
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


def _bars(evaluations: Sequence[StoredEvaluation]) -> Iterator[str]:
    """One chart for each kind of set, and one of the tasks of bAbI."""
    for kind, (_, title, unit) in _SCORES.items():
        rows = [
            (name, one.label, result, metric, majority_of(result))
            for one in evaluations
            for name, result in one.sets.items()
            if result["kind"] == kind and (metric := _headline(result)) is not None
        ]
        if rows:
            yield _bar_chart(evaluations, rows, title, unit)
    rows = [
        (f"task {task}", one.label, {**result, **result["accuracy"]}, task, majority.get(task))
        for one in evaluations
        for result in one.sets.values()
        if result["kind"] == "babi" and isinstance(result.get("accuracy"), dict)
        for majority in [result["majority"] if isinstance(result.get("majority"), dict) else {}]
        for task in result["accuracy"]
    ]
    if rows:
        yield details("bAbI by task", _bar_chart(evaluations, rows, "bAbI by task", "accuracy"))


def _bar_chart(evaluations: Sequence[StoredEvaluation], rows: Sequence[_Row], title: str, unit: str) -> str:
    values: Scores = {}
    errors: dict[str, dict[str, tuple[float, float] | None]] = {}
    for name, label, result, metric, _ in rows:
        values.setdefault(name, {})[label] = result[metric]
        errors.setdefault(name, {})[label] = _spread(result, metric, result[metric])
    baselines = {name: baseline for name, *_, baseline in rows}
    order = [one.label for one in evaluations]
    return bar_chart(values, title=title, x_label=unit, baselines=baselines, errors=errors, order=order)


def _headline(result: Mapping[str, Any]) -> str | None:
    """The score of a set that is drawn."""
    metrics, *_ = _SCORES.get(result["kind"], ((),))
    return next((metric for metric in metrics if is_number(result.get(metric))), None)


def _spread(result: Mapping[str, Any], metric: str, score: float) -> tuple[float, float] | None:
    ends = (result.get("intervals") or {}).get(metric)
    if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(map(is_number, ends)):
        return None
    return (score - ends[0], ends[1] - score)


def _tables(evaluations: Sequence[StoredEvaluation]) -> Iterator[str]:
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


def _changed(evaluations: Sequence[StoredEvaluation]) -> Iterator[list[Cell]]:
    """Of every set of questions: how many were answered right by the first and by the last."""
    if len(evaluations) < 2:
        return
    for name, (first, *_, last) in pairs(evaluations):
        common = sorted(asked(first) & asked(last))
        right = [tuple(one[n]["choice"] == one[n]["gold"] for one in (first, last)) for n in common]
        if right:
            yield [name, *(right.count(kind) for kind in ((True, True), (False, True), (True, False), (False, False)))]
