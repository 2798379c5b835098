"""`report.html` of a sequence of tasks: its matrix of losses, and how each went on from task to task."""

import itertools
import math
from pathlib import Path
from typing import Any

from e2wm_jax.report import Section, details, key_values, line_chart, page, paragraph, table, write
from e2wm_jax.report.numbers import fixed, number
from e2wm_jax.storage.model_files import model_name

_MEANING = (
    "Loss in nats per answer token on each task's held-out rows, of general text in nats per token, before the first "
    "task and after each. The average is over all tasks after the last. Positive forgetting: earlier tasks are worse "
    "after the last task than at their best after one before. Positive backward transfer: later tasks made them "
    "better; positive forward transfer: a task had become better before it was trained itself."
)
_CHANGES = (
    "Each row is what training one task changed: below 0 a loss has fallen, above 0 it has risen, which for a task "
    "that was trained before, and for general text, is forgetting."
)


def write_report(path: Path, record: dict[str, Any], settings: dict[str, Any]) -> None:
    """Draw the record of a sequence (`sequence.json`) with its settings into one self-contained page."""
    names, losses, text = record["tasks"], record["losses"], record["text"]
    moments = ["before", *(f"after {name}" for name in names)][: len(losses)]
    columns = [*names, *(["general text"] if text else [])]
    rows = [[*row, *text[number : number + 1]] for number, row in enumerate(losses)]
    changes = [[now - then for then, now in zip(*pair, strict=True)] for pair in itertools.pairwise(rows)]
    # One axis for tasks and text: alone, a change of text that means nothing would fill a chart.
    series = {name: [(i, row[j] - rows[0][j]) for i, row in enumerate(rows)] for j, name in enumerate(columns)}
    title, label = "Change since before the first task", "nats per token; above 0 is worse"
    sections = [
        Section(
            "Outcome",
            [paragraph(_MEANING), key_values(_named(record["scores"])), _table("Losses", columns, moments, rows)],
        ),
        Section(
            "What each task changed",
            [
                paragraph(_CHANGES),
                _table("Change of the loss by training a task", columns, names, changes),
                line_chart(series, title=title, x_label="tasks trained", y_label=label),
            ],
        ),
        Section("Settings", [details("All settings", key_values(settings))]),
    ]
    title = f"e2wm sequence: {model_name(settings['model'])}, regularizer {settings['regularizer']}"
    write(path, page(title, sections))


def _table(caption: str, columns: list[str], names: list[str], rows: list[list[float]]) -> str:
    """Numbers of one unit in one number of decimals, so that rows and columns can be compared."""
    largest = max((abs(value) for row in rows for value in row if math.isfinite(value)), default=0.0)
    cells = [[name, *(fixed(value, largest, 4) for value in row)] for name, row in zip(names, rows, strict=False)]
    return table(["", *columns], cells, caption=caption) if cells else ""


def _named(scores: dict[str, float]) -> dict[str, str]:
    return {f"{name.replace('_', ' ')}, nats": number(value) for name, value in scores.items()}
