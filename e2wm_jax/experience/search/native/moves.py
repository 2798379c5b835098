"""The moves of the planner for compiled code: those that make sense in a state, and carrying one out.

A move is one integer (`pack`), lines of `search.moves` in another form.
"""

import numpy as np

from e2wm_jax.experience.search.moves import Macro
from e2wm_jax.worlds.household.actions import Action, Thing
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.native import tables as K
from e2wm_jax.worlds.household.native.edges import bit, next_node, targets
from e2wm_jax.worlds.household.native.jit import inner, jit
from e2wm_jax.worlds.household.native.order import first_in_set, in_set_order
from e2wm_jax.worlds.household.native.places import has_state, is_held
from e2wm_jax.worlds.household.native.step import step
from e2wm_jax.worlds.household.native.world import ArrayState
from e2wm_jax.worlds.household.rules import RULES, VERB_INDEX

_OPEN, _WALK, _STANDUP = (np.int64(VERB_INDEX[verb]) for verb in ("OPEN", "WALK", "STANDUP"))


@inner
def pack(verb, x, y, stand, one, other):
    """A move: StandUp first (or not), then Open of up to two things (node + 1, 0 for none), then the verb."""
    return verb | x << 6 | y << 18 | stand << 30 | one << 31 | other << 44


def unpack(scene: Scene, state: ArrayState, move: int) -> Macro:
    """The lines of a move."""

    def thing(number: int) -> Thing:
        node = scene.nodes[state.base.ids[number]]
        return Thing(node.class_name, node.id)

    rule = RULES[move & 0x3F]
    things = tuple(thing(number) for number in (move >> 6 & 0xFFF, move >> 18 & 0xFFF)[: rule.arity])
    opens = [(move >> shift & 0x1FFF) - 1 for shift in (31, 44)]
    return (
        *((Action("StandUp"),) if move >> 30 & 1 else ()),
        *(Action("Open", (thing(number),)) for number in opens if number >= 0),
        Action(rule.name, things),
    )


@inner
def closed_containers(T, s, node, row, order):
    """The closed things, not rooms, that the node is in, into ``order``; returns their number."""
    targets(T, s, K.INSIDE, node, row)
    for w in range(T.n[K.WORDS]):
        row[w] &= s[T.n[K.AT_STATES] + K.CLOSED * T.n[K.WORDS] + w] & ~T.bits[T.n[K.ROOMS] + w]
    if next_node(row, K.NONE) < 0:
        return 0
    targets(T, s, K.INSIDE, node, row)
    found = in_set_order(T, s, K.INSIDE, node, row, order)
    count = 0
    for place in range(found):
        other = order[place]
        if has_state(T, s, other, K.CLOSED) and not bit(T.bits, T.n[K.ROOMS], other):
            order[count] = other
            count += 1
    return count


@inner
def first_moves(T, task, s, moves):
    """The moves at the root: to a room. Into ``moves``; returns their number."""
    stand = np.int64(has_state(T, s, T.n[K.CHARACTER], K.SITTING))
    for index in range(len(task.first_rooms)):
        moves[index] = pack(_WALK, task.first_rooms[index], K.START, stand, K.START, K.START)
    return len(task.first_rooms)


@jit
def legal_moves(T, task, s, moves, row, order):
    """`macros.Moves.legal`: the moves that make sense, in its order, into ``moves``; returns their number."""
    c = T.n[K.CHARACTER]
    if has_state(T, s, c, K.LYING):
        moves[0] = pack(_STANDUP, K.START, K.START, K.START, K.START, K.START)
        count = 1
    else:
        count = 0
        stand = np.int64(has_state(T, s, c, K.SITTING))
        if stand:
            moves[0] = pack(_STANDUP, K.START, K.START, K.START, K.START, K.START)
            count = 1
        for index in range(len(task.first_rooms)):
            moves[count] = pack(_WALK, task.first_rooms[index], K.START, stand, K.START, K.START)
            count += 1
        targets(T, s, K.INSIDE, c, row)
        place = first_in_set(T, s, K.INSIDE, c, row)
        here = task.class_of[place] if place >= 0 else -1
        for k in range(len(task.class_start) - 1):
            chosen = -1
            for index in range(task.class_start[k], task.class_start[k + 1]):
                targets(T, s, K.INSIDE, task.class_nodes[index], row)
                other = next_node(row, K.NONE)
                while other >= 0 and chosen < 0:
                    if task.class_of[other] == here:
                        chosen = task.class_nodes[index]
                    other = next_node(row, other)
                if chosen >= 0:
                    break
            if chosen >= 0:
                if closed_containers(T, s, chosen, row, order):
                    chosen = order[0]
                moves[count] = pack(_WALK, chosen, K.START, stand, K.START, K.START)
                count += 1

    near = np.empty(len(task.class_start), np.int64)
    opening = np.zeros((len(task.class_start), 3), np.int64)
    found = 0
    for k in range(len(task.class_start) - 1):
        for index in range(task.class_start[k], task.class_start[k + 1]):
            node = task.class_nodes[index]
            if bit(s, T.n[K.AT_CLOSE], node):
                near[found] = node
                number = closed_containers(T, s, node, row, order)
                opening[found, 0] = number
                for place in range(min(number, 2)):
                    opening[found, 1 + place] = order[place] + 1
                found += 1
                break
    full = s[T.n[K.AT_HANDS]] != 0 or s[T.n[K.AT_HANDS] + 1] != 0
    singles = len(task.verbs) - 3
    for index in range(found):
        node = near[index]
        held = is_held(T, s, node)
        for v in range(singles):
            verb, state, must_hold, must_hold_anything = task.verbs[v]
            if (
                bit(task.suits[v, 0], K.START, node)
                and (state < 0 or has_state(T, s, node, state))
                and (held or not must_hold)
                and (full or not must_hold_anything)
            ):
                moves[count] = pack(verb, node, K.START, K.START, opening[index, 1], opening[index, 2])
                count += 1
    for index in range(found):
        if is_held(T, s, near[index]):
            for second in range(found):
                for v in range(singles, len(task.verbs)):
                    if (
                        index != second
                        and bit(task.suits[v, 0], K.START, near[index])
                        and bit(task.suits[v, 1], K.START, near[second])
                    ):
                        one, other = opening[index, 1], opening[index, 2]
                        if one == 0:
                            one, other = opening[second, 1], opening[second, 2]
                        elif other == 0:
                            other = opening[second, 1]
                        moves[count] = pack(task.verbs[v, 0], near[index], near[second], K.START, one, other)
                        count += 1
    return count


@jit
def carry_out(T, s, move):
    """All lines of a move, on the state in place; whether they work."""
    for part in range(4):
        verb, x, y = move & 0x3F, move >> 6 & 0xFFF, move >> 18 & 0xFFF
        if part == 0:
            if not move >> 30 & 1:
                continue
            verb = _STANDUP
        elif part < 3:
            x = (move >> (18 + 13 * part) & 0x1FFF) - 1
            if x < 0:
                continue
            verb = _OPEN
        succeeds, check, _ = step(T, s, verb, x, y)
        if not succeeds or check >= 0:
            return False
    return True
