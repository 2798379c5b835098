"""Rows -> batches, by grain.

A batch is a function of (data, seed, step) alone, so the position in the data is the step itself: a resumed run asks
for the step it stopped at.  Batches never cross epochs.  Rows of files have an order of their own in each epoch; rows
of online tasks come in order, new ones in every epoch, at places among the files' that the seed decides.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from e2wm_jax.data.batch import Batch, Row, coarse_length, collate, padded_length
from e2wm_jax.data.lengths import MOST, few_lengths, longest_of, shapes_of
from e2wm_jax.data.online.rows import OnlineRows, example_name
from e2wm_jax.data.pack import collate_packed, first_fit

_FILES = 0  # the part of the data that are the rows of files; online tasks are 1, 2, ...


@dataclass(frozen=True)
class StepBatch:
    """What one optimizer step reads."""

    batch: Batch  # leaves have leading axes [accumulate, rows of a pass]: this host's
    examples: list[int | str]  # its rows on all hosts: indices in `rows` of files, names "online:count/17"
    tokens: int  # real tokens of this host, prompts included


@dataclass(frozen=True)
class Loader:
    """Batches of `batch_size * accumulate` examples per optimizer step, from files, online tasks or both."""

    rows: Sequence[Row]
    batch_size: int
    accumulate: int
    max_length: int
    seed: int
    online: Sequence[OnlineRows] = ()
    pack: bool = False  # several examples per row: fewer rows, the same loss
    parts: int = 1  # into which devices split the rows of each pass ...
    mine: Sequence[int] | None = None  # ... and those that this host reads, ascending; None: all
    apart: bool = False  # whether some host does not read all of them
    steps: int = 1000  # of the run: the longer it is, the more lengths of rows are worth a compilation ...
    most_lengths: int = MOST  # ... but never more

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: if hosts cannot share the batches.
        """
        if self.batch_size % self.parts:
            raise ValueError(f"{self.parts=} must divide {self.batch_size=}")
        if self.pack and self.online and self.apart:
            raise ValueError("packing online rows needs their lengths on every host; leave pack out")

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch may have fewer rows."""
        return math.ceil(sum(self._sizes) / self._examples_per_step)

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(tokens, predicted tokens) that the rows of batches of files are padded to, ascending; none where rows are
        packed or made, whose lengths nobody knows before."""
        if self.pack or self.online:
            return ()
        longest = longest_of([len(row.ids) for row in self.rows], self._examples_per_step, self.steps)
        return shapes_of(self.rows, few_lengths(longest, self.max_length, most=self.most_lengths))

    def batches(self, first_step: int, last_step: int) -> Iterator[StepBatch]:
        """Batches of steps first_step .. last_step, counted from 1, prepared ahead in a thread.

        Raises:
            InputError, WorkerDiedError: see `OnlineRows`.
        """
        import grain

        steps = grain.MapDataset.range(first_step, last_step + 1).map(self.step)
        iterator = iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
        try:
            yield from iterator
        finally:
            iterator.close()

    def step(self, step: int) -> StepBatch:
        """The batch of one step, counted from 1."""
        drawn = self._drawn(step)
        bins = [[place] for place in range(len(drawn))]
        if self.online and self.apart:
            # What the other hosts read is not known here, and shapes must be equal: those that fit anything.
            length = num_targets = self.max_length
        else:
            rows = [self._row(*source) for source in drawn]
            if self.pack:
                bins = first_fit([len(row.ids) for row in rows], self.max_length)
            length, num_targets = self._shape([[rows[place] for place in places] for places in bins])
        width = self._rows_per_pass(len(bins))
        share, own = width // self.parts, range(self.parts) if self.mine is None else self.mine
        mine = [places for index, places in enumerate(bins) if index % width // share in own]
        here = [[self._row(*drawn[place]) for place in places] for places in mine]
        shape = (self.accumulate, share * len(own))
        flat = self._collate(here, length=length, num_targets=num_targets, batch_size=math.prod(shape))
        return StepBatch(
            Batch(*(np.reshape(leaf, (*shape, *leaf.shape[1:])) for leaf in flat)),
            [self._name(*source) for source in drawn],
            sum(len(row.ids) for rows in here for row in rows),
        )

    @property
    def _examples_per_step(self) -> int:
        return self.batch_size * self.accumulate

    @cached_property
    def _sizes(self) -> list[int]:
        """Rows per epoch: of the files, then of each online task."""
        return [len(self.rows), *(online.task.items_per_epoch for online in self.online)]

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """For each place of an epoch: the part of the data that is read there, and how many of that part come before.

        The parts are mixed in the same way in every epoch, so that the second is known without going through them all.
        """
        parts = np.repeat(np.arange(len(self._sizes)), self._sizes)
        if self.online:
            np.random.default_rng(self.seed).shuffle(parts)
        ranks = np.zeros_like(parts)
        for part, size in enumerate(self._sizes):
            ranks[parts == part] = np.arange(size)
        return parts, ranks

    @cached_property
    def _order(self) -> Any:
        """Index i is what the files give as their i-th row, counted over all epochs."""
        import grain

        return grain.MapDataset.range(len(self.rows)).seed(self.seed).shuffle()

    def _drawn(self, step: int) -> list[tuple[int, int]]:
        """(part, number of the row in it) of all examples of a step, on all hosts."""
        epoch, step_of_epoch = divmod(int(step) - 1, self.steps_per_epoch)
        start = step_of_epoch * self._examples_per_step
        parts, ranks = (places[start : start + self._examples_per_step].tolist() for places in self._places)
        numbers = (epoch * self._sizes[part] + rank for part, rank in zip(parts, ranks, strict=True))
        return [
            (part, int(self._order[number]) if part == _FILES else number)
            for part, number in zip(parts, numbers, strict=True)
        ]

    def _row(self, part: int, number: int) -> Row:
        return self.rows[number] if part == _FILES else self.online[part - 1][number]

    def _name(self, part: int, number: int) -> int | str:
        return number if part == _FILES else example_name(self.online[part - 1].task, number)

    def _shape(self, bins: Sequence[Sequence[Row]]) -> tuple[int, int]:
        """(tokens, predicted tokens) per row of the batch."""
        longest = max(sum(len(row.ids) for row in rows) for rows in bins)
        if self.shapes:
            return next(shape for shape in self.shapes if shape[0] >= longest)
        length = padded_length(longest, self.max_length)
        return length, coarse_length(max(sum(row.num_targets for row in rows) for rows in bins), length)

    def _rows_per_pass(self, bins: int) -> int:
        if not self.pack:
            return self.batch_size
        fewest = padded_length(math.ceil(bins / self.accumulate), self.batch_size, least=1)
        return math.ceil(fewest / self.parts) * self.parts

    def _collate(self, bins: Sequence[Sequence[Row]], *, length: int, num_targets: int, batch_size: int) -> Batch:
        if self.pack:
            return collate_packed(bins, length=length, num_targets=num_targets, batch_size=batch_size)
        rows = [row for rows in bins for row in rows]
        return collate(rows, length=length, num_targets=num_targets, batch_size=batch_size)


def sorted_shapes(rows: Sequence[Row], batch_size: int, max_length: int) -> tuple[tuple[int, int], ...]:
    """(tokens, predicted tokens) that `sorted_batches` pads to."""
    lengths = sorted(len(row.ids) for row in rows)
    longest = Counter(lengths[min(start + batch_size, len(rows)) - 1] for start in range(0, len(rows), batch_size))
    return shapes_of(rows, few_lengths(longest, max_length))


def sorted_batches(
    rows: Sequence[Row], batch_size: int, max_length: int, shapes: Sequence[tuple[int, int]] = ()
) -> Iterator[tuple[Batch, int]]:
    """Batches of similar length, shortest first; each with its number of real rows.

    Args:
        shapes: `sorted_shapes` of more rows than these; default: of these.
    """
    ordered = sorted(rows, key=lambda row: len(row.ids))
    shapes = shapes or (sorted_shapes(rows, batch_size, max_length) if rows else ())
    for start in range(0, len(ordered), batch_size):
        chunk = ordered[start : start + batch_size]
        length, num_targets = next(shape for shape in shapes if shape[0] >= len(chunk[-1].ids))
        yield collate(chunk, length=length, num_targets=num_targets, batch_size=batch_size), len(chunk)
