"""What `effects` says, carried out on a state in place, compiled."""

import numpy as np

from e2wm_jax.worlds.household.native.edges import (
    add,
    bit,
    clear_bit,
    listed,
    own_row,
    put_bit,
    sources,
    targets,
    unlist,
    wipe,
)
from e2wm_jax.worlds.household.native.jit import inner
from e2wm_jax.worlds.household.native.order import first_in_set
from e2wm_jax.worlds.household.native.places import free_hand, held_in, let_go, room
from e2wm_jax.worlds.household.native.tables import (
    AFTER,
    ANEW,
    ARRIVES,
    ARRIVING,
    AT_BOUND,
    AT_CLOSE,
    AT_FACING,
    AT_HANDS,
    AT_MEMORY,
    AT_STATES,
    BEFORE,
    BODIES,
    BOUND_BIT,
    CHARACTER,
    CLOSE,
    DEED_SIZE,
    DEEDS,
    EDGES,
    EFFECT,
    EMPTIES,
    ENDS,
    FACING,
    FILLS,
    FORGET,
    GAINED,
    GAINS,
    HANDS,
    INSIDE,
    JOIN_COUNT,
    JOIN_SIZE,
    JOINS,
    KEEP_HANDS,
    LEFT,
    LESS,
    LET_GO_OF_WATER,
    LOSES,
    LOST,
    MEETS,
    MEMORY,
    MOVES,
    NONE,
    NOTE_PLACE,
    NOTHING,
    ON,
    ONLY,
    PLACED_AT,
    POSTURE,
    PUT_BACK,
    RELATIONS,
    RIGHT,
    ROOMS,
    SOURCES_OF,
    STARES,
    START,
    SWAP,
    TAKE,
    TAKE_OVER,
    TO_CHARACTER,
    TO_HERE,
    UNLESS,
    WALK,
    WATER,
    WHEN,
    WIPES,
    WORDS,
    effect_of,
)


@inner
def wipe_all(T, s, relations, node):
    """Wipe a set of relations (bits) at a node."""
    for relation in range(4):
        if relations >> relation & 1:
            wipe(T, s, relation, node)


# A walk


@inner
def join(T, s, x, when, row, out, start):
    """Put what the character sees at this moment of its walk to ``x`` into the set that begins at ``start``."""
    words = T.n[WORDS]
    for place in range(T.n[JOINS], T.n[JOINS] + T.n[JOIN_COUNT] * JOIN_SIZE, JOIN_SIZE):
        only, unless, less = T.n[place + ONLY], T.n[place + UNLESS], T.n[place + LESS]
        if T.n[place + WHEN] != when or (only >= 0 and not bit(T.bits, only, x)):
            continue
        if unless >= 0 and bit(T.bits, unless, x):
            continue
        for relation in range(4):
            if T.n[place + RELATIONS] >> relation & 1:
                if T.n[place + SOURCES_OF]:
                    sources(T, s, relation, x, row)
                else:
                    targets(T, s, relation, x, row)
                for w in range(words):
                    out[start + w] |= row[w] & ~T.bits[less + w] if less >= 0 else row[w]
        if T.n[place + ARRIVES]:
            put_bit(out, start, x)
            for w in range(words):
                out[start + w] |= T.bits[T.n[BODIES] + w]


@inner
def go(T, s, x):
    """The character goes to ``x``. The order of the wipings and the old room of what it carries are as executed."""
    c, words, moves = T.n[CHARACTER], T.n[WORDS], T.n[T.n[DEEDS] + WALK * DEED_SIZE + MOVES]
    new_room, old_room = room(T, s, x), room(T, s, c)
    row, seen = np.empty(words, np.uint32), np.zeros(words, np.uint32)
    join(T, s, x, BEFORE, row, seen, START)
    wipe_all(T, s, moves, c)
    add(T, s, INSIDE, c, new_room)
    join(T, s, x, ARRIVING, row, s, T.n[AT_CLOSE])
    for hand in (RIGHT, LEFT):
        if held_in(T, s, hand) >= 0:
            wipe_all(T, s, moves, held_in(T, s, hand))
    for hand in (LEFT, RIGHT):
        if held_in(T, s, hand) >= 0:
            put_bit(s, T.n[AT_CLOSE], held_in(T, s, hand))
            add(T, s, INSIDE, held_in(T, s, hand), old_room)
    join(T, s, x, AFTER, row, s, T.n[AT_CLOSE])
    for w in range(words):
        s[T.n[AT_CLOSE] + w] |= seen[w]
    put_bit(s, T.n[AT_BOUND], x)


# Other effects


@inner
def own_sets(T, s, x, empties, joins):
    """Empty, then fill the character's own sets (bits)."""
    for which in range(4):
        if (empties | joins) >> which & 1:
            start = own_row(T, which)
            if empties >> which & 1:
                for w in range(T.n[WORDS]):
                    s[start + w] = 0
            if joins >> which & 1:
                put_bit(s, start, x)
    if joins & BOUND_BIT:
        put_bit(s, T.n[AT_BOUND], x)


@inner
def pose(T, s, lost, gained, anew):
    """The character loses and gains states (bits), ``anew`` from those of the scene."""
    for state in range(10):
        start = T.n[AT_STATES] + state * T.n[WORDS]
        if gained >> state & 1 or (anew and T.n[T.n[POSTURE] + state] and not lost >> state & 1):
            put_bit(s, start, T.n[CHARACTER])
        elif anew or lost >> state & 1:
            clear_bit(s, start, T.n[CHARACTER])


@inner
def origin(T, s, x):
    """(The first thing, no room, that ``x`` is ON, INSIDE or CLOSE to, or -1; the relation)."""
    row = np.empty(T.n[WORDS], np.uint32)
    for relation in (ON, INSIDE, CLOSE):
        targets(T, s, relation, x, row)
        for w in range(T.n[WORDS]):
            row[w] &= ~T.bits[T.n[ROOMS] + w]
        place = first_in_set(T, s, relation, x, row)
        if place >= 0:
            return place, relation
    return NONE, ON


@inner
def use_hands(T, s, x, hands, hand):
    """``hand``: the free one that takes."""
    if hands < TAKE or hands == TAKE_OVER:
        if hands != LET_GO_OF_WATER or bit(T.bits, T.n[WATER], x):
            let_go(T, s, x)
    if hands >= TAKE:
        s[T.n[AT_HANDS] + hand] = x + 1


@inner
def do(T, s, deed, x, y, relation):
    """What the deed (its place in ``n``) says but for a walk. ``relation``: the remembered one."""
    c, here = T.n[CHARACTER], NONE
    place, kind, hand = NONE, ON, free_hand(T, s)
    if T.n[deed + EDGES + 1] == TO_HERE:
        here = room(T, s, c)
    if T.n[deed + MEMORY] == NOTE_PLACE:
        place, kind = origin(T, s, x)
    if T.n[deed + WIPES]:
        wipe_all(T, s, T.n[deed + WIPES], x)
    if T.n[deed + HANDS] != KEEP_HANDS:
        use_hands(T, s, x, T.n[deed + HANDS], hand)
    if T.n[deed + EMPTIES] | T.n[deed + FILLS]:
        own_sets(T, s, x, T.n[deed + EMPTIES], T.n[deed + FILLS])
    if T.n[deed + MEETS]:
        put_bit(s, T.n[AT_CLOSE], y)
    if T.n[deed + STARES]:
        row = np.empty(T.n[WORDS], np.uint32)
        targets(T, s, FACING, x, row)
        for w in range(T.n[WORDS]):
            s[T.n[AT_FACING] + w] |= row[w]
    for item in range(deed + EDGES, deed + EDGES + 4, 2):
        made, to = T.n[item], T.n[item + 1]
        if made < 0:
            break
        target = here if to == TO_HERE else (c if to == TO_CHARACTER else y)
        if target >= 0:
            add(T, s, relation if made == PLACED_AT else made, x, target)
    if T.n[deed + ENDS] >= 0:
        slot = listed(T, s, T.n[deed + ENDS], x, c)
        if slot >= 0:
            unlist(T, s, slot)
    if place >= 0:
        put_bit(s, T.n[AT_CLOSE], place)
        s[T.n[AT_MEMORY] + x] = 1 + kind + 4 * place
    if T.n[deed + MEMORY] == FORGET:
        s[T.n[AT_MEMORY] + x] = 0
    if T.n[deed + LOSES] | T.n[deed + GAINS]:
        pose(T, s, T.n[deed + LOSES], T.n[deed + GAINS], T.n[deed + ANEW])


@inner
def apply(T, s, verb, x, y):
    """Change the state in place by the verb's effect, all of whose checks hold."""
    effect = effect_of(T, verb, EFFECT)
    if effect == SWAP:
        clear_bit(s, T.n[AT_STATES] + effect_of(T, verb, LOST) * T.n[WORDS], x)
        put_bit(s, T.n[AT_STATES] + effect_of(T, verb, GAINED) * T.n[WORDS], x)
    elif effect == WALK:
        go(T, s, x)
    elif effect == NOTHING:
        return
    elif effect == PUT_BACK:
        remembered = np.int64(s[T.n[AT_MEMORY] + x]) - 1
        do(T, s, T.n[DEEDS] + effect * DEED_SIZE, x, remembered >> 2, remembered & 3)
    else:
        do(T, s, T.n[DEEDS] + effect * DEED_SIZE, x, y, ON)
