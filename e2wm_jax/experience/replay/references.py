"""The formats of recorded programs, reference trajectories and episodes, and what of them a world does otherwise."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from reprlib import repr as shortly
from typing import Any, TypeVar

from e2wm_jax.errors import InputError
from e2wm_jax.experience.collect.shards import parse
from e2wm_jax.worlds.household.actions import parse_action
from e2wm_jax.worlds.household.homes import files as scene_files
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.world import World

State = TypeVar("State")


def replay_record(world: World[State], record: dict[str, Any], scene_folder: Path | None, where: str) -> dict[str, Any]:
    """Replay one reference trajectory ``{"id", "init", "patch"?, "steps": [{"a"}, ...]}``; further keys are kept.

    Returns:
        The record with what this world does at each step, and ``final`` (edges, states and a SHA-1 over both).

    Raises:
        InputError: starting with ``where``, if the record or its scene is malformed.
    """
    try:
        lines = [str(step["a"]) for step in record["steps"]]
        scene = scenes.patched(_reference_scene(record["init"], scene_folder, where), record.get("patch") or {})
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{where}: malformed record ({error}); needs "id", "init" and "steps" with "a"') from error
    state = world.initial(scene)
    steps = []
    for line in lines:
        state, step = world.step(state, parse_action(line, where))
        steps.append({**step.to_json(), "a": line})
    return {**record, "steps": steps, "final": _digest(world, state)}


def replay_episode(world: World[State], record: dict[str, Any], folder: Path | None, where: str) -> dict[str, Any]:
    """Replay an episode of `collect`: the record with what this world does at each step, and ``achieved``. Each person
    of a story of several acts in a world of their own, as `carriers` has it.

    Raises:
        InputError: starting with ``where``, if the record is malformed or its scene cannot be loaded.
    """
    found = parse(record, where)
    try:
        scene = _scene(found.scene, folder)
    except InputError as error:
        raise InputError(f"{where}: scene {error}") from error
    states = dict.fromkeys((0, *(step.actor for step in found.steps)), world.initial(scene))
    steps = []
    for step in found.steps:
        states[step.actor], done = world.step(states[step.actor], parse_action(step.action, where))
        steps.append({**replace(done, actor=step.actor).to_json(), "a": step.action})
    achieved = sorted(world.gained_test(scene, found.goal)(states[0]))
    return {**record, "steps": steps, "achieved": achieved}


def differences(record: dict[str, Any], ours: dict[str, Any], where: str) -> Iterator[str]:
    """What is otherwise in a record replayed: a line for each such step and for the end.

    Raises:
        InputError: if the record does not say what happened.
    """
    for number, (then, now) in enumerate(zip(record["steps"], ours["steps"], strict=True), start=1):
        if "ok" not in then:
            raise InputError(f'{where}: step {number} has no "ok", so there is nothing to compare; give --out FILE')
        if then != now:
            yield f"{where}: step {number} {now['a']}: {_difference(then, now)}"
    for key in ("achieved", "final"):
        if key in record and record[key] != ours[key]:
            yield f"{where}: {key} {record[key]!r} there, {ours[key]!r} here"


def _difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    if then["ok"] != now["ok"]:
        trouble = now.get("exc") or "; ".join(now.get("msg", ()))
        return "failed there, works here" if now["ok"] else f"worked there, fails here: {trouble}"
    keys = [key for key in dict.fromkeys((*then, *now)) if then.get(key) != now.get(key)]
    return ", ".join(f"{key} {shortly(then.get(key))} there, {shortly(now.get(key))} here" for key in keys)


@lru_cache(maxsize=8)
def _scene(name: str, folder: Path | None) -> Scene:
    return scene_files.load(name, folder)


def _reference_scene(init: str, scene_folder: Path | None, where: str) -> Scene:
    kind, _, name = init.partition(":")
    if kind == "robothow":
        return scenes.load(init)
    if kind != "scene":
        raise InputError(f'{where}: init {init!r}; expected "scene:<number>" or "robothow:<program>"')
    if scene_folder is None:
        raise InputError(f"{where}: needs {init}; pass --scenes with the folder of TrimmedTestScene<number>_graph.json")
    path = scene_folder / f"TrimmedTestScene{name}_graph.json"
    path = path if path.is_file() else path.with_name(path.name + ".gz")
    return _scene_of(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=8)
def _scene_of(path: Path, _modified: int) -> Scene:
    """A scene's file, which many trajectories begin in: read once, and again after a change."""
    return scenes.load(str(path))


def _digest(world: World[State], state: State) -> dict[str, Any]:
    edges, states = sorted(world.edges(state)), sorted(world.states(state))
    text = json.dumps([edges, states])
    return {"n_edges": len(edges), "n_states": len(states), "sha1": hashlib.sha1(text.encode()).hexdigest()}
