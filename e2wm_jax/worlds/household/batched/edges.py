"""Looking things up in a state on the device: sets of nodes, edges, rooms.

Letters as in `tables`. Everything here and in `checks`, `effects`, `step` is written for one state and has no
branches: `jax.vmap` makes batches of it.

Where the executor takes the first of a Python set, this engine takes the smallest id modulo the size of the set's
table, which is 8, 32, 128 or 512 for up to 4, 18, 76 or more targets, counting those that the node had in the scene;
among equals those added in the episode come first, oldest first, then the others in the order of the file.
`native.step` emulates the set itself, probing included: they differ in 5 of 22,707 steps of the reference trajectories.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.worlds.household.arrays import CLOSE, CLOSED, INSIDE
from e2wm_jax.worlds.household.batched.tables import UNKNOWN, Array, DeviceTables, State, table_mask

ADDED = 128  # age of an added edge < ADDED + rank of one of the scene
ALL_BITS = np.uint32(0xFFFFFFFF)  # a set of everything; as a key, that of nothing
LONGEST_CHAIN = 64  # containers within containers

# Bits. What is reduced lies last, in axes of up to 32: only so XLA fuses a reduction, on a CPU, with what makes its
# input, instead of writing that to memory.


def at(array: Array, index: Array) -> Array:
    """``array[index]`` without JAX's care for negative indices; what it gives for -1 is of no use, but does no harm."""
    return array.at[index].get(mode="clip", wrap_negative_indices=False)


def folded(array: Array) -> Array:
    """[..., 32 k] as [..., k, 32], to be reduced over the last two axes."""
    return array.reshape(*array.shape[:-1], -1, 32)


def any_of(flags: Array) -> Array:
    """[...] whether one of the flags [..., 32 k] is set."""
    return jnp.any(folded(flags), (-2, -1))


def number_of(flags: Array) -> Array:
    """[...] how many of the flags [..., 32 k] are set."""
    return jnp.sum(folded(flags), (-2, -1), dtype=jnp.int32)


def least(keys: Array) -> Array:
    """[...] the least of the keys [..., 32 k]."""
    return jnp.min(folded(keys), (-2, -1))


def has(words: Array, node: Array) -> Array:
    """Whether nodes [...] are in a set [W]; of no use for -1."""
    return (at(words, node >> 5) >> (node & 31).astype(jnp.uint32)) & 1 != 0


def has_in(sets: Array, node: Array) -> Array:
    """[K] whether a node is in each of the sets [K, W]."""
    return (sets.at[:, node >> 5].get(mode="clip") >> (node & 31).astype(jnp.uint32)) & 1 != 0


def one(node: Array, words: int) -> Array:
    """[W] the set of one node; empty for -1."""
    shift = (node & 31).astype(jnp.uint32)
    return jnp.where(jnp.arange(words) == node >> 5, jnp.uint32(1) << shift, jnp.uint32(0))


def union(sets: Array) -> Array:
    """[...] the union of the sets [..., K]."""
    if sets.shape[-1] % 32 == 0:
        sets = folded(sets)
        return jax.lax.reduce(sets, np.uint32(0), jax.lax.bitwise_or, (sets.ndim - 2, sets.ndim - 1))
    return jax.lax.reduce(sets, np.uint32(0), jax.lax.bitwise_or, (sets.ndim - 1,))


def set_of(nodes: Array, wanted: Array, words: int) -> Array:
    """[W] the set of those of the nodes [K] that are wanted [K]."""
    # By way of words, lest XLA compute the flags again for every word of the result
    wanted = members(packed(wanted))[: nodes.shape[0]]
    bit = jnp.where(wanted, jnp.uint32(1) << (nodes & 31).astype(jnp.uint32), jnp.uint32(0))
    return union(jnp.where(nodes >> 5 == jnp.arange(words)[:, None], bit, jnp.uint32(0)))


def bits(flags: Array) -> Array:
    """[...] flags [..., up to 32] as bits of a word."""
    place = jnp.arange(flags.shape[-1], dtype=jnp.uint32)
    return jnp.sum(flags.astype(jnp.uint32) << place, -1, dtype=jnp.uint32)


def spread(flag: Array) -> Array:
    """All bits of a word where the flag is set, none where it is not."""
    return jnp.where(flag, ALL_BITS, jnp.uint32(0))


def members(words: Array) -> Array:
    """[..., N] which nodes are in sets [..., W]."""
    flags = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1 != 0
    return flags.reshape(*words.shape[:-1], -1)


def packed(flags: Array) -> Array:
    """[W] the set of nodes whose flag [N] is set; N need not be a multiple of 32."""
    return bits(flags)[None] if flags.shape[0] < 32 else bits(folded(flags))


# Edges


class View(NamedTuple):
    """A state with its list of edges taken apart."""

    tables: DeviceTables
    state: State
    relation: Array  # [S] -1 for free slots
    source: Array  # [S]
    target: Array  # [S]
    room: Array  # [S] the target's number as a room, or -1

    @property
    def words(self) -> int:
        """W."""
        return int(self.state.close.shape[0])

    @property
    def dialect(self) -> str:
        """As in `rules.DIALECTS`."""
        return self.tables.dialect


class Spot(NamedTuple):
    """A node with its edges."""

    node: Array  # [...]
    rows: Array  # [..., 8, W] where the edges of the scene that are still there lead to (4), and come from (4)


def view_of(tables: DeviceTables, state: State) -> View:
    """Take the list of edges apart."""
    entries = state.edges
    live = jnp.arange(entries.shape[0]) < state.count
    parts = entries >> 24, entries >> 12 & 0xFFF, entries & 0xFFF
    relation, source, target = (part.astype(jnp.int32) for part in parts)
    return View(tables, state, jnp.where(live, relation, -1), source, target, at(tables.room_number, target))


def spot_of(view: View, node: Array) -> Spot:
    """The edges of the scene at a node that are still there. The character's own ON, CLOSE, FACING are not of them."""
    wiped = view.state.wiped
    kept = jnp.where(has_in(wiped, node)[:, None], jnp.uint32(0), ~wiped)  # [4, W]
    return Spot(node, at(view.tables.rows, node) & jnp.concatenate([kept, kept]))


def room_numbers(view: View, nodes: Array) -> Array:
    """[...] the numbers of the rooms of nodes [...], or -1; vh23 follows containers upwards, the others look at direct
    rooms only."""
    if view.dialect == "vh23" and not view.tables.tidy:
        return jnp.vectorize(partial(_room_by_containers, view))(nodes)
    own = at(view.tables.room_number, nodes)
    return jnp.where(own >= 0, own, _direct_rooms(view, nodes))


def _direct_rooms(view: View, nodes: Array) -> Array:
    """[...] the numbers of the first rooms that nodes [...] are directly in, or -1."""
    t, room = view.tables, view.room
    known_rooms = at(t.room_rank, nodes)  # [..., R]
    listed = view.relation == INSIDE  # [S]
    rank = t.rank.at[INSIDE, view.source, view.target].get(mode="clip", wrap_negative_indices=False).astype(jnp.uint32)
    added = listed & (rank == UNKNOWN)
    match = listed & (view.source == nodes[..., None])  # [..., S]
    size = table_mask(at(t.known[INSIDE], nodes) + number_of(match & added))[..., None]
    there = (known_rooms != UNKNOWN) & ~has(view.state.wiped[INSIDE], nodes)[..., None]
    numbers = jnp.arange(t.room_nodes.shape[0], dtype=jnp.uint32)
    key = (t.room_ids & size) << 20 | (ADDED + known_rooms) << 8 | numbers
    of_scene = jnp.min(jnp.where(there, key, ALL_BITS), -1, initial=ALL_BITS)
    age = jnp.where(added, jnp.arange(listed.shape[0], dtype=jnp.uint32), ADDED + rank)
    key = (at(t.room_ids, room) & size) << 20 | age << 8 | room.astype(jnp.uint32) & 0xFF
    of_list = least(jnp.where(match & (room >= 0), key, ALL_BITS))
    best = jnp.minimum(of_scene, of_list)
    return jnp.where(best == ALL_BITS, -1, (best & 0xFF).astype(jnp.int32))


def in_rooms(view: View, rooms: Array) -> Array:
    """[W] the nodes whose room is in a set of rooms (bits of a uint32)."""
    t = view.tables

    def wanted(numbers: Array) -> Array:
        return (numbers >= 0) & (rooms >> numbers.astype(jnp.uint32) & 1 != 0)

    if view.dialect == "vh23" and not t.tidy:
        return packed(wanted(room_numbers(view, jnp.arange(t.ids.shape[0]))))
    of_rooms = jnp.where(wanted(jnp.arange(t.room_nodes.shape[0])), t.residents, jnp.uint32(0))  # [W, R]
    at_home = union(of_rooms) & ~view.state.wiped[INSIDE]
    moved = view.relation == INSIDE
    arrived = moved & wanted(room_numbers(view, view.source))
    return at_home & ~set_of(view.source, moved, view.words) | set_of(view.source, arrived, view.words)


def first_target(view: View, spot: Spot, relation: Array, *, rooms: bool) -> Array:
    """The first node that an ON, INSIDE or CLOSE edge from a node other than the character leads to, or -1. Without
    ``rooms`` those are passed over."""
    t, state, node = view.tables, view.state, spot.node
    count = t.ids.shape[0]
    rank = t.rank.at[relation, node].get(mode="clip").astype(jnp.uint32)  # [N]
    forth = (view.relation == relation) & (view.source == node)
    back = (view.relation == relation) & (relation == CLOSE) & (view.target == node)
    match, other = forth | back, jnp.where(forth, view.target, view.source)
    rank_other, rank_me = at(rank, other), at(rank, t.character)
    me = (relation == CLOSE) & has(state.close, node)
    more = number_of(match & (rank_other == UNKNOWN)) + (me & (rank_me == UNKNOWN))
    size = table_mask(t.known[relation, node] + more)

    def key(nodes: Array, there: Array, rank: Array, age: Array) -> Array:
        """9 bits id modulo size, 11 bits age, 12 bits node."""
        age = jnp.where(rank == UNKNOWN, age, ADDED + rank).astype(jnp.uint32)
        return jnp.where(there, (at(t.ids, nodes) & size) << 23 | age << 12 | nodes.astype(jnp.uint32), ALL_BITS)

    passed_over = jnp.uint32(0) if rooms else t.rooms
    of_scene = key(jnp.arange(count), members(spot.rows[relation] & ~passed_over), rank, 0)
    of_list = key(other, match & (rooms | ~has(t.rooms, other)), rank_other, 1 + jnp.arange(match.shape[0]))
    best = jnp.minimum(least(of_scene), least(of_list))
    best = jnp.minimum(best, key(t.character, me, rank_me, 0))
    return jnp.where(best == ALL_BITS, -1, (best & 0xFFF).astype(jnp.int32))


def _room_by_containers(view: View, node: Array) -> Array:
    """The room of a node as vh23 finds it, by number."""
    t = view.tables

    def containers(node: Array) -> Array:
        listed = number_of((view.relation == INSIDE) & (view.source == node))
        return listed + jnp.sum(jax.lax.population_count(spot_of(view, node).rows[INSIDE])).astype(jnp.int32)

    def upwards(_: int, node: Array) -> Array:
        done = (node < 0) | (at(t.room_number, node) >= 0)
        return jnp.where(done, node, first_target(view, spot_of(view, node), jnp.int32(INSIDE), rooms=True))

    several = containers(node) > 1
    direct = _direct_rooms(view, node)
    top = jax.lax.fori_loop(0, LONGEST_CHAIN + 1, upwards, node)
    by_chain = jnp.where(top < 0, -1, at(t.room_number, top))
    return jnp.where(several & (at(t.room_number, node) < 0), direct, by_chain)


def room_node(view: View, number: Array) -> Array:
    """The node of a room's number; -1 of -1."""
    return jnp.where(number < 0, -1, at(view.tables.room_nodes, number))


def closed_containers(view: View) -> Array:
    """[W] what is CLOSED and no room."""
    return view.state.states[CLOSED] & ~view.tables.rooms
