"""What the batched search knows about one goal: its tree, where it is in a simulation, the best that it has met.

Letters: T nodes of a tree, D depth limit, and those of `goal`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.experience.search.batched.goal import Task
from e2wm_jax.experience.search.batched.moves import first_options, holding
from e2wm_jax.experience.search.planner import DISCOUNT, REWARDS, Reward
from e2wm_jax.worlds.household.batched.tables import Array, DeviceTables, State

TENTHS = 10  # rewards are counted in tenths: these sums are exact


class Problem(NamedTuple):
    """What is searched for, and how."""

    tables: DeviceTables
    task: Task
    rewards: Array  # [4] int32 tenths: for each fact achieved, each revoked, all holding, each move
    simulations: Array  # [] int32, at most T - 1


class Tree(NamedTuple):
    """Node 0 is the root; the others are numbered as they were made."""

    child: Array  # [T, M] uint16 or uint32: node that a move leads to, 0 for none
    worth: Array  # [T, 2] float32: number of visits, and the sum of their returns, each with the node's own reward
    untried: Array  # [T, M / 32] uint32: moves left to try
    open: Array  # [D] int32: number of nodes with moves left to try, by depth
    size: Array  # [] int32


class Place(NamedTuple):
    """Where a goal's simulation is."""

    state: State
    node: Array  # [] int32; -1 beyond the tree, where moves are random
    depth: Array  # [] int32
    holding: Array  # [F / 32] facts that hold
    pending: Array  # [F / 32] facts that have never held
    total: Array  # [] int32 tenths
    around: Array  # [W] `MoveOptions.around`
    rest: Array  # [M / 32] beyond the tree: the moves left to try


class Attempt(NamedTuple):
    """The move that is being carried out."""

    line: Array  # [] int32: place of the next line to execute; 0 when a move is to be chosen
    choice: Array  # [] int32 candidate
    state: State  # after the lines so far


class Path(NamedTuple):
    """The simulation so far. Where it leaves the tree is its leaf."""

    nodes: Array  # [D + 1] int32 node at each depth, as far as the leaf
    before: Array  # [D + 1] float32: discounted rewards of the nodes above
    earned: Array  # [] float32: and with the leaf's
    leaf: Array  # [] int32 its depth
    worth: Array  # [] float32: weighted rewards beyond the leaf
    weight: Array  # [] float32 of the next of them
    moves: Array  # [D, 2] uint32 `packed_move`, beyond the leaf too


class Best(NamedTuple):
    """The best sequence of moves met so far."""

    moves: Array  # [D, 2] uint32
    length: Array  # [] int32
    total: Array  # [] int32 tenths


class Search(NamedTuple):
    """Everything about the search for one goal."""

    tree: Tree
    place: Place
    attempt: Attempt
    path: Path
    best: Best
    simulations: Array  # [] int32 done
    ticks: Array  # [] int32
    key: Array  # [2] uint32: random numbers depend on it and the ticks alone
    active: Array  # [] bool: neither proved nor at the end of its simulations
    proved: Array  # [] bool: nothing better can exist
    holding: Array  # [F / 32] facts that hold at the beginning


def reward_tenths(reward: Reward) -> np.ndarray:
    """[4] `planner.REWARDS` as `Problem.rewards` has it."""
    of = REWARDS[reward]
    every = of(0, 0, False)
    parts = (of(1, 0, False) - every, of(0, 1, False) - every, of(0, 0, True) - every, every)
    return np.array([round(TENTHS * part) for part in parts], np.int32)


def start(problem: Problem, key: Array, *, nodes: int, max_depth: int) -> Search:
    """A search that has done nothing yet; ``nodes`` is T."""
    tables, task, zero = problem.tables, problem.task, jnp.int32(0)
    now = holding(tables, task, tables.start)
    pending = task.every & ~now
    first = jnp.where(jnp.any(pending != 0), first_options(task), jnp.uint32(0))
    tree = Tree(
        child=jnp.zeros((nodes, len(task.row)), jnp.uint16 if nodes <= 1 << 16 else jnp.uint32),
        worth=jnp.zeros((nodes, 2)),
        untried=jnp.zeros((nodes, len(first)), jnp.uint32).at[0].set(first),
        open=jnp.zeros(max_depth, jnp.int32).at[0].set(jnp.any(first != 0)),
        size=jnp.int32(1),
    )
    moves = jnp.zeros((max_depth, 2), jnp.uint32)
    path = Path(
        nodes=jnp.zeros(max_depth + 1, jnp.int32),
        before=jnp.zeros(max_depth + 1),
        earned=jnp.float32(0),
        leaf=zero,
        worth=jnp.float32(0),
        weight=jnp.float32(DISCOUNT),
        moves=moves,
    )
    best = Best(moves, zero, zero)
    proved = is_proved(tree.open, best, count(pending), problem.rewards)
    return Search(
        tree=tree,
        place=Place(tables.start, zero, zero, now, pending, zero, jnp.zeros_like(tables.exists), first),
        attempt=Attempt(zero, zero, tables.start),
        path=path,
        best=best,
        simulations=zero,
        ticks=zero,
        key=key,
        active=~proved & (problem.simulations > 0),
        proved=proved,
        holding=now,
    )


def is_over(place: Place, best: Best) -> Array:
    """Whether a simulation ends here: at the goal, or at the depth limit."""
    return ~jnp.any(place.pending != 0) | (place.depth == best.moves.shape[0])


def is_proved(counts: Array, best: Best, wanted: Array, rewards: Array) -> Array:
    """`planner._Search.proved`: ``counts`` [D] are the open nodes."""
    achieved, _, complete, each = rewards
    is_perfect = (best.length > 0) & (best.total >= wanted * achieved + complete + best.length * each)
    shallower = jnp.arange(len(counts)) < best.length - 1
    return ~jnp.any((counts > 0) & (shallower | ~is_perfect))


def count(words: Array) -> Array:
    """How many members a set has."""
    return jnp.sum(jax.lax.population_count(words).astype(jnp.int32))
