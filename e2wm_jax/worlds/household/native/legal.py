"""All lines that work in a state, at once: sets of nodes, word by word, where `step` asks of one node."""

import numpy as np

from e2wm_jax.worlds.household.native import tables as K
from e2wm_jax.worlds.household.native.edges import (
    bit,
    clear_bit,
    edge_relation,
    edge_source,
    edge_target,
    next_node,
    put_bit,
)
from e2wm_jax.worlds.household.native.jit import inner, jit
from e2wm_jax.worlds.household.native.places import doors_open, held_in
from e2wm_jax.worlds.household.native.step import first_failing, passes
from e2wm_jax.worlds.household.native.tables import check_of, effect_of


@inner
def unite(T, s, rows, relation, members, out):
    """Into ``out`` [W] what edges of a relation lead to from any of ``members`` [W] (``rows`` is TARGETS), or come from
    (SOURCES)."""
    words = T.n[K.WORDS]
    wiped = T.n[K.AT_WIPED] + relation * words
    for w in range(words):
        out[w] = 0
    for index in range(words):
        word = members[index] & ~s[wiped + index]
        node = index << 5
        while word:
            if word & np.uint32(1):
                base = T.n[rows] + (relation * T.n[K.NODES] + node) * words
                for w in range(words):
                    out[w] |= T.bits[base + w]
            word >>= np.uint32(1)
            node += 1
    for w in range(words):
        out[w] &= ~s[wiped + w]
    for slot in range(T.n[K.AT_EDGES], T.n[K.AT_EDGES] + s[T.n[K.AT_COUNT]]):
        if edge_relation(s[slot]) == relation:
            source, target = edge_source(s[slot]), edge_target(s[slot])
            if (rows == K.TARGETS or relation == K.CLOSE) and bit(members, K.START, source):
                put_bit(out, K.START, target)
            if (rows == K.SOURCES or relation == K.CLOSE) and bit(members, K.START, target):
                put_bit(out, K.START, source)


@inner
def sets_of(T, s, sets):
    """The nodes that are NEAR, surely IN_A_ROOM, FACED, REACHABLE, HELD and FOOD, into ``sets`` [7, W]; the last is
    spare. The character's own edges, which its state holds, are added where they count."""
    words, c = T.n[K.WORDS], T.n[K.CHARACTER]
    near_set, housed = sets[K.NEAR_SET], sets[K.HOUSED_SET]
    faced_set, reachable = sets[K.FACED_SET], sets[K.REACHABLE_SET]
    held, food, row = sets[K.HELD_SET], sets[K.FOOD_SET], sets[K.SPARE_SET]
    close, facing = s[T.n[K.AT_CLOSE] : T.n[K.AT_CLOSE] + words], s[T.n[K.AT_FACING] : T.n[K.AT_FACING] + words]
    rooms = T.bits[T.n[K.ROOMS] : T.n[K.ROOMS] + words]

    some = False
    unite(T, s, K.TARGETS, K.CLOSE, close, near_set)
    unite(T, s, K.SOURCES, K.ON, close, row)
    for w in range(words):
        some = some or close[w] != 0
        near_set[w] |= close[w] | row[w]
    if some:  # whatever the character is CLOSE to is CLOSE to it
        put_bit(near_set, K.START, c)

    unite(T, s, K.SOURCES, K.INSIDE, rooms, housed)
    closed = T.n[K.AT_STATES] + K.CLOSED * words
    for w in range(words):
        housed[w] |= rooms[w]
        row[w] = s[closed + w] & ~rooms[w]
        held[w] = 0
    unite(T, s, K.SOURCES, K.INSIDE, row, reachable)
    for w in range(words):
        reachable[w] = ~reachable[w]
    for hand in range(2):
        thing = held_in(T, s, hand)
        if thing >= 0:
            put_bit(held, K.START, thing)

    edible = T.bits[T.n[K.EDIBLE] : T.n[K.EDIBLE] + words]
    unite(T, s, K.TARGETS, K.ON, edible, food)
    if bit(edible, K.START, c):
        for w in range(words):
            food[w] |= s[T.n[K.AT_ON] + w]
    unite(T, s, K.TARGETS, K.FACING, facing, faced_set)
    for w in range(words):
        food[w] |= edible[w]
        faced_set[w] |= facing[w]


@inner
def fill(T, start, mask):
    """A set of the scene into ``mask`` [W]."""
    for w in range(T.n[K.WORDS]):
        mask[w] = T.bits[start + w]


@inner
def keep_each(T, s, test, argument, inside, sets, mask):
    """Leave in ``mask`` [W] the nodes that pass a test, asking one by one where the answer is not at hand."""
    if test == K.OPEN_DOORS:
        free = True
        for node in range(T.n[K.NODES]):
            if T.n[T.n[K.ROOM_NUMBER] + node] >= 0 and doors_open(T, s, node) != 0:
                free = False
        if free:
            return
    doubtful = sets[K.SPARE_SET]
    for w in range(T.n[K.WORDS]):
        sure = np.uint32(0)
        if test == K.IN_A_ROOM:
            sure = sets[K.HOUSED_SET, w]
        elif test == K.WALKABLE:
            sure = sets[K.NEAR_SET, w]
        doubtful[w] = mask[w] & ~sure
    node = next_node(doubtful, K.NONE)
    while node >= 0:
        if not passes(T, s, test, node, argument, inside):
            clear_bit(mask, K.START, node)
        node = next_node(doubtful, node)


@inner
def answers_of(T, s, sets):
    """The nodes that pass each different question (test, argument) that is a set, [Q, W]: HAS aside, of which `fill`
    knows; all nodes for what `is_set` denies; of ACCESSIBLE, what one can put things in."""
    words, everything = T.n[K.WORDS], T.n[K.EVERYTHING]
    answers = np.empty(((T.n[K.ASKED] - T.n[K.QUESTIONS]) // 2, words), np.uint32)
    for q in range(len(answers)):
        test, argument = T.n[T.n[K.QUESTIONS] + 2 * q], T.n[T.n[K.QUESTIONS] + 2 * q + 1]
        known, place = K.NONE, K.NONE  # a row of sets, or where in the state a set begins
        if test == K.NEAR:
            known = K.NEAR_SET
        elif test == K.FACED:
            known = K.FACED_SET
        elif test == K.REACHABLE:
            known = K.REACHABLE_SET
        elif test == K.HELD:
            known = K.HELD_SET
        elif test == K.FOOD:
            known = K.FOOD_SET
        elif test == K.STATE or test == K.LACKS:
            place = T.n[K.AT_STATES] + argument * words
        elif test == K.BOUND:
            place = T.n[K.AT_BOUND]
        nobody = False
        if (
            test == K.FREE_HAND or test == K.HANDS_FULL or test == K.KNIFE or test == K.UPRIGHT or test == K.SEATED
            or test == K.PLACED or test == K.NEVER
        ):  # fmt: skip
            nobody = not passes(T, s, test, T.n[K.CHARACTER], argument, False)
        for w in range(words):
            if nobody:
                answers[q, w] = 0
            elif known >= 0:
                answers[q, w] = sets[known, w]
            elif test == K.LACKS:
                answers[q, w] = ~s[place + w]
            elif place >= 0:
                answers[q, w] = s[place + w]
            elif test == K.ACCESSIBLE:
                answers[q, w] = ~T.bits[T.n[K.OPENABLE] + w] | s[T.n[K.AT_STATES] + K.OPEN * words + w]
            else:
                answers[q, w] = T.bits[everything + w]
    return answers


@inner
def keep_all(T, s, verb, of, sets, answers, mask):
    """Leave in ``mask`` [W] the nodes that pass all checks of X (0) or Y (1) but those that only leave a message; what
    is no set is asked of every node that is left."""
    words, left = T.n[K.WORDS], False
    for place in range(T.n[K.MOST_CHECKS]):
        if check_of(T, verb, place, K.TEST) < 0:
            break
        if check_of(T, verb, place, K.OF) == of and check_of(T, verb, place, K.OTHERWISE) != K.NOTE:
            question = T.n[T.n[K.ASKED] + verb * T.n[K.MOST_CHECKS] + place]
            if question >= 0:
                for w in range(words):
                    mask[w] &= answers[question, w]
            left = left or not is_set(check_of(T, verb, place, K.TEST))
    if left:
        for place in range(T.n[K.MOST_CHECKS]):
            test = check_of(T, verb, place, K.TEST)
            if test < 0:
                break
            told = check_of(T, verb, place, K.OTHERWISE) == K.NOTE
            if check_of(T, verb, place, K.OF) == of and not told and not is_set(test):
                keep_each(T, s, test, check_of(T, verb, place, K.ARGUMENT), False, sets, mask)


@inner
def is_set(test):
    """Whether `answers_of` or, of HAS, `fill` knows all nodes that pass."""
    return not (
        test == K.IN_A_ROOM or test == K.SAME_ROOM or test == K.OPEN_DOORS or test == K.SEAT_LEFT or test == K.BED_LEFT
        or test == K.SEEN or test == K.WORN or test == K.WALKABLE or test == K.NOT_GRABBED or test == K.GRABBED
    )  # fmt: skip


@jit
def legal(T, s, one, two):
    """All lines that succeed with their effect.

    Args:
        one: [V, W] uint32, filled with the X of verbs that take one thing; for those that take none the character,
            where they succeed.
        two: [3, 2, W] uint32, filled with the Y of PutBack, PutIn and Pour, in this order, for X in the right hand and
            in the left (none if it is the same).
    """
    sets = np.empty((7, T.n[K.WORDS]), np.uint32)
    sets_of(T, s, sets)
    answers = answers_of(T, s, sets)
    pair = 0
    for verb in range(len(one)):
        mask = one[verb]
        effect, arity = effect_of(T, verb, K.EFFECT), T.n[T.n[K.ARITIES] + verb]
        for w in range(len(mask)):
            mask[w] = 0
        if arity == 2:
            for hand in range(2):
                seconds, thing = two[pair, hand], held_in(T, s, hand)
                seconds[:] = 0
                if thing >= 0 and (hand == 0 or held_in(T, s, K.RIGHT) != thing):
                    fill(T, T.n[K.FITTING] + 2 * verb * T.n[K.WORDS], mask)
                    keep_all(T, s, verb, K.FIRST, sets, answers, mask)
                    if bit(mask, K.START, thing):
                        fill(T, T.n[K.FITTING] + (2 * verb + K.SECOND) * T.n[K.WORDS], seconds)
                        keep_all(T, s, verb, K.SECOND, sets, answers, seconds)
                    mask[:] = 0
            pair += 1
        elif effect == K.PUT_BACK:
            for hand in range(2):
                thing = held_in(T, s, hand)
                if thing >= 0 and first_failing(T, s, verb, thing, thing, K.START) < 0:
                    put_bit(mask, K.START, thing)
        else:
            if arity == 0:
                put_bit(mask, K.START, T.n[K.CHARACTER])
            else:
                fill(T, T.n[K.FITTING] + 2 * verb * T.n[K.WORDS], mask)
            keep_all(T, s, verb, K.FIRST, sets, answers, mask)
        if effect == K.FIND_OR_WALK and T.n[K.DIALECT] != K.VH23:
            drop_lost(T, s, one[K.WALK_VERB], sets[K.NEAR_SET], mask)


@inner
def drop_lost(T, s, walked, near_set, mask):
    """Take out of ``mask`` [W] what is far, and the walk to it ends the FIND."""
    node = next_node(mask, K.NONE)
    while node >= 0:
        if not bit(near_set, K.START, node) and not bit(walked, K.START, node):
            if passes(T, s, K.WALKABLE, node, K.START, False):
                stopped = first_failing(T, s, K.WALK_VERB, node, node, K.START)
                if check_of(T, K.WALK_VERB, stopped, K.OTHERWISE) == K.CRASH or T.n[K.DIALECT] == K.VH19:
                    clear_bit(mask, K.START, node)
        node = next_node(mask, node)
