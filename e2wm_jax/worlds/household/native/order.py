"""The order in which VirtualHome meets the targets of a node, where it matters: that of a Python set, compiled."""

import numpy as np

from e2wm_jax.worlds.household.native import tables as K
from e2wm_jax.worlds.household.native.edges import bit, edge_relation, edge_source, edge_target, next_node, put_bit
from e2wm_jax.worlds.household.native.jit import inner, jit

# The order in which VirtualHome meets the targets of a node: that of a Python set, and where it matters


@inner
def place_in_set(table, mask, hashes, node):
    """Where CPython puts a node's id in the open-addressed table of a set; the table here holds node numbers."""
    perturb = hashes[node]
    i = perturb & mask
    while True:
        probes = 9 if i + 9 <= mask else 0
        for j in range(i, i + probes + 1):
            if table[j] < 0 or table[j] == node:
                return j
        perturb = perturb >> 5 & K.UNSIGNED
        i = (i * 5 + 1 + perturb) & mask


@jit
def insert(table, mask, fill, hashes, node):
    """Add to the set; gives mask and fill after it, having grown the table as CPython does."""
    place = place_in_set(table, mask, hashes, node)
    if table[place] == node:
        return mask, fill
    table[place] = node
    fill += 1
    if fill * 5 < mask * 3:
        return mask, fill
    size = 8
    while size <= fill * 4:
        size <<= 1
    old = table[: mask + 1].copy()
    table[:size] = -1
    for other in old:
        if other >= 0:
            table[place_in_set(table, size - 1, hashes, other)] = other
    return size - 1, fill


@jit
def room_for(nodes):
    """The largest table that a set of so many may get."""
    size = 32
    while size <= nodes * 4:
        size <<= 1
    return size


@jit
def in_set_order(T, s, relation, node, wanted, out):
    """The nodes of ``wanted`` [W], all of them targets of ``node``, in the order in which the executor meets them,
    into ``out``; returns their number. The order is that of a set that was given the targets added in the episode,
    oldest first, then those of the scene in the order of its file, and then lost the deleted ones."""
    count = 0
    other = next_node(wanted, K.NONE)
    while other >= 0:
        out[count] = other
        count += 1
        other = next_node(wanted, other)
    if count < 2:
        return count
    first = T.n[T.n[K.ORDER_START] + relation * (T.n[K.NODES] + 1) + node]
    last = T.n[T.n[K.ORDER_START] + relation * (T.n[K.NODES] + 1) + node + 1]
    hashes = T.n[T.n[K.IDS] : T.n[K.IDS] + T.n[K.NODES]]
    table = np.full(room_for(count + last - first), -1, np.int64)
    mask, fill = np.int64(7), np.int64(0)
    known = np.zeros(T.n[K.WORDS], np.uint32)
    for place in range(first, last):
        put_bit(known, K.START, T.n[T.n[K.ORDER] + place])
    for index in range(count):  # edges that the character's own rows hold: their age is not kept
        other = out[index]
        own = (node == T.n[K.CHARACTER] and relation != K.INSIDE) or (relation == K.CLOSE and other == T.n[K.CHARACTER])
        if own and not bit(known, K.START, other):
            mask, fill = insert(table, mask, fill, hashes, other)
    for slot in range(T.n[K.AT_EDGES], T.n[K.AT_EDGES] + s[T.n[K.AT_COUNT]]):
        if edge_relation(s[slot]) == relation:
            other = -1
            if edge_source(s[slot]) == node:
                other = edge_target(s[slot])
            elif relation == K.CLOSE and edge_target(s[slot]) == node:
                other = edge_source(s[slot])
            if other >= 0 and not bit(known, K.START, other):
                mask, fill = insert(table, mask, fill, hashes, other)
    for place in range(first, last):
        mask, fill = insert(table, mask, fill, hashes, T.n[T.n[K.ORDER] + place])
    count = 0
    for place in range(mask + 1):
        if table[place] >= 0 and bit(wanted, K.START, table[place]):
            out[count] = table[place]
            count += 1
    return count


@inner
def first_in_set(T, s, relation, node, wanted):
    """The first of `in_set_order`, or -1."""
    one = next_node(wanted, K.NONE)
    if one < 0 or next_node(wanted, one) < 0:
        return one
    out = np.empty(T.n[K.NODES], np.int64)
    in_set_order(T, s, relation, node, wanted, out)
    return out[0]
