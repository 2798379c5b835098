"""Scenes by name. What a scene is (`graph`) and the RobotHow programs (`robothow`) can be imported from here too."""

from dataclasses import replace
from pathlib import Path

from e2wm_jax.errors import InputError
from e2wm_jax.storage.files import is_there, read_json
from e2wm_jax.worlds.household.graph import CHARACTER, PROPERTIES, RELATIONS, STATES, Node, Scene, parse_graph, patched
from e2wm_jax.worlds.household.homes.procedural import PROCEDURAL, household
from e2wm_jax.worlds.household.homes.robothow import (
    ROBOTHOW,
    Program,
    has_robothow,
    initial_scene,
    program,
    program_ids,
    program_title,
)
from e2wm_jax.worlds.household.homes.transfer import PREPARED, Preparation, Untransferable, prepare

_LONGEST_SEED = 100  # digits

__all__ = [
    "CHARACTER",
    "PREPARED",
    "PROCEDURAL",
    "PROPERTIES",
    "RELATIONS",
    "ROBOTHOW",
    "STATES",
    "Node",
    "Preparation",
    "Program",
    "Scene",
    "Untransferable",
    "has_robothow",
    "household",
    "load",
    "parse_graph",
    "patched",
    "preparation",
    "program",
    "program_ids",
    "program_title",
]


def load(name: str) -> Scene:
    """A scene by name: the path of a graph (``.json`` or ``.json.gz``, or with an ``init_graph`` inside);
    ``robothow:file1003_2`` for the initial graph of that RobotHow program; ``procedural:7`` for a made-up household;
    any of these followed by ``+robothow:file1003_2`` for that scene made ready for the program's activity.

    Raises:
        InputError: if there is no such scene, `virtualhome-eval` is missing, the graph is malformed, or the scene lacks
            what the program needs.
    """
    if PREPARED in name:
        return preparation(name).scene
    if name.startswith(PROCEDURAL):
        seed = name.removeprefix(PROCEDURAL)
        if not (seed.isascii() and seed.isdecimal()) or len(seed) > _LONGEST_SEED:
            raise InputError(f"{name[:100]}: the seed of a household must be a number, as in {PROCEDURAL}7")
        return household(int(seed))
    try:
        if name.startswith(ROBOTHOW):
            return initial_scene(name.removeprefix(ROBOTHOW))
        if not is_there(Path(name)):
            raise InputError(f"{name}: no such file; a scene is the file of a graph, {PROCEDURAL}SEED or {ROBOTHOW}ID")
        graph = read_json(Path(name))
    except OSError as error:  # a name that is too long, a device
        raise InputError(f"{name[:100]}: cannot be read ({error.strerror}); give the file of a graph") from error
    return parse_graph(graph.get("init_graph", graph), name)


def preparation(name: str) -> Preparation:
    """How the scene of a name such as ``flat.json+robothow:file1003_2`` was made ready.

    Raises:
        Untransferable: if the program needs furniture or a room that the scene does not have.
        InputError: if there is no such scene or program.
    """
    base, _, program_id = name.rpartition(PREPARED)
    return prepare(replace(load(base), name=name), program(program_id))
