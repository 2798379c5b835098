"""`report.html` of a sequence of tasks: its matrix of losses, and how each went on from task to task."""

import itertools
from pathlib import Path
from typing import Any

import e2wm_jax
from e2wm_jax.model_files import model_name
from e2wm_jax.report import Section, details, heat_map, key_values, line_chart, page, paragraph, table, write
from e2wm_jax.report.drawing import number

_MEANING = (
    "Loss in nats per answer token on each task's held-out rows, before the first task and after each. Positive "
    "forgetting: a task has become worse than it was after some task before the last; positive transfer: other tasks "
    "helped it."
)


def write_report(path: Path, record: dict[str, Any], settings: dict[str, Any]) -> None:
    """Draw the record of a sequence (`sequence.json`) with its settings into one self-contained page."""
    names, losses, text = record["tasks"], record["losses"], record["text"]
    moments = ["before", *(f"after {name}" for name in names)][: len(losses)]
    columns = ["", *names, *(["general text"] if text else [])]
    rows = [
        [moment, *row, *([text[number]] if text else [])]
        for number, (moment, row) in enumerate(zip(moments, losses, strict=True))
    ]
    series = {name: [(i, row[j]) for i, row in enumerate(losses)] for j, name in enumerate(names)}
    label = "nats per answer token"
    changes = [[now - then for then, now in zip(*pair, strict=True)] for pair in itertools.pairwise(losses)]
    charts = [
        heat_map(
            changes,
            moments[1:],
            names,
            title="What each task changed: forgetting is above 0, learning below",
            log=False,
            value_label="change of the loss",
        ),
        line_chart(series, title="Loss on each task", x_label="tasks trained", y_label=label),
    ]
    if text:
        retention = {"general text": list(enumerate(text))}
        charts.append(line_chart(retention, title="General text", x_label="tasks trained", y_label="nats per token"))
    sections = [
        Section("Outcome", [paragraph(_MEANING), key_values(_named(record["scores"])), table(columns, rows)]),
        Section("Tasks", charts),
        Section("Settings", [details("All settings", key_values(settings))]),
    ]
    title = f"e2wm sequence: {model_name(settings['model'])}, regularizer {settings['regularizer']}"
    write(path, page(title, sections, footer=f"e2wm_jax {e2wm_jax.__version__}"))


def _named(scores: dict[str, float]) -> dict[str, str]:
    return {f"{name.replace('_', ' ')}, nats": number(value) for name, value in scores.items()}
