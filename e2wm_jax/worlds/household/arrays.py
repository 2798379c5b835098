"""A scene and a dialect as arrays: everything that no action changes, and the state in which nothing has happened.

Nodes are numbered 0..N-1 in the order of the file. Sets of nodes are bits in uint32 words: node n is bit n % 32 of
word n // 32, W words in all. Only the character, the things it handles and where they are put ever change edges, and
a deletion always takes all edges of a relation at a node. So a state (see `Layout`) need only say at which nodes the
edges of the scene are gone ("wiped"), what the character is CLOSE to, FACING and ON, and a short list of other edges
that came into being: about 2 KB, where the graph itself takes 400 KB.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from e2wm_jax.errors import InputError
from e2wm_jax.worlds.household.homes.scenes import RELATIONS as ALL_RELATIONS
from e2wm_jax.worlds.household.homes.scenes import STATES, Node, Scene
from e2wm_jax.worlds.household.rules import BEDS, DIALECTS, RULES, SEATS, Check, Test

ON, INSIDE, CLOSE, FACING = range(4)  # relations that actions change
RELATIONS = ("ON", "INSIDE", "CLOSE", "FACING")
HOLDING = ("HOLDS_RH", "HOLDS_LH")
EDGE_SLOTS = 96  # edges that came into being; random play of 40 steps has 12 at most
MAX_NODES = 1 << 12
ALL_STATES = len(STATES)
SITTING, LYING = STATES.index("SITTING"), STATES.index("LYING")
CLOSED, OPEN = STATES.index("CLOSED"), STATES.index("OPEN")
Array = Any


class Layout(NamedTuple):
    """Where the parts of a state lie in its vector of uint32."""

    wiped: int  # [4, W] nodes at which a relation of the scene is gone
    close: int  # [W] what the character is CLOSE to
    facing: int  # [W]
    on: int  # [W]
    bound: int  # [W] what was walked to or found (vh19)
    states: int  # [10, W] nodes in each state
    hands: int  # [2] right, left: 1 + node held, or 0
    memory: int  # [N] 1 + relation + 4 * node: where a thing was grabbed; 0 where it was not
    count: int  # type: ignore[assignment]  # number of edges in the list
    edges: int  # [EDGE_SLOTS] relation << 24 | from << 12 | to, in the order of their making
    size: int


class Tables(NamedTuple):
    """What all states of a scene share. A flat tuple of arrays and numbers: numba and JAX take it as it is."""

    layout: Layout
    nodes: int  # N
    words: int  # W
    character: int
    dialect: int  # index in DIALECTS
    targets: Array  # [4, N, W] uint32: edges from a node, less those of the character that its state holds
    sources: Array  # [4, N, W] uint32: edges to a node
    rooms: Array  # [W]
    bodies: Array  # [W] body parts
    computers: Array  # [W]
    openable: Array  # [W] CAN_OPEN
    surfaces: Array  # [W]
    edible: Array  # [W]
    knives: Array  # [W]
    water: Array  # [W]
    own_walk: Array  # [W] rooms whose contents e2wm's WALK leaves alone
    kinds: Array  # [K, W] nodes that fit the HAS checks
    seats: Array  # [2, N] int32: how many things may be ON it before one sits, lies
    checks: Array  # [V, M, 4] int32: test or -1, of (0 X, 1 Y), argument, otherwise
    effects: Array  # [V, 3] int32: effect, state lost, state gained
    initial_posture: Array  # [10] uint32: the character's states in the scene
    order_start: Array  # [3, N + 1] int32: where a node's targets begin in `order`
    order: Array  # int32: targets of ON, INSIDE, CLOSE edges in the order of the file
    hashes: Array  # [N] int64: Python's, of the nodes' ids, which may have any size
    doors: Array  # [D] int32 node
    door_rooms: Array  # [D, 2] int32 room numbers
    door_near: Array  # [D, R] bool: has a BETWEEN edge with the room
    room_number: Array  # [N] int32, -1 for what is no room
    ways: Array  # [R, R, L] int32: doors on the way from one room back to another, nearest to the first; -1 fills up
    has_door: Array  # [R] bool
    start: Array  # [size] uint32: the initial state


def words_of(nodes: "np.ndarray | list[int]", count: int) -> np.ndarray:
    """Bits of a set of node numbers."""
    bits = np.zeros(count * 32, np.uint8)
    bits[np.asarray(list(nodes), np.int64)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


def layout_of(nodes: int) -> Layout:
    """The layout of states of a scene with so many nodes."""
    words = -(-nodes // 32)
    sizes = (4 * words, words, words, words, words, ALL_STATES * words, 2, nodes, 1, EDGE_SLOTS)
    return Layout(*np.cumsum((0, *sizes)).tolist())


class DialectRules(NamedTuple):
    """The table of `rules` as numbers."""

    checks: np.ndarray  # [V, M, 4]
    effects: np.ndarray  # [V, 3]
    kinds: tuple[tuple[str, ...], ...]  # arguments of HAS checks
    of_verb: tuple[tuple[Check, ...], ...]


@lru_cache
def dialect_rules(dialect: str) -> DialectRules:
    """The rules of a dialect as numbers.

    Raises:
        InputError: for an unknown dialect.
    """
    if dialect not in DIALECTS:
        raise InputError(f"dialect {dialect!r}: unknown; choose one of {', '.join(DIALECTS)}")
    of_verb = tuple(rule.in_dialect(dialect) for rule in RULES)
    kinds = tuple(dict.fromkeys(check.argument for checks in of_verb for check in checks if check.test is Test.HAS))
    table = np.full((len(RULES), max(map(len, of_verb)) + 1, 4), -1, np.int32)
    effects = np.zeros((len(RULES), 3), np.int32)
    for verb, (rule, checks) in enumerate(zip(RULES, of_verb, strict=True)):
        for place, check in enumerate(checks):
            table[verb, place] = check.test, check.of == "Y", _argument(check, kinds), check.otherwise
        effects[verb] = rule.effect, *(STATES.index(state) for state in rule.swap or STATES[:2])
    return DialectRules(table, effects, kinds, of_verb)


def _argument(check: Check, kinds: tuple[tuple[str, ...], ...]) -> int:
    if check.test is Test.HAS:
        return kinds.index(check.argument)
    if check.test in (Test.STATE, Test.LACKS):
        (state,) = check.argument
        return STATES.index(state)
    if check.test in (Test.UPRIGHT, Test.SEATED):
        return sum(1 << STATES.index(state) for state in check.argument)
    return 0


def tables_of(scene: Scene, dialect: str) -> Tables:
    """The arrays of a scene, made once for as long as the scene is kept; not to be written to.

    Raises:
        InputError: for a scene that the array engine cannot express (the virtualhome engine can).
    """
    known = _KNOWN.setdefault(scene, {})
    if dialect not in known:
        known[dialect] = _tables_of(scene, dialect)
    return known[dialect]


_KNOWN: WeakKeyDictionary[Scene, dict[str, Tables]] = WeakKeyDictionary()


def _tables_of(scene: Scene, dialect: str) -> Tables:
    rules = dialect_rules(dialect)
    number = {node: index for index, node in enumerate(scene.nodes)}
    ends = _ends(scene, number)
    _check(scene, number, ends)
    nodes = list(scene.nodes.values())
    count, words = len(nodes), -(-len(nodes) // 32)
    character = number[scene.character.id]
    of_class = _groups((node.class_name,) for node in nodes)
    of_property = _groups(node.properties for node in nodes)

    def named(*classes: str) -> np.ndarray:
        return words_of([index for name in classes for index in of_class.get(name, ())], words)

    def having(word: str) -> np.ndarray:
        return words_of(of_property.get(word, []), words)

    bits = np.zeros((2, 4, count, words * 32), bool)
    for relation, (source, target) in enumerate(ends[name] for name in RELATIONS):
        fixed = ~_held_by_state(relation, source, target, character)
        bits[0, relation, source[fixed], target[fixed]] = bits[1, relation, target[fixed], source[fixed]] = True
    targets, sources = np.packbits(bits, axis=-1, bitorder="little").view(np.uint32)

    order: list[np.ndarray] = []
    order_start = np.zeros((3, count + 1), np.int32)
    for relation in (ON, INSIDE, CLOSE):
        source, target = ends[RELATIONS[relation]]
        order_start[relation] = sum(map(len, order)) + np.cumsum([0, *np.bincount(source, minlength=count)])
        order.append(target[np.argsort(source, kind="stable")])

    rooms = [index for index, node in enumerate(nodes) if node.is_room]
    doors = _doors(scene, number, ends, rooms)
    own_walk = ("home_office", "bathroom", "dining_room", "bedroom")
    layout = layout_of(count)
    return Tables(
        layout=layout,
        nodes=count,
        words=words,
        character=character,
        dialect=DIALECTS.index(dialect),
        targets=targets,
        sources=sources,
        rooms=words_of(rooms, words),
        bodies=having("BODY_PART"),
        computers=named("computer"),
        openable=having("CAN_OPEN"),
        surfaces=having("SURFACES"),
        edible=having("EATABLE"),
        knives=named(*(name for name in of_class if "knife" in name)),
        water=named("water"),
        own_walk=named(*own_walk),
        kinds=np.stack([named(*kind) | np.bitwise_or.reduce([*map(having, kind)]) for kind in rules.kinds]),
        seats=np.array([[limits.get(node.class_name, 1) for node in nodes] for limits in (SEATS, BEDS)], np.int32),
        checks=rules.checks,
        effects=rules.effects,
        initial_posture=np.array([state in nodes[character].states for state in STATES], np.uint32),
        order_start=order_start,
        order=np.concatenate(order).astype(np.int32),
        hashes=np.array([hash(node.id) for node in nodes], np.int64),
        **doors,
        start=_start(layout, nodes, ends, character, words),
    )


Ends = tuple[np.ndarray, np.ndarray]  # node numbers that edges lead from, and to; in the order of the file


def _ends(scene: Scene, number: dict[int, int]) -> dict[str, Ends]:
    """The ends of the edges of each relation."""
    code = {relation: index for index, relation in enumerate(ALL_RELATIONS)}
    source = np.array([number[edge[0]] for edge in scene.edges], np.int64)
    kind = np.array([code[edge[1]] for edge in scene.edges], np.int64)
    target = np.array([number[edge[2]] for edge in scene.edges], np.int64)
    chosen = {relation: kind == index for relation, index in code.items()}
    return {relation: (source[edges], target[edges]) for relation, edges in chosen.items()}


def _groups(names: Iterable[Iterable[str]]) -> dict[str, list[int]]:
    """Name to the numbers of the nodes that have it."""
    groups: dict[str, list[int]] = {}
    for index, names_of_node in enumerate(names):
        for name in names_of_node:
            groups.setdefault(name, []).append(index)
    return groups


def _held_by_state(relation: int, source: np.ndarray, target: np.ndarray, character: int) -> np.ndarray:
    """Which edges the state holds: the character's own CLOSE, FACING and ON, and what is ON it, for these change edge
    by edge."""
    own = (source == character) & (relation != INSIDE)
    return own | ((target == character) & (relation in (CLOSE, ON)))


def _start(layout: Layout, nodes: list[Node], ends: dict[str, Ends], character: int, words: int) -> np.ndarray:
    start = np.zeros(layout.size, np.uint32)
    for relation, place in ((CLOSE, layout.close), (FACING, layout.facing), (ON, layout.on)):
        source, target = ends[RELATIONS[relation]]
        start[place : place + words] = words_of(target[source == character], words)
    source, target = ends["ON"]
    worn = sorted({*source[(target == character) & (source != character)].tolist()})
    for slot, thing in enumerate(worn):
        start[layout.edges + slot] = ON << 24 | thing << 12 | character
    start[layout.count] = len(worn)
    of_state = _groups(node.states for node in nodes)
    for index, state in enumerate(STATES):
        place = layout.states + index * words
        start[place : place + words] = words_of(of_state.get(state, []), words)
    held = [ends[hand][1] for hand in HOLDING]
    start[layout.hands : layout.hands + 2] = [1 + things[-1] if len(things) else 0 for things in held]
    return start


def _check(scene: Scene, number: dict[int, int], ends: dict[str, Ends]) -> None:
    """What the compact state takes for granted."""

    def refuse(reason: str) -> InputError:
        return InputError(f"{scene.name}: {reason}; correct the scene, or use --engine virtualhome")

    count, ids, character = len(number), list(number), number[scene.character.id]
    if count > MAX_NODES:
        raise refuse(f"{count} nodes, the array engine takes {MAX_NODES}")
    close = np.zeros((count, count), bool)
    close[ends["CLOSE"]] = True
    for source, target in np.argwhere(close & ~close.T):
        raise refuse(f"node {ids[source]} is CLOSE to node {ids[target]} but not the other way round")
    for relation in HOLDING:
        holders = ends[relation][0].tolist()
        for holder in holders:
            if holder != character or holders.count(holder) > 1:
                raise refuse(f"{relation} of node {ids[holder]}: only the character holds things, one in each hand")
    if np.count_nonzero(ends["ON"][1] == character) > EDGE_SLOTS // 4:
        raise refuse("too many things are ON the character")


def _doors(scene: Scene, number: dict[int, int], ends: dict[str, Ends], rooms: list[int]) -> dict[str, np.ndarray]:
    """Doors with their rooms, and for every two rooms the doors between them on the way that a breadth-first search
    through all doors, in their order, finds."""
    between: dict[int, set[int]] = {}
    near: dict[int, set[int]] = {}
    room_number = {room: index for index, room in enumerate(rooms)}
    ids = list(number)
    for a, b in zip(*(end.tolist() for end in ends["BETWEEN"]), strict=True):
        between.setdefault(a, set()).add(ids[b])  # one by one, as VirtualHome fills the set whose order it follows
        near.setdefault(a, set()).add(b)
        near.setdefault(b, set()).add(a)
    doors, door_rooms = [], []
    for name in ("door", "doorjamb"):
        for node in scene.by_class.get(name, ()):
            sides = [number[other] for other in between.get(number[node.id], ())]
            doors.append(number[node.id])
            pair = [room_number.get(side, -1) for side in sides[:2]]
            door_rooms.append(pair if len(pair) == 2 and min(pair) >= 0 else [-1, -1])
    ways = _ways(len(rooms), door_rooms)
    return {
        "doors": np.array(doors, np.int32),
        "door_rooms": np.array(door_rooms, np.int32).reshape(-1, 2),
        "door_near": np.array([[room in near.get(door, ()) for room in rooms] for door in doors], bool).reshape(
            len(doors), len(rooms)
        ),
        "room_number": np.array([room_number.get(node, -1) for node in range(len(number))], np.int32),
        "ways": ways,
        "has_door": np.array([any(room in pair for pair in door_rooms) for room in range(len(rooms))], bool),
    }


def _ways(rooms: int, door_rooms: list[list[int]]) -> np.ndarray:
    ways = np.full((rooms, rooms, max(rooms, 1)), -1, np.int32)
    for start in range(rooms):
        came: dict[int, tuple[int, int]] = {}
        queue = [start]
        for room in queue:
            for door, (a, b) in enumerate(door_rooms):
                if room in (a, b) and (other := b if room == a else a) != start and other not in came:
                    came[other] = (room, door)
                    queue.append(other)
        for end in came:
            room, steps = end, 0
            while room != start:
                room, ways[start, end, steps] = came[room]
                steps += 1
    return ways
