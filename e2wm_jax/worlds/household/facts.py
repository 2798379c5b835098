"""Facts between classes, as goals, conditions and sets of tasks say them.

``"computer || ON"`` is a node's state and ``"cup || ON || table"`` an edge; CLOSE is symmetric and its two classes are
written in alphabetical order.
"""

from collections.abc import Collection

from e2wm_jax.worlds.household.graph import RELATIONS, STATES

SEPARATOR = " || "


def state_fact(class_name: str, state: str) -> str:
    """``"computer || ON"``."""
    return class_name + SEPARATOR + state


def edge_fact(source: str, relation: str, target: str) -> str:
    """``"cup || ON || table"``; the classes of a CLOSE are sorted."""
    if relation == "CLOSE" and target < source:
        source, target = target, source
    return SEPARATOR.join((source, relation, target))


def is_fact(text: str) -> bool:
    """Whether a text says a fact, whatever the classes: ``"class || STATE"`` or ``"class || RELATION || class"``."""
    first, *rest = split_fact(text)
    names = [first, *rest[1:]]
    return len(rest) in (1, 2) and rest[0] in (STATES, RELATIONS)[len(rest) - 1] and all(map(str.strip, names))


def split_fact(fact: str) -> tuple[str, ...]:
    """(class, state) or (class, relation, class)."""
    return tuple(fact.split(SEPARATOR))


def without_closeness(goal: Collection[str]) -> frozenset[str]:
    """The goal without what the character must be CLOSE to, unless it asks for nothing else: see
    `tasks.household.plan.select`."""
    return frozenset(fact for fact in goal if split_fact(fact)[1] != "CLOSE") or frozenset(goal)
