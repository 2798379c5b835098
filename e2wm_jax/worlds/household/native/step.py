"""The rules on one CPU core: a state is a vector of uint32 (`tables.Layout`), compiled with numba.

Reads like a list of definitions: the tests of `rules`, its effects, then `step`; what they are made of is in
`tables`, `edges`, `order` and `places`.
"""

import numpy as np

from e2wm_jax.worlds.household.native.edges import (
    add,
    bit,
    clear_bit,
    edge,
    edge_source,
    edge_target,
    holds,
    listed,
    next_node,
    put_bit,
    sources,
    targets,
    unlist,
    wipe,
)
from e2wm_jax.worlds.household.native.jit import inner, jit
from e2wm_jax.worlds.household.native.order import first_in_set
from e2wm_jax.worlds.household.native.places import (
    doors_open,
    faced,
    free_hand,
    has_posture,
    has_state,
    held_in,
    in_closed,
    is_held,
    let_go,
    loaded,
    near,
    room,
)
from e2wm_jax.worlds.household.native.tables import (
    ACCESSIBLE,
    ARGUMENT,
    AT_BOUND,
    AT_CLOSE,
    AT_COUNT,
    AT_EDGES,
    AT_FACING,
    AT_HANDS,
    AT_MEMORY,
    AT_ON,
    AT_STATES,
    AT_WIPED,
    BED_LEFT,
    BODIES,
    BOUND,
    CHARACTER,
    CLOSE,
    COMPUTERS,
    CRASH,
    DIALECT,
    DROP,
    E2WM,
    EDIBLE,
    EFFECT,
    EVERYTHING,
    FACED,
    FACING,
    FIND_OR_WALK,
    FOOD,
    FREE_HAND,
    GAINED,
    GRAB,
    GRABBED,
    HANDS_FULL,
    HAS,
    HELD,
    IN_A_ROOM,
    INSIDE,
    KINDS,
    KNIFE,
    KNIVES,
    LACKS,
    LIE,
    LOADED,
    LOST,
    LYING_STATE,
    MOST_CHECKS,
    NEAR,
    NO_STATE,
    NODES,
    NONE,
    NOT_GRABBED,
    NOTE,
    OF,
    ON,
    OPEN,
    OPEN_DOORS,
    OPENABLE,
    OTHERWISE,
    OWN_WALK,
    PLACED,
    POSTURE,
    POUR,
    PUT_BACK,
    PUT_IN,
    PUT_ON,
    REACHABLE,
    ROOMS,
    SAME_ROOM,
    SEAT_LEFT,
    SEATED,
    SEATED_STATES,
    SEATS,
    SEEN,
    SIT,
    SITTING_STATE,
    SKIP,
    STAND,
    START,
    STATE,
    SURFACES,
    SWAP,
    TAKE_OFF,
    TEST,
    TURN,
    UPRIGHT,
    VH19,
    VH23,
    WALK,
    WALK_VERB,
    WALKABLE,
    WATER,
    WEAR,
    WORDS,
    WORN,
    check_of,
    effect_of,
)

# The tests of `rules`


@inner
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


@inner
def come_close(T, s, nodes):
    """CLOSE(C,n) for a set of nodes."""
    for w in range(T.n[WORDS]):
        s[T.n[AT_CLOSE] + w] |= nodes[w]


@inner
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


@inner
def find(T, s, x):
    for w in range(T.n[WORDS]):
        s[T.n[AT_FACING] + w] = 0
    put_bit(s, T.n[AT_CLOSE], x)
    put_bit(s, T.n[AT_BOUND], x)


@inner
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


@inner
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


@inner
def put(T, s, x, y, relation):
    let_go(T, s, x)
    put_bit(s, T.n[AT_CLOSE], y)
    add(T, s, CLOSE, x, y)
    if relation != CLOSE:
        add(T, s, relation, x, y)
    s[T.n[AT_MEMORY] + x] = 0


@inner
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


@inner
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


def advance(T, s, verb, x, y):
    """Execute a line on the state in place; whether it succeeds with its effect."""
    succeeds, check, _ = step(T, s, verb, x, y)
    return succeeds and check < 0
