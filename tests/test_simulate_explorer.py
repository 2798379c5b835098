"""Explorers: what they do is legal, seeded, and fit to be asked about."""

import os
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from e2wm_jax.experience.explore.explorer import explore
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.household import counting
from e2wm_jax.worlds.household.actions import parse_action
from e2wm_jax.worlds.household.changes import Step
from e2wm_jax.worlds.household.engine import open_world
from e2wm_jax.worlds.household.homes.scenes import Scene, load
from e2wm_jax.worlds.household.oracle import virtualhome
from e2wm_jax.worlds.household.world import replay

SCENES = Path(os.environ.get("E2WM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")).parent / "world/scenes"
STORIES = 30
pytestmark = pytest.mark.skipif(not virtualhome.is_installed(), reason="virtualhome is not installed: run make setup")


@pytest.fixture(scope="module")
def world():
    return open_world("virtualhome", "vh23")


def story(world, seed: int) -> tuple[Scene, list[Step]]:
    scene = load(f"procedural:{seed % 10}")
    return scene, explore(world, scene, length=20, seed=seed, style="track")


@pytest.fixture(scope="module")
def stories(world) -> list[tuple[Scene, list[Step]]]:
    return [story(world, seed) for seed in range(STORIES)]


@pytest.mark.parametrize("style", ["carry", "uniform", "track"])
def test_exploration_is_seeded_and_legal(world, style):
    scene = load("procedural:3")
    steps = explore(world, scene, length=15, seed=1, style=style)
    assert len(steps) == 15 or style == "track"
    assert all(step.ok for step in steps)
    assert steps == explore(world, scene, length=15, seed=1, style=style)
    assert steps != explore(world, scene, length=15, seed=2, style=style)
    for person in {step.actor for step in steps}:
        own = [replace(step, actor=0) for step in steps if step.actor == person]
        assert own == replay(world, scene, [parse_action(step.action) for step in own])


def doings(scene: Scene, steps: list[Step]) -> list[tuple[int, str, int]]:
    """(person, what, node) of moves from room to room, getting and dropping; the rest is on the way to them."""
    found = []
    for step in steps:
        action = parse_action(step.action)
        if action.verb in ("Grab", "Drop") or (action.verb == "Walk" and scene.nodes[action.things[0].id].is_room):
            found.append((step.actor, action.verb, action.things[0].id))
        else:
            assert action.verb in ("Walk", "Open")
    return found


def room_at_first(scene: Scene, node: int) -> int:
    (room,) = [b for a, relation, b in scene.edges if (a, relation) == (node, "INSIDE") and scene.nodes[b].is_room]
    return room


def test_three_people_carry_things_as_in_the_released_stories(stories):
    moves, gets, drops = Counter(), Counter(), Counter()
    for scene, steps in stories:
        events = doings(scene, steps)
        assert {person for person, _, _ in events} == {0, 1, 2}
        taken = [node for _, what, node in events if what == "Grab"]
        names = [scene.nodes[node].class_name for node in taken]
        assert len(names) == len(set(names))
        rooms = {node for _, what, node in events if what == "Walk"}
        assert len({scene.nodes[room].class_name for room in rooms}) == len(rooms)
        for person in range(3):
            room, held, before = room_at_first(scene, scene.character.id), [], "Walk"
            own = [(what, node) for who, what, node in events if who == person]
            assert own[0][0] == "Walk"
            moves[sum(what == "Walk" for what, _ in own)] += 1
            for what, node in own:
                if what == "Walk":
                    assert node != room
                    room = node
                elif what == "Grab":
                    assert room_at_first(scene, node) == room
                    held.append(node)
                else:
                    held.remove(node)
                assert len(held) <= 2
                assert "Walk" in (what, before)  # one thing in each room
                before = what
        gets[len(taken)] += 1
        drops[sum(what == "Drop" for _, what, _ in events)] += 1
    assert set(moves) == {3, 4, 5}
    assert min(moves.values()) > 0.2 * 3 * STORIES
    assert 3.5 < sum(number * count for number, count in gets.items()) / STORIES < 6  # released: 3 to 8, mostly 5
    assert 1 < sum(number * count for number, count in drops.items()) / STORIES < 3  # released: 0 to 6, mostly 2
    assert max(gets) <= 9
    assert max(drops) <= 6


def test_speakers_are_mixed(stories):
    pairs = [
        (one[0], other[0])
        for scene, steps in stories
        for events in [doings(scene, steps)]
        for one, other in pairwise(events)
    ]
    same = sum(one == other for one, other in pairs) / len(pairs)
    assert 0.3 < same < 0.48  # released: 37%


def test_nobody_is_in_the_way_of_another(stories):
    """Nobody changes the state or the place of a thing that another one has to do with (people and rooms apart), so
    the three worlds are three views of one."""
    opened = 0
    for scene, steps in stories:
        changed: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
        used: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
        for step in steps:
            changed[step.actor] |= {node for node, _ in (*step.states_added, *step.states_removed)}
            places = [edge for edge in (*step.edges_added, *step.edges_removed) if edge[1] in ("ON", "INSIDE")]
            changed[step.actor] |= {source for source, _, _ in places} - {scene.character.id}
            used[step.actor] |= {thing.id for thing in parse_action(step.action).things}
            opened += step.action.startswith("[Open]")
        rooms = {node.id for node in scene.nodes.values() if node.is_room}
        for one in range(3):
            for other in range(3):
                assert one == other or changed[one].isdisjoint(used[other] - rooms | changed[other])
    assert opened > STORIES / 2


def test_things_of_e2wms_stories_are_preferred(stories):
    names = Counter(
        scene.nodes[node].class_name
        for scene, steps in stories
        for _, what, node in doings(scene, steps)
        if what == "Grab"
    )
    known = (
        "hairbrush shampoo soap toothbrush toothpaste towel blanket clothes glasses clothes_hat pillow shoes keyboard "
        "laptop mouse paper pen pencil key phone wallet bottle pan pot bowl cup fork knife mug plate spoon"
    )
    assert sum(names[name] for name in known.split()) > 0.95 * names.total()


def test_a_story_needs_rooms(world):
    scene = load("procedural:1")
    bath = scene.by_class["bathroom"][0].id
    alone = {
        node.id: node
        for node in scene.nodes.values()
        if node.id in (bath, scene.character.id) or (node.id, "INSIDE", bath) in scene.edges
    }
    edges = [edge for edge in scene.edges if edge[0] in alone and edge[2] in alone and edge[0] != scene.character.id]
    hut = Scene("hut", alone, (*edges, (scene.character.id, "INSIDE", bath)))
    assert explore(world, hut, length=20, seed=0, style="track") == []


def counted(world, names: list[str], stories: int) -> Counter:
    """How many questions with how many items `tasks.household.counting` draws from episodes of style carry."""
    questions = []
    for seed in range(stories):
        scene = load(names[seed % len(names)])
        steps = tuple(explore(world, scene, length=20, seed=seed))
        mentioned = {thing.id for step in steps for thing in parse_action(step.action).things}
        mentioned |= {node for step in steps for a, _, b in (*step.edges_added, *step.edges_removed) for node in (a, b)}
        classes = {node: scene.nodes[node].class_name for node in mentioned}
        trajectory = Trajectory(str(seed), scene.name, "vh23", "random", seed, steps, classes)
        questions += counting.questions(trajectory, random.Random(seed))
    drawn = counting.draw(questions, size=1000, rng=random.Random(0))
    return Counter(len(question.items) for question in drawn)


@pytest.mark.parametrize("kind", ["procedural", "released"])
def test_carrying_gives_none_to_many_to_count(world, kind):
    """E2WM's questions: none 24%, one 51%, two 20%, three 5%, four and more 1%."""
    names = (
        [f"procedural:{seed}" for seed in range(8)] if kind == "procedural" else sorted(map(str, SCENES.glob("*.gz")))
    )
    if not names:
        pytest.skip(f"no scenes in {SCENES}")
    numbers = counted(world, names, 48)
    total = numbers.total()
    assert total > 150
    for number, share in ((0, 0.24), (1, 0.3), (2, 0.15), (3, 0.05), (4, 0.01)):
        assert numbers[number] >= share * total, numbers
