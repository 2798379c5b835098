"""Batches of documents: each once, whole, in the same place for the same arguments, on any number of devices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from e2wm_jax.data.batch import Row
from e2wm_jax.fisher.documents import DocumentBatch, collate_documents, document_batches, padding_share

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
            assert size <= batch.window
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
            assert len(set(row[row >= 0] // places)) == len(set(row[row >= 0]))
    return found


@pytest.mark.parametrize("layout", ["rows", "packed"])
@pytest.mark.parametrize(("batch_size", "parts"), [(1, 1), (3, 1), (4, 2), (8, 8), (32, 1)])
def test_every_document_once_and_whole(layout: Any, batch_size: int, parts: int) -> None:
    rows = rows_of(LENGTHS)
    batches = list(document_batches(rows, batch_size, 32, layout=layout, parts=parts))
    found = [document for batch in batches for document in contents(batch, parts)]
    assert sorted(found) == [(number, row.ids.tolist()) for number, row in enumerate(rows)]
    for batch in batches:
        assert batch.ids.shape[0] == batch_size
        assert batch.ids.shape[1] <= 32
        assert batch.ids.shape[1] == 32 or layout == "rows"
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


def test_packing_fills_rows() -> None:
    """100 documents of 2 to 23 tokens: rows of 128 are nine tenths full, but for the last batch's."""
    lengths = np.random.default_rng(0).integers(2, 24, 100).tolist()
    batches = list(document_batches(rows_of(lengths), 2, 128, layout="packed"))
    filled = [batch.lengths.sum() / batch.ids.size for batch in batches[:-1]]
    assert np.mean(filled) > 0.9
    in_rows = list(document_batches(rows_of(lengths), 4, 32))
    assert len(batches) < len(in_rows)
    padding = 1 - sum(lengths) / sum(batch.ids.size for batch in in_rows)
    assert padding_share(lengths, 4, 32) == pytest.approx(padding)


def test_only_targets_are_predicted() -> None:
    [batch] = document_batches(rows_of([6, 4], first_target=3), 2, 8, layout="packed")
    predicted = sorted(batch.labels[batch.predicted > 0].tolist())
    assert predicted == [3, 4, 5, 103]


@pytest.mark.parametrize("layout", ["rows", "packed"])
def test_hosts_have_the_parts_of_one_batch(layout: Any) -> None:
    rows = rows_of(LENGTHS)
    whole = list(document_batches(rows, 8, 32, layout=layout, parts=4))
    hosts = [list(document_batches(rows, 8, 32, layout=layout, parts=4, process=(index, 2))) for index in range(2)]
    for batch, *parts in zip(whole, *hosts, strict=True):
        for name, leaf in vars(batch).items():
            here = [getattr(part, name) for part in parts]
            np.testing.assert_array_equal(leaf, leaf if name == "window" else np.concatenate(here))
            assert name != "window" or here == [leaf, leaf]


@pytest.mark.parametrize(("batch_size", "parts", "hosts"), [(6, 4, 1), (8, 2, 4)])
def test_rows_that_devices_cannot_share_are_refused(batch_size: int, parts: int, hosts: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={batch_size} must be a multiple of parts={parts}"):
        next(document_batches(rows_of([3]), batch_size, 8, parts=parts, process=(0, hosts)))


@pytest.mark.parametrize("change", [{"length": 9}, {"window": 4}, {"documents": 1}])
def test_documents_that_do_not_fit_are_refused(change: dict[str, int]) -> None:
    sizes = {"length": 10, "rows": 1, "documents": 2, "window": 5}
    bins = [list(enumerate(rows_of([5, 5])))]
    collate_documents(bins, **sizes)
    with pytest.raises(ValueError, match="does not fit"):
        collate_documents(bins, **{**sizes, **change})
