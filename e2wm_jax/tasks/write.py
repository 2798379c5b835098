"""The one place where task files touch the disk."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from e2wm_jax.errors import InputError
from e2wm_jax.storage.files import write_json, write_json_lines
from e2wm_jax.tasks.build import TaskSets
from e2wm_jax.tasks.example import Example, Generation
from e2wm_jax.tasks.source import SUFFIX, Source
from e2wm_jax.tasks.statistics import statistics
from e2wm_jax.worlds.household.homes import files as scene_files

STATISTICS = "statistics.json"


def write(sets: TaskSets, out_dir: Path) -> list[Path]:
    """Write the sets as JSON lines below `out_dir`, and ``statistics.json`` as the last file.

    Beside each evaluation set of plans goes ``*.json.sources``: per example the world in which its plan can be carried
    out (`source.Source`), so that `e2wm eval plans` can do so. Scenes that are files are kept in ``scenes/``.

    A directory that holds a part of just these files is completed, so a killed run can be repeated.

    Returns:
        The paths of all files of the sets.

    Raises:
        InputError: before anything is written, if `out_dir` is a file or holds anything else.
    """
    lines = {name: [example.to_json() for example in examples] for name, examples in sets.files.items()}
    sources = {name: _sources(examples) for name, examples in sets.files.items() if name.startswith("eval/")}
    kept = scene_files.kept_names(source.scene for known in sources.values() for source in known)
    for name, known in sources.items():
        if known:
            up = "../" * name.count("/")
            lines[name + SUFFIX] = [
                replace(one, scene=scene_files.renamed(one.scene, kept, up)).to_json() for one in known
            ]
    texts = {
        name: "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        for name, records in lines.items()
    }
    texts[STATISTICS] = json.dumps(statistics(sets), indent=2, ensure_ascii=False) + "\n"
    _check_directory(out_dir, texts, {name: path for path, name in kept.items()})
    scene_files.keep(kept, out_dir)
    for name, records in lines.items():
        write_json_lines(out_dir / name, records)
    write_json(out_dir / STATISTICS, statistics(sets))
    return [out_dir / name for name in texts]


def missing_scenes(sets: TaskSets) -> tuple[str, ...]:
    """A note for every scene of an evaluation set that is a file and not there."""
    named = [one for name, examples in sets.files.items() if name.startswith("eval/") for one in _sources(examples)]
    gone = dict.fromkeys(path for one in named if (path := scene_files.path_of(one.scene)) and not path.is_file())
    return tuple(
        f"{path}: no such scene, so it is not kept with the tasks; eval plans needs --scenes FOLDER" for path in gone
    )


def _sources(examples: Sequence[Example]) -> list[Source]:
    """One per example where all have a source, else none."""
    known = [one.source for one in examples if isinstance(one, Generation) and one.source is not None]
    return known if len(known) == len(examples) else []


def _check_directory(out_dir: Path, texts: dict[str, str], copies: dict[str, Path]) -> None:
    """Hidden files are left alone: an interrupted write leaves some behind."""
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"{out_dir}: is a file; --out must name a directory")
    for path in sorted(out_dir.rglob("*")) if out_dir.is_dir() else []:
        name = path.relative_to(out_dir).as_posix()
        if path.name.startswith("."):
            continue
        if path.is_dir() and any(known.startswith(f"{name}/") for known in (*texts, *copies)):
            continue
        if name in copies and path.read_bytes() == copies[name].read_bytes():
            continue
        if name not in texts or path.read_text(encoding="utf-8", errors="replace") != texts[name]:
            raise InputError(f"{out_dir}: already holds {name} of another run; choose a new --out or remove it")
