"""Metrics of a run, besides its metrics.jsonl, for those who watch: TensorBoard, Weights & Biases, trackio.

    tensorboard   event files in <folder>/tensorboard or its <run name>, written by tensorboardX
    wandb         project as named, $WANDB_PROJECT or e2wm, files in <folder>/wandb; WANDB_MODE=offline needs no account
    trackio       project as named, $TRACKIO_PROJECT or e2wm

None of them is needed to train, and none may stop a training that goes well: a tracker that fails says so once and is
left out from there on.  In a run of many processes, the first one alone opens them.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from e2wm_jax.errors import InputError
from e2wm_jax.options.choices import TrackerName
from e2wm_jax.running.progress import say
from e2wm_jax.storage.files import read_text, write_text

Log = Callable[[int, dict[str, float]], None]
PROJECT = "e2wm"
TENSORBOARD_FOLDER, ID_FILE = "tensorboard", "tracker_id"
_FLUSH_SECONDS = 10  # what a killed run may lose


class Names(NamedTuple):
    """What a run is called there; by default it is its folder's name, and the project the environment's or e2wm."""

    run: str | None = None
    project: str | None = None


_BY_DEFAULT = Names()


class _Tracker(NamedTuple):
    """Where it is logged: `log` a step's numbers, `close` with whether the run went well."""

    log: Log
    close: Callable[[bool], None]


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Refuse a tracker whose package is not installed, one that is named twice, and "none" beside others.

    Raises:
        InputError: with the command that installs it.
    """
    if "none" in names and len(names) > 1:
        raise InputError(f"--trackers {' '.join(names)}: none stands alone; leave it or the others out")
    for name in _wanted(names):
        module, extra, _ = _TRACKERS[name]
        if names.count(name) > 1:
            raise InputError(f"--trackers {name}: named twice")
        # Not `find_spec` alone: it raises for a module that is imported already and has no specification.
        if module not in sys.modules and importlib.util.find_spec(module) is None:
            raise InputError(
                f"--trackers {name}: {module} is not installed; pip install 'e2wm_jax[{extra}]', or leave it out "
                "(metrics.jsonl has all numbers)"
            )


def _wanted(names: Sequence[TrackerName]) -> list[TrackerName]:
    return [name for name in names if name != "none"]


@contextlib.contextmanager
def trackers(
    names: Sequence[TrackerName], folder: Path, settings: dict[str, Any], called: Names = _BY_DEFAULT
) -> Iterator[Log]:
    """Gives log(step, {name: number}), which hands the numbers to every tracker that is named.

    Args:
        folder: of the run, which must be there. A run that is resumed in it goes on where it was logged before; steps
            that are made again replace the earlier ones (in trackio they stand twice, with the same numbers).
        settings: shown beside the numbers; anything that JSON does not know becomes a string.
        called: the run and its project.

    Raises:
        InputError: if a package is missing or a tracker cannot start, e.g. for want of a login.
    """
    check_trackers(names)
    config = json.loads(json.dumps(settings, default=str))
    opened: dict[TrackerName, _Tracker] = {}
    well = False
    try:
        for name in _wanted(names):
            try:
                # stdout is for results, and both services like to talk.
                with contextlib.redirect_stdout(sys.stderr):
                    opened[name] = _TRACKERS[name].open(folder, config, called)
            except Exception as error:  # whatever a service raises
                raise InputError(f"--trackers {name}: cannot start: {_first_line(error)}") from error

        def log(step: int, numbers: dict[str, float]) -> None:
            for name in tuple(opened):
                try:
                    opened[name].log(step, numbers)
                except Exception as error:
                    say(f"{name}: {_first_line(error)}; nothing more is logged there, training goes on")
                    _close(name, opened.pop(name), well=False)

        yield log
        well = True
    finally:
        for name, tracker in opened.items():
            _close(name, tracker, well=well)


def _close(name: str, tracker: _Tracker, *, well: bool) -> None:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            tracker.close(well)
    except Exception as error:
        say(f"{name}: {_first_line(error)}; its last numbers may be missing, metrics.jsonl has them")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


class _Run(NamedTuple):
    """What a service knows the run by."""

    name: str
    id: str


def _run(folder: Path) -> _Run:
    """Kept in its folder: a folder that was moved is the same run, and a new run where a deleted one was is another."""
    path = folder / ID_FILE
    if not path.is_file():
        write_text(path, f"{folder.absolute().name} {uuid.uuid4().hex[:16]}\n")
    name, _, identity = read_text(path).strip().rpartition(" ")
    return _Run(name, identity)


def _open_tensorboard(folder: Path, config: dict[str, Any], called: Names) -> _Tracker:
    module = importlib.import_module("tensorboardX")
    where = folder / TENSORBOARD_FOLDER / (called.run or "")
    again = where.is_dir() and any(where.iterdir())
    writer: Any = None

    def log(step: int, numbers: dict[str, float]) -> None:
        nonlocal writer
        if writer is None:
            writer = module.SummaryWriter(
                str(where),
                flush_secs=_FLUSH_SECONDS,
                # Only now it is known where the run goes on: what was logged before from that step on is hidden.
                purge_step=step if again else None,
                # Names have seconds in them: without this, a run resumed within one would write over its own file.
                filename_suffix=f".{step:09d}",
            )
            if not again:
                writer.add_text("settings", f"```json\n{json.dumps(config, indent=2)}\n```", 0)
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)

    def close(well: bool) -> None:
        del well
        if writer is not None:
            writer.close()

    return _Tracker(log, close)


def _open_wandb(folder: Path, config: dict[str, Any], called: Names) -> _Tracker:
    known = _run(folder)
    run = importlib.import_module("wandb").init(
        project=called.project or os.environ.get("WANDB_PROJECT", PROJECT),
        name=called.run or os.environ.get("WANDB_NAME", known.name),
        id=known.id,
        resume="allow",
        dir=str(folder),
        config=config,
    )

    def log(step: int, numbers: dict[str, float]) -> None:
        # Steps only go up there; those that it has already are the same, since a resumed run repeats itself.
        if step >= run.step:
            run.log(numbers, step=step)

    return _Tracker(log, lambda well: run.finish(exit_code=0 if well else 1))


def _open_trackio(folder: Path, config: dict[str, Any], called: Names) -> _Tracker:
    module, known = importlib.import_module("trackio"), _run(folder)
    run = module.init(
        project=called.project or os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=called.run or f"{known.name}-{known.id[:8]}",  # it finds a run by its name
        resume="allow",
        config=config,
    )

    def close(well: bool) -> None:
        del well
        module.finish()

    return _Tracker(lambda step, numbers: run.log(numbers, step), close)


class _Kind(NamedTuple):
    module: str  # to import
    extra: str  # of this package, that installs it
    open: Callable[[Path, dict[str, Any], Names], _Tracker]


_TRACKERS: dict[TrackerName, _Kind] = {
    "tensorboard": _Kind("tensorboardX", "trackers", _open_tensorboard),
    "wandb": _Kind("wandb", "wandb", _open_wandb),
    "trackio": _Kind("trackio", "trackers", _open_trackio),
}
