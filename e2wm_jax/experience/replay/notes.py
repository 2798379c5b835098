"""What the reader of a replayed program wants to be told: why a line crashed, and what its numbers mean."""

from collections.abc import Sequence
from functools import cache

from e2wm_jax.worlds.household.actions import Action, Thing
from e2wm_jax.worlds.household.changes import Step
from e2wm_jax.worlds.household.engine import open_world
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.rules import DIALECTS
from e2wm_jax.worlds.household.world import replay

_EXECUTORS = {"vh23": "VirtualHome 2.3", "vh19": "VirtualHome of 2019", "e2wm": "E2WM's VirtualHome"}
_LISTED = 8  # ids


def notes(scene: Scene, actions: Sequence[Action], steps: Sequence[Step], dialect: str) -> list[str]:
    """For each step of a program what its record does not say; "" where there is nothing to add."""

    @cache
    def otherwise() -> dict[str, list[Step]]:
        others = (other for other in ("e2wm", *DIALECTS) if other != dialect)
        return {other: replay(open_world("array", other), scene, actions) for other in others}

    found = []
    for index, (action, step) in enumerate(zip(actions, steps, strict=True)):
        said = [note for thing in action.things if (note := _mistaken(scene, thing))]
        if step.exception and all(thing.id in scene.nodes for thing in action.things):
            works = [other for other, theirs in otherwise().items() if theirs[index].ok]
            way_out = f"it works with --dialect {works[0]}" if works else "it works in no other dialect either"
            crash = f"{_EXECUTORS[dialect]} itself crashes here ({step.exception}), which dialect {dialect} keeps"
            said.append(f"{crash}; {way_out}")
        found.append("; ".join(said))
    return found


def _mistaken(scene: Scene, thing: Thing) -> str:
    """What is wrong with an object of a line: no such number, or that of something else."""
    node = scene.nodes.get(thing.id)
    name = next((known for known in scene.by_class if known.lower().replace(" ", "_") == thing.name), thing.name)
    if node is not None and node.class_name == name:
        return ""
    ids = [str(other.id) for other in scene.by_class.get(name, ())]
    listed = ", ".join([*ids[:_LISTED], *(["..."] if len(ids) > _LISTED else [])])
    there = f"{name}: {listed}" if ids else f"there is no {name}"
    if node is None:
        return f"no node {thing.id} in the scene ({there})"
    return f"{thing.id} is a {node.class_name}, and only the number counts ({there})"
