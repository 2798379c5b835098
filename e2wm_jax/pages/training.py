"""The page of a run of `train`: its losses, and with evaluations what it learned and forgot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.page import run as evaluation
from e2wm_jax.evaluate.page.evaluations import RESULTS_FILE, StoredEvaluation
from e2wm_jax.fisher.command.page import summary_pictures
from e2wm_jax.report import Section, key_values, page, write
from e2wm_jax.storage.files import read_json
from e2wm_jax.storage.metrics import read_metrics
from e2wm_jax.train.directory import CONFIG_FILE, CONTENT
from e2wm_jax.train.loop import METRICS_FILE
from e2wm_jax.train.page import charts, lead_of, results, settings_section, start_and_end, title_of, trained, written


def write_page(path: Path, folder: Path, evaluations: Sequence[StoredEvaluation], examples: int) -> None:
    """Draw a run, done or still going on, and evaluations of what it started from and led to.

    Raises:
        InputError: if the run has made no step yet.
    """
    rows = read_metrics(folder / METRICS_FILE)
    if not rows:
        raise InputError(f"{folder / METRICS_FILE}: no step yet; draw the run once it has made some")
    settings = read_json(folder / CONFIG_FILE)
    settings.pop(CONTENT, None)
    sections = [
        Section("Outcome", [start_and_end(rows), results(_outcome(rows))]),
        Section("What was trained", [key_values(trained(settings))]),
        *evaluation.sections(evaluations, examples),
        Section("Training", charts(folder / METRICS_FILE)),
        *written(folder),
        Section("Fisher by layer", summary_pictures(Path(settings["fisher"])) if settings.get("fisher") else []),
        settings_section(settings),
    ]
    write(path, page(title_of(settings), sections, lead=lead_of(rows, settings)))


def evaluation_beside(folder: Path) -> Path | None:
    """Where the evaluation of a run lies: in its directory or in one below."""
    places = [folder, *sorted(part for part in folder.iterdir() if part.is_dir())]
    return next((place for place in places if (place / RESULTS_FILE).is_file()), None)


def _outcome(rows: list[dict[str, Any]]) -> dict[str, Any]:
    last = rows[-1]
    facts = {key: last.get(key) for key in ("step", "loss", "task_loss", "penalty")}
    return facts | {"tokens": sum(row.get("tokens", 0) for row in rows)}
