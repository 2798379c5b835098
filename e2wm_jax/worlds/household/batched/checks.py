"""The tests of `rules` for accelerators, each in two forms: of one node, as a step asks it, and of all nodes at once,
as a set, for legal actions. Letters as in `tables`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.worlds.household.arrays import CLOSE, CLOSED, FACING, INSIDE, LYING, ON, OPEN, SITTING, dialect_rules
from e2wm_jax.worlds.household.batched.edges import (
    Spot,
    View,
    any_of,
    at,
    bits,
    closed_containers,
    has,
    has_in,
    in_rooms,
    number_of,
    one,
    packed,
    room_numbers,
    set_of,
    spread,
    union,
)
from e2wm_jax.worlds.household.batched.tables import SOURCES, Array
from e2wm_jax.worlds.household.rules import Test

# The word of `answers` for (test, of Y)
_LOOKED_UP = {(Test.HAS, False): 1, (Test.HAS, True): 2, (Test.STATE, False): 3, (Test.LACKS, False): 4}
SEATED_STATES = 1 << SITTING | 1 << LYING


# The character


def posture(view: View, states: int) -> Array:
    """Whether the character is in one of these states (bits); vh23 remembers those of the scene for ever."""
    if view.dialect == "vh23":
        return view.tables.posture & states != 0
    return bits(has_in(view.state.states, view.tables.character)) & states != 0


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
    near: Array  # [2] whether X, Y are
    y: Array
    inside: Array  # whether X is to be put inside Y
    here: Array  # room number of the character
    there: Array  # room number of X


def near(view: View, spots: Spot) -> Array:
    """[2] CLOSE(C,Z), or CLOSE(C,k) and (CLOSE(k,Z) or ON(Z,k)) for some k."""
    close, relation, node = view.state.close, view.relation, spots.node
    forth = ((relation == CLOSE) | (relation == ON)) & has(close, view.target)
    back = (relation == CLOSE) & has(close, view.source)
    over_list = forth & (view.source == node[:, None]) | back & (view.target == node[:, None])  # [2, S]
    over_scene = (spots.rows[:, CLOSE] | spots.rows[:, ON]) & close != 0  # [2, W]
    found = any_of(over_list) | jnp.any(over_scene, -1)
    return has(close, node) | jnp.where(node == view.tables.character, jnp.any(close != 0), found)


def open_doors(view: View, node: Array, here: Array, there: Array, passable: Array) -> Array:
    """Whether nothing bars the way from room ``here`` to ``there`` (numbers), in which the node is. ``passable``: the
    rooms (bits) that `reached` finds."""
    t = view.tables
    beside = jnp.any((t.doors == node) & t.door_near.at[:, here].get(mode="clip"))
    way = t.ways.at[here, there].get(mode="clip", wrap_negative_indices=False)  # [L] from the far end to the near one
    shut = (way >= 0) & has(view.state.states[CLOSED], at(t.doors, way))
    last = jnp.max(jnp.where(shut, jnp.arange(way.shape[0]), -1), initial=-1)
    nearest = jnp.where(last >= 0, at(t.doors, at(way, last)), -1)
    free = passable >> there.astype(jnp.uint32) & 1 != 0
    return beside | at(t.has_door, here) & (free | (nearest == node))


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
    return over_scene + number_of(listed if only is None else listed & has(only, view.source))


def _worn(view: View, node: Array) -> Array:
    c = view.tables.character
    listed = any_of((view.relation == ON) & (view.source == node) & (view.target == c))
    return jnp.where(node == c, has(view.state.on, node), listed)


def of_thing(view: View, line: Line, test: Test, of_y: bool) -> Array:
    """Whether a check of X or Y holds, other than those that look up the node in a set (`answers`)."""
    t, state, spot = view.tables, view.state, line.x
    node = line.y if of_y else spot.node
    match test:
        case Test.NEAR:
            return line.near[int(of_y)]
        case Test.HELD:
            return jnp.any(state.hands == node.astype(jnp.uint32) + 1)
        case Test.NOT_GRABBED:
            return at(state.memory, node) == 0
        case Test.GRABBED:
            return at(state.memory, node) != 0
        case Test.REACHABLE:
            shut = closed_containers(view)
            listed = (view.relation == INSIDE) & (view.source == node) & has(shut, view.target)
            return ~(jnp.any(spot.rows[INSIDE] & shut != 0) | any_of(listed))
        case Test.SEAT_LEFT | Test.BED_LEFT:
            return _count_on(view, spot, None) < at(t.seats[test - Test.SEAT_LEFT], node)
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
            return line.near[0] | ~barred
        case Test.BOUND:
            return has(state.bound, node)
        case _:
            raise AssertionError(f"{test.name} is no check of its own kind")


def questions_of(dialect: str) -> tuple[tuple[tuple[Test, bool, int], ...], np.ndarray]:
    """The different questions that a dialect's checks ask, other than those that look up a node in a set; and for each
    check, [V, M], where `answers` has its answer: 32 * word + bit, or -1."""
    checks = dialect_rules(dialect).checks
    singles: dict[tuple[Test, bool, int], int] = {}
    where = np.full(checks.shape[:2], -1, np.int32)
    for place in np.argwhere(checks[..., 0] >= 0):
        test, of_y, argument, _ = checks[tuple(place)].tolist()
        key = Test(test), bool(of_y)
        if key in _LOOKED_UP:
            where[tuple(place)] = 32 * _LOOKED_UP[key] + argument
        else:
            where[tuple(place)] = singles.setdefault((*key, argument), len(singles))
    return tuple(singles), where


def answers(view: View, line: Line, questions: tuple[tuple[Test, bool, int], ...]) -> Array:
    """[5] words of answers, a bit each: to the questions; the HAS of X; of Y; the STATE of X; its LACKS."""
    own = [
        of_thing(view, line, test, of_y) if found is None else found
        for test, of_y, argument in questions
        for found in [of_character(view, test, argument, line.here)]
    ]
    one_by_one = jnp.uint32(0)
    for place, answer in enumerate(own):
        one_by_one |= answer.astype(jnp.uint32) << place
    states = bits(has_in(view.state.states, line.x.node))
    kinds = (bits(has_in(view.tables.kinds, node)) for node in (line.x.node, line.y))
    return jnp.stack([one_by_one, *kinds, states, ~states])


# All nodes at once


class Reach(NamedTuple):
    """Sets [W] of nodes one step away from the character's own, each a union of rows of the scene and of the list."""

    near: Array
    faced: Array
    enclosed: Array  # directly in something CLOSED that is no room
    worn: Array
    loaded: Array  # something is ON them
    with_food: Array  # something EATABLE is


def reachable(view: View) -> Reach:
    """The sets that checks of all nodes look at."""
    t, state, words = view.tables, view.state, view.words
    close, relation = state.close, view.relation
    shut = closed_containers(view)

    def touching(nodes: Array, row: int, relation: int) -> Array:
        """What has an edge of the scene, of this row, with a node of a set [W]."""
        kept = ~state.wiped[relation]
        found = jnp.zeros(t.reach.shape[2:], jnp.uint32)
        for word in range(words):
            found |= t.reach[row, word] & (nodes & kept)[word]
        return packed(found != 0) & kept

    over_list = set_of(view.source, ((relation == CLOSE) | (relation == ON)) & has(close, view.target), words)
    over_list |= set_of(view.target, (relation == CLOSE) & has(close, view.source), words)
    me = one(t.character, words)
    everywhere = close | touching(close, 0, CLOSE) | touching(close, 1, ON) | over_list
    worn = set_of(view.source, (relation == ON) & (view.target == t.character), words)
    return Reach(
        near=jnp.where(jnp.any(close != 0), everywhere | me, everywhere & ~me),
        faced=state.facing | touching(state.facing, 2, FACING),
        enclosed=touching(shut, 3, INSIDE) | set_of(view.source, (relation == INSIDE) & has(shut, view.target), words),
        worn=worn & ~me | me & state.on,
        loaded=touching(t.exists, 4, ON) | state.on | set_of(view.target, relation == ON, words),
        with_food=touching(t.edible, 4, ON)
        | state.on & spread(has(t.edible, t.character))
        | set_of(view.target, (relation == ON) & has(t.edible, view.source), words),
    )


def _with_room_for_one(view: View, limits: Array) -> Array:
    """[W] the seats that have fewer things ON them than ``limits`` [N]; everything that is no seat."""
    t, state = view.tables, view.state
    seats = t.sittable
    kept = jnp.where(has(state.wiped[ON], seats)[:, None], jnp.uint32(0), ~state.wiped[ON])
    under = at(t.rows[:, SOURCES + ON], seats) & kept  # [Q, W]
    count = sum(jax.lax.population_count(under[:, word]).astype(jnp.int32) for word in range(view.words))
    count += number_of((view.relation == ON) & (view.target == seats[:, None])) + has(state.on, seats)
    return ~set_of(seats, (seats >= 0) & (count >= at(limits, seats)), view.words)


def _free_ways(view: View, here: Array) -> Array:
    """[W] where the doors let the character go."""
    t = view.tables
    passable = reached(view, here)
    inside = in_rooms(view, passable) & spread(at(t.has_door, here))
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
            return packed(state.memory == 0) & t.exists
        case Test.GRABBED:
            return packed(state.memory != 0)
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
            return t.edible | reach.loaded
        case Test.FOOD:
            return t.edible | reach.with_food
        case Test.WALKABLE:
            return reach.near | ~(t.bodies | reach.worn | spread(posture(view, SEATED_STATES)))
        case Test.BOUND:
            return state.bound
        case _:
            raise AssertionError(f"{test} is a check of the character")
