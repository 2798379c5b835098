"""`report.html` of a training run: what was trained, and how the loss fell."""

from pathlib import Path
from typing import Any

import e2wm_jax
from e2wm_jax.metrics import read_metrics
from e2wm_jax.report import Section, details, key_values, line_chart, page, write

VALIDATION_FILE = "validation.jsonl"


def write_report(path: Path, metrics: Path, summary: dict[str, Any], settings: dict[str, Any]) -> None:
    """Draw a run's metrics, and its validation.jsonl if there is one, with summary and settings into one page."""
    sections = [
        Section("Outcome", [key_values(summary)]),
        Section("Training", charts(metrics)),
        settings_section(settings),
    ]
    write(path, page(title_of(settings), sections, footer=f"e2wm_jax {e2wm_jax.__version__}"))


def title_of(settings: dict[str, Any]) -> str:
    """What was trained, and how it was held."""
    return f"e2wm train: {settings.get('model')}, regularizer {settings.get('regularizer')}"


def settings_section(settings: dict[str, Any]) -> Section:
    """All settings, folded away."""
    return Section("Settings", [details("All settings", key_values(settings))])


def charts(metrics: Path) -> list[str]:
    """The metrics over the steps, and the loss on held-out rows if a validation.jsonl lies beside them."""
    rows = read_metrics(metrics)

    def chart(column: str, title: str, unit: str, *, smooth: bool = True) -> str:
        # A step whose loss was no number has none to draw.
        series = {column: [(row["step"], row[column]) for row in rows if row[column] is not None]}
        return line_chart(series, title=title, x_label="step", y_label=unit, smooth=smooth)

    drawn = [chart("task_loss", "Task loss", "nats per answer token")]
    if (validation := metrics.with_name(VALIDATION_FILE)).is_file():
        held_out = {"validation": [(row["step"], row["nats"]) for row in read_metrics(validation)]}
        drawn.append(line_chart(held_out, title="Held-out tasks", x_label="step", y_label="nats per answer token"))
    if any(row["penalty"] for row in rows):
        drawn.append(chart("penalty", "Penalty", "strength times penalty"))
    drawn += [chart("grad_norm", "Gradient norm", "norm"), chart("lr", "Learning rate", "learning rate", smooth=False)]
    if len({row["strength"] for row in rows}) > 1:
        drawn.append(chart("strength", "Strength", "strength", smooth=False))
    return drawn
