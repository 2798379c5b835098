"""Examples out of nothing but a seed: simulate a few episodes, then put them into words.

Examples are made in units: a unit simulates its own episodes, asks about each, and shows some as solved examples of
the others. A unit depends on (task, seed, its number) alone, so any process can make it, at any time, any number of
times.
"""

import random
from collections import Counter
from collections.abc import Iterator
from functools import cache, lru_cache

from e2wm_jax.data.online.held_out import held_out
from e2wm_jax.data.online.names import OnlineTask
from e2wm_jax.errors import InputError
from e2wm_jax.experience.policies import Explorer, Planner
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.example import Generation
from e2wm_jax.tasks.household import counting, plan, tracking
from e2wm_jax.tasks.household.counting import CountQuestion
from e2wm_jax.tasks.household.plan import TaskPlan
from e2wm_jax.worlds.household import goals
from e2wm_jax.worlds.household.engine import Engine, open_world
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.homes.scenes import Scene

UNIT = 8  # examples made together
_ENGINE: Engine = "array"
# Counting: as `e2wm collect` explores, in two houses; twice as many stories as examples, so that solved ones vary.
_SCENES, _EPISODES, _EXPLORER = 2, 10, Explorer()
_STORIES = 2 * UNIT
_ROUNDS = 8  # of episodes or of goals, until a world counts as one without material


def examples(task: OnlineTask, *, seed: int, unit: int) -> list[Generation]:
    """The `UNIT` examples of one unit. Equal arguments, equal examples.

    Raises:
        InputError: if the simulator or a scene is missing, or nothing can be asked about the given scenes.
    """
    rng = random.Random(f"{seed}/{task.name}/{unit}")
    made = {"plan_gen": _plan_gen, "act_recog": _act_recog, "count": _count, "obj_move": _obj_move}[task.task](
        task, rng
    )
    assert len(made) == UNIT, f"{task.name}: unit {unit} has {len(made)} examples"
    return made


def _obj_move(task: OnlineTask, rng: random.Random) -> list[Generation]:
    del task
    return tracking.obj_move_path(rng, size=UNIT, seen=set())


def _count(task: OnlineTask, rng: random.Random) -> list[Generation]:
    questions: list[CountQuestion] = []
    for _ in range(_ROUNDS):
        for trajectory in _explored(task, rng):
            questions += counting.questions(trajectory, rng)
        stories = [counting.put_into_words(q, rng) for q in counting.draw(questions, size=_STORIES, rng=rng)]
        made = counting.count(stories, size=UNIT, rng=rng)
        if len(made) == UNIT:
            return made
    raise InputError(
        f"--data {task.name}: {_ROUNDS * _EPISODES} episodes gave too few stories to count in; give scenes with things "
        "to carry and furniture to put them on"
    )


def _explored(task: OnlineTask, rng: random.Random) -> Iterator[Trajectory]:
    """Random episodes in a few of the task's scenes."""
    world = open_world(_ENGINE, task.dialect)
    houses = [rng.choice(task.scenes or _robothow()) for _ in range(_SCENES)]
    for number in range(_EPISODES):
        seed = rng.getrandbits(48)
        yield _EXPLORER.play(world, _scene(houses[number % _SCENES]), None, seed=seed, name=f"random-{seed:012x}")


def _plan_gen(task: OnlineTask, rng: random.Random) -> list[Generation]:
    return plan.plan_gen(_plans(task, rng), size=UNIT, rng=rng)


def _act_recog(task: OnlineTask, rng: random.Random) -> list[Generation]:
    return plan.act_recog(_plans(task, rng), size=UNIT, rng=rng)


def _plans(task: OnlineTask, rng: random.Random) -> list[TaskPlan]:
    """`UNIT` plans that reach their goals, of different activities as far as there are any, and of none that is held
    out: the next one drawn stands in its place."""
    found: list[TaskPlan] = []
    excluded = held_out(task.exclude)
    outcome: Counter[str] = Counter()
    for program in _programs(rng):
        seed = rng.getrandbits(48)
        plans, reasons = _selected(task, program, 0 if task.search == "best-first" else seed)  # no chance is involved
        outcome += reasons
        if any(p in excluded for p in plans):
            outcome["held out"] += 1
            continue
        # No two with one question, nor one plan for one activity: neither could be told from the other.
        found += [p for p in plans if not any(p.question == q.question or _same_answer(p, q) for q in found)]
        if len(found) == UNIT:
            return found
    raise InputError(f"--data {task.name}: too few plans reach their goals ({dict(outcome)}); raise simulations")


def _same_answer(first: TaskPlan, second: TaskPlan) -> bool:
    return (first.task, first.text) == (second.task, second.text)


def _programs(rng: random.Random) -> Iterator[str]:
    """RobotHow programs, all activities in turn and equally often: as in the official sets, whatever the numbers of
    programs."""
    titles = _titles()
    for _ in range(_ROUNDS):
        for title in rng.sample(sorted(titles), len(titles)):
            yield rng.choice(titles[title])


# With best-first search a program has one plan. These are small.
@lru_cache(maxsize=1024)
def _selected(task: OnlineTask, program: str, seed: int) -> tuple[list[TaskPlan], Counter[str]]:
    return plan.select([_planned(task, program, seed)])


def _planned(task: OnlineTask, program: str, seed: int) -> Trajectory:
    """Search for a plan of the program's goal, and carry it out."""
    goal = _goal(program)
    planner = Planner(task.search, task.simulations)
    world = open_world(_ENGINE, task.dialect)
    return planner.play(world, _scene(goal.scene), goal, seed=seed, name=f"mcts-{seed:012x}")


# Graphs take longer to read than a plan takes to find. Those of RobotHow share their nodes and edges, and with their
# tables take 0.3 MB each: all are kept.
@lru_cache(maxsize=640)
def _scene(name: str) -> Scene:
    return scenes.load(name)


@cache
def _goal(program: str) -> Goal:
    return goals.robothow_goal(program)


@lru_cache(maxsize=1)
def _robothow() -> tuple[str, ...]:
    return tuple(f"robothow:{program}" for program in scenes.program_ids())


@lru_cache(maxsize=1)
def _titles() -> dict[str, list[str]]:
    """Activity -> its programs."""
    titles: dict[str, list[str]] = {}
    for program in scenes.program_ids():
        titles.setdefault(scenes.program_title(program).lower(), []).append(program)
    return titles
