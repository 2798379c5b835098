"""Sequences of moves on the array engine: what they earn, whether a better one is possible, what is in excess.

Facts are bits (`goal`), moves are integers (`moves`), a sequence is an array of moves and a length.
"""

import numpy as np

from e2wm_jax.experience.search.native.goal import Task, count_bits, holding
from e2wm_jax.experience.search.native.moves import carry_out, first_moves, legal_moves, unpack
from e2wm_jax.experience.search.planner import Plan
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.native.jit import inner, jit
from e2wm_jax.worlds.household.native.tables import NODES, WORDS, NativeTables
from e2wm_jax.worlds.household.native.world import ArrayState

EPSILON = 1e-9  # less than any two different rewards differ by


@inner
def copy(source, target, count):
    """The first so many entries. (A slice of numpy's makes numba compile what words its errors.)"""
    for place in range(count):
        target[place] = source[place]


@inner
def reward_of(kind, achieved, revoked, complete):
    """`planner.REWARDS`: 0 official, 1 paper."""
    if kind == 0:
        return 2.0 * achieved - 1.5 * revoked - 0.1 + (5.0 if complete else 0.0)
    return 2.0 * achieved - 0.1


@inner
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


@inner
def any_below(counts, end):
    """Whether one of the first counts is not 0."""
    for place in range(end):
        if counts[place]:
            return True
    return False


@jit
def is_proved(open_nodes, best_length, best_total, wanted, kind):
    """`planner._Search.proved`."""
    perfect = reward_of(kind, wanted, 0, True) + (best_length - 1) * reward_of(kind, 0, 0, False)
    if best_total > perfect - EPSILON and best_length > 0:
        return not any_below(open_nodes, best_length - 1)
    return not any_below(open_nodes, len(open_nodes))


@jit
def total_of(T, task, sequence, length, kind, scratch):
    """(Whether the moves are legal one after the other, what they earn together)."""
    s, moves, row, order = scratch
    copy(task.start, s, len(s))
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


def scratch_of(T: NativeTables, task: Task) -> tuple[np.ndarray, ...]:
    """What `total_of` works in."""
    moves = 2 + len(task.first_rooms) + 64 * len(task.class_start)
    sizes = ((len(task.start), np.uint32), (moves, np.int64), (T.n[WORDS], np.uint32), (T.n[NODES], np.int64))
    return tuple(np.empty(size, dtype) for size, dtype in sizes)


def shorten_best(
    T: NativeTables, task: Task, best: np.ndarray, length: int, best_total: float, kind: int
) -> tuple[int, float]:
    """Leave out stretches of the best sequence, the longest first, as long as that earns more; (length, total)."""
    scratch = scratch_of(T, task)
    stretches = [(size, start) for size in range(length, 0, -1) for start in range(length - size + 1)]
    for size, start in stretches:
        candidate = np.concatenate([best[:start], best[start + size : length]])
        legal, total = total_of(T, task, candidate, length - size, kind, scratch)
        if legal and total >= best_total + EPSILON:
            best[: length - size] = candidate
            return shorten_best(T, task, best, length - size, total, kind)
    return length, best_total


def facts_to_gain(T: NativeTables, task: Task) -> int:
    """How many facts of a goal do not hold at the start."""
    return len(task.facts) - int(count_bits(holding(T, task, task.start)))


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
