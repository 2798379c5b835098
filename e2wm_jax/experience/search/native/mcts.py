"""`planner.search` compiled: the same tree, move by move, on the array engine.

Given the same seed it takes the same decisions as `planner` over any engine with the same rules, which is how it is
tested. Nodes and states lie in arrays, moves are integers (`moves`), facts are bits (`goal`).
"""

import math

import numpy as np

from e2wm_jax.experience.search.native.goal import count_bits, holding, task_of
from e2wm_jax.experience.search.native.moves import first_moves, legal_moves
from e2wm_jax.experience.search.native.plans import EPSILON, copy, facts_to_gain, is_proved, plan_of, play, shorten_best
from e2wm_jax.experience.search.planner import C_BASE, C_INIT, DISCOUNT, Plan, Reward
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.native.jit import inner, jit
from e2wm_jax.worlds.household.native.tables import NODES, NONE, START, WORDS
from e2wm_jax.worlds.household.native.world import ArrayWorld


def search(
    world: ArrayWorld,
    scene: Scene,
    goal: Goal,
    *,
    simulations: int = 20_000,
    max_depth: int = 25,
    reward: Reward = "official",
    seed: int = 0,
    shorten: bool = False,
) -> Plan:
    """`planner.search` on the array engine: equal arguments give the plan that it would find, some fifty times faster.

    Raises:
        InputError: for a goal of more facts than a search can hold.
    """
    state = world.initial(scene)
    task = task_of(world, state, goal)
    kind = ("official", "paper").index(reward)
    T = state.base.native
    best, length, total, done, nodes, open_nodes = search_tree(T, task, simulations, max_depth, kind, np.uint64(seed))
    if shorten:
        length, total = shorten_best(T, task, best, length, total, kind)
    proved = is_proved(open_nodes, length, total, facts_to_gain(T, task), kind)
    return plan_of(scene, state, (best, length, total, done, nodes, proved))


@inner
def random_below(random, limit):
    """The next number below ``limit`` of splitmix64, whose state is ``random[0]``."""
    random[0] += np.uint64(0x9E3779B97F4A7C15)
    z = random[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.int64(((z >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32))


@inner
def shuffle(random, moves, count):
    """Put the first ``count`` moves into a random order (Fisher and Yates)."""
    for index in range(count - 1, 0, -1):
        other = random_below(random, index + 1)
        moves[index], moves[other] = moves[other], moves[index]


@inner
def best_child(random, node, child, sibling, visits, value):
    """The child of a node that `planner` goes to: the one of the highest score, any of those if they are several."""
    exploration = math.log((1 + visits[node] + C_BASE) / C_BASE + C_INIT) * math.sqrt(visits[node])
    top, ties = -math.inf, 0
    other = child[node]
    while other >= 0:
        score = exploration / (1 + visits[other]) + value[other] / visits[other]
        if score > top:
            top, ties = score, 1
        elif score == top:
            ties += 1
        other = sibling[other]
    pick = random_below(random, ties)
    other = child[node]
    while True:
        if exploration / (1 + visits[other]) + value[other] / visits[other] == top:
            if pick == 0:
                return other
            pick -= 1
        other = sibling[other]


@jit
def search_tree(T, task, simulations, max_depth, kind, seed):
    """`planner.search`: (moves, their number, total reward, simulations done, nodes, open nodes of each depth)."""
    size = len(task.start)
    random = np.array([seed], np.uint64)
    width = 2 + len(task.first_rooms) + 64 * len(task.class_start)
    moves, row, order = np.empty(width, np.int64), np.empty(T.n[WORDS], np.uint32), np.empty(T.n[NODES], np.int64)
    play_state, trial = np.empty(size, np.uint32), np.empty(size, np.uint32)
    played = np.empty(max_depth, np.int64)
    best, best_length, best_total = np.empty(max_depth, np.int64), START, 0.0
    open_nodes = np.zeros(max_depth, np.int64)

    most = simulations + 1
    parent, macro = np.full(most, -1, np.int64), np.zeros(most, np.int64)
    reward, total, value = np.zeros(most), np.zeros(most), np.zeros(most)
    visits, depth = np.zeros(most, np.int64), np.zeros(most, np.int64)
    now, pending = np.zeros(most, np.int64), np.zeros(most, np.int64)
    child, last_child, sibling = np.full(most, -1, np.int64), np.full(most, -1, np.int64), np.full(most, -1, np.int64)
    untried, untried_at = np.zeros(most, np.int64), np.zeros(most, np.int64)
    slot = np.full(most, -1, np.int64)
    pool, pool_used = np.empty(4096, np.int64), 0
    states = np.empty((256, size), np.uint32)
    free, free_count, used = np.empty(most, np.int64), 0, 0

    nodes = 0
    now0 = holding(T, task, task.start)
    every = (1 << len(task.facts)) - 1
    wanted = count_bits(every & ~now0)
    done = -1  # the root is node 0, made by the first round below
    while True:
        if done >= 0 and (done >= simulations or is_proved(open_nodes, best_length, best_total, wanted, kind)):
            break
        # Descend to a node with a move left to try.
        leaf, made = START, NONE
        if done < 0:
            made = 0
            copy(task.start, play_state, size)
            now[0], pending[0] = now0, every & ~now0
            nodes = 1
        else:
            while True:
                while untried[leaf] > 0 and made < 0:
                    untried[leaf] -= 1
                    move = pool[untried_at[leaf] + untried[leaf]]
                    copy(states[slot[leaf]], play_state, size)
                    works, after, left, gain = play(T, task, play_state, now[leaf], pending[leaf], move, kind)
                    if untried[leaf] == 0:
                        open_nodes[depth[leaf]] -= 1
                        free[free_count] = slot[leaf]
                        free_count += 1
                        slot[leaf] = -1
                    if works:
                        made = nodes
                        nodes += 1
                        parent[made], macro[made], depth[made] = leaf, move, depth[leaf] + 1
                        total[made] = total[leaf] + gain
                        reward[made] = total[made] - total[leaf]
                        now[made], pending[made] = after, left
                        if child[leaf] < 0:
                            child[leaf] = made
                        else:
                            sibling[last_child[leaf]] = made
                        last_child[leaf] = made
                if made >= 0 or child[leaf] < 0:
                    break
                leaf = best_child(random, leaf, child, sibling, visits, value)
        worth = 0.0
        if made >= 0:
            # Its moves, shuffled.
            leaf = made
            if pending[leaf] and depth[leaf] < max_depth:
                if leaf == 0:
                    count = first_moves(T, task, play_state, moves)
                else:
                    count = legal_moves(T, task, play_state, moves, row, order)
                if pool_used + count > len(pool):
                    bigger = np.empty(2 * len(pool) + count, np.int64)
                    copy(pool, bigger, pool_used)
                    pool = bigger
                shuffle(random, moves, count)
                copy(moves, pool[pool_used:], count)
                untried_at[leaf], untried[leaf] = pool_used, count
                pool_used += count
                if count:
                    open_nodes[depth[leaf]] += 1
                    if free_count:
                        free_count -= 1
                        slot[leaf] = free[free_count]
                    else:
                        if used == len(states):
                            more = np.empty((2 * used, size), np.uint32)
                            for index in range(used):
                                copy(states[index], more[index], size)
                            states = more
                        slot[leaf] = used
                        used += 1
                    copy(play_state, states[slot[leaf]], size)
            if done < 0:
                done = 0
                continue
            # Random moves to the depth limit; their rewards weighted by g, g^2, g^4, g^8, ... as E2WM does.
            length, sum_now, holds_now, left_now, weight = 0, total[leaf], now[leaf], pending[leaf], DISCOUNT
            while True:
                gain = sum_now - best_total
                if gain > EPSILON or (gain > -EPSILON and depth[leaf] + length < best_length):
                    best_total, best_length = sum_now, depth[leaf] + length
                    node = leaf
                    for place in range(depth[leaf] - 1, -1, -1):
                        best[place] = macro[node]
                        node = parent[node]
                    copy(played, best[depth[leaf] :], length)
                if not left_now or depth[leaf] + length >= max_depth:
                    break
                count = legal_moves(T, task, play_state, moves, row, order)
                works = False
                while count and not works:
                    other = random_below(random, count)
                    move = moves[other]
                    count -= 1
                    moves[other] = moves[count]
                    copy(play_state, trial, size)
                    works, after, left, gain = play(T, task, trial, holds_now, left_now, move, kind)
                if not works:
                    break
                play_state, trial = trial, play_state
                after_sum = sum_now + gain
                worth += weight * (after_sum - sum_now)
                weight *= weight
                sum_now, holds_now, left_now = after_sum, after, left
                played[length] = move
                length += 1
        done += 1
        node, carried = leaf, worth
        while node >= 0:
            carried = reward[node] + (carried if node == leaf else DISCOUNT * carried)
            visits[node] += 1
            value[node] += carried
            node = parent[node]
    return best, best_length, best_total, done, nodes, open_nodes
