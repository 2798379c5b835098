"""`e2wm bench fisher`: Fisher passes beside ordinary gradients and beside what others offer, all in one run.

Ours are in one process, each peer in its own, and one peer lives at a time, because each holds the model.  Everything
that is compared is measured in turn, round by round: a ratio is the median over rounds of the ratio within a round, so
a machine that is slow for a while is slow for both.
"""

import contextlib
import os
import re
import tempfile
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import numpy as np

from e2wm_jax.bench import fisher_peers
from e2wm_jax.bench.fisher_job import SHAPES, Job
from e2wm_jax.bench.fisher_methods import selected
from e2wm_jax.bench.fisher_page import show, write_report
from e2wm_jax.bench.fisher_rows import Seconds, ratio, ratio_range, row_of, spread, through_textbook
from e2wm_jax.bench.machine import processor
from e2wm_jax.bench.own_method import check_own
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
__all__ = ["run", "show"]


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
        "command": "bench fisher",
        "model": settings.shape or settings.model,
        "family": type(config).__name__.removesuffix("Config"),
        **report,
        "settings": {**asdict(settings), "out": None if settings.out is None else str(settings.out)},
        "processor": processor(),
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
    for text in settings.method_from:
        check_own(text)
    if settings.packed and settings.method_from:
        raise InputError(
            f"--method-from {settings.method_from[0]}: --packed measures layouts of `fused`; leave one out"
        )
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
        for method in (*settings.methods, *settings.method_from):
            say(f"bench fisher: {method} compiles")
            facts[method] = ours.ask("prepare", method=method, own=method in settings.method_from)
        sides: dict[str, Peer] = {method: ours for method in facts if "failed" not in facts[method]}
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
    rows = [row_of(name, facts[name], seconds.get(name, seconds[""]), about, job) for name in facts]
    for row in rows:
        if row["method"] in seconds:
            row["beside"] = {name: spread(seconds[row["method"]][name]) for name in anchors}
        row["side"] = "own" if row["method"] in settings.method_from else row["side"]
    through_textbook(rows)
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
                **spread(seconds[name]),
                "microseconds_per_token": round(1e6 * median(per_token), 2),
                "over_full": ratio(per_token, full),
                "over_full_range": ratio_range(per_token, full),
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


def _about(about: dict[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in ("parameters", "device", "jax", "gflops")}
