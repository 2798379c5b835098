"""What all episodes together say about each activity: what its goals are, and which items it is about.

Questions with several answers to choose from need it, so that a wrong answer is wrong by every episode, those held
out, those learned from and those that failed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.household.sentences import ROOMS, words
from e2wm_jax.tasks.household.story import BODY
from e2wm_jax.worlds.household.actions import parse_action
from e2wm_jax.worlds.household.facts import split_fact, without_closeness

_RELATION = 3  # parts of a fact between two classes


@dataclass(frozen=True)
class Activity:
    """One task name."""

    goals: frozenset[frozenset[str]]  # of each episode, closeness left out
    items: frozenset[str]  # class names that some episode is about


def activities(trajectories: Iterable[Trajectory]) -> dict[str, Activity]:
    """Task name -> what its episodes say, in order of first appearance."""
    goals: dict[str, set[frozenset[str]]] = {}
    items: dict[str, set[str]] = {}
    for trajectory in trajectories:
        if trajectory.task is not None:
            goals.setdefault(trajectory.task, set()).add(without_closeness(trajectory.goal))
            items.setdefault(trajectory.task, set()).update(_mentioned(trajectory))
    return {name: Activity(frozenset(goals[name]), frozenset(filter(is_item, items[name]))) for name in goals}


def is_item(class_name: str) -> bool:
    """Whether one would call it an item of an activity: no room, nobody and no part of the body."""
    return class_name not in ROOMS and class_name not in BODY and class_name != "character"


def _mentioned(trajectory: Trajectory) -> set[str]:
    """The classes in items, goal and plan."""
    facts = [split_fact(fact) for fact in trajectory.goal]
    things = [thing for step in trajectory.steps for thing in parse_action(step.action).things]
    return {
        *trajectory.items,
        *(fact[0] for fact in facts),
        *(fact[2] for fact in facts if len(fact) == _RELATION),
        *(trajectory.classes.get(thing.id, thing.name) for thing in things),
    }


def unrelated(task: str, known: Mapping[str, Activity]) -> list[str]:
    """The items of other activities that have nothing to do with this one, sorted.

    No episode of the task is about them, and they share no word with its name or its items: to `put groceries in
    fridge`, neither `food_carrot` nor `fridge_magnet` is unrelated.
    """
    own = {word for name in (task, *known[task].items) for word in words(name).lower().split()}
    everything = {item for activity in known.values() for item in activity.items}
    return sorted(item for item in everything if own.isdisjoint(words(item).split()))
