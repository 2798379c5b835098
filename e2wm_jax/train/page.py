"""`report.html` of a training run: what was trained, and how the loss fell."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.models.weights import open_model
from e2wm_jax.report import Section, details, key_values, line_chart, page, paragraph, table, write
from e2wm_jax.report.blocks import Cell
from e2wm_jax.report.numbers import number
from e2wm_jax.storage.metrics import read_metrics
from e2wm_jax.storage.model_files import EMBEDDED_MODEL, locate, model_name
from e2wm_jax.train.watch.samples import SAMPLES_FILE

VALIDATION_FILE = "validation.jsonl"
_WRITTEN = "The text that greedy search puts behind each prompt, before the first step and at the checkpoints."
# What a result is called on the page; the keys of the JSON stay.
_NAMES = {
    "step": "steps",
    "loss": "loss of the last step",
    "task_loss": "task loss of the last step",
    "penalty": "penalty of the last step",
    "waiting": "share of the time waiting for data",
    "skipped": "steps left out",
}
_MEASURES = {"task_loss": "task loss, nats per answer token", "penalty": "penalty", "grad_norm": "gradient norm"}


def write_report(path: Path, metrics: Path, summary: dict[str, Any], settings: dict[str, Any]) -> None:
    """Draw a run's metrics, and its validation.jsonl if there is one, with summary and settings into one page."""
    rows = read_metrics(metrics)
    sections = [
        Section("Outcome", [start_and_end(rows), results(summary)]),
        Section("What was trained", [key_values(trained(settings))]),
        Section("Training", charts(metrics)),
        *written(metrics.parent),
        settings_section(settings),
    ]
    write(path, page(title_of(settings), sections, lead=lead_of(rows, settings)))


def title_of(settings: Mapping[str, Any]) -> str:
    """What was trained, and how it was held."""
    held = settings.get("regularizer")
    model = model_name(str(settings.get("model")))
    return f"e2wm train: {model}, " + ("no regularizer" if held in (None, "none") else f"regularizer {held}")


def lead_of(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """What the page shows, in a sentence."""
    held, strength = settings.get("regularizer"), settings.get("strength")
    how = "" if held in (None, "none") else f", held by {held} of strength {strength:g}"
    first, last, count = _ends(rows, "task_loss")
    moved = "" if first is None or last is None else f" The loss on its tasks went from {first:.3g} to {last:.3g} nats"
    over = f" per answer token (means of the first and the last {count} steps)." if count > 1 else " per answer token."
    return f"{len(rows)} steps of LoRA on {model_name(str(settings.get('model')))}{how}.{moved + over if moved else ''}"


def start_and_end(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of what the measures were at first and at last."""
    found = [(name, *_ends(rows, key)) for key, name in _MEASURES.items() if any(row.get(key) for row in rows)]
    count = max((steps for *_, steps in found), default=1)
    caption = f"Means over the first and the last {count} steps" if count > 1 else "First and last step"
    cells = [[name, *("\u2013" if end is None else number(end) for end in ends)] for name, *ends, _ in found]
    return table(["", "start", "end"], cells, caption=caption) if cells else ""


def _ends(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[float | None, float | None, int]:
    """The means of the first and of the last tenth of the steps, and how many these are."""
    values = [row[key] for row in rows if row.get(key) is not None]
    count = max(len(values) // 10, 1)
    return (fmean(values[:count]), fmean(values[-count:]), count) if values else (None, None, count)


def results(summary: Mapping[str, Any]) -> str:
    """What a run found, named and rounded for people."""
    said = {_NAMES.get(key, key.replace("_", " ")): value for key, value in summary.items()}
    return key_values({name: number(one) if isinstance(one, float) else one for name, one in said.items()})


def trained(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Model with its size, data, adapters and Fisher of a run."""
    model = str(settings.get("model"))
    size = _parameters(model)
    adapted = settings.get("lora") or {}
    return {
        "model": model_name(model) + (f", {_count(size)} parameters" if size else ""),
        "data": settings.get("data"),
        "adapters": ", ".join(f"{key} {adapted[key]}" for key in ("rank", "alpha", "targets") if key in adapted),
        "Fisher": settings.get("fisher") or "none",
    }


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e5 else f"{number:,}"


def _parameters(model: str) -> int:
    """How many a model has, by its headers; 0 where it is not on this machine."""
    if model != EMBEDDED_MODEL and not Path(model).exists():
        return 0
    try:
        _, tensors = open_model(locate(model))
    except (InputError, OSError):
        return 0
    return sum(math.prod(header.shape) for header in tensors.headers.values())


def settings_section(settings: dict[str, Any]) -> Section:
    """All settings, folded away."""
    return Section("Settings", [details("All settings", key_values(settings))])


def written(folder: Path) -> list[Section]:
    """What the model wrote behind each of --prompt, at its checkpoints; nothing of a run without."""
    path = folder / SAMPLES_FILE
    texts_of: dict[str, list[list[Cell]]] = {}
    for row in read_metrics(path) if path.is_file() else ():
        for one in row["samples"]:
            texts_of.setdefault(one["prompt"], []).append([row["step"], one["text"]])
    if not texts_of:
        return []
    blocks = [table(["step", "text"], texts, caption=prompt) for prompt, texts in texts_of.items()]
    return [Section("What the model wrote", [paragraph(_WRITTEN), *blocks])]


def charts(metrics: Path) -> list[str]:
    """The metrics over the steps, and the loss on held-out rows if a validation.jsonl lies beside them."""
    rows = read_metrics(metrics)

    def chart(column: str, title: str, unit: str, *, smooth: bool = True) -> str:
        # A step whose loss was NaN has none to draw.
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
