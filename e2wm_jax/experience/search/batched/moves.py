"""The planner's moves and the facts of a goal on an accelerator: `search.moves` and `native.goal.holding` of one state,
to be batched by `jax.vmap`. Letters as in `goal`.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.experience.search.batched.goal import LEFT, OPEN, RIGHT, STAND_UP, TO_CLASS, TO_ROOM, UP, Task
from e2wm_jax.experience.search.moves import DOUBLE, NEEDS_HANDS_FULL, NEEDS_HOLDING, NEEDS_STATE, SINGLE
from e2wm_jax.worlds.household.arrays import CLOSE, INSIDE, LYING, SITTING
from e2wm_jax.worlds.household.batched.edges import (
    ADDED,
    ALL_BITS,
    View,
    at,
    closed_containers,
    first_target,
    has,
    least,
    number_of,
    packed,
    set_of,
    spot_of,
    spread,
    union,
    view_of,
)
from e2wm_jax.worlds.household.batched.tables import UNKNOWN, Array, DeviceTables, State, table_mask
from e2wm_jax.worlds.household.homes.scenes import STATES

ENCLOSING = 3  # of `DeviceTables.reach`: INSIDE
LAST = 3  # place of a move's last line


def _mask(names: Sequence[str]) -> np.uint32:
    return np.uint32(sum(1 << SINGLE.index(name) for name in names))


SINGLES = _mask(SINGLE)
NEEDS_HELD = _mask([name for name in SINGLE if name in NEEDS_HOLDING])
NEEDS_SOMETHING_HELD = _mask([*NEEDS_HANDS_FULL])


class MoveOptions(NamedTuple):
    """The moves that make sense in a state."""

    moves: Array  # [M / 32] uint32
    around: Array  # [W] uint32: what is in a place like the one where the character is


class Move(NamedTuple):
    """The lines of a move, all int32: StandUp, Open of up to two things, the verb."""

    verb: Array
    x: Array
    y: Array
    stand: Array  # 0 or 1
    one: Array  # node to open, or -1
    other: Array


# Facts


def holding(tables: DeviceTables, task: Task, state: State) -> Array:
    """[F / 32] the facts that hold by a change since the beginning."""
    view, start = view_of(tables, state), tables.start
    changed = (state.on & ~start.on, jnp.zeros_like(state.on), state.close & ~start.close, state.facing & ~start.facing)
    rows = jnp.concatenate([state.states, jnp.stack(changed)])
    found = packed(jnp.any(at(rows, task.row_of) & task.watched != 0, -1))

    relation, source, target = view.relation, view.source, view.target
    known = tables.rows.at[source, relation, target >> 5].get(mode="clip", wrap_negative_indices=False)
    fresh = (relation >= 0) & (known >> (target & 31).astype(jnp.uint32) & 1 == 0)
    forth = at(task.sources, source) & at(task.targets, target)
    back = at(task.sources, target) & at(task.targets, source) & spread(relation == CLOSE)[:, None]
    listed = (forth | back) & at(task.of_relation, relation) & spread(fresh)[:, None]  # [S, F / 32]
    things = state.hands.astype(jnp.int32) - 1
    held = at(task.targets, things) & task.of_relation[4:] & spread(things >= 0)[:, None]
    return found | union(listed.T) | union(held.T)


# Moves


def _first_of(sets: Array) -> Array:
    """[...] the first node of sets [..., W], or -1."""
    trailing = jax.lax.population_count((sets & -sets) - 1).astype(jnp.int32)
    place = jnp.where(sets != 0, 32 * jnp.arange(sets.shape[-1]) + trailing, 1 << 30)
    first = jnp.min(place, -1)
    return jnp.where(first == 1 << 30, -1, first)


def options(tables: DeviceTables, task: Task, state: State) -> MoveOptions:
    """`macros.Moves.legal` of a state: the moves that make sense in it; executing one may still fail."""
    view = view_of(tables, state)
    around = _around(view, task)
    hands = state.hands.astype(jnp.int32) - 1
    usable = (hands >= 0) & ((jnp.arange(2) == 0) | (hands[0] != hands[1]))
    near, far = _first_of(state.close & task.classes), _first_of(around & task.classes)  # [L]
    fits = at(task.fits, near) & spread(near >= 0)
    is_held = jnp.any((near[:, None] == hands) & usable, -1)

    barred = NEEDS_HELD & ~spread(is_held) | NEEDS_SOMETHING_HELD & ~spread(jnp.any(usable))
    for verb, needed in NEEDS_STATE.items():
        barred |= _mask([verb]) & ~spread(has(state.states[STATES.index(needed)], near))
    offers = fits & SINGLES & ~barred
    for hand, place in enumerate((RIGHT, LEFT)):
        thing = hands[hand]
        by = at(task.fits, thing) & spread(usable[hand] & jnp.any(near == thing)) & spread(near != thing)
        # Bits RIGHT... of `fits` are the double verbs with X, bits LEFT... those with Y
        both = (by >> RIGHT) & (fits >> LEFT) & ((1 << len(DOUBLE)) - 1)
        offers |= both << place
    lying, sitting = (has(state.states[pose], tables.character) for pose in (LYING, SITTING))
    offers |= spread(~lying & (far >= 0)) & (1 << TO_CLASS)
    own = spread(~lying) & (1 << TO_ROOM) | spread(lying | sitting) & (1 << UP)
    offers = jnp.concatenate([offers, own[None]])
    return MoveOptions(packed(at(offers, task.row) >> task.bit.astype(jnp.uint32) & 1 != 0), around)


def first_options(task: Task) -> Array:
    """[M / 32] `macros.Moves.first`: the moves at the root of a search, to a room."""
    return packed(task.bit == TO_ROOM)


def _around(view: View, task: Task) -> Array:
    """[W] what is INSIDE a thing or room of the class that the character is INSIDE."""
    t, kept = view.tables, ~view.state.wiped[INSIDE]
    place = first_target(view, spot_of(view, t.character), jnp.int32(INSIDE), rooms=True)
    places = packed(task.class_of == at(task.class_of, place)) & spread(place >= 0)
    found = jnp.zeros(t.reach.shape[2:], jnp.uint32)
    for word in range(view.words):
        found |= t.reach[ENCLOSING, word] & (places & kept)[word]
    listed = (view.relation == INSIDE) & has(places, view.target)
    return packed(found != 0) & kept | set_of(view.source, listed, view.words)


def bound(tables: DeviceTables, task: Task, state: State, around: Array, candidate: Array) -> Move:
    """The lines of a candidate, which makes sense in the state."""
    view = view_of(tables, state)
    row, bit, verb, room = (at(part, candidate) for part in task[:4])
    mine = at(task.classes, row)
    near, hands = _first_of(state.close & mine), state.hands.astype(jnp.int32) - 1
    double = (bit >= RIGHT) & (bit < TO_CLASS)
    x = jnp.select(
        [bit == TO_ROOM, bit == TO_CLASS, bit == UP, double & (bit < LEFT), double],
        [room, _first_of(around & mine), 0, hands[0], hands[1]],
        near,
    )
    y = jnp.where(double, near, 0)
    first, second = jax.vmap(partial(_closed_around, view))(jnp.stack([x, y]))  # each [2]
    second = jnp.where(double, second, -1)
    shut = first[0] >= 0
    opens = jnp.where(shut, jnp.stack([first[0], jnp.where(first[1] >= 0, first[1], second[0])]), second)
    walks = (bit == TO_CLASS) | (bit == TO_ROOM)
    opens = jnp.where(walks | (bit == UP), -1, opens)
    x = jnp.where((bit == TO_CLASS) & shut, first[0], x)
    stand = walks & has(state.states[SITTING], tables.character)
    return Move(verb, x, y, stand.astype(jnp.int32), *opens)


def _closed_around(view: View, node: Array) -> Array:
    """[2] the first two closed things, not rooms, that a node is INSIDE, or -1; the order as in `first_target`."""
    t = view.tables
    shut, rank = closed_containers(view), t.rank.at[INSIDE, node].get(mode="clip").astype(jnp.uint32)  # [W], [N]
    forth = (view.relation == INSIDE) & (view.source == node)
    added = at(rank, view.target)
    size = table_mask(t.known[INSIDE, node] + number_of(forth & (added == UNKNOWN)))

    def key(nodes: Array, there: Array, rank: Array, age: Array) -> Array:
        age = jnp.where(rank == UNKNOWN, age, ADDED + rank).astype(jnp.uint32)
        return jnp.where(there, (at(t.ids, nodes) & size) << 23 | age << 12 | nodes.astype(jnp.uint32), ALL_BITS)

    nodes, slots = jnp.arange(t.ids.shape[0]), 1 + jnp.arange(forth.shape[0])
    there = has(spot_of(view, node).rows[INSIDE] & shut, nodes)
    keys = key(nodes, there, rank, 0), key(view.target, forth & has(shut, view.target), added, slots)
    first = jnp.minimum(*map(least, keys))
    second = jnp.minimum(*(least(jnp.where(part > first, part, ALL_BITS)) for part in keys))
    found = jnp.stack([first, second])
    return jnp.where(found == ALL_BITS, -1, (found & 0xFFF).astype(jnp.int32))


# Lines


def line_of(move: Move, place: Array) -> tuple[Array, Array, Array, Array]:
    """The first line of a move from a place on: its own place; verb, x, y."""
    there = jnp.stack([move.stand > 0, move.one >= 0, move.other >= 0, jnp.bool_(True)])
    place = jnp.argmax(there & (jnp.arange(4) >= place)).astype(jnp.int32)
    verb = at(jnp.stack([STAND_UP, OPEN, OPEN, move.verb]).astype(jnp.int32), place)
    x = at(jnp.stack([jnp.int32(0), move.one, move.other, move.x]), place)
    return place, verb, x, jnp.where(place == LAST, move.y, 0)


def packed_move(move: Move) -> Array:
    """[2] uint32 which together are `native.moves.pack`: see `unpacked`."""
    verb, x, y, stand, one, other = (part.astype(jnp.uint32) for part in move)
    return jnp.stack([verb | x << 6 | y << 18 | stand << 30, (one + 1) | (other + 1) << 13])


def unpacked(words: np.ndarray) -> np.ndarray:
    """[...] int64 as `native.moves` packs moves, of words [..., 2]."""
    return words[..., 0].astype(np.int64) | words[..., 1].astype(np.int64) << 31
