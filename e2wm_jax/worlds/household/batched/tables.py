"""A scene and a state as pytrees of arrays, on the device: what the engine for accelerators works on.

Letters: N nodes, W = ceil(N / 32) words of a set of nodes, S slots of the list of edges, R rooms, D doors, Q seats,
K kinds (arguments of HAS checks). Sets of nodes are bits of uint32 words, as in `tables`, from whose arrays these are
made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np

from e2wm_jax.errors import InputError
from e2wm_jax.worlds.household.arrays import (
    ALL_STATES,
    CLOSE,
    FACING,
    INSIDE,
    ON,
    Layout,
    Tables,
    dialect_rules,
    words_of,
)
from e2wm_jax.worlds.household.rules import DIALECTS

Array = Any
SOURCES = 4  # DeviceTables.rows: first the targets of the four relations, then the sources
REACH = (CLOSE, ON, SOURCES + FACING, INSIDE, SOURCES + ON)  # of `rows`: what `checks.reachable` looks at
SLOTS = 64  # S unless told otherwise; random play of 40 lines has 16 edges at most, a long human program 49
MOST_ROOMS = 32  # sets of rooms are bits of one uint32
UNKNOWN = 0xFFFF  # rank of what a node's edges in the scene do not lead to
ADDED = 128  # age of an added edge < ADDED + rank of one of the scene


class State(NamedTuple):
    """One state, uint32 throughout; the parts of a vector (`tables.Layout`) in their order. More edges than slots are
    lost; `count` then stays above S for good, and the state is no longer exact."""

    wiped: Array  # [4, W]
    close: Array  # [W]
    facing: Array  # [W]
    on: Array  # [W]
    bound: Array  # [W]
    states: Array  # [10, W]
    hands: Array  # [2]
    memory: Array  # [N]
    count: Array  # []
    edges: Array  # [S]


def _axes(axes: str, fill: int = 0) -> dict[str, Any]:
    """The axes of an array, and what it is padded with."""
    return {"axes": axes, "fill": fill}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeviceTables:
    """What all states of a scene share, on the device. Sets and lists as in `Tables`, -1 fills up lists of nodes."""

    dialect: str = field(metadata={"static": True})
    # Every node but the rooms is directly in a room, and so it stays: nobody need look into containers
    tidy: bool = field(metadata={"static": True})
    character: Array = field(metadata=_axes(""))  # int32
    exists: Array = field(metadata=_axes("W"))  # every node
    rooms: Array = field(metadata=_axes("W"))
    bodies: Array = field(metadata=_axes("W"))
    computers: Array = field(metadata=_axes("W"))
    openable: Array = field(metadata=_axes("W"))
    surfaces: Array = field(metadata=_axes("W"))
    edible: Array = field(metadata=_axes("W"))
    knives: Array = field(metadata=_axes("W"))
    water: Array = field(metadata=_axes("W"))
    own_walk: Array = field(metadata=_axes("W"))
    kinds: Array = field(metadata=_axes("KW"))
    rows: Array = field(metadata=_axes("N8W"))  # targets of ON, INSIDE, CLOSE, FACING, then sources
    reach: Array = field(metadata=_axes("5WN"))  # the rows `REACH`, word by word
    seats: Array = field(metadata=_axes("2N"))  # int32
    sittable: Array = field(metadata=_axes("Q", -1))  # int32: nodes of which SEAT_LEFT and BED_LEFT are asked
    posture: Array = field(metadata=_axes(""))  # uint32: the character's states in the scene, a bit each
    ids: Array = field(metadata=_axes("N"))  # uint32: as a set sees them, by the low bits of their hash
    rank: Array = field(
        metadata=_axes("3NN", UNKNOWN)
    )  # uint16: place of a target among those of a node in the file, or UNKNOWN
    known: Array = field(metadata=_axes("3N"))  # int32: number of a node's targets in the file
    room_nodes: Array = field(metadata=_axes("R", -1))  # int32
    room_number: Array = field(metadata=_axes("N", -1))  # int32, -1 for what is no room
    room_rank: Array = field(metadata=_axes("NR", UNKNOWN))  # uint32: `rank` of INSIDE
    room_ids: Array = field(metadata=_axes("R"))  # uint32
    residents: Array = field(metadata=_axes("WR"))  # nodes that are in a room in the scene, and the room itself
    doors: Array = field(metadata=_axes("D", -1))  # int32
    door_rooms: Array = field(metadata=_axes("D2", -1))  # int32
    door_near: Array = field(metadata=_axes("DR"))  # bool
    ways: Array = field(metadata=_axes("RRR", -1))  # int32
    has_door: Array = field(metadata=_axes("R"))  # bool
    start: State = field()


class Sizes(NamedTuple):
    """What the shapes of `DeviceTables` depend on: N, S, Q, all three multiples of 32, R and D."""

    nodes: int
    slots: int
    seats: int
    rooms: int
    doors: int


def sizes_of(*tables: Tables, slots: int = SLOTS) -> Sizes:
    """The smallest sizes into which each of these scenes fits."""
    every = [Sizes(t.nodes, slots, len(_sittable(t)), len(t.has_door), len(t.doors)) for t in tables]
    most = Sizes(*map(max, zip(*every, strict=True)))
    nodes, slots, seats = (32 * -(-size // 32) for size in most[:3])
    return Sizes(nodes, slots, seats, most.rooms, most.doors)


def _sittable(tables: Tables) -> np.ndarray:
    kinds = [i for i, kind in enumerate(_kinds(tables)) if {"SITTABLE", "LIEABLE"} & {*kind}]
    either = np.bitwise_or.reduce(tables.kinds[kinds])
    return np.flatnonzero(np.unpackbits(either.view(np.uint8), bitorder="little"))


def _kinds(tables: Tables) -> tuple[tuple[str, ...], ...]:
    return dialect_rules(DIALECTS[tables.dialect]).kinds


def device_tables(tables: Tables, sizes: Sizes | None = None) -> DeviceTables:
    """The tables of a scene on the default device, padded to ``sizes``, by default its own.

    Raises:
        InputError: for a scene with more than 32 rooms, or whose character or rooms can be carried.
    """
    return jax.device_put(_on_host(tables, sizes or sizes_of(tables)))


def stacked_tables(tables: Sequence[Tables], *, slots: int = SLOTS) -> DeviceTables:
    """The tables of several scenes with a leading axis, for `jax.vmap`, all padded to the largest.

    Raises:
        InputError: as `device_tables`, and for scenes of different dialects.
    """
    if len({t.dialect for t in tables}) != 1:
        raise InputError("scenes of different dialects do not go into one batch")
    sizes = sizes_of(*tables, slots=slots)
    scenes = [_on_host(t, sizes) for t in tables]
    tidy = all(scene.tidy for scene in scenes)
    return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *(replace(s, tidy=tidy) for s in scenes)))


def _on_host(tables: Tables, sizes: Sizes) -> DeviceTables:
    count, rooms = tables.nodes, np.flatnonzero(tables.room_number >= 0)
    grabbable = next(i for i, kind in enumerate(_kinds(tables)) if "GRABBABLE" in kind)
    held = [int(thing) - 1 for thing in tables.start[tables.layout.hands : tables.layout.memory] if thing]
    fixed = words_of([tables.character, *rooms], tables.words)
    if (fixed & (tables.kinds[grabbable] | words_of(held, tables.words))).any():
        raise InputError("a room or the character can be grabbed; this engine takes neither, the native engine does")
    if len(rooms) > MOST_ROOMS:
        raise InputError(f"{len(rooms)} rooms: this engine takes {MOST_ROOMS}, the native engine any number")

    rows = np.concatenate([tables.targets, tables.sources]).transpose(1, 0, 2)  # [N, 8, W]
    rank = np.full((3, count, count), UNKNOWN, np.uint16)
    for relation, starts in enumerate(tables.order_start):
        node = np.repeat(np.arange(count), np.diff(starts))
        place = np.arange(starts[0], starts[-1])
        rank[relation, node, tables.order[place]] = place - starts[node]
    known = np.diff(tables.order_start, axis=1)
    home = _homes(tables, rooms, rank[INSIDE], known[INSIDE])
    residents = [words_of(np.flatnonzero(home == number), tables.words) for number in range(len(rooms))]
    directly = (rank[INSIDE][:, rooms] != UNKNOWN).any(1) | (tables.room_number >= 0)
    parts = {
        "exists": words_of(list(range(count)), tables.words),
        "rows": rows,
        "reach": rows[:, REACH].transpose(1, 2, 0),
        "sittable": _sittable(tables),
        "ids": tables.hashes.astype(np.uint32),
        "rank": rank,
        "known": known,
        "room_nodes": rooms.astype(np.int32),
        "room_rank": rank[INSIDE][:, rooms].astype(np.uint32),
        "room_ids": tables.hashes[rooms].astype(np.uint32),
        "residents": np.reshape(residents, (len(rooms), tables.words)).astype(np.uint32).T,
        "character": np.int32(tables.character),
        "posture": np.uint32(sum(int(bit) << state for state, bit in enumerate(tables.initial_posture))),
    }
    values = {**tables._asdict(), **parts}
    padded = {
        part.name: _padded(part.name, values[part.name], **part.metadata, sizes=sizes)
        for part in fields(DeviceTables)
        if "axes" in part.metadata
    }
    start = _parts(tables.start, tables.layout, nodes=sizes.nodes, slots=sizes.slots)
    return DeviceTables(dialect=DIALECTS[tables.dialect], tidy=bool(directly.all()), start=start, **padded)


def table_mask(targets: Array) -> Array:
    """Size of the table of a set with so many targets, less one: 7, 31, 127 or 511."""
    return (7 + 24 * (targets >= 5) + 96 * (targets >= 19) + 384 * (targets >= 77)).astype(np.uint32)


def _homes(tables: Tables, rooms: np.ndarray, rank: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[N] the number of the room that a node is directly in, in the scene; -1 for none.

    Of several it is the one that CPython's set of ids gives first: of the lowest place in the table, then of the
    lowest rank.
    """
    if not len(rooms):
        return tables.room_number.copy()
    ranks = rank[:, rooms].astype(np.int64)
    places = tables.hashes[rooms].astype(np.int64) & table_mask(known)[:, None]
    keys = np.where(ranks == UNKNOWN, np.iinfo(np.int64).max, places * (UNKNOWN + 1) + ranks)
    home = np.where((ranks == UNKNOWN).all(1), -1, keys.argmin(1))
    return np.where(tables.room_number >= 0, tables.room_number, home)


def _padded(name: str, value: np.ndarray, axes: str, fill: int, sizes: Sizes) -> np.ndarray:
    wanted = {"N": sizes.nodes, "W": -(-sizes.nodes // 32), "R": sizes.rooms, "D": sizes.doors, "Q": sizes.seats}
    value = np.asarray(value)
    if value.dtype == np.int64:
        value = value.astype(np.int32)
    more = [wanted.get(axis, size) - size for axis, size in zip(axes, value.shape, strict=True)]
    if min(more, default=0) < 0:
        raise InputError(f"{name}: a scene of shape {value.shape} does not fit into {sizes}")
    return np.pad(value, [(0, extra) for extra in more], constant_values=fill) if more else value


def state_of(vector: np.ndarray, layout: Layout, *, nodes: int = 0, slots: int = SLOTS) -> State:
    """The parts of state vectors [..., size], on the device, with N = ``nodes`` if these are more than the scene has.
    Vectors may be longer than their layout says: edges are the last part."""
    return jax.device_put(_parts(vector, layout, nodes=nodes, slots=slots))


def _parts(vector: np.ndarray, layout: Layout, *, nodes: int, slots: int) -> State:
    before, words = vector.shape[:-1], layout.facing - layout.close
    parts = dict(zip(State._fields, (vector[..., a:b] for a, b in pairwise(layout)), strict=True))
    for name, lead in {"wiped": 4, "close": 0, "facing": 0, "on": 0, "bound": 0, "states": ALL_STATES}.items():
        sets = parts[name].reshape(*before, *[lead][:lead], words)
        parts[name] = _sized(sets, max(words, nodes // 32))
    parts["memory"] = _sized(parts["memory"], max(32 * words, nodes))
    parts["count"] = parts["count"][..., 0]
    parts["edges"] = _sized(vector[..., layout.edges :], slots)
    return State(**parts)


def _sized(array: np.ndarray, size: int) -> np.ndarray:
    """An array with so many items in its last axis: cut off, or zeros added."""
    more = max(0, size - array.shape[-1])
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, more)])[..., :size]


def vector_of(state: State, layout: Layout) -> np.ndarray:
    """The vectors [..., size] of states, on the host: what `native.step` and `native.world` work on."""
    words, nodes = layout.facing - layout.close, layout.count - layout.memory
    sizes = dict.fromkeys(("wiped", "close", "facing", "on", "bound", "states"), words)
    sizes |= {"memory": nodes, "edges": layout.size - layout.edges}
    parts = {name: np.asarray(part) for name, part in state._asdict().items()}
    parts |= {name: _sized(parts[name], size) for name, size in sizes.items()}
    return np.concatenate([part.reshape(*state.count.shape, -1) for part in parts.values()], axis=-1)
