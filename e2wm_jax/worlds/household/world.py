"""What a world offers. The planner, the explorer and `collect` know nothing else about the engine below.

States are values: `World.step` returns a new one and the old one stays as it was, so a search may keep as many as
it likes. Facts are those of `facts`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from e2wm_jax.worlds.household.actions import Action
from e2wm_jax.worlds.household.changes import Edge, NodeState, Step
from e2wm_jax.worlds.household.homes.scenes import Scene

State = TypeVar("State")


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


def run(world: World[State], state: State, actions: Iterable[Action]) -> Iterator[tuple[State, Step]]:
    """Execute the actions in order; a line that fails leaves the state as it is and the program goes on."""
    for action in actions:
        state, step = world.step(state, action)
        yield state, step


def replay(world: World[State], scene: Scene, actions: Iterable[Action]) -> list[Step]:
    """The steps of a program from a scene's initial state."""
    return [step for _, step in run(world, world.initial(scene), actions)]
