"""`e2wm report`: sees what a path holds and draws its page."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2wm_jax.bench.pages.report import draw as draw_benchmark
from e2wm_jax.demo import run as demo
from e2wm_jax.errors import InputError, check_at_least, first_line
from e2wm_jax.evaluate.page.evaluations import StoredEvaluation, is_evaluation, read_evaluation
from e2wm_jax.evaluate.page.run import sections
from e2wm_jax.fisher.command.page import draw as draw_fisher
from e2wm_jax.pages import experiences, training
from e2wm_jax.pages.settings import ReportSettings
from e2wm_jax.report import page, write
from e2wm_jax.storage.files import read_json
from e2wm_jax.train.sequence import page as sequence_page

REPORT_FILE = "report.html"


def run(settings: ReportSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: if the path holds nothing that is known, or something of another form.
    """
    check_at_least(("--examples", settings.examples, 0))
    kind = recognize(settings.path)
    if kind not in _WITH_EVALUATIONS and (settings.before or settings.after):
        raise InputError(
            f"--before, --after: {settings.path} holds {kind}; only {' or '.join(_WITH_EVALUATIONS)} has them"
        )
    if kind in ("an evaluation", "a benchmark") and settings.after:
        raise InputError(f"--after {settings.after}: {settings.path} is what came after; leave --after out")
    default = settings.path / REPORT_FILE if settings.path.is_dir() else settings.path.with_suffix(".html")
    settings = dataclasses.replace(settings, out=settings.out or default)
    try:
        _DRAW[kind](settings)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        looked = " or ".join(_SIGNS.get(kind, ("its file",)))
        raise InputError(
            f"{settings.path}: {looked} is not as an e2wm command writes it for {kind} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    return {"kind": kind.removeprefix("a ").removeprefix("an "), "report": str(settings.out)}


def recognize(path: Path) -> str:
    """What a path holds: a key of the table of kinds.

    Raises:
        InputError: if there is nothing, or nothing that is known.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; give what an e2wm command wrote")
    if path.is_file() and is_evaluation(path):
        return "an evaluation"
    for kind, names in _SIGNS.items():
        if all((path / name).is_file() for name in names):
            return kind
    if path.is_dir() and any(path.glob("*.safetensors")) and not (path / "adapter_config.json").is_file():
        return "a Fisher"
    if (path / "adapter_config.json").is_file():
        raise InputError(f"{path}: holds an adapter; draw the run that made it, e2wm report {path.parent}")
    looked = "; ".join(f"{' and '.join(names)} of {kind}" for kind, names in _SIGNS.items())
    raise InputError(f"{path}: holds nothing that can be drawn; looked for {looked}; or a .jsonl file of predictions")


def _draw_run(settings: ReportSettings) -> None:
    after = settings.after or training.evaluation_beside(settings.path)
    given = [read_evaluation(path, label) for path, label in ((settings.before, "before"), (after, "after")) if path]
    training.write_page(_out(settings), settings.path, given, settings.examples)


def _draw_evaluation(settings: ReportSettings) -> None:
    path, before = settings.path, settings.before
    given: list[StoredEvaluation] = [] if before is None else [read_evaluation(before, "before")]
    given.append(read_evaluation(path, "after" if before else path.resolve().name))
    write(_out(settings), page(f"e2wm eval: {path.resolve().name}", sections(given, settings.examples)))


def _draw_comparison(settings: ReportSettings) -> None:
    from e2wm_jax.compare.page import write_page  # it brings all that trains and evaluates

    write_page(settings.path)
    drawn = settings.path / REPORT_FILE
    if _out(settings).resolve() != drawn.resolve():
        write(_out(settings), drawn.read_text(encoding="utf-8"))


def _draw_fisher(settings: ReportSettings) -> None:
    try:
        draw_fisher(_out(settings), settings.path)
    except InputError as error:
        said = str(error).removeprefix(f"--fisher {settings.path}: ").partition(";")[0]
        if (settings.path / "config.json").is_file() and not (settings.path / "fisher.json").is_file():
            raise InputError(
                f"{settings.path}: holds a model and no Fisher ({said}); give a directory that an e2wm command wrote"
            ) from error
        raise InputError(f"{settings.path}: {said}") from error


def _draw_sequence(settings: ReportSettings) -> None:
    folder = settings.path
    sequence_page.write_report(_out(settings), read_json(folder / "sequence.json"), read_json(folder / "config.json"))


def _out(settings: ReportSettings) -> Path:
    assert settings.out is not None
    return settings.out


# What must lie in a directory of a kind; the first that fits is drawn.
_SIGNS = {
    "a comparison": ("comparison.json",),
    "a demo": ("demo.json",),
    "a sequence": ("sequence.json", "config.json"),
    "an evaluation": ("results.json",),
    "a run": ("metrics.jsonl", "config.json"),
    "a Fisher": ("fisher.json",),
    "experiences": ("manifest.json",),
    "a benchmark": ("report.json",),
}
_WITH_EVALUATIONS = ("a run", "an evaluation", "a benchmark")
_DRAW: dict[str, Callable[[ReportSettings], None]] = {
    "a comparison": _draw_comparison,
    "a demo": lambda settings: demo.redraw(settings.path, _out(settings)),
    "a sequence": _draw_sequence,
    "an evaluation": _draw_evaluation,
    "a run": _draw_run,
    "a Fisher": _draw_fisher,
    "a benchmark": lambda settings: draw_benchmark(_out(settings), settings.path, settings.before),
    "experiences": lambda settings: experiences.write_page(_out(settings), settings.path, settings.examples),
}
