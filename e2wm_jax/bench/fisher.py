"""`e2wm bench fisher`: Fisher passes beside ordinary gradients and beside what others offer, all in one run.

Ours are in one process, each peer in its own, and one peer lives at a time, because each holds the model.  Everything
that is compared is measured in turn, round by round: a ratio is the median over rounds of the ratio within a round, so
a machine that is slow for a while is slow for both.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import numpy as np

from e2wm_jax.bench import fisher_peers
from e2wm_jax.bench.fisher_job import SHAPES, Job
from e2wm_jax.bench.fisher_methods import selected
from e2wm_jax.bench.fisher_page import COLUMNS, verdict, write_report
from e2wm_jax.bench.peers import Peer
from e2wm_jax.bench.settings import FisherBenchSettings
from e2wm_jax.config import ModelConfig
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.model_files import locate
from e2wm_jax.models.saving import check_new
from e2wm_jax.models.weights import open_model
from e2wm_jax.progress import say

LAYOUTS = ("full", "padded", "rows", "packed")
_ANCHORS = ("textbook", "fused")  # measured again beside every peer
_MODULE = "e2wm_jax.bench.fisher_peers"
Seconds = dict[str, list[float]]  # of each round


def run(settings: FisherBenchSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints (docs/performance.md says what the numbers are).

    Raises:
        InputError: for settings out of range, before anything is measured.
    """
    config = check(settings)
    with tempfile.TemporaryDirectory() as folder:
        job = _job(settings, folder)
        report = _packed(settings, job) if settings.packed else _compared(settings, job)
    report = {
        "model": settings.shape or settings.model,
        "family": type(config).__name__.removesuffix("Config"),
        **report,
        "settings": {**asdict(settings), "out": None if settings.out is None else str(settings.out)},
        "load": [round(load, 2) for load in os.getloadavg()],
    }
    if settings.out is not None:
        write_report(settings.out, report)
    return report


def check(settings: FisherBenchSettings) -> ModelConfig:
    """Refuse settings that cannot work; returns the model's configuration.

    Raises:
        InputError: naming the flag, its value and the rule.
    """
    check_at_least(
        ("--length", settings.length, 2),
        ("--batch-size", settings.batch_size, 1),
        ("--step-size", settings.step_size, 1),
        ("--rounds", settings.rounds, 1),
        ("--cores", settings.cores, 0),
        ("--group", settings.group, 1),
        ("--documents", settings.documents, 1),
        ("--shortest", settings.shortest, 2),
        ("--row", settings.row, settings.length),
    )
    if settings.packed and settings.shortest > settings.length:
        raise InputError(f"--shortest {settings.shortest}: at most --length {settings.length}")
    if settings.shape is None:
        config, _ = open_model(locate(settings.model))
    elif settings.shape not in SHAPES:
        raise InputError(f"--shape {settings.shape}: unknown; choose from {', '.join(SHAPES)}")
    else:
        config = SHAPES[settings.shape]
    if settings.length > config.max_positions:
        raise InputError(f"--length {settings.length}: the model has {config.max_positions} positions")
    try:
        selected(config, settings.params)
    except re.error as error:
        raise InputError(f"--params {settings.params!r}: not a regular expression ({error})") from error
    if settings.out is not None:
        check_new(settings.out)
    return config


def _job(settings: FisherBenchSettings, folder: str) -> Job:
    lengths = [settings.length] * settings.batch_size
    if settings.packed:
        rng = np.random.default_rng(settings.seed)
        lengths = rng.integers(settings.shortest, settings.length, settings.documents, endpoint=True).tolist()
    return Job(
        folder=folder,
        model="" if settings.shape else settings.model,
        shape=settings.shape or "",
        dtype=settings.base_dtype,
        params=settings.params,
        lengths=tuple(lengths),
        batch_size=settings.batch_size,
        step_size=settings.step_size or settings.batch_size,
        row=settings.row or settings.length,
        kernel=settings.kernel,
        keep=settings.keep,
        group=settings.group,
        cores=settings.cores,
        clock=settings.clock,
        seed=settings.seed,
    )


def _compared(settings: FisherBenchSettings, job: Job) -> dict[str, Any]:
    """Our methods with the official loop, then each other peer beside `_ANCHORS`."""
    absent = {peer: how for peer in settings.against if (how := fisher_peers.missing(peer))}
    peers = [peer for peer in settings.against if peer not in absent]
    facts: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(_process("ours", job))
        about = ours.ask("describe")
        say("bench fisher: F of single documents, to compare with")
        ours.ask("save", weights=bool(peers))
        theirs = replace(job, model=job.folder, shape="")
        for method in settings.methods:
            say(f"bench fisher: {method} compiles")
            facts[method] = ours.ask("prepare", method=method)
        sides: dict[str, Peer] = {method: ours for method in settings.methods}
        with contextlib.ExitStack() as first:
            if "official" in peers:
                peers.remove("official")
                facts["official"], official = _start(first, "official", theirs)
                sides |= {} if official is None else {"official": official}
            seconds = {"": _measure(sides, settings.rounds)}  # by peer; "": all that were measured together
            for name, side in sides.items():
                facts[name] |= _checked(name, side)
        anchors: dict[str, Peer] = {name: ours for name in _ANCHORS if name in settings.methods}
        for peer in peers:
            with contextlib.ExitStack() as other:
                facts[peer], process = _start(other, peer, theirs)
                if process is not None:
                    try:
                        seconds[peer] = _measure({**anchors, peer: process}, settings.rounds)
                        facts[peer] |= _checked(peer, process)
                    except RuntimeError as error:
                        facts[peer]["failed"] = str(error)
    rows = [_row(name, facts[name], seconds.get(name, seconds[""]), about, job) for name in facts]
    _chain(rows)
    return {**_about(about), "rows": rows, "not_installed": absent}


def _packed(settings: FisherBenchSettings, job: Job) -> dict[str, Any]:
    """Documents of unequal lengths in every layout."""
    with _process("ours", job) as ours:
        about = ours.ask("describe")
        names = {layout: f"corpus: {layout}" for layout in LAYOUTS}
        facts = {}
        for layout, name in names.items():
            say(f"bench fisher: {layout} compiles")
            facts[layout] = ours.ask("prepare", method=name)
        seconds = _measure(dict.fromkeys(names.values(), ours), settings.rounds)
    rows = []
    for layout, name in names.items():
        per_token = [s / facts[layout]["tokens"] for s in seconds[name]]
        full = [s / facts["full"]["tokens"] for s in seconds[names["full"]]]
        rows.append(
            {
                "layout": layout,
                "documents": facts[layout]["documents"],
                "tokens": facts[layout]["tokens"],
                "real_share": round(facts[layout]["tokens"] / facts[layout]["places"], 3),
                "seconds": round(median(seconds[name]), 4),
                "microseconds_per_token": round(1e6 * median(per_token), 2),
                "over_full": _ratio(per_token, full),
            }
        )
    return {**_about(about), "rows": rows}


def _process(side: str, job: Job) -> Peer:
    return Peer(side, asdict(job), module=_MODULE)


def _start(stack: contextlib.ExitStack, name: str, job: Job) -> tuple[dict[str, Any], Peer | None]:
    """A peer's facts and process; no process where it cannot do it."""
    say(f"bench fisher: {name} starts")
    try:
        peer = stack.enter_context(_process(name, job))
        facts = peer.ask("prepare")
    except (RuntimeError, BrokenPipeError) as error:
        return {"failed": str(error)}, None
    return facts, None if "failed" in facts else peer


def _measure(sides: dict[str, Peer], rounds: int) -> Seconds:
    seconds: Seconds = {name: [] for name in sides}
    for number in range(rounds):
        say(f"bench fisher: {', '.join(sides)}: round {number + 1} of {rounds}")
        for name, side in sides.items():
            seconds[name].append(side.ask("measure", **_named(name))["seconds"])
    return seconds


def _checked(name: str, side: Peer) -> dict[str, Any]:
    return side.ask("check", **_named(name))


def _named(name: str) -> dict[str, str]:
    """Ours is told which method; a peer has but one."""
    return {} if name in fisher_peers.PACKAGES else {"method": name}


def _row(name: str, facts: dict[str, Any], seconds: Seconds, about: dict[str, Any], job: Job) -> dict[str, Any]:
    """What is said of one method; memory in units of P, all parameters in float32."""
    row: dict[str, Any] = {"method": name, "side": "peer" if name in fisher_peers.PACKAGES else "ours"}
    row |= {key: facts[key] for key in ("way", "failed", "gflops") if key in facts}
    if name not in seconds:
        return row
    middle = median(seconds[name])
    row["seconds"] = round(middle, 5)
    row["examples_per_second"] = round(len(job.lengths) / middle, 3)
    row["tokens_per_second"] = round(sum(job.lengths) / middle, 1)
    for other in ("textbook", "plain", "fused"):
        if other in seconds:
            row[f"over_{other}"] = _ratio(seconds[name], seconds[other])
    if "official" in seconds:
        row["times_official"] = _ratio(seconds["official"], seconds[name])
    unit = 4 * about["parameters"]
    for key in ("peak_bytes", "extra_bytes", "grown_bytes"):
        if key in facts:
            row[key] = facts[key]
    if "extra_bytes" in facts:
        row["extra_parameters"] = round(facts["extra_bytes"] / unit, 3)
    if "grown_bytes" in facts:
        row["grown_parameters"] = round((facts["grown_bytes"] - 4 * about["selected"]) / unit, 2)
    if facts.get("error") is not None:
        row |= {key: facts[key] for key in ("error", "worst", "tensors", "missing", "wrong", "first_wrong")}
    return row


def _ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    return round(median(a / b for a, b in zip(seconds, base, strict=True)), 3)


def _chain(rows: list[dict[str, Any]]) -> None:
    """Peers that were not measured beside the official loop are compared with it through the textbook gradient."""
    official = next((row["over_textbook"] for row in rows if row["method"] == "official" and "over_textbook" in row), 0)
    for row in rows:
        if official and "over_textbook" in row and "times_official" not in row:
            row["times_official"] = round(official / row["over_textbook"], 3)


def _about(about: dict[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in ("parameters", "device", "jax", "gflops")}


def show(report: dict[str, Any]) -> None:
    """The report as a table on stdout."""
    print(f"{report['model']} ({report['parameters'] / 1e6:.1f} M parameters), {report['device']}, jax {report['jax']}")
    rates = {"ours": report["gflops"]} | {row["method"]: row["gflops"] for row in report["rows"] if "gflops" in row}
    print("GFLOP/s of a matrix product: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
    if report["settings"]["packed"]:
        print(f"{'':<10}{'documents':>10}{'tokens':>9}{'real':>7}{'seconds':>10}{'us/token':>10}{'/ full':>8}")
        for row in report["rows"]:
            print(
                f"{row['layout']:<10}{row['documents']:>10}{row['tokens']:>9}{row['real_share']:>7.0%}"
                f"{row['seconds']:>10.3f}{row['microseconds_per_token']:>10.1f}{row['over_full']:>8.2f}"
            )
        return
    print(f"{'':<12}" + "".join(f"{name:>12}" for name in COLUMNS.values()) + "  max error of F")
    for row in report["rows"]:
        cells = "".join(f"{format(row[key], '.2f') if key in row else '':>12}" for key in COLUMNS)
        print(f"{row['method']:<12}{cells}  {verdict(row)}")
    for peer, how in report["not_installed"].items():
        print(f"{peer:<12} not installed: {how}")
