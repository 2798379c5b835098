"""Where things are in a state, compiled: rooms, hands, what is near, closed in, loaded."""

import numpy as np

from e2wm_jax.worlds.household.native import tables as K
from e2wm_jax.worlds.household.native.edges import (
    bit,
    edge_relation,
    edge_source,
    edge_target,
    next_node,
    sources,
    targets,
)
from e2wm_jax.worlds.household.native.jit import inner, jit
from e2wm_jax.worlds.household.native.order import first_in_set
from e2wm_jax.worlds.household.native.tables import sources_at, targets_at

# Rooms, hands, closeness


@jit
def room(T, s, node):
    """The room of a node, or -1. vh23 follows containers upwards, the others look at direct rooms only."""
    if bit(T.bits, T.n[K.ROOMS], node):
        return node
    row = np.empty(T.n[K.WORDS], np.uint32)
    targets(T, s, K.INSIDE, node, row)
    one = next_node(row, K.NONE)
    if T.n[K.DIALECT] != K.VH23 or (one >= 0 and next_node(row, one) >= 0):
        for w in range(T.n[K.WORDS]):
            row[w] &= T.bits[T.n[K.ROOMS] + w]
        return first_in_set(T, s, K.INSIDE, node, row)
    for _ in range(64):  # VirtualHome would not return from a circle
        if one < 0 or bit(T.bits, T.n[K.ROOMS], one):
            return one
        targets(T, s, K.INSIDE, one, row)
        one = first_in_set(T, s, K.INSIDE, one, row)
    return -1


@inner
def held_in(T, s, hand):
    """What a hand (0 right, 1 left) holds, or -1."""
    return np.int64(s[T.n[K.AT_HANDS] + hand]) - 1


@inner
def is_held(T, s, node):
    return held_in(T, s, K.RIGHT) == node or held_in(T, s, K.LEFT) == node


@inner
def free_hand(T, s):
    """The hand that takes the next thing, or -1."""
    if s[T.n[K.AT_HANDS]] == 0:
        return 0
    return 1 if s[T.n[K.AT_HANDS] + 1] == 0 else -1


@inner
def let_go(T, s, node):
    for hand in range(2):
        if held_in(T, s, hand) == node:
            s[T.n[K.AT_HANDS] + hand] = 0


@inner
def near(T, s, node):
    """CLOSE(C,node), or CLOSE(C,k) and (CLOSE(k,node) or ON(node,k)) for some k."""
    close = T.n[K.AT_CLOSE]
    if bit(s, close, node):
        return True
    wiped_close, wiped_on = T.n[K.AT_WIPED] + K.CLOSE * T.n[K.WORDS], T.n[K.AT_WIPED] + K.ON * T.n[K.WORDS]
    if node == T.n[K.CHARACTER]:  # whatever it is CLOSE to is CLOSE to it
        for w in range(T.n[K.WORDS]):
            if s[close + w]:
                return True
        return False
    close_at, on_at = targets_at(T, K.CLOSE, node), targets_at(T, K.ON, node)
    free_close, free_on = not bit(s, wiped_close, node), not bit(s, wiped_on, node)
    for w in range(T.n[K.WORDS]):
        found = np.uint32(0)
        if free_close:
            found |= T.bits[close_at + w] & ~s[wiped_close + w]
        if free_on:
            found |= T.bits[on_at + w] & ~s[wiped_on + w]
        if found & s[close + w]:
            return True
    for slot in range(T.n[K.AT_EDGES], T.n[K.AT_EDGES] + s[T.n[K.AT_COUNT]]):
        entry = s[slot]
        relation = edge_relation(entry)
        if relation == K.CLOSE or relation == K.ON:
            if edge_source(entry) == node and bit(s, close, edge_target(entry)):
                return True
            if relation == K.CLOSE and edge_target(entry) == node and bit(s, close, edge_source(entry)):
                return True
    return False


@inner
def faced(T, s, node):
    """FACING(C,node), or FACING(C,k) and FACING(k,node) for some k."""
    facing, wiped = T.n[K.AT_FACING], T.n[K.AT_WIPED] + K.FACING * T.n[K.WORDS]
    base = sources_at(T, K.FACING, node)
    if bit(s, facing, node):
        return True
    if bit(s, wiped, node):
        return False
    for w in range(T.n[K.WORDS]):
        if T.bits[base + w] & ~s[wiped + w] & s[facing + w]:
            return True
    return False


@inner
def in_closed(T, s, node):
    """Whether a node is directly inside something closed that is no room."""
    row = np.empty(T.n[K.WORDS], np.uint32)
    targets(T, s, K.INSIDE, node, row)
    for w in range(T.n[K.WORDS]):
        if row[w] & s[T.n[K.AT_STATES] + K.CLOSED * T.n[K.WORDS] + w] & ~T.bits[T.n[K.ROOMS] + w]:
            return True
    return False


@inner
def has_state(T, s, node, state):
    return bit(s, T.n[K.AT_STATES] + state * T.n[K.WORDS], node)


@inner
def has_posture(T, s, states):
    """Whether the character is in one of these states (bits); vh23 remembers those of the scene for ever."""
    for state in range(10):
        if states >> state & 1:
            if T.n[K.DIALECT] == K.VH23:
                if T.n[T.n[K.POSTURE] + state]:
                    return True
            elif has_state(T, s, T.n[K.CHARACTER], state):
                return True
    return False


@inner
def loaded(T, s, node, only):
    """How many nodes of a set of the scene are ON a node."""
    row = np.empty(T.n[K.WORDS], np.uint32)
    sources(T, s, K.ON, node, row)
    count = 0
    for w in range(T.n[K.WORDS]):
        word = row[w] & T.bits[T.n[only] + w]
        while word:
            word &= word - np.uint32(1)
            count += 1
    return count


@jit
def doors_open(T, s, node):
    """0 where nothing bars the way to a node's room; 1 no way at all, 2 closed doors, 3 a room without a door."""
    number, doors, rooms = T.n[K.ROOM_NUMBER], T.n[K.DOOR_COUNT], T.n[K.ROOM_COUNT]
    here, there = T.n[number + room(T, s, T.n[K.CHARACTER])], T.n[number + room(T, s, node)]
    for door in range(doors):
        if T.n[T.n[K.DOORS] + door] == node and T.n[T.n[K.DOOR_NEAR] + door * rooms + here]:
            return 0
    if not T.n[T.n[K.HAS_DOOR] + here]:
        return 3
    reached = np.zeros(rooms, np.bool_)
    reached[here] = True
    grew = True
    while grew:
        grew = False
        for door in range(doors):
            a, b = T.n[T.n[K.DOOR_ROOMS] + 2 * door], T.n[T.n[K.DOOR_ROOMS] + 2 * door + 1]
            if a >= 0 and reached[a] != reached[b] and not has_state(T, s, T.n[T.n[K.DOORS] + door], K.CLOSED):
                reached[a] = reached[b] = grew = True
    if reached[there]:
        return 0
    way = T.n[K.WAYS] + (here * rooms + there) * rooms
    if T.n[way] < 0:
        return 1
    nearest = -1
    for place in range(way, way + rooms):
        if T.n[place] >= 0 and has_state(T, s, T.n[T.n[K.DOORS] + T.n[place]], K.CLOSED):
            nearest = T.n[T.n[K.DOORS] + T.n[place]]
    return 0 if nearest == node else 2
