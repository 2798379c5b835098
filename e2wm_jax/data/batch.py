"""Token rows and the batches the model reads.  Letters: B rows, T tokens, M predicted tokens.

numpy only: loader workers import this module and must not start an accelerator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax inside a jitted function


class Batch(NamedTuple):
    """Rows of equal length with the tokens to predict; a pytree.

    `targets` are indices into the row (the token at `targets` is predicted from the one before it), so that output
    scores, the largest array of a small model, are computed for predicted tokens only.
    """

    ids: Array  # [B, T] int32
    positions: Array  # [B, T] int32
    segments: Array  # [B, T] int32, see models.decoder.visibility; -1 is padding
    targets: Array  # [B, M] int32, at least 1
    weights: Array  # [B, M] float32, 0 where there is no target


@dataclass(frozen=True)
class Row:
    """One tokenized sequence: predict the tokens from index `first_target` on, or the `chosen`, each with `weight`."""

    ids: np.ndarray  # [T] int32
    first_target: int  # at least 1
    weight: float = 1.0
    chosen: np.ndarray | None = None  # [M] int32, increasing, the first is `first_target`; None: all from there on
    cut: int = 0  # tokens that a limit has taken away at the end

    @property
    def targets(self) -> np.ndarray:
        """Indices [M] of the tokens to predict."""
        return np.arange(self.first_target, len(self.ids)) if self.chosen is None else self.chosen

    @property
    def num_targets(self) -> int:
        return len(self.ids) - self.first_target if self.chosen is None else len(self.chosen)


def padded_length(length: int, limit: int, *, least: int = 16) -> int:
    """The next length of the form 2^n or 3 * 2^n (at least `least`, a power of two), but not above `limit`.

    A step is compiled once per length; these lengths keep both their number and the padding (under a third) small.
    """
    power = least
    while power < length:
        if power * 3 // 2 >= length:
            return min(power * 3 // 2, limit)
        power *= 2
    return min(power, limit)


def coarse_length(length: int, limit: int) -> int:
    """The next power of four from 16 on, but not above `limit`: for a second dimension of changing size, because a step
    is compiled once per pair."""
    power = 16
    while power < length:
        power *= 4
    return min(power, limit)


def collate(rows: Sequence[Row], *, length: int, num_targets: int, batch_size: int) -> Batch:
    """Pad `rows` to [batch_size, length] and [batch_size, num_targets]; rows beyond their number are all padding.

    Padding has position 0: a model may look at the longest position of a batch (`models.families.rope.rotary`), or have
    a table that ends before `length`.
    """
    shape, target_shape = (batch_size, length), (batch_size, num_targets)
    ids, positions, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    targets, weights = np.ones(target_shape, np.int32), np.zeros(target_shape, np.float32)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = row.ids
        positions[index, : len(row.ids)] = np.arange(len(row.ids))
        segments[index, : len(row.ids)] = 0
        targets[index, : row.num_targets] = row.targets
        weights[index, : row.num_targets] = row.weight
    return Batch(ids, positions, segments, targets, weights)
