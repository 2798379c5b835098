"""The tests of `rules` for accelerators, each in two forms: of one node, as a step asks it, and of all nodes at once,
as a set, for legal actions. Letters as in `engine_tables`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from e2wm_jax.simulate.engine_graph import (
    Spot,
    View,
    closed_containers,
    has,
    has_in,
    in_rooms,
    members,
    one,
    packed,
    room_numbers,
    set_of,
    spread,
    union,
)
from e2wm_jax.simulate.engine_tables import SOURCES, Array
from e2wm_jax.simulate.rules import Test
from e2wm_jax.simulate.tables import CLOSE, CLOSED, FACING, INSIDE, LYING, ON, OPEN, SITTING

SEATED_STATES = 1 << SITTING | 1 << LYING


# The character


def posture(view: View, states: int) -> Array:
    """Whether the character is in one of these states (bits); vh23 remembers those of the scene for ever."""
    if view.dialect == "vh23":
        return view.tables.posture & states != 0
    now = has_in(view.state.states, view.tables.character)
    return jnp.any(now & ((states >> jnp.arange(now.shape[0])) & 1 != 0))


def of_character(view: View, test: Test, argument: int, here: Array) -> Array | None:
    """Whether a check of the character holds; None for checks of things. ``here``: the number of its room."""
    hands = view.state.hands
    match test:
        case Test.FREE_HAND:
            return jnp.any(hands == 0)
        case Test.HANDS_FULL_OF_SOMETHING:
            return jnp.any(hands != 0)
        case Test.KNIFE:
            return jnp.any((hands != 0) & has(view.tables.knives, hands.astype(jnp.int32) - 1))
        case Test.UPRIGHT:
            return ~posture(view, argument)
        case Test.SEATED:
            return posture(view, argument)
        case Test.PLACED:
            return here >= 0
        case Test.NEVER:
            return jnp.zeros((), bool)
        case _:
            return None


# One node


class Line(NamedTuple):
    """What the checks of one line are asked of."""

    x: Spot
    y: Spot
    inside: Array  # whether X is to be put inside Y
    here: Array  # room number of the character
    there: Array  # room number of X


def near(view: View, spot: Spot) -> Array:
    """CLOSE(C,Z), or CLOSE(C,k) and (CLOSE(k,Z) or ON(Z,k)) for some k."""
    close, relation, node = view.state.close, view.relation, spot.node
    over_list = ((relation == CLOSE) | (relation == ON)) & (view.source == node) & has(close, view.target)
    over_list |= (relation == CLOSE) & (view.target == node) & has(close, view.source)
    over_scene = jnp.any((spot.rows[CLOSE] | spot.rows[ON]) & close != 0) | jnp.any(over_list)
    return has(close, node) | jnp.where(node == view.tables.character, jnp.any(close != 0), over_scene)


def open_doors(view: View, node: Array, here: Array, there: Array, passable: Array) -> Array:
    """Whether nothing bars the way from room ``here`` to ``there`` (numbers), in which the node is. ``passable``: the
    rooms (bits) that `reached` finds."""
    t = view.tables
    beside = jnp.any((t.doors == node) & t.door_near[:, here])
    way = t.ways[here, there]  # [L] from the far end to the near one
    shut = (way >= 0) & has(view.state.states[CLOSED], t.doors[way])
    last = jnp.max(jnp.where(shut, jnp.arange(way.shape[0]), -1), initial=-1)
    nearest = jnp.where(last >= 0, t.doors[way[last]], -1)
    free = passable >> there.astype(jnp.uint32) & 1 != 0
    return beside | t.has_door[here] & (free | (nearest == node))


def reached(view: View, here: Array) -> Array:
    """The rooms, as bits, that doors which are not CLOSED connect with room ``here``."""
    t = view.tables
    if not t.doors.shape[0]:
        return jnp.uint32(1) << here.astype(jnp.uint32)
    passable = (t.door_rooms[:, 0] >= 0) & ~has(view.state.states[CLOSED], t.doors)
    sides = jnp.sum(jnp.uint32(1) << t.door_rooms.astype(jnp.uint32), axis=1, dtype=jnp.uint32)
    rooms = jnp.uint32(1) << here.astype(jnp.uint32)
    for _ in range(t.room_nodes.shape[0] - 1):
        rooms |= union(jnp.where(passable & (sides & rooms != 0), sides, jnp.uint32(0)))
    return rooms


def _count_on(view: View, spot: Spot, only: Array | None) -> Array:
    """How many nodes (of a set) are ON a node."""
    word = jnp.uint32(0xFFFFFFFF) if only is None else only
    own = one(view.tables.character, view.words) & spread(has(view.state.on, spot.node))
    over_scene = jnp.sum(jax.lax.population_count((spot.rows[SOURCES + ON] | own) & word)).astype(jnp.int32)
    listed = (view.relation == ON) & (view.target == spot.node)
    return over_scene + jnp.sum(listed if only is None else listed & has(only, view.source))


def _worn(view: View, node: Array) -> Array:
    c = view.tables.character
    listed = jnp.any((view.relation == ON) & (view.source == node) & (view.target == c))
    return jnp.where(node == c, has(view.state.on, node), listed)


def of_thing(view: View, line: Line, test: Test, of_y: bool, argument: int) -> Array:
    """Whether a check of X or Y holds."""
    t, state = view.tables, view.state
    spot = line.y if of_y else line.x
    node = spot.node
    match test:
        case Test.HAS:
            return has(t.kinds[argument], node)
        case Test.STATE:
            return has(state.states[argument], node)
        case Test.LACKS:
            return ~has(state.states[argument], node)
        case Test.NEAR:
            return near(view, spot)
        case Test.HELD:
            return jnp.any(state.hands == node.astype(jnp.uint32) + 1)
        case Test.NOT_GRABBED:
            return state.memory[node] == 0
        case Test.GRABBED:
            return state.memory[node] != 0
        case Test.REACHABLE:
            shut = closed_containers(view)
            listed = (view.relation == INSIDE) & (view.source == node) & has(shut, view.target)
            return ~(jnp.any(spot.rows[INSIDE] & shut != 0) | jnp.any(listed))
        case Test.SEAT_LEFT | Test.BED_LEFT:
            return _count_on(view, spot, None) < t.seats[test - Test.SEAT_LEFT, node]
        case Test.FACED:
            return has(state.facing, node) | jnp.any(spot.rows[SOURCES + FACING] & state.facing != 0)
        case Test.SEEN:
            return has(t.computers, node) | ~posture(view, SEATED_STATES) | has(state.facing, node)
        case Test.IN_A_ROOM:
            return line.there >= 0
        case Test.SAME_ROOM:
            return line.there == line.here
        case Test.OPEN_DOORS:
            return open_doors(view, node, line.here, line.there, reached(view, line.here))
        case Test.ACCESSIBLE:
            return ~line.inside | ~has(t.openable, node) | has(state.states[OPEN], node)
        case Test.WORN:
            return _worn(view, node)
        case Test.LOADED:
            return has(t.edible, node) | (_count_on(view, spot, None) > 0)
        case Test.FOOD:
            return has(t.edible, node) | (_count_on(view, spot, t.edible) > 0)
        case Test.WALKABLE:
            barred = has(t.bodies, node) | posture(view, SEATED_STATES) | _worn(view, node)
            return near(view, spot) | ~barred
        case Test.BOUND:
            return has(state.bound, node)
        case _:
            raise AssertionError(f"{test} is a check of the character")


def holds(view: View, line: Line, test: Test, of_y: bool, argument: int) -> Array:
    """Whether a check of a line holds."""
    own = of_character(view, test, argument, line.here)
    return of_thing(view, line, test, of_y, argument) if own is None else own


# All nodes at once


class Reach(NamedTuple):
    """Sets [W] of nodes one step away from the character's own, each a union of rows of the scene and of the list."""

    near: Array
    faced: Array
    enclosed: Array  # directly in something CLOSED that is no room
    worn: Array


def reachable(view: View) -> Reach:
    """The sets that checks of all nodes look at."""
    t, state, words = view.tables, view.state, view.words
    close, relation = state.close, view.relation
    shut = closed_containers(view)
    # CLOSE to k, ON k, faced by k, INSIDE k, each for the k of one of these sets:
    order = jnp.array([CLOSE, ON, FACING, INSIDE])
    wiped = state.wiped[order]
    via = jnp.stack([close, close, state.facing, shut]) & ~wiped
    taken = members(via, t.ids.shape[0])  # [4, N]
    found = jax.lax.reduce(jnp.where(taken[..., None], t.reach, jnp.uint32(0)), jnp.uint32(0), jax.lax.bitwise_or, (1,))
    by_close, by_on, by_facing, by_inside = found & ~wiped

    over_list = set_of(view.source, ((relation == CLOSE) | (relation == ON)) & has(close, view.target), words)
    over_list |= set_of(view.target, (relation == CLOSE) & has(close, view.source), words)
    me = one(t.character, words)
    everywhere = close | by_close | by_on | over_list
    worn = set_of(view.source, (relation == ON) & (view.target == t.character), words)
    return Reach(
        near=jnp.where(jnp.any(close != 0), everywhere | me, everywhere & ~me),
        faced=state.facing | by_facing,
        enclosed=by_inside | set_of(view.source, (relation == INSIDE) & has(shut, view.target), words),
        worn=worn & ~me | me & state.on,
    )


def _with_room_for_one(view: View, limits: Array) -> Array:
    """[W] the seats that have fewer things ON them than ``limits`` [N]; everything that is no seat."""
    t, state = view.tables, view.state
    seats = t.sittable
    kept = jnp.where(has(state.wiped[ON], seats)[:, None], jnp.uint32(0), ~state.wiped[ON])
    count = jnp.sum(jax.lax.population_count(t.rows[seats, SOURCES + ON] & kept), axis=1).astype(jnp.int32)
    count += jnp.sum((view.relation == ON) & (view.target == seats[:, None]), axis=1) + has(state.on, seats)
    return ~set_of(seats, (seats >= 0) & (count >= limits[seats]), view.words)


def _loaded(view: View, only: Array | None) -> Array:
    """[W] the nodes that something (of a set) is ON."""
    t, wiped = view.tables, view.state.wiped[ON]
    via = ~wiped if only is None else only & ~wiped
    taken = members(via, t.ids.shape[0])
    found = union(jnp.where(taken[:, None], t.rows[:, ON], jnp.uint32(0))) & ~wiped
    listed = view.relation == ON
    found |= set_of(view.target, listed if only is None else listed & has(only, view.source), view.words)
    return found | view.state.on & (spread(jnp.array(True)) if only is None else spread(has(only, t.character)))


def _free_ways(view: View, here: Array) -> Array:
    """[W] where the doors let the character go."""
    t = view.tables
    passable = reached(view, here)
    inside = in_rooms(view, passable) & spread(t.has_door[here])
    if not t.doors.shape[0]:
        return inside
    there = room_numbers(view, t.doors)
    nearest = jax.vmap(lambda door, room: open_doors(view, door, here, room, passable))(t.doors, there)
    return inside | set_of(t.doors, nearest & (t.doors >= 0), view.words)


def nodes_that_pass(view: View, reach: Reach, here: Array, test: Test, argument: int, inside: bool) -> Array:
    """[W] the nodes of which a check holds; all or none where it asks the character alone. ``inside``: of ACCESSIBLE,
    whether something is to be put inside."""
    own = of_character(view, test, argument, here)
    if own is not None:
        return spread(own)[None] & view.tables.exists
    t, state = view.tables, view.state
    match test:
        case Test.HAS:
            return t.kinds[argument]
        case Test.STATE:
            return state.states[argument]
        case Test.LACKS:
            return ~state.states[argument]
        case Test.NEAR:
            return reach.near
        case Test.HELD:
            return set_of(state.hands.astype(jnp.int32) - 1, state.hands > 0, view.words)
        case Test.NOT_GRABBED:
            return packed(state.memory == 0, view.words)
        case Test.GRABBED:
            return packed(state.memory != 0, view.words)
        case Test.REACHABLE:
            return ~reach.enclosed
        case Test.SEAT_LEFT | Test.BED_LEFT:
            return _with_room_for_one(view, t.seats[test - Test.SEAT_LEFT])
        case Test.FACED:
            return reach.faced
        case Test.SEEN:
            return t.computers | spread(~posture(view, SEATED_STATES)) | state.facing
        case Test.IN_A_ROOM:
            return t.exists if t.tidy else in_rooms(view, jnp.uint32(0xFFFFFFFF))
        case Test.SAME_ROOM:
            return in_rooms(view, jnp.uint32(1) << here.astype(jnp.uint32))
        case Test.OPEN_DOORS:
            return _free_ways(view, here)
        case Test.ACCESSIBLE:
            return ~t.openable | state.states[OPEN] if inside else t.exists
        case Test.WORN:
            return reach.worn
        case Test.LOADED:
            return t.edible | _loaded(view, None)
        case Test.FOOD:
            return t.edible | _loaded(view, t.edible)
        case Test.WALKABLE:
            return reach.near | ~(t.bodies | reach.worn | spread(posture(view, SEATED_STATES)))
        case Test.BOUND:
            return state.bound
        case _:
            raise AssertionError(f"{test} is a check of the character")
