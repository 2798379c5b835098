"""Best-first search with novelty, on the array engine: finds more goals, by shorter plans, than E2WM's search does.

A tree search with random play forgets that two ways lead to the same state, and looks at each state's facts only
through their sum. Here states are kept apart by a hash, and of those that wait the next one is, in this order: one
that shows something not seen before among states that fulfil as many facts (novelty of width 1: Lipovetzky and
Geffner, "Best-First Width Search", AAAI 2017), one with fewer facts missing, a shallower one. A state that cannot lead
to a better total reward than the best plan is left out. No chance is involved.
"""

import heapq

import numpy as np

from e2wm_jax.experience.search.native.goal import count_bits, holding, task_of
from e2wm_jax.experience.search.native.moves import first_moves, legal_moves
from e2wm_jax.experience.search.native.plans import copy, plan_of, play, shorten_best
from e2wm_jax.experience.search.planner import Plan, Reward
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.native import tables as K
from e2wm_jax.worlds.household.native.jit import inner, jit
from e2wm_jax.worlds.household.native.world import ArrayWorld

_HASHED = 1 << 12  # bits into which the edges of a state's list are hashed to tell whether one is new


@inner
def hash_of(s, pending):
    """64 bits of a state and the facts that it still lacks (FNV-1a over words)."""
    code = np.uint64(0xCBF29CE484222325) ^ np.uint64(pending)
    for word in s:
        code = (code ^ np.uint64(word)) * np.uint64(0x100000001B3)
        code ^= code >> np.uint64(29)
    return code


@inner
def add_hash(table, code):
    """Put a hash into an open-addressed table; whether it was new."""
    mask = np.uint64(len(table) - 1)
    place = code & mask
    while table[place] != 0:
        if table[place] == code:
            return False
        place = (place + np.uint64(1)) & mask
    table[place] = code
    return True


@inner
def is_new(T, s, seen):
    """Whether anything about a state was not in ``seen``, where it is then entered."""
    new = False
    for w in range(T.n[K.AT_STATES] + 10 * T.n[K.WORDS]):
        if s[w] & ~seen[w]:
            seen[w] |= s[w]
            new = True
    for slot in range(T.n[K.AT_EDGES], T.n[K.AT_EDGES] + s[T.n[K.AT_COUNT]]):
        place = np.int64((s[slot] * np.uint32(2654435761)) & np.uint32(_HASHED - 1))
        word, bit = len(s) + (place >> 5), np.uint32(1) << np.uint32(place & 31)
        if not seen[word] & bit:
            seen[word] |= bit
            new = True
    return new


@jit
def search_best_first(T, task, expansions, max_depth, kind):
    """(Moves, their number, total reward, expansions done, states kept)."""
    size, every = len(task.start), (1 << len(task.facts)) - 1
    width = 2 + len(task.first_rooms) + 64 * len(task.class_start)
    moves, row, order = np.empty(width, np.int64), np.empty(T.n[K.WORDS], np.uint32), np.empty(T.n[K.NODES], np.int64)
    s, trial = np.empty(size, np.uint32), np.empty(size, np.uint32)
    best, best_length, best_total = np.empty(max_depth, np.int64), K.START, 0.0

    states = np.empty((256, size), np.uint32)  # of expanded nodes
    room = 4096
    parent, macro = np.empty(room, np.int64), np.empty(room, np.int64)
    depth, slot = np.empty(room, np.int64), np.empty(room, np.int64)
    total, now, pending = np.empty(room, np.float64), np.empty(room, np.int64), np.empty(room, np.int64)
    known = np.zeros(1 << 16, np.uint64)
    seen = np.zeros((len(task.facts) + 1, size + _HASHED // 32), np.uint32)

    parent[0], macro[0], depth[0], slot[0], total[0] = -1, 0, 0, -1, 0.0
    now[0] = holding(T, task, task.start)
    pending[0] = every & ~now[0]
    nodes, done = 1, 0
    waiting = [(np.int64(0), np.int64(0))]
    while waiting and done < expansions:
        _, node = heapq.heappop(waiting)
        if not pending[node] or depth[node] >= max_depth:
            continue
        if total[node] + 2.0 * count_bits(pending[node]) + 4.9 <= best_total:
            continue
        if node == 0:
            copy(task.start, s, size)
        else:  # its state was not kept when it was made
            copy(states[slot[parent[node]]], s, size)
            play(T, task, s, now[parent[node]], pending[parent[node]], macro[node], kind)
        if done == len(states):
            more = np.empty((2 * done, size), np.uint32)
            for index in range(done):
                copy(states[index], more[index], size)
            states = more
        copy(s, states[done], size)
        slot[node] = done
        done += 1
        if node == 0:
            count = first_moves(T, task, s, moves)
        else:
            count = legal_moves(T, task, s, moves, row, order)
        for index in range(count):
            copy(s, trial, size)
            works, after, left, gain = play(T, task, trial, now[node], pending[node], moves[index], kind)
            if not works:
                continue
            if 2 * nodes >= len(known):
                bigger = np.zeros(2 * len(known), np.uint64)
                for code in known:
                    if code:
                        add_hash(bigger, code)
                known = bigger
            if not add_hash(known, hash_of(trial, left)):
                continue
            if nodes == room:
                room *= 2
                parent, macro, depth, slot = grown(parent), grown(macro), grown(depth), grown(slot)
                now, pending = grown(now), grown(pending)
                longer = np.empty(room, np.float64)
                copy(total, longer, nodes)
                total = longer
            parent[nodes], macro[nodes], depth[nodes] = node, moves[index], depth[node] + 1
            total[nodes], now[nodes], pending[nodes] = total[node] + gain, after, left
            if total[nodes] > best_total + 1e-9:
                best_total, best_length, step = total[nodes], depth[nodes], nodes
                for place in range(best_length - 1, -1, -1):
                    best[place] = macro[step]
                    step = parent[step]
            missing = count_bits(every & ~after)
            ordinary = np.int64(not is_new(T, trial, seen[missing]))
            key = ordinary << 40 | np.int64(missing) << 32 | depth[nodes]
            heapq.heappush(waiting, (key, np.int64(nodes)))
            nodes += 1
    return best, best_length, best_total, done, nodes


@inner
def grown(array):
    """Twice as long."""
    longer = np.empty(2 * len(array), array.dtype)
    copy(array, longer, len(array))
    return longer


def search(
    world: ArrayWorld,
    scene: Scene,
    goal: Goal,
    *,
    simulations: int = 20_000,
    max_depth: int = 25,
    reward: Reward = "official",
    seed: int = 0,
    shorten: bool = True,
) -> Plan:
    """As `mcts.search`. A simulation is the expansion of one state by all of its moves, which takes about as
    many steps as E2WM's random play to the depth limit. ``seed`` decides nothing.

    Raises:
        InputError: for a goal of more facts than a search can hold.
    """
    del seed
    state = world.initial(scene)
    task = task_of(world, state, goal)
    kind = ("official", "paper").index(reward)
    T = state.base.native
    best, length, total, *counts = search_best_first(T, task, simulations, max_depth, kind)
    if shorten:
        length, total = shorten_best(T, task, best, length, total, kind)
    return plan_of(scene, state, (best, length, total, *counts, False))
