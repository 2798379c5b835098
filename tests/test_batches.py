"""Rows to batches: padding by hand, and every example once an epoch in an order that a resumed run continues."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from e2wm_jax.data.batch import Batch, Row, collate, padded_length
from e2wm_jax.data.loader import Loader, StepBatch, sorted_batches


def test_padded_lengths_are_few_and_near() -> None:
    lengths = [padded_length(n, 10**6) for n in range(1, 5000)]
    assert all(padded >= n for n, padded in enumerate(lengths, start=1))
    assert all(a <= b for a, b in pairwise(lengths))
    assert all((padded - n) * 3 < padded for n, padded in enumerate(lengths, start=1) if n > 16)
    assert sorted(set(lengths))[:6] == [16, 24, 32, 48, 64, 96]
    assert len(set(lengths)) == 18
    assert all(padded_length(n, 800) == min(padded, 800) for n, padded in enumerate(lengths[:800], start=1))


def test_collate_by_hand() -> None:
    rows = [Row(np.array([5, 6, 7], np.int32), 2, 0.5), Row(np.array([8, 9], np.int32), 1)]
    batch = collate(rows, length=4, num_targets=3, batch_size=3)
    assert batch.ids.tolist() == [[5, 6, 7, 0], [8, 9, 0, 0], [0, 0, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 0, -1], [0, 0, -1, -1], [-1, -1, -1, -1]]
    assert batch.positions.tolist() == [[0, 1, 2, 3]] * 3
    assert batch.targets.tolist() == [[2, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert batch.weights.tolist() == [[0.5, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert [leaf.dtype for leaf in batch] == [np.int32] * 4 + [np.float32]


def numbered_rows(count: int) -> list[Row]:
    """Row i has 3 + i % 40 tokens, all of them i."""
    return [Row(np.full(3 + i % 40, i, np.int32), 1 + i % 2) for i in range(count)]


def loader(count: int = 23, **changes: Any) -> Loader:
    return Loader(numbered_rows(count), **{"batch_size": 4, "accumulate": 1, "max_length": 64, "seed": 0, **changes})


def epochs(data: Loader, number: int) -> list[list[int]]:
    """The order of the examples in each epoch."""
    n = data.steps_per_epoch
    steps = list(data.batches(1, number * n))
    assert len(steps) == number * n
    return [[i for step in steps[e * n : (e + 1) * n] for i in step.examples] for e in range(number)]


def assert_same_steps(ours: list[StepBatch], expected: list[StepBatch]) -> None:
    assert [s.examples for s in ours] == [s.examples for s in expected]
    for one, other in zip(ours, expected, strict=True):
        assert one.tokens == other.tokens
        for a, b in zip(one.batch, other.batch, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("count", "accumulate"), [(23, 1), (24, 1), (23, 3), (2, 1), (1, 2)])
def test_every_example_once_an_epoch(count: int, accumulate: int) -> None:
    data = loader(count, accumulate=accumulate)
    assert data.steps_per_epoch == -(-count // (4 * accumulate))
    for order in epochs(data, 3):
        assert sorted(order) == list(range(count))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first, second = epochs(loader(), 2)
    assert first != second
    assert first != sorted(first)
    assert epochs(loader(), 2) == [first, second]
    assert epochs(loader(batch_size=2, accumulate=2), 2) == [first, second]
    assert epochs(loader(seed=1), 1) != [first]


@pytest.mark.parametrize("start", [1, 2, 6, 7, 13])
def test_resumed_batches_are_those_of_the_whole_run(start: int) -> None:
    whole = list(loader().batches(1, 14))
    assert_same_steps(list(loader().batches(start, 14)), whole[start - 1 :])
    assert not list(loader().batches(15, 14))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_accumulated_batches_are_one_batch_cut_in_passes(accumulate: int) -> None:
    data = loader(accumulate=accumulate)
    for step in data.batches(1, data.steps_per_epoch):
        rows = [data.rows[index] for index in step.examples]
        assert step.tokens == sum(len(row.ids) for row in rows)
        length = padded_length(max(len(row.ids) for row in rows), 64)
        expected = collate(rows, length=length, num_targets=data.most_targets, batch_size=4 * accumulate)
        for leaf, flat in zip(step.batch, expected, strict=True):
            assert leaf.shape[:2] == (accumulate, 4)
            np.testing.assert_array_equal(leaf.reshape(flat.shape), flat)


def test_last_batch_of_an_epoch_is_padded_with_empty_rows() -> None:
    *_, last = loader(23, accumulate=2).batches(1, 3)
    assert len(last.examples) == 7
    batch = Batch(*(leaf.reshape(8, -1) for leaf in last.batch))
    assert (batch.segments[:7, 0] == 0).all()
    assert (batch.weights[:7, 0] == 1).all()
    assert (batch.segments[7] == -1).all()
    assert (batch.weights[7] == 0).all()


def test_the_number_of_shapes_is_small() -> None:
    shapes = {step.batch.ids.shape[-1] for step in loader(100).batches(1, 50)}
    assert shapes <= {16, 24, 32, 48, 64}
    assert len({step.batch.targets.shape for step in loader(100).batches(1, 50)}) == 1


def test_sorted_batches_hold_every_row_once() -> None:
    rows = numbered_rows(23)
    seen, last_length = [], 0
    for batch, real in sorted_batches(rows, 4, 64):
        assert batch.ids.shape[0] == 4
        assert batch.ids.shape[1] >= last_length
        last_length = batch.ids.shape[1]
        assert (batch.segments[real:] == -1).all()
        for ids, segments, targets, weights in zip(
            batch.ids, batch.segments, batch.targets, batch.weights, strict=True
        ):
            if (segments == 0).any():
                row = rows[ids[0]]
                assert (segments == 0).sum() == len(row.ids)
                assert targets[weights > 0].tolist() == list(range(row.first_target, len(row.ids)))
                seen.append(int(ids[0]))
        assert len(seen) % 4 == 0 or len(seen) == 23
    assert sorted(seen) == list(range(23))
