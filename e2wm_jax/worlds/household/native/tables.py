"""The tables of a scene for compiled code: two flat arrays, and the constants by which it reads them."""

from typing import NamedTuple

import numpy as np

from e2wm_jax.worlds.household import arrays
from e2wm_jax.worlds.household.arrays import Tables, words_of
from e2wm_jax.worlds.household.native.jit import inner
from e2wm_jax.worlds.household.rules import RULES, VERB_INDEX, Effect, Otherwise, Test

DONE = 0
VH23, VH19, E2WM = np.arange(3)
UNSIGNED = np.int64((1 << 59) - 1)  # what a number without sign has left of 64 bits after a shift by five

# numba reads module constants, but no enumerations. They are numpy numbers because it would compile a function anew for
# each Python number that is handed to it.
ON, INSIDE, CLOSE, FACING = np.arange(4)
CLOSED, OPEN = np.int64(arrays.CLOSED), np.int64(arrays.OPEN)
SITTING, LYING = np.int64(arrays.SITTING), np.int64(arrays.LYING)
START = np.int64(0)
RIGHT, LEFT = np.arange(2)
NONE = np.int64(-1)
TEST, OF, ARGUMENT, OTHERWISE = np.arange(4)
FIRST, SECOND = np.arange(2)
NEAR_SET, HOUSED_SET, FACED_SET, REACHABLE_SET, HELD_SET, FOOD_SET, SPARE_SET = np.arange(7)
EFFECT, LOST, GAINED = np.arange(3)
WALK_VERB = np.int64(VERB_INDEX["WALK"])
SEATED_STATES, SITTING_STATE, LYING_STATE = (
    np.int64(1 << arrays.SITTING | 1 << arrays.LYING),
    np.int64(1 << arrays.SITTING),
    np.int64(1 << arrays.LYING),
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
    "order_start", "order", "hashes", "seats", "checks", "effects", "initial_posture", "doors", "door_rooms",
    "door_near", "room_number", "ways", "has_door",
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


@inner
def targets_at(T, relation, node):
    """Where the row of `Tables.targets` begins in ``bits``."""
    return T.n[TARGETS] + (relation * T.n[NODES] + node) * T.n[WORDS]


@inner
def sources_at(T, relation, node):
    return T.n[SOURCES] + (relation * T.n[NODES] + node) * T.n[WORDS]


@inner
def check_of(T, verb, place, item):
    return T.n[T.n[CHECKS] + (verb * T.n[MOST_CHECKS] + place) * 4 + item]


@inner
def effect_of(T, verb, item):
    return T.n[T.n[EFFECTS] + verb * 3 + item]
