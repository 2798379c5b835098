"""`report.html` of a training run: what was trained, and how the loss fell."""

from pathlib import Path
from typing import Any

import e2wm_jax
from e2wm_jax.metrics import read_metrics
from e2wm_jax.report import Section, details, key_values, line_chart, page, write

_SMOOTHED_STEPS = 20  # window of the heavier line


def write_report(path: Path, metrics: Path, summary: dict[str, Any], settings: dict[str, Any]) -> None:
    """Draw a run's metrics with its summary and settings into one self-contained page."""
    rows = read_metrics(metrics)

    def chart(column: str, title: str, unit: str) -> str:
        series = {column: [(row["step"], row[column]) for row in rows]}
        return line_chart(series, title=title, x_label="step", y_label=unit, smooth=_SMOOTHED_STEPS)

    charts = [chart("task_loss", "Task loss", "nats per answer token")]
    if any(row["penalty"] for row in rows):
        charts.append(chart("penalty", "Penalty", "strength times penalty"))
    charts += [chart("grad_norm", "Gradient norm", "norm"), chart("lr", "Learning rate", "learning rate")]
    sections = [
        Section("Outcome", [key_values(summary)]),
        Section("Training", charts),
        Section("Settings", [details("All settings", key_values(settings))]),
    ]
    title = f"e2wm train: {settings['model']}, regularizer {settings['regularizer']}"
    write(path, page(title, sections, footer=f"e2wm_jax {e2wm_jax.__version__}"))
