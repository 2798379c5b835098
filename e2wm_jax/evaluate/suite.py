"""`e2wm eval all`: every evaluation set of a folder with one model, one table.

    OUT/results.json              settings and, by set, scores, intervals, baselines, defects and cleaned scores
    OUT/predictions/SET.jsonl     what the model said to every example (`predictions`)

Files are read and judged before the model is loaded, and every example is measured against the model's positions
before the first is evaluated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.evaluate import defects
from e2wm_jax.evaluate.benchmarks import babi
from e2wm_jax.evaluate.defects import Defects
from e2wm_jax.evaluate.model import Evaluated, Opened, load_evaluated, open_evaluated
from e2wm_jax.evaluate.set_scores import Content, check_options, fitting, score_set
from e2wm_jax.evaluate.sets import KINDS, EvalSet, babi_tasks, find_sets, merged, read_set, sample
from e2wm_jax.evaluate.settings import SuiteOptions, SuiteSettings
from e2wm_jax.evaluate.table import show_sets
from e2wm_jax.evaluate.texts import generation
from e2wm_jax.running.progress import say
from e2wm_jax.sharding import make_mesh
from e2wm_jax.storage.files import write_json

__all__ = ["EvalSet", "SuiteOptions", "averages", "evaluate_sets", "find_sets", "run", "show"]
RESULTS, PREDICTIONS = "results.json", "predictions"


def run(settings: SuiteSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints and results.json holds.

    Raises:
        InputError: for bad settings or files, or an example that is too long for the model, before weights are read;
            NonFiniteError for scores that are not finite.
    """
    check_options(settings)
    if settings.out is not None and not settings.resume:
        check_new(settings.out)
    contents = _read(_chosen(settings), settings)
    mesh = None if settings.mesh is None else make_mesh(settings.mesh)
    opened = open_evaluated(settings.model)
    contents = [fitting(opened, content, settings) for content in contents]
    evaluated = load_evaluated(opened, settings.adapter, settings.base_dtype, mesh=mesh)
    results = _evaluate(evaluated, contents, settings, settings.out)
    settled = {field.name: asdict(settings)[field.name] for field in fields(SuiteOptions) if field.name != "resume"}
    record = {
        "version": 1,
        "model": settings.model,
        "adapter": [str(folder) for folder in settings.adapter],
        "settings": {
            **settled,
            "train": [str(path) for path in settings.train],
            "data": list(settings.data),
            "base_dtype": settings.base_dtype,
            "mesh": settings.mesh,
        },
        "sets": results,
        "averages": averages(results),
    }
    if settings.out is not None:
        write_json(settings.out / RESULTS, record)
    return record


def show(result: dict[str, Any]) -> None:
    """One table of all sets, and what is wrong with them."""
    show_sets(result["sets"], result["averages"])
    if not result["settings"]["train"] and any(one["kind"] in ("qa", "generate") for one in result["sets"].values()):
        print("leaks from training files were not looked for: give the files with --train")


def evaluate_sets(
    evaluated: Evaluated, sets: Sequence[EvalSet], options: SuiteOptions = SuiteOptions(), out: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Scores of every set by its name, in the form of results.json; predictions go to ``out``/predictions.

    With ``options.resume`` sets and batches that are there are not evaluated again; without, they are replaced.

    Raises:
        InputError: as `run`.
    """
    check_options(options)
    contents = [fitting(evaluated, content, options) for content in _read(sets, options)]
    return _evaluate(evaluated, contents, options, out)


def check_sets(model: Opened | Evaluated, sets: Sequence[EvalSet], options: SuiteOptions) -> None:
    """Read every set, and measure its examples against the model, whose weights are not needed.

    Raises:
        InputError: as `run`.
    """
    check_options(options)
    for content in _read(sets, options):
        fitting(model, content, options)


def averages(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Means over sets, each counted once: "qa accuracy", "plan rougeL" of sets scored by ROUGE."""
    accuracies = [one["accuracy"] for one in results.values() if one["kind"] == "qa"]
    rouges = [one["rougeL"] for one in results.values() if "rougeL" in one]
    found = {"qa accuracy": accuracies, "rougeL": rouges}
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def check_new(out: Path) -> None:
    """Refuse a directory that holds something.

    Raises:
        InputError: with the way out.
    """
    if out.is_file():
        raise InputError(f"--out {out}: is a file; give a directory")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {out}: not empty; give a new directory, or --resume to go on with what is there")


def _chosen(settings: SuiteSettings) -> tuple[EvalSet, ...]:
    """The sets of all sources, or those that are asked for."""
    found = merged((one for source in settings.data for one in find_sets(source)), " ".join(settings.data))
    names = {one.name for one in found} | set(KINDS)
    if unknown := [name for name in settings.sets if name not in names]:
        raise InputError(f"--sets {unknown[0]}: no such set; found: {', '.join(one.name for one in found)}")
    kept = tuple(one for one in found if not settings.sets or {one.name, one.kind} & set(settings.sets))
    if not kept:
        raise InputError(f"--sets {' '.join(settings.sets)}: none of them is in --data")
    return kept


def _read(sets: Sequence[EvalSet], options: SuiteOptions) -> list[Content]:
    """Every set with its defects, which are those of all its examples, whatever the sample."""
    examples: dict[str, list[Any]] = {one.name: [*read_set(one)] for one in sets}
    texts = {one.name: defects.asked(examples[one.name]) for one in sets if one.kind in ("qa", "generate")}
    training = defects.read_training(options.train) if texts else {}
    contents = []
    for one in sets:
        if one.kind == "generate":
            generation.require_scorer(one.name)
        if one.kind == "babi":
            babi.read_tasks(one.path, babi_tasks(one.path))
        own = examples[one.name]
        kept = {index: own[index] for index in sample(one.name, len(own), options.samples, options.seed)}
        found = defects.find(one.name, texts[one.name], texts, training) if one.name in texts else Defects((), {})
        contents.append(Content(one, kept, found, {}))
    return contents


def _evaluate(
    evaluated: Evaluated, contents: Sequence[Content], options: SuiteOptions, out: Path | None
) -> dict[str, dict[str, Any]]:
    results = {}
    for number, content in enumerate(contents, start=1):
        one = content.set
        path = None if out is None else out / PREDICTIONS / f"{one.name}.jsonl"
        say(f"[{number}/{len(contents)}] {one.name}")
        results[one.name] = score_set(evaluated, content, options, path)
        if content.defects.notes:
            results[one.name]["defects"] = list(content.defects.notes)
    return results
