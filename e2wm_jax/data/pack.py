"""Packing: several short rows in one long one, kept apart by segments.

A row's loss does not change: a packed row sees itself only, at its own positions. So packing changes the shape of a
batch and nothing else.
"""

from collections.abc import Callable, Sequence

import numpy as np

from e2wm_jax.data.batch import Batch, Row


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices whose lengths sum up to `capacity` at most; longest first (Johnson 1973: at most 11/9 of the
    fewest possible bins, and one).

    Raises:
        ValueError: if something is longer than a bin.
    """
    if lengths and max(lengths) > capacity:
        raise ValueError(f"{max(lengths)=} does not fit into {capacity=}")
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((place for place, free in enumerate(room) if free >= lengths[index]), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(capacity)
        bins[place].append(index)
        room[place] -= lengths[index]
    return bins


def best_fit(lengths: Sequence[int], capacity_for: Callable[[int], int]) -> list[list[int]]:
    """Bins of indices, longest first, each into the bin that it fills best; a new bin is as large as `capacity_for` the
    length that opens it.

    Raises:
        ValueError: if something is longer than its bin.
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # by room, which bins
    rooms = 0  # the bits of the rooms that some bin has
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            place = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, place = capacity_for(length), len(bins)
            if length > room:
                raise ValueError(f"{length=} does not fit into {room=}")
            bins.append([])
        bins[place].append(index)
        left = room - length
        with_room.setdefault(left, []).append(place)
        rooms |= 1 << left
    return bins


def collate_packed(bins: Sequence[Sequence[Row]], *, length: int, num_targets: int, batch_size: int) -> Batch:
    """`collate` for bins of rows: the rows of a bin are its segments 1, 2, ..., each with positions from 0."""
    shape, target_shape = (batch_size, length), (batch_size, num_targets)
    ids, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    segments = np.full(shape, -1, np.int32)
    targets, weights = np.ones(target_shape, np.int32), np.zeros(target_shape, np.float32)
    for index, rows in enumerate(bins):
        start = target = 0
        for segment, row in enumerate(rows, start=1):
            place = slice(start, start + len(row.ids))
            ids[index, place] = row.ids
            positions[index, place] = np.arange(len(row.ids))
            segments[index, place] = segment
            marks = slice(target, target + row.num_targets)
            targets[index, marks] = start + row.targets
            weights[index, marks] = row.weight
            start, target = place.stop, marks.stop
    return Batch(ids, positions, segments, targets, weights)
