"""What a world offers. The planner, the explorer and `collect` know nothing else about the engine below.

States are values: `World.step` returns a new one and the old one stays as it was, so a search may keep as many as
it likes. Facts are class-level strings: ``"computer || ON"`` (a node's state) and ``"cup || ON || table"`` (an edge);
CLOSE is symmetric and its two classes are written in alphabetical order.
"""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from e2wm_jax.simulate.actions import Action
from e2wm_jax.simulate.scenes import RELATIONS, STATES, Scene
from e2wm_jax.simulate.trajectory import Edge, NodeState, Step

State = TypeVar("State")
SEPARATOR = " || "


class World(Protocol[State]):
    """A transition system over scenes."""

    dialect: str

    def initial(self, scene: Scene) -> State:
        """The state in which nothing has happened yet."""
        ...

    def step(self, state: State, action: Action) -> tuple[State, Step]:
        """Execute one script line. A line that fails gives the same state and a step with ``ok`` false."""
        ...

    def advance(self, state: State, action: Action) -> State | None:
        """`step` without the record, for search: the next state, or None where the line fails or has no effect
        other than a message."""
        ...

    def legal_actions(self, state: State, verbs: Iterable[str], nodes: Iterable[int]) -> list[Action]:
        """Every line of these verbs over these nodes for which `advance` gives a state."""
        ...

    def node_states(self, state: State, node: int) -> frozenset[str]:
        """The names of the states a node has now."""
        ...

    def targets(self, state: State, node: int, relation: str) -> tuple[int, ...]:
        """The nodes that the edges of this relation lead to, from this node."""
        ...

    def sources(self, state: State, node: int, relation: str) -> frozenset[int]:
        """The nodes from which edges of this relation lead to this node."""
        ...

    def edges(self, state: State) -> set[Edge]:
        """All edges of the current graph."""
        ...

    def states(self, state: State) -> set[NodeState]:
        """All states of all nodes."""
        ...

    def gained_test(self, scene: Scene, facts: tuple[str, ...]) -> Callable[[State], frozenset[str]]:
        """A function that tells which of ``facts`` hold in a state by a change since the beginning: a node that gained
        the state, an edge that is not in the scene."""
        ...


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
