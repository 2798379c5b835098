"""The effects of `rules` for accelerators: every part of a state is written once, as a selection over the effects.

What each effect does is said in `native.step`, function by function. It comes down to: relations are wiped at up to
three nodes, the character's own sets change, hands and memory of one thing change, states of one node change, and up to
three edges are added to the list. Letters as in `tables`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from e2wm_jax.worlds.household.arrays import ALL_STATES, CLOSE, FACING, INSIDE, LYING, ON, SITTING
from e2wm_jax.worlds.household.batched.checks import SEATED_STATES
from e2wm_jax.worlds.household.batched.edges import (
    Spot,
    View,
    any_of,
    first_target,
    folded,
    has,
    members,
    number_of,
    one,
    packed,
    set_of,
    spread,
)
from e2wm_jax.worlds.household.batched.tables import SOURCES, Array, State
from e2wm_jax.worlds.household.rules import Effect


class Change(NamedTuple):
    """What is to be done; all [] and int32 but `x`."""

    effect: Array  # of `Effect`, NOTHING for a line that fails
    lost: Array  # state, of SWAP
    gained: Array
    x: Spot
    y: Array  # node that X is put to
    relation: Array  # of X to Y
    here: Array  # room of the character, as node
    there: Array  # room of X


def changed(view: View, change: Change) -> State:
    """The state after a line. What a thing let go or put was is kept by nothing; for the order see `native.step`."""
    effect, x = change.effect, change.x.node
    hands = view.state.hands.astype(jnp.int32) - 1
    place, relation = _grabbed_from(view, change.x)
    grab, walk = effect == Effect.GRAB, effect == Effect.WALK
    wiped = _wiped(view, grab, walk, x, hands)
    edges, count = _edges(view, change, hands)
    memory = _memory(view, change, place, relation)
    close = _close(view, change, hands, place)
    facing, on, bound = _own_sets(view, change)
    states = _states(view, change)
    return State(wiped, close, facing, on, bound, states, _hands(view, change), memory, count, edges)


def _is(effect: Array, *effects: Effect) -> Array:
    found = effect == effects[0]
    for other in effects[1:]:
        found |= effect == other
    return found


def _puts(effect: Array) -> Array:
    return _is(effect, Effect.PUT_ON, Effect.PUT_IN, Effect.PUT_BACK)


def _grabbed_from(view: View, x: Spot) -> tuple[Array, Array]:
    """The first thing, no room, that X is ON, INSIDE or CLOSE to, or -1, and which of these."""
    none = ~view.tables.rooms
    relations = jnp.arange(3)[:, None]
    forth = (view.source == x.node) & (view.room < 0)
    back = (view.relation == CLOSE) & (view.target == x.node) & has(none, view.source)
    listed = any_of((forth & (view.relation == relations)) | back & (relations == CLOSE))  # [3]
    on, inside, _ = jnp.any(x.rows[:3] & none != 0, -1) | listed
    relation = jnp.select([on, inside], [ON, INSIDE], CLOSE)
    return first_target(view, x, relation, rooms=False), relation


def _wiped(view: View, grab: Array, walk: Array, x: Array, hands: Array) -> Array:
    words = view.words
    grabbed = one(x, words) & spread(grab)
    moved = (one(view.tables.character, words) | _held(hands, words)) & spread(walk)
    gone = {ON: grabbed, INSIDE: grabbed | moved, CLOSE: grabbed | moved, FACING: moved}
    return view.state.wiped | jnp.stack([gone[relation] for relation in range(4)])


def _held(hands: Array, words: int) -> Array:
    return one(hands[0], words) | one(hands[1], words)


def _close(view: View, change: Change, hands: Array, place: Array) -> Array:
    close, effect, words = view.state.close, change.effect, view.words
    it, other = one(change.x.node, words), one(change.y, words)
    more = jnp.select(
        [_is(effect, Effect.GRAB), _is(effect, Effect.FIND), _puts(effect)],
        [it | one(place, words), it, jnp.where(change.y == view.tables.character, other | it, other)],
        jnp.uint32(0),
    )
    kept = jnp.where(effect == Effect.GRAB, close & ~it, close)
    return jnp.where(effect == Effect.WALK, _close_after_walk(view, change, hands), kept | more)


def _close_after_walk(view: View, change: Change, hands: Array) -> Array:
    t, state, words, x = view.tables, view.state, view.words, change.x
    me, it, held = one(t.character, words), one(x.node, words), _held(hands, words)
    forth, back = view.source == x.node, view.target == x.node
    myself, is_room = x.node == t.character, has(t.rooms, x.node)

    def row(relation: int) -> Array:
        return x.rows[relation]

    # What X is inside of, less the character and rooms
    around = row(INSIDE) & ~me & ~t.rooms & spread(~myself)
    by_source = forth & (view.relation == INSIDE) & (view.target != t.character) & (view.room < 0) & ~myself
    by_target = jnp.zeros_like(by_source)
    found = around | t.bodies | it
    if view.dialect == "vh23":
        found, by_source = found & spread(~is_room), by_source & ~is_room
        # What is inside X once the character and what it carries have moved
        opens = has(t.openable, x.node)
        moves = me | held
        stays = opens & ~has(moves, x.node)
        found |= row(SOURCES + INSIDE) & ~moves & spread(stays)
        by_target |= back & (view.relation == INSIDE) & ~has(moves, view.source) & stays
        found |= me & spread(opens & (change.there == x.node)) | held & spread(opens & (change.here == x.node))
        found |= row(ON) | state.on & spread(myself)
        by_source |= forth & (view.relation == ON)
    else:
        carries = has(t.surfaces, x.node)
        found |= (row(SOURCES + ON) | me & spread(has(state.on, x.node))) & spread(carries)
        by_target |= back & (view.relation == ON) & carries
    if view.dialect == "e2wm":  # seen from where the character was
        found |= row(ON) | row(INSIDE) | row(CLOSE) | me & spread(has(state.close, x.node))
        found |= (state.on | state.close) & spread(myself)
        by_source |= forth
        by_target |= back & (view.relation == CLOSE)
        holds_more = ~has(t.own_walk, x.node)
        found |= row(SOURCES + INSIDE) & spread(holds_more)
        by_target |= back & (view.relation == INSIDE) & holds_more
    over_list = set_of(view.target, by_source, words) | set_of(view.source, by_target, words)
    return found | over_list | held


def _own_sets(view: View, change: Change) -> tuple[Array, Array, Array]:
    """What the character is FACING, ON and BOUND to."""
    state, effect, words = view.state, change.effect, view.words
    it = one(change.x.node, words)
    facing = jnp.where(_is(effect, Effect.WALK, Effect.FIND, Effect.TURN), jnp.uint32(0), state.facing)
    facing |= it & spread(effect == Effect.TURN) | change.x.rows[FACING] & spread(effect == Effect.SIT)
    on = state.on & ~(it & spread(effect == Effect.GRAB)) | it & spread(_is(effect, Effect.SIT, Effect.LIE))
    if view.dialect == "e2wm":
        on &= spread(effect != Effect.STAND)
    bound = state.bound | it & spread(_is(effect, Effect.WALK, Effect.FIND))
    return facing, on, bound


def _states(view: View, change: Change) -> Array:
    """[10, W]. Poses of vh23 start from the character's states in the scene."""
    effect = change.effect
    sit, lie, stand, swap = (effect == e for e in (Effect.SIT, Effect.LIE, Effect.STAND, Effect.SWAP))
    sitting, lying = 1 << SITTING, 1 << LYING
    cases = [swap, sit, lie, stand]
    gained = jnp.select(cases, [1 << change.gained, sitting, lying, 0], 0)
    lost = jnp.select(cases, [1 << change.lost, lying, sitting, SEATED_STATES], 0)
    if view.dialect == "vh23":
        posed = sit | lie | stand
        gained |= jnp.where(posed, view.tables.posture.astype(jnp.int32) & ~lost, 0)
        lost = jnp.where(posed, -1, lost)
    who = one(jnp.where(swap, change.x.node, view.tables.character), view.words)
    state = jnp.arange(ALL_STATES)
    gone, come = (spread(sets >> state & 1 != 0)[:, None] for sets in (lost, gained))
    return view.state.states & ~(who & gone) | who & come


def _lets_go(view: View, change: Change) -> Array:
    water = has(view.tables.water, change.x.node)
    drops = _puts(change.effect) | _is(change.effect, Effect.DROP, Effect.WEAR)
    return drops | (change.effect == Effect.POUR) & water


def _hands(view: View, change: Change) -> Array:
    hands, thing = view.state.hands, change.x.node.astype(jnp.uint32) + 1
    grab = change.effect == Effect.GRAB
    frees = _lets_go(view, change)
    if view.dialect == "vh23":
        frees |= grab
    taking = jnp.where(hands[0] == 0, 0, 1)
    kept = jnp.where(frees & (hands == thing), jnp.uint32(0), hands)
    return jnp.where(grab & (jnp.arange(2) == taking), thing, kept)


def _memory(view: View, change: Change, place: Array, relation: Array) -> Array:
    """Where things were grabbed; nothing is noted of what was grabbed from nowhere."""
    memory = view.state.memory
    grab = (change.effect == Effect.GRAB) & (place >= 0)
    writes = grab | _puts(change.effect) | (change.effect == Effect.DROP)
    note = jnp.where(grab, 1 + relation + 4 * place, 0).astype(jnp.uint32)
    return jnp.where(writes & (jnp.arange(memory.shape[0]) == change.x.node), note, memory)


def _edges(view: View, change: Change, hands: Array) -> tuple[Array, Array]:
    """The list [S] less what was wiped, in order, then what was added; and its length."""
    state, effect, c = view.state, change.effect, view.tables.character
    x, y, relation = change.x.node, change.y, view.relation
    slots = state.edges.shape[0]
    walk, grab = effect == Effect.WALK, effect == Effect.GRAB

    ends = jnp.stack([view.source, view.target])
    moves = (ends == c) | (ends == hands[0]) | (ends == hands[1])
    gone = walk & (moves[0] | moves[1]) & (relation != ON)
    gone |= grab & ((view.source == x) | (view.target == x)) & (relation != FACING)
    gone |= (effect == Effect.TAKE_OFF) & (relation == ON) & (view.source == x) & (view.target == c)
    keep = (relation >= 0) & ~gone

    def there(relation: Array, target: Array) -> Array:
        """Whether an edge leads from X, which is not the character."""
        same = (view.relation == relation) & (view.source == x) & (view.target == target)
        same |= (relation == CLOSE) & (view.relation == CLOSE) & (view.source == target) & (view.target == x)
        return has(change.x.rows[relation], target) | any_of(same)

    put, drop = _puts(effect), effect == Effect.DROP
    wear, pour = effect == Effect.WEAR, effect == Effect.POUR
    first_relation = jnp.select([put, wear], [CLOSE, ON], INSIDE)
    first_target = jnp.select([put | pour, wear, walk], [y, c, change.there], change.here)
    fresh = put & (y != c) | pour | wear | drop & (change.here >= 0)
    # Each: is it made, relation, source, target
    additions = (
        (walk | grab & (change.here >= 0) | fresh & ~there(first_relation, first_target),
         first_relation, jnp.where(walk, c, x), first_target),
        (jnp.where(walk, hands[1] >= 0, put & (change.relation != CLOSE) & ~there(change.relation, y)),
         jnp.where(walk, INSIDE, change.relation), jnp.where(walk, hands[1], x), jnp.where(walk, change.here, y)),
        (walk & (hands[0] >= 0) & (hands[0] != hands[1]), jnp.int32(INSIDE), hands[0], change.here),
    )  # fmt: skip
    count, result = number_of(keep), _compacted(state.edges, keep)
    for made, *(kind, source, target) in additions:
        entry = (kind << 24 | source << 12 | target).astype(jnp.uint32)
        result = jnp.where(made & (jnp.arange(slots) == count), entry, result)
        count += made
    return result, jnp.where(state.count > slots, state.count, count.astype(jnp.uint32))


def _compacted(entries: Array, keep: Array) -> Array:
    """[S] the entries that are kept, moved together in order; zeros follow."""
    kept = packed(keep)  # [S / 32]
    sizes = jax.lax.population_count(kept).astype(jnp.int32)
    below = (jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32)) - 1
    place = (jnp.cumsum(sizes) - sizes)[:, None] + jax.lax.population_count(kept[:, None] & below).astype(jnp.int32)
    slots = entries.shape[0]
    moved = jnp.where(place.reshape(-1) == jnp.arange(slots)[:, None], jnp.where(members(kept), entries, 0), 0)
    return jnp.sum(folded(moved), axis=(1, 2), dtype=jnp.uint32)
