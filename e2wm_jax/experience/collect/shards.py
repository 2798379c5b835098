"""Experiences on disk: JSON-lines shards and ``manifest.json``.

While a shard is being filled, its episodes stand in ``*.partial.jsonl`` in the order in which they were finished;
once complete, it is written in the order of episodes, atomically. A process killed at any moment leaves at worst a
torn last line in a partial shard, which counts as not done.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from reprlib import repr as shortly
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.storage.files import read_json, read_json_lines, write_json, write_text
from e2wm_jax.worlds.household.facts import is_fact
from e2wm_jax.worlds.household.homes import files as scene_files

MANIFEST = "manifest.json"
SHARD_SIZE = 64  # episodes
_PARTIAL = ".partial.jsonl"
_MALFORMED = (TypeError, ValueError, AttributeError, OverflowError)  # what `Trajectory.from_json` may raise


class ShardWriter:
    """Writes the episodes of one run, each as one line, in any order and over any number of interruptions."""

    def __init__(self, folder: Path, episodes: int) -> None:
        self.folder = folder
        self.episodes = episodes
        self._lines: dict[int, dict[int, str]] = {}  # shard -> episode -> line, of shards that are not complete
        self.done: set[int] = set()
        folder.mkdir(parents=True, exist_ok=True)
        for shard in range(-(-episodes // SHARD_SIZE)):
            self._recover(shard)

    def add(self, episode: int, record: dict[str, Any]) -> None:
        """Keep a finished episode; it is on disk when this returns."""
        shard = episode // SHARD_SIZE
        line = json.dumps({"episode": episode, **record})  # ASCII: no character that could be taken for a line break
        with self._partial(shard).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._lines.setdefault(shard, {})[episode] = line
        self.done.add(episode)
        self._complete(shard)

    def missing(self) -> list[int]:
        """The episodes that are not on disk."""
        return [episode for episode in range(self.episodes) if episode not in self.done]

    def _recover(self, shard: int) -> None:
        lines: dict[int, str] = {}
        for path in (self._partial(shard), self._path(shard)):
            if path.is_file():
                lines.update(_whole_lines(path))
        expected = self._expected(shard)
        lines = {episode: line for episode, line in lines.items() if episode in expected}
        self.done.update(lines)
        if lines:
            self._lines[shard] = lines
        if len(lines) == len(expected):
            self._complete(shard)
        elif lines:
            write_text(self._partial(shard), _join(lines))  # without a torn line: the next one must start afresh
            self._path(shard).unlink(missing_ok=True)

    def _complete(self, shard: int) -> None:
        if len(self._lines[shard]) == len(self._expected(shard)):
            write_text(self._path(shard), _join(self._lines.pop(shard)))
            self._partial(shard).unlink(missing_ok=True)

    def _expected(self, shard: int) -> range:
        return range(shard * SHARD_SIZE, min((shard + 1) * SHARD_SIZE, self.episodes))

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.jsonl"

    def _partial(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}{_PARTIAL}"


def _join(lines: dict[int, str]) -> str:
    return "".join(line + "\n" for _, line in sorted(lines.items()))


def _whole_lines(path: Path) -> dict[int, str]:
    """Episode to line, of the lines that end in a line break and hold a whole record."""
    lines = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
            Trajectory.from_json(record)
            lines[int(record["episode"])] = line.decode()
        except (KeyError, *_MALFORMED):
            continue
    return lines


def open_run(folder: Path, settings: dict[str, Any]) -> None:
    """Make sure that ``folder`` is empty, new, or holds a run with these settings and no more episodes (the content
    of an episode does not depend on how many there are, so a run can be prolonged).

    Raises:
        InputError: naming the settings that differ, or a folder that holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; choose a directory for --out")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: not empty and not a run of collect (no {MANIFEST}); choose another --out")
    found = read_json(folder / MANIFEST).get("settings", {})
    if isinstance(found.get("episodes"), int) and found["episodes"] < settings["episodes"]:
        found["episodes"] = settings["episodes"]
    different = [
        f"{key} is {found.get(key)!r} there, {settings.get(key)!r} here"
        for key in sorted(found.keys() | settings.keys())
        if found.get(key) != settings.get(key)
    ]
    if different:
        raise InputError(f"{folder}: holds another run ({'; '.join(different)}); choose another --out or delete it")


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json``, atomically."""
    write_json(folder / MANIFEST, manifest)


def load_trajectories(folders: Iterable[Path]) -> Iterator[Trajectory]:
    """The trajectories of one or more runs, in order; of an unfinished run those that are done. Scenes that a run keeps
    are named as seen from here.

    Raises:
        InputError: if a folder is not a run of `collect`, or naming file and line of a malformed record.
    """
    for folder in folders:
        for where, record in shard_lines(folder):
            yield parse(record, where)


def shard_lines(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a run, in order, each with its file and line; of an unfinished run those that are done.

    Raises:
        InputError: if a folder is not a run of `collect`, or naming file and line of what is no record.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: no experiences (no {MANIFEST}); make some with e2wm collect --out {folder}")
    for path in sorted(folder.glob("shard-*.jsonl")):
        if not path.name.endswith(_PARTIAL):
            yield from ((f"{path}:{number}", record) for number, record in read_json_lines(path))
        elif not path.with_name(path.name.replace(_PARTIAL, ".jsonl")).is_file():
            yield from ((str(path), json.loads(line)) for _, line in sorted(_whole_lines(path).items()))


def parse(record: dict[str, Any], where: str) -> Trajectory:
    """The trajectory of a record that stands in ``where`` ("folder/file:line"), its scene as seen from here.

    Raises:
        InputError: starting with ``where``, if the record is malformed.
    """
    try:
        found = Trajectory.from_json(record)
        _check_types(found)
        return replace(found, scene=scene_files.located(found.scene, Path(where).parent))
    except KeyError as error:
        raise InputError(f"{where}: not a trajectory: no {error}") from error
    except _MALFORMED as error:
        raise InputError(f"{where}: not a trajectory: {error}") from error


def _check_types(found: Trajectory) -> None:
    """What is to be text is text, and facts are facts. Raises ValueError."""
    texts = {"id": found.id, "scene": found.scene, "dialect": found.dialect, "policy": found.policy}
    texts |= {"task": found.task or "", **{f"steps[{n}]": step.action for n, step in enumerate(found.steps)}}
    texts |= {f"class of node {node}": name for node, name in found.classes.items()}
    texts |= {f"items[{n}]": item for n, item in enumerate(found.items)}
    for where, text in texts.items():
        if not isinstance(text, str) or not (text.isprintable() or text.isspace()):
            raise ValueError(f"{where} is {shortly(text)}, and no text in one line")
    for fact in (*found.goal, *found.achieved, *found.conditions):
        if not isinstance(fact, str) or not is_fact(fact):
            raise ValueError(f"{shortly(fact)} is no fact such as 'light || ON'")
