"""A goal in numbers, and the facts of it that hold: what a search of the compiled engine works towards.

K classes, F facts, N nodes, W words of 32 nodes. A set of facts is one integer, bit f for fact f.
"""

from typing import NamedTuple

import numpy as np

from e2wm_jax.errors import InputError
from e2wm_jax.experience.search import moves as rules_of_moves
from e2wm_jax.experience.search.moves import DOUBLE, SINGLE, Moves
from e2wm_jax.worlds.household.arrays import HOLDING, RELATIONS, words_of
from e2wm_jax.worlds.household.facts import split_fact
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.homes.scenes import STATES
from e2wm_jax.worlds.household.native import tables as K
from e2wm_jax.worlds.household.native.edges import bit, edge_relation, edge_source, edge_target, own_row
from e2wm_jax.worlds.household.native.jit import jit
from e2wm_jax.worlds.household.native.tables import targets_at
from e2wm_jax.worlds.household.native.world import ArrayState, ArrayWorld
from e2wm_jax.worlds.household.rules import VERB_INDEX

MOST_FACTS = 62  # 1 << F must fit into int64
STATE_FACT, EDGE_FACT, HAND_FACT, NO_FACT = range(4)


class Task(NamedTuple):
    """A goal and its moves for compiled code."""

    first_rooms: np.ndarray  # int64: the rooms that one may always walk to
    class_start: np.ndarray  # [K + 1] where the nodes of each class of the moves begin in class_nodes
    class_nodes: np.ndarray
    class_of: np.ndarray  # [N] number of a node's class
    verbs: np.ndarray  # [15 + 3, 4]: verb, state needed or -1, must be held, must hold anything
    suits: np.ndarray  # [15 + 3, 2, W] uint32: what fits as first, second thing
    facts: np.ndarray  # [F, 2]: kind, and the state, relation or hand
    sets: np.ndarray  # [F, 2, W] uint32: nodes with the state that had it not; or sources and targets
    start: np.ndarray  # the initial state


def task_of(world: ArrayWorld, state: ArrayState, goal: Goal) -> Task:
    """A goal in numbers.

    Raises:
        InputError: for a goal of more facts than a search can hold.
    """
    facts = sorted(set(goal.facts))
    if len(facts) > MOST_FACTS:
        raise InputError(f"goal of {goal.task!r}: {len(facts)} facts, the array engine's search takes {MOST_FACTS}")
    scene, number, words = state.base.scene, state.base.number, state.base.tables.words
    moves = Moves.of(world, scene, goal.items)
    groups = [[number[node.id] for node in scene.by_class[name]] for name in moves.classes]
    classes = {name: index for index, name in enumerate(scene.by_class)}
    nodes = list(scene.nodes.values())

    def fitting(verb: str, position: int) -> np.ndarray:
        chosen = [index for index, node in enumerate(nodes) if rules_of_moves.suits(verb, position, node)]
        return words_of(chosen, words)

    both = (*SINGLE, *DOUBLE)
    verbs = [
        (
            VERB_INDEX[verb.upper()],
            STATES.index(rules_of_moves.NEEDS_STATE[verb]) if verb in rules_of_moves.NEEDS_STATE else -1,
            verb in rules_of_moves.NEEDS_HOLDING,
            verb in rules_of_moves.NEEDS_HANDS_FULL,
        )
        for verb in both
    ]
    kinds, sets = zip(*(_fact(state, fact) for fact in facts), strict=True) if facts else ((), ())
    return Task(
        first_rooms=np.array([number[room.id] for room in moves.rooms], np.int64),
        class_start=np.cumsum([0, *map(len, groups)]).astype(np.int64),
        class_nodes=np.array([node for group in groups for node in group], np.int64),
        class_of=np.array([classes[node.class_name] for node in nodes], np.int64),
        verbs=np.array(verbs, np.int64),
        suits=np.stack([[fitting(verb, place) for place in (0, verb in DOUBLE)] for verb in both]),
        facts=np.array(kinds, np.int64).reshape(-1, 2),
        sets=np.array(sets, np.uint32).reshape(-1, 2, words),
        start=state.base.tables.start,
    )


def _fact(state: ArrayState, fact: str) -> tuple[tuple[int, int], list[np.ndarray]]:
    """(kind, what) of a fact and its two sets."""
    scene, number, words = state.base.scene, state.base.number, state.base.tables.words
    first, second, *rest = split_fact(fact)
    sources = list(scene.by_class.get(first, ()))
    if not rest:
        fresh = [number[node.id] for node in sources if second not in node.states]
        return (STATE_FACT, STATES.index(second)), [words_of(fresh, words)] * 2
    ends = [number[node.id] for node in scene.by_class.get(rest[0], ())]
    worn = {a for a, relation, b in scene.edges if relation == second == "ON" and b == scene.character.id}
    starts = [number[node.id] for node in sources if node.id not in worn]
    sets = [words_of(starts, words), words_of(ends, words)]
    if second in HOLDING:
        return (HAND_FACT, HOLDING.index(second)), sets
    if second in RELATIONS:
        return (EDGE_FACT, RELATIONS.index(second)), sets
    return (NO_FACT, 0), sets


@jit
def holding(T, task, s):
    """The facts that hold by a change since the beginning, as bits."""
    found = 0
    words = T.n[K.WORDS]
    for f in range(len(task.facts)):
        kind, what = task.facts[f]
        true = False
        if kind == STATE_FACT:
            for w in range(words):
                if s[T.n[K.AT_STATES] + what * words + w] & task.sets[f, 0, w]:
                    true = True
        elif kind == HAND_FACT:
            thing = np.int64(s[T.n[K.AT_HANDS] + what]) - 1
            true = (
                thing >= 0 and bit(task.sets[f, 1], K.START, thing) and bit(task.sets[f, 0], K.START, T.n[K.CHARACTER])
            )
        elif kind == EDGE_FACT:
            own = own_row(T, what)
            if own >= 0:
                as_source = bit(task.sets[f, 0], K.START, T.n[K.CHARACTER])
                as_target = what == K.CLOSE and bit(task.sets[f, 1], K.START, T.n[K.CHARACTER])
                for w in range(words):
                    fresh = s[own + w] & ~task.start[own + w]
                    if (as_source and fresh & task.sets[f, 1, w]) or (as_target and fresh & task.sets[f, 0, w]):
                        true = True
            for slot in range(T.n[K.AT_EDGES], T.n[K.AT_EDGES] + s[T.n[K.AT_COUNT]]):
                if edge_relation(s[slot]) == what:
                    a, b = edge_source(s[slot]), edge_target(s[slot])
                    there = bit(task.sets[f, 0], K.START, a) and bit(task.sets[f, 1], K.START, b)
                    if what == K.CLOSE:
                        there = there or (bit(task.sets[f, 0], K.START, b) and bit(task.sets[f, 1], K.START, a))
                    if there and not bit(T.bits, targets_at(T, what, a), b):
                        true = True
        if true:
            found |= 1 << f
    return found


@jit
def count_bits(number):
    count = 0
    while number:
        number &= number - 1
        count += 1
    return count
