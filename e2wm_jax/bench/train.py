"""`e2wm bench train`: the regularized LoRA step beside PEFT and transformers, and what each regularizer costs.

All in one run.  Ours and the peer are in a process each, on the same cores, with the same model, adapters, rows and F.
What is compared is measured in turn, round by round: a ratio is the median over rounds of the ratio within a round.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from e2wm_jax import lora
from e2wm_jax.bench import train_peers
from e2wm_jax.bench.machine import processor
from e2wm_jax.bench.peers import Peer
from e2wm_jax.bench.settings import TrainBenchSettings
from e2wm_jax.bench.train_job import SHAPES, Job, loader_of, write_rows
from e2wm_jax.bench.train_page import show, write_report
from e2wm_jax.config import LoraConfig, ModelConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.data.generate import UNIT
from e2wm_jax.data.online_rows import RowMaker, Unit
from e2wm_jax.data.source import online_tasks, parse_mixture, read_mixture
from e2wm_jax.data.tokenize import task_rows
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.model_files import locate
from e2wm_jax.models.saving import check_new
from e2wm_jax.models.weights import open_model
from e2wm_jax.progress import say
from e2wm_jax.regularizers.catalogue import regularizer
from e2wm_jax.sharding import mesh_shape

__all__ = ["TrainBenchSettings", "run", "show"]
_MODULE, _MESHES = "e2wm_jax.bench.train_peers", "e2wm_jax.bench.train_meshes"
Seconds = list[float]  # of each round


def run(settings: TrainBenchSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints (docs/performance.md says what the numbers are).

    Raises:
        InputError: for settings out of range, a model that is too large for a CPU, or data that cannot be read.
    """
    check(settings)
    absent = train_peers.missing() if settings.against else ""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        job = _job(settings, folder)
        ours = stack.enter_context(_process("ours", job))
        about = ours.ask("describe")
        if "refused" in about:
            raise InputError(about["refused"])
        beside = bool(settings.against) and not absent and settings.base_dtype == "float32"
        ours.ask("save", weights=beside)
        model = settings.shape or settings.model
        report: dict[str, Any] = {"command": "bench train", "model": model, "processor": processor(), **about}
        report["steps"] = _steps(settings, job, ours, about, beside)
        report["waiting"] = _waiting(settings, ours)
        report["regularizers"] = _regularizers(settings, ours)
    report["meshes"] = _meshes(settings)
    report["not_installed"] = {"peft": absent} if absent else {}
    report["settings"] = {**asdict(settings), "out": None if settings.out is None else str(settings.out)}
    report["load"] = [round(load, 2) for load in os.getloadavg()]
    if settings.out is not None:
        write_report(settings.out, report)
    return report


def check(settings: TrainBenchSettings) -> ModelConfig:
    """Refuse settings that cannot work; returns the model's configuration.

    Raises:
        InputError: naming the flag, its value and the rule.
    """
    check_at_least(
        ("--batch-size", settings.batch_size, 1),
        ("--steps", settings.steps, 1),
        ("--max-length", settings.max_length, 2),
        ("--length", settings.length, 8),
        ("--rank", settings.rank, 1),
        ("--rounds", settings.rounds, 1),
        ("--waiting-steps", settings.waiting_steps, 0),
        ("--cores", settings.cores, 0),
    )
    for flag, shape in (("--shape", settings.shape), ("--mesh-model", settings.mesh_model)):
        if shape is not None and shape not in SHAPES:
            raise InputError(f"{flag} {shape}: unknown; choose from {', '.join(SHAPES)}")
    if settings.shape is not None and settings.length is None:
        raise InputError(f"--shape {settings.shape}: has no tokenizer; give the length of made-up rows, --length 512")
    if not settings.targets:
        raise InputError("--targets: give at least one, e.g. all-linear")
    for name in settings.regularizers:
        regularizer(name)
    for text in settings.meshes:
        mesh_shape(text)
    config = SHAPES[settings.shape] if settings.shape is not None else open_model(locate(settings.model))[0]
    longest = settings.length or settings.max_length
    if longest > config.max_positions:
        flag = "--length" if settings.length else "--max-length"
        raise InputError(f"{flag} {longest}: the model has {config.max_positions} positions")
    for targets in settings.targets:
        lora.adapter_spec(config, LoraConfig(rank=settings.rank, dropout=settings.dropout, targets=targets))
    if settings.out is not None:
        check_new(settings.out)
    return config


def _job(settings: TrainBenchSettings, folder: str) -> Job:
    job = Job(
        folder=folder,
        model="" if settings.shape else settings.model,
        shape=settings.shape or "",
        dtype=settings.base_dtype,
        targets=settings.targets,
        rank=settings.rank,
        dropout=settings.dropout,
        remat=settings.remat,
        batch_size=settings.batch_size,
        max_length=settings.length or settings.max_length,
        cores=settings.cores,
        clock=settings.clock,
        seed=settings.seed,
    )
    rows = _made_up(settings) if settings.length else _rows(settings)
    if len(rows) < settings.steps * settings.batch_size:
        raise InputError(f"--data {settings.data}: {len(rows)} rows; {settings.steps} steps need more")
    loader = loader_of(job, rows)
    write_rows(job, rows, [loader.step(step + 1).examples for step in range(settings.steps)])  # type: ignore[misc]
    Path(folder, "model").mkdir()
    return job


def _made_up(settings: TrainBenchSettings) -> list[Row]:
    assert settings.length is not None
    rng, length = np.random.default_rng(settings.seed), settings.length
    count = settings.steps * settings.batch_size
    return [Row(ids, length - length // 8) for ids in rng.integers(0, 256, (count, length), np.int32)]


def _rows(settings: TrainBenchSettings) -> list[Row]:
    """Rows of the mixture, the parts in turn."""
    mixture, count = parse_mixture(settings.data), settings.steps * settings.batch_size
    tokenizer, tasks = load_tokenizer(locate(settings.model)), online_tasks(parse_mixture(settings.data))
    each = math.ceil(count / len(mixture))
    maker = RowMaker(tokenizer, tasks, settings.seed, settings.max_length, skip_truncated=True)
    parts = [
        [row for number in range(math.ceil(each / UNIT)) for row in maker(Unit(part, number))]
        for part in range(len(tasks))
    ]
    for weight, path in mixture:
        if isinstance(path, Path):
            examples = read_mixture([(weight, path)])[: 2 * each]
            options: dict[str, Any] = {"max_length": settings.max_length, "skip_truncated": True}
            parts.append(task_rows(tokenizer, examples, **options)[0])
    rows = [row for column in zip(*(part[:each] for part in parts), strict=False) for row in column]
    return rows[:count]


def _process(side: str, job: Job) -> Peer:
    return Peer(side, asdict(job), module=_MODULE)


def _steps(
    settings: TrainBenchSettings, job: Job, ours: Peer, about: dict[str, Any], beside: bool
) -> list[dict[str, Any]]:
    """The EWC-LoRA step of both sides, for each choice of targets."""
    rows = []
    with contextlib.ExitStack() as stack:
        theirs = stack.enter_context(_process("peft", job)) if beside else None
        rate = about["peak"] or 1e9 * about["gflops"]
        their_rate = 1e9 * theirs.ask("describe")["gflops"] if theirs else 0.0
        for index, targets in enumerate(settings.targets):
            say(f"bench train: {targets} compiles")
            facts = ours.ask("prepare", index=index, name="ewc")
            error, grown = None, 0
            if theirs is not None:
                grown = theirs.ask("prepare", index=index)["grown_bytes"]
                losses = [side.ask("losses", index=index)["losses"] for side in (ours, theirs)]
                error = max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True))
            mine, other = Seconds(), Seconds()
            for number in range(settings.rounds):
                say(f"bench train: {targets}: round {number + 1} of {settings.rounds}")
                mine.append(ours.ask("measure", index=index, name="ewc")["seconds"])
                if theirs is not None:
                    other.append(theirs.ask("measure", index=index, ewc=True)["seconds"])
            if index:
                ours.ask("drop", index=index, name="ewc")
            work = facts["flops_per_token"] * about["tokens"]
            common = {"targets": targets, "gflop": round(work / 1e9, 1)}
            rows.append(
                {"side": "ours", **common, **_speed(mine, about["tokens"], work, rate)}
                | {key: facts[key] for key in ("peak_bytes", "held_bytes", "first_seconds")}
            )
            if theirs is not None:
                rows[-1] |= {"times_peft": _ratio(other, mine), "loss_error": error}
                speed = _speed(other, about["tokens"], work, their_rate)
                rows.append({"side": "peft", **common, **speed, "grown_bytes": grown})
    return rows


def _speed(seconds: Seconds, tokens: int, work: float, rate: float) -> dict[str, Any]:
    middle = median(seconds)
    return {
        "seconds": round(middle, 5),
        "tokens_per_second": round(tokens / middle, 1),
        "mfu": round(work / middle / rate, 4),
    }


def _waiting(settings: TrainBenchSettings, ours: Peer) -> dict[str, Any]:
    if not settings.waiting_steps:
        return {}
    say("bench train: waiting for data")
    found = ours.ask("waiting", index=0, name="ewc", steps=settings.waiting_steps)
    return {"steps": settings.waiting_steps, "share": found["waited"] / found["total"]}


def _regularizers(settings: TrainBenchSettings, ours: Peer) -> list[dict[str, Any]]:
    """Every regularizer's step, on the first batch, in turn."""
    names = ["none", *(name for name in settings.regularizers if name != "none")]
    if len(names) == 1:
        return []
    facts = {}
    for name in names:
        say(f"bench train: {name} compiles")
        facts[name] = ours.ask("prepare", index=0, name=name, batches=1)
    seconds: dict[str, Seconds] = {name: [] for name in names}
    for number in range(settings.rounds):
        say(f"bench train: regularizers: round {number + 1} of {settings.rounds}")
        for name in names:
            seconds[name].append(ours.ask("measure", index=0, name=name, batches=1)["seconds"])
    return [
        {
            "regularizer": name,
            "seconds": round(median(seconds[name]), 5),
            "over_none": _ratio(seconds[name], seconds["none"]),
            "peak_bytes": facts[name]["peak_bytes"],
            "state_bytes": facts[name]["state_bytes"],
        }
        for name in names
    ]


def _meshes(settings: TrainBenchSettings) -> list[dict[str, Any]]:
    """The step of a small model compiled for every mesh, and for one device."""
    rows = []
    for text in ("", *settings.meshes) if settings.meshes else ():
        devices = math.prod(mesh_shape(text).values()) if text else 1
        say(f"bench train: mesh {text or 'of one device'}")
        most = max(math.prod(mesh_shape(each).values()) for each in settings.meshes)
        case = {
            "shape": settings.mesh_model,
            "targets": settings.targets[0],
            "rank": settings.rank,
            "batch_size": most,
            "regularizer": "ewc",
            "devices": devices,
        }
        with Peer("mesh", case, module=_MESHES) as process:
            rows.append({"mesh": text or "one device", "devices": devices, **process.ask("mesh", text=text)})
    return rows


def _ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    return round(median(a / b for a, b in zip(seconds, base, strict=True)), 4)
