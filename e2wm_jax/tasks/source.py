"""Where an example of plan generation comes from: the world in which its answer can be carried out."""

from dataclasses import dataclass, field
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.worlds.household.actions import parse_action
from e2wm_jax.worlds.household.facts import is_fact

# Beside a task file, one line per example. Not "*.jsonl": that would look like general text to read.
SUFFIX = ".sources"


@dataclass(frozen=True)
class Source:
    """The episode behind an example: its world, what was to be achieved, and the objects that it was about."""

    trajectory: str
    scene: str  # what `scenes.load` takes
    dialect: str
    goal: tuple[str, ...]  # facts between classes; empty where not known
    things: tuple[int, ...] = ()  # node ids, in the order in which the episode's lines name them
    where: str = field(default="", compare=False, repr=False)  # file and line that say so, for errors

    def to_json(self) -> dict[str, Any]:
        """The source as plain JSON."""
        return {
            "trajectory": self.trajectory,
            "scene": self.scene,
            "dialect": self.dialect,
            "goal": list(self.goal),
            "things": list(self.things),
        }


def source_of(trajectory: Trajectory) -> Source:
    """What plan generation has to know of an episode later.

    Raises:
        InputError: if a line of the episode cannot be read.
    """
    things = [thing.id for step in trajectory.steps for thing in parse_action(step.action).things]
    return Source(
        trajectory.id,
        trajectory.scene,
        trajectory.dialect,
        trajectory.goal,
        things=tuple(dict.fromkeys(things)),
        where=f"episode {trajectory.id}",
    )


def from_json(record: dict[str, Any], where: str) -> Source:
    """Inverse of `Source.to_json`; ``where`` ("file:line") goes into the error.

    Raises:
        InputError: if a field is missing or malformed.
    """
    try:
        goal, things = record["goal"], record["things"]
        if not isinstance(goal, list) or not isinstance(things, list):
            raise TypeError("goal and things must be lists")
        if wrong := [fact for fact in goal if not isinstance(fact, str) or not is_fact(fact)]:
            raise ValueError(f"{wrong[0]!r} is no fact such as 'light || ON'")
        return Source(
            trajectory=str(record["trajectory"]),
            scene=str(record["scene"]),
            dialect=str(record["dialect"]),
            goal=tuple(map(str, goal)),
            things=tuple(map(int, things)),
            where=where,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: not the source of an example ({error}); make the file with e2wm tasks") from error
