"""When a run ends before its last step: by the loss on held-out rows, or by the clock."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Validated(NamedTuple):
    """The held-out loss at a checkpoint."""

    step: int
    nats: float


def lowest(validated: Sequence[Validated]) -> Validated:
    """The first of the lowest; NaN is none of them."""
    return min(validated, key=lambda one: (math.isnan(one.nats), one.nats))


def exhausted(validated: Sequence[Validated], patience: int | None) -> bool:
    """Whether the last `patience` checkpoints have all been no better than the best one before them."""
    if patience is None or not validated:
        return False
    return len(validated) - 1 - validated.index(lowest(validated)) >= patience


@dataclass(frozen=True)
class Clock:
    """The time that a run may take."""

    minutes: float | None
    started: float

    @property
    def is_over(self) -> bool:
        return self.minutes is not None and time.monotonic() - self.started >= 60 * self.minutes
