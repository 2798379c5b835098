"""The parts of a comparison: a Fisher, the base's evaluation, a run with its evaluation.  Each leaves a result.json.

A part that has one is done; one that was interrupted goes on from its checkpoint, its predictions or its partial sums.
"""

import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from e2wm_jax import __version__
from e2wm_jax.compare.examples import examples_of
from e2wm_jax.compare.plan import ComparePlan
from e2wm_jax.compare.sets import evaluate
from e2wm_jax.errors import NonFiniteError
from e2wm_jax.evaluate.model import Evaluated, load_evaluated
from e2wm_jax.fisher.command import resume
from e2wm_jax.fisher.command import run as fisher
from e2wm_jax.fisher.files import METADATA_FILE
from e2wm_jax.storage.files import read_json, write_json
from e2wm_jax.train import run as train

RESULT_FILE, EVALUATION = "result.json", "evaluation"
BASE = "base"


class CompareJob(NamedTuple):
    """A part by name: ("fisher", its folder's name), ("base", ""), or ("run", the arm's name, seed)."""

    kind: str
    name: str = ""
    seed: int = 0

    def __str__(self) -> str:
        return {"base": "the base's evaluation", "fisher": f"Fisher {self.name}"}.get(
            self.kind, f"{self.name}, seed {self.seed}"
        )


def first_jobs(plan: ComparePlan) -> list[CompareJob]:
    """What runs need, and what they are compared with."""
    return [CompareJob(BASE), *(CompareJob("fisher", name) for name in plan.fishers)]


def run_jobs(plan: ComparePlan) -> list[CompareJob]:
    """All runs."""
    return [CompareJob("run", arm.name, seed) for arm, seed in plan.runs]


def folder(plan: ComparePlan, job: CompareJob) -> Path:
    """Where a part leaves what it made."""
    if job.kind == BASE:
        return plan.out / BASE
    if job.kind == "fisher":
        return plan.out / "fishers" / job.name
    return plan.run_folder(_arm(plan, job), job.seed)


def result(plan: ComparePlan, job: CompareJob) -> dict[str, Any] | None:
    """What a part has found, if it is done."""
    path = folder(plan, job) / RESULT_FILE
    return read_json(path) if path.is_file() else None


def do(plan: ComparePlan, job: CompareJob) -> None:
    """Do one part.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with what was done saved.
    """
    started = time.monotonic()
    steps = {BASE: _base, "fisher": _fisher, "run": _run}
    found = steps[job.kind](plan, job)
    record = found | {"seconds": round(time.monotonic() - started, 2), "machine": machine()}
    write_json(folder(plan, job) / RESULT_FILE, record)


def machine() -> dict[str, Any]:
    """What a part was computed with."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else f"cpu {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "e2wm_jax": __version__,
    }


def machines(plan: ComparePlan) -> Iterator[dict[str, Any]]:
    """Of all parts that are done, each machine once."""
    seen: list[dict[str, Any]] = []
    for job in (*first_jobs(plan), *run_jobs(plan)):
        found = result(plan, job)
        if found is not None and found["machine"] not in seen:
            seen.append(found["machine"])
            yield found["machine"]


def _arm(plan: ComparePlan, job: CompareJob) -> Any:
    return next(arm for arm in plan.arms if arm.name == job.name)


def _base(plan: ComparePlan, job: CompareJob) -> dict[str, Any]:
    return _scores(plan, load_evaluated(plan.model, None, plan.base_dtype), folder(plan, job))


def _fisher(plan: ComparePlan, job: CompareJob) -> dict[str, Any]:
    """A Fisher whose process died between its last file and its result is read, not computed again."""
    settings = plan.fisher_settings(plan.fishers[job.name])
    unfinished = resume.find(settings.out) is not None
    if (settings.out / METADATA_FILE).is_file() and not unfinished:
        record = read_json(settings.out / METADATA_FILE)
        return {"summary": {name: record[name] for name in ("samples", "tokens", "nats") if name in record}}
    if not unfinished:
        shutil.rmtree(settings.out, ignore_errors=True)  # of a pass that was killed while it wrote its files
    found = fisher.run(replace(settings, resume=unfinished))
    return {"summary": {name: value for name, value in found.items() if name not in ("modules", "out")}}


def _run(plan: ComparePlan, job: CompareJob) -> dict[str, Any]:
    arm = _arm(plan, job)
    settings = plan.train_settings(arm, job.seed)
    try:
        summary = train.run(settings)
    except FloatingPointError as error:  # this arm's result; the others go on
        return {"summary": {}, "sets": {}, "failed": str(error)}
    evaluated = load_evaluated(plan.model, settings.out / train.ADAPTER, settings.base_dtype)
    try:
        return {"summary": summary, **_scores(plan, evaluated, settings.out)}
    except NonFiniteError as error:
        return {"summary": summary, "sets": {}, "failed": str(error)}


def _scores(plan: ComparePlan, evaluated: Evaluated, out: Path) -> dict[str, Any]:
    """Of every set, and of every example."""
    where, train = out / EVALUATION, plan.training_files
    found = evaluate(evaluated, plan.sets, plan.texts, plan.evaluation, where, train=train)
    return {"sets": found, "examples": examples_of(where, found)}
