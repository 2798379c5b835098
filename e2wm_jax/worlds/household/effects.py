"""What the effects of `rules` do to a state: data, which the native and the batched engine interpret.

A line whose checks hold looks at the state first (the room of C, the place that X comes from), then wipes, empties and
fills the character's own sets, uses the hands, makes edges in the order that is written here, remembers, and poses.
Wiping a relation at a node deletes its edges from and to the node. The own sets are what C is CLOSE to, FACING and ON,
and what is BOUND, that is, was walked to or found. A WALK is three steps: see `JOINS`.

Letters: C the character, X and Y the first and second thing of a line; HERE the room of C before the line.
"""

from dataclasses import dataclass, replace
from enum import IntEnum, auto

from e2wm_jax.worlds.household.rules import DIALECTS, WALKED_TO, Effect


class Hands(IntEnum):
    """What the hands do with X."""

    KEEP = 0
    LET_GO = auto()
    LET_GO_OF_WATER = auto()  # of other things they do not
    TAKE = auto()  # the right one if it is free, else the left
    TAKE_OVER = auto()  # and the other one lets go


class Memory(IntEnum):
    """What becomes of the memory of where X was grabbed."""

    KEEP = 0
    FORGET = auto()
    NOTE = auto()  # the first thing, no room, that X was ON, INSIDE or CLOSE to; C is then CLOSE to it


@dataclass(frozen=True)
class Deed:
    """What an effect does. Relations and own sets are words in one string."""

    moves: str = ""  # wiped at C and at what it holds, which then are INSIDE the room of X and HERE: a WALK
    wipes: str = ""  # wiped at X
    empties: str = ""  # own sets
    joins: str = ""  # own sets that X becomes a member of
    meets: bool = False  # CLOSE(C,Y)
    stares: bool = False  # C faces what X faces
    hands: Hands = Hands.KEEP
    edges: tuple[tuple[str, str], ...] = ()  # (relation, Y or HERE or C) from X; PLACED: the remembered relation
    ends: str = ""  # relation between X and C
    memory: Memory = Memory.KEEP
    loses: str = ""  # states of C
    gains: str = ""
    anew: bool = False  # before that C gets the states of the scene, as executed


_PUT = Deed(meets=True, hands=Hands.LET_GO, memory=Memory.FORGET)
_INDOORS = (("INSIDE", "HERE"),)
_FIND = Deed(empties="FACING", joins="CLOSE BOUND")
_SIT = Deed(joins="ON", stares=True, loses="LYING", gains="SITTING")
_LIE = Deed(joins="ON", loses="SITTING", gains="LYING")
_STAND = Deed(loses="SITTING LYING")
_GRAB = Deed(wipes="ON INSIDE CLOSE", joins="CLOSE", hands=Hands.TAKE, edges=_INDOORS, memory=Memory.NOTE)

# Of several rows of an effect the first of the dialect counts. SWAP changes states of X, which its rule names.
DEEDS: tuple[tuple[Effect, Deed, tuple[str, ...]], ...] = (
    (Effect.NOTHING, Deed(), DIALECTS),
    (Effect.WALK, Deed(moves="INSIDE CLOSE FACING", joins="BOUND"), DIALECTS),
    (Effect.FIND, _FIND, DIALECTS),
    (Effect.FIND_OR_WALK, _FIND, DIALECTS),  # where X is NEAR
    (Effect.TURN, Deed(empties="FACING", joins="FACING"), DIALECTS),
    (Effect.SIT, replace(_SIT, anew=True), ("vh23",)),
    (Effect.SIT, _SIT, WALKED_TO),
    (Effect.LIE, replace(_LIE, anew=True), ("vh23",)),
    (Effect.LIE, _LIE, WALKED_TO),
    (Effect.STAND, replace(_STAND, anew=True), ("vh23",)),
    (Effect.STAND, replace(_STAND, empties="ON"), ("e2wm",)),
    (Effect.STAND, _STAND, ("vh19",)),
    (Effect.GRAB, replace(_GRAB, hands=Hands.TAKE_OVER), ("vh23",)),
    (Effect.GRAB, _GRAB, WALKED_TO),
    (Effect.PUT_ON, replace(_PUT, edges=(("CLOSE", "Y"), ("ON", "Y"))), DIALECTS),
    (Effect.PUT_IN, replace(_PUT, edges=(("CLOSE", "Y"), ("INSIDE", "Y"))), DIALECTS),
    (Effect.PUT_BACK, replace(_PUT, edges=(("CLOSE", "Y"), ("PLACED", "Y"))), DIALECTS),
    (Effect.DROP, Deed(hands=Hands.LET_GO, edges=_INDOORS, memory=Memory.FORGET), DIALECTS),
    (Effect.SWAP, Deed(), DIALECTS),
    (Effect.WEAR, Deed(hands=Hands.LET_GO, edges=(("ON", "C"),)), DIALECTS),
    (Effect.TAKE_OFF, Deed(ends="ON"), DIALECTS),
    (Effect.POUR, Deed(hands=Hands.LET_GO_OF_WATER, edges=(("INSIDE", "Y"),)), DIALECTS),
)


def deeds_of(dialect: str) -> dict[Effect, Deed]:
    """What every effect does in a dialect."""
    return {effect: deed for effect, deed, dialects in reversed(DEEDS) if dialect in dialects}


class When(IntEnum):
    """The moment of a WALK at which C sees what it will be CLOSE to."""

    BEFORE = 0
    ARRIVING = auto()  # C has been moved, what it holds not yet
    AFTER = auto()


@dataclass(frozen=True)
class Join:
    """Things that C is CLOSE to after a WALK to X, beside what it holds. Sets of nodes by their names in `Tables`."""

    when: When
    relations: str
    sources: bool = False  # those from which the edges lead to X, instead of those to which they lead from X
    only: str = ""  # if X is in this set
    unless: str = ""  # if it is not
    no_rooms: bool = False
    arrives: bool = False  # X too, and the body parts
    dialects: tuple[str, ...] = DIALECTS


JOINS = (
    Join(When.BEFORE, "ON INSIDE CLOSE", dialects=("e2wm",)),
    Join(When.BEFORE, "INSIDE", sources=True, unless="own_walk", dialects=("e2wm",)),
    Join(When.ARRIVING, "INSIDE", no_rooms=True, unless="rooms", arrives=True, dialects=("vh23",)),
    Join(When.ARRIVING, "INSIDE", no_rooms=True, arrives=True, dialects=WALKED_TO),
    Join(When.AFTER, "INSIDE", sources=True, only="openable", dialects=("vh23",)),
    Join(When.AFTER, "ON", dialects=("vh23",)),
    Join(When.AFTER, "ON", sources=True, only="surfaces", dialects=WALKED_TO),
)


def joins_of(dialect: str) -> tuple[Join, ...]:
    """The rows of a dialect, in the order of a walk."""
    return tuple(join for join in JOINS if dialect in join.dialects)
