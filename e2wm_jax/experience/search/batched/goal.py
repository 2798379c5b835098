"""A goal of the batched search as arrays: its facts, and the moves that could ever make sense.

Every such move is a candidate, with a number; `moves` tells which make sense in a state. Letters as in
`batched.tables`; also M candidates and F facts, both multiples of 32, L classes of things that the moves deal with.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from e2wm_jax.errors import InputError
from e2wm_jax.experience.search.moves import DOUBLE, SINGLE
from e2wm_jax.experience.search.native import goal as native_goal
from e2wm_jax.experience.search.native.goal import EDGE_FACT, HAND_FACT, STATE_FACT
from e2wm_jax.worlds.household.arrays import ALL_STATES, CLOSE
from e2wm_jax.worlds.household.batched.tables import Array
from e2wm_jax.worlds.household.rules import VERB_INDEX

WALK, OPEN, STAND_UP = (VERB_INDEX[verb] for verb in ("WALK", "OPEN", "STANDUP"))
# What a class offers in a state, a bit each: its things as X of the single verbs; as Y of the double ones with what the
# right hand holds, and the left hand; a walk to it. A row of its own: a walk to a room, standing up.
RIGHT = len(SINGLE)
LEFT = RIGHT + len(DOUBLE)
TO_CLASS = LEFT + len(DOUBLE)
TO_ROOM, UP, NEVER = TO_CLASS + 1, TO_CLASS + 2, 31


class Task(NamedTuple):
    """A goal and its moves, on the device."""

    row: Array  # [M] int32: class of a candidate; L for those of no class
    bit: Array  # [M] int32: RIGHT, ..., NEVER
    verb: Array  # [M] int32: in `rules.RULES`
    node: Array  # [M] int32: the room
    classes: Array  # [L, W] uint32
    class_of: Array  # [N] int32: number of a node's class, -1 beyond the scene
    fits: Array  # [N] uint32: which verbs a node suits as X, then which double verbs as Y
    row_of: Array  # [F] int32: of `_rows`, where an edge or state of the character's shows a fact
    watched: Array  # [F, W] uint32: the nodes that show it there
    sources: Array  # [N, F / 32] uint32: the facts whose edges may lead from a node
    targets: Array  # [N, F / 32] uint32: or to it; what the hands are to hold is a target
    of_relation: Array  # [4 + 2, F / 32] uint32: the facts of each relation and hand
    every: Array  # [F / 32] uint32: all facts


class TaskSizes(NamedTuple):
    """What the shapes of a `Task` depend on, besides N: M, L, F."""

    moves: int
    classes: int
    facts: int


def task_sizes(tasks: Sequence[native_goal.Task]) -> TaskSizes:
    """The smallest sizes into which each of these tasks fits."""
    moves, classes, facts = zip(
        *((len(_candidates(t)), len(t.class_start) - 1, len(t.facts)) for t in tasks), strict=True
    )
    return TaskSizes(32 * -(-max(moves) // 32), max(1, *classes), 32 * max(1, -(-max(facts) // 32)))


def task_on_host(task: native_goal.Task, sizes: TaskSizes, nodes: int, character: int) -> Task:
    """The arrays of a task in a scene padded to ``nodes``, to be stacked and put on a device.

    Raises:
        InputError: if the task does not fit into the sizes.
    """
    candidates = _candidates(task)
    found = TaskSizes(len(candidates), len(task.class_start) - 1, len(task.facts))
    if any(size > most for size, most in zip(found, sizes, strict=True)):
        raise InputError(f"a task of {found} does not fit into {sizes}")
    table = np.full((sizes.moves, 4), (0, NEVER, 0, 0), np.int32)
    table[: len(candidates)] = candidates
    table[table[:, 0] < 0, 0] = sizes.classes
    words, count = nodes // 32, len(task.class_of)
    classes = np.zeros((sizes.classes, 32 * words), bool)
    for number, (start, end) in enumerate(zip(task.class_start, task.class_start[1:], strict=False)):
        classes[number, task.class_nodes[start:end]] = True
    suits = np.concatenate([task.suits[:, 0], task.suits[len(SINGLE) :, 1]])  # [V, W]
    row, bit, verb, node = table.T
    return Task(
        row=row,
        bit=bit,
        verb=verb,
        node=node,
        classes=_bits(classes),
        class_of=np.pad(task.class_of.astype(np.int32), (0, nodes - count), constant_values=-1),
        fits=_bits(np.pad(_flags(suits).T, [(0, 32 * words - 32 * suits.shape[1]), (0, 32 - len(suits))]))[:, 0],
        **_facts(task, sizes.facts, words, character),
    )


def _candidates(task: native_goal.Task) -> list[tuple[int, int, int, int]]:
    """(class or -1, bit, verb, room) of every move that could make sense."""
    double = range(len(SINGLE), len(SINGLE) + len(DOUBLE))
    found = [(-1, UP, STAND_UP, 0), *((-1, TO_ROOM, WALK, int(room)) for room in task.first_rooms)]
    for number, (start, end) in enumerate(zip(task.class_start, task.class_start[1:], strict=False)):
        nodes = task.class_nodes[start:end]
        suited: np.ndarray = np.any(_flags(task.suits)[..., nodes], axis=-1)  # [V, 2]
        found.append((number, TO_CLASS, WALK, 0))
        found += [(number, verb, int(task.verbs[verb, 0]), 0) for verb in range(len(SINGLE)) if suited[verb, 0]]
        for place, verb in enumerate(double):
            if suited[verb, 1]:
                found += [(number, hand + place, int(task.verbs[verb, 0]), 0) for hand in (RIGHT, LEFT)]
    return found


def _facts(task: native_goal.Task, facts: int, words: int, character: int) -> dict[str, np.ndarray]:
    """The fields of `Task` that say what is asked for."""
    count, kept = len(task.facts), min(words, task.sets.shape[-1])
    row_of, watched = np.zeros(facts, np.int32), np.zeros((facts, words), np.uint32)
    ends = np.zeros((2, 32 * words, facts), bool)  # [source or target, N, F]
    of_relation = np.zeros((6, facts), bool)
    for number, (kind, what) in enumerate(task.facts):
        both = task.sets[number]
        source, target = _flags(both)[:, character]
        if kind == STATE_FACT:
            row_of[number], watched[number, :kept] = what, both[0]
        elif kind == EDGE_FACT:
            row_of[number] = ALL_STATES + what
            watched[number, :kept] = both[1] * source | both[0] * (target and what == CLOSE)
            of_relation[what, number] = True
        elif kind == HAND_FACT and source:
            of_relation[4 + what, number] = True
        ends[:, : 32 * kept, number] = _flags(both)
    every = np.arange(facts) < count
    return {
        "row_of": row_of,
        "watched": watched,
        "sources": _bits(ends[0]),
        "targets": _bits(ends[1]),
        "of_relation": _bits(of_relation),
        "every": _bits(every),
    }


def _flags(words: np.ndarray) -> np.ndarray:
    """[..., 32 k] bool of words [..., k]."""
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little").astype(bool)


def _bits(flags: np.ndarray) -> np.ndarray:
    """[..., k] words of flags [..., 32 k]."""
    return np.ascontiguousarray(np.packbits(flags, axis=-1, bitorder="little")).view(np.uint32)
