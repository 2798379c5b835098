"""Looking things up in a state on the device: sets of nodes, edges, rooms.

Letters as in `engine_tables`. Everything here and in `engine_tests`, `engine_effects`, `engine` is written for one
state and has no branches: `jax.vmap` makes batches of it.

Where the executor takes the first of a Python set, this engine takes the smallest id modulo the size of the set's
table, which is 8, 32, 128 or 512 for up to 4, 18, 76 or more targets, counting those that the node had in the scene;
among equals those added in the episode come first, oldest first, then the others in the order of the file. `native`
emulates the set itself, probing included: they differ in 5 of 22,707 steps of the reference trajectories.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.simulate.engine_tables import UNKNOWN, Array, DeviceTables, State, table_mask
from e2wm_jax.simulate.tables import CLOSE, CLOSED, INSIDE

ADDED = 128  # age of an added edge < ADDED + rank of one of the scene
ALL_BITS = np.uint32(0xFFFFFFFF)  # a set of everything; as a key, that of nothing
LONGEST_CHAIN = 64  # containers within containers

# Bits


def has(words: Array, node: Array) -> Array:
    """Whether nodes [...] are in a set [W]; wrong for -1."""
    return (words[node >> 5] >> (node & 31).astype(jnp.uint32)) & 1 != 0


def has_in(sets: Array, node: Array) -> Array:
    """[K] whether a node is in each of the sets [K, W]."""
    return (sets[:, node >> 5] >> (node & 31).astype(jnp.uint32)) & 1 != 0


def one(node: Array, words: int) -> Array:
    """[W] the set of one node; empty for -1."""
    shift = (node & 31).astype(jnp.uint32)
    return jnp.where(jnp.arange(words) == node >> 5, jnp.uint32(1) << shift, jnp.uint32(0))


def union(sets: Array) -> Array:
    """[...] the union of the sets [K, ...]."""
    return jax.lax.reduce(sets, np.uint32(0), jax.lax.bitwise_or, (0,))


def set_of(nodes: Array, wanted: Array, words: int) -> Array:
    """[W] the set of those of the nodes [K] that are wanted [K]."""
    shift = (nodes & 31).astype(jnp.uint32)
    here = wanted[:, None] & (nodes[:, None] >> 5 == jnp.arange(words))
    return union(jnp.where(here, jnp.uint32(1) << shift[:, None], jnp.uint32(0)))


def spread(flag: Array) -> Array:
    """All bits of a word where the flag is set, none where it is not."""
    return jnp.where(flag, ALL_BITS, jnp.uint32(0))


def members(words: Array, nodes: int) -> Array:
    """[..., N] which nodes are in sets [..., W]."""
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1 != 0
    return bits.reshape(*words.shape[:-1], -1)[..., :nodes]


def packed(flags: Array, words: int) -> Array:
    """[W] the set of nodes whose flag [N] is set."""
    bits = jnp.pad(flags, (0, 32 * words - flags.shape[0])).reshape(words, 32).astype(jnp.uint32)
    return jnp.sum(bits << jnp.arange(32, dtype=jnp.uint32), axis=1, dtype=jnp.uint32)


# Edges


class View(NamedTuple):
    """A state with its list of edges taken apart."""

    tables: DeviceTables
    state: State
    relation: Array  # [S] -1 for free slots
    source: Array  # [S]
    target: Array  # [S]

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

    node: Array  # []
    rows: Array  # [8, W] where the edges of the scene that are still there lead to (4), and come from (4)


def view_of(tables: DeviceTables, state: State) -> View:
    """Take the list of edges apart."""
    entries = state.edges
    live = jnp.arange(entries.shape[0]) < state.count
    parts = entries >> 24, entries >> 12 & 0xFFF, entries & 0xFFF
    relation, source, target = (part.astype(jnp.int32) for part in parts)
    return View(tables, state, jnp.where(live, relation, -1), source, target)


def spot_of(view: View, node: Array) -> Spot:
    """The edges of the scene at a node that are still there. The character's own ON, CLOSE, FACING are not of them."""
    wiped = view.state.wiped
    kept = jnp.where(has_in(wiped, node)[:, None], jnp.uint32(0), ~wiped)  # [4, W]
    return Spot(node, view.tables.rows[node] & jnp.concatenate([kept, kept]))


def room_numbers(view: View, nodes: Array) -> Array:
    """[...] the numbers of the rooms of nodes [...], or -1; vh23 follows containers upwards, the others look at direct
    rooms only."""
    if view.dialect == "vh23" and not view.tables.tidy:
        return jnp.vectorize(partial(_room_by_containers, view))(nodes)
    return jnp.where(view.tables.room_number[nodes] >= 0, view.tables.room_number[nodes], _direct_rooms(view, nodes))


def _direct_rooms(view: View, nodes: Array) -> Array:
    """[...] the numbers of the first rooms that nodes [...] are directly in, or -1."""
    t, known_rooms = view.tables, view.tables.room_rank[nodes]  # [..., R]
    listed = view.relation == INSIDE  # [S]
    room = t.room_number[view.target]
    rank = t.rank[INSIDE, view.source, view.target]
    added = listed & (rank == UNKNOWN)
    match = listed & (view.source == nodes[..., None])  # [..., S]
    size = table_mask(t.known[INSIDE, nodes] + jnp.sum(match & added, -1))[..., None]
    wiped = view.state.wiped[INSIDE]
    there = (known_rooms != UNKNOWN) & ~has(wiped, nodes)[..., None]
    age = jnp.where(added, jnp.arange(listed.shape[0]), ADDED + rank.astype(jnp.int32)).astype(jnp.uint32)
    numbers = jnp.arange(t.room_nodes.shape[0], dtype=jnp.uint32)
    key = (t.ids[t.room_nodes] & size) << 20 | (ADDED + known_rooms) << 8 | numbers
    of_scene = jnp.min(jnp.where(there, key, ALL_BITS), -1, initial=ALL_BITS)
    key = (t.ids[view.target] & size) << 20 | age << 8 | room.astype(jnp.uint32) & 0xFF
    of_list = jnp.min(jnp.where(match & (room >= 0), key, ALL_BITS), -1)
    best = jnp.minimum(of_scene, of_list)
    return jnp.where(best == ALL_BITS, -1, (best & 0xFF).astype(jnp.int32))


def in_rooms(view: View, rooms: Array) -> Array:
    """[W] the nodes whose room is in a set of rooms (bits of a uint32)."""
    t = view.tables
    if view.dialect == "vh23" and not t.tidy:
        numbers = room_numbers(view, jnp.arange(t.ids.shape[0]))
        return packed((numbers >= 0) & (rooms >> numbers.astype(jnp.uint32) & 1 != 0), view.words)
    wanted = rooms >> jnp.arange(t.residents.shape[0], dtype=jnp.uint32) & 1 != 0
    at_home = union(jnp.where(wanted[:, None], t.residents, jnp.uint32(0))) & ~view.state.wiped[INSIDE]
    moved = view.relation == INSIDE
    number = room_numbers(view, view.source)
    arrived = moved & (number >= 0) & (rooms >> number.astype(jnp.uint32) & 1 != 0)
    return at_home & ~set_of(view.source, moved, view.words) | set_of(view.source, arrived, view.words)


def first_target(view: View, spot: Spot, relation: Array, *, rooms: bool) -> Array:
    """The first node that an ON, INSIDE or CLOSE edge from a node other than the character leads to, or -1. Without
    ``rooms`` those are passed over."""
    t, state, node = view.tables, view.state, spot.node
    count = t.ids.shape[0]
    rank = t.rank[relation, node].astype(jnp.int32)  # [N]
    forth = (view.relation == relation) & (view.source == node)
    back = (view.relation == relation) & (relation == CLOSE) & (view.target == node)
    match, other = forth | back, jnp.where(forth, view.target, view.source)
    own = (relation == CLOSE) & has(state.close, node)
    unknown = rank[other] == UNKNOWN
    more = jnp.sum(match & unknown) + (own & (rank[t.character] == UNKNOWN))
    size = table_mask(t.known[relation, node] + more)

    def keys(nodes: Array, there: Array, ranks: Array, age: Array) -> Array:
        wanted = there & (rooms | ~has(t.rooms, nodes))
        age = jnp.where(ranks == UNKNOWN, age, ADDED + ranks).astype(jnp.uint32)
        return jnp.where(wanted, (t.ids[nodes] & size) << 14 | age, ALL_BITS)

    candidates = (
        (jnp.arange(count), members(spot.rows[relation], count), rank, 0),
        (other, match, rank[other], 1 + jnp.arange(match.shape[0])),
        (t.character[None], own[None], rank[t.character][None], 0),
    )
    nodes = jnp.concatenate([nodes for nodes, *_ in candidates])
    key = jnp.concatenate([keys(*candidate) for candidate in candidates])
    best = jnp.min(key)
    return jnp.where(best == ALL_BITS, -1, jnp.max(jnp.where(key == best, nodes, -1)))


def _room_by_containers(view: View, node: Array) -> Array:
    """The room of a node as vh23 finds it, by number."""
    t = view.tables

    def containers(node: Array) -> Array:
        listed = jnp.sum((view.relation == INSIDE) & (view.source == node))
        return listed + jnp.sum(jax.lax.population_count(spot_of(view, node).rows[INSIDE])).astype(jnp.int32)

    def upwards(_: int, node: Array) -> Array:
        done = (node < 0) | (t.room_number[node] >= 0)
        return jnp.where(done, node, first_target(view, spot_of(view, node), jnp.int32(INSIDE), rooms=True))

    several = containers(node) > 1
    direct = _direct_rooms(view, node)
    top = jax.lax.fori_loop(0, LONGEST_CHAIN + 1, upwards, node)
    by_chain = jnp.where(top < 0, -1, t.room_number[top])
    return jnp.where(several & (t.room_number[node] < 0), direct, by_chain)


def room_node(view: View, number: Array) -> Array:
    """The node of a room's number; -1 of -1."""
    return jnp.where(number < 0, -1, view.tables.room_nodes[number])


def closed_containers(view: View) -> Array:
    """[W] what is CLOSED and no room."""
    return view.state.states[CLOSED] & ~view.tables.rooms
