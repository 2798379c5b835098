"""`e2wm compare`: plan -> Fishers and base -> runs, each evaluated -> comparison.json, table and report."""

import contextlib
import subprocess
from collections.abc import Sequence
from typing import Any

from e2wm_jax.compare import jobs, record, workers
from e2wm_jax.compare.page import REPORT_FILE, write_page
from e2wm_jax.compare.plan import ComparePlan, make_plan
from e2wm_jax.compare.settings import CompareSettings
from e2wm_jax.compare.verdict import for_readers, verdict
from e2wm_jax.running.interrupt import terminated_as_interrupted
from e2wm_jax.running.progress import say


def run(settings: CompareSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, or an output directory of another comparison, before any training.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with what was done saved.
    """
    plan = make_plan(settings)
    workers.shares(settings.workers)
    record.claim(plan, resume=settings.resume)
    with contextlib.ExitStack() as stack:
        processes: Sequence[subprocess.Popen[str]] = ()
        if settings.workers > 1:
            stack.enter_context(terminated_as_interrupted())
            processes = stack.enter_context(workers.started(plan.out, settings.workers))
        for part in (jobs.first_jobs(plan), jobs.run_jobs(plan)):
            _do(plan, part, processes)
    found = record.update(plan)
    write_page(plan.out)
    return {
        "trade_off": found["trade_off"],
        "failed": _failed(found),
        "runs": len(plan.runs),
        "comparison": str(plan.out / record.RECORD_FILE),
        "report": str(plan.out / REPORT_FILE),
    }


def show(result: dict[str, Any]) -> None:
    """The table of the trade-off."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "skill", "nats above base", "front", "dominates", title="What was learned and what was forgotten")
    standings = for_readers({"arms": [], "trade_off": result["trade_off"]})["trade_off"]
    for entry in standings:
        clear = [f"{name} (clearly)" if name in entry["clearly"] else name for name in entry["dominates"]]
        cells = [_cell(entry["skill"]), _cell(entry["forgetting"]), "yes" if entry["front"] else "", ", ".join(clear)]
        table.add_row(entry["arm"], *cells)
    Console(width=120, highlight=False).print(table)
    several = any(entry["error_of"] == "seeds" for entry in standings[1:])
    spread = "mean less and plus a standard error over seeds" if several else "95 % interval over examples"
    print(f"in brackets: {spread}; skill: mean over sets; nats above base: per token of general text")
    for sentence in verdict(standings):
        print(sentence)
    for failure in result["failed"]:
        print(f"failed: {failure}")
    print(f"report: {result['report']}")


def _do(plan: ComparePlan, part: Sequence[jobs.CompareJob], processes: Sequence["subprocess.Popen[str]"]) -> None:
    """Do what is not done yet, in these processes or without any in this one, and gather after each."""
    todo = [job for job in part if jobs.result(plan, job) is None]
    say(f"{len(part) - len(todo)} of {len(part)} {'runs' if part[0].kind == 'run' else 'preparations'} done before")
    done = 0

    def finished() -> None:
        nonlocal done
        done += 1
        record.update(plan)
        write_page(plan.out)
        say(f"{done} of {len(todo)} done")

    if processes:
        workers.do_all(processes, todo, finished)
        return
    for job in todo:
        say(str(job))
        jobs.do(plan, job)
        finished()


def _failed(found: dict[str, Any]) -> list[str]:
    return [
        f"{arm['name']}, seed {run['seed']}: {run['failed']}"
        for arm in found["arms"]
        for run in arm["runs"]
        if "failed" in run
    ]


def _cell(score: dict[str, Any]) -> str:
    if score["low"] is None:
        return f"{score['mean']:.3f}"
    return f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
