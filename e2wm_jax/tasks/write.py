"""The one place where task files touch the disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.files import write_json, write_json_lines
from e2wm_jax.tasks.build import TaskSets
from e2wm_jax.tasks.example import Example, Generation
from e2wm_jax.tasks.source import SUFFIX
from e2wm_jax.tasks.statistics import statistics

STATISTICS = "statistics.json"


def write(sets: TaskSets, out_dir: Path) -> list[Path]:
    """Write the sets as JSON lines below `out_dir`, and ``statistics.json`` as the last file.

    Beside each evaluation set of plans goes ``*.json.sources``: per example the world in which its plan can be carried
    out (`source.Source`), so that `e2wm eval plans` can do so.

    A directory that holds a part of just these files is completed, so a killed run can be repeated.

    Returns:
        The paths of all files of the sets.

    Raises:
        InputError: before anything is written, if `out_dir` is a file or holds anything else.
    """
    lines = {name: [example.to_json() for example in examples] for name, examples in sets.files.items()}
    for name, examples in sets.files.items():
        if name.startswith("eval/") and (sources := _sources(examples)):
            lines[name + SUFFIX] = sources
    texts = {
        name: "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        for name, records in lines.items()
    }
    texts[STATISTICS] = json.dumps(statistics(sets), indent=2, ensure_ascii=False) + "\n"
    _check_directory(out_dir, texts)
    for name, records in lines.items():
        write_json_lines(out_dir / name, records)
    write_json(out_dir / STATISTICS, statistics(sets))
    return [out_dir / name for name in texts]


def _sources(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """One record per example where all have a source, else none."""
    known = [one.source for one in examples if isinstance(one, Generation) and one.source is not None]
    return [source.to_json() for source in known] if len(known) == len(examples) else []


def _check_directory(out_dir: Path, texts: dict[str, str]) -> None:
    """Hidden files are left alone: an interrupted write leaves some behind."""
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"{out_dir}: is a file; --out must name a directory")
    for path in sorted(out_dir.rglob("*")) if out_dir.is_dir() else []:
        name = path.relative_to(out_dir).as_posix()
        if path.name.startswith(".") or (path.is_dir() and any(known.startswith(f"{name}/") for known in texts)):
            continue
        if name not in texts or path.read_text(encoding="utf-8", errors="replace") != texts[name]:
            raise InputError(f"{out_dir}: already holds {name} of another run; choose a new --out or remove it")
