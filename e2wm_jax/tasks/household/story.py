"""From the steps of an episode to a little story, with names, pronouns and ordinals that a reader can resolve.

"Anna was at home. She walked to the kitchen and grabbed a cup. After finding the desk, she put the cup on it." is told
clause by clause, in the order of the deeds: a thing is "a cup" when it first appears and "the cup" from then on; a
second one of the same name is "another cup", then "the second cup".
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.household.sentences import ROOMS, listed, succeeded, words
from e2wm_jax.tasks.household.verbs import ENGLISH, GERUNDS
from e2wm_jax.worlds.household.actions import Thing, parse_action
from e2wm_jax.worlds.household.changes import Step

_SHE = listed("Alice Carla Clara Diana Elena Grace Hannah Helen Ines Julia Laura Lena Maria Nina Olga Paula Rosa Sofia")
_HE = listed("Adam Alan Boris Carlos David Felix George Henry Ivan Leo Mark Martin Omar Oscar Paul Peter Simon Victor")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
BODY = {"hands_both": "hands", "arms_both": "arms", "legs_both": "legs", "feet_both": "feet", "eyes_both": "eyes"}
BODY |= {part: part for part in ("face", "hair", "head", "teeth")}
_MASS = frozenset(  # last words of nouns without a plural
    listed(
        "alcohol bacon beer bread butter cheese coffee conditioner cream detergent dirt dough food fruit glue homework "
        "ice jam jelly juice mail meat milk money mouthwash music oil paper pasta polish rice salt shampoo soap "
        "solution tape tea thread water wine"
    )
)
_APART = {  # class names that VirtualHome writes in one word, or wrong
    "ceilinglamp": "ceiling lamp",
    "closetdrawer": "closet drawer",
    "coffe_maker": "coffee maker",
    "cpuscreen": "computer screen",
    "creditcard": "credit card",
    "food_food": "food",
    "photoframe": "photo frame",
    "powersocket": "power socket",
    "stovefan": "stove fan",
    "tablelamp": "table lamp",
    "tvstand": "TV stand",
    "walllamp": "wall lamp",
    "wallshelf": "wall shelf",
}
_LINKS = ("Then", "Next,", "After that,", "Afterwards,")
# Deeds to a sentence, uniform; how a story is told is drawn once, so that some are terse and some flow.
_PACES = ((1, 1, 1, 2), *[(1, 2, 3, 4)] * 2, *[(2, 3, 4, 4)] * 5)
_AT_HOME_AND, _AT_HOME_WHEN = 0.3, 0.15  # of the first sentences
_SHE_THEN, _LINKED = 0.2, 0.35  # of the sentences after the first
_BEFORE, _AFTER = 0.2, 0.15  # of those with two deeds or more
_PARTICLE = re.compile(r"(\w+) (\{0\}) (\w+)")
_NEVER_IT = frozenset({"character", *BODY, *ROOMS})


@dataclass(frozen=True)
class Person:
    """Whom a story is about."""

    name: str
    subject: str  # "she"
    possessive: str  # "her"
    reflexive: str  # "herself"


PEOPLE = (
    *(Person(name, "she", "her", "herself") for name in _SHE),
    *(Person(name, "he", "his", "himself") for name in _HE),
)


@cache
def noun(name: str) -> str:
    """A class name as a noun: "food_apple" -> "apple", "coffee_table" -> "coffee table", "tvstand" -> "TV stand"."""
    return _APART.get(name) or words(re.sub(r"^(food|clothes|instrument)_", "", name))


@dataclass(frozen=True)
class Deed:
    """A successful step, read once: what was done to which things, and the ON edges that came and went."""

    line: str
    verb: str  # CamelCase
    things: tuple[Thing, ...]  # by the class names of the world; "put back" also names where the thing went
    put_on: tuple[tuple[int, int], ...]  # (object, support)
    taken_off: tuple[tuple[int, int], ...]


def deeds(trajectory: Trajectory) -> tuple[Deed, ...]:
    """The successful steps of an episode.

    Raises:
        InputError: for a line that is not one of the world's.
    """
    return tuple(_deed(step, trajectory.classes) for step in trajectory.steps if succeeded(step))


def _deed(step: Step, classes: dict[int, str]) -> Deed:
    action = parse_action(step.action)
    things = [Thing(classes.get(thing.id, thing.name), thing.id) for thing in action.things]
    put_on = tuple((source, target) for source, relation, target in step.edges_added if relation == "ON")
    taken_off = tuple((source, target) for source, relation, target in step.edges_removed if relation == "ON")
    if action.verb == "PutObjBack":
        places = [target for source, target in put_on if source == things[0].id]
        things += [Thing(classes[place], place) for place in places[:1]]
    return Deed(step.action, action.verb, tuple(things), put_on, taken_off)


@dataclass
class _Narrator:
    """What has been mentioned so far: nouns to node ids in order of appearance."""

    person: Person
    rng: random.Random
    total: dict[str, list[int]]  # every node that the story will mention, by noun
    known: set[int] = field(default_factory=set)

    def refer(self, thing: Thing) -> str:
        """A noun phrase for the thing, which is known from then on."""
        if thing.name == "character":
            return self.person.reflexive
        if thing.name in BODY:
            return f"{self.person.possessive} {BODY[thing.name]}"
        name = noun(thing.name)
        index = self.total[name].index(thing.id)
        if thing.id in self.known or (thing.name in ROOMS and index == 0):
            self.known.add(thing.id)
            # "the cup" is clear until a second cup turns up.
            alone = not any(node in self.known for node in self.total[name][1:])
            return f"the {name}" if index == 0 and alone else f"the {_ordinal(index)} {name}"
        self.known.add(thing.id)
        return _introduction(name, index)

    def clause(self, deed: Deed, it: int | None) -> str:
        """The deed in the past tense without its subject; the node `it` becomes "it"."""
        phrases = [
            "it" if thing.id == it and not _plural(noun(thing.name)) else self.refer(thing) for thing in deed.things
        ]
        pattern = self.rng.choice(ENGLISH[deed.verb.upper()].past)
        if phrases and phrases[0] != "it":
            pattern = _earlier_particle(pattern)
        text = pattern.format(*phrases)
        return f"{text} on {phrases[1]}" if deed.verb == "PutObjBack" and len(phrases) == 2 else text


def _earlier_particle(pattern: str) -> str:
    """ "picked {0} up" -> "picked up {0}", which reads better unless the object is a pronoun."""
    match = _PARTICLE.fullmatch(pattern)
    return f"{match[1]} {match[3]} {match[2]}" if match else pattern


def _ordinal(index: int) -> str:
    return _ORDINALS[index] if index < len(_ORDINALS) else f"number {index + 1}"


def _plural(name: str) -> bool:
    head = re.split(" for | of ", name)[0]  # "basket for clothes"
    return head.endswith("s") and not head.endswith(("ss", "us", "is"))


def _introduction(name: str, index: int) -> str:
    if index >= 2 and index < len(_ORDINALS):
        return f"a {_ordinal(index)} {name}"
    if _plural(name) or name.split()[-1] in _MASS:
        return f"some {name}" if index == 0 else f"some other {name}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}" if index == 0 else f"another {name}"


def mentioned(story: Sequence[Deed]) -> dict[str, list[int]]:
    """Nouns of the story and the node ids that bear them, in order of appearance."""
    ids: dict[str, list[int]] = {}
    for deed in story:
        for thing in deed.things:
            same = ids.setdefault(noun(thing.name), [])
            if thing.id not in same:
                same.append(thing.id)
    return ids


def final_names(story: Sequence[Deed]) -> dict[int, str]:
    """What the end of the story calls each thing, without article: "cup", or "first cup" and "second cup"."""
    return {
        node: name if len(ids) == 1 else f"{_ordinal(index)} {name}"
        for name, ids in mentioned(story).items()
        for index, node in enumerate(ids)
    }


def tell(story: Sequence[Deed], person: Person, rng: random.Random) -> str:
    """The deeds as a text about `person`.

    Args:
        story: what was done, in order.
        person: name and pronouns.
        rng: decides wording and sentence lengths.
    """
    narrator = _Narrator(person, rng, mentioned(story))
    pace = rng.choice(_PACES)
    sentences: list[str] = []
    rest = list(story)
    while rest:
        length = rng.choice(pace)
        told, rest = rest[:length], rest[length:]
        clauses = []
        it: int | None = None
        for deed in told:
            clauses.append(narrator.clause(deed, it))
            # "it" must point to the one thing of the clause before, within the sentence.
            only = deed.things[0] if len(deed.things) == 1 else None
            it = only.id if only and only.name not in _NEVER_IT else None
        sentence = _sentence(clauses, person, rng, last=not rest) if sentences else _beginning(clauses, person, rng)
        sentences.append(sentence)
    return " ".join(sentences)


def _beginning(clauses: Sequence[str], person: Person, rng: random.Random) -> str:
    """ "Anna was at home and took a cup." or, mostly, two sentences."""
    chance = rng.random()
    if chance < _AT_HOME_AND:
        return f"{person.name} was at home and {_enumeration(clauses)}."
    if chance < _AT_HOME_AND + _AT_HOME_WHEN:
        return f"{person.name} was at home when {person.subject} {_enumeration(clauses)}."
    return f"{person.name} was at home. {person.subject.capitalize()} {_enumeration(clauses)}."


def _enumeration(clauses: Sequence[str]) -> str:
    *front, last = clauses
    separator = ", and " if len(front) > 1 else " and "
    return f"{', '.join(front)}{separator}{last}" if front else last


def _sentence(clauses: Sequence[str], person: Person, rng: random.Random, *, last: bool) -> str:
    """One sentence: "After walking to a desk, she took a cup, put it on the desk, and opened it." """
    subject = person.name if rng.random() < 0.1 else person.subject
    opening = ""
    if last and rng.random() < _LINKED:
        opening = "Finally, "
    elif rng.random() < _LINKED:
        opening = rng.choice(_LINKS) + " "
    elif rng.random() < _SHE_THEN:
        subject += " then"
    parts = list(clauses)
    if not opening and " " not in subject and len(parts) > 1 and rng.random() < _AFTER:
        opening = f"After {_gerund(parts.pop(0))}, "
    ending = f" before {_gerund(parts.pop())}" if len(parts) > 1 and rng.random() < _BEFORE else ""
    text = f"{opening}{subject} {_enumeration(parts)}{ending}."
    return text[0].upper() + text[1:]


def _gerund(clause: str) -> str:
    verb, _, objects = clause.partition(" ")
    return f"{GERUNDS[verb]} {objects}".rstrip()
