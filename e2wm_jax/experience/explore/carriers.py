"""Three people carry things through a house: material for questions about where a thing has been.

Each person plays an episode of their own in the same scene. No two of them take things of one class or open the same
container, so the episodes, however interleaved, are what three characters would do in one world; `Step.actor` says
who did what. A person makes three to five moves from room to room, never to the room they are in, and in each room
at most one thing more: takes an object of that room (two hands; no class of objects is taken twice in a story), drops
one, or neither, all equally likely (the statistics of E2WM's path tracking).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from e2wm_jax.experience.explore.episode import Episode, choice
from e2wm_jax.worlds.household.changes import Step
from e2wm_jax.worlds.household.homes.scenes import Node, Scene
from e2wm_jax.worlds.household.world import World

State = TypeVar("State")

_PEOPLE = 3
_MOVES = (3, 4, 5)
_HANDS = 2
_LONGEST = 1000  # steps of one person: no limit in practice
_CROCKERY = "bowl cup fork knife mug plate spoon"
# What E2WM's stories carry from where, by VirtualHome's names; other objects where a room has none of its own.
_THINGS = {
    room: frozenset(names.split())
    for room, names in {
        "bathroom": "hairbrush shampoo soap toothbrush toothpaste tooth_paste towel",
        "bedroom": "blanket clothes clothes_pants clothes_shirt glasses spectacles clothes_hat pillow shoes",
        "dining_room": _CROCKERY,
        "hallway": "key keys phone cellphone wallet",
        "home_office": "keyboard laptop mouse paper pen pencil",
        "kitchen": f"bottle pan fryingpan pot {_CROCKERY}",
    }.items()
}
_FEWEST_ROOMS = 3  # with fewer of these rooms, people go through all rooms of the house


@dataclass
class _Story:
    """What the people of one story share."""

    rooms: dict[int, list[Node]]  # room to the objects that are there at the beginning
    taken: set[str]  # classes
    opened: set[int]  # containers


def carry_about(world: World[State], scene: Scene, rng: random.Random) -> list[Step]:
    """The steps of the three people, interleaved at random; who is next is drawn among those with something left."""
    story = _Story(_rooms(scene, rng), set(), set())
    doings = [_doings(Episode(world, scene, _LONGEST, rng), story) for _ in range(_PEOPLE)]
    steps: list[Step] = []
    while remaining := [person for person in range(_PEOPLE) if doings[person]]:
        person = rng.choice(remaining)
        steps += [replace(step, actor=person) for step in doings[person].pop(0)]
    return steps


def _doings(episode: Episode[State], story: _Story) -> list[Sequence[Step]]:
    """What one person does: the steps of each move, taking and dropping."""
    rng, opened = episode.rng, set[int]()
    ends = [0]
    room = next(iter(episode.world.targets(episode.state, episode.scene.character.id, "INSIDE")), None)
    for _ in range(rng.choice(_MOVES)):
        elsewhere = [place for place in story.rooms if place != room]
        room = rng.choice(elsewhere) if elsewhere else None
        if room is None or not episode.do("Walk", episode.scene.nodes[room]):
            break
        ends.append(len(episode.steps))
        held = episode.held()
        free = _free(episode, story, room) if len(held) < _HANDS else []
        match rng.choice(["nothing", *(["get"] if free else []), *(["drop"] if held else [])]):
            case "get":
                thing = choice(rng, free)
                story.taken.add(thing.class_name)
                opened.update(container.id for container in episode.containers(thing))
                episode.take(thing)
            case "drop":
                episode.do("Drop", rng.choice(held))
        ends.append(len(episode.steps))
    story.opened |= opened
    return [episode.steps[start:end] for start, end in pairwise(ends) if end > start]


def _free(episode: Episode[State], story: _Story, room: int) -> list[Node]:
    """What may be taken in the room: of what belongs there, otherwise anything."""
    free = [
        thing
        for thing in story.rooms[room]
        if thing.class_name not in story.taken
        and story.opened.isdisjoint(container.id for container in episode.containers(thing))
    ]
    own = [thing for thing in free if thing.class_name in _THINGS.get(episode.scene.nodes[room].class_name, ())]
    return own or free


def _rooms(scene: Scene, rng: random.Random) -> dict[int, list[Node]]:
    """The rooms of the story, one of each name so that the name is enough, each with its objects that can be
    carried."""
    names = sorted({node.class_name for node in scene.nodes.values() if node.is_room})
    known = [name for name in names if name in _THINGS]
    chosen = known if len(known) >= _FEWEST_ROOMS else names
    rooms: dict[int, list[Node]] = {
        rng.choice([node.id for node in scene.by_class[name] if node.is_room]): [] for name in chosen
    }
    for source, relation, target in scene.edges:
        node = scene.nodes[source]
        if relation == "INSIDE" and target in rooms and _is_portable(node):
            rooms[target].append(node)
    return rooms


def _is_portable(node: Node) -> bool:
    return "GRABBABLE" in node.properties and node.properties.isdisjoint({"SITTABLE", "LIEABLE", "BODY_PART"})
