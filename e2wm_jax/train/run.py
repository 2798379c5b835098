"""`e2wm train`: settings -> data, model, Fisher, state -> loop -> adapter.  Reads top to bottom."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from e2wm_jax import __version__, lora
from e2wm_jax.adapter_files import read_adapter, write_adapter
from e2wm_jax.checkpoint import checkpoints, restore, save
from e2wm_jax.data.loader import Loader
from e2wm_jax.data.source import online_tasks, parse_mixture
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json, sha256, write_json
from e2wm_jax.fisher.files import read_fisher
from e2wm_jax.interrupt import stop_requests
from e2wm_jax.kernels.weighted_square import check_implementation
from e2wm_jax.metrics import append, metrics_log, read_metrics
from e2wm_jax.model_files import ModelFiles, locate
from e2wm_jax.models.quantized import load
from e2wm_jax.models.weights import Model
from e2wm_jax.progress import progress_bar, say
from e2wm_jax.regularizers.quadratic import Fisher, rowmax127
from e2wm_jax.train.feed import on_device, open_data
from e2wm_jax.train.report import write_report
from e2wm_jax.train.settings import TrainSettings, check
from e2wm_jax.train.step import StepConfig, TrainState, initial_state, train_step

CONFIG_FILE, METRICS_FILE, REPORT_FILE = "config.json", "metrics.jsonl", "report.html"
CHECKPOINTS, ADAPTER = "checkpoints", "adapter"
_SHA256 = "data_sha256"


def run(settings: TrainSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings, files or an output directory of another run, before any training.
        FloatingPointError: if the loss stops being a number.
    """
    check(settings)
    check_implementation("--penalty-kernel", settings.penalty_kernel)
    _check_out(settings)

    # Data first: most mistakes are there, and finding them needs no weights.
    files = locate(settings.model)
    with open_data(settings, load_tokenizer(files)) as (loader, kept):
        return _train(settings, files, loader, kept)


def _train(settings: TrainSettings, files: ModelFiles, loader: Loader, kept: list[int]) -> dict[str, Any]:
    model = load(files, settings.base_dtype)
    adapters, spec = _start(settings, model)
    fisher = _fisher(settings, model, spec)
    config = _step_config(settings, model, spec, loader)
    state = initial_state(config, adapters)

    settings.out.mkdir(parents=True, exist_ok=True)
    write_json(settings.out / CONFIG_FILE, _resolved(settings))
    with checkpoints(settings.out / CHECKPOINTS, keep=settings.keep_checkpoints) as manager:
        done = manager.latest_step() if settings.resume else None
        if done is not None:
            state, _ = restore(manager, done, state)
            say(f"resuming after step {done} of {config.steps}")
        state, summary = _loop(settings, config, state, model, fisher, loader, kept, manager)
    _write_adapter(settings, state, config, model)
    write_report(settings.out / REPORT_FILE, settings.out / METRICS_FILE, summary, _resolved(settings))
    return {**summary, "adapter": str(settings.out / ADAPTER)}


def _loop(
    settings: TrainSettings,
    config: StepConfig,
    state: TrainState,
    model: Model,
    fisher: Fisher,
    loader: Loader,
    kept: list[int],
    manager: Any,
) -> tuple[TrainState, dict[str, Any]]:
    first = int(state.step) + 1
    tokens, started = 0, time.monotonic()
    with (
        metrics_log(settings.out / METRICS_FILE, last_step=first - 1) as log,
        progress_bar("train", config.steps, "step") as bar,
        stop_requests() as stop,
    ):
        bar.update(first - 1)
        # What a finished run reports again.
        row: dict[str, Any] = next(reversed(read_metrics(settings.out / METRICS_FILE)), {})
        for step, item in enumerate(on_device(loader.batches(first, config.steps)), start=first):
            state, metrics = train_step(config, state, model.params, fisher, item.batch)
            row = {name: float(value) for name, value in metrics.items()}
            examples = [kept[name] if isinstance(name, int) else name for name in item.examples]
            if not math.isfinite(row["loss"]):
                raise FloatingPointError(f"step {step}: the loss is {row['loss']} on examples {examples}")
            tokens += item.tokens
            append(log, {"step": step, **row, "tokens": item.tokens, "examples": examples})
            bar.set_postfix(loss=f"{row['task_loss']:.3f}", penalty=f"{row['penalty']:.2g}", refresh=False)
            bar.update()
            if step % settings.checkpoint_every == 0 or step == config.steps or stop.requested:
                save(manager, step, state, {"step": step, "seed": settings.seed})
                _write_adapter(settings, state, config, model)
            if stop.requested:
                say(f"stopped after step {step}; continue with --resume")
                raise KeyboardInterrupt
    seconds = max(time.monotonic() - started, 1e-9)
    return state, {
        "steps": int(state.step),
        "loss": row.get("loss"),
        "task_loss": row.get("task_loss"),
        "penalty": row.get("penalty"),
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
    }


def _start(settings: TrainSettings, model: Model) -> tuple[lora.Adapters, lora.AdapterSpec]:
    if settings.adapter is not None:
        return read_adapter(settings.adapter, model.config)
    spec = lora.adapter_spec(model.config, settings.lora)
    return lora.initialize(model.config, spec, jax.random.key(settings.seed)), spec


def _fisher(settings: TrainSettings, model: Model, spec: lora.AdapterSpec) -> Fisher:
    if settings.fisher is None:
        return {}
    values = read_fisher(settings.fisher, model, [f"{target.path}.weight" for target in spec])
    if settings.fisher_scale == "rowmax127":
        return {path: rowmax127(value) for path, value in values.items()}
    return values


def _step_config(settings: TrainSettings, model: Model, spec: lora.AdapterSpec, loader: Loader) -> StepConfig:
    return StepConfig(
        model=model.config,
        spec=spec,
        regularizer=settings.regularizer,
        strength=settings.strength,
        dropout=settings.lora.dropout,
        seed=settings.seed,
        remat=settings.remat,
        optimizer=settings.optimizer,
        schedule=settings.schedule,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        steps=settings.steps or settings.epochs * loader.steps_per_epoch,
        penalty_kernel=settings.penalty_kernel,
    )


def _write_adapter(settings: TrainSettings, state: TrainState, config: StepConfig, model: Model) -> None:
    write_adapter(
        settings.out / ADAPTER,
        jax.tree.map(np.asarray, state.adapters),
        config.spec,
        model.config,
        base_model=settings.model,
        dropout=settings.lora.dropout,
    )


def _resolved(settings: TrainSettings) -> dict[str, Any]:
    """The settings as JSON, with the content of the data; `resume` is how a run is continued, not what it is.

    Online data are what this version makes of their names and scenes.
    """
    record = dataclasses.asdict(settings)
    del record["resume"]
    mixture = parse_mixture(settings.data)
    tasks = [task for _, task in online_tasks(mixture)]
    paths = [path for _, path in mixture if isinstance(path, Path)]
    paths += [Path(scene) for task in tasks for scene in task.scenes]
    files = {str(path): sha256(path) for path in paths if path.is_file()}
    files |= {task.name: f"made by e2wm_jax {__version__}" for task in tasks}
    return {key: str(value) if isinstance(value, Path) else value for key, value in record.items()} | {_SHA256: files}


def _check_out(settings: TrainSettings) -> None:
    """A fresh directory, or with --resume one of the same run."""
    out, config = settings.out, settings.out / CONFIG_FILE
    if not settings.resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"--out {out}: already holds a run; continue it with --resume, or give a new directory")
        return
    if not config.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"--resume: {out} holds no {CONFIG_FILE}, so no run; give the directory of a run")
        return  # never started: starts now
    earlier, now = read_json(config), _resolved(settings)
    for key, value in now.items():
        if key not in ("out", "keep_checkpoints", "workers", _SHA256) and earlier.get(key) != value:
            raise InputError(
                f"--resume: {out} was run with {key} = {earlier.get(key)!r}, not {value!r}; "
                "repeat its settings, or give a new --out"
            )
    for path, digest in now[_SHA256].items():
        if earlier.get(_SHA256, {}).get(path) != digest:
            raise InputError(f"--resume: {path} has changed since {out} was run; restore it, or give a new --out")
