"""From script lines and graph facts to plain sentences, by E2WM's rules."""

from collections.abc import Iterable

from e2wm_jax.errors import InputError
from e2wm_jax.tasks.household.verbs import ENGLISH
from e2wm_jax.worlds.household.actions import parse_action
from e2wm_jax.worlds.household.changes import Step


def listed(names: str) -> tuple[str, ...]:
    """The words of a text; so that long lists of names fit on few lines."""
    return tuple(names.split())


# Room classes of VirtualHome's scenes and of RobotHow; anything else that contains something is a container.
ROOMS = frozenset(
    listed("bathroom bedroom corridor dining_room entrance_hall hallway home_office kitchen livingroom living_room")
)

_STATES = {
    "ON": "is on",
    "OFF": "is off",
    "OPEN": "is open",
    "CLOSED": "is closed",
    "PLUGGED_IN": "is plugged",
    "PLUGGED_OUT": "is unplugged",
    "DIRTY": "is dirty",
    "SITTING": "is sitting",
    "LYING": "is lying",
    "CLEAN": None,  # true of nearly every object, and never mentioned in the official texts
}
_RELATIONS = {
    "ON": "is on",
    "CLOSE": "is close to",
    "FACING": "is facing",
    "HOLDS_RH": "is holding",
    "HOLDS_LH": "is holding",
    "BETWEEN": "is between",
    "SITTING": "is sitting on",
}


def words(name: str) -> str:
    """A class name as text: "home_office" -> "home office"."""
    return name.replace("_", " ")


def action_sentence(line: str) -> str:
    """One plan sentence: ``[PutBack] <book> (1) <desk> (2)`` -> "Put book on desk."

    Raises:
        InputError: for an unreadable line, an unknown verb or a wrong number of objects.
    """
    action = parse_action(line)
    return ENGLISH[action.verb.upper()].plan.format(*(words(thing.name) for thing in action.things)) + "."


def succeeded(step: Step) -> bool:
    """Whether the step did what it says.

    VirtualHome lets some lines through whose check failed (a failing PutObjBack); those report a message and change
    nothing, and do not count.
    """
    changes = step.edges_added or step.edges_removed or step.states_added or step.states_removed
    return step.ok and bool(changes or not step.messages)


def plan_text(steps: Iterable[Step]) -> str:
    """The succeeded steps as sentences joined by one blank."""
    return " ".join(action_sentence(step.action) for step in steps if succeeded(step))


def condition_sentence(condition: str, rooms: frozenset[str] = ROOMS) -> str:
    """One fact as a sentence, "" for facts that go without saying.

    "book || INSIDE || filing_cabinet" -> "The book is inside the filing cabinet."; inside a room it is "in the".

    Raises:
        InputError: if the fact has another form or an unknown state or relation.
    """
    parts = [part.strip() for part in condition.split("||")]
    if len(parts) == 2 and parts[1] in _STATES:
        predicate = _STATES[parts[1]]
        return f"The {words(parts[0])} {predicate}." if predicate else ""
    if len(parts) == 3 and parts[1] == "INSIDE":
        preposition = "in" if parts[2] in rooms else "inside"
        return f"The {words(parts[0])} is {preposition} the {words(parts[2])}."
    if len(parts) == 3 and parts[1] in _RELATIONS:
        return f"The {words(parts[0])} {_RELATIONS[parts[1]]} the {words(parts[2])}."
    raise InputError(f"{condition!r} is not a condition; expected 'class || STATE' or 'class || RELATION || class'")


def condition_sentences(conditions: Iterable[str], rooms: frozenset[str] = ROOMS) -> list[str]:
    """All facts as sentences: first who is in which room, then states, then what is inside what."""
    ordered = sorted(conditions, key=lambda condition: _rank(condition, rooms))
    return [sentence for condition in ordered if (sentence := condition_sentence(condition, rooms))]


def _rank(condition: str, rooms: frozenset[str]) -> int:
    parts = [part.strip() for part in condition.split("||")]
    if len(parts) == 2:
        return 1
    return 0 if parts[-1] in rooms else 2
