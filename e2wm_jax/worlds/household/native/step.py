"""The rules on one CPU core: a state is a vector of uint32 (`tables.Layout`), compiled with numba.

Reads like a list of definitions: the tests of `rules`, its effects, then `step`; what they are made of is in
`tables`, `edges`, `order` and `places`.
"""

import numpy as np

from e2wm_jax.worlds.household.native import tables as K
from e2wm_jax.worlds.household.native.edges import (
    bit,
    edge,
    edge_source,
    edge_target,
    holds,
    next_node,
    put_bit,
    sources,
    targets,
)
from e2wm_jax.worlds.household.native.effects import apply, go
from e2wm_jax.worlds.household.native.jit import inner, jit
from e2wm_jax.worlds.household.native.places import (
    doors_open,
    faced,
    free_hand,
    has_posture,
    has_state,
    held_in,
    in_closed,
    is_held,
    loaded,
    near,
    room,
)
from e2wm_jax.worlds.household.native.tables import check_of, effect_of

# The tests of `rules`


@inner
def passes(T, s, test, node, argument, putting_inside):
    """Whether a check holds for a node. ``putting_inside``: of PUT_BACK, whether the thing came from inside."""
    if test == K.HAS:
        return bit(T.bits, T.n[K.KINDS] + argument * T.n[K.WORDS], node)
    if test == K.NEAR:
        return near(T, s, node)
    if test == K.STATE:
        return has_state(T, s, node, argument)
    if test == K.LACKS:
        return not has_state(T, s, node, argument)
    if test == K.HELD:
        return is_held(T, s, node)
    if test == K.FREE_HAND:
        return free_hand(T, s) >= 0
    if test == K.HANDS_FULL:
        return s[T.n[K.AT_HANDS]] != 0 or s[T.n[K.AT_HANDS] + 1] != 0
    if test == K.KNIFE:
        for hand in range(2):
            thing = held_in(T, s, hand)
            if thing >= 0 and bit(T.bits, T.n[K.KNIVES], thing):
                return True
        return False
    if test == K.UPRIGHT:
        return not has_posture(T, s, argument)
    if test == K.SEATED:
        return has_posture(T, s, argument)
    if test == K.NOT_GRABBED:
        return s[T.n[K.AT_MEMORY] + node] == 0
    if test == K.GRABBED:
        return s[T.n[K.AT_MEMORY] + node] != 0
    if test == K.REACHABLE:
        return not in_closed(T, s, node)
    if test == K.SEAT_LEFT or test == K.BED_LEFT:
        return loaded(T, s, node, K.EVERYTHING) < T.n[T.n[K.SEATS] + (test - K.SEAT_LEFT) * T.n[K.NODES] + node]
    if test == K.FACED:
        return faced(T, s, node)
    if test == K.SEEN:
        seated = has_posture(T, s, K.SEATED_STATES)
        return bit(T.bits, T.n[K.COMPUTERS], node) or not seated or bit(s, T.n[K.AT_FACING], node)
    if test == K.IN_A_ROOM:
        return room(T, s, node) >= 0
    if test == K.PLACED:
        return room(T, s, T.n[K.CHARACTER]) >= 0
    if test == K.SAME_ROOM:
        return room(T, s, T.n[K.CHARACTER]) == room(T, s, node)
    if test == K.OPEN_DOORS:
        return doors_open(T, s, node) == 0
    if test == K.ACCESSIBLE:
        return not putting_inside or not bit(T.bits, T.n[K.OPENABLE], node) or has_state(T, s, node, K.OPEN)
    if test == K.WORN:
        return holds(T, s, K.ON, node, T.n[K.CHARACTER])
    if test == K.LOADED:
        return bit(T.bits, T.n[K.EDIBLE], node) or loaded(T, s, node, K.EVERYTHING) > 0
    if test == K.FOOD:
        return bit(T.bits, T.n[K.EDIBLE], node) or loaded(T, s, node, K.EDIBLE) > 0
    if test == K.WALKABLE:
        barred = bit(T.bits, T.n[K.BODIES], node) or has_posture(T, s, K.SEATED_STATES)
        return near(T, s, node) or not (barred or holds(T, s, K.ON, node, T.n[K.CHARACTER]))
    if test == K.BOUND:
        return bit(s, T.n[K.AT_BOUND], node)
    return False  # NEVER


# Lines


@inner
def first_failing(T, s, verb, x, y, start):
    """The place of the first check from ``start`` on that does not hold, or -1."""
    effect = effect_of(T, verb, K.EFFECT)
    inside = effect == K.PUT_IN
    if effect == K.PUT_BACK and s[T.n[K.AT_MEMORY] + x] != 0:
        remembered = np.int64(s[T.n[K.AT_MEMORY] + x]) - 1
        y, inside = remembered >> 2, remembered & 3 == K.INSIDE
    for place in range(start, T.n[K.MOST_CHECKS]):
        test = check_of(T, verb, place, K.TEST)
        if test < 0:
            return -1
        node = y if check_of(T, verb, place, K.OF) else x
        if not passes(T, s, test, node, check_of(T, verb, place, K.ARGUMENT), inside):
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
    note, start, inside = K.NONE, K.START, np.bool_(False)
    while True:
        place = first_failing(T, s, verb, x, y, start)
        if place < 0:
            break
        otherwise = check_of(T, verb, place, K.OTHERWISE)
        if otherwise != K.NOTE:
            return otherwise == K.SKIP, place, note
        note, start = place, place + 1
    if effect_of(T, verb, K.EFFECT) == K.FIND_OR_WALK and not near(T, s, x):
        if passes(T, s, K.WALKABLE, x, K.START, inside):
            stopped = first_failing(T, s, K.WALK_VERB, x, y, K.START)
            if stopped < 0:
                go(T, s, x)
                return True, -1, -1
            if check_of(T, K.WALK_VERB, stopped, K.OTHERWISE) == K.CRASH or T.n[K.DIALECT] == K.VH19:
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
    words, c = T.n[K.WORDS], T.n[K.CHARACTER]
    touched = np.zeros(words, np.uint32)
    put_bit(touched, K.START, c)
    for relation in range(4):
        for w in range(words):
            place = T.n[K.AT_WIPED] + relation * words + w
            touched[w] |= old[place] ^ new[place]
    for one, other in ((old, new), (new, old)):
        for slot in range(T.n[K.AT_EDGES], T.n[K.AT_EDGES] + one[T.n[K.AT_COUNT]]):
            known = False
            for place in range(T.n[K.AT_EDGES], T.n[K.AT_EDGES] + other[T.n[K.AT_COUNT]]):
                known = known or other[place] == one[slot]
            if not known:
                put_bit(touched, K.START, edge_source(one[slot]))
                put_bit(touched, K.START, edge_target(one[slot]))
    before, after = np.empty(words, np.uint32), np.empty(words, np.uint32)
    counts = np.zeros(2, np.int64)
    node = next_node(touched, K.NONE)
    while node >= 0:
        for relation in (K.ON, K.INSIDE, K.CLOSE, K.FACING):
            targets(T, old, relation, node, before)
            targets(T, new, relation, node, after)
            for w in range(words):
                before[w], after[w] = before[w] & ~after[w], after[w] & ~before[w]
            for out, row, which in ((gained, after, 0), (lost, before, 1)):
                other = next_node(row, K.NONE)
                while other >= 0:
                    out[counts[which]] = edge(relation, node, other)
                    counts[which] += 1
                    other = next_node(row, other)
            sources(T, old, relation, node, before)
            sources(T, new, relation, node, after)
            for w in range(words):  # from touched nodes they are known already
                before[w], after[w] = before[w] & ~after[w] & ~touched[w], after[w] & ~before[w] & ~touched[w]
            for out, row, which in ((gained, after, 0), (lost, before, 1)):
                other = next_node(row, K.NONE)
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
