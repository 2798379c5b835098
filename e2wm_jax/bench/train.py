"""`e2wm bench train`: the regularized LoRA step beside PEFT and transformers, and what each regularizer costs.

All in one run.  Ours and the peer are in a process each, on the same cores, with the same model, adapters, rows and F.
What is compared is measured in turn, round by round: a ratio is the median over rounds of the ratio within a round.
"""

import contextlib
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax import lora
from e2wm_jax.bench.harness import check_least, circumstances, ratio, seconds_in_turn, spread
from e2wm_jax.bench.jobs.train import SHAPES, TrainJob, loader_of, write_rows
from e2wm_jax.bench.pages.report import show, write_report
from e2wm_jax.bench.peers import peft
from e2wm_jax.bench.process import Peer
from e2wm_jax.bench.settings import TrainBenchSettings
from e2wm_jax.config import LoraConfig, ModelConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.data.online.generate import UNIT
from e2wm_jax.data.online.rows import RowMaker, Unit
from e2wm_jax.data.source import online_tasks, parse_mixture, read_mixture
from e2wm_jax.data.tokenize import task_rows
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.models.saving import check_new
from e2wm_jax.models.weights import open_model
from e2wm_jax.regularizers.catalogue import regularizer
from e2wm_jax.running.progress import say
from e2wm_jax.sharding import mesh_shape
from e2wm_jax.storage.model_files import locate

__all__ = ["TrainBenchSettings", "run", "show"]
_OURS, _PEERS, _MESHES = (f"e2wm_jax.bench.{name}" for name in ("ours.train", "peers.peft", "ours.meshes"))
Report = dict[str, Any]


def run(settings: TrainBenchSettings) -> Report:
    """Run the command; returns what `--json` prints (docs/performance.md says what the numbers are).

    Raises:
        InputError: for settings out of range, a model that is too large for a CPU, or data that cannot be read.
    """
    check(settings)
    absent = peft.missing() if settings.against else ""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        job = _job(settings, folder)
        ours = stack.enter_context(Peer("ours", job, module=_OURS))
        about = ours.ask("describe")
        beside = bool(settings.against) and not absent and settings.base_dtype == "float32"
        ours.ask("save", weights=beside)
        report = {"command": "bench train", "model": settings.shape or settings.model, **about}
        report["steps"] = _steps(job, ours, about, beside)
        report["waiting"] = _waiting(settings, ours)
        report["regularizers"] = _regularizers(settings, ours)
    report["meshes"] = _meshes(settings)
    report["not_installed"] = {"peft": absent} if absent else {}
    report |= circumstances(settings)
    if settings.out is not None:
        write_report(settings.out, report)
    return report


def check(settings: TrainBenchSettings) -> ModelConfig:
    """Refuse settings that cannot work; returns the model's configuration.

    Raises:
        InputError: naming the flag, its value and the rule.
    """
    check_least(settings, batch_size=1, steps=1, max_length=2, length=8, rank=1, rounds=1, waiting_steps=0, cores=0)
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


def _job(settings: TrainBenchSettings, folder: str) -> TrainJob:
    job = TrainJob(**vars(settings), folder=folder)
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


def _steps(job: TrainJob, ours: Peer, about: Report, beside: bool) -> list[Report]:
    """The EWC-LoRA step of both sides, for each choice of targets."""
    rows = []
    with contextlib.ExitStack() as stack:
        sides = {"ours": ours}
        rates = {"ours": about["peak"] or 1e9 * about["gflops"]}
        if beside:
            sides["peft"] = stack.enter_context(Peer("peft", job, module=_PEERS))
            rates["peft"] = 1e9 * sides["peft"].ask("describe")["gflops"]
        for index, targets in enumerate(job.targets):
            say(f"bench train: {targets} compiles")
            facts = {name: side.ask("prepare", index=index, name="ewc") for name, side in sides.items()}
            losses = [side.ask("losses", index=index)["losses"] for side in sides.values()] if beside else []
            measures = {name: partial(side.ask, "measure", index=index, name="ewc") for name, side in sides.items()}
            seconds = seconds_in_turn(measures, job.rounds, f"bench train: {targets}")
            if index:
                ours.ask("drop", index=index, name="ewc")
            work = facts["ours"]["flops_per_token"] * about["tokens"]
            for name in sides:
                middle = spread(seconds[name])["seconds"]
                row = {
                    "side": name,
                    "targets": targets,
                    "gflop": round(work / 1e9, 1),
                    "seconds": middle,
                    "tokens_per_second": round(about["tokens"] / middle, 1),
                    "mfu": round(work / middle / rates[name], 4),
                }
                kept = ("peak_bytes", "held_bytes", "first_seconds", "grown_bytes")
                rows.append(row | {key: facts[name][key] for key in kept if key in facts[name]})
            if beside:
                error = max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True))
                rows[-2] |= {"times_peft": ratio(seconds["peft"], seconds["ours"], 4), "loss_error": error}
    return rows


def _waiting(settings: TrainBenchSettings, ours: Peer) -> Report:
    if not settings.waiting_steps:
        return {}
    say("bench train: waiting for data")
    found = ours.ask("waiting", index=0, name="ewc", steps=settings.waiting_steps)
    return {"steps": settings.waiting_steps, "share": found["waited"] / found["total"]}


def _regularizers(settings: TrainBenchSettings, ours: Peer) -> list[Report]:
    """Every regularizer's step, on the first batch, in turn."""
    names = ["none", *(name for name in settings.regularizers if name != "none")]
    if len(names) == 1:
        return []
    facts, measures = {}, {}
    for name in names:
        say(f"bench train: {name} compiles")
        facts[name] = ours.ask("prepare", index=0, name=name, batches=1)
        measures[name] = partial(ours.ask, "measure", index=0, name=name, batches=1)
    seconds = seconds_in_turn(measures, settings.rounds, "bench train: regularizers")
    return [
        {
            "regularizer": name,
            "seconds": spread(seconds[name])["seconds"],
            "over_none": ratio(seconds[name], seconds["none"], 4),
            "peak_bytes": facts[name]["peak_bytes"],
            "state_bytes": facts[name]["state_bytes"],
        }
        for name in names
    ]


def _meshes(settings: TrainBenchSettings) -> list[Report]:
    """The step of a small model compiled for every mesh, and for one device."""
    sizes = {text: math.prod(mesh_shape(text).values()) for text in settings.meshes}
    rows = []
    for text, devices in {"": 1, **sizes}.items() if sizes else ():
        say(f"bench train: mesh {text or 'of one device'}")
        case = {
            "shape": settings.mesh_model,
            "targets": settings.targets[0],
            "rank": settings.rank,
            "batch_size": max(sizes.values()),
            "devices": devices,
        }
        with Peer("mesh", case, module=_MESHES) as process:
            rows.append({"mesh": text or "one device", "devices": devices, **process.ask("mesh", text=text)})
    return rows
