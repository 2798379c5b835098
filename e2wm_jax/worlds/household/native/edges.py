"""Sets of nodes and the edges of a state, compiled."""

import numpy as np

from e2wm_jax.worlds.household.native import tables as K
from e2wm_jax.worlds.household.native.jit import inner, jit
from e2wm_jax.worlds.household.native.tables import sources_at, targets_at

# Bits


@inner
def bit(words, start, node):
    """Whether a node is in the set that begins at ``start``."""
    return (words[start + (node >> 5)] >> np.uint32(node & 31)) & np.uint32(1) != 0


@inner
def put_bit(words, start, node):
    words[start + (node >> 5)] |= np.uint32(1) << np.uint32(node & 31)


@inner
def clear_bit(words, start, node):
    words[start + (node >> 5)] &= ~(np.uint32(1) << np.uint32(node & 31))


@inner
def next_node(words, node):
    """The first node after ``node`` in a set, or -1."""
    node += 1
    index = node >> 5
    if index >= len(words):
        return -1
    word = words[index] & (np.uint32(0xFFFFFFFF) << np.uint32(node & 31))
    while word == 0:
        index += 1
        if index >= len(words):
            return -1
        word = words[index]
    low = word & (~word + np.uint32(1))
    place = 0
    if low & np.uint32(0xFFFF0000):
        place += 16
    if low & np.uint32(0xFF00FF00):
        place += 8
    if low & np.uint32(0xF0F0F0F0):
        place += 4
    if low & np.uint32(0xCCCCCCCC):
        place += 2
    if low & np.uint32(0xAAAAAAAA):
        place += 1
    return (index << 5) + place


# Edges


@inner
def edge(relation, source, target):
    return np.uint32(relation << 24 | source << 12 | target)


@inner
def edge_relation(entry):
    return np.int64(entry >> np.uint32(24))


@inner
def edge_source(entry):
    return np.int64((entry >> np.uint32(12)) & np.uint32(0xFFF))


@inner
def edge_target(entry):
    return np.int64(entry & np.uint32(0xFFF))


@inner
def own_row(T, relation):
    """Where the state holds the character's own edges of a relation; -1 for INSIDE."""
    if relation == K.CLOSE:
        return T.n[K.AT_CLOSE]
    if relation == K.FACING:
        return T.n[K.AT_FACING]
    if relation == K.ON:
        return T.n[K.AT_ON]
    return -1


@jit
def targets(T, s, relation, node, out):
    """The nodes that edges of the relation lead to from a node, into ``out`` [W]."""
    own = own_row(T, relation)
    c = T.n[K.CHARACTER]
    if node == c and own >= 0:
        for w in range(T.n[K.WORDS]):
            out[w] = s[own + w]
        return
    wiped, base = T.n[K.AT_WIPED] + relation * T.n[K.WORDS], targets_at(T, relation, node)
    if bit(s, wiped, node):
        out[:] = 0
    else:
        for w in range(T.n[K.WORDS]):
            out[w] = T.bits[base + w] & ~s[wiped + w]
    for slot in range(T.n[K.AT_EDGES], T.n[K.AT_EDGES] + s[T.n[K.AT_COUNT]]):
        if edge_relation(s[slot]) == relation:
            if edge_source(s[slot]) == node:
                put_bit(out, K.START, edge_target(s[slot]))
            elif relation == K.CLOSE and edge_target(s[slot]) == node:
                put_bit(out, K.START, edge_source(s[slot]))
    if relation == K.CLOSE and bit(s, own, node):
        put_bit(out, K.START, c)


@jit
def sources(T, s, relation, node, out):
    """The nodes from which edges of the relation lead to a node, into ``out`` [W]."""
    if relation == K.CLOSE:
        targets(T, s, relation, node, out)
        return
    wiped, base = T.n[K.AT_WIPED] + relation * T.n[K.WORDS], sources_at(T, relation, node)
    if bit(s, wiped, node):
        out[:] = 0
    else:
        for w in range(T.n[K.WORDS]):
            out[w] = T.bits[base + w] & ~s[wiped + w]
    for slot in range(T.n[K.AT_EDGES], T.n[K.AT_EDGES] + s[T.n[K.AT_COUNT]]):
        if edge_relation(s[slot]) == relation and edge_target(s[slot]) == node:
            put_bit(out, K.START, edge_source(s[slot]))
    own = own_row(T, relation)
    if own >= 0 and bit(s, own, node):
        put_bit(out, K.START, T.n[K.CHARACTER])


@inner
def listed(T, s, relation, source, target):
    """The slot of an edge in the list, or -1."""
    for slot in range(T.n[K.AT_EDGES], T.n[K.AT_EDGES] + s[T.n[K.AT_COUNT]]):
        entry = s[slot]
        if entry == edge(relation, source, target) or (relation == K.CLOSE and entry == edge(relation, target, source)):
            return slot
    return -1


@inner
def holds(T, s, relation, source, target):
    """Whether an edge is there."""
    own = own_row(T, relation)
    if own >= 0 and source == T.n[K.CHARACTER]:
        return bit(s, own, target)
    if relation == K.CLOSE and target == T.n[K.CHARACTER]:
        return bit(s, own, source)
    wiped = T.n[K.AT_WIPED] + relation * T.n[K.WORDS]
    if bit(T.bits, targets_at(T, relation, source), target) and not bit(s, wiped, source) and not bit(s, wiped, target):
        return True
    return listed(T, s, relation, source, target) >= 0


@inner
def add(T, s, relation, source, target):
    """Make an edge; CLOSE in both directions."""
    if holds(T, s, relation, source, target):
        return
    own = own_row(T, relation)
    if own >= 0 and source == T.n[K.CHARACTER]:
        put_bit(s, own, target)
    elif relation == K.CLOSE and target == T.n[K.CHARACTER]:
        put_bit(s, own, source)
    else:
        count = s[T.n[K.AT_COUNT]]
        if T.n[K.AT_EDGES] + count >= len(s):
            raise OverflowError("more edges than a state of the array engine can hold")
        s[T.n[K.AT_EDGES] + count] = edge(relation, source, target)
        s[T.n[K.AT_COUNT]] = count + np.uint32(1)


@inner
def unlist(T, s, slot):
    """Take an edge out of the list, which keeps its order."""
    end = T.n[K.AT_EDGES] + s[T.n[K.AT_COUNT]]
    for place in range(slot, end - 1):
        s[place] = s[place + 1]
    s[end - 1] = 0
    s[T.n[K.AT_COUNT]] -= np.uint32(1)


@inner
def wipe(T, s, relation, node):
    """Delete all edges of a relation from and to a node."""
    put_bit(s, T.n[K.AT_WIPED] + relation * T.n[K.WORDS], node)
    own = own_row(T, relation)
    if own >= 0:
        if node == T.n[K.CHARACTER]:
            for w in range(T.n[K.WORDS]):
                s[own + w] = 0
        else:
            clear_bit(s, own, node)
    slot = T.n[K.AT_EDGES]
    while slot < T.n[K.AT_EDGES] + s[T.n[K.AT_COUNT]]:
        entry = s[slot]
        if edge_relation(entry) == relation and (edge_source(entry) == node or edge_target(entry) == node):
            unlist(T, s, slot)
        else:
            slot += 1
