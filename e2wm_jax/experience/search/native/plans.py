"""Sequences of moves on the array engine: what they earn, whether a better one is possible, what is in excess.

Facts are bits (`goal`), moves are integers (`moves`), a sequence is an array of moves and a length.
"""

import numpy as np

from e2wm_jax.experience.search.native.goal import count_bits, holding
from e2wm_jax.experience.search.native.moves import carry_out, first_moves, legal_moves, unpack
from e2wm_jax.experience.search.planner import Plan
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.native.jit import jit
from e2wm_jax.worlds.household.native.tables import NODES, WORDS
from e2wm_jax.worlds.household.native.world import ArrayState

EPSILON = 1e-9  # less than any two different rewards differ by


@jit
def reward_of(kind, achieved, revoked, complete):
    """`planner.REWARDS`: 0 official, 1 paper."""
    if kind == 0:
        return 2.0 * achieved - 1.5 * revoked - 0.1 + (5.0 if complete else 0.0)
    return 2.0 * achieved - 0.1


@jit
def play(T, task, s, before, pending, move, kind):
    """Carry out a move on the state in place.

    Returns:
        (works, facts that hold now, facts that have never held, reward).
    """
    if not carry_out(T, s, move):
        return False, before, pending, 0.0
    now = holding(T, task, s)
    achieved = pending & now & ~before
    complete = now == (1 << len(task.facts)) - 1
    reward = reward_of(kind, count_bits(achieved), count_bits(before & ~now), complete)
    return True, now, pending & ~achieved, reward


@jit
def is_proved(open_nodes, best_length, best_total, wanted, kind):
    """`planner._Search.proved`."""
    perfect = reward_of(kind, wanted, 0, True) + (best_length - 1) * reward_of(kind, 0, 0, False)
    if best_total > perfect - EPSILON and best_length > 0:
        return not open_nodes[: best_length - 1].any()
    return not open_nodes.any()


@jit
def total_of(T, task, sequence, length, kind, scratch):
    """(Whether the moves are legal one after the other, what they earn together)."""
    s, moves, row, order = scratch
    s[:] = task.start
    now = holding(T, task, s)
    pending, total = ((1 << len(task.facts)) - 1) & ~now, 0.0
    for depth in range(length):
        if depth:
            count = legal_moves(T, task, s, moves, row, order)
        else:
            count = first_moves(T, task, s, moves)
        known = False
        for index in range(count):
            known = known or moves[index] == sequence[depth]
        if not known:
            return False, 0.0
        works, now, pending, reward = play(T, task, s, now, pending, sequence[depth], kind)
        if not works:
            return False, 0.0
        total += reward
    return True, total


@jit
def shorten_best(T, task, best, length, best_total, kind):
    """Leave out stretches of the best sequence, the longest first, as long as that earns more; (length, total)."""
    width = 2 + len(task.first_rooms) + 64 * len(task.class_start)
    scratch = (
        np.empty(len(task.start), np.uint32),
        np.empty(width, np.int64),
        np.empty(T.n[WORDS], np.uint32),
        np.empty(T.n[NODES], np.int64),
    )
    candidate = np.empty_like(best)
    improved = True
    while improved:
        improved = False
        for size in range(length, 0, -1):
            for start in range(length - size + 1):
                candidate[:start] = best[:start]
                candidate[start : length - size] = best[start + size : length]
                legal, total = total_of(T, task, candidate, length - size, kind, scratch)
                if legal and total >= best_total + EPSILON:
                    best[: length - size] = candidate[: length - size]
                    length, best_total, improved = length - size, total, True
                    break
            if improved:
                break
    return length, best_total


def plan_of(scene: Scene, state: ArrayState, found: tuple[np.ndarray, int, float, int, int, bool]) -> Plan:
    """What a compiled search found (moves, their number, total reward, simulations, nodes, proved), as a plan."""
    best, length, total, done, nodes, proved = found
    return Plan(
        moves=tuple(unpack(scene, state, int(move)) for move in best[:length]),
        total_reward=round(total, 9),
        simulations=done,
        nodes=nodes,
        proved=proved,
    )
