"""Plans for any number of goals, searched for side by side on the default JAX device by `mcts`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.experience.search.batched.goal import Task, TaskSizes, task_on_host, task_sizes
from e2wm_jax.experience.search.batched.mcts import advance
from e2wm_jax.experience.search.batched.moves import unpacked
from e2wm_jax.experience.search.batched.tree import TENTHS, Best, Problem, Search, reward_tenths, start
from e2wm_jax.experience.search.native import goal as native_goal
from e2wm_jax.experience.search.native import plans as native_plans
from e2wm_jax.experience.search.planner import Plan, Reward
from e2wm_jax.worlds.household.arrays import INSIDE, Tables
from e2wm_jax.worlds.household.batched.tables import Array, DeviceTables, Sizes, device_tables, sizes_of
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.native.world import ArrayState, ArrayWorld

TICKS = 256  # between two looks at what is finished; a simulation takes about thirty
SPARE_SLOTS = 24  # for edges that come into being: random play of 40 lines has 16 at most


class Query(NamedTuple):
    """A goal to be searched for. Its plan depends on this and the options of the search, not on what else is asked."""

    scene: Scene
    goal: Goal
    seed: int


class _Prepared(NamedTuple):
    """A query in numbers, on the host."""

    query: Query
    state: ArrayState
    task: native_goal.Task


class _Shapes(NamedTuple):
    """What a compiled search is made for."""

    tables: Sizes
    task: TaskSizes
    tidy: bool  # `DeviceTables.tidy` of all
    nodes: int
    max_depth: int


class _Result(NamedTuple):
    """What is wanted of searches [G], on the host."""

    best: Best
    simulations: np.ndarray
    nodes: np.ndarray
    open: np.ndarray
    active: np.ndarray


def plans(
    dialect: str,
    queries: Sequence[Query],
    *,
    batch: int = 64,
    simulations: int = 20_000,
    max_depth: int = 25,
    reward: Reward = "official",
    shorten: bool = False,
    nodes: int = 0,
) -> Iterator[tuple[int, Plan]]:
    """Search for all goals, ``batch`` at a time; where one is done the next takes its place. Every plan is carried out
    on the exact engine: what does not work there is cut off, and the reward is what it earns there.

    Args:
        nodes: room for so many nodes in a tree at least, to compile once for several numbers of simulations.

    Yields:
        (index in ``queries``, plan), as they are found.

    Raises:
        InputError: for a scene or a goal that the engine cannot express.
    """
    if not queries:
        return
    world = ArrayWorld(dialect)
    prepared = [_prepared(world, query) for query in queries]
    shapes = _shapes(prepared, max(nodes, simulations + 1), max_depth)
    slots, waiting = min(batch, len(queries)), iter(range(len(queries)))
    problems, searches = _idle(prepared[0], shapes, slots, simulations, reward)
    occupants = [-1] * slots
    while True:
        found = jax.device_get(_result(searches))
        for slot in np.flatnonzero(~found.active).tolist():
            if (index := occupants[slot]) >= 0:
                one = jax.tree.map(lambda part, slot=slot: part[slot], found)
                yield index, _plan(prepared[index], one, reward, shorten)
            occupants[slot] = next(waiting, -1)
            if (index := occupants[slot]) >= 0:
                loaded = _loaded(prepared[index], shapes)
                problems, searches = _put(problems, searches, jnp.int32(slot), *loaded, shapes.max_depth)
        if max(occupants) < 0:
            return
        searches = _advance(problems, searches, jnp.int32(TICKS))


# To the device


def _prepared(world: ArrayWorld, query: Query) -> _Prepared:
    state = world.initial(query.scene)
    return _Prepared(query, state, native_goal.task_of(world, state, query.goal))


def _shapes(prepared: Sequence[_Prepared], nodes: int, max_depth: int) -> _Shapes:
    """Shapes into which all of these fit, rounded so that other goals often have the same."""
    every = [one.state.base.tables for one in prepared]
    worn = max(int(tables.start[tables.layout.count]) for tables in every)
    exact = sizes_of(*every, slots=32 * -(-(worn + SPARE_SLOTS) // 32))
    sizes = exact._replace(rooms=_up(exact.rooms, 4), doors=_up(exact.doors, 4))
    tasks = task_sizes([one.task for one in prepared])
    tidy = all(map(_is_tidy, every))
    return _Shapes(sizes, tasks._replace(classes=_up(tasks.classes, 4)), tidy, nodes, max_depth)


def _is_tidy(tables: Tables) -> bool:
    """`DeviceTables.tidy`, without making these."""
    directly = np.any(tables.targets[INSIDE] & tables.rooms, axis=-1) | (tables.room_number >= 0)
    return bool(directly.all())


def _up(number: int, to: int) -> int:
    """The next multiple of ``to``."""
    return to * -(-number // to)


def _loaded(prepared: _Prepared, shapes: _Shapes) -> tuple[DeviceTables, Task, Array]:
    """The tables, task and random key of one goal."""
    tables = prepared.state.base.tables
    task = task_on_host(prepared.task, shapes.task, shapes.tables.nodes, tables.character)
    key = np.array([prepared.query.seed >> 32 & 0xFFFFFFFF, prepared.query.seed & 0xFFFFFFFF], np.uint32)
    scene = replace(device_tables(tables, shapes.tables), tidy=shapes.tidy)
    return scene, *jax.device_put((task, key))


def _idle(prepared: _Prepared, shapes: _Shapes, slots: int, simulations: int, reward: Reward) -> tuple[Problem, Search]:
    """So many searches that have ended already."""
    tables, task, key = _loaded(prepared, shapes)
    problem = Problem(tables, task, jnp.asarray(reward_tenths(reward)), jnp.int32(simulations))
    make = partial(start, nodes=shapes.nodes, max_depth=shapes.max_depth)

    def empty(leaf: Array) -> Array:
        return jnp.zeros((slots, *leaf.shape), leaf.dtype)

    search = jax.tree.map(empty, jax.eval_shape(make, problem, key))
    return problem._replace(tables=jax.tree.map(empty, tables), task=jax.tree.map(empty, task)), search


@partial(jax.jit, static_argnums=6, donate_argnums=(0, 1))
def _put(
    problems: Problem, searches: Search, slot: Array, tables: DeviceTables, task: Task, key: Array, max_depth: int
) -> tuple[Problem, Search]:
    """Begin another search in place of one."""
    problem = problems._replace(tables=tables, task=task)
    search = start(problem, key, nodes=searches.tree.worth.shape[1], max_depth=max_depth)

    def put(batch: Array, one: Array) -> Array:
        return batch.at[slot].set(one)

    scenes = jax.tree.map(put, (problems.tables, problems.task), (tables, task))
    return problems._replace(tables=scenes[0], task=scenes[1]), jax.tree.map(put, searches, search)


_advance = partial(jax.jit, donate_argnums=1)(advance)


# And back


def _result(searches: Search) -> _Result:
    return _Result(searches.best, searches.simulations, searches.tree.size, searches.tree.open, searches.active)


def _plan(prepared: _Prepared, found: _Result, reward: Reward, shorten: bool) -> Plan:
    """What one search found, as far as it works on the exact engine."""
    native, task = prepared.state.base.native, prepared.task
    kind = ("official", "paper").index(reward)
    best, most = unpacked(found.best.moves), int(found.best.length)
    scratch = native_plans.scratch_of(native, task)
    for length in range(most, -1, -1):
        works, total = native_plans.total_of(native, task, best, length, kind, scratch)
        if works:
            break
    exact = length == most and round(TENTHS * total) == found.best.total
    if shorten:
        length, total = native_plans.shorten_best(native, task, best, length, total, kind)
    wanted = native_plans.facts_to_gain(native, task)
    proved = exact and native_plans.is_proved(found.open.astype(np.int64), length, total, wanted, kind)
    searched = (best, length, total, int(found.simulations), int(found.nodes), bool(proved))
    return native_plans.plan_of(prepared.query.scene, prepared.state, searched)
