"""Rows -> shuffled batches, by grain.

A batch is a function of (data, seed, step) alone, so the position in the data is the step itself: a resumed run asks
for the step it stopped at.  Batches never cross epochs, and each epoch has its own order.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from e2wm_jax.data.batch import Batch, Row, collate, padded_length


@dataclass(frozen=True)
class StepBatch:
    """What one optimizer step reads."""

    batch: Batch  # leaves have leading axes [accumulate, batch_size]
    examples: list[int]  # indices of its rows in the data, in order
    tokens: int  # real tokens, prompts included


@dataclass(frozen=True)
class Loader:
    """Shuffled batches of `rows`, `batch_size * accumulate` per optimizer step."""

    rows: Sequence[Row]
    batch_size: int
    accumulate: int
    max_length: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch may have fewer rows."""
        return math.ceil(len(self.rows) / (self.batch_size * self.accumulate))

    @cached_property
    def most_targets(self) -> int:
        """Predicted tokens per row of every batch, padding included."""
        return padded_length(max(row.num_targets for row in self.rows), self.max_length)

    def batches(self, first_step: int, last_step: int) -> Iterator[StepBatch]:
        """Batches of steps first_step .. last_step, counted from 1, prepared ahead in threads."""
        import grain

        epochs = math.ceil(last_step / self.steps_per_epoch)
        order = grain.MapDataset.range(len(self.rows)).seed(self.seed).shuffle()
        batched = order.batch(self.batch_size * self.accumulate, batch_fn=list).repeat(epochs)
        steps = batched.slice(slice(first_step - 1, last_step)).map(self._collate)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))

    def _collate(self, indices: Sequence[int]) -> StepBatch:
        indices = [int(index) for index in indices]
        rows = [self.rows[index] for index in indices]
        length = padded_length(max(len(row.ids) for row in rows), self.max_length)
        # One number of targets for the whole run: a second changing shape would multiply the compilations.
        flat = collate(
            rows,
            length=length,
            num_targets=self.most_targets,
            batch_size=self.batch_size * self.accumulate,
        )
        shape = (self.accumulate, self.batch_size)
        batch = Batch(*(np.reshape(leaf, (*shape, *leaf.shape[1:])) for leaf in flat))
        return StepBatch(batch, indices, sum(len(row.ids) for row in rows))


def sorted_batches(rows: Sequence[Row], batch_size: int, max_length: int) -> Iterator[tuple[Batch, int]]:
    """Batches of similar length, shortest first; each with its number of real rows."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    for start in range(0, len(ordered), batch_size):
        chunk = ordered[start : start + batch_size]
        length = padded_length(len(chunk[-1].ids), max_length)
        num_targets = padded_length(max(row.num_targets for row in chunk), length)
        yield collate(chunk, length=length, num_targets=num_targets, batch_size=batch_size), len(chunk)
