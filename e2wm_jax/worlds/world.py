"""What everything above a world needs of it.

A state is a value: it is kept, compared, pickled and sent to workers, and `step` never changes the one it was given.
What an action is, which facts there are and what they mean is the world's own; outside its folder they are text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

S = TypeVar("S")


@dataclass(frozen=True)
class Outcome:
    """What became of one action."""

    ok: bool  # whether it could be done; one that could not leaves the state as it was
    said: str = ""  # what the world says of it, such as why not
    reward: float = 0.0
    end: Literal["", "done", "out of time"] = ""  # "out of time" is no end of the task: what would follow still counts
    ticks: int = 1  # of the world's clock; an action that takes k of them is discounted k times
    change: Any = None  # what changed, in the world's own form


@dataclass(frozen=True)
class Aim:
    """The task of a scenario."""

    task: str  # in words
    reached: Callable[[Any], float]  # the share of it that holds in a state, in [0, 1]


class World(Protocol[S]):
    """A world of text: actions are said, facts and observations are read."""

    name: str
    version: int  # of its rules and of what its records hold

    def initial(self, scenario: str, seed: int = 0) -> S:
        """The state in which nothing has happened yet. ``seed`` decides what the scenario leaves open.

        Raises:
            InputError: if there is no such scenario.
        """
        ...

    def step(self, state: S, action: str) -> tuple[S, Outcome]:
        """The state after an action, and what became of it.

        Raises:
            InputError: for text that is no action of this world.
        """
        ...

    def options(self, state: S) -> tuple[str, ...]:
        """Every action that can be done now, in a fixed order."""
        ...

    def facts(self, state: S) -> frozenset[str]:
        """All that holds, whoever can see it."""
        ...

    def observe(self, state: S) -> str:
        """What the agent is told: never more than it can perceive."""
        ...

    def aim(self, scenario: str) -> Aim | None:
        """The task of a scenario; None where it has none."""
        ...

    def expert(self, state: S) -> str | None:
        """An action that an expert would take; None where the world has none."""
        ...
