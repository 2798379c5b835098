"""What an episode leaves behind: the record that `e2wm collect` writes and `e2wm tasks` reads."""

from dataclasses import dataclass, field
from reprlib import repr as shortly
from typing import Any

from e2wm_jax.worlds.household.changes import Edge, NodeState, Step
from e2wm_jax.worlds.household.facts import edge_fact, state_fact

FORMAT = 2  # of records; those of format 1 name neither format nor world, and are of the household


@dataclass(frozen=True)
class Trajectory:
    """One episode in one world.

    ``scene`` is what `scenes.load` takes ("robothow:file1003_2", "procedural:7" or a path); ``classes`` names every
    node id that the steps or their deltas mention, so that text can be made without opening the scene again.
    """

    id: str
    scene: str
    dialect: str
    policy: str  # the search ("mcts", "best-first", "mcts-batched") or "random"
    seed: int
    steps: tuple[Step, ...]
    classes: dict[int, str]
    total_reward: float = 0.0
    task: str | None = None  # "write an email"
    goal: tuple[str, ...] = ()  # "character || SITTING", "character || INSIDE || home_office"
    achieved: tuple[str, ...] = ()  # the part of the goal that holds at the end
    items: tuple[str, ...] = ()  # class names that the task is about, rooms included
    conditions: tuple[str, ...] = ()  # "book || INSIDE || filing_cabinet", "filing_cabinet || CLOSED", initial state
    search: dict[str, Any] = field(default_factory=dict)  # simulations, tree size; never times (same seed, same bytes)
    world: str = "household"  # `worlds.choose`

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON; steps use the golden files' short keys."""
        return {
            "format": FORMAT,
            "world": self.world,
            "id": self.id,
            "scene": self.scene,
            "dialect": self.dialect,
            "policy": self.policy,
            "seed": self.seed,
            "task": self.task,
            "goal": list(self.goal),
            "achieved": list(self.achieved),
            "items": list(self.items),
            "conditions": list(self.conditions),
            "return": self.total_reward,
            "search": self.search,
            "classes": {str(node): name for node, name in sorted(self.classes.items())},
            "steps": [step.to_json() for step in self.steps],
        }

    @staticmethod
    def from_json(record: dict[str, Any]) -> "Trajectory":
        """Inverse of `to_json`, and of format 1. Raises KeyError, TypeError or ValueError where a field is missing or
        malformed, or the format a later one."""
        if record.get("format", 1) not in (1, FORMAT):
            raise ValueError(f"format {shortly(record['format'])}, this version reads 1 and {FORMAT}")
        return Trajectory(
            id=record["id"],
            scene=record["scene"],
            dialect=record["dialect"],
            policy=record["policy"],
            seed=int(record["seed"]),
            task=record["task"],
            goal=tuple(record["goal"]),
            achieved=tuple(record["achieved"]),
            items=tuple(record["items"]),
            conditions=tuple(record["conditions"]),
            total_reward=float(record["return"]),
            search=dict(record["search"]),
            classes={int(node): name for node, name in record["classes"].items()},
            steps=tuple(Step.from_json(step) for step in record["steps"]),
            world=str(record.get("world", "household")),
        )


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
