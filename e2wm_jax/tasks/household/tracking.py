"""Object tracking: stories of three people who carry things through a house, with the rooms each thing has been in.

Stories are experienced (`story_of`: an episode of three people in one world) or made up (`tell_story`). In one that is
made up, a person enters a room, then does at most one thing there: takes something that belongs to the room (two
hands, and nothing is taken twice in a story), puts something down, or neither, all equally likely.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from e2wm_jax.errors import InputError
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.example import Generation
from e2wm_jax.tasks.household.sentences import ROOMS as ROOM_CLASSES
from e2wm_jax.tasks.household.sentences import listed, succeeded, words
from e2wm_jax.tasks.household.story import noun
from e2wm_jax.worlds.household.actions import Action, parse_action
from e2wm_jax.worlds.household.changes import Step

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
STORIES = 3  # to an example: two solved ones and the one asked about
_MOVES = (3, 4, 5)
_HANDS = 2
_OBJECTS_TAKEN = 3
_KINDS: dict[str, Literal["move", "get", "drop"]] = {
    "Walk": "move",
    "Run": "move",
    "Grab": "get",
    "Drop": "drop",
    "Release": "drop",
}


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


def is_tracked(trajectory: Trajectory) -> bool:
    """Whether this is an episode of several people, to be told as a tracking story and as nothing else."""
    return trajectory.search.get("style") == "track"


def story_of(trajectory: Trajectory, rng: random.Random) -> Story:
    """What the people of an episode did, under names drawn for them.

    Walking into a room is a move (walking to a thing in another room too), grabbing is getting, dropping and releasing
    are dropping; all else is no event. The empty story comes from an episode that a reader could not follow, or not
    answer about: somebody takes or leaves a thing before having entered a room, two things of one name are handled, or
    a room is not one of `ROOMS`.

    Raises:
        InputError: if somebody acts who is not one of three, or a line cannot be read.
    """
    names = rng.sample(PEOPLE, 3)
    story: list[Event] = []
    place: dict[int, str] = {}
    handled: dict[str, int] = {}
    for step in filter(succeeded, trajectory.steps):
        if step.actor not in range(len(names)):
            raise InputError(f"episode {trajectory.id}: {step.action!r} is done by person {step.actor}; known: 0, 1, 2")
        action = parse_action(step.action, where=f"episode {trajectory.id}")
        kind = _KINDS.get(action.verb)
        if kind == "move":
            room = _room_entered(action, step, trajectory.classes)
            if room is not None and room not in ROOMS:
                return ()
            if room is not None and room != place.get(step.actor):
                place[step.actor] = room
                story.append(Event(names[step.actor], "move", room))
        elif kind is not None:
            thing = action.things[0]
            name = noun(trajectory.classes.get(thing.id, thing.name))
            if step.actor not in place or handled.setdefault(name, thing.id) != thing.id:
                return ()
            story.append(Event(names[step.actor], kind, name))
    return tuple(story)


def _room_entered(action: Action, step: Step, classes: Mapping[int, str]) -> str | None:
    """The room that a walk leads to, as far as the step tells: where somebody newly is, or the room walked to."""
    found = [
        classes[place]
        for who, relation, place in step.edges_added
        if relation == "INSIDE" and classes[who] == "character"
    ]
    walked_to = classes.get(action.things[0].id, action.things[0].name)
    found += [walked_to] if walked_to in ROOM_CLASSES or words(walked_to) in ROOMS else []
    return words(found[0]) if found else None


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


@dataclass(frozen=True)
class StorySource:
    """Stories each of which is used once: those experienced while they last, then endlessly many made up."""

    rng: random.Random
    seen: set[Story]  # stories that must not be used; those taken are entered here
    experienced: list[Story]  # those taken are removed

    def take(self, fits: Callable[[Story], bool]) -> Story:
        """The first new story that can be asked about and fits."""
        for index, story in enumerate(self.experienced):
            if story not in self.seen and askable(story) and fits(story):
                self.seen.add(self.experienced.pop(index))
                return story
        while True:
            story = tell_story(self.rng)
            if story not in self.seen and askable(story) and fits(story):
                self.seen.add(story)
                return story


def obj_move_path(
    rng: random.Random, *, size: int, seen: set[Story], experienced: Iterable[Story] = ()
) -> list[Generation]:
    """Two-shot path tracking; every block tells a story of its own.

    Args:
        rng: source of the stories that are made up.
        size: number of examples.
        seen: stories that must not be used, from other sets; extended by those used here.
        experienced: stories to use before any is made up.
    """
    source = StorySource(rng, seen, list(experienced))
    examples = []
    for _ in range(size):
        blocks = []
        for _ in range(STORIES):
            story = source.take(lambda _: True)
            thing, path = rng.choice(askable(story))
            question = f"Question: What is the order of the rooms where the {thing} appeared?"
            blocks.append((f"{story_text(story, rng)}\n{question}\nAnswer:", ", ".join(path)))
        *solved, (prompt, answer) = blocks
        examples.append(Generation("\n\n".join([*(f"{q} {a}" for q, a in solved), prompt]), answer))
    return examples
