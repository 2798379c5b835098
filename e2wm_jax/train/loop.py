"""The training loop: batches in, metrics and checkpoints out, until the last step or a wish to stop."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from e2wm_jax.data.batch import Batch
from e2wm_jax.data.loader import Loader, StepBatch
from e2wm_jax.lora import Adapters
from e2wm_jax.models.weights import Model
from e2wm_jax.regularizers.regularizer import State
from e2wm_jax.running.compilation import compile_seconds, compiling
from e2wm_jax.running.hosts import any_host
from e2wm_jax.running.interrupt import stop_requests
from e2wm_jax.running.progress import busy, progress_bar, say
from e2wm_jax.storage.checkpoint import Checkpoints
from e2wm_jax.storage.metrics import read_metrics
from e2wm_jax.train import nonfinite
from e2wm_jax.train.feed import on_devices
from e2wm_jax.train.page import VALIDATION_FILE
from e2wm_jax.train.settings import TrainSettings
from e2wm_jax.train.step import Controls, StepConfig, TrainState, train_step
from e2wm_jax.train.watch.records import profile, records
from e2wm_jax.train.watch.samples import SAMPLES_FILE
from e2wm_jax.train.watch.stopping import Clock, Validated, exhausted, lowest
from e2wm_jax.train.watch.throughput import Pace

_KEYS = ("loss", "task_loss", "penalty", "grad_norm", "lr", "strength")  # of a row of metrics.jsonl
METRICS_FILE, PROFILE = "metrics.jsonl", "profile"


@dataclass(frozen=True)
class TrainingRun:
    """What the loop works with and does not change."""

    settings: TrainSettings
    config: StepConfig
    model: Model
    constants: State  # of the regularizer
    loader: Loader
    text: Loader | None  # what the regularizer reads in every step
    kept: list[int]  # for each row of the loader the number of its example in the files
    rates: np.ndarray  # [steps] learning rates
    strengths: np.ndarray  # [steps]
    validate: Callable[[Adapters], float] | None
    samples: Callable[[Adapters], list[dict[str, str]]] | None  # what the model writes
    publish: Callable[[Adapters], None]  # write the adapter for users
    log: Callable[[int, dict[str, float]], None]  # metrics to trackers
    pace: Pace  # before the first step

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return len(self.rates)


@dataclass(frozen=True)
class Totals:
    """Of the steps that this process did."""

    pace: Pace
    clock: float  # when the step before was done, or a checkpoint behind it
    tokens: int = 0
    waited: float = 0.0  # seconds for data
    skipped: int = 0  # updates left out
    task_loss: float = 0.0  # sum since the last checkpoint ...
    since: int = 0  # ... over so many steps
    validated: tuple[Validated, ...] = ()  # of the run's checkpoints, those before a resume too


class _Sinks(NamedTuple):
    """Where numbers go."""

    record: Callable[[str, dict[str, Any]], None]  # a row to a log of the run directory
    bar: Any
    saves: Checkpoints


class _Pending(NamedTuple):
    """A step whose numbers nobody has asked for yet."""

    step: int
    item: StepBatch
    metrics: dict[str, jax.Array]
    waited: float


def run_loop(job: TrainingRun, state: TrainState, saves: Checkpoints) -> tuple[TrainState, dict[str, Any]]:
    """Train from the state's step to the last.

    Returns:
        The last state and what `--json` prints of it.

    Raises:
        InputError: at a loss or gradient that is not finite before anything is learned, or if nothing is at the end.
        FloatingPointError: at such a loss or gradient later, naming the examples; no checkpoint holds it.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with a checkpoint of the last whole step.
    """
    first, started, compiled_before = int(state.step) + 1, time.monotonic(), compile_seconds()
    totals = Totals(replace(job.pace, done=first - 1), started)
    logs = {METRICS_FILE: _KEYS} | ({} if job.validate is None else {VALIDATION_FILE: ("nats",)})
    logs |= {} if job.samples is None else {SAMPLES_FILE: ("samples",)}
    with (
        records(job.settings.out, logs, first - 1) as record,
        progress_bar("train", job.steps, "step") as bar,
        stop_requests() as stop,
        profile(job.settings.out / PROFILE, job.settings.profile_steps) as profiled,
    ):
        bar.update(first - 1)
        sinks = _Sinks(record, bar, saves)
        row: dict[str, Any] = {}
        if jax.process_index() == 0:  # what a finished run reports again
            row = next(reversed(read_metrics(job.settings.out / METRICS_FILE)), {})
        totals = _begin(job, sinks, state, totals)
        pending: _Pending | None = None
        steps, clock, stopped = _steps(job, first), Clock(job.settings.max_minutes, started), ""
        for step in range(first, job.steps + 1):
            if stopped := _out_of_patience(job, step, totals):
                break
            before = time.monotonic()
            item, text = next(steps)
            waited = time.monotonic() - before
            profiled(step - first)
            compiled = compile_seconds()
            state, metrics = _step(job, step, state, item.batch, None if text is None else text.batch)
            totals = _without(sinks, totals, compile_seconds() - compiled)
            # The numbers of a step are asked for when the next one is on its way, so that devices never wait for them.
            if pending is not None:
                row, totals = _report(job, sinks, pending, totals)
            pending = _Pending(step, item, metrics, waited)
            should_stop, is_late = any_host(stop.requested, clock.is_over)
            if step % job.settings.checkpoint_every == 0 or step == job.steps or should_stop or is_late:
                row, totals = _report(job, sinks, pending, totals)
                pending = None
                totals = _save(job, sinks, step, state, totals)
            if should_stop:
                saves.wait()
                say(f"stopped after step {step}; continue with --resume")
                raise KeyboardInterrupt
            if is_late and step < job.steps:
                stopped = f"--max-minutes {job.settings.max_minutes:g}"
                say(f"stopped after step {step}: {stopped} are over; continue with --resume")
                break
    summary = {"steps": int(state.step), **{name: row.get(name) for name in ("loss", "task_loss", "penalty")}}
    summary |= _performance(totals, time.monotonic() - started, compile_seconds() - compiled_before)
    return state, summary | ({"stopped": stopped} if stopped else {})


def _steps(job: TrainingRun, first: int) -> Iterator[tuple[StepBatch, StepBatch | None]]:
    """Task batch and text batch of every step from `first` on, on the devices."""
    mesh = job.config.scope.mesh
    tasks = on_devices(job.loader.batches(first, job.steps), mesh)
    if job.text is None:
        yield from ((item, None) for item in tasks)
    else:
        yield from zip(tasks, on_devices(job.text.batches(first, job.steps), mesh), strict=True)


def _step(
    job: TrainingRun, step: int, state: TrainState, batch: Batch, text: Batch | None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`train_step` with the numbers of this step; devices may be at it still when this returns."""
    controls = Controls(
        job.rates[step - 1],
        job.strengths[step - 1],
        np.float32(job.settings.weight_decay),
        np.uint32(job.settings.seed),
    )
    with compiling(_shape_in_words(job, batch, text)):
        return train_step(job.config, state, controls, job.model.params, job.constants, batch, text)


def _out_of_patience(job: TrainingRun, step: int, totals: Totals) -> str:
    """What ends the run before this step, if --patience does; said."""
    if not exhausted(totals.validated, job.settings.patience):
        return ""
    best = lowest(totals.validated)
    say(f"stopped after step {step - 1}: the held-out loss was lowest at step {best.step}, {best.nats:.4g}")
    return f"--patience {job.settings.patience}"


def _performance(totals: Totals, seconds: float, compiling: float) -> dict[str, Any]:
    """How fast the run went, compilations left out, and how many updates were."""
    at_work = max(seconds - compiling, 1e-9)
    found = {
        "tokens_per_second": totals.tokens / at_work,
        "waiting": totals.waited / at_work,
        "seconds": seconds,
        "compile_seconds": compiling,
    }
    return found | ({"skipped": totals.skipped} if totals.skipped else {})


def _shape_in_words(job: TrainingRun, batch: Batch, text: Batch | None) -> str:
    """What a step is compiled for."""
    length = batch.ids.shape[-1]
    words = f"the step for rows of {length} tokens"
    known = [tokens for tokens, _ in job.loader.shapes]
    if len(known) > 1:
        words += f" (length {known.index(length) + 1} of {len(known)})"
    return words if text is None else f"{words} and text of {text.ids.shape[-1]}"


def _without(sinks: _Sinks, totals: Totals, seconds: float) -> Totals:
    """The totals and the bar as if compilations took no time: there are few, and the remaining time has none."""
    sinks.bar.start_t += seconds
    sinks.bar.last_print_t += seconds
    return replace(totals, clock=totals.clock + seconds)


def _report(job: TrainingRun, sinks: _Sinks, pending: _Pending, totals: Totals) -> tuple[dict[str, Any], Totals]:
    """Write a step's row; returns it and the totals with it."""
    step = pending.step
    found = {name: np.asarray(value).item() for name, value in pending.metrics.items()}
    finite, tokens = found.pop("finite"), found.pop("tokens")
    examples = [job.kept[name] if isinstance(name, int) else name for name in pending.item.examples]
    if not finite and job.settings.on_nonfinite == "stop":
        raise nonfinite.complaint(job.settings, step, found, examples, sinks.saves.steps())
    rates = {"lr": float(job.rates[step - 1]), "strength": float(job.strengths[step - 1])}
    row = {"step": step, **found, **rates, "tokens": tokens, "examples": examples}
    if not finite:
        say(f"step {step}: the loss is {found['loss']} on examples {examples}; this update is left out")
        row |= {name: None for name, value in found.items() if not np.isfinite(value)} | {"skipped": True}
    sinks.record(METRICS_FILE, row)
    now = time.monotonic()
    totals = replace(
        totals,
        pace=totals.pace.after(now - totals.clock, tokens, pending.waited),
        clock=now,
        tokens=totals.tokens + tokens,
        waited=totals.waited + pending.waited,
        skipped=totals.skipped + (not finite),
        task_loss=totals.task_loss + (found["task_loss"] if finite else 0.0),
        since=totals.since + finite,
    )
    speed = totals.pace.numbers()
    shown = {"loss": found["task_loss"], "penalty": found["penalty"], "tok/s": speed["tokens_per_second"]}
    shown |= {"MFU": speed["mfu"]} if "mfu" in speed else {}
    sinks.bar.set_postfix_str(", ".join(f"{name} {value:.3g}" for name, value in shown.items()), refresh=False)
    sinks.bar.update()
    job.log(step, {**found, **rates, **speed})
    return row, totals


def _begin(job: TrainingRun, sinks: _Sinks, state: TrainState, totals: Totals) -> Totals:
    """What the held-out loss was at checkpoints so far; before the first step what it is, and what the model writes."""
    if int(state.step) == 0:
        _sample(job, sinks, 0, state)
    if job.validate is None:
        return totals
    path, rows = job.settings.out / VALIDATION_FILE, []
    if int(state.step):
        rows = read_metrics(path) if path.is_file() else []
        rows = [row for row in rows if 0 < row["step"] <= int(state.step)]
    else:
        _validated(job, sinks, 0, state)
    return replace(totals, validated=tuple(Validated(row["step"], row["nats"]) for row in rows), clock=time.monotonic())


def _sample(job: TrainingRun, sinks: _Sinks, step: int, state: TrainState) -> None:
    """What the model writes now, recorded and said."""
    if job.samples is not None:
        found = job.samples(state.adapters)
        sinks.record(SAMPLES_FILE, {"step": step, "samples": found})
        for one in found:
            say(f"step {step}: {one['prompt'][-40:]!r} -> {one['text']!r}")


def _validated(job: TrainingRun, sinks: _Sinks, step: int, state: TrainState) -> float:
    """The held-out loss, recorded."""
    assert job.validate is not None
    with busy(f"validation after step {step}"):
        nats = job.validate(state.adapters)
    nonfinite.check_held_out(job.settings, step, nats, sinks.saves.steps())
    sinks.record(VALIDATION_FILE, {"step": step, "nats": nats})
    job.log(step, {"validation": nats})
    return nats


def _save(job: TrainingRun, sinks: _Sinks, step: int, state: TrainState, totals: Totals) -> Totals:
    """A checkpoint, its validation, and the adapter as users read it; with --patience that of the lowest loss."""
    if step == job.steps:
        nonfinite.check_learned(job.settings, step, totals.skipped)
    metric, validated = totals.task_loss / totals.since if totals.since else None, totals.validated
    if job.validate is not None:
        metric = _validated(job, sinks, step, state)
        validated = (*validated, Validated(step, metric))
    _sample(job, sinks, step, state)
    sinks.saves.save(step, state, {"step": step, "seed": job.settings.seed}, metric)
    if job.settings.patience is None or lowest(validated).step == step:
        job.publish(state.adapters)
    return replace(totals, clock=time.monotonic(), task_loss=0.0, since=0, validated=validated)
