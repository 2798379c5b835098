"""Script lines: parsing ``[WALK] <home_office> (319)`` and writing it back."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from e2wm_jax.errors import InputError
from e2wm_jax.worlds.household.rules import VERBS


class Thing(NamedTuple):
    """An object in a script line. Only the id selects it; the name is for the reader."""

    name: str
    id: int

    def __str__(self) -> str:
        return f"<{self.name}> ({self.id})"


@dataclass(frozen=True)
class Action:
    """One script line: a verb of `rules.VERBS` in CamelCase and as many things as it takes."""

    verb: str
    things: tuple[Thing, ...] = ()

    def __str__(self) -> str:
        return format_action(self)


def format_action(action: Action) -> str:
    """``[PutBack] <cup> (12) <table> (40)``."""
    return " ".join([f"[{action.verb}]", *(str(thing) for thing in action.things)])


_LINE = re.compile(r"\[\s*(\w+)\s*\]\s*((?:<[^<>]+>\s*\([^()]+\)\s*)*)(?:\[\d+\])?")
_THING = re.compile(r"<([^<>]+)>\s*\(([^()]+)\)")
_NUMBER = re.compile(r"\s*(?:\d+\.)?(-?\d{1,1000})\s*")  # RobotHow writes (scene.id); int() takes 4,300 digits


def parse_action(line: str, where: str = "") -> Action:
    """Read one script line; verbs in any case, names with blanks or underscores, ids as ``(319)`` or ``(1.319)``.

    Args:
        line: the script line.
        where: put in front of the message of an error, e.g. ``plan.txt:3``.

    Raises:
        InputError: if the line has another form, an unknown verb or the wrong number of objects.
    """

    def wrong(reason: str) -> InputError:
        return InputError(f"{where + ': ' if where else ''}{line.strip()[:200]!r}: {reason}")

    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise wrong("not a script line; expected e.g. [Walk] <home_office> (319)")
    verb = VERBS.get(match[1].upper())
    if verb is None:
        raise wrong(f"unknown verb {match[1][:40]!r}; known: {', '.join(known.name for known in VERBS.values())}")
    things = []
    for name, number in _THING.findall(match[2]):
        digits = _NUMBER.fullmatch(number)
        if digits is None:
            raise wrong(f"({number[:40]}) is not a node id; expected (319) or (1.319)")
        things.append(Thing(name.strip().lower().replace(" ", "_"), int(digits[1])))
    if len(things) != verb.arity:
        raise wrong(f"{verb.name} takes {verb.arity} objects, found {len(things)}")
    return Action(verb.name, tuple(things))


def parse_script(lines: list[str], source: str) -> list[Action]:
    """The actions of a program; lines without a bracket (RobotHow's title and description) and # comments are skipped.

    Raises:
        InputError: naming ``source:line``, also when there is no action at all.
    """
    actions = [
        parse_action(line, f"{source}:{number}")
        for number, line in enumerate(lines, start=1)
        if "[" in line and not line.lstrip().startswith("#")
    ]
    if not actions:
        raise InputError(f"{source}: no script line found; expected lines such as [Walk] <home_office> (319)")
    return actions
