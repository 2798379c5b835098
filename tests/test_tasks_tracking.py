"""Tracking stories: labels by hand, properties of the state machine, and the two official forms."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2wm_jax.errors import InputError
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.household.qa import obj_move
from e2wm_jax.tasks.household.tracking import (
    OBJECTS,
    PEOPLE,
    ROOMS,
    Event,
    Story,
    StorySource,
    askable,
    obj_move_path,
    room_path,
    story_of,
    tell_story,
)
from e2wm_jax.worlds.household.changes import Step


def events(text: str) -> Story:
    """ "Anna move kitchen, Anna get cup" as a story."""
    kinds = {"move": "move", "get": "get", "drop": "drop"}
    parts = [part.split(" ", 2) for part in text.split(", ")]
    return tuple(Event(person, kinds[kind], what) for person, kind, what in parts)  # type: ignore[arg-type]


def test_path_runs_from_picking_up_to_putting_down() -> None:
    story = events(
        "Anna move kitchen, Anna get cup, John move hallway, Anna move bedroom, John get key, Anna move kitchen, "
        "Anna drop cup, Anna move bathroom, John move kitchen"
    )
    assert room_path(story, "cup") == ("kitchen", "bedroom", "kitchen")
    assert room_path(story, "key") == ("hallway", "kitchen")
    assert room_path(story, "pan") == ()


def test_only_clear_paths_are_asked_about() -> None:
    story = events(
        "Anna move kitchen, Anna get cup, Anna move bedroom, Anna get hat, Anna move kitchen, "
        "John move hallway, John get key, John move bathroom"
    )  # the cup is in the kitchen twice
    assert askable(story) == [("hat", ("bedroom", "kitchen")), ("key", ("hallway", "bathroom"))]
    assert askable(story[:-3]) == []  # two objects only


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_people_move_and_carry_as_people_can(seed: int) -> None:
    story = tell_story(random.Random(seed))
    people = {event.person for event in story}
    assert len(people) == 3
    assert people <= set(PEOPLE)
    taken = [event.what for event in story if event.kind == "get"]
    assert len(taken) == len(set(taken))
    for person in people:
        room, held, previous = None, set(), None
        own = [event for event in story if event.person == person]
        assert own[0].kind == "move"
        assert 3 <= sum(event.kind == "move" for event in own) <= 5
        for event in own:
            if event.kind == "move":
                assert event.what in ROOMS
                assert event.what != room
                room = event.what
            else:
                assert previous == "move"  # at most one thing is done in a room
                assert room is not None
                if event.kind == "get":
                    assert event.what in OBJECTS[room]
                    held.add(event.what)
                else:
                    held.remove(event.what)
            assert len(held) <= 2
            previous = event.kind


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_asked_paths_are_walked_by_one_person(seed: int) -> None:
    story = tell_story(random.Random(seed))
    for thing, path in askable(story):
        start = next(index for index, event in enumerate(story) if event.what == thing)
        person = story[start].person
        stops = [index for index, event in enumerate(story) if event.what == thing and event.kind == "drop"]
        carried = story[start : stops[0] if stops else None]
        rooms = [event.what for event in carried if event.person == person and event.kind == "move"]
        assert thing in OBJECTS[path[0]]
        assert list(path[1:]) == rooms
        assert 2 <= len(path) == len(set(path))


def test_obj_move_path_has_the_official_form() -> None:
    (example,) = obj_move_path(random.Random(0), size=1, seen=set())
    blocks = example.input.split("\n\n")
    assert len(blocks) == 3
    form = (
        r"(\w+ [a-z ]+ the [a-z ]+\.)( \w+ [a-z ]+ the [a-z ]+\.)+\n"
        r"Question: What is the order of the rooms where the \w+ appeared\?\nAnswer:{answer}"
    )
    for block in blocks[:2]:
        assert re.fullmatch(form.replace("{answer}", r" [a-z ]+(, [a-z ]+)+"), block)
    assert re.fullmatch(form.replace("{answer}", ""), blocks[2])
    assert set(example.ref.split(", ")) <= set(ROOMS)


def test_stories_are_never_told_twice() -> None:
    seen: set[Story] = set()
    obj_move_path(random.Random(0), size=20, seen=seen)
    assert len(seen) == 60
    first = set(seen)
    obj_move(random.Random(0), size=5, seen=seen)
    assert first < seen


def test_obj_move_asks_before_and_after_with_balanced_answers() -> None:
    examples = obj_move(random.Random(3), size=20, seen=set())
    asked = [re.findall(r"Question: Where was the \w+ (before|after) the", example.input) for example in examples]
    assert Counter(relations[-1] for relations in asked) == {"before": 10, "after": 10}
    assert all(set(relations[:2]) == {"before", "after"} for relations in asked)
    assert {example.answer_list for example in examples} == {ROOMS}
    numbers = Counter(example.answer for example in examples).values()
    assert max(numbers) - min(numbers) <= 1
    assert all(example.input.endswith("?\nAnswer:") for example in examples)


CLASSES = {0: "character", 1: "home_office", 2: "kitchen", 3: "bathroom", 4: "entrance_hall"}
CLASSES |= {10: "mouse", 11: "cup", 12: "cup", 13: "tooth_paste", 14: "food_kiwi"}


def step(actor: int, line: str, *added: tuple[int, str, int], ok: bool = True) -> Step:
    verb, node = line.split()
    return Step(f"[{verb}] <{CLASSES[int(node)]}> ({node})", ok=ok, edges_added=added, actor=actor)


def followed(*steps: Step) -> list[str]:
    """The story of an episode as "0 move kitchen"; people by their order of appearance."""
    trajectory = Trajectory("t", "s", "vh23", "random", 0, steps, CLASSES, search={"style": "track"})
    story = story_of(trajectory, random.Random(0))
    names = list(dict.fromkeys(event.person for event in story))
    assert set(names) <= set(PEOPLE)
    return [f"{names.index(event.person)} {event.kind} {event.what}" for event in story]


def test_an_episode_of_three_becomes_a_story() -> None:
    assert followed(
        step(2, "Walk 1"),
        step(2, "Walk 10"),  # in the same room: no event
        step(0, "Walk 2", (0, "INSIDE", 2)),
        step(2, "Grab 10", (0, "HOLDS_RH", 10)),
        step(0, "Walk 11"),
        step(0, "Grab 11"),
        step(2, "Walk 2"),
        step(0, "Walk 13", (0, "INSIDE", 3), (0, "CLOSE", 13)),  # to a thing in another room
        step(1, "Walk 3"),
        step(0, "Open 13"),
        step(1, "Grab 13"),
        step(1, "Walk 2", ok=False),
        step(0, "Drop 11"),
        step(2, "Release 10"),
        step(1, "Walk 3"),  # is there already
    ) == [
        "0 move home office",
        "1 move kitchen",
        "0 get mouse",
        "1 get cup",
        "0 move kitchen",
        "1 move bathroom",
        "2 move bathroom",
        "2 get tooth paste",
        "1 drop cup",
        "0 drop mouse",
    ]
    assert followed(step(0, "Walk 2"), step(0, "Grab 14")) == ["0 move kitchen", "0 get kiwi"]


@pytest.mark.parametrize(
    "steps",
    [
        (step(0, "Grab 11"), step(0, "Walk 2")),  # nobody knows where
        (step(0, "Walk 2"), step(0, "Grab 11"), step(0, "Grab 12")),  # two cups
        (step(0, "Walk 2"), step(0, "Grab 11"), step(0, "Walk 4")),  # a room that is not among the choices
    ],
)
def test_what_a_reader_could_not_follow_is_no_story(steps: tuple[Step, ...]) -> None:
    assert followed(*steps) == []


def test_a_fourth_person_is_refused() -> None:
    with pytest.raises(InputError, match=r"episode t: '\[Walk\] <kitchen> \(2\)' is done by person 3; known: 0, 1, 2"):
        followed(step(3, "Walk 2"))


def test_experienced_stories_come_before_those_made_up_and_each_once() -> None:
    own = [story for seed in range(9) if askable(story := tell_story(random.Random(seed)))]
    source = StorySource(random.Random(0), {own[0]}, [*own, own[1]])
    taken = [source.take(lambda _: True) for _ in range(len(own) + 3)]
    assert taken[: len(own) - 1] == own[1:]
    assert len(set(taken)) == len(taken)
    assert not set(taken[len(own) - 1 :]) & set(own)
    picky = StorySource(random.Random(0), set(), own[:])
    assert picky.take(lambda story: story == own[3]) == own[3]
    assert picky.experienced == [*own[:3], *own[4:]]
