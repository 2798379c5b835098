"""The record of a run in its directory, settings and digests of what was read: `--resume` continues that run only."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from e2wm_jax import __version__
from e2wm_jax.data.source import online_tasks, parse_mixture
from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json, sha256
from e2wm_jax.fisher.corpus import Corpus
from e2wm_jax.fisher.storage import Fisher
from e2wm_jax.train.settings import TrainSettings

CONFIG_FILE = "config.json"
CONTENT = "content"  # in it: digests of all that was read
# How a run is watched, kept and continued, and not what it computes: these may differ when it is resumed.
_FREE = (
    *("out", "workers", "keep_checkpoints", "keep_best", "on_nonfinite", "trackers", "profile_steps"),
    *("mesh", "distributed", "penalty_kernel", "remat"),
)


def resolved(settings: TrainSettings) -> dict[str, Any]:
    """The settings as JSON; `resume` is how a run is continued, not what it is."""
    record = dataclasses.asdict(settings)
    del record["resume"]
    return {key: _as_json(value) for key, value in record.items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def content_of(settings: TrainSettings, corpus: Corpus | None) -> dict[str, str]:
    """Digests of the files that a run reads.  Online data are what this version makes of their names and scenes."""
    mixture = [part for text in (settings.data, settings.validation) if text for part in parse_mixture(text)]
    tasks = [task for _, task in online_tasks(mixture)]
    paths = [path for _, path in mixture if isinstance(path, Path)]
    paths += [Path(scene) for task in tasks for scene in task.scenes]
    found = {str(path): sha256(path) for path in paths if path.is_file()}
    found |= {task.name: f"made by e2wm_jax {__version__}" for task in tasks}
    if corpus is not None:
        found[" ".join(settings.regularizer_data)] = corpus.digest()
    if settings.adapter is not None:
        files = sorted(path for path in settings.adapter.iterdir() if path.is_file())
        found[str(settings.adapter)] = hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()
    return found


def fisher_digest(fisher: Fisher) -> str:
    """Of names, shapes, kinds and evenly spaced values of F."""
    digest = hashlib.sha256()
    for path, value in sorted(fisher.items()):
        for leaf in jax.tree.leaves(value):
            flat = leaf.reshape(-1)
            digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
            digest.update(np.asarray(flat[:: max(1, flat.size // 4096)]).tobytes())
    return digest.hexdigest()


def _holds_something(out: Path) -> bool:
    """Whether `out` is anything but a directory that is empty, or as a run killed in its very first write left it."""
    if not out.is_dir():
        return out.exists()
    return any(not path.name.startswith(f".{CONFIG_FILE}.") for path in out.iterdir())


def check_out(settings: TrainSettings) -> None:
    """A fresh directory, or with --resume one of the same settings."""
    out, config = settings.out, settings.out / CONFIG_FILE
    if not settings.resume:
        if _holds_something(out):
            raise InputError(f"--out {out}: already holds a run; continue it with --resume, or give a new directory")
        return
    if not config.is_file():
        if _holds_something(out):
            raise InputError(f"--resume: {out} holds no {CONFIG_FILE}, so no run; give the directory of a run")
        return  # never started: starts now
    earlier = read_json(config)
    for key, value in resolved(settings).items():
        before = earlier.get(key)
        if isinstance(value, list) and isinstance(before, str):
            before = [before] if before else []  # of a version in which it was one text
        if key not in _FREE and before != value:
            raise InputError(
                f"--resume: {out} was run with {key} = {before!r}, not {value!r}; "
                "repeat its settings, or give a new --out"
            )


def check_same(settings: TrainSettings, content: dict[str, str]) -> None:
    """With --resume: what was read is what the run read."""
    config = settings.out / CONFIG_FILE
    if not settings.resume or not config.is_file():
        return
    earlier = read_json(config).get(CONTENT, {})
    for name, digest in content.items():
        if earlier.get(name) != digest:
            what = f"the {name}" if name in ("model", "fisher") else name
            raise InputError(
                f"--resume: {what} has changed since {settings.out} was run; restore it, or give a new --out"
            )
