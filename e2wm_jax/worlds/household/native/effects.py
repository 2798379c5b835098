"""What `effects` says, carried out on a state in place, compiled."""

import numpy as np

from e2wm_jax.worlds.household.native import tables as K
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
from e2wm_jax.worlds.household.native.tables import effect_of


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
    words = T.n[K.WORDS]
    for place in range(T.n[K.JOINS], T.n[K.JOINS] + T.n[K.JOIN_COUNT] * K.JOIN_SIZE, K.JOIN_SIZE):
        only, unless = T.n[place + K.ONLY], T.n[place + K.UNLESS]
        if T.n[place + K.WHEN] != when or (only >= 0 and not bit(T.bits, only, x)):
            continue
        if unless >= 0 and bit(T.bits, unless, x):
            continue
        for relation in range(4):
            if T.n[place + K.RELATIONS] >> relation & 1:
                if T.n[place + K.SOURCES_OF]:
                    sources(T, s, relation, x, row)
                else:
                    targets(T, s, relation, x, row)
                for w in range(words):
                    out[start + w] |= row[w] & ~T.bits[T.n[K.ROOMS] + w] if T.n[place + K.NO_ROOMS] else row[w]
        if T.n[place + K.ARRIVES]:
            put_bit(out, start, x)
            for w in range(words):
                out[start + w] |= T.bits[T.n[K.BODIES] + w]


@inner
def go(T, s, x):
    """The character goes to ``x``. The order of the wipings and the old room of what it carries are as executed."""
    c, words, moves = T.n[K.CHARACTER], T.n[K.WORDS], T.n[T.n[K.DEEDS] + K.WALK * K.DEED_SIZE + K.MOVES]
    new_room, old_room = room(T, s, x), room(T, s, c)
    row, seen = np.empty(words, np.uint32), np.zeros(words, np.uint32)
    join(T, s, x, K.BEFORE, row, seen, K.START)
    wipe_all(T, s, moves, c)
    add(T, s, K.INSIDE, c, new_room)
    join(T, s, x, K.ARRIVING, row, s, T.n[K.AT_CLOSE])
    for hand in (K.RIGHT, K.LEFT):
        if held_in(T, s, hand) >= 0:
            wipe_all(T, s, moves, held_in(T, s, hand))
    for hand in (K.LEFT, K.RIGHT):
        if held_in(T, s, hand) >= 0:
            put_bit(s, T.n[K.AT_CLOSE], held_in(T, s, hand))
            add(T, s, K.INSIDE, held_in(T, s, hand), old_room)
    join(T, s, x, K.AFTER, row, s, T.n[K.AT_CLOSE])
    for w in range(words):
        s[T.n[K.AT_CLOSE] + w] |= seen[w]
    put_bit(s, T.n[K.AT_BOUND], x)


# Other effects


@inner
def own_sets(T, s, x, empties, joins):
    """Empty, then fill the character's own sets (bits)."""
    for which in range(4):
        if (empties | joins) >> which & 1:
            start = own_row(T, which)
            if empties >> which & 1:
                for w in range(T.n[K.WORDS]):
                    s[start + w] = 0
            if joins >> which & 1:
                put_bit(s, start, x)
    if joins & K.BOUND_BIT:
        put_bit(s, T.n[K.AT_BOUND], x)


@inner
def pose(T, s, lost, gained, anew):
    """The character loses and gains states (bits), ``anew`` from those of the scene."""
    for state in range(10):
        start = T.n[K.AT_STATES] + state * T.n[K.WORDS]
        if gained >> state & 1 or (anew and T.n[T.n[K.POSTURE] + state] and not lost >> state & 1):
            put_bit(s, start, T.n[K.CHARACTER])
        elif anew or lost >> state & 1:
            clear_bit(s, start, T.n[K.CHARACTER])


@inner
def origin(T, s, x):
    """(The first thing, no room, that ``x`` is ON, INSIDE or CLOSE to, or -1; the relation)."""
    row = np.empty(T.n[K.WORDS], np.uint32)
    for relation in (K.ON, K.INSIDE, K.CLOSE):
        targets(T, s, relation, x, row)
        for w in range(T.n[K.WORDS]):
            row[w] &= ~T.bits[T.n[K.ROOMS] + w]
        place = first_in_set(T, s, relation, x, row)
        if place >= 0:
            return place, relation
    return K.NONE, K.ON


@inner
def use_hands(T, s, x, hands, hand):
    """``hand``: the free one that takes."""
    if hands < K.TAKE or hands == K.TAKE_OVER:
        if hands != K.LET_GO_OF_WATER or bit(T.bits, T.n[K.WATER], x):
            let_go(T, s, x)
    if hands >= K.TAKE:
        s[T.n[K.AT_HANDS] + hand] = x + 1


@inner
def do(T, s, deed, x, y, relation):
    """What the deed (its place in ``n``) says but for a walk. ``relation``: the remembered one."""
    c, here = T.n[K.CHARACTER], K.NONE
    place, kind, hand = K.NONE, K.ON, free_hand(T, s)
    if T.n[deed + K.EDGES + 1] == K.TO_HERE:
        here = room(T, s, c)
    if T.n[deed + K.MEMORY] == K.NOTE_PLACE:
        place, kind = origin(T, s, x)
    if T.n[deed + K.WIPES]:
        wipe_all(T, s, T.n[deed + K.WIPES], x)
    if T.n[deed + K.HANDS] != K.KEEP_HANDS:
        use_hands(T, s, x, T.n[deed + K.HANDS], hand)
    if T.n[deed + K.EMPTIES] | T.n[deed + K.FILLS]:
        own_sets(T, s, x, T.n[deed + K.EMPTIES], T.n[deed + K.FILLS])
    if T.n[deed + K.MEETS]:
        put_bit(s, T.n[K.AT_CLOSE], y)
    if T.n[deed + K.STARES]:
        row = np.empty(T.n[K.WORDS], np.uint32)
        targets(T, s, K.FACING, x, row)
        for w in range(T.n[K.WORDS]):
            s[T.n[K.AT_FACING] + w] |= row[w]
    for item in range(deed + K.EDGES, deed + K.EDGES + 4, 2):
        made, to = T.n[item], T.n[item + 1]
        if made < 0:
            break
        target = here if to == K.TO_HERE else (c if to == K.TO_CHARACTER else y)
        if target >= 0:
            add(T, s, relation if made == K.PLACED_AT else made, x, target)
    if T.n[deed + K.ENDS] >= 0:
        slot = listed(T, s, T.n[deed + K.ENDS], x, c)
        if slot >= 0:
            unlist(T, s, slot)
    if place >= 0:
        put_bit(s, T.n[K.AT_CLOSE], place)
        s[T.n[K.AT_MEMORY] + x] = 1 + kind + 4 * place
    if T.n[deed + K.MEMORY] == K.FORGET:
        s[T.n[K.AT_MEMORY] + x] = 0
    if T.n[deed + K.LOSES] | T.n[deed + K.GAINS]:
        pose(T, s, T.n[deed + K.LOSES], T.n[deed + K.GAINS], T.n[deed + K.ANEW])


@inner
def apply(T, s, verb, x, y):
    """Change the state in place by the verb's effect, all of whose checks hold."""
    effect = effect_of(T, verb, K.EFFECT)
    if effect == K.SWAP:
        clear_bit(s, T.n[K.AT_STATES] + effect_of(T, verb, K.LOST) * T.n[K.WORDS], x)
        put_bit(s, T.n[K.AT_STATES] + effect_of(T, verb, K.GAINED) * T.n[K.WORDS], x)
    elif effect == K.WALK:
        go(T, s, x)
    elif effect == K.NOTHING:
        return
    elif effect == K.PUT_BACK:
        remembered = np.int64(s[T.n[K.AT_MEMORY] + x]) - 1
        do(T, s, T.n[K.DEEDS] + effect * K.DEED_SIZE, x, remembered >> 2, remembered & 3)
    else:
        do(T, s, T.n[K.DEEDS] + effect * K.DEED_SIZE, x, y, K.ON)
