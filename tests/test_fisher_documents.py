"""Batches of documents: each once, whole, in the same place for the same arguments, on any number of devices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from e2wm_jax.data.batch import Row
from e2wm_jax.data.pack import best_fit
from e2wm_jax.fisher.arrange import Arranged, arrange, cost, real_share
from e2wm_jax.fisher.documents import DocumentBatch, collate_documents, document_batches
from e2wm_jax.kernels.square_sum import RUNGS

LENGTHS = (2, 19, 7, 23, 3, 12, 20, 5, 2, 31, 32, 8, 9)


def rows_of(lengths: Sequence[int], first_target: int = 1) -> list[Row]:
    """Documents that differ from each other in every token."""
    return [
        Row(100 * number + np.arange(length, dtype=np.int32), first_target) for number, length in enumerate(lengths)
    ]


def contents(batch: DocumentBatch, parts: int = 1) -> list[tuple[int, list[int]]]:
    """(number, tokens) of every document, read as the Fisher does; checks what belongs to each token on the way."""
    found = []
    rows, length = batch.ids.shape
    places = len(batch.starts) // parts
    for part in range(parts):
        own = slice(part * rows // parts, (part + 1) * rows // parts)
        ids, slots, positions, segments, labels, predicted = (
            np.asarray(leaf[own]).reshape(-1)
            for leaf in (batch.ids, batch.slots, batch.positions, batch.segments, batch.labels, batch.predicted)
        )
        of_none = np.ones(len(ids), bool)
        for slot in range(places):
            at = part * places + slot
            start, size, number = int(batch.starts[at]), int(batch.lengths[at]), int(batch.numbers[at])
            assert (size > 0) == (number >= 0)
            if not size:
                continue
            here = slice(start, start + size)
            found.append((number, ids[here].tolist()))
            assert size <= batch.window <= length
            assert start // length == (start + size - 1) // length  # in one row
            np.testing.assert_array_equal(slots[here], slot)
            np.testing.assert_array_equal(positions[here], np.arange(size))
            assert len(set(segments[here])) == 1
            np.testing.assert_array_equal(labels[here][:-1], ids[here][1:])
            assert predicted[here][-1] == 0
            of_none[here] = False
        assert (slots[of_none] == places).all()
        assert (segments[of_none] == -1).all()
        assert not predicted[of_none].any()
        # A row has at most one document of segment 0, which sees all of its row, or several of different segments.
        for row in np.reshape(np.where(of_none, -1, segments * places + slots), (-1, length)):
            assert len(set(row[row >= 0] // places)) == len(set(row[row >= 0])) <= batch.per_row
    return found


@pytest.mark.parametrize("layout", ["rows", "packed"])
@pytest.mark.parametrize(("batch_size", "parts"), [(1, 1), (3, 1), (4, 2), (8, 8), (32, 1)])
def test_every_document_once_and_whole(layout: Any, batch_size: int, parts: int) -> None:
    rows = rows_of(LENGTHS)
    batches = list(document_batches(rows, batch_size, 32, layout=layout, parts=parts))
    found = [document for batch in batches for document in contents(batch, parts)]
    assert sorted(found) == [(number, row.ids.tolist()) for number, row in enumerate(rows)]
    for batch in batches:
        count, length = batch.ids.shape
        assert count % parts == 0
        assert length <= 32
        assert count <= batch_size or (layout == "packed" and count * length <= batch_size * 32)
        assert batch.predicted.sum() == sum(size - 1 for size in batch.lengths if size)
    lengths = [len(tokens) for _, tokens in found]
    if batch_size == 1 and layout == "rows":
        assert lengths == sorted(LENGTHS)
    again = document_batches(rows, batch_size, 32, layout=layout, parts=parts)
    assert all(
        np.array_equal(one, other)
        for a, b in zip(batches, again, strict=True)
        for one, other in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def test_best_fit_by_hand() -> None:
    """The 4 fits beside the 6 and the 5, the 3 beside the 7 and the 5: each goes where less room is left."""
    assert best_fit([3, 7, 5, 6, 4], lambda length: 10) == [[1, 0], [3, 4], [2]]
    assert best_fit([2, 5, 9], lambda length: 10 if length > 5 else 5) == [[2], [1], [0]]
    assert best_fit([], lambda length: 1) == []
    with pytest.raises(ValueError, match="length=11 does not fit into room=10"):
        best_fit([11], lambda length: 10)


def test_best_fit_leaves_little_room() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 3000).tolist()
    bins = best_fit(lengths, lambda length: 400)
    loads = sorted(sum(lengths[index] for index in places) for places in bins)
    assert loads[0] + loads[1] > 400
    assert len(bins) <= 1.01 * sum(lengths) / 400 + 1


def test_cost_by_hand() -> None:
    """Two steps of one shape: rows at 3 a place and as much again as attention says, windows in quarters, sums."""
    assert RUNGS == 4
    batches = [Arranged([[0], [1, 2]], 2, 100, 4, 2, 80), Arranged([[3]], 2, 100, 4, 2, 80)]
    lengths = [80, 41, 20, 1]
    places, squares, steps, shapes = 2 * 200 * (3 + 4 * 100 / 500), 80 + 60 + 20 + 20, 2 * 300, 20_000
    assert cost(lengths, batches, attention=500) == pytest.approx(places + squares + steps + shapes)
    assert cost(lengths, batches, attention=500, times=3) == pytest.approx(3 * (places + squares + steps) + shapes)
    assert real_share(lengths, batches) == pytest.approx(142 / 400)


def uniform(count: int) -> list[int]:
    return np.random.default_rng(0).integers(50, 256, count, endpoint=True).tolist()


def test_packed_rows_are_full_and_short() -> None:
    """Few documents too: no batch has rows that it does not need. The more attention costs, the shorter the rows."""
    assert real_share(uniform(24), arrange(uniform(24), 4, 512, "packed")) > 0.85
    assert real_share(uniform(2000), arrange(uniform(2000), 4, 512, "packed")) > 0.93
    ending = [*[200] * 8, 200]  # two batches of four rows, and one document
    assert real_share(ending, arrange(ending, 4, 200, "packed")) == 1
    long, short = (arrange(uniform(2000), 4, 800, "packed", attention=attention) for attention in (1e5, 300))
    assert max(batch.length for batch in short) == 256 < max(batch.length for batch in long)
    assert real_share(uniform(2000), long) > 0.98


def test_work_follows_the_tokens() -> None:
    """Per token, a packed corpus costs at most a tenth more than documents that are all as long as the longest."""
    lengths = uniform(2000)
    full = [max(lengths)] * 2000
    per_token = [
        cost(given, arrange(given, 4, 512, layout)) / sum(given)
        for given, layout in ((lengths, "packed"), (full, "rows"))
    ]
    assert per_token[0] < 1.1 * per_token[1]


def test_short_documents_do_not_pay_for_a_long_one() -> None:
    """They have rows and windows of their own, where the long one's row has no room for them."""
    lengths = [*[20] * 500, 800]
    batches = arrange(lengths, 4, 800, "packed")
    assert [batch.window for batch in batches if batch.length == 800] == [800]
    assert {batch.window for batch in batches if batch.length < 800} == {24}
    assert cost(lengths, batches) < 0.7 * cost(lengths, arrange(lengths, 4, 800, "rows"))


def test_a_large_corpus_is_judged_by_a_part() -> None:
    """As a small one of the same lengths is; every document is in it."""
    lengths = uniform(20_000)
    large, small = arrange(lengths, 4, 512, "packed"), arrange(uniform(2000), 4, 512, "packed")
    assert {batch.length for batch in large} == {batch.length for batch in small}
    assert sorted(index for batch in large for row in batch.bins for index in row) == list(range(20_000))


def test_only_targets_are_predicted() -> None:
    [batch] = document_batches(rows_of([6, 4], first_target=3), 2, 8, layout="packed")
    predicted = sorted(batch.labels[batch.predicted > 0].tolist())
    assert predicted == [3, 4, 5, 103]


def test_targets_here_and_there_are_predicted() -> None:
    row = Row(np.arange(5, dtype=np.int32), 1, chosen=np.array([1, 4], np.int32))
    batch = collate_documents([[(0, row)]], length=8, rows=1, documents=1, window=8)
    assert batch.predicted.tolist() == [[1, 0, 0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("layout", ["rows", "packed"])
def test_hosts_have_the_parts_of_one_batch(layout: Any) -> None:
    rows = rows_of(LENGTHS)
    whole = list(document_batches(rows, 8, 32, layout=layout, parts=4))
    hosts = [list(document_batches(rows, 8, 32, layout=layout, parts=4, process=(index, 2))) for index in range(2)]
    static = ("window", "per_row")
    for batch, *parts in zip(whole, *hosts, strict=True):
        for name, leaf in vars(batch).items():
            here = [getattr(part, name) for part in parts]
            np.testing.assert_array_equal(leaf, leaf if name in static else np.concatenate(here))
            assert name not in static or here == [leaf, leaf]


@pytest.mark.parametrize(("batch_size", "parts", "hosts"), [(6, 4, 1), (8, 2, 4)])
def test_rows_that_devices_cannot_share_are_refused(batch_size: int, parts: int, hosts: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={batch_size} must be a multiple of parts={parts}"):
        next(document_batches(rows_of([3]), batch_size, 8, parts=parts, process=(0, hosts)))


@pytest.mark.parametrize("change", [{"length": 9}, {"window": 4}, {"documents": 1}, {"per_row": 1}])
def test_documents_that_do_not_fit_are_refused(change: dict[str, int]) -> None:
    sizes = {"length": 10, "rows": 1, "documents": 2, "window": 5}
    bins = [list(enumerate(rows_of([5, 5])))]
    collate_documents(bins, **sizes)
    with pytest.raises(ValueError, match="not fit"):
        collate_documents(bins, **{**sizes, **change})
