"""Batches of documents for the Fisher: which tokens belong to which document, in rows of their own or packed.

One document is one example, whatever the rows look like.

Letters: B rows, T tokens of a row, J places for documents in a batch.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import struct

from e2wm_jax.data.batch import Array, Row
from e2wm_jax.fisher.arrange import ATTENTION, Layout, arrange


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
    per_row: int = struct.field(pytree_node=False)  # no row of the batch has more documents


def document_batches(
    rows: Sequence[Row],
    batch_size: int,
    max_length: int,
    *,
    layout: Layout = "rows",
    parts: int = 1,
    process: tuple[int, int] = (0, 1),
    attention: float = ATTENTION,
) -> Iterator[DocumentBatch]:
    """Every row (a document) once, in batches of similar lengths, the same for the same arguments (`arrange`).

    Args:
        rows: the corpus; a document's number is its index here.
        batch_size: rows of a batch at most, on all hosts; packed, as many rows as hold as many tokens.
        max_length: longest row.
        parts: devices that share the rows of each batch; slots and starts count from 0 in each part.
        process: (index, number) of the hosts that share the parts; this host's are given.
        attention: `attention_length` of the model, for which the length of packed rows is chosen.

    Raises:
        ValueError: if the parts do not divide the rows, or the hosts the parts.
    """
    index, count = process
    if batch_size % parts or parts % count:
        raise ValueError(f"{batch_size=} must be a multiple of {parts=}, and that of {count=} hosts")
    for batch in arrange([len(row.ids) for row in rows], batch_size, max_length, layout, parts, attention):
        share = batch.rows // parts
        numbered = [[(number, rows[number]) for number in row] for row in batch.bins]
        here = [
            collate_documents(
                numbered[part * share : (part + 1) * share],
                length=batch.length,
                rows=share,
                documents=batch.documents,
                per_row=batch.per_row,
                window=batch.window,
            )
            for part in range(index * parts // count, (index + 1) * parts // count)
        ]
        yield jax.tree.map(lambda *leaves: np.concatenate(leaves), *here)


def collate_documents(
    bins: Sequence[Sequence[tuple[int, Row]]],
    *,
    length: int,
    rows: int,
    documents: int,
    window: int,
    per_row: int | None = None,
) -> DocumentBatch:
    """Each bin of (number, document) in a row; rows and places for documents beyond their number are empty.

    Without `per_row`, a row may hold all of the documents.

    Raises:
        ValueError: if documents do not fit.
    """
    shape = (rows, length)
    ids, positions, labels = (np.zeros(shape, np.int32) for _ in range(3))
    segments, slots = np.full(shape, -1, np.int32), np.full(shape, documents, np.int32)
    predicted = np.zeros(shape, np.float32)
    starts, lengths, numbers = np.zeros(documents, np.int32), np.zeros(documents, np.int32), np.full(documents, -1)
    slot = 0
    per_row = documents if per_row is None else per_row
    for index, one in enumerate(bins):
        at = 0
        if len(one) > per_row:
            raise ValueError(f"{len(one)} documents in a row do not fit into {per_row=}")
        for segment, (number, row) in enumerate(one, start=1):
            size = len(row.ids)
            if at + size > length or size > window or slot == documents:
                raise ValueError(f"{size=} does not fit into {length=} after {at=}, {window=} or {documents=}")
            place = (index, slice(at, at + size))
            ids[place], positions[place], slots[place] = row.ids, np.arange(size), slot
            segments[place] = segment if len(one) > 1 else 0
            labels[index, at : at + size - 1] = row.ids[1:]
            predicted[index, at + row.targets - 1] = 1
            starts[slot], lengths[slot], numbers[slot] = index * length + at, size, number
            at, slot = at + size, slot + 1
    numbers = numbers.astype(np.int32)
    return DocumentBatch(ids, positions, segments, labels, predicted, slots, starts, lengths, numbers, window, per_row)
