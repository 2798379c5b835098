"""`e2wm bench fisher`: Fisher passes beside ordinary gradients and beside what others offer, all in one run.

Ours are in one process, each peer in its own, and one peer lives at a time, because each holds the model.  Everything
that is compared is measured in turn, round by round: a ratio is the median over rounds of the ratio within a round, so
a machine that is slow for a while is slow for both.
"""

import contextlib
import tempfile
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from e2wm_jax.bench.harness import Seconds, check_least, circumstances, ratio, ratio_range, seconds_in_turn, spread
from e2wm_jax.bench.jobs.fisher import SHAPES, FisherJob
from e2wm_jax.bench.ours.fisher import selected
from e2wm_jax.bench.ours.own_method import check_own
from e2wm_jax.bench.pages.report import show, write_report
from e2wm_jax.bench.peers import fisher as fisher_peers
from e2wm_jax.bench.process import Peer
from e2wm_jax.bench.settings import FisherBenchSettings
from e2wm_jax.config import ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models.saving import check_new
from e2wm_jax.models.weights import open_model
from e2wm_jax.running.progress import say
from e2wm_jax.storage.model_files import locate

LAYOUTS = ("full", "padded", "rows", "packed")
_ANCHORS = ("textbook", "fused")  # measured again beside every peer
_OURS, _PEERS = "e2wm_jax.bench.ours.fisher", "e2wm_jax.bench.peers.fisher"
__all__ = ["run", "show"]
Report = dict[str, Any]


def run(settings: FisherBenchSettings) -> Report:
    """Run the command; returns what `--json` prints (docs/performance.md says what the numbers are).

    Raises:
        InputError: for settings out of range, before anything is measured.
    """
    config = check(settings)
    with tempfile.TemporaryDirectory() as folder:
        job = FisherJob.of(settings, folder)
        report = _packed(job) if settings.packed else _compared(job)
    report = {
        "command": "bench fisher",
        "model": settings.shape or settings.model,
        "family": type(config).__name__.removesuffix("Config"),
        **report,
        **circumstances(settings),
    }
    if settings.out is not None:
        write_report(settings.out, report)
    return report


def check(settings: FisherBenchSettings) -> ModelConfig:
    """Refuse settings that cannot work; returns the model's configuration.

    Raises:
        InputError: naming the flag, its value and the rule.
    """
    check_least(settings, length=2, shortest=2, cores=0, row=settings.length)
    check_least(settings, batch_size=1, step_size=1, rounds=1, group=1, documents=1)
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
    selected(config, settings.params)
    for text in settings.method_from:
        check_own(text)
    if settings.packed and settings.method_from:
        raise InputError(
            f"--method-from {settings.method_from[0]}: --packed measures layouts of `fused`; leave one out"
        )
    if settings.out is not None:
        check_new(settings.out)
    return config


def _compared(job: FisherJob) -> Report:
    """Our methods with the official loop, then each other peer beside `_ANCHORS`."""
    absent = {peer: how for peer in job.against if (how := fisher_peers.missing(peer))}
    peers = [peer for peer in job.against if peer not in absent]
    others = [peer for peer in peers if peer != "official"]
    facts: dict[str, Report] = {}
    seconds: dict[str, Seconds] = {}  # by peer; "official": of ours too, whether it is there or not
    with _process("ours", job) as ours:
        about = ours.ask("describe")
        say("bench fisher: F of single documents, to compare with")
        ours.ask("save", weights=bool(peers))
        for method in (*job.methods, *job.method_from):
            say(f"bench fisher: {method} compiles")
            facts[method] = ours.ask("prepare", method=method, own=method in job.method_from)
        sides = {method: (ours, {"method": method}) for method in facts if "failed" not in facts[method]}
        anchors = {name: sides[name] for name in _ANCHORS if name in sides}
        for peer in ("official", *others):
            mine = sides if peer == "official" else anchors
            with contextlib.ExitStack() as stack:
                if peer in peers:
                    facts[peer], process = _start(stack, peer, job)
                    mine = mine | ({peer: (process, {})} if process else {})
                if peer == "official":
                    seconds[peer] = _measure(mine, job.rounds, facts)
                elif peer in mine:
                    try:
                        seconds[peer] = _measure(mine, job.rounds, facts)
                    except RuntimeError as error:
                        facts[peer]["failed"] = str(error)
    rows = [_row(name, facts[name], seconds.get(name, seconds["official"]), about, job) for name in facts]
    for row in rows:
        if row["method"] in others and row["method"] in seconds:
            row["beside"] = {name: spread(seconds[row["method"]][name]) for name in anchors}
    _through_textbook(rows)
    return {**_about(about), "rows": rows, "not_installed": absent}


def _packed(job: FisherJob) -> Report:
    """Documents of unequal lengths in every layout."""
    with _process("ours", job) as ours:
        about = ours.ask("describe")
        names = {layout: f"corpus: {layout}" for layout in LAYOUTS}
        facts = {}
        for layout, name in names.items():
            say(f"bench fisher: {layout} compiles")
            facts[layout] = ours.ask("prepare", method=name)
        measures = {layout: partial(ours.ask, "measure", method=name) for layout, name in names.items()}
        seconds = seconds_in_turn(measures, job.rounds, "bench fisher")
    per_token = {layout: [each / facts[layout]["tokens"] for each in seconds[layout]] for layout in LAYOUTS}
    rows = [
        {
            "layout": layout,
            "documents": facts[layout]["documents"],
            "tokens": facts[layout]["tokens"],
            "real_share": round(facts[layout]["tokens"] / facts[layout]["places"], 3),
            **spread(seconds[layout]),
            "microseconds_per_token": round(1e6 * median(per_token[layout]), 2),
            "over_full": ratio(per_token[layout], per_token["full"]),
            "over_full_range": ratio_range(per_token[layout], per_token["full"]),
        }
        for layout in LAYOUTS
    ]
    return {**_about(about), "rows": rows}


def _process(side: str, job: FisherJob) -> Peer:
    return Peer(side, job, module=_OURS if side == "ours" else _PEERS)


def _start(stack: contextlib.ExitStack, name: str, job: FisherJob) -> tuple[Report, Peer | None]:
    """A peer's facts and process; no process where it cannot do it."""
    say(f"bench fisher: {name} starts")
    try:
        peer = stack.enter_context(_process(name, replace(job, model=job.folder, shape=None)))
        facts = peer.ask("prepare")
    except (RuntimeError, BrokenPipeError) as error:
        return {"failed": str(error)}, None
    return facts, None if "failed" in facts else peer


def _measure(sides: dict[str, tuple[Peer, Report]], rounds: int, facts: dict[str, Report]) -> Seconds:
    """Times of all rounds, and into ``facts`` what is said of each F that was not looked at before."""
    measures = {name: partial(side.ask, "measure", **words) for name, (side, words) in sides.items()}
    seconds = seconds_in_turn(measures, rounds, f"bench fisher: {', '.join(sides)}")
    for name, (side, words) in sides.items():
        if "error" not in facts[name]:
            facts[name] |= side.ask("check", **words)
    return seconds


def _about(about: Report) -> Report:
    return {key: about[key] for key in ("parameters", "device", "jax", "gflops")}


def _row(name: str, facts: Report, seconds: Seconds, about: Report, job: FisherJob) -> Report:
    """What is said of one method; memory in units of P, all parameters in float32."""
    side = "peer" if name in fisher_peers.PACKAGES else "own" if name in job.method_from else "ours"
    row: Report = {"method": name, "side": side}
    row |= {key: facts[key] for key in ("way", "failed", "gflops") if key in facts}
    if name not in seconds:
        return row
    row |= spread(seconds[name])
    row["examples_per_second"] = round(len(job.lengths) / row["seconds"], 3)
    row["tokens_per_second"] = round(sum(job.lengths) / row["seconds"], 1)
    for other in ("textbook", "plain", "fused"):
        if other in seconds:
            row[f"over_{other}"] = ratio(seconds[name], seconds[other])
            row[f"over_{other}_range"] = ratio_range(seconds[name], seconds[other])
    if "official" in seconds:
        row["times_official"] = ratio(seconds["official"], seconds[name])
        row["times_official_range"] = ratio_range(seconds["official"], seconds[name])
    row |= {key: facts[key] for key in ("peak_bytes", "extra_bytes", "grown_bytes") if key in facts}
    unit = 4 * about["parameters"]
    if "extra_bytes" in facts:
        row["extra_parameters"] = round(facts["extra_bytes"] / unit, 3)
    if "grown_bytes" in facts:
        row["grown_parameters"] = round((facts["grown_bytes"] - 4 * about["selected"]) / unit, 2)
    if facts.get("error") is not None:
        row |= {key: facts[key] for key in ("error", "worst", "tensors", "missing", "wrong", "first_wrong")}
    return row


def _through_textbook(rows: list[Report]) -> None:
    """An estimate for peers that were not measured beside the official loop; tables leave it out, for it is of two
    measurements."""
    official = next((row["over_textbook"] for row in rows if row["method"] == "official" and "over_textbook" in row), 0)
    for row in rows:
        if official and "over_textbook" in row and "times_official" not in row:
            row["times_official"] = round(official / row["over_textbook"], 3)
