"""`e2wm bench search`: simulations per second and what they find, on one core, against the reference search."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

from e2wm_jax.bench.harness import check_least, print_table
from e2wm_jax.bench.settings import SearchBenchSettings
from e2wm_jax.errors import InputError
from e2wm_jax.experience.search.choose import Method, compile_engine, search
from e2wm_jax.experience.search.planner import Plan
from e2wm_jax.running.progress import progress_bar
from e2wm_jax.worlds.household import goals
from e2wm_jax.worlds.household.actions import Action
from e2wm_jax.worlds.household.engine import open_world
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.homes import robothow, scenes
from e2wm_jax.worlds.household.homes.scenes import Scene


@dataclass
class _Tally:
    """What one way of finding plans came to."""

    simulations: int = 0
    seconds: float = 0.0
    reached: int = 0
    facts: int = 0
    lengths: list[int] = field(default_factory=list)
    of_reached: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    def add(self, world: Any, scene: Scene, goal: Goal, plan: Plan) -> None:
        """A plan that a search found."""
        self.simulations += plan.simulations
        self.rewards.append(plan.total_reward)
        self.score(world, scene, goal, plan.actions)

    def score(self, world: Any, scene: Scene, goal: Goal, actions: tuple[Action, ...]) -> None:
        """Play the lines; those that fail are passed over, as people's programs need it in vh23."""
        state = world.initial(scene)
        for action in actions:
            state, _ = world.step(state, action)
        achieved = world.gained_test(scene, goal.facts)(state)
        self.facts += len(achieved)
        self.lengths.append(len(actions))
        if len(achieved) == len(set(goal.facts)):
            self.reached += 1
            self.of_reached.append(len(actions))

    def to_json(self, goals: int, facts: int) -> dict[str, Any]:
        return {
            "simulations_per_second": round(self.simulations / self.seconds, 1) if self.seconds else None,
            "seconds_per_goal": round(self.seconds / goals, 4),
            "goals_reached": round(self.reached / goals, 4),
            "facts_achieved": round(self.facts / facts, 4),
            "mean_lines": round(sum(self.lengths) / goals, 3),
            "mean_lines_where_reached": round(sum(self.of_reached) / max(len(self.of_reached), 1), 3),
            "mean_reward": round(sum(self.rewards) / len(self.rewards), 4) if self.rewards else None,
        }


def run(settings: SearchBenchSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints: for each search its speed, the shares of goals wholly reached and
    of facts achieved at the end of the plan, and the length of plans; the people's own programs beside them.

    Raises:
        InputError: for settings out of range or an unknown dialect, or if virtualhome-eval is not installed.
    """
    check_least(settings, goals=1, search_batch=1, simulations=1, reference_simulations=0, max_depth=1)
    if unknown := set(settings.methods) - set(get_args(Method)):
        raise InputError(f"--methods {' '.join(sorted(unknown))}: choose among {', '.join(get_args(Method))}")
    array = open_world("array", settings.dialect)
    options = {key: getattr(settings, key) for key in ("max_depth", "reward", "seed", "shorten")}

    def searching(world: Any, simulations: int, method: str) -> Callable[[Scene, Goal], Any]:
        return lambda scene, goal: search(world, scene, goal, method=method, simulations=simulations, **options)  # type: ignore[arg-type]

    ways = {
        f"{method}, compiled": searching(array, settings.simulations, method)
        for method in settings.methods
        if method != "mcts-batched"
    }
    if settings.dialect == "vh23" and settings.reference_simulations:
        executor = open_world("virtualhome", "vh23")
        ways["mcts on virtualhome's executor"] = searching(executor, settings.reference_simulations, "mcts")
    compile_engine("mcts", "best-first")
    tallies = {name: _Tally() for name in ways} | {"people's programs": _Tally()}
    programs = goals.robothow_order(settings.seed)[: settings.goals]
    facts = 0
    with progress_bar("bench search", len(programs), "goal") as bar:
        for program in programs:
            goal = goals.robothow_goal(program)
            scene = scenes.load(goal.scene)
            facts += len(set(goal.facts))
            for name, find in ways.items():
                started = time.perf_counter()
                plan = find(scene, goal)
                tallies[name].seconds += time.perf_counter() - started
                tallies[name].add(array, scene, goal, plan)
            tallies["people's programs"].score(array, scene, goal, robothow.program(program).script)
            bar.update()
    if "mcts-batched" in settings.methods:
        people = tallies.pop("people's programs")
        tallies["mcts-batched, in JAX"] = _side_by_side(array, programs, settings, options)
        tallies["people's programs"] = people
    rows = {name: tally.to_json(len(programs), facts) for name, tally in tallies.items()}
    reference = rows.get("mcts on virtualhome's executor", {}).get("simulations_per_second")
    for row in rows.values():
        if reference and row["simulations_per_second"]:
            row["ratio"] = round(row["simulations_per_second"] / reference, 1)
    return {"goals": len(programs), "dialect": settings.dialect, "simulations": settings.simulations, "searches": rows}


def _side_by_side(world: Any, programs: list[str], settings: SearchBenchSettings, options: dict[str, Any]) -> _Tally:
    """E2WM's search for all goals on JAX's default device, once compiled."""
    from e2wm_jax.experience.search.batched.plans import Query, plans  # imports jax

    wanted = [goals.robothow_goal(program) for program in programs]
    seed, options = options["seed"], {**options, "batch": settings.search_batch}
    del options["seed"]
    queries = [Query(scenes.load(goal.scene), goal, seed) for goal in wanted]

    def found(simulations: int) -> list[tuple[int, Plan]]:
        return list(
            plans(settings.dialect, queries, simulations=simulations, nodes=settings.simulations + 1, **options)
        )

    found(1)
    tally, started = _Tally(), time.perf_counter()
    planned = found(settings.simulations)
    tally.seconds = time.perf_counter() - started
    for index, plan in planned:
        tally.add(world, queries[index].scene, wanted[index], plan)
    return tally


def show(result: dict[str, Any]) -> None:
    """The report as a table on stdout."""
    print(f"{result['goals']} goals, dialect {result['dialect']}, {result['simulations']} simulations")
    columns = {
        "simulations_per_second": "sims/s",
        "ratio": "ratio",
        "seconds_per_goal": "s/goal",
        "goals_reached": "reached",
        "facts_achieved": "facts",
        "mean_lines": "lines",
        "mean_reward": "reward",
    }
    rows = [[name, *map(row.get, columns)] for name, row in result["searches"].items()]
    print_table(["", *columns.values()], rows)
