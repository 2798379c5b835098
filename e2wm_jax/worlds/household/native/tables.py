"""The tables of a scene for compiled code: two flat arrays, and the constants by which it reads them.

Modules of compiled code call the tables T, a state s, and these constants K: ``T.n[K.CHARACTER]``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from e2wm_jax.worlds.household import arrays
from e2wm_jax.worlds.household.arrays import RELATIONS as RELATIONS_CHANGED
from e2wm_jax.worlds.household.arrays import Tables, words_of
from e2wm_jax.worlds.household.effects import Deed, Hands, Join, Memory, When, deeds_of, joins_of
from e2wm_jax.worlds.household.homes.scenes import STATES
from e2wm_jax.worlds.household.native.jit import inner
from e2wm_jax.worlds.household.rules import DIALECTS, RULES, VERB_INDEX, Effect, Otherwise, Test

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
KEEP_HANDS, LET_GO, LET_GO_OF_WATER, TAKE, TAKE_OVER = (np.int64(hands) for hands in Hands)
KEEP_MEMORY, FORGET, NOTE_PLACE = (np.int64(memory) for memory in Memory)
BEFORE, ARRIVING, AFTER = (np.int64(when) for when in When)
# The numbers of a deed; relations, own sets and states are bits, EDGES are twice (relation or -1, its target)
MOVES, WIPES, EMPTIES, FILLS, MEETS, STARES, HANDS, EDGES = np.arange(8)
ENDS, MEMORY, LOSES, GAINS, ANEW, DEED_SIZE = np.arange(11, 17)
PLACED_AT, BOUND_BIT = np.int64(4), np.int64(1 << 4)
TO_Y, TO_HERE, TO_CHARACTER = np.arange(3)
# The numbers of a join
WHEN, RELATIONS, SOURCES_OF, ONLY, UNLESS, NO_ROOMS, ARRIVES, JOIN_SIZE = np.arange(8)


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
    NODES, WORDS, CHARACTER, DIALECT, MOST_CHECKS, DOOR_COUNT, ROOM_COUNT, JOIN_COUNT,
    AT_WIPED, AT_CLOSE, AT_FACING, AT_ON, AT_BOUND, AT_STATES, AT_HANDS, AT_MEMORY, AT_COUNT, AT_EDGES, SIZE,
    ORDER_START, ORDER, IDS, SEATS, CHECKS, EFFECTS, POSTURE, DOORS, DOOR_ROOMS, DOOR_NEAR, ROOM_NUMBER, WAYS, HAS_DOOR,
    ARITIES, QUESTIONS, ASKED, DEEDS, JOINS,
    TARGETS, SOURCES, KINDS, ROOMS, BODIES, COMPUTERS, OPENABLE, SURFACES, EDIBLE, KNIVES, WATER, OWN_WALK, EVERYTHING,
    FITTING, HEADER,
) = np.arange(52)  # fmt: skip


class NativeTables(NamedTuple):
    """`Tables` for compiled code."""

    n: np.ndarray  # int64
    bits: np.ndarray  # uint32


def native_tables(tables: Tables) -> NativeTables:
    """Flatten the tables of a scene."""
    joins = joins_of(DIALECTS[tables.dialect])
    sizes = (len(tables.doors), len(tables.has_door), len(joins))
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
    set_starts = np.cumsum([0, *map(len, sets)])[:-1].tolist()
    place_of = dict(zip(_SETS, set_starts, strict=False))
    numbers.append(np.ravel([_deed(deed) for _, deed in sorted(deeds_of(DIALECTS[tables.dialect]).items())]))
    numbers.append(np.ravel([_join(row, place_of) for row in joins]))
    head += [*(HEADER + np.cumsum([0, *map(len, numbers)])[:-1]), *set_starts]
    assert len(head) == HEADER
    return NativeTables(np.concatenate([np.array(head, np.int64), *numbers]), np.concatenate(sets))


def _deed(deed: Deed) -> list[int]:
    """The numbers of a deed, in the order of `MOVES` and the following."""
    own = (*RELATIONS_CHANGED, "BOUND")
    to = ("Y", "HERE", "C")
    edges = [((*RELATIONS_CHANGED, "PLACED").index(kind), to.index(target)) for kind, target in deed.edges]
    edges += [(-1, 0)] * (2 - len(edges))
    return [
        *(_bits(words, own) for words in (deed.moves, deed.wipes, deed.empties, deed.joins)),
        *(deed.meets, deed.stares, deed.hands, *edges[0], *edges[1]),
        RELATIONS_CHANGED.index(deed.ends) if deed.ends else -1,
        *(deed.memory, _bits(deed.loses, STATES), _bits(deed.gains, STATES), deed.anew),
    ]


def _join(join: Join, place_of: dict[str, int]) -> list[int]:
    """The numbers of a join, in the order of `WHEN` and the following."""
    sets = (place_of[name] if name else -1 for name in (join.only, join.unless))
    return [join.when, _bits(join.relations, RELATIONS_CHANGED), join.sources, *sets, join.no_rooms, join.arrives]


def _bits(words: str, names: Sequence[str]) -> int:
    return sum(1 << names.index(word) for word in words.split())


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
