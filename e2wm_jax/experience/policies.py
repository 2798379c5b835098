"""Who acts in the household, and the one way from what was done to the record of it.

A policy has settings of its own and depends on them, its arguments and the seed alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from e2wm_jax.experience.explore.explorer import Style, explore
from e2wm_jax.experience.search.choose import Method, search
from e2wm_jax.experience.search.planner import Plan, Reward
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.worlds.household.actions import parse_action
from e2wm_jax.worlds.household.changes import Step
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.world import World, run


class Policy(Protocol):
    """What plays an episode."""

    @property
    def name(self) -> str:
        """As records say it."""
        ...

    def play(self, world: World[Any], scene: Scene, goal: Goal | None, *, seed: int, name: str) -> Trajectory:
        """The episode ``name`` from the scene's initial state; equal arguments, equal records."""
        ...


@dataclass(frozen=True)
class Planner:
    """Searches for a plan of the goal, then carries it out."""

    method: Method = "mcts"
    simulations: int = 20_000
    max_depth: int = 25
    reward: Reward = "official"
    shorten: bool = True

    @property
    def name(self) -> str:
        return self.method

    @property
    def options(self) -> dict[str, Any]:
        """What every search takes."""
        return {name: value for name, value in asdict(self).items() if name != "method"}

    def play(self, world: World[Any], scene: Scene, goal: Goal | None, *, seed: int, name: str) -> Trajectory:
        assert goal is not None, "a planner needs a goal"
        return self.carry_out(self.plan(world, scene, goal, seed=seed), world, scene, goal, seed=seed, name=name)

    def plan(self, world: World[Any], scene: Scene, goal: Goal, *, seed: int) -> Plan:
        """What the search finds."""
        return search(world, scene, goal, method=self.method, seed=seed, **self.options)

    def carry_out(
        self,
        plan: Plan,
        world: World[Any],
        scene: Scene,
        goal: Goal,
        *,
        seed: int,
        name: str,
        skipped: Mapping[str, str] | None = None,
    ) -> Trajectory:
        """The record of a plan. ``skipped``: RobotHow programs that the scene did not suit, and why."""
        start = world.initial(scene)
        played = list(run(world, start, plan.actions))
        steps = [step for _, step in played]
        found = {
            "method": self.method,
            "simulations": plan.simulations,
            "nodes": plan.nodes,
            "moves": len(plan.moves),
            "proved": plan.proved,
            "reward": self.reward,
            **({"skipped": dict(skipped)} if skipped else {}),
        }
        return Trajectory(
            id=name,
            scene=goal.scene,
            dialect=world.dialect,
            policy=self.name,
            seed=seed,
            steps=tuple(steps),
            classes=classes_of(scene, steps),
            total_reward=plan.total_reward,
            task=goal.task,
            goal=goal.facts,
            achieved=tuple(sorted(world.gained_test(scene, goal.facts)(played[-1][0] if played else start))),
            items=goal.items,
            conditions=goal.conditions,
            search=found,
        )


@dataclass(frozen=True)
class Explorer:
    """Acts at random, in one of the styles of `explore.explorer`."""

    length: int = 20
    style: Style = "carry"

    @property
    def name(self) -> str:
        return "random"

    def play(self, world: World[Any], scene: Scene, goal: Goal | None, *, seed: int, name: str) -> Trajectory:
        del goal
        steps = explore(world, scene, length=self.length, seed=seed, style=self.style)
        return Trajectory(
            id=name,
            scene=scene.name,
            dialect=world.dialect,
            policy=self.name,
            seed=seed,
            steps=tuple(steps),
            classes=classes_of(scene, steps),
            search={"style": self.style},
        )


def classes_of(scene: Scene, steps: Sequence[Step]) -> dict[int, str]:
    """The class of every node that the steps name or change."""
    nodes = {scene.character.id}
    for step in steps:
        nodes.update(thing.id for thing in parse_action(step.action).things)
        for source, _, target in (*step.edges_added, *step.edges_removed):
            nodes.update((source, target))
        nodes.update(node for node, _ in (*step.states_added, *step.states_removed))
    return {node: scene.nodes[node].class_name for node in sorted(nodes)}
