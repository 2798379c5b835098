"""Counting: stories from random exploration, and how many things lie somewhere at their end.

What is counted: the objects that the person put ON the asked surface during the story and that still are ON it at
the end, by the edge changes of the steps. What lay there before does not count, nor does the person. Where a reader
could disagree with the simulator nothing is asked (`questions`). Two things of one class count as two and are
listed as the story calls them: "the first cup and the second cup".
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.example import Generation
from e2wm_jax.tasks.household.sentences import listed, succeeded
from e2wm_jax.tasks.household.story import PEOPLE, Deed, deeds, final_names, mentioned, noun, tell
from e2wm_jax.worlds.household.actions import Thing

# Furniture on which one would look for things; VirtualHome itself lets anything be put on anything.
SURFACES = frozenset(
    listed(
        "bathroom_cabinet bathroom_counter bed bench bookshelf cabinet chair closet coffee_table counter couch desk "
        "dining_table dishwasher dresser filing_cabinet floor freezer fridge kitchen_cabinet kitchen_counter "
        "kitchen_table love_seat loveseat nightstand oven piano_bench shelf sink sofa stove table tvstand "
        "tv_stand wall_shelf wallshelf washing_machine bathtub closetdrawer cupboard toilet"
    )
)
# Steps of a story, drawn from a triangle with its top at _USUAL: as many words as in the official stories.
_SHORTEST, _USUAL, _LONGEST = 3, 21, 44
# How often each number of items is the answer, in the official files.
OFFICIAL_TRAIN = {0: 0.235, 1: 0.513, 2: 0.196, 3: 0.046, 4: 0.006, 5: 0.004}
OFFICIAL_EVAL = {0: 42 / 194, 1: 100 / 194, 2: 32 / 194, 3: 17 / 194, 4: 3 / 194}
EVEN = dict.fromkeys(range(9), 1 / 9)
_GONE = frozenset({"Eat", "Drink", "Pour"})  # after these an object may be no item any more
_HEADER = (
    "Given a sequence of actions in a house, and a question about what items are located in a specific place. "
    "Answer the number of items and list the items.\n\n"
)


@dataclass(frozen=True)
class CountQuestion:
    """A story not yet put into words, the surface asked about, and the items on it in the order they were put there."""

    source: str  # id of the trajectory
    deeds: tuple[Deed, ...]
    surface: Thing
    items: tuple[int, ...]

    @property
    def script(self) -> tuple[str, ...]:
        """The lines of the story: equal scripts are one story, however they are told."""
        return tuple(deed.line for deed in self.deeds)

    @property
    def outcome(self) -> tuple[str, int, tuple[int, ...]]:
        """Questions of one episode with equal outcomes tell much the same story."""
        return self.source, self.surface.id, self.items


@dataclass(frozen=True)
class CountStory:
    """A told story with its question and answer."""

    source: str
    question: str  # "Anna was at home. ... How many items are there on the desk?"
    number: int
    sentence: str  # "There is one item on the desk. It is the book."


def items_on(story: Iterable[Deed], surface: int) -> tuple[int, ...]:
    """The nodes put ON `surface` in the story and not taken away again, in the order of putting."""
    items: list[int] = []
    for deed in story:
        items = [item for item in items if (item, surface) not in deed.taken_off]
        # The first object of the line is what is put; sitting down adds an edge of the character's own.
        if deed.things and (deed.things[0].id, surface) in deed.put_on:
            items.append(deed.things[0].id)
    return tuple(items)


def questions(trajectory: Trajectory, rng: random.Random) -> list[CountQuestion]:
    """Questions about parts of the episode, every pair of (part, surface) once.

    A part starts with empty hands and has 3 to 44 steps. A surface is asked about only if it is furniture, is the
    only mentioned thing of its name, is never carried, nothing was put in it, and no item on it was eaten, drunk,
    poured or had something put on it itself; the floor only if nothing was dropped.
    """
    done = deeds(trajectory)
    return [
        CountQuestion(trajectory.id, part, surface, items_on(part, surface.id))
        for start, stop in sorted(_parts(trajectory, rng))
        for part in [done[start:stop]]
        for surface in _surfaces(part)
    ]


def _parts(trajectory: Trajectory, rng: random.Random) -> set[tuple[int, int]]:
    """(start, stop) pairs of random parts, about one for every two steps."""
    steps = [step for step in trajectory.steps if succeeded(step)]
    held: set[int] = set()
    starts = []
    for index, step in enumerate(steps):
        if not held and len(steps) - index >= _SHORTEST:
            starts.append(index)
        held |= {target for _, relation, target in step.edges_added if relation.startswith("HOLDS")}
        held -= {target for _, relation, target in step.edges_removed if relation.startswith("HOLDS")}
    parts = set()
    for _ in range((len(steps) + 1) // 2 if starts else 0):
        start = rng.choice(starts)
        length = round(rng.triangular(_SHORTEST, _LONGEST, _USUAL))
        parts.add((start, min(len(steps), start + length)))
    return parts


def _surfaces(story: Sequence[Deed]) -> list[Thing]:
    """The mentioned surfaces about which there can be no dispute; see `questions`."""
    carried = {deed.things[0].id for deed in story if deed.verb == "Grab"}
    filled = {deed.things[1].id for deed in story if deed.verb in ("PutIn", "Pour")}
    loaded = {deed.things[1].id for deed in story if len(deed.things) == 2}
    gone = {deed.things[0].id for deed in story if deed.verb in _GONE}
    dropped = any(deed.verb in ("Drop", "Release") for deed in story)
    things = {thing.id: thing for deed in story for thing in deed.things}
    return [
        things[ids[0]]
        for name, ids in mentioned(story).items()
        if len(ids) == 1
        and things[ids[0]].name in SURFACES
        and ids[0] not in carried | filled
        and not (name == "floor" and dropped)
        and not (loaded | gone).intersection(items_on(story, ids[0]))
    ]


def draw(
    candidates: Sequence[CountQuestion],
    *,
    size: int,
    rng: random.Random,
    shares: Mapping[int, float] = OFFICIAL_TRAIN,
) -> list[CountQuestion]:
    """Up to `size` questions; in every beginning of the list the numbers of items are in the proportions of `shares`.

    No two of them have the same story, nor the same items on the same surface in the same episode. Where a number is
    used up the others go on without it; where only one is left the drawing ends, so that it never becomes the answer
    to nearly everything.

    Args:
        candidates: questions, several of which may be about one story.
        size: the most questions wanted.
        rng: decides among equals.
        shares: number of items -> how often it should be the answer; questions about other numbers are left out.
    """
    by_number: dict[int, list[CountQuestion]] = {}
    used: set[object] = set()
    # Rare numbers choose first: a story in which three things were put somewhere is also one about an empty table.
    for question in sorted(rng.sample(list(candidates), len(candidates)), key=lambda question: -len(question.items)):
        if len(question.items) in shares and used.isdisjoint({question.script, question.outcome}):
            used |= {question.script, question.outcome}
            by_number.setdefault(len(question.items), []).append(question)
    # The turn of each number's first, second, ... question if all have enough of them (Sainte-Lague's method).
    turns = {number: [(i + 0.5) / shares[number] for i in range(len(group))] for number, group in by_number.items()}
    end = sorted((group[-1] for group in turns.values()), reverse=True)[:2][-1] if turns else 0.0
    ranked = [(turn, -number, i) for number, group in turns.items() for i, turn in enumerate(group) if turn <= end]
    return [by_number[-negative][i] for _, negative, i in sorted(ranked)[:size]]


def put_into_words(question: CountQuestion, rng: random.Random) -> CountStory:
    """Tell the story of a random person, with the question and the answer in the official form."""
    story = tell(question.deeds, rng.choice(PEOPLE), rng)
    names = final_names(question.deeds)
    surface = noun(question.surface.name)
    return CountStory(
        source=question.source,
        question=f"{story} How many items are there on the {surface}?",
        number=len(question.items),
        sentence=answer(surface, [names[item] for item in question.items]),
    )


def answer(surface: str, items: Sequence[str]) -> str:
    """The official answer: ``There are 2 items on the desk. They are the cup and the book.``"""
    match [f"the {item}" for item in items]:
        case []:
            return f"There is no item on the {surface}."
        case [item]:
            return f"There is one item on the {surface}. It is {item}."
        case [first, second]:
            return f"There are 2 items on the {surface}. They are {first} and {second}."
        case [*front, last]:
            return f"There are {len(items)} items on the {surface}. They are {', '.join(front)}, and {last}."
    raise AssertionError("unreachable: a list is empty or not")


def count(stories: Sequence[CountStory], *, size: int, rng: random.Random) -> list[Generation]:
    """Three-shot counting with lists, in the official form; examples are told from other episodes than the target."""
    examples = []
    targets = list(stories[:size])
    rng.shuffle(targets)
    for target in targets:
        others = [story for story in stories if story.source != target.source]
        if len(others) < 3:
            continue
        blocks = [f"Q: {story.question}\nA: {story.sentence}" for story in rng.sample(others, 3)]
        examples.append(Generation(_HEADER + "\n\n".join([*blocks, f"Q: {target.question}\nA:"]), target.sentence))
    return examples
