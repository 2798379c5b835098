"""The rules on one CPU core: a state is a vector of uint32 (`tables.Layout`), compiled with numba.

Reads like a list of definitions: edges, then rooms and hands, then the tests and effects of `rules`, then `step`.
"""

from typing import NamedTuple

import numpy as np

from e2wm_jax.simulate import tables
from e2wm_jax.simulate.compiled import jit
from e2wm_jax.simulate.rules import RULES, VERB_INDEX, Effect, Otherwise, Test
from e2wm_jax.simulate.tables import Tables, words_of

DONE = 0
VH23, VH19, E2WM = np.arange(3)
MOST_LISTED = 1024  # size of the set table that is emulated

# numba reads module constants, but no enumerations. They are numpy numbers because it would compile a function anew for
# each Python number that is handed to it.
ON, INSIDE, CLOSE, FACING = np.arange(4)
CLOSED, OPEN = np.int64(tables.CLOSED), np.int64(tables.OPEN)
SITTING, LYING = np.int64(tables.SITTING), np.int64(tables.LYING)
START, RIGHT = np.int64(0), np.int64(0)
NONE = np.int64(-1)
TEST, OF, ARGUMENT, OTHERWISE = np.arange(4)
FIRST, SECOND = np.arange(2)
NEAR_SET, HOUSED_SET, FACED_SET, REACHABLE_SET, HELD_SET, FOOD_SET, SPARE_SET = np.arange(7)
EFFECT, LOST, GAINED = np.arange(3)
WALK_VERB = np.int64(VERB_INDEX["WALK"])
SEATED_STATES, SITTING_STATE, LYING_STATE = (
    np.int64(1 << tables.SITTING | 1 << tables.LYING),
    np.int64(1 << tables.SITTING),
    np.int64(1 << tables.LYING),
)
NO_STATE = np.int64(0)
(
    HAS, LACKS, STATE, NEAR, HELD, FREE_HAND, HANDS_FULL, KNIFE, UPRIGHT, SEATED, NOT_GRABBED, GRABBED, REACHABLE,
    SEAT_LEFT, BED_LEFT, FACED, SEEN, IN_A_ROOM, PLACED, SAME_ROOM, OPEN_DOORS, ACCESSIBLE, WORN, LOADED, FOOD,
    WALKABLE, BOUND, NEVER,
) = (np.int64(test) for test in Test)  # fmt: skip
(
    NOTHING, WALK, FIND, FIND_OR_WALK, TURN, SIT, LIE, STAND, GRAB, PUT_ON, PUT_IN, PUT_BACK, DROP, SWAP, WEAR,
    TAKE_OFF, POUR,
) = (np.int64(effect) for effect in Effect)  # fmt: skip
FAIL, CRASH, NOTE, SKIP = (np.int64(otherwise) for otherwise in Otherwise)


# The tables, flat: a function that is given dozens of arrays spends its time on handing them on

_NUMBERS = (
    "order_start", "order", "ids", "seats", "checks", "effects", "initial_posture", "doors", "door_rooms", "door_near",
    "room_number", "ways", "has_door",
)  # fmt: skip
_SETS = (
    "targets", "sources", "kinds", "rooms", "bodies", "computers", "openable", "surfaces", "edible", "knives", "water",
    "own_walk",
)  # fmt: skip
# Where in `NativeTables.n` things stand: numbers first, then where each array begins in `n` or `bits`.
(
    NODES, WORDS, CHARACTER, DIALECT, MOST_CHECKS, DOOR_COUNT, ROOM_COUNT,
    AT_WIPED, AT_CLOSE, AT_FACING, AT_ON, AT_BOUND, AT_STATES, AT_HANDS, AT_MEMORY, AT_COUNT, AT_EDGES, SIZE,
    ORDER_START, ORDER, IDS, SEATS, CHECKS, EFFECTS, POSTURE, DOORS, DOOR_ROOMS, DOOR_NEAR, ROOM_NUMBER, WAYS, HAS_DOOR,
    ARITIES, QUESTIONS, ASKED,
    TARGETS, SOURCES, KINDS, ROOMS, BODIES, COMPUTERS, OPENABLE, SURFACES, EDIBLE, KNIVES, WATER, OWN_WALK, EVERYTHING,
    FITTING, HEADER,
) = np.arange(49)  # fmt: skip


class NativeTables(NamedTuple):
    """`Tables` for compiled code."""

    n: np.ndarray  # int64
    bits: np.ndarray  # uint32


def native_tables(tables: Tables) -> NativeTables:
    """Flatten the tables of a scene."""
    sizes = (len(tables.doors), len(tables.has_door))
    head = [
        tables.nodes,
        tables.words,
        tables.character,
        tables.dialect,
        tables.checks.shape[1],
        *sizes,
        *tables.layout,
    ]
    numbers = [np.ravel(getattr(tables, name)).astype(np.int64) for name in _NUMBERS]
    numbers.append(np.array([rule.arity for rule in RULES], np.int64))
    asked = [tuple(check) for verb in tables.checks[..., [0, 2]].tolist() for check in verb]
    questions = sorted({question for question in asked if question[0] > HAS})
    numbers += [np.ravel(questions), np.array([questions.index(q) if q in questions else -1 for q in asked], np.int64)]
    everything = words_of(list(range(tables.nodes)), tables.words)
    fitting = np.broadcast_to(everything, (len(RULES), 2, tables.words)).copy()  # what passes the HAS checks of X, of Y
    for verb, checks in enumerate(tables.checks):
        for _, of, argument, _ in checks[checks[:, 0] == HAS]:
            fitting[verb, of] &= tables.kinds[argument]
    sets = [*(np.ravel(getattr(tables, name)) for name in _SETS), everything, fitting.ravel()]
    starts = HEADER + np.cumsum([0, *map(len, numbers)])[:-1]
    head += [*starts, *np.cumsum([0, *map(len, sets)])[:-1]]
    assert len(head) == HEADER
    return NativeTables(np.concatenate([np.array(head, np.int64), *numbers]), np.concatenate(sets))


@jit
def targets_at(T, relation, node):
    """Where the row of `Tables.targets` begins in ``bits``."""
    return T.n[TARGETS] + (relation * T.n[NODES] + node) * T.n[WORDS]


@jit
def sources_at(T, relation, node):
    return T.n[SOURCES] + (relation * T.n[NODES] + node) * T.n[WORDS]


@jit
def check_of(T, verb, place, item):
    return T.n[T.n[CHECKS] + (verb * T.n[MOST_CHECKS] + place) * 4 + item]


@jit
def effect_of(T, verb, item):
    return T.n[T.n[EFFECTS] + verb * 3 + item]


# Bits


@jit
def bit(words, start, node):
    """Whether a node is in the set that begins at ``start``."""
    return (words[start + (node >> 5)] >> np.uint32(node & 31)) & np.uint32(1) != 0


@jit
def put_bit(words, start, node):
    words[start + (node >> 5)] |= np.uint32(1) << np.uint32(node & 31)


@jit
def clear_bit(words, start, node):
    words[start + (node >> 5)] &= ~(np.uint32(1) << np.uint32(node & 31))


@jit
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


@jit
def edge(relation, source, target):
    return np.uint32(relation << 24 | source << 12 | target)


@jit
def edge_relation(entry):
    return np.int64(entry >> np.uint32(24))


@jit
def edge_source(entry):
    return np.int64((entry >> np.uint32(12)) & np.uint32(0xFFF))


@jit
def edge_target(entry):
    return np.int64(entry & np.uint32(0xFFF))


@jit
def own_row(T, relation):
    """Where the state holds the character's own edges of a relation; -1 for INSIDE."""
    if relation == CLOSE:
        return T.n[AT_CLOSE]
    if relation == FACING:
        return T.n[AT_FACING]
    if relation == ON:
        return T.n[AT_ON]
    return -1


@jit
def targets(T, s, relation, node, out):
    """The nodes that edges of the relation lead to from a node, into ``out`` [W]."""
    own = own_row(T, relation)
    c = T.n[CHARACTER]
    if node == c and own >= 0:
        for w in range(T.n[WORDS]):
            out[w] = s[own + w]
        return
    wiped, base = T.n[AT_WIPED] + relation * T.n[WORDS], targets_at(T, relation, node)
    if bit(s, wiped, node):
        out[:] = 0
    else:
        for w in range(T.n[WORDS]):
            out[w] = T.bits[base + w] & ~s[wiped + w]
    for slot in range(T.n[AT_EDGES], T.n[AT_EDGES] + s[T.n[AT_COUNT]]):
        if edge_relation(s[slot]) == relation:
            if edge_source(s[slot]) == node:
                put_bit(out, START, edge_target(s[slot]))
            elif relation == CLOSE and edge_target(s[slot]) == node:
                put_bit(out, START, edge_source(s[slot]))
    if relation == CLOSE and bit(s, own, node):
        put_bit(out, START, c)


@jit
def sources(T, s, relation, node, out):
    """The nodes from which edges of the relation lead to a node, into ``out`` [W]."""
    if relation == CLOSE:
        targets(T, s, relation, node, out)
        return
    wiped, base = T.n[AT_WIPED] + relation * T.n[WORDS], sources_at(T, relation, node)
    if bit(s, wiped, node):
        out[:] = 0
    else:
        for w in range(T.n[WORDS]):
            out[w] = T.bits[base + w] & ~s[wiped + w]
    for slot in range(T.n[AT_EDGES], T.n[AT_EDGES] + s[T.n[AT_COUNT]]):
        if edge_relation(s[slot]) == relation and edge_target(s[slot]) == node:
            put_bit(out, START, edge_source(s[slot]))
    own = own_row(T, relation)
    if own >= 0 and bit(s, own, node):
        put_bit(out, START, T.n[CHARACTER])


@jit
def listed(T, s, relation, source, target):
    """The slot of an edge in the list, or -1."""
    for slot in range(T.n[AT_EDGES], T.n[AT_EDGES] + s[T.n[AT_COUNT]]):
        entry = s[slot]
        if entry == edge(relation, source, target) or (relation == CLOSE and entry == edge(relation, target, source)):
            return slot
    return -1


@jit
def holds(T, s, relation, source, target):
    """Whether an edge is there."""
    own = own_row(T, relation)
    if own >= 0 and source == T.n[CHARACTER]:
        return bit(s, own, target)
    if relation == CLOSE and target == T.n[CHARACTER]:
        return bit(s, own, source)
    wiped = T.n[AT_WIPED] + relation * T.n[WORDS]
    if bit(T.bits, targets_at(T, relation, source), target) and not bit(s, wiped, source) and not bit(s, wiped, target):
        return True
    return listed(T, s, relation, source, target) >= 0


@jit
def add(T, s, relation, source, target):
    """Make an edge; CLOSE in both directions."""
    if holds(T, s, relation, source, target):
        return
    own = own_row(T, relation)
    if own >= 0 and source == T.n[CHARACTER]:
        put_bit(s, own, target)
    elif relation == CLOSE and target == T.n[CHARACTER]:
        put_bit(s, own, source)
    else:
        count = s[T.n[AT_COUNT]]
        if T.n[AT_EDGES] + count >= len(s):
            raise OverflowError("more edges than a state of the array engine can hold")
        s[T.n[AT_EDGES] + count] = edge(relation, source, target)
        s[T.n[AT_COUNT]] = count + np.uint32(1)


@jit
def unlist(T, s, slot):
    """Take an edge out of the list, which keeps its order."""
    end = T.n[AT_EDGES] + s[T.n[AT_COUNT]]
    for place in range(slot, end - 1):
        s[place] = s[place + 1]
    s[end - 1] = 0
    s[T.n[AT_COUNT]] -= np.uint32(1)


@jit
def wipe(T, s, relation, node):
    """Delete all edges of a relation from and to a node."""
    put_bit(s, T.n[AT_WIPED] + relation * T.n[WORDS], node)
    own = own_row(T, relation)
    if own >= 0:
        if node == T.n[CHARACTER]:
            for w in range(T.n[WORDS]):
                s[own + w] = 0
        else:
            clear_bit(s, own, node)
    slot = T.n[AT_EDGES]
    while slot < T.n[AT_EDGES] + s[T.n[AT_COUNT]]:
        entry = s[slot]
        if edge_relation(entry) == relation and (edge_source(entry) == node or edge_target(entry) == node):
            unlist(T, s, slot)
        else:
            slot += 1


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


# Rooms, hands, closeness


@jit
def room(T, s, node):
    """The room of a node, or -1. vh23 follows containers upwards, the others look at direct rooms only."""
    if bit(T.bits, T.n[ROOMS], node):
        return node
    row = np.empty(T.n[WORDS], np.uint32)
    targets(T, s, INSIDE, node, row)
    one = next_node(row, NONE)
    if T.n[DIALECT] != VH23 or (one >= 0 and next_node(row, one) >= 0):
        for w in range(T.n[WORDS]):
            row[w] &= T.bits[T.n[ROOMS] + w]
        return first_in_set(T, s, INSIDE, node, row)
    for _ in range(64):  # VirtualHome would not return from a circle
        if one < 0 or bit(T.bits, T.n[ROOMS], one):
            return one
        targets(T, s, INSIDE, one, row)
        one = first_in_set(T, s, INSIDE, one, row)
    return -1


@jit
def held_in(T, s, hand):
    """What a hand (0 right, 1 left) holds, or -1."""
    return np.int64(s[T.n[AT_HANDS] + hand]) - 1


@jit
def is_held(T, s, node):
    return held_in(T, s, 0) == node or held_in(T, s, 1) == node


@jit
def free_hand(T, s):
    """The hand that takes the next thing, or -1."""
    if s[T.n[AT_HANDS]] == 0:
        return 0
    return 1 if s[T.n[AT_HANDS] + 1] == 0 else -1


@jit
def let_go(T, s, node):
    for hand in range(2):
        if held_in(T, s, hand) == node:
            s[T.n[AT_HANDS] + hand] = 0


@jit
def near(T, s, node):
    """CLOSE(C,node), or CLOSE(C,k) and (CLOSE(k,node) or ON(node,k)) for some k."""
    close = T.n[AT_CLOSE]
    if bit(s, close, node):
        return True
    wiped_close, wiped_on = T.n[AT_WIPED] + CLOSE * T.n[WORDS], T.n[AT_WIPED] + ON * T.n[WORDS]
    if node == T.n[CHARACTER]:  # whatever it is CLOSE to is CLOSE to it
        for w in range(T.n[WORDS]):
            if s[close + w]:
                return True
        return False
    close_at, on_at = targets_at(T, CLOSE, node), targets_at(T, ON, node)
    free_close, free_on = not bit(s, wiped_close, node), not bit(s, wiped_on, node)
    for w in range(T.n[WORDS]):
        found = np.uint32(0)
        if free_close:
            found |= T.bits[close_at + w] & ~s[wiped_close + w]
        if free_on:
            found |= T.bits[on_at + w] & ~s[wiped_on + w]
        if found & s[close + w]:
            return True
    for slot in range(T.n[AT_EDGES], T.n[AT_EDGES] + s[T.n[AT_COUNT]]):
        entry = s[slot]
        relation = edge_relation(entry)
        if relation == CLOSE or relation == ON:
            if edge_source(entry) == node and bit(s, close, edge_target(entry)):
                return True
            if relation == CLOSE and edge_target(entry) == node and bit(s, close, edge_source(entry)):
                return True
    return False


@jit
def faced(T, s, node):
    """FACING(C,node), or FACING(C,k) and FACING(k,node) for some k."""
    facing, wiped = T.n[AT_FACING], T.n[AT_WIPED] + FACING * T.n[WORDS]
    base = sources_at(T, FACING, node)
    if bit(s, facing, node):
        return True
    if bit(s, wiped, node):
        return False
    for w in range(T.n[WORDS]):
        if T.bits[base + w] & ~s[wiped + w] & s[facing + w]:
            return True
    return False


@jit
def in_closed(T, s, node):
    """Whether a node is directly inside something closed that is no room."""
    row = np.empty(T.n[WORDS], np.uint32)
    targets(T, s, INSIDE, node, row)
    for w in range(T.n[WORDS]):
        if row[w] & s[T.n[AT_STATES] + CLOSED * T.n[WORDS] + w] & ~T.bits[T.n[ROOMS] + w]:
            return True
    return False


@jit
def has_state(T, s, node, state):
    return bit(s, T.n[AT_STATES] + state * T.n[WORDS], node)


@jit
def has_posture(T, s, states):
    """Whether the character is in one of these states (bits); vh23 remembers those of the scene for ever."""
    for state in range(10):
        if states >> state & 1:
            if T.n[DIALECT] == VH23:
                if T.n[T.n[POSTURE] + state]:
                    return True
            elif has_state(T, s, T.n[CHARACTER], state):
                return True
    return False


@jit
def loaded(T, s, node, only):
    """How many nodes of a set of the scene are ON a node."""
    row = np.empty(T.n[WORDS], np.uint32)
    sources(T, s, ON, node, row)
    count = 0
    for w in range(T.n[WORDS]):
        word = row[w] & T.bits[T.n[only] + w]
        while word:
            word &= word - np.uint32(1)
            count += 1
    return count


@jit
def doors_open(T, s, node):
    """0 where nothing bars the way to a node's room; 1 no way at all, 2 closed doors, 3 a room without a door."""
    number, doors, rooms = T.n[ROOM_NUMBER], T.n[DOOR_COUNT], T.n[ROOM_COUNT]
    here, there = T.n[number + room(T, s, T.n[CHARACTER])], T.n[number + room(T, s, node)]
    for door in range(doors):
        if T.n[T.n[DOORS] + door] == node and T.n[T.n[DOOR_NEAR] + door * rooms + here]:
            return 0
    if not T.n[T.n[HAS_DOOR] + here]:
        return 3
    reached = np.zeros(rooms, np.bool_)
    reached[here] = True
    grew = True
    while grew:
        grew = False
        for door in range(doors):
            a, b = T.n[T.n[DOOR_ROOMS] + 2 * door], T.n[T.n[DOOR_ROOMS] + 2 * door + 1]
            if a >= 0 and reached[a] != reached[b] and not has_state(T, s, T.n[T.n[DOORS] + door], CLOSED):
                reached[a] = reached[b] = grew = True
    if reached[there]:
        return 0
    way = T.n[WAYS] + (here * rooms + there) * rooms
    if T.n[way] < 0:
        return 1
    nearest = -1
    for place in range(way, way + rooms):
        if T.n[place] >= 0 and has_state(T, s, T.n[T.n[DOORS] + T.n[place]], CLOSED):
            nearest = T.n[T.n[DOORS] + T.n[place]]
    return 0 if nearest == node else 2


# The tests of `rules`


@jit
def passes(T, s, test, node, argument, putting_inside):
    """Whether a check holds for a node. ``putting_inside``: of PUT_BACK, whether the thing came from inside."""
    if test == HAS:
        return bit(T.bits, T.n[KINDS] + argument * T.n[WORDS], node)
    if test == NEAR:
        return near(T, s, node)
    if test == STATE:
        return has_state(T, s, node, argument)
    if test == LACKS:
        return not has_state(T, s, node, argument)
    if test == HELD:
        return is_held(T, s, node)
    if test == FREE_HAND:
        return free_hand(T, s) >= 0
    if test == HANDS_FULL:
        return s[T.n[AT_HANDS]] != 0 or s[T.n[AT_HANDS] + 1] != 0
    if test == KNIFE:
        for hand in range(2):
            thing = held_in(T, s, hand)
            if thing >= 0 and bit(T.bits, T.n[KNIVES], thing):
                return True
        return False
    if test == UPRIGHT:
        return not has_posture(T, s, argument)
    if test == SEATED:
        return has_posture(T, s, argument)
    if test == NOT_GRABBED:
        return s[T.n[AT_MEMORY] + node] == 0
    if test == GRABBED:
        return s[T.n[AT_MEMORY] + node] != 0
    if test == REACHABLE:
        return not in_closed(T, s, node)
    if test == SEAT_LEFT or test == BED_LEFT:
        return loaded(T, s, node, EVERYTHING) < T.n[T.n[SEATS] + (test - SEAT_LEFT) * T.n[NODES] + node]
    if test == FACED:
        return faced(T, s, node)
    if test == SEEN:
        seated = has_posture(T, s, SEATED_STATES)
        return bit(T.bits, T.n[COMPUTERS], node) or not seated or bit(s, T.n[AT_FACING], node)
    if test == IN_A_ROOM:
        return room(T, s, node) >= 0
    if test == PLACED:
        return room(T, s, T.n[CHARACTER]) >= 0
    if test == SAME_ROOM:
        return room(T, s, T.n[CHARACTER]) == room(T, s, node)
    if test == OPEN_DOORS:
        return doors_open(T, s, node) == 0
    if test == ACCESSIBLE:
        return not putting_inside or not bit(T.bits, T.n[OPENABLE], node) or has_state(T, s, node, OPEN)
    if test == WORN:
        return holds(T, s, ON, node, T.n[CHARACTER])
    if test == LOADED:
        return bit(T.bits, T.n[EDIBLE], node) or loaded(T, s, node, EVERYTHING) > 0
    if test == FOOD:
        return bit(T.bits, T.n[EDIBLE], node) or loaded(T, s, node, EDIBLE) > 0
    if test == WALKABLE:
        barred = bit(T.bits, T.n[BODIES], node) or has_posture(T, s, SEATED_STATES)
        return near(T, s, node) or not (barred or holds(T, s, ON, node, T.n[CHARACTER]))
    if test == BOUND:
        return bit(s, T.n[AT_BOUND], node)
    return False  # NEVER


# The effects of `rules`


@jit
def come_close(T, s, nodes):
    """CLOSE(C,n) for a set of nodes."""
    for w in range(T.n[WORDS]):
        s[T.n[AT_CLOSE] + w] |= nodes[w]


@jit
def walk(T, s, x):
    """The character goes to ``x``. The order of the wipings and the old room of what it carries are as executed."""
    c, words = T.n[CHARACTER], T.n[WORDS]
    new_room, old_room = room(T, s, x), room(T, s, c)
    row, extra = np.empty(words, np.uint32), np.zeros(words, np.uint32)
    if T.n[DIALECT] == E2WM:  # seen from where the character was
        for relation in (ON, INSIDE, CLOSE):
            targets(T, s, relation, x, row)
            extra |= row
        if not bit(T.bits, T.n[OWN_WALK], x):
            sources(T, s, INSIDE, x, row)
            extra |= row
    wipe(T, s, INSIDE, c)
    wipe(T, s, CLOSE, c)
    wipe(T, s, FACING, c)
    add(T, s, INSIDE, c, new_room)
    if T.n[DIALECT] != VH23 or not bit(T.bits, T.n[ROOMS], x):
        targets(T, s, INSIDE, x, row)
        for w in range(words):
            row[w] = (row[w] & ~T.bits[T.n[ROOMS] + w]) | T.bits[T.n[BODIES] + w]
        come_close(T, s, row)
        put_bit(s, T.n[AT_CLOSE], x)
    for hand in range(2):
        thing = held_in(T, s, hand)
        if thing >= 0:
            wipe(T, s, INSIDE, thing)
            wipe(T, s, CLOSE, thing)
            wipe(T, s, FACING, thing)
    for hand in range(1, -1, -1):
        thing = held_in(T, s, hand)
        if thing >= 0:
            put_bit(s, T.n[AT_CLOSE], thing)
            add(T, s, INSIDE, thing, old_room)
    if T.n[DIALECT] == VH23:
        if bit(T.bits, T.n[OPENABLE], x):
            sources(T, s, INSIDE, x, row)
            come_close(T, s, row)
        targets(T, s, ON, x, row)
        come_close(T, s, row)
    else:
        if bit(T.bits, T.n[SURFACES], x):
            sources(T, s, ON, x, row)
            come_close(T, s, row)
        come_close(T, s, extra)
    put_bit(s, T.n[AT_BOUND], x)


@jit
def find(T, s, x):
    for w in range(T.n[WORDS]):
        s[T.n[AT_FACING] + w] = 0
    put_bit(s, T.n[AT_CLOSE], x)
    put_bit(s, T.n[AT_BOUND], x)


@jit
def pose(T, s, lost, gained):
    """The character gains and loses states; vh23 starts from those of the scene."""
    if T.n[DIALECT] == VH23:
        for state in range(10):
            if T.n[T.n[POSTURE] + state]:
                put_bit(s, T.n[AT_STATES] + state * T.n[WORDS], T.n[CHARACTER])
            else:
                clear_bit(s, T.n[AT_STATES] + state * T.n[WORDS], T.n[CHARACTER])
    for state in range(10):
        if lost >> state & 1:
            clear_bit(s, T.n[AT_STATES] + state * T.n[WORDS], T.n[CHARACTER])
        if gained >> state & 1:
            put_bit(s, T.n[AT_STATES] + state * T.n[WORDS], T.n[CHARACTER])


@jit
def grab(T, s, x):
    """The character takes ``x``, and remembers the first thing that it was ON, INSIDE or CLOSE to."""
    here, hand = room(T, s, T.n[CHARACTER]), free_hand(T, s)
    row = np.empty(T.n[WORDS], np.uint32)
    place, relation = NONE, ON
    for kind in (ON, INSIDE, CLOSE):
        if place < 0:
            targets(T, s, kind, x, row)
            for w in range(T.n[WORDS]):
                row[w] &= ~T.bits[T.n[ROOMS] + w]
            place, relation = first_in_set(T, s, kind, x, row), kind
    wipe(T, s, ON, x)
    wipe(T, s, INSIDE, x)
    wipe(T, s, CLOSE, x)
    if T.n[DIALECT] == VH23:
        let_go(T, s, x)
    put_bit(s, T.n[AT_CLOSE], x)
    s[T.n[AT_HANDS] + hand] = x + 1
    if here >= 0:
        add(T, s, INSIDE, x, here)
    if place >= 0:
        put_bit(s, T.n[AT_CLOSE], place)
        s[T.n[AT_MEMORY] + x] = 1 + relation + 4 * place


@jit
def put(T, s, x, y, relation):
    let_go(T, s, x)
    put_bit(s, T.n[AT_CLOSE], y)
    add(T, s, CLOSE, x, y)
    if relation != CLOSE:
        add(T, s, relation, x, y)
    s[T.n[AT_MEMORY] + x] = 0


@jit
def apply(T, s, verb, x, y):
    """Change the state in place by the verb's effect, all of whose checks hold."""
    effect = effect_of(T, verb, EFFECT)
    if effect == SWAP:
        clear_bit(s, T.n[AT_STATES] + effect_of(T, verb, LOST) * T.n[WORDS], x)
        put_bit(s, T.n[AT_STATES] + effect_of(T, verb, GAINED) * T.n[WORDS], x)
    elif effect == WALK:
        walk(T, s, x)
    elif effect == FIND_OR_WALK:
        find(T, s, x)
    elif effect == GRAB:
        grab(T, s, x)
    elif effect == PUT_ON:
        put(T, s, x, y, ON)
    elif effect == PUT_IN:
        put(T, s, x, y, INSIDE)
    elif effect == PUT_BACK:
        remembered = np.int64(s[T.n[AT_MEMORY] + x]) - 1
        put(T, s, x, remembered >> 2, remembered & 3)
    elif effect == TURN:
        for w in range(T.n[WORDS]):
            s[T.n[AT_FACING] + w] = 0
        put_bit(s, T.n[AT_FACING], x)
    elif effect == SIT or effect == LIE:
        put_bit(s, T.n[AT_ON], x)
        if effect == SIT:
            row = np.empty(T.n[WORDS], np.uint32)
            targets(T, s, FACING, x, row)
            for w in range(T.n[WORDS]):
                s[T.n[AT_FACING] + w] |= row[w]
            pose(T, s, LYING_STATE, SITTING_STATE)
        else:
            pose(T, s, SITTING_STATE, LYING_STATE)
    elif effect == STAND:
        if T.n[DIALECT] == E2WM:
            for w in range(T.n[WORDS]):
                s[T.n[AT_ON] + w] = 0
        pose(T, s, SEATED_STATES, NO_STATE)
    elif effect == DROP:
        let_go(T, s, x)
        here = room(T, s, T.n[CHARACTER])
        if here >= 0:
            add(T, s, INSIDE, x, here)
        s[T.n[AT_MEMORY] + x] = 0
    elif effect == WEAR:
        add(T, s, ON, x, T.n[CHARACTER])
        let_go(T, s, x)
    elif effect == TAKE_OFF:
        slot = listed(T, s, ON, x, T.n[CHARACTER])
        if slot >= 0:
            unlist(T, s, slot)
    elif effect == POUR:
        add(T, s, INSIDE, x, y)
        if bit(T.bits, T.n[WATER], x):
            let_go(T, s, x)


# Lines


@jit
def first_failing(T, s, verb, x, y, start):
    """The place of the first check from ``start`` on that does not hold, or -1."""
    effect = effect_of(T, verb, EFFECT)
    inside = effect == PUT_IN
    if effect == PUT_BACK and s[T.n[AT_MEMORY] + x] != 0:
        remembered = np.int64(s[T.n[AT_MEMORY] + x]) - 1
        y, inside = remembered >> 2, remembered & 3 == INSIDE
    for place in range(start, T.n[MOST_CHECKS]):
        test = check_of(T, verb, place, TEST)
        if test < 0:
            return -1
        node = y if check_of(T, verb, place, OF) else x
        if not passes(T, s, test, node, check_of(T, verb, place, ARGUMENT), inside):
            return place
    return -1


@jit
def step(T, s, verb, x, y):
    """Execute a line on the state in place.

    Returns:
        (outcome, check, note). Outcome: whether the line succeeds. Check: the place, in the dialect's rule, of the
        check that ended it (-1: none did). Note: of a check that only left a message (-1: none). A far FIND is a
        walk: where that fails, note is 100 + the place of the walk's check.
    """
    note, start, inside = NONE, START, np.bool_(False)
    while True:
        place = first_failing(T, s, verb, x, y, start)
        if place < 0:
            break
        otherwise = check_of(T, verb, place, OTHERWISE)
        if otherwise != NOTE:
            return otherwise == SKIP, place, note
        note, start = place, place + 1
    if effect_of(T, verb, EFFECT) == FIND_OR_WALK and not near(T, s, x):
        if passes(T, s, WALKABLE, x, START, inside):
            stopped = first_failing(T, s, WALK_VERB, x, y, START)
            if stopped < 0:
                walk(T, s, x)
                return True, -1, -1
            if check_of(T, WALK_VERB, stopped, OTHERWISE) == CRASH or T.n[DIALECT] == VH19:
                return False, -1, 100 + stopped
            note = 100 + stopped
    apply(T, s, verb, x, y)
    return True, -1, note


@jit
def changes(T, old, new, gained, lost):
    """Edges that two states do not share, as list entries, into ``gained`` and ``lost``; returns their numbers.

    An edge can only have changed if it has an end at a node that was wiped in between, in an edge that entered or left
    the list, or if it is one of the character's.
    """
    words, c = T.n[WORDS], T.n[CHARACTER]
    touched = np.zeros(words, np.uint32)
    put_bit(touched, START, c)
    for relation in range(4):
        for w in range(words):
            place = T.n[AT_WIPED] + relation * words + w
            touched[w] |= old[place] ^ new[place]
    for one, other in ((old, new), (new, old)):
        for slot in range(T.n[AT_EDGES], T.n[AT_EDGES] + one[T.n[AT_COUNT]]):
            known = False
            for place in range(T.n[AT_EDGES], T.n[AT_EDGES] + other[T.n[AT_COUNT]]):
                known = known or other[place] == one[slot]
            if not known:
                put_bit(touched, START, edge_source(one[slot]))
                put_bit(touched, START, edge_target(one[slot]))
    before, after = np.empty(words, np.uint32), np.empty(words, np.uint32)
    counts = np.zeros(2, np.int64)
    node = next_node(touched, NONE)
    while node >= 0:
        for relation in (ON, INSIDE, CLOSE, FACING):
            targets(T, old, relation, node, before)
            targets(T, new, relation, node, after)
            for w in range(words):
                before[w], after[w] = before[w] & ~after[w], after[w] & ~before[w]
            for out, row, which in ((gained, after, 0), (lost, before, 1)):
                other = next_node(row, NONE)
                while other >= 0:
                    out[counts[which]] = edge(relation, node, other)
                    counts[which] += 1
                    other = next_node(row, other)
            sources(T, old, relation, node, before)
            sources(T, new, relation, node, after)
            for w in range(words):  # from touched nodes they are known already
                before[w], after[w] = before[w] & ~after[w] & ~touched[w], after[w] & ~before[w] & ~touched[w]
            for out, row, which in ((gained, after, 0), (lost, before, 1)):
                other = next_node(row, NONE)
                while other >= 0:
                    out[counts[which]] = edge(relation, other, node)
                    counts[which] += 1
                    other = next_node(row, other)
        node = next_node(touched, node)
    return counts[0], counts[1]


@jit
def advance(T, s, verb, x, y):
    """`step` for search: whether the line succeeds with its effect."""
    succeeds, check, _ = step(T, s, verb, x, y)
    return succeeds and check < 0
