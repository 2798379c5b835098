"""Batches of documents for the Fisher: which tokens belong to which document, in rows of their own or packed.

One document is one example, whatever the rows look like.

Letters: B rows, T tokens of a row, J places for documents in a batch.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import numpy as np
from flax import struct

from e2wm_jax.data.batch import Array, Row, padded_length
from e2wm_jax.data.pack import first_fit

Layout = Literal["rows", "packed"]


@struct.dataclass
class DocumentBatch:
    """Documents side by side in rows; a pytree.

    Document j is the tokens ``starts[j] .. starts[j] + lengths[j] - 1`` of the rows read one after another.
    """

    ids: Array  # [B, T] int32
    positions: Array  # [B, T] int32
    segments: Array  # [B, T] int32, see models.decoder.visibility; -1 is padding
    labels: Array  # [B, T] int32: the token after each
    predicted: Array  # [B, T] float32: 1 where that token is to be predicted, else 0
    slots: Array  # [B, T] int32: the document of each token, J for padding
    starts: Array  # [J] int32
    lengths: Array  # [J] int32; 0: no document
    numbers: Array  # [J] int32: the document's place in the corpus; -1: no document
    window: int = struct.field(pytree_node=False)  # no document of the batch is longer


def padding_share(lengths: Sequence[int], batch_size: int, max_length: int) -> float:
    """Share of padding among the tokens of batches in rows (`document_batches`)."""
    ordered = sorted(lengths)
    padded = sum(
        batch_size * padded_length(ordered[min(start + batch_size, len(ordered)) - 1], max_length)
        for start in range(0, len(ordered), batch_size)
    )
    return 1 - sum(ordered) / padded


def document_batches(
    rows: Sequence[Row],
    batch_size: int,
    max_length: int,
    *,
    layout: Layout = "rows",
    parts: int = 1,
    process: tuple[int, int] = (0, 1),
) -> Iterator[DocumentBatch]:
    """Every row (a document) once, in batches of similar lengths, shortest first, the same for the same arguments.

    Args:
        rows: the corpus; a document's number is its index here.
        batch_size: rows of a batch, on all hosts.
        max_length: longest row; packed rows are filled up to it, with documents of similar length.
        parts: devices that share the rows of each batch; slots and starts count from 0 in each part.
        process: (index, number) of the hosts that share the parts; this host's are given.

    Raises:
        ValueError: if the parts do not divide the rows, or the hosts the parts.
    """
    index, count = process
    if batch_size % parts or parts % count:
        raise ValueError(f"{batch_size=} must be a multiple of {parts=}, and that of {count=} hosts")
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
    share = batch_size // parts
    for bins, length in _batches([len(rows[number].ids) for number in order], batch_size, max_length, layout):
        longest = max(len(rows[order[place]].ids) for places in bins for place in places)
        most = max(len(places) for places in bins)
        numbered = [[(order[place], rows[order[place]]) for place in places] for places in bins]
        here = [
            collate_documents(
                numbered[part * share : (part + 1) * share],
                length=length,
                rows=share,
                # Few sizes, so that few steps are compiled: 1 where every row is one document.
                documents=share * (most if most == 1 else padded_length(most, most * 2, least=4)),
                window=padded_length(longest, length),
            )
            for part in range(index * parts // count, (index + 1) * parts // count)
        ]
        yield jax.tree.map(lambda *leaves: np.concatenate(leaves), *here)


def collate_documents(
    bins: Sequence[Sequence[tuple[int, Row]]], *, length: int, rows: int, documents: int, window: int
) -> DocumentBatch:
    """Each bin of (number, document) in a row; rows and places for documents beyond their number are empty.

    Raises:
        ValueError: if documents do not fit.
    """
    shape = (rows, length)
    ids, positions, labels = (np.zeros(shape, np.int32) for _ in range(3))
    segments, slots = np.full(shape, -1, np.int32), np.full(shape, documents, np.int32)
    predicted = np.zeros(shape, np.float32)
    starts, lengths, numbers = np.zeros(documents, np.int32), np.zeros(documents, np.int32), np.full(documents, -1)
    slot = 0
    for index, one in enumerate(bins):
        at = 0
        for segment, (number, row) in enumerate(one, start=1):
            size = len(row.ids)
            if at + size > length or size > window or slot == documents:
                raise ValueError(f"{size=} does not fit into {length=} after {at=}, {window=} or {documents=}")
            place = (index, slice(at, at + size))
            ids[place], positions[place], slots[place] = row.ids, np.arange(size), slot
            segments[place] = segment if len(one) > 1 else 0
            labels[index, at : at + size - 1] = row.ids[1:]
            predicted[index, at + row.first_target - 1 : at + size - 1] = 1
            starts[slot], lengths[slot], numbers[slot] = index * length + at, size, number
            at, slot = at + size, slot + 1
    return DocumentBatch(
        ids, positions, segments, labels, predicted, slots, starts, lengths, numbers.astype(np.int32), window
    )


def _batches(
    lengths: Sequence[int], batch_size: int, max_length: int, layout: Layout
) -> Iterator[tuple[list[list[int]], int]]:
    """(bins of places in `lengths`, tokens of a row) of each batch; `lengths` ascend."""
    if layout == "rows":
        for start in range(0, len(lengths), batch_size):
            places = range(start, min(start + batch_size, len(lengths)))
            yield [[place] for place in places], padded_length(lengths[places[-1]], max_length)
        return
    start = 0
    while start < len(lengths):
        # As many of the next documents as surely fit: first fit leaves less than half of a row empty, hence the search.
        bins: list[list[int]] = []
        stop = start
        total = 0
        while stop < len(lengths) and total + lengths[stop] <= batch_size * max_length:
            total, stop = total + lengths[stop], stop + 1
        while stop > start:
            bins = [[start + place for place in places] for places in first_fit(lengths[start:stop], max_length)]
            if len(bins) <= batch_size:
                break
            stop -= max(1, len(bins) - batch_size)
        yield bins, max_length
        start = stop
