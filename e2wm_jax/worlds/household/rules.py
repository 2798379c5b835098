"""The rules of the household world: what every verb asks for, in order, and what it then does.

This table is the one place where they are written down. The engines (`native.step` for a CPU core, `batched.step` for
batches on an accelerator) implement its few tests and effects and read the rest from here; `actions` takes the verbs'
names and arities from it, `search.moves` and the explorer what a thing must be like, `native.world` the wording of the
messages.

Three dialects, each bit-exact with an implementation of VirtualHome's evolving graph: ``vh23`` (PyPI's virtualhome
2.3.0), ``vh19`` (the repository's commit 91ec919d of 2019, which made the RobotHow graphs) and ``e2wm`` (the copy in
the E2WM repository). Odd behaviour that is marked "as executed" is theirs.

Letters: C the character, X and Y the first and second thing of a line; in messages each stands for ``<class> (id)``.
"""

from dataclasses import dataclass
from enum import IntEnum, auto
from functools import cached_property

DIALECTS = ("vh23", "vh19", "e2wm")
WALKED_TO = ("vh19", "e2wm")  # the two that follow the rules of 2019


class Test(IntEnum):
    """What a check asks of a thing Z (X or Y), or of the character."""

    HAS = 0  # Z has one of these properties, or is of one of these classes
    LACKS = auto()  # Z has none of these states
    STATE = auto()  # Z has this state
    NEAR = auto()  # CLOSE(C,Z), or CLOSE(C,k) and (CLOSE(k,Z) or ON(Z,k)) for some k
    HELD = auto()  # C holds Z
    FREE_HAND = auto()
    HANDS_FULL_OF_SOMETHING = auto()  # C holds anything
    KNIFE = auto()  # C holds something with "knife" in its class
    UPRIGHT = auto()  # C has none of these states (SITTING, LYING); vh23 looks at the initial graph, as executed
    SEATED = auto()  # C has one of these states; vh23 as above
    NOT_GRABBED = auto()  # no memory of where Z was grabbed
    GRABBED = auto()
    REACHABLE = auto()  # Z is not directly inside something CLOSED that is no room
    SEAT_LEFT = auto()  # fewer things are ON Z than sit there
    BED_LEFT = auto()  # fewer things are ON Z than lie there
    FACED = auto()  # FACING(C,Z), or FACING(C,k) and FACING(k,Z) for some k
    SEEN = auto()  # FACING(C,Z), or C is UPRIGHT, or Z is a computer
    IN_A_ROOM = auto()  # room(Z) exists
    PLACED = auto()  # room(C) exists
    SAME_ROOM = auto()  # room(C) = room(Z)
    OPEN_DOORS = auto()  # a path of doors that are not CLOSED leads to room(Z), or the closed one next to C is Z
    ACCESSIBLE = auto()  # Z cannot be opened, or is OPEN
    WORN = auto()  # ON(Z,C)
    LOADED = auto()  # Z is EATABLE, or something is ON Z
    FOOD = auto()  # Z is EATABLE, or something EATABLE is ON Z
    WALKABLE = auto()  # Z is NEAR, or neither worn nor a BODY_PART, and C is not seated
    BOUND = auto()  # Z was walked to or found before
    NEVER = auto()  # the line fails whatever Z is


class Otherwise(IntEnum):
    """What becomes of a line whose check does not hold."""

    FAIL = 0  # with the message, if there is one
    CRASH = auto()  # the executor raises the exception named in place of the message
    NOTE = auto()  # the message is left behind, and the line goes on (as executed)
    SKIP = auto()  # the message is left behind, and the line succeeds without an effect (as executed)


class Effect(IntEnum):
    """What a line does once its checks hold. Wiping a relation at a node deletes its edges from and to the node."""

    NOTHING = 0
    WALK = auto()  # see `native.step.walk`
    FIND = auto()  # C faces nothing; CLOSE(C,X)
    FIND_OR_WALK = auto()  # FIND if X is NEAR; else the line is a WALK, whose failure is handled as per dialect
    TURN = auto()  # C faces X alone
    SIT = auto()  # ON(C,X), C faces what X faces, C is SITTING and not LYING
    LIE = auto()  # ON(C,X), C is LYING and not SITTING
    STAND = auto()  # C is neither; e2wm: also ON nothing
    GRAB = auto()  # wipe ON, INSIDE, CLOSE at X; CLOSE(C,X), a hand holds it, INSIDE(X,room(C)); see `native.step.grab`
    PUT_ON = auto()  # no hand holds X; CLOSE(C,Y), CLOSE(X,Y), ON(X,Y); its memory is cleared
    PUT_IN = auto()  # same with INSIDE(X,Y)
    PUT_BACK = auto()  # same with the remembered place and relation
    DROP = auto()  # no hand holds X; INSIDE(X,room(C)); its memory is cleared
    SWAP = auto()  # X loses one state and gains another
    WEAR = auto()  # ON(X,C); no hand holds X
    TAKE_OFF = auto()  # ON(X,C) no more
    POUR = auto()  # INSIDE(X,Y); no hand holds X if it is water


@dataclass(frozen=True)
class Check:
    """One test of a line, and what becomes of the line where it does not hold."""

    test: Test
    of: str = "X"  # "X" or "Y"
    argument: tuple[str, ...] = ()  # properties, classes or states
    message: str = ""  # with {C}, {X}, {Y}; {XNAME}, {YNAME}: as the line calls them
    otherwise: Otherwise = Otherwise.FAIL
    dialects: tuple[str, ...] = DIALECTS


@dataclass(frozen=True)
class Rule:
    """A verb: its checks in the order in which the executor makes them, and its effect."""

    name: str  # CamelCase, as in plans: "PutBack"
    arity: int
    checks: tuple[Check, ...] = ()
    effect: Effect = Effect.NOTHING
    swap: tuple[str, str] | None = None  # SWAP: (state lost, state gained)

    def asks(self, *tests: Test, of: str = "X") -> tuple[Check, ...]:
        """Its checks of these kinds, of X or Y, whatever the dialect."""
        return tuple(check for check in self.checks if check.test in tests and check.of == of)

    @cached_property
    def needs(self) -> tuple[frozenset[str], ...]:
        """Per thing, properties or classes of which it must have one; an empty set admits everything.

        These are the first HAS checks: necessary conditions, never sufficient ones, that save vain attempts.
        """
        arguments = [[check.argument for check in self.asks(Test.HAS, of=of)] for of in "XY"[: self.arity]]
        return tuple(frozenset(found[0] if found else ()) for found in arguments)

    def in_dialect(self, dialect: str) -> tuple[Check, ...]:
        """The checks that the dialect makes. In vh19 a thing must have been walked to or found before its use."""
        checks = tuple(check for check in self.checks if dialect in check.dialects)
        free = self.effect in (Effect.WALK, Effect.FIND_OR_WALK) or (checks[:1] and checks[0].test is Test.NEVER)
        return checks if dialect != "vh19" or free else (*_BOUND[: self.arity], *checks)


def _has(words: str, message: str, of: str = "X") -> Check:
    return Check(Test.HAS, of, tuple(words.split()), message)


def _near(of: str = "X") -> Check:
    return Check(Test.NEAR, of, message=f"{{C}} is not close to {{{of}}}")


def _state(name: str) -> Check:
    return Check(Test.STATE, argument=(name,), message=f"{{X}} is not {name.lower()}")


def _put(otherwise: Otherwise, dialects: tuple[str, ...] = DIALECTS) -> tuple[Check, ...]:
    return (
        Check(Test.HELD, message="{C} is not holding {X}", otherwise=otherwise, dialects=dialects),
        Check(Test.NEAR, "Y", message="{C} is not close to {Y}", otherwise=otherwise, dialects=dialects),
    )


def _accessible(otherwise: Otherwise, dialects: tuple[str, ...] = DIALECTS) -> Check:
    return Check(Test.ACCESSIBLE, "Y", (), "{Y} is not open or is not openable", otherwise, dialects)


_BOUND = tuple(Check(Test.BOUND, of, message=f"{{{of}NAME}} cannot be found") for of in "XY")
_HELD = Check(Test.HELD, message="{C} is not holding {X}")
_HAND = Check(Test.FREE_HAND, message="{C} does not have a free hand")
_REACHABLE = Check(Test.REACHABLE, message="{X} is inside other closed thing")
_FACED = Check(Test.FACED, message="{C} does not face {X}")
_OPENABLE = _has("CAN_OPEN desk window", "{X} can not be opened")
_MOVABLE = _has("MOVABLE button chair curtain", "{X} is not movable")
_CLOTHES = _has("CLOTHES", "{X} is not clothes")
_SQUEEZABLE = _has(
    "CLOTHES cleaning_solution tooth_paste shampoo food_peanut_butter dish_soap soap towel rag paper sponge "
    "food_lemon check",
    "{X} is not clothes",
)
_POSTURES = ("SITTING", "LYING")
_WALK = (
    Check(Test.UPRIGHT, "X", _POSTURES, "{C} is sitting"),
    Check(Test.PLACED, "X", (), "AssertionError", Otherwise.CRASH, ("vh23",)),
    Check(Test.PLACED, "X", (), "AttributeError", Otherwise.CRASH, WALKED_TO),
    Check(Test.IN_A_ROOM, dialects=("vh23",)),  # fails without a word
    Check(Test.IN_A_ROOM, "X", (), "AttributeError", Otherwise.CRASH, WALKED_TO),
    Check(Test.OPEN_DOORS, dialects=WALKED_TO),  # the message names the doors: `native.world`
)
_FIND = (
    Check(Test.WALKABLE, message="{C} is not close to {X}", dialects=("vh23", "vh19")),
    Check(Test.NEAR, "X", (), "TypeError", Otherwise.CRASH, ("vh23",)),  # its walk is called in a wrong way
)
_LOOK_WRONG = (
    Check(Test.NEVER, "X", (), "TypeError", Otherwise.CRASH, ("vh23",)),
    Check(Test.NEVER, "X", (), "ExecutionException", Otherwise.CRASH, WALKED_TO),
)
_PUT_BACK = (
    Check(Test.GRABBED, message="{X} not grabbed"),
    *_put(Otherwise.SKIP, ("vh23",)),
    _accessible(Otherwise.SKIP, ("vh23",)),
    *_put(Otherwise.FAIL, WALKED_TO),
    _accessible(Otherwise.FAIL, WALKED_TO),
)
_CLEAN = ("DIRTY", "CLEAN")
_CLEANING = (_near(),)


def _wipe(verb: str) -> Rule:
    return Rule(verb, 1, _CLEANING, Effect.SWAP, _CLEAN)


RULES: tuple[Rule, ...] = (
    Rule("Walk", 1, _WALK, Effect.WALK),
    Rule("Run", 1, _WALK, Effect.WALK),
    Rule("Find", 1, _FIND, Effect.FIND_OR_WALK),
    Rule("TurnTo", 1, (), Effect.TURN),
    Rule("LookAt", 1, (_FACED,)),
    Rule("LookAt_Short", 1, _LOOK_WRONG),
    Rule("LookAt_Medium", 1, (_FACED,)),
    Rule("LookAt_Long", 1, _LOOK_WRONG),
    Rule("PointAt", 1, (_FACED,)),
    Rule(
        "Watch",
        1,
        (
            _has("LOOKABLE", "{X} not lookable"),
            Check(Test.IN_A_ROOM, "X", (), "AttributeError", Otherwise.CRASH),
            Check(Test.PLACED, "X", (), "AttributeError", Otherwise.CRASH),
            Check(Test.SAME_ROOM, message="char room {CROOM} is not node room {XROOM}"),
            _FACED,
            Check(Test.SEEN, message="{C} is not facing {X} while sitting"),
            Check(Test.REACHABLE, message="{X} is inside other closed thing", otherwise=Otherwise.NOTE),
        ),
    ),
    Rule(
        "Sit",
        1,
        (
            _near(),
            Check(Test.UPRIGHT, "X", ("SITTING",), "{C} is sitting"),
            _has("SITTABLE", "{X} is not sittable"),
            Check(Test.SEAT_LEFT, message="Too many things on {X}"),
        ),
        Effect.SIT,
    ),
    Rule(
        "Lie",
        1,
        (
            _near(),
            Check(Test.UPRIGHT, "X", ("LYING",), "{C} is lying"),
            _has("LIEABLE", "{X} is not lieable"),
            Check(Test.BED_LEFT, message="Too many things on {X}"),
        ),
        Effect.LIE,
    ),
    Rule("StandUp", 0, (Check(Test.SEATED, "X", _POSTURES, "{C} is not sitting"),), Effect.STAND),
    Rule("Sleep", 0, (Check(Test.SEATED, "X", _POSTURES, "{C} is not lying or sitting"),)),
    Rule("WakeUp", 0, (Check(Test.SEATED, "X", _POSTURES, "{C} is not lying or sitting"),)),
    Rule(
        "Grab",
        1,
        (
            _has("GRABBABLE water child", "{X} is not grabbable"),
            Check(Test.NOT_GRABBED, message="{X} already grabbed", dialects=("vh23",)),
            _near(),
            _REACHABLE,
            _HAND,
        ),
        Effect.GRAB,
    ),
    Rule("PutBack", 2, _put(Otherwise.FAIL), Effect.PUT_ON),
    Rule("PutIn", 2, (*_put(Otherwise.FAIL), _accessible(Otherwise.FAIL)), Effect.PUT_IN),
    Rule("PutObjBack", 1, _PUT_BACK, Effect.PUT_BACK),  # Y is where X was grabbed; ACCESSIBLE asked if INSIDE it
    Rule("Drop", 1, (_HELD,), Effect.DROP),
    Rule("Release", 1, (_HELD,), Effect.DROP),
    Rule(
        "Open",
        1,
        (
            _OPENABLE,
            _near(),
            _HAND,
            _state("CLOSED"),
            Check(Test.LACKS, argument=("ON",), message="{X} is still on"),
        ),
        Effect.SWAP,
        ("CLOSED", "OPEN"),
    ),
    Rule("Close", 1, (_OPENABLE, _near(), _state("OPEN")), Effect.SWAP, ("OPEN", "CLOSED")),
    Rule(
        "SwitchOn",
        1,
        (
            _has("HAS_SWITCH", "{X} does not have a switch"),
            _near(),
            _state("OFF"),
            Check(Test.LACKS, argument=("PLUGGED_OUT",), message="{X} is unplugged"),
        ),
        Effect.SWAP,
        ("OFF", "ON"),
    ),
    Rule(
        "SwitchOff",
        1,
        (_has("HAS_SWITCH", "{X} does not have a switch"), _near(), _state("ON")),
        Effect.SWAP,
        ("ON", "OFF"),
    ),
    Rule(
        "PlugIn",
        1,
        (_has("HAS_PLUG", "{X} does not have a plug"), _near(), _HAND, _state("PLUGGED_OUT")),
        Effect.SWAP,
        ("PLUGGED_OUT", "PLUGGED_IN"),
    ),
    Rule(
        "PlugOut",
        1,
        (
            _has("HAS_PLUG", "{X} does not have a plug"),
            _near(),
            _HAND,
            _state("PLUGGED_IN"),
            Check(Test.LACKS, "X", ("ON",), "{X} is still on", Otherwise.NOTE),
        ),
        Effect.SWAP,
        ("PLUGGED_IN", "PLUGGED_OUT"),
    ),
    Rule(
        "Pour",
        2,
        (
            _has("POURABLE DRINKABLE", "{X} is not pourable or drinkable"),
            _has("RECIPIENT hands_both sponge face", "{Y} is not recipient", "Y"),
            _HELD,
            _near("Y"),
        ),
        Effect.POUR,
    ),
    Rule("Drink", 1, (_has("DRINKABLE RECIPIENT", "{X} is not drinkable or not recipient"), _HELD)),
    Rule(
        "Eat",
        1,
        (
            _near(),
            Check(Test.LOADED, message="{X} is not eatable"),
            Check(Test.FOOD, message="none of object on {X} is eatable"),
        ),
    ),
    Rule(
        "Cut",
        1,
        (
            _HAND,
            _near(),
            _has("EATABLE", "{X} is not eatable"),
            _has("CUTTABLE", "{X} is not cuttable"),
            Check(Test.KNIFE, message="{C} is not holding a knife"),
        ),
    ),
    Rule("Read", 1, (_has("READABLE", "{X} is not readable"), _HELD)),
    Rule("Type", 1, (_near(), _has("keyboard HAS_SWITCH", "{X} does not have switch"))),
    Rule("Touch", 1, (_near(), _REACHABLE)),
    Rule("Push", 1, (_near(), _REACHABLE, _HAND)),
    Rule("Pull", 1, (_MOVABLE, _near(), _REACHABLE, _HAND)),
    Rule("Move", 1, (_MOVABLE, _near(), _REACHABLE, _HAND)),
    Rule("Squeeze", 1, (_HAND, _near(), _SQUEEZABLE)),
    Rule(
        "Wipe",
        1,
        (_near(), Check(Test.HANDS_FULL_OF_SOMETHING, message="{C} does not hold anything in hands")),
        Effect.SWAP,
        _CLEAN,
    ),
    _wipe("Wash"),
    _wipe("Rinse"),
    _wipe("Scrub"),
    Rule("PutOn", 1, (_HELD, _CLOTHES), Effect.WEAR),
    Rule(
        "PutOff",
        1,
        (
            Check(Test.NEVER, "X", (), "TypeError", Otherwise.CRASH, ("vh23",)),
            Check(Test.WORN, message="{X} is not on {C}", dialects=WALKED_TO),
            _CLOTHES,
        ),
        Effect.TAKE_OFF,
    ),
    Rule("Greet", 1, (_has("PERSON", "{X} is not person"),)),
)
VERBS: dict[str, Rule] = {rule.name.upper(): rule for rule in RULES}
VERB_INDEX: dict[str, int] = {verb: index for index, verb in enumerate(VERBS)}
TWO_THINGS = tuple(index for index, rule in enumerate(RULES) if rule.arity == 2)  # PutBack, PutIn, Pour

# How many things may be ON a seat when one sits or lies down, by class; 1 for others.
SEATS = {"couch": 4, "bed": 4, "chair": 1, "loveseat": 2, "sofa": 4, "toilet": 1, "pianobench": 2, "bench": 2}
BEDS = {"couch": 2, "bathtub": 2, "bed": 3, "loveseat": 2, "sofa": 2, "bench": 1}
