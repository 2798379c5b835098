"""Rows to batches: padding by hand, and every example once an epoch in an order that a resumed run continues."""

import itertools
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from e2wm_jax.data.batch import Batch, Row, coarse_length, collate, padded_length
from e2wm_jax.data.lengths import few_lengths, longest_of
from e2wm_jax.data.loader import Loader, StepBatch, sorted_batches
from e2wm_jax.data.pack import collate_packed, first_fit


def test_padded_lengths_are_few_and_near() -> None:
    lengths = [padded_length(n, 10**6) for n in range(1, 5000)]
    assert all(padded >= n for n, padded in enumerate(lengths, start=1))
    assert all(a <= b for a, b in pairwise(lengths))
    assert all((padded - n) * 3 < padded for n, padded in enumerate(lengths, start=1) if n > 16)
    assert sorted(set(lengths))[:6] == [16, 24, 32, 48, 64, 96]
    assert len(set(lengths)) == 18
    assert all(padded_length(n, 800) == min(padded, 800) for n, padded in enumerate(lengths[:800], start=1))


def test_numbers_of_rows_and_of_targets_are_few() -> None:
    assert [padded_length(n, 20, least=1) for n in (1, 2, 3, 4, 5, 7, 9, 13, 17)] == [1, 2, 3, 4, 6, 8, 12, 16, 20]
    assert [coarse_length(n, 800) for n in (1, 16, 17, 64, 65, 256, 257, 800)] == [16, 16, 64, 64, 256, 256, 800, 800]


def test_collate_by_hand() -> None:
    rows = [Row(np.array([5, 6, 7], np.int32), 2, 0.5), Row(np.array([8, 9], np.int32), 1)]
    batch = collate(rows, length=4, num_targets=3, batch_size=3)
    assert batch.ids.tolist() == [[5, 6, 7, 0], [8, 9, 0, 0], [0, 0, 0, 0]]
    assert batch.segments.tolist() == [[0, 0, 0, -1], [0, 0, -1, -1], [-1, -1, -1, -1]]
    assert batch.positions.tolist() == [[0, 1, 2, 0], [0, 1, 0, 0], [0] * 4], "padding does not lengthen a row"
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
        longest = max(len(row.ids) for row in rows)
        length, num_targets = next(shape for shape in data.shapes if shape[0] >= longest)
        expected = collate(rows, length=length, num_targets=num_targets, batch_size=4 * accumulate)
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


def test_lengths_cost_least() -> None:
    """Of all choices of up to three lengths, by trying them all."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        batches = {int(n): float(c) for n, c in zip(rng.integers(1, 200, 9), rng.integers(1, 300, 9), strict=True)}
        limit = int(rng.integers(max(batches), 260))
        sizes = sorted({min(-(-n // 16) * 16, limit) for n in batches})

        def cost(lengths: tuple[int, ...], batches: dict[int, float] = batches) -> float:
            padded = sum(number * min(m for m in lengths if m >= n) for n, number in batches.items())
            return padded + 30 * (len(lengths) - 1) * lengths[-1]

        choices = [(*some, sizes[-1]) for k in range(3) for some in itertools.combinations(sizes[:-1], k)]
        found = few_lengths(batches, limit)
        assert found in choices
        assert cost(found) == pytest.approx(min(map(cost, choices)))
    assert few_lengths({20: 1, 700: 14}, 800) == (704,), "a short run has one length"
    assert few_lengths({20: 10_000, 700: 10_000}, 800) == (32, 704)
    assert few_lengths({20: 10_000, 700: 10_000}, 800, most=1) == (704,)


def test_the_longest_of_drawn_rows_by_counting() -> None:
    lengths = [3, 3, 5, 8, 8, 9]
    found = longest_of(lengths, 2, 15)
    pairs = Counter(max(pair) for pair in itertools.combinations(lengths, 2))  # 15 of them
    assert found == pytest.approx({3: 1.0, **dict(pairs)})
    assert longest_of(lengths, 50, 2) == pytest.approx({3: 0, 5: 0, 8: 0, 9: 2})


def test_the_number_of_shapes_is_small_and_that_of_the_whole_run() -> None:
    data = loader(100, steps=2000)
    shapes = {(*step.batch.ids.shape[-1:], *step.batch.targets.shape[-1:]) for step in data.batches(1, 300)}
    assert 1 < len(shapes) <= 3
    assert shapes <= set(data.shapes)
    assert data.shapes[-1] == (48, 48)
    assert len(loader(100, steps=20).shapes) == 1
    assert len(loader(100, steps=10**6, most_lengths=2).shapes) == 2


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


# ------------------------------------------------------------------------------------------------------------- packing


def test_first_fit_by_hand() -> None:
    assert first_fit([3, 7, 5, 2, 4], 10) == [[1, 0], [2, 4], [3]]
    assert first_fit([10, 10], 10) == [[0], [1]]
    assert first_fit([], 10) == []
    with pytest.raises(ValueError, match="does not fit"):
        first_fit([11], 10)


def test_collate_packed_by_hand() -> None:
    rows = [Row(np.array([5, 6, 7], np.int32), 2, 0.5), Row(np.array([8, 9], np.int32), 1)]
    batch = collate_packed([rows, rows[1:]], length=6, num_targets=3, batch_size=3)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9, 0], [8, 9, 0, 0, 0, 0], [0] * 6]
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2, -1], [1, 1, -1, -1, -1, -1], [-1] * 6]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 0, 0, 0], [0] * 6]
    assert batch.targets.tolist() == [[2, 4, 1], [1, 1, 1], [1, 1, 1]]
    assert batch.weights.tolist() == [[0.5, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert [leaf.dtype for leaf in batch] == [np.int32] * 4 + [np.float32]


def test_rows_with_targets_here_and_there_by_hand() -> None:
    """As of conversations: of the first row the tokens 1 and 3 are predicted."""
    first = Row(np.array([1, 2, 3, 4], np.int32), 1, 0.5, np.array([1, 3], np.int32))
    second = Row(np.array([5, 6], np.int32), 1)
    assert (first.num_targets, second.num_targets) == (2, 1)
    batch = collate([first, second], length=4, num_targets=3, batch_size=2)
    assert batch.targets.tolist() == [[1, 3, 1], [1, 1, 1]]
    assert batch.weights.tolist() == [[0.5, 0.5, 0], [1, 0, 0]]
    packed = collate_packed([[second, first]], length=6, num_targets=3, batch_size=1)
    assert packed.targets.tolist() == [[1, 3, 5]]
    assert packed.weights.tolist() == [[1, 0.5, 0.5]]


def documents(step: StepBatch) -> list[tuple[Any, ...]]:
    """Read back from the arrays, whatever row they are in: (tokens, positions, predicted tokens and weights)."""
    batch = Batch(*(leaf.reshape(-1, leaf.shape[-1]) for leaf in step.batch))
    found = []
    for ids, positions, segments, targets, weights in zip(*batch, strict=True):
        counted = [(int(target), float(weight)) for target, weight in zip(targets, weights, strict=True) if weight]
        for segment in sorted(set(segments.tolist()) - {-1}):
            places = np.flatnonzero(segments == segment)
            predicted = [(target - int(places[0]), weight) for target, weight in counted if target in places]
            found.append((tuple(ids[places]), tuple(positions[places]), tuple(predicted)))
    return sorted(found)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_packed_batches_hold_the_tokens_and_targets_of_unpacked_ones(accumulate: int) -> None:
    plain, packed = (loader(100, batch_size=8, accumulate=accumulate, pack=pack) for pack in (False, True))
    smaller = 0
    for one, other in zip(plain.batches(1, 20), packed.batches(1, 20), strict=True):
        assert documents(other) == documents(one)
        assert (other.tokens, other.examples) == (one.tokens, one.examples)
        smaller += other.batch.ids.size < one.batch.ids.size
    assert smaller == 20


def test_packed_shapes_are_few() -> None:
    shapes = {tuple(leaf.shape for leaf in step.batch) for step in loader(400, batch_size=8, pack=True).batches(1, 100)}
    assert len(shapes) <= 5


@pytest.mark.slow
def test_packed_tokens_are_as_likely_as_unpacked_ones(tiny_llama: Any) -> None:
    """Each predicted token, so also the loss and its gradient: a row sees nothing of its neighbors."""
    import jax

    from e2wm_jax.models.head import target_nll
    from e2wm_jax.models.weights import load

    model = load(str(tiny_llama))
    likelihood = jax.jit(lambda batch: target_nll(model.config, model.params, batch))
    found = []
    for pack in (False, True):
        (step,) = loader(24, batch_size=8, seed=3, pack=pack).batches(2, 2)
        batch = Batch(*(leaf[0] for leaf in step.batch))
        found.append(np.sort(np.asarray(likelihood(batch))[batch.weights > 0]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


# --------------------------------------------------------------------------------------------------------------- hosts


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_shards_of_all_hosts_side_by_side_are_the_batch_of_one(hosts: int, accumulate: int) -> None:
    whole = list(loader(23, accumulate=accumulate).batches(1, 12))
    shards = [
        list(loader(23, accumulate=accumulate, mine=(host,), parts=hosts).batches(1, 12)) for host in range(hosts)
    ]
    for step, *parts in zip(whole, *shards, strict=True):
        for leaf, *pieces in zip(step.batch, *(part.batch for part in parts), strict=True):
            np.testing.assert_array_equal(np.concatenate(pieces, axis=1), leaf)
        assert all(part.examples == step.examples for part in parts)
        assert sum(part.tokens for part in parts) == step.tokens


def test_hosts_share_packed_batches() -> None:
    whole = list(loader(23, pack=True).batches(1, 12))
    shards = [list(loader(23, pack=True, mine=(host,), parts=2).batches(1, 12)) for host in (0, 1)]
    for step, *parts in zip(whole, *shards, strict=True):
        assert sorted(document for part in parts for document in documents(part)) == documents(step)
        assert len({tuple(leaf.shape for leaf in part.batch) for part in parts}) == 1


def test_hosts_may_share_rows_or_read_scattered_ones() -> None:
    """As where a mesh's tensor axis spans hosts."""
    whole = list(loader(23, accumulate=2).batches(1, 6))
    for mine in ((0, 1, 2, 3), (0, 3), (1,)):
        own = list(loader(23, accumulate=2, parts=4, mine=mine, apart=True).batches(1, 6))
        for step, part in zip(whole, own, strict=True):
            for leaf, piece in zip(step.batch, part.batch, strict=True):
                np.testing.assert_array_equal(piece, leaf[:, list(mine)])


def test_rows_that_devices_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="must divide"):
        loader(parts=3)
