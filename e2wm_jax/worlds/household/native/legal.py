"""All lines that work in a state, at once: sets of nodes, word by word, where `step` asks of one node."""

import numpy as np

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
from e2wm_jax.worlds.household.native.tables import (
    ACCESSIBLE,
    ARGUMENT,
    ARITIES,
    ASKED,
    AT_BOUND,
    AT_CLOSE,
    AT_COUNT,
    AT_EDGES,
    AT_FACING,
    AT_ON,
    AT_STATES,
    AT_WIPED,
    BED_LEFT,
    BOUND,
    CHARACTER,
    CLOSE,
    CLOSED,
    CRASH,
    DIALECT,
    EDIBLE,
    EFFECT,
    EVERYTHING,
    FACED,
    FACED_SET,
    FACING,
    FIND_OR_WALK,
    FIRST,
    FITTING,
    FOOD,
    FOOD_SET,
    FREE_HAND,
    GRABBED,
    HANDS_FULL,
    HELD,
    HELD_SET,
    HOUSED_SET,
    IN_A_ROOM,
    INSIDE,
    KNIFE,
    LACKS,
    MOST_CHECKS,
    NEAR,
    NEAR_SET,
    NEVER,
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
    PLACED,
    PUT_BACK,
    QUESTIONS,
    REACHABLE,
    REACHABLE_SET,
    RIGHT,
    ROOM_NUMBER,
    ROOMS,
    SAME_ROOM,
    SEAT_LEFT,
    SEATED,
    SECOND,
    SEEN,
    SOURCES,
    SPARE_SET,
    START,
    STATE,
    TARGETS,
    TEST,
    UPRIGHT,
    VH19,
    VH23,
    WALK_VERB,
    WALKABLE,
    WORDS,
    WORN,
    check_of,
    effect_of,
)


@inner
def unite(T, s, rows, relation, members, out):
    """Into ``out`` [W] what edges of a relation lead to from any of ``members`` [W] (``rows`` is TARGETS), or come from
    (SOURCES)."""
    words = T.n[WORDS]
    wiped = T.n[AT_WIPED] + relation * words
    for w in range(words):
        out[w] = 0
    for index in range(words):
        word = members[index] & ~s[wiped + index]
        node = index << 5
        while word:
            if word & np.uint32(1):
                base = T.n[rows] + (relation * T.n[NODES] + node) * words
                for w in range(words):
                    out[w] |= T.bits[base + w]
            word >>= np.uint32(1)
            node += 1
    for w in range(words):
        out[w] &= ~s[wiped + w]
    for slot in range(T.n[AT_EDGES], T.n[AT_EDGES] + s[T.n[AT_COUNT]]):
        if edge_relation(s[slot]) == relation:
            source, target = edge_source(s[slot]), edge_target(s[slot])
            if (rows == TARGETS or relation == CLOSE) and bit(members, START, source):
                put_bit(out, START, target)
            if (rows == SOURCES or relation == CLOSE) and bit(members, START, target):
                put_bit(out, START, source)


@inner
def sets_of(T, s, sets):
    """The nodes that are NEAR, surely IN_A_ROOM, FACED, REACHABLE, HELD and FOOD, into ``sets`` [7, W]; the last is
    spare. The character's own edges, which its state holds, are added where they count."""
    words, c = T.n[WORDS], T.n[CHARACTER]
    near_set, housed, faced_set, reachable = sets[NEAR_SET], sets[HOUSED_SET], sets[FACED_SET], sets[REACHABLE_SET]
    held, food, row = sets[HELD_SET], sets[FOOD_SET], sets[SPARE_SET]
    close, facing = s[T.n[AT_CLOSE] : T.n[AT_CLOSE] + words], s[T.n[AT_FACING] : T.n[AT_FACING] + words]
    rooms = T.bits[T.n[ROOMS] : T.n[ROOMS] + words]

    some = False
    unite(T, s, TARGETS, CLOSE, close, near_set)
    unite(T, s, SOURCES, ON, close, row)
    for w in range(words):
        some = some or close[w] != 0
        near_set[w] |= close[w] | row[w]
    if some:  # whatever the character is CLOSE to is CLOSE to it
        put_bit(near_set, START, c)

    unite(T, s, SOURCES, INSIDE, rooms, housed)
    closed = T.n[AT_STATES] + CLOSED * words
    for w in range(words):
        housed[w] |= rooms[w]
        row[w] = s[closed + w] & ~rooms[w]
        held[w] = 0
    unite(T, s, SOURCES, INSIDE, row, reachable)
    for w in range(words):
        reachable[w] = ~reachable[w]
    for hand in range(2):
        thing = held_in(T, s, hand)
        if thing >= 0:
            put_bit(held, START, thing)

    edible = T.bits[T.n[EDIBLE] : T.n[EDIBLE] + words]
    unite(T, s, TARGETS, ON, edible, food)
    if bit(edible, START, c):
        for w in range(words):
            food[w] |= s[T.n[AT_ON] + w]
    unite(T, s, TARGETS, FACING, facing, faced_set)
    for w in range(words):
        food[w] |= edible[w]
        faced_set[w] |= facing[w]


@inner
def fill(T, start, mask):
    """A set of the scene into ``mask`` [W]."""
    for w in range(T.n[WORDS]):
        mask[w] = T.bits[start + w]


@inner
def keep_each(T, s, test, argument, inside, sets, mask):
    """Leave in ``mask`` [W] the nodes that pass a test, asking one by one where the answer is not at hand."""
    if test == OPEN_DOORS:
        free = True
        for node in range(T.n[NODES]):
            if T.n[T.n[ROOM_NUMBER] + node] >= 0 and doors_open(T, s, node) != 0:
                free = False
        if free:
            return
    doubtful = sets[SPARE_SET]
    for w in range(T.n[WORDS]):
        sure = np.uint32(0)
        if test == IN_A_ROOM:
            sure = sets[HOUSED_SET, w]
        elif test == WALKABLE:
            sure = sets[NEAR_SET, w]
        doubtful[w] = mask[w] & ~sure
    node = next_node(doubtful, NONE)
    while node >= 0:
        if not passes(T, s, test, node, argument, inside):
            clear_bit(mask, START, node)
        node = next_node(doubtful, node)


@inner
def answers_of(T, s, sets):
    """The nodes that pass each different question (test, argument) that is a set, [Q, W]: HAS aside, of which `fill`
    knows; all nodes for what `is_set` denies; of ACCESSIBLE, what one can put things in."""
    words, everything = T.n[WORDS], T.n[EVERYTHING]
    answers = np.empty(((T.n[ASKED] - T.n[QUESTIONS]) // 2, words), np.uint32)
    for q in range(len(answers)):
        test, argument = T.n[T.n[QUESTIONS] + 2 * q], T.n[T.n[QUESTIONS] + 2 * q + 1]
        known, place = NONE, NONE  # a row of sets, or where in the state a set begins
        if test == NEAR:
            known = NEAR_SET
        elif test == FACED:
            known = FACED_SET
        elif test == REACHABLE:
            known = REACHABLE_SET
        elif test == HELD:
            known = HELD_SET
        elif test == FOOD:
            known = FOOD_SET
        elif test == STATE or test == LACKS:
            place = T.n[AT_STATES] + argument * words
        elif test == BOUND:
            place = T.n[AT_BOUND]
        nobody = False
        if (
            test == FREE_HAND or test == HANDS_FULL or test == KNIFE or test == UPRIGHT or test == SEATED
            or test == PLACED or test == NEVER
        ):  # fmt: skip
            nobody = not passes(T, s, test, T.n[CHARACTER], argument, False)
        for w in range(words):
            if nobody:
                answers[q, w] = 0
            elif known >= 0:
                answers[q, w] = sets[known, w]
            elif test == LACKS:
                answers[q, w] = ~s[place + w]
            elif place >= 0:
                answers[q, w] = s[place + w]
            elif test == ACCESSIBLE:
                answers[q, w] = ~T.bits[T.n[OPENABLE] + w] | s[T.n[AT_STATES] + OPEN * words + w]
            else:
                answers[q, w] = T.bits[everything + w]
    return answers


@inner
def keep_all(T, s, verb, of, sets, answers, mask):
    """Leave in ``mask`` [W] the nodes that pass all checks of X (0) or Y (1) but those that only leave a message; what
    is no set is asked of every node that is left."""
    words, left = T.n[WORDS], False
    for place in range(T.n[MOST_CHECKS]):
        if check_of(T, verb, place, TEST) < 0:
            break
        if check_of(T, verb, place, OF) == of and check_of(T, verb, place, OTHERWISE) != NOTE:
            question = T.n[T.n[ASKED] + verb * T.n[MOST_CHECKS] + place]
            if question >= 0:
                for w in range(words):
                    mask[w] &= answers[question, w]
            left = left or not is_set(check_of(T, verb, place, TEST))
    if left:
        for place in range(T.n[MOST_CHECKS]):
            test = check_of(T, verb, place, TEST)
            if test < 0:
                break
            told = check_of(T, verb, place, OTHERWISE) == NOTE
            if check_of(T, verb, place, OF) == of and not told and not is_set(test):
                keep_each(T, s, test, check_of(T, verb, place, ARGUMENT), False, sets, mask)


@inner
def is_set(test):
    """Whether `answers_of` or, of HAS, `fill` knows all nodes that pass."""
    return not (
        test == IN_A_ROOM or test == SAME_ROOM or test == OPEN_DOORS or test == SEAT_LEFT or test == BED_LEFT
        or test == SEEN or test == WORN or test == WALKABLE or test == NOT_GRABBED or test == GRABBED
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
    sets = np.empty((7, T.n[WORDS]), np.uint32)
    sets_of(T, s, sets)
    answers = answers_of(T, s, sets)
    pair = 0
    for verb in range(len(one)):
        mask = one[verb]
        effect, arity = effect_of(T, verb, EFFECT), T.n[T.n[ARITIES] + verb]
        for w in range(len(mask)):
            mask[w] = 0
        if arity == 2:
            for hand in range(2):
                seconds, thing = two[pair, hand], held_in(T, s, hand)
                seconds[:] = 0
                if thing >= 0 and (hand == 0 or held_in(T, s, RIGHT) != thing):
                    fill(T, T.n[FITTING] + 2 * verb * T.n[WORDS], mask)
                    keep_all(T, s, verb, FIRST, sets, answers, mask)
                    if bit(mask, START, thing):
                        fill(T, T.n[FITTING] + (2 * verb + SECOND) * T.n[WORDS], seconds)
                        keep_all(T, s, verb, SECOND, sets, answers, seconds)
                    mask[:] = 0
            pair += 1
        elif effect == PUT_BACK:
            for hand in range(2):
                thing = held_in(T, s, hand)
                if thing >= 0 and first_failing(T, s, verb, thing, thing, START) < 0:
                    put_bit(mask, START, thing)
        else:
            if arity == 0:
                put_bit(mask, START, T.n[CHARACTER])
            else:
                fill(T, T.n[FITTING] + 2 * verb * T.n[WORDS], mask)
            keep_all(T, s, verb, FIRST, sets, answers, mask)
        if effect == FIND_OR_WALK and T.n[DIALECT] != VH23:
            drop_lost(T, s, one[WALK_VERB], sets[NEAR_SET], mask)


@inner
def drop_lost(T, s, walked, near_set, mask):
    """Take out of ``mask`` [W] what is far, and the walk to it ends the FIND."""
    node = next_node(mask, NONE)
    while node >= 0:
        if not bit(near_set, START, node) and not bit(walked, START, node):
            if passes(T, s, WALKABLE, node, START, False):
                stopped = first_failing(T, s, WALK_VERB, node, node, START)
                if check_of(T, WALK_VERB, stopped, OTHERWISE) == CRASH or T.n[DIALECT] == VH19:
                    clear_bit(mask, START, node)
        node = next_node(mask, node)
