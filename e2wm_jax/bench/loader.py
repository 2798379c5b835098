"""`e2wm bench loader`: how fast data come, against a plain loop and against what training takes, all in one run."""

import math
import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from e2wm_jax import lora
from e2wm_jax.bench.harness import check_least, print_table, seconds_of
from e2wm_jax.bench.ours.step import prepared
from e2wm_jax.bench.settings import LoaderBenchSettings
from e2wm_jax.config import LoraConfig
from e2wm_jax.data.batch import Row, collate, padded_length
from e2wm_jax.data.loader import Loader, StepBatch
from e2wm_jax.data.online.generate import UNIT, examples
from e2wm_jax.data.online.names import PREFIX, OnlineTask, parse_online
from e2wm_jax.data.online.rows import OnlineRows, RowMaker, Unit
from e2wm_jax.data.source import read_task
from e2wm_jax.data.tokenize import task_rows
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.lora import Scope
from e2wm_jax.models.weights import load
from e2wm_jax.running.processes import Workers
from e2wm_jax.running.progress import say
from e2wm_jax.storage.files import write_json_lines
from e2wm_jax.storage.model_files import ModelFiles, locate

_FILE_EXAMPLES = 512
_OBJ_MOVE = OnlineTask(f"{PREFIX}obj_move", "obj_move")
_FAR = 10**9  # a unit that no measurement reads


@dataclass(frozen=True)
class _Pace:
    """Examples and real tokens (prompts included) in so many seconds."""

    examples: int
    tokens: int
    seconds: float

    def to_json(self) -> dict[str, float]:
        return {
            "examples_per_second": round(self.examples / self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
        }


def run(settings: LoaderBenchSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    ``over_plain`` is the examples per second over the plain loop's, ``over_step`` the tokens per second over what the
    training step reads.

    Raises:
        InputError: for settings out of range, or if the model, the simulator or a scene is missing.
    """
    check_least(settings, batch_size=1, steps=1, max_length=2, workers=0)
    if not 0 < settings.seconds < math.inf:
        raise InputError(f"--seconds {settings.seconds}: must be a positive number")
    tasks = [task for name in settings.tasks for task in parse_online(PREFIX + name.removeprefix(PREFIX))]
    files = locate(settings.model)
    maker = RowMaker(load_tokenizer(files), ((1.0, _OBJ_MOVE),), settings.seed, settings.max_length)
    step = _train_step(settings, files, maker)
    report: dict[str, Any] = {"train_step": step.to_json(), "files": _files(settings, maker, step), "online": {}}
    for task in tasks:
        report["online"][task.name] = _online(settings, maker, task, step)
    return report


def show(report: dict[str, Any]) -> None:
    """The report as a table on stdout."""
    paces = {f"{name}, {way}": pace for name in report["online"] for way, pace in report["online"][name].items()}
    paces = {f"files, {way}": pace for way, pace in report["files"].items()} | paces
    keys = ("examples_per_second", "tokens_per_second", "over_plain", "over_step")
    rows = [[name, *map(pace.get, keys)] for name, pace in {"training step": report["train_step"], **paces}.items()]
    print_table(["", "examples/s", "tokens/s", "over plain", "over step"], rows)


def _train_step(settings: LoaderBenchSettings, files: ModelFiles, maker: RowMaker) -> _Pace:
    """What training takes: steps of the default adapters on one batch of tracking stories."""
    say(f"bench loader: training steps of {settings.model}")
    model = load(files)
    spec = lora.adapter_spec(model.config, LoraConfig())
    adapters = lora.initialize(model.config, spec, jax.random.key(settings.seed))
    step = prepared(Scope(model.config, spec), "none", model.params, adapters)
    rows = [row for unit in range(math.ceil(settings.batch_size / UNIT)) for row in maker(Unit(0, unit))]
    item = Loader(rows[: settings.batch_size], settings.batch_size, 1, settings.max_length, settings.seed).step(1)
    step(item.batch)
    seconds = seconds_of(lambda: [step(item.batch) for _ in range(settings.steps)])
    return _Pace(settings.steps * settings.batch_size, settings.steps * item.tokens, seconds)


def _files(settings: LoaderBenchSettings, maker: RowMaker, step: _Pace) -> dict[str, Any]:
    """A task file, once read, through the loader and through a loop."""
    say("bench loader: files")
    made = [example for unit in range(_FILE_EXAMPLES // UNIT) for example in examples(_OBJ_MOVE, seed=0, unit=unit)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tasks.json")
        write_json_lines(path, [example.to_json() for example in made])
        rows, _ = task_rows(maker.tokenizer, read_task(path), max_length=settings.max_length, skip_truncated=True)
    plain = _time(_until(settings.seconds, _plain_epochs(rows, settings)))
    steps = max(1, plain.examples // settings.batch_size)
    paces = {"plain loop": plain}
    for name, pack in (("loader", False), ("loader, packed", True)):
        loader = Loader(rows, settings.batch_size, 1, settings.max_length, settings.seed, pack=pack)
        paces[name] = _time(_counted(loader.batches(1, steps)))
    return _ratios(paces, plain, step)


def _plain_epochs(rows: list[Row], settings: LoaderBenchSettings) -> Iterator[tuple[int, int]]:
    """What one would write without a loader: shuffle, cut into batches, pad."""
    rng = random.Random(settings.seed)
    targets = padded_length(max(row.num_targets for row in rows), settings.max_length)
    while True:
        order = rng.sample(rows, len(rows))
        for start in range(0, len(rows), settings.batch_size):
            chunk = order[start : start + settings.batch_size]
            length = padded_length(max(len(row.ids) for row in chunk), settings.max_length)
            collate(chunk, length=length, num_targets=targets, batch_size=settings.batch_size)
            yield len(chunk), sum(len(row.ids) for row in chunk)


def _online(settings: LoaderBenchSettings, maker: RowMaker, task: OnlineTask, step: _Pace) -> dict[str, Any]:
    """An online task in this process, one unit after the other, and through the loader with workers.

    Each makes the same examples. What a process does once is left out: its start, compiling, reading the programs.
    """
    say(f"bench loader: {task.name}")
    maker = RowMaker(
        maker.tokenizer, ((1.0, task), (1.0, _OBJ_MOVE)), settings.seed, settings.max_length, skip_truncated=True
    )
    maker(Unit(1, _FAR))
    plain = _time(_until(settings.seconds, _plain_units(maker)))
    paces = {"plain loop": plain}
    for count in settings.workers:
        with Workers(maker, count) as pool:
            for warm in [pool.submit(Unit(1, _FAR + number)) for number in range(count)]:
                warm.result()
            loader = Loader((), UNIT, 1, settings.max_length, settings.seed, online=[OnlineRows(pool, 0, task)])
            paces[f"{count} workers"] = _time(_counted(loader.batches(1, plain.examples // UNIT)))
    return _ratios(paces, plain, step)


def _plain_units(maker: RowMaker) -> Iterator[tuple[int, int]]:
    number = 0
    while True:
        rows = maker(Unit(0, number))
        length = padded_length(max(len(row.ids) for row in rows), maker.max_length)
        collate(rows, length=length, num_targets=length, batch_size=UNIT)
        yield len(rows), sum(len(row.ids) for row in rows)
        number += 1


def _counted(steps: Iterable[StepBatch]) -> Iterator[tuple[int, int]]:
    return ((len(item.examples), item.tokens) for item in steps)


def _until(seconds: float, counts: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The counts until the time is over; at least one."""
    end = time.perf_counter() + seconds
    for count in counts:
        yield count
        if time.perf_counter() > end:
            return


def _time(counts: Iterable[tuple[int, int]]) -> _Pace:
    """Add up (examples, tokens) and see how long they took to come."""
    started = time.perf_counter()
    total = [sum(column) for column in zip(*counts, strict=True)]
    return _Pace(total[0], total[1], time.perf_counter() - started)


def _ratios(paces: dict[str, _Pace], plain: _Pace, step: _Pace) -> dict[str, Any]:
    taken = step.tokens / step.seconds
    return {
        name: {
            **pace.to_json(),
            "over_plain": round(pace.examples / pace.seconds / (plain.examples / plain.seconds), 3),
            "over_step": round(pace.tokens / pace.seconds / taken, 2),
        }
        for name, pace in paces.items()
    }
