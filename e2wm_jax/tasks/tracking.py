"""Object tracking: stories of three people who carry things through a house, with the rooms each thing has been in.

Nothing here comes from the simulator; the labels hold because the stories are written by the state machine that
knows them. A person enters a room, then does at most one thing there: takes something that belongs to the room
(two hands, and nothing is taken twice in a story), puts something down, or neither, all equally likely.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from e2wm_jax.tasks.example import Generation
from e2wm_jax.tasks.sentences import listed

PEOPLE = listed("Jessica Smith Miller Samantha Brown Anna Anderson Davis John Sarah Wilson Mary Taylor Emily")
ROOMS = ("dining room", "home office", "bathroom", "bedroom", "kitchen", "hallway")  # the order of the QA choices
PHRASES = {
    "move": ("went to", "moved to", "travelled to", "journeyed to", "entered", "walked into"),
    "get": ("picked up", "grabbed", "took", "got"),
    "drop": ("put down", "dropped", "left"),
}
_CROCKERY = listed("bowl cup fork knife mug plate spoon")
OBJECTS = {
    "bathroom": listed("hairbrush shampoo soap toothbrush toothpaste towel"),
    "bedroom": listed("blanket clothes glasses hat pillow shoes"),
    "home office": listed("keyboard laptop mouse paper pen pencil"),
    "hallway": ("key", "phone", "wallet"),
    "kitchen": ("bottle", "pan", "pot", *_CROCKERY),
    "dining room": _CROCKERY,
}
_MOVES = (3, 4, 5)
_HANDS = 2
_OBJECTS_TAKEN = 3


@dataclass(frozen=True)
class Event:
    """One sentence of a story: somebody enters a room, or takes or leaves an object."""

    person: str
    kind: Literal["move", "get", "drop"]
    what: str  # the room or the object


Story = tuple[Event, ...]


def tell_story(rng: random.Random) -> Story:
    """Three people's doings, each in order; who is next is drawn among those who still have something to do."""
    people = rng.sample(PEOPLE, 3)
    taken: set[str] = set()
    doings = [_doings(person, taken, rng) for person in people]
    story: list[Event] = []
    while remaining := [events for events in doings if events]:
        story.append(rng.choice(remaining).pop(0))
    return tuple(story)


def _doings(person: str, taken: set[str], rng: random.Random) -> list[Event]:
    """One person's events; adds what they take to `taken`."""
    events: list[Event] = []
    held: list[str] = []
    room = ""
    for _ in range(rng.choice(_MOVES)):
        room = rng.choice([other for other in ROOMS if other != room])
        events.append(Event(person, "move", room))
        free = [thing for thing in OBJECTS[room] if thing not in taken]
        options = ["nothing", *(["get"] if free and len(held) < _HANDS else []), *(["drop"] if held else [])]
        match rng.choice(options):
            case "get":
                held.append(rng.choice(free))
                taken.add(held[-1])
                events.append(Event(person, "get", held[-1]))
            case "drop":
                events.append(Event(person, "drop", held.pop(rng.randrange(len(held)))))
    return events


def room_path(story: Sequence[Event], thing: str) -> tuple[str, ...]:
    """The rooms where `thing` was while in somebody's hands, from where it was picked up to where it was left."""
    rooms: list[str] = []
    place: dict[str, str] = {}
    carrier = None
    for event in story:
        if event.kind == "move":
            place[event.person] = event.what
            if event.person == carrier:
                rooms.append(event.what)
        elif event.what == thing:
            carrier = event.person if event.kind == "get" else None
            if carrier is not None:
                rooms.append(place[carrier])
    return tuple(rooms)


def askable(story: Sequence[Event]) -> list[tuple[str, tuple[str, ...]]]:
    """(object, path) for every object seen in two rooms or more, none of them twice: others would be ambiguous.

    Nothing is asked where fewer than three objects are taken: too little to confuse.
    """
    paths = [(event.what, room_path(story, event.what)) for event in story if event.kind == "get"]
    if len(paths) < _OBJECTS_TAKEN:
        return []
    return [(thing, path) for thing, path in paths if len(path) >= 2 and len(set(path)) == len(path)]


def story_text(story: Sequence[Event], rng: random.Random) -> str:
    """The story in the official words, one sentence for each event."""
    return " ".join(f"{event.person} {rng.choice(PHRASES[event.kind])} the {event.what}." for event in story)


def stories(rng: random.Random, seen: set[Story]) -> Iterator[tuple[Story, str]]:
    """Endlessly many askable stories with their texts, none of which is in `seen`, where they are then entered."""
    while True:
        story = tell_story(rng)
        if story not in seen and askable(story):
            seen.add(story)
            yield story, story_text(story, rng)


def obj_move_path(rng: random.Random, *, size: int, seen: set[Story]) -> list[Generation]:
    """Two-shot path tracking; every block tells a story of its own.

    Args:
        rng: source of the stories.
        size: number of examples.
        seen: stories that must not be used, from other sets; extended by those used here.
    """
    source = stories(rng, seen)
    examples = []
    for _ in range(size):
        blocks = []
        for _ in range(3):
            story, text = next(source)
            thing, path = rng.choice(askable(story))
            question = f"Question: What is the order of the rooms where the {thing} appeared?"
            blocks.append((f"{text}\n{question}\nAnswer:", ", ".join(path)))
        *solved, (prompt, answer) = blocks
        examples.append(Generation("\n\n".join([*(f"{q} {a}" for q, a in solved), prompt]), answer))
    return examples
