"""What an episode has changed by its end, put together from what its steps report; the scene is not needed."""

from collections.abc import Collection

from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.worlds.household.changes import Edge, NodeState
from e2wm_jax.worlds.household.facts import edge_fact, split_fact, state_fact


def final_change(trajectory: Trajectory) -> frozenset[str]:
    """The facts, between classes, that hold at the end and did not hold at the beginning.

    The first step that mentions an edge or a state tells whether it was there before: what is taken away was, what is
    added was not.
    """
    initially: dict[Edge | NodeState, bool] = {}
    finally_: dict[Edge | NodeState, bool] = {}
    for step in trajectory.steps:
        removed: tuple[Edge | NodeState, ...] = (*step.edges_removed, *step.states_removed)
        added: tuple[Edge | NodeState, ...] = (*step.edges_added, *step.states_added)
        for changes, holds in ((removed, False), (added, True)):
            for change in changes:
                initially.setdefault(change, not holds)
                finally_[change] = holds
    return frozenset(_fact(change, trajectory.classes) for change in finally_ if finally_[change] > initially[change])


def _fact(change: Edge | NodeState, classes: dict[int, str]) -> str:
    if len(change) == 2:
        return state_fact(classes[change[0]], change[1])
    return edge_fact(classes[change[0]], change[1], classes[change[2]])


def without_closeness(goal: Collection[str]) -> frozenset[str]:
    """The goal without what the character must be CLOSE to, unless it asks for nothing else; see `plan.select`."""
    return frozenset(fact for fact in goal if split_fact(fact)[1] != "CLOSE") or frozenset(goal)
