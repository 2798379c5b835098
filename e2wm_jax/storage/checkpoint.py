"""Checkpoints of a training run, by orbax: arrays of the state, and the position in the data as JSON.

What orbax leaves open is closed here: a digest of every leaf, so that a file that was cut or changed is noticed; the
checkpoint before it then; and errors of the disk as one line. Files of a checkpoint appear under their number at once.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from e2wm_jax.errors import WAYS_OUT, InputError, disk_error
from e2wm_jax.running.hosts import all_hosts, sync_hosts
from e2wm_jax.running.progress import say

DAMAGED = ".damaged"  # follows the number of a checkpoint that was set aside
_STATE, _RECORD = "state", "position"
_ROOM = 1 << 20  # bytes beside those of the arrays, for what orbax writes about them


class Restored(NamedTuple):
    """What was saved under `step`."""

    step: int
    state: Any
    position: dict[str, Any]


class _DamagedError(Exception):
    """A checkpoint that is not what was saved."""


@dataclass(frozen=True)
class _LowestMetric:
    """Preserves the `count` checkpoints with the lowest metric; one without a metric is not among them."""

    metrics: Mapping[int, float]  # of the steps that have one
    count: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        ranked = sorted((self.metrics[step], step) for step in steps if step in self.metrics)
        best = {step for _, step in ranked[: self.count]}
        return [step in best for step in steps]


class Checkpoints:
    """The numbered checkpoints in `folder`, written in the background; use it as a context manager.

    The newest `keep` stay, and besides them the `keep_best` with the lowest metric. Leftovers of a killed write are
    removed. With several processes each makes the same calls; files are those of a file system that all of them see.

    Raises:
        InputError: on opening, if `folder` is not a directory or cannot be written to; from any method and on
            leaving, if an earlier save has failed, naming what the disk said.
    """

    def __init__(self, folder: Path, *, keep: int = 3, keep_best: int = 0) -> None:
        self.folder = folder.absolute()
        self._damaged: list[int] = []
        self._metrics: dict[int, float] = {}
        policy = AnyPreservationPolicy([LatestN(keep), _LowestMetric(self._metrics, keep_best)])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, cleanup_tmp_directories=True, lightweight_initialize=True
        )
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder}: is a file; checkpoints need a directory of that name")
        logging.getLogger("absl").addFilter(_is_news)  # for good: orbax's threads may outlive the manager
        with self._disk_errors("use it for checkpoints"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        for step in self.steps() if keep_best else ():
            try:
                self._note_metric(step, self._record(step)["metric"])
            except _DamagedError:
                continue  # said when it is asked for

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except InputError as failure:
            if error is None:
                raise
            _say(f"error: {failure}")  # beside the error on its way, not instead of it

    def steps(self) -> list[int]:
        """The numbers of the checkpoints, ascending, without those found damaged."""
        return [step for step in sorted(self._manager.all_steps()) if step not in self._damaged]

    def save(self, step: int, state: Any, position: dict[str, Any], metric: float | None = None) -> None:
        """Save under `step`, in the background; nothing happens if there is that checkpoint already.

        Args:
            step: its number; the newest is the highest.
            state: a pytree of arrays, which the caller may donate as soon as this returns.
            position: what else belongs to it, as JSON.
            metric: by which the best are kept, the lower the better; None or NaN: not among them.
        """
        self.wait()
        self._set_damaged_aside()
        if step in self.steps():
            return
        with self._disk_errors(f"write the checkpoint of step {step}"):
            leaves = _leaves(state)
            record = {"step": step, "position": position, "metric": metric}
            record |= {"leaves": {name: _facts(name, leaf) for name, leaf in leaves.items()}}
            self._note_metric(step, metric)
            self._check_room(sum(leaf.nbytes for leaf in leaves.values()) + _ROOM)
            items = {
                _STATE: ocp.args.PyTreeSave({name: leaf for name, leaf in leaves.items() if leaf.size}),
                _RECORD: ocp.args.JsonSave({**record, "sha256": _record_digest(record)}),
            }
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def newest(self, like: Any) -> Restored | None:
        """The newest checkpoint that is whole, with the shapes, dtypes and shardings of `like`; None without any.

        One that is torn, unreadable or not what was saved is said aloud, and set aside with the next save.

        Raises:
            InputError: if what was saved has other leaves, dtypes or shapes than `like`: the state of another run; if
                it was saved under another number: a folder renamed by hand.
        """
        self.wait()
        for step in reversed(self.steps()):
            damage = "another process cannot read it"
            restored = None
            try:
                restored = self._restore(step, like)
            except _DamagedError as error:
                damage = str(error)
            if all_hosts(restored is not None):
                return restored
            self._damaged.append(step)
            before = self.steps()
            then = f"using checkpoint {before[-1]}" if before else "there is no other, so nothing is restored"
            _say(f"{self.folder / str(step)}: damaged checkpoint ({damage}); {then}")
        return None

    def wait(self) -> None:
        """Return when what was saved is on disk."""
        with self._disk_errors("write a checkpoint"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for unfinished writes and end the threads that write."""
        try:
            self.wait()
        finally:
            with suppress(Exception):  # of what a failed write leaves behind; the failure itself was raised by `wait`
                self._manager.close()

    def _restore(self, step: int, like: Any) -> Restored:
        record = self._record(step)
        number = record.get("step", record["position"].get("step", step))  # of earlier versions, in the position alone
        if number != step:
            raise InputError(
                f"{self.folder / str(step)}: holds the checkpoint of step {number}; rename it to {number}, or move it "
                "out of the folder"
            )
        leaves, saved = _leaves(like), record["leaves"]
        for name in sorted(leaves.keys() | saved.keys()):
            here = [str(leaves[name].dtype), list(leaves[name].shape)] if name in leaves else None
            there = saved[name][:2] if name in saved else None
            if here != there:
                raise InputError(
                    f"{self.folder / str(step)}: holds the state of another run: {name} is {there}, here {here}; "
                    "repeat its settings, or give a new --out"
                )
        found = [
            _placed(self._values(step, name, saved[name]) if leaf.size else np.asarray(leaf), leaf)
            for name, leaf in leaves.items()
        ]
        return Restored(step, jax.tree.unflatten(jax.tree.structure(like), found), record["position"])

    def _values(self, step: int, name: str, facts: list[Any]) -> np.ndarray:
        # One array at a time, and on the host: of several, orbax forgets the readers still at work when one fails, and
        # Python reports each of them; and a digest is wanted before anything is on a device.
        wanted = ocp.RestoreArgs(restore_type=np.ndarray)
        args = ocp.args.PyTreeRestore({name: 0}, restore_args={name: wanted}, partial_restore=True)
        values = self._item(step, _STATE, args)[name]
        if _facts(name, values) != facts:
            raise _DamagedError(f"{name} is not what was saved")
        return values

    def _record(self, step: int) -> dict[str, Any]:
        record = self._item(step, _RECORD, ocp.args.JsonRestore())
        if not isinstance(record, dict) or record.pop("sha256", None) != _record_digest(record):
            raise _DamagedError(f"{_RECORD} is not what was saved")
        return record

    def _item(self, step: int, name: str, args: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # of this machine, not of the file
        except Exception as error:  # orbax, tensorstore and json each have their own for a damaged file
            reason = str(error.__cause__ or error).strip().partition("\n")[0][:160]
            raise _DamagedError(f"{name} cannot be read: {reason}") from error

    def _note_metric(self, step: int, metric: float | None) -> None:
        if metric is not None and not math.isnan(metric):
            self._metrics[step] = metric

    def _set_damaged_aside(self) -> None:
        """Rename them, so that they neither count as kept nor stand in the way of their number."""
        if not self._damaged:
            return
        with self._disk_errors("set a damaged checkpoint aside"):
            for step in self._damaged if jax.process_index() == 0 else ():
                aside = self.folder / f"{step}{DAMAGED}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
        sync_hosts("damaged checkpoints set aside")
        for step in self._damaged:
            self._metrics.pop(step, None)
        self._damaged.clear()
        self._manager.reload()

    def _check_room(self, size: int) -> None:
        """Raise the OSError that a write of so many bytes would meet, in all processes."""
        # Of a write that fails in its threads, orbax raises one error but prints others with their tracebacks.
        code = 0
        if jax.process_index() == 0 and hasattr(os, "posix_fallocate"):  # Linux
            try:
                with tempfile.TemporaryFile(dir=self.folder) as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                code = error.errno if error.errno in WAYS_OUT else 0  # not, say, a file system that reserves nothing
        if jax.process_count() > 1:
            code = int(multihost_utils.broadcast_one_to_all(np.int32(code)))
        if code:
            raise OSError(code, os.strerror(code))

    @contextmanager
    def _disk_errors(self, what: str) -> Iterator[None]:
        """Errors of the disk as InputError."""
        try:
            yield
        except Exception as error:
            code = disk_error(error)
            if code is None or isinstance(error, InputError):
                raise
            kept = [int(path.name) for path in self.folder.glob("*") if path.name.isdigit()]
            raise InputError(
                f"{self.folder}: cannot {what}: {os.strerror(code)}; {WAYS_OUT[code]}"
                + (f" and --resume: earlier checkpoints are kept, the newest is {max(kept)}" if kept else "")
            ) from error


def _leaves(state: Any) -> dict[str, Any]:
    """The arrays of a pytree by their paths; flat, so that empty containers need no place in a checkpoint."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}


def _facts(name: str, leaf: Any) -> list[Any]:
    """[dtype, shape, SHA-256 over path, dtype, shape and bytes] of a leaf, as JSON has them."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    values = np.ascontiguousarray(leaf)
    about = [str(leaf.dtype), list(leaf.shape)]
    digest = hashlib.sha256(json.dumps([name, *about]).encode())
    digest.update(values.reshape(-1).view(np.uint8).data)
    return [*about, digest.hexdigest()]


def _placed(values: np.ndarray, like: jax.Array) -> jax.Array:
    """The values on the devices of `like`."""
    return jax.make_array_from_callback(values.shape, like.sharding, lambda index: values[index])


def _record_digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _is_news(record: logging.LogRecord) -> bool:
    """Not an error that orbax prints with its traceback and raises as well."""
    return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts


def _say(message: str) -> None:
    if jax.process_index() == 0:
        say(message)
