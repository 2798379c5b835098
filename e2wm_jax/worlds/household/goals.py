"""What the planner is asked for: goals from RobotHow (what changed between a program's two graphs) or from a file."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.storage.files import read_json_lines
from e2wm_jax.worlds.household.changes import Edge
from e2wm_jax.worlds.household.facts import edge_fact, is_fact, split_fact, state_fact
from e2wm_jax.worlds.household.homes import files as scene_files
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.homes.scenes import CHARACTER, STATES, Node, Scene


@dataclass(frozen=True)
class Goal:
    """A task in a scene.

    ``facts`` are changes to bring about: ``"light || ON"`` asks that some light which is off now be on.
    ``items`` are the classes that the plan may deal with (rooms may always be walked to); ``conditions`` describe
    their initial states and places.
    """

    scene: str
    task: str
    facts: tuple[str, ...]
    items: tuple[str, ...]
    conditions: tuple[str, ...]


def graph_change(init: Scene, final: Scene) -> tuple[str, ...]:
    """The facts that are new in ``final``, sorted: states that a node has gained, then edges between classes that
    no two nodes of these classes had before (E2WM's goals)."""
    states = {
        state_fact(node.class_name, state)
        for node in final.nodes.values()
        for state in node.states - (init.nodes[node.id].states if node.id in init.nodes else frozenset())
    }
    return (*sorted(states), *sorted(_new_edge_facts(init, final)))


def _new_edge_facts(init: Scene, final: Scene) -> set[str]:
    """Facts of edges of ``final`` that no edge of ``init`` shows. Few edges are new: only theirs are put into words."""
    both = final.nodes.keys() & init.nodes.keys()
    same = all(final.nodes[node].class_name == init.nodes[node].class_name for node in both)
    before = set(init.edges) if same else set()
    fresh = _edge_facts(final, [edge for edge in final.edges if edge not in before])
    classes = {name for fact in fresh for name in split_fact(fact)[::2]}
    ends = {node.id for node in init.nodes.values() if node.class_name in classes}
    return fresh - _edge_facts(init, [edge for edge in init.edges if edge[0] in ends and edge[2] in ends])


def _edge_facts(scene: Scene, edges: Iterable[Edge]) -> set[str]:
    nodes = scene.nodes
    return {edge_fact(nodes[a].class_name, relation, nodes[b].class_name) for a, relation, b in edges}


def conditions(scene: Scene, nodes: Iterable[Node]) -> tuple[str, ...]:
    """States and containers (rooms included) of the nodes at the start, and whether the character sits; sorted."""
    chosen = {node.id: node for node in nodes}
    states = {state_fact(node.class_name, state) for node in chosen.values() for state in node.states}
    states |= {state_fact("character", state) for state in scene.character.states & {"SITTING", "LYING"}}
    places = {
        edge_fact(chosen[source].class_name, relation, scene.nodes[target].class_name)
        for source, relation, target in scene.edges
        if relation == "INSIDE" and source in chosen
    }
    return (*sorted(states), *sorted(places))


def robothow_goal(program_id: str) -> Goal:
    """The goal of a RobotHow program; items and conditions are those of the objects that its script names.

    Raises:
        InputError: if there is no such program or `virtualhome-eval` is not installed.
    """
    program = scenes.program(program_id)
    named = {thing.id for action in program.script for thing in action.things}
    nodes = [program.init.nodes[node] for node in sorted(named)]
    return Goal(
        scene=program.init.name,
        task=program.title.lower(),
        facts=graph_change(program.init, program.final),
        items=tuple(sorted({node.class_name for node in nodes} - {"character"})),
        conditions=conditions(program.init, nodes),
    )


def transferred_goal(name: str) -> Goal:
    """The goal of the RobotHow program in the prepared scene ``name`` (`scenes.preparation`).

    Facts about what the scene lacks and the program does not use (a picture that one happens to stand near) are left
    out, and so are those that hold from the beginning.

    Raises:
        Untransferable: if the scene lacks what the program needs, or there is nothing left to do.
        InputError: if there is no such scene or program.
    """
    preparation = scenes.preparation(name)
    scene, program = preparation.scene, preparation.program
    rooms = {
        program.init.nodes[role].class_name: scene.nodes[node].class_name
        for role, node in preparation.roles.items()
        if program.init.nodes[role].is_room
    }
    facts = [_renamed(fact, rooms) for fact in graph_change(program.init, program.final)]
    facts = [fact for fact in dict.fromkeys(facts) if _is_open(fact, scene)]
    if not facts:
        raise scenes.Untransferable(f"{name}: nothing to do; all that the program brings about holds at the start")
    nodes = [scene.nodes[node] for node in sorted({preparation.roles[role] for role in preparation.named})]
    classes = {node.class_name for node in nodes} - {CHARACTER}
    return Goal(scene.name, program.title.lower(), tuple(facts), tuple(sorted(classes)), conditions(scene, nodes))


def _renamed(fact: str, rooms: dict[str, str]) -> str:
    """The fact with the scene's rooms in place of the program's."""
    words = split_fact(fact)
    if len(words) == 2:
        return state_fact(rooms.get(words[0], words[0]), words[1])
    return edge_fact(rooms.get(words[0], words[0]), words[1], rooms.get(words[2], words[2]))


def _is_open(fact: str, scene: Scene) -> bool:
    """Whether a change of the scene could bring the fact about."""
    first, second, *third = split_fact(fact)
    if not third:
        return any(second not in node.states for node in scene.by_class.get(first, ()))
    return (
        first in scene.by_class
        and third[0] in scene.by_class
        and not any(
            edge_fact(scene.nodes[source].class_name, relation, scene.nodes[target].class_name) == fact
            for source, relation, target in scene.edges
        )
    )


def robothow_order(seed: int) -> list[str]:
    """All RobotHow programs in a seeded order that goes through the names of the activities in turn, so that the
    first N of them cover as many activities as N programs can.

    Raises:
        InputError: if `virtualhome-eval` is not installed.
    """
    rng = random.Random(f"robothow:{seed}")
    by_title: dict[str, list[str]] = {}
    for program_id in scenes.program_ids():
        by_title.setdefault(scenes.program_title(program_id).lower(), []).append(program_id)
    for group in by_title.values():
        rng.shuffle(group)
    order = []
    while remaining := [group for group in by_title.values() if group]:
        rng.shuffle(remaining)
        order += [group.pop() for group in remaining]
    return order


def read_goals(path: Path) -> list[Goal]:
    """The goals of a JSON-lines file, each ``{"scene", "task", "goal": [facts], "items"?, "conditions"?}``.

    Without ``items``, the classes in the goal are used; without ``conditions``, those of the items in the scene. A
    scene's path is relative to the file of goals, or to the current directory.

    Raises:
        InputError: naming file and line of the first malformed goal, or of a scene that cannot be loaded.
    """
    loaded: dict[str, Scene] = {}
    goals = []
    for number, record in read_json_lines(path):
        try:
            goals.append(_parse_goal(record, loaded, path.parent))
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from error
    if not goals:
        raise InputError(f'{path}: no goals; expected JSON lines {{"scene": ..., "task": ..., "goal": [...]}}')
    return goals


def _parse_goal(record: dict[str, Any], loaded: dict[str, Scene], folder: Path) -> Goal:
    for key, kind in (("scene", str), ("task", str), ("goal", list)):
        if not isinstance(record.get(key), kind):
            raise InputError(f'missing or malformed "{key}"; a goal needs "scene", "task" and "goal"')
    if not record["goal"]:
        raise InputError('"goal" is empty; name at least one fact such as "light || ON"')
    for key in ("items", "conditions"):
        texts = record.get(key, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(f'"{key}" must be a list of strings')
    if wrong := [text for text in record.get("conditions", []) if not is_fact(text)]:
        raise InputError(f'condition {wrong[0]!r}; expected "class || STATE" or "class || RELATION || class"')
    name = scene_files.located(record["scene"], folder)
    scene = loaded[name] = loaded.get(name) or scenes.load(name)
    facts = tuple(str(fact) for fact in record["goal"])
    for fact in facts:
        _check_fact(fact, scene)
    classes = {name for fact in facts for name in split_fact(fact)[::2]} - set(STATES) - {"character"}
    items = tuple(record.get("items", sorted(classes)))
    nodes = [node for node in scene.nodes.values() if node.class_name in items]
    return Goal(scene.name, record["task"], facts, items, tuple(record.get("conditions", conditions(scene, nodes))))


def _check_fact(fact: str, scene: Scene) -> None:
    words = split_fact(fact)
    if not is_fact(fact):
        raise InputError(f'goal {fact!r}; expected "class || STATE" or "class || RELATION || class"')
    unknown = [name for name in words[::2] if name not in scene.by_class and name not in STATES]
    if unknown:
        raise InputError(f"goal {fact!r}: no {unknown[0]} in scene {scene.name}")
