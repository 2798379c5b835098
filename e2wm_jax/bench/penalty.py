"""`e2wm bench penalty`: the EWC penalty with its gradients, in every storage type, against the official expression.

The official expression (torch, where it is installed) and ours run in a process each, in turn; `taskset -c 0 e2wm bench
penalty` gives both the same core.  G6 of the GPU cases is `--modules 48 --implementations xla mosaic_gpu`, G7 is
`--steps gpt-neo-1.3b-qv gpt-neo-1.3b-all`.

Letters: L matrices, N outputs, D inputs, R rank, B rows, T tokens.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from e2wm_jax import report as html
from e2wm_jax.bench.harness import best_of, check_least, print_table
from e2wm_jax.bench.jobs.penalty import STEPS
from e2wm_jax.bench.peers.transformers import has_transformers
from e2wm_jax.bench.process import Answer, Peer
from e2wm_jax.bench.settings import PenaltyBenchSettings
from e2wm_jax.errors import InputError
from e2wm_jax.running.progress import say

_OURS, _PEERS = "e2wm_jax.bench.ours.penalty", "e2wm_jax.bench.peers.penalty"


def run(settings: PenaltyBenchSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    ``over_read`` is time over the time to read F in float32 once, ``speedup`` the official expression's time (or, in
    ``speedup_over_plain``, that of autodiff of the plain expression) over this one's, ``overhead`` the time of a step
    with the penalty over that without.

    Raises:
        InputError: for settings out of range or an unknown step.
    """
    check_least(settings, modules=1, size=1, rank=1, repeats=1)
    steps = [name for name in settings.steps if name != "none"]
    if unknown := [name for name in steps if name not in STEPS]:
        raise InputError(f"--steps {unknown[0]}: unknown; choose from {', '.join(STEPS)}, none")
    report: dict[str, Any] = {
        "modules": settings.modules,
        "size": settings.size,
        "rank": settings.rank,
        "penalty": _penalties(settings),
        "steps": {name: _step(settings, name) for name in steps},
    }
    if settings.out is not None:
        html.write(settings.out, _page(report))
    return report


def _penalties(settings: PenaltyBenchSettings) -> dict[str, Any]:
    case = {key: getattr(settings, key) for key in ("modules", "size", "rank", "seed")}
    named = [
        (dtype if implementation == "xla" else f"{dtype}, {implementation}", dtype, implementation)
        for dtype in settings.dtypes
        for implementation in settings.implementations
    ]
    say(f"bench penalty: {settings.modules} matrices of {settings.size} x {settings.size}, rank {settings.rank}")
    with ExitStack() as stack:
        ours = stack.enter_context(Peer("ours", case, module=_OURS))
        measures: dict[str, Callable[[], Answer]] = {
            "reading F once": partial(ours.ask, "read"),
            "plain, autodiff": partial(ours.ask, "plain"),
        }
        for name, dtype, implementation in named:
            measures[name] = partial(ours.ask, "fused", dtype=dtype, implementation=implementation)
        if has_transformers():
            theirs = stack.enter_context(Peer("official", case, module=_PEERS))
            measures["official, torch"] = partial(theirs.ask, "official")
        found = dict(zip(measures, best_of(settings.repeats, *measures.values()), strict=True))
    read, plain, official = (found.get(name) for name in ("reading F once", "plain, autodiff", "official, torch"))
    for row in found.values():
        row["over_read"] = row["seconds"] / read["seconds"] if read else None
        row["speedup_over_plain"] = plain["seconds"] / row["seconds"] if plain else None
        row["speedup"] = official["seconds"] / row["seconds"] if official else None
        if plain and "value" in row:
            row["value_error"] = abs(row["value"] / plain["value"] - 1)
    return found


def _step(settings: PenaltyBenchSettings, name: str) -> dict[str, Any]:
    say(f"bench penalty: training step {name}")
    with Peer("step", {"name": name, "rank": settings.rank, "seed": settings.seed}, module=_OURS) as peer:
        measures = [partial(peer.ask, "step", dtype=dtype) for dtype in (None, *settings.dtypes)]
        without, *others = best_of(settings.repeats, *measures)
    rows: dict[str, Any] = {
        dtype: {"seconds": answer["seconds"], "overhead": answer["seconds"] / without["seconds"]}
        for dtype, answer in zip(settings.dtypes, others, strict=True)
    }
    return {"without": {"seconds": without["seconds"]}, **rows}


def show(report: dict[str, Any]) -> None:
    """The report as tables on stdout."""
    print_table(*_table(report))
    for name, step in report["steps"].items():
        times = ", ".join(f"with {key} {row['overhead']:.3f}" for key, row in step.items() if "overhead" in row)
        print(f"step {name}: {1000 * step['without']['seconds']:.1f} ms without the penalty; {times} times that")


def _table(report: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    headers = ["", "ms", "x reading F", "x official", "temps, MiB", "bytes/entry", "value error"]
    keys = ("over_read", "speedup", "temporaries_mib", "bytes_per_entry", "value_error")
    rows = [[name, 1000 * row["seconds"], *(row.get(key) for key in keys)] for name, row in report["penalty"].items()]
    return headers, rows


def _page(report: dict[str, Any]) -> str:
    headers, rows = _table(report)
    chart = html.bar_chart(
        {name: {"time": 1000 * row["seconds"]} for name, row in report["penalty"].items()},
        title="Value and gradients of the penalty",
        x_label="milliseconds",
    )
    lead = f"{report['modules']} matrices of {report['size']} x {report['size']}, rank {report['rank']}"
    sections = [html.Section("Penalty", [chart, html.table(headers, rows)])]
    if report["steps"]:
        steps = [
            [name, key, 1000 * row["seconds"], row.get("overhead")]
            for name, step in report["steps"].items()
            for key, row in step.items()
        ]
        sections.append(html.Section("Training step", [html.table(["step", "F", "ms", "x without"], steps)]))
    return html.page("The EWC penalty", sections, lead=lead)
