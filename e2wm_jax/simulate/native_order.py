"""The order in which VirtualHome meets the targets of a node, where it matters: that of a Python set, compiled."""

import numpy as np

from e2wm_jax.simulate.compiled import jit
from e2wm_jax.simulate.native_edges import bit, edge_relation, edge_source, edge_target, next_node, put_bit
from e2wm_jax.simulate.native_tables import (
    AT_COUNT,
    AT_EDGES,
    CHARACTER,
    CLOSE,
    IDS,
    INSIDE,
    MOST_LISTED,
    NODES,
    NONE,
    ORDER,
    ORDER_START,
    START,
    WORDS,
)

# The order in which VirtualHome meets the targets of a node: that of a Python set, and where it matters


@jit
def place_in_set(table, mask, number):
    """Where CPython puts a small integer in the open-addressed table of a set."""
    perturb = number
    i = number & mask
    while True:
        probes = 9 if i + 9 <= mask else 0
        for j in range(i, i + probes + 1):
            if table[j] < 0 or table[j] == number:
                return j
        perturb >>= 5
        i = (i * 5 + 1 + perturb) & mask


@jit
def insert(table, mask, fill, number):
    """Add to the set; gives mask and fill after it, having grown the table as CPython does."""
    place = place_in_set(table, mask, number)
    if table[place] == number:
        return mask, fill
    table[place] = number
    fill += 1
    if fill * 5 < mask * 3:
        return mask, fill
    size = 8
    while size <= fill * 4:
        size <<= 1
    if size > MOST_LISTED:
        raise OverflowError("a node has more edges of one relation than the array engine can order")
    old = table[: mask + 1].copy()
    table[:size] = -1
    for other in old:
        if other >= 0:
            table[place_in_set(table, size - 1, other)] = other
    return size - 1, fill


@jit
def in_set_order(T, s, relation, node, wanted, out):
    """The nodes of ``wanted`` [W], all of them targets of ``node``, in the order in which the executor meets them,
    into ``out``; returns their number. The order is that of a set that was given the targets added in the episode,
    oldest first, then those of the scene in the order of its file, and then lost the deleted ones."""
    count = 0
    other = next_node(wanted, NONE)
    while other >= 0:
        out[count] = other
        count += 1
        other = next_node(wanted, other)
    if count < 2:
        return count
    table = np.full(MOST_LISTED, -1, np.int64)
    node_of = np.full(MOST_LISTED, -1, np.int64)
    mask, fill = np.int64(7), np.int64(0)
    first = T.n[T.n[ORDER_START] + relation * (T.n[NODES] + 1) + node]
    last = T.n[T.n[ORDER_START] + relation * (T.n[NODES] + 1) + node + 1]
    known = np.zeros(T.n[WORDS], np.uint32)
    for place in range(first, last):
        put_bit(known, START, T.n[T.n[ORDER] + place])
    for index in range(count):  # edges that the character's own rows hold: their age is not kept
        other = out[index]
        own = (node == T.n[CHARACTER] and relation != INSIDE) or (relation == CLOSE and other == T.n[CHARACTER])
        if own and not bit(known, START, other):
            mask, fill = insert(table, mask, fill, T.n[T.n[IDS] + other])
    for slot in range(T.n[AT_EDGES], T.n[AT_EDGES] + s[T.n[AT_COUNT]]):
        if edge_relation(s[slot]) == relation:
            other = -1
            if edge_source(s[slot]) == node:
                other = edge_target(s[slot])
            elif relation == CLOSE and edge_target(s[slot]) == node:
                other = edge_source(s[slot])
            if other >= 0 and not bit(known, START, other):
                mask, fill = insert(table, mask, fill, T.n[T.n[IDS] + other])
    for place in range(first, last):
        mask, fill = insert(table, mask, fill, T.n[T.n[IDS] + T.n[T.n[ORDER] + place]])
    for index in range(count):
        node_of[place_in_set(table, mask, T.n[T.n[IDS] + out[index]])] = out[index]
    count = 0
    for place in range(mask + 1):
        if node_of[place] >= 0:
            out[count] = node_of[place]
            count += 1
    return count


@jit
def first_in_set(T, s, relation, node, wanted):
    """The first of `in_set_order`, or -1."""
    one = next_node(wanted, NONE)
    if one < 0 or next_node(wanted, one) < 0:
        return one
    out = np.empty(T.n[NODES], np.int64)
    in_set_order(T, s, relation, node, wanted, out)
    return out[0]
