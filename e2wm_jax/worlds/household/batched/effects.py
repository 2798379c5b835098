"""The effects of `rules` for accelerators: every part of a state is written once, as a selection over the effects.

What each effect does is said in `household.effects`; here it is asked, for every part of a state, which effects change
it how. Letters as in `tables`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from e2wm_jax.worlds.household.arrays import ALL_STATES, CLOSE, FACING, INSIDE, ON, RELATIONS
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
from e2wm_jax.worlds.household.effects import Deed, Hands, Join, Memory, When, deeds_of, joins_of
from e2wm_jax.worlds.household.graph import STATES
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
    """The state after a line."""
    hands = view.state.hands.astype(jnp.int32) - 1
    place, relation = _grabbed_from(view, change.x)
    edges, count = _edges(view, change, hands)
    return State(
        wiped=_wiped(view, change, hands),
        close=_close(view, change, hands, place),
        facing=_own_set(view, change, "FACING", view.state.facing)
        | change.x.rows[FACING] & spread(_does(view, change, lambda deed: deed.stares)),
        on=_own_set(view, change, "ON", view.state.on),
        bound=_own_set(view, change, "BOUND", view.state.bound),
        states=_states(view, change),
        hands=_hands(view, change),
        memory=_memory(view, change, place, relation),
        count=count,
        edges=edges,
    )


def _deeds(view: View) -> dict[Effect, Deed]:
    """What the effects do. A far FIND_OR_WALK arrives here as a WALK, a near one as a FIND."""
    return {effect: deed for effect, deed in deeds_of(view.dialect).items() if effect != Effect.FIND_OR_WALK}


def _does(view: View, change: Change, what: Callable[[Deed], object]) -> Array:
    """Whether the effect is one of those that do this."""
    found = jnp.zeros((), bool)
    for effect, deed in _deeds(view).items():
        if what(deed):
            found |= change.effect == effect
    return found


def _names(view: View, change: Change, part: str, name: str) -> Array:
    """Whether this part of what the effect does names a relation or an own set."""
    return _does(view, change, lambda deed: name in getattr(deed, part).split())


def _among(relation: Array, words: str) -> Array:
    """Whether a relation is one of those named."""
    found = jnp.zeros((), bool)
    for name in words.split():
        found |= relation == RELATIONS.index(name)
    return found


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


def _wiped(view: View, change: Change, hands: Array) -> Array:
    words = view.words
    it, moved = one(change.x.node, words), one(view.tables.character, words) | _held(hands, words)
    wipes, moves = ([spread(_names(view, change, part, name)) for name in RELATIONS] for part in ("wipes", "moves"))
    gone = [it & wiped | moved & left for wiped, left in zip(wipes, moves, strict=True)]
    return view.state.wiped | jnp.stack(gone)


def _held(hands: Array, words: int) -> Array:
    return one(hands[0], words) | one(hands[1], words)


def _own_set(view: View, change: Change, name: str, members: Array) -> Array:
    """One of the character's own sets: what it is ON, CLOSE to, FACING or BOUND to."""
    it = one(change.x.node, view.words)
    empties, moves, wipes, joins = (_names(view, change, part, name) for part in ("empties", "moves", "wipes", "joins"))
    kept = jnp.where(empties | moves, jnp.uint32(0), members & ~(it & spread(wipes)))
    return kept | it & spread(joins)


def _close(view: View, change: Change, hands: Array, place: Array) -> Array:
    words = view.words
    it, other = one(change.x.node, words), one(change.y, words)
    met = jnp.where(change.y == view.tables.character, other | it, other)
    close = _own_set(view, change, "CLOSE", view.state.close)
    close |= met & spread(_does(view, change, lambda deed: deed.meets))
    close |= one(place, words) & spread(_does(view, change, lambda deed: deed.memory == Memory.NOTE))
    walks = _does(view, change, lambda deed: deed.moves)
    return jnp.where(walks, _close_after_walk(view, change, hands), close)


def _close_after_walk(view: View, change: Change, hands: Array) -> Array:
    x, held = change.x.node, _held(hands, view.words)
    found, by_source, by_target = held, jnp.zeros((), bool), jnp.zeros((), bool)
    for join in joins_of(view.dialect):
        joins = jnp.ones((), bool)
        if join.only:
            joins &= has(getattr(view.tables, join.only), x)
        if join.unless:
            joins &= ~has(getattr(view.tables, join.unless), x)
        nodes, forth, back = _seen(view, change, hands, join)
        if join.arrives:
            nodes |= view.tables.bodies | one(x, view.words)
        found |= nodes & spread(joins)
        by_source, by_target = by_source | forth & joins, by_target | back & joins
    return found | set_of(view.target, by_source, view.words) | set_of(view.source, by_target, view.words)


def _seen(view: View, change: Change, hands: Array, join: Join) -> tuple[Array, Array, Array]:
    """What a row sees in a walk: a set [W], and the edges of the list [S] whose targets, whose sources it sees too."""
    state, x, c = view.state, change.x, view.tables.character
    me, myself, held = one(c, view.words), x.node == c, _held(hands, view.words)
    nodes, forth, back = jnp.zeros_like(state.close), jnp.zeros((), bool), jnp.zeros((), bool)
    for name in join.relations.split():
        relation = RELATIONS.index(name)
        row = x.rows[SOURCES + relation if join.sources else relation]
        leaving = (view.relation == relation) & (view.source == x.node)
        coming = (view.relation == relation) & (view.target == x.node)
        leaves, comes = (not join.sources or name == "CLOSE"), (join.sources or name == "CLOSE")
        if name == "INSIDE" and join.when != When.BEFORE:  # C has been moved to the room of X, what it holds to HERE
            after = join.when == When.AFTER
            moved = (c, hands[0], hands[1]) if after else (c,)
            stays = ~_one_of(x.node, moved)
            row = row & ~(me | held if after else me) & spread(stays)
            leaving &= ~_one_of(view.target, moved) & stays
            coming &= ~_one_of(view.source, moved) & stays
            if join.sources:
                row |= me & spread(change.there == x.node)
                row |= held & spread(change.here == x.node) if after else jnp.uint32(0)
        own = {"ON": state.on, "CLOSE": state.close}.get(name)
        if own is not None:
            row |= own & spread(myself) if leaves else jnp.uint32(0)
            row |= me & spread(has(own, x.node)) if comes else jnp.uint32(0)
        nodes |= row
        forth, back = (forth | leaving if leaves else forth), (back | coming if comes else back)
    if join.no_rooms:
        nodes, forth, back = (
            nodes & ~view.tables.rooms,
            forth & (view.room < 0),
            back & ~has(view.tables.rooms, view.source),
        )
    return nodes, forth, back


def _one_of(nodes: Array, some: Sequence[Array]) -> Array:
    """[...] whether nodes are some of these. (A look into a set would be a gather, which XLA fuses with nothing.)"""
    found = nodes == some[0]
    for node in some[1:]:
        found |= nodes == node
    return found


def _states(view: View, change: Change) -> Array:
    """[10, W]."""
    swap = change.effect == Effect.SWAP
    poses = {effect: deed for effect, deed in _deeds(view).items() if deed.loses or deed.gains}
    cases = [swap, *(change.effect == effect for effect in poses)]
    gained = jnp.select(cases, [1 << change.gained, *(_bits(deed.gains) for deed in poses.values())], 0)
    lost = jnp.select(cases, [1 << change.lost, *(_bits(deed.loses) for deed in poses.values())], 0)
    anew = _does(view, change, lambda deed: deed.anew)
    gained |= jnp.where(anew, view.tables.posture.astype(jnp.int32) & ~lost, 0)
    lost = jnp.where(anew, -1, lost)
    who = one(jnp.where(swap, change.x.node, view.tables.character), view.words)
    state = jnp.arange(ALL_STATES)
    gone, come = (spread(sets >> state & 1 != 0)[:, None] for sets in (lost, gained))
    return view.state.states & ~(who & gone) | who & come


def _bits(states: str) -> int:
    return sum(1 << STATES.index(state) for state in states.split())


def _hands(view: View, change: Change) -> Array:
    hands, thing = view.state.hands, change.x.node.astype(jnp.uint32) + 1
    takes = _does(view, change, lambda deed: deed.hands in (Hands.TAKE, Hands.TAKE_OVER))
    frees = _does(view, change, lambda deed: deed.hands in (Hands.LET_GO, Hands.TAKE_OVER))
    pours = _does(view, change, lambda deed: deed.hands == Hands.LET_GO_OF_WATER)
    frees |= pours & has(view.tables.water, change.x.node)
    taking = jnp.where(hands[0] == 0, 0, 1)
    kept = jnp.where(frees & (hands == thing), jnp.uint32(0), hands)
    return jnp.where(takes & (jnp.arange(2) == taking), thing, kept)


def _memory(view: View, change: Change, place: Array, relation: Array) -> Array:
    """Where things were grabbed; nothing is noted of what was grabbed from nowhere."""
    memory = view.state.memory
    notes = _does(view, change, lambda deed: deed.memory == Memory.NOTE) & (place >= 0)
    writes = notes | _does(view, change, lambda deed: deed.memory == Memory.FORGET)
    note = jnp.where(notes, 1 + relation + 4 * place, 0).astype(jnp.uint32)
    return jnp.where(writes & (jnp.arange(memory.shape[0]) == change.x.node), note, memory)


def _edges(view: View, change: Change, hands: Array) -> tuple[Array, Array]:
    """The list [S] less what was wiped, in order, then what was added; and its length."""
    state, c, slots = view.state, view.tables.character, view.state.edges.shape[0]
    keep = (view.relation >= 0) & ~_gone(view, change, hands)
    count, result = number_of(keep), _compacted(state.edges, keep)
    walks = _does(view, change, lambda deed: deed.moves)
    new = [_new_edge(view, change, place) for place in range(2)]
    # Each: is it made, relation, source, target
    additions = [
        (walks, jnp.int32(INSIDE), c, change.there),
        (walks & (hands[1] >= 0), jnp.int32(INSIDE), hands[1], change.here),
        (walks & (hands[0] >= 0) & (hands[0] != hands[1]), jnp.int32(INSIDE), hands[0], change.here),
    ]
    for place, (made, *edge) in enumerate(new):  # no effect makes edges of both kinds
        walked, *walk_edge = additions[place]
        additions[place] = (walked | made, *(jnp.where(made, a, b) for a, b in zip(edge, walk_edge, strict=True)))
    for made, kind, source, target in additions:
        entry = (kind << 24 | source << 12 | target).astype(jnp.uint32)
        result = jnp.where(made & (jnp.arange(slots) == count), entry, result)
        count += made
    return result, jnp.where(state.count > slots, state.count, count.astype(jnp.uint32))


def _gone(view: View, change: Change, hands: Array) -> Array:
    """[S] the edges of the list that the line deletes."""
    x, c, relation = change.x.node, view.tables.character, view.relation
    ends = jnp.stack([view.source, view.target])
    moves = jnp.any((ends == c) | (ends == hands[0]) | (ends == hands[1]), 0)
    gone = jnp.zeros_like(moves)
    for effect, deed in _deeds(view).items():
        found = jnp.zeros_like(moves)
        if deed.moves:
            found |= moves & _among(relation, deed.moves)
        if deed.wipes:
            found |= jnp.any(ends == x, 0) & _among(relation, deed.wipes)
        if deed.ends:
            found |= _among(relation, deed.ends) & (view.source == x) & (view.target == c)
        gone |= found & (change.effect == effect)
    return gone


def _new_edge(view: View, change: Change, place: int) -> tuple[Array, Array, Array, Array]:
    """The edge from X in this place of `Deed.edges`: (whether the line adds it to the list, relation, X, target)."""
    c, x, spot = view.tables.character, change.x.node, change.x
    rows = {effect: deed.edges[place] for effect, deed in _deeds(view).items() if len(deed.edges) > place}
    cases = [change.effect == effect for effect in rows]
    relations = [change.relation if name == "PLACED" else jnp.int32(RELATIONS.index(name)) for name, _ in rows.values()]
    relation = jnp.select(cases, relations, -1)
    nodes = {"Y": change.y, "HERE": change.here, "C": c}
    target = jnp.select(cases, [nodes[to] for _, to in rows.values()], -1)

    same = (view.relation == relation) & (view.source == x) & (view.target == target)
    same |= (relation == CLOSE) & (view.relation == CLOSE) & (view.source == target) & (view.target == x)
    there = has(spot.rows[relation], target) | any_of(same)
    wiped = _does(view, change, lambda deed: deed.wipes)  # then nothing was left of the relations of these edges
    own = (relation == CLOSE) & (target == c)  # stands in the character's set
    again = (relation == CLOSE) if place else jnp.zeros((), bool)  # a thing that was CLOSE to its place, not ON it
    return (target >= 0) & (wiped | ~there) & ~own & ~again, relation, x, target


def _compacted(entries: Array, keep: Array) -> Array:
    """[S] the entries that are kept, moved together in order; zeros follow."""
    kept = packed(keep)  # [S / 32]
    sizes = jax.lax.population_count(kept).astype(jnp.int32)
    below = (jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32)) - 1
    place = (jnp.cumsum(sizes) - sizes)[:, None] + jax.lax.population_count(kept[:, None] & below).astype(jnp.int32)
    slots = entries.shape[0]
    moved = jnp.where(place.reshape(-1) == jnp.arange(slots)[:, None], jnp.where(members(kept), entries, 0), 0)
    return jnp.sum(folded(moved), axis=(1, 2), dtype=jnp.uint32)
