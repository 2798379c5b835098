"""The record of a run in its directory, settings and digests of what was read: `--resume` continues that run only."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from e2wm_jax import __version__
from e2wm_jax.data.batch import Row
from e2wm_jax.data.online.names import OnlineTask
from e2wm_jax.data.source import parse_mixture
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.command.corpus import Corpus
from e2wm_jax.fisher.storage import Fisher
from e2wm_jax.options.files import plain
from e2wm_jax.running.progress import say
from e2wm_jax.storage.files import read_json, sha256
from e2wm_jax.train.settings import MOST_STEPS, TASK_ROWS, TrainSettings

CONFIG_FILE = "config.json"
CONTENT = "content"  # in it: digests of all that was read, by the setting that names it
START = "the adapter it starts from"  # of a sequence's later tasks
LENGTHS = "lengths"  # in that: the steps that the run was to have, at first and each time it was made longer
# How a run is watched, kept and continued, and not what it computes: these may differ when it is resumed.
_FREE = (
    *("out", "workers", "checkpoint_every", "keep_checkpoints", "keep_best", "validation", "patience", "max_minutes"),
    *("prompt", "on_nonfinite", "trackers", "run_name", "project", "profile_steps"),
    *("mesh", "distributed", "penalty_kernel", "remat"),
)
_BY_CONTENT = ("model", "data", "fisher", "adapter", "regularizer_data", "tasks", "tests", "text")  # however spelled
_LENGTH = ("steps", "epochs")


def resolved(settings: TrainSettings) -> dict[str, Any]:
    """The settings as JSON; `resume` is how a run is continued, not what it is."""
    record = dataclasses.asdict(settings)
    del record["resume"]
    return {key: plain(value) for key, value in record.items()}


def content_of(settings: TrainSettings, corpus: Corpus | None) -> dict[str, Any]:
    """Digests of what a run reads but for the model and its Fisher, by the names of its settings."""
    found: dict[str, Any] = {"data": mixture_content(settings.data)} if settings.data else {}
    if corpus is not None:
        found["regularizer_data"] = corpus.digest()
    if settings.adapter is not None:
        found["adapter"] = _digest_of(settings.adapter)
    return found


def mixture_content(texts: str | Sequence[str], flag: str = "--data") -> list[list[Any]]:
    """[weight, digest, name] of each part.  Online data are what this version makes of their names and scenes."""
    return [[weight, _digest_of(source), _name_of(source)] for weight, source in parse_mixture(texts, flag)]


def rows_digest(rows: Sequence[Row]) -> str:
    """Of the tokens of some rows all over the data: other tokenizers and templates give others."""
    digest = hashlib.sha256(str(len(rows)).encode())
    for row in rows[:: max(1, len(rows) // 256)]:
        digest.update(np.asarray(row.ids, np.int32).tobytes() + b"|")
    return digest.hexdigest()


def _name_of(source: Any) -> str:
    return source.name if isinstance(source, OnlineTask) else str(source)


def _digest_of(source: Any) -> str:
    if isinstance(source, OnlineTask):
        scenes, exclude = (
            tuple(_digest_of(Path(path)) for path in paths) for paths in (source.scenes, [source.exclude])
        )
        what = dataclasses.replace(source, name="", scenes=scenes, exclude=source.exclude and exclude[0])
        return f"made by e2wm_jax {__version__} of {hashlib.sha256(repr(what).encode()).hexdigest()}"
    if isinstance(source, Path) and source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file())
        return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()
    return sha256(source) if isinstance(source, Path) and source.is_file() else str(source)


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


def check_out(settings: TrainSettings, *, longer: bool = True) -> None:
    """A fresh directory, or with --resume one of the same settings, but for what changes no result.

    Args:
        longer: whether the run may be given more steps than it had (`check_length`).

    Raises:
        InputError: naming the setting that differs, and the ways out.
    """
    out = settings.out
    if not settings.resume:
        if out.is_file():
            raise InputError(f"--out {out}: is a file, and a run is a directory; give another name")
        if _holds_something(out):
            raise InputError(f"--out {out}: already holds a run; continue it with --resume, or give a new directory")
        return
    _check_kinds(out)
    earlier = _earlier(settings)
    if earlier is None:
        if _holds_something(out):
            raise InputError(f"--resume: {out} holds no {CONFIG_FILE}, so no run; give the directory of a run")
        return  # never started: starts now
    free = _FREE + (_LENGTH if longer else ())
    for key, value in resolved(settings).items():
        before = _with_defaults(earlier, key, settings)
        if key in free or (key in _BY_CONTENT and bool(before) == bool(value) and [TASK_ROWS] not in (before, value)):
            continue
        if before != value:
            raise InputError(
                f"--resume: {out} was run with {key} = {before!r}, not {value!r}; repeat its settings, or go on from "
                f"what it has learned with --adapter {out}/adapter and a new --out"
            )


def check_same(settings: TrainSettings, content: dict[str, Any]) -> None:
    """With --resume: what was read is what the run read, whatever the names of the files are now.

    Raises:
        InputError: naming what has changed.
    """
    earlier = _earlier(settings)
    if earlier is None:
        return
    before = _content_of_record(earlier)
    for name, found in content.items():
        if name == LENGTHS or before.get(name) is None or _unnamed(before[name]) == _unnamed(found):
            continue
        what = _changed(name, before[name], found, settings)
        raise InputError(f"--resume: {what} has changed since {settings.out} was run; restore it, or give a new --out")


def check_length(settings: TrainSettings, steps_per_epoch: int) -> list[int]:
    """The steps that the run was to have, at first and each time it was made longer; the last are those it is to have.

    Raises:
        InputError: for fewer steps than it was to have, or a warm-up that is longer than the run.
    """
    steps = settings.steps or settings.epochs * steps_per_epoch
    if settings.warmup_steps >= steps:
        raise InputError(
            f"--warmup-steps {settings.warmup_steps}: must be fewer than the {steps} steps of the run"
            + ("" if settings.steps else f", {settings.epochs} epochs of {steps_per_epoch}")
        )
    if steps > MOST_STEPS:
        raise InputError(f"--steps: {steps} are more than the {MOST_STEPS} that a run may have")
    earlier = _earlier(settings)
    if earlier is None:
        return [steps]
    first = earlier.get("steps") or (earlier.get("epochs") or settings.epochs) * steps_per_epoch
    lengths = _content_of_record(earlier).get(LENGTHS, [first])
    if steps < lengths[-1]:
        raise InputError(
            f"--resume: {settings.out} was run with {lengths[-1]} steps, not {steps}; give as many or more, or a new "
            "--out"
        )
    if steps == lengths[-1]:
        return list(lengths)
    say(
        f"the run in {settings.out} had {lengths[-1]} steps and goes on to {steps}: steps that are done stay as they "
        f"are, each later one has the learning rate ({settings.schedule}) and strength that it has in a run of {steps}"
    )
    return [*lengths, steps]


def _check_kinds(out: Path) -> None:
    """That what a run writes again is still of its kind."""
    for name in ("checkpoints", "adapter"):
        if (out / name).exists() and not (out / name).is_dir():
            raise InputError(f"{out / name}: is not a directory; move it away, a run keeps its {name} there")
    for name in ("metrics.jsonl", "validation.jsonl", "report.html"):
        if (out / name).exists() and not (out / name).is_file():
            raise InputError(f"{out / name}: is not a file; move it away, a run writes there")


def _earlier(settings: TrainSettings) -> dict[str, Any] | None:
    """With --resume the record of the run, if it has begun; texts of versions in which these were one are lists."""
    path = settings.out / CONFIG_FILE
    if not settings.resume or not path.is_file():
        return None
    record = read_json(path)
    if "model" not in record:  # a model's own, for one
        raise InputError(f"--resume: {path} is of something else than a run; give the directory of a run")
    for key in ("data", "validation"):
        if isinstance(record.get(key), str):
            record[key] = [record[key]] if record[key] else []
    if not _is_a_record(record):
        raise InputError(f"{path}: is not as `e2wm train` wrote it; restore it, or give a new --out")
    return record


def _is_a_record(record: dict[str, Any]) -> bool:
    """Whether what is read of config.json is of its type."""
    content = record.setdefault(CONTENT, {})
    if not isinstance(content, dict):
        return False
    texts = [record.get(key) or [] for key in ("data", "validation", "regularizer_data")]
    numbers = [number for key in _LENGTH if (number := record.get(key)) is not None]
    lengths = content.get(LENGTHS, [1])
    mixtures = [value for name, value in content.items() if isinstance(value, list) and name != LENGTHS]
    return (
        all(isinstance(text, list) and all(isinstance(part, str) for part in text) for text in texts)
        and isinstance(lengths, list)
        and bool(lengths)
        and all(type(number) is int and number > 0 for number in [*numbers, *lengths])
        and all(isinstance(part, list) and len(part) == 3 for mixture in mixtures for part in mixture)
    )


def _with_defaults(earlier: dict[str, Any], key: str, settings: TrainSettings) -> Any:
    """A setting of the run; of one that earlier versions did not have, what stands for it now."""
    field = next(field for field in dataclasses.fields(settings) if field.name == key)
    if field.default is not dataclasses.MISSING:
        return earlier.get(key, plain(field.default))
    if field.default_factory is not dataclasses.MISSING and isinstance(earlier.get(key), dict):
        return dataclasses.asdict(field.default_factory()) | earlier[key]
    return earlier.get(key)


def _content_of_record(record: dict[str, Any]) -> dict[str, Any]:
    """The digests of a run; of earlier versions, which had them by the names of the files, in the form of today."""
    content: dict[str, Any] = record[CONTENT]
    if not record.get("data") or "data" in content:
        return content
    parts = []
    for weight, source in parse_mixture(record["data"]):
        digest = content.get(_name_of(source))
        if isinstance(source, OnlineTask) and digest == f"made by e2wm_jax {__version__}":
            digest = _digest_of(source)
        parts.append([weight, digest, _name_of(source)])
    by_name = {
        "regularizer_data": " ".join(record.get("regularizer_data") or ()),
        "adapter": str(record.get("adapter")),
    }
    named = {setting: content[name] for setting, name in by_name.items() if name in content}
    same_name = {name: content[name] for name in ("model", "fisher", START) if name in content}
    return {"data": parts, **named, **same_name}


def _unnamed(content: Any) -> Any:
    """A mixture without the names of its files."""
    return [part[:2] for part in content] if isinstance(content, list) else content


def _changed(name: str, before: Any, found: Any, settings: TrainSettings) -> str:
    """What differs, in words."""
    if not isinstance(found, list):
        flags = {
            "tokens": "what the tokenizer makes of --data",
            "adapter": f"--adapter {settings.adapter}",
            "text": "--text",
        }
        flags |= {"regularizer_data": "--regularizer-data"}
        return flags.get(name) or f"the {name.removeprefix('the ')}"
    same = isinstance(before, list) and [part[0] for part in before] == [part[0] for part in found]
    changed = [new[2] for old, new in zip(before, found, strict=False) if old[1] != new[1]] if same else []
    return changed[0] if changed else f"the mixture of --{name}"
