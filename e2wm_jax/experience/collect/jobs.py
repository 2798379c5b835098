"""The episodes of `collect`: what there is to do, and doing it. An episode depends on its job alone."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e2wm_jax.errors import InputError
from e2wm_jax.experience.explore.explorer import Style
from e2wm_jax.experience.policies import Explorer, Planner
from e2wm_jax.experience.search.choose import Method
from e2wm_jax.experience.search.planner import Plan, Reward
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.worlds.choose import WorldName
from e2wm_jax.worlds.household import goals
from e2wm_jax.worlds.household.engine import Engine, open_world
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.homes import scenes

ROBOTHOW = "robothow"  # as --goals: those of the RobotHow programs
PROCEDURAL = "procedural"  # as --scene: a household of its own for each episode
_PREPARED = 2  # goals per slot of a batched search that are taken up together, to follow each other in it


@dataclass(frozen=True)
class CommonSettings:
    """Of every policy."""

    out: Path
    """Directory of experiences, scenes of your own included; an interrupted collection there goes on."""
    policy: Literal["mcts", "random"]
    """mcts: a search towards a goal; random: exploration."""
    world: WorldName = "household"
    """Where to act."""
    episodes: int | None = None
    """How many; by default one for each goal (mcts) or scene (random)."""
    scene: tuple[str, ...] = ()
    """Scenes in turn, or procedural; by default those of the RobotHow programs."""
    dialect: str = "vh23"
    """Rules of the world: vh19, vh23 or e2wm."""
    engine: Engine = "array"
    """array, for all dialects, or virtualhome: the installed executor, vh23."""
    workers: int = os.cpu_count() or 1
    """Processes."""
    seed: int = 0
    """Of all that is random."""


@dataclass(frozen=True)
class PlannerSettings:
    """Of `policies.Planner`, and what it is to reach."""

    goals: str | None = None
    """mcts: robothow (the default) or a file of goals, whose scenes lie beside it or are found from here."""
    search: Method = "mcts"
    """mcts: as E2WM's; best-first: more goals and shorter plans; mcts-batched: on a GPU."""
    search_batch: int = 256
    """mcts-batched: goals side by side."""
    simulations: int = 20_000
    """mcts: of one search."""
    max_depth: int = 25
    """mcts: steps from the start, played and imagined, at most."""
    reward: Reward = "official"
    """mcts: as in the official code, or as in the paper."""
    shorten: bool = True
    """mcts: leave out moves that the search did not need (E2WM relies on 20,000 simulations)."""

    @property
    def planner(self) -> Planner:
        """The policy of these settings."""
        return Planner(self.search, self.simulations, self.max_depth, self.reward, self.shorten)


@dataclass(frozen=True)
class ExplorerSettings:
    """Of `policies.Explorer`."""

    episode_length: int = 20
    """random: steps of an episode."""
    style: Style = "carry"
    """random: carry things to furniture (counting), track people who carry things about, or uniform."""

    @property
    def explorer(self) -> Explorer:
        """The policy of these settings."""
        return Explorer(self.episode_length, self.style)


@dataclass(frozen=True)
class CollectSettings(ExplorerSettings, PlannerSettings, CommonSettings):
    """What to collect.  Everything but --out, --workers and --search-batch decides the content of the episodes."""


@dataclass(frozen=True)
class EpisodeJob:
    """One episode: everything a worker needs."""

    episode: int
    # A goal, or the name of a scene: to explore, or prepared for a RobotHow program whose goal is to be reached.
    subject: Goal | str
    settings: CollectSettings

    @property
    def seed(self) -> int:
        """The episode's own."""
        digest = hashlib.sha256(f"{self.settings.seed}:{self.episode}".encode()).digest()
        return int.from_bytes(digest[:6], "big")

    @property
    def name(self) -> str:
        """The id of its trajectory."""
        return f"{self.settings.policy}-{self.settings.seed}-{self.episode:06d}"


def subjects(settings: CollectSettings) -> list[Goal | str]:
    """Goals or scenes, in turn; every scene named by the user is loaded once to see that it can be."""
    if settings.policy == "mcts" and settings.goals not in (None, ROBOTHOW):
        return list(goals.read_goals(Path(settings.goals)))
    for name in settings.scene:
        if name != PROCEDURAL:
            scenes.load(name)
    if settings.policy == "random" and settings.scene:
        return list(settings.scene)
    programs = goals.robothow_order(settings.seed)
    if not settings.scene:
        return [f"{scenes.ROBOTHOW}{program}" for program in programs]
    # Every program in every scene, both changing from one episode to the next.
    places = len(settings.scene)
    return [
        f"{settings.scene[(turn + start) % places]}{scenes.PREPARED}{program}"
        for start in range(places)
        for turn, program in enumerate(programs)
    ]


def play(job: EpisodeJob) -> Trajectory:
    """Play one episode. Depends on nothing but the job."""
    settings = job.settings
    if settings.policy == "mcts":
        goal, skipped = _goal_of(job)
        return plan_episode(goal, settings, seed=job.seed, name=job.name, skipped=skipped)
    world = open_world(settings.engine, settings.dialect)
    return settings.explorer.play(world, scenes.load(_scene_of(job)), None, seed=job.seed, name=job.name)


def play_side_by_side(jobs: Sequence[EpisodeJob]) -> Iterator[tuple[EpisodeJob, Trajectory]]:
    """`play` of jobs of one run whose search is mcts-batched, as they are finished."""
    from e2wm_jax.experience.search.batched import plans as batched_plans  # imports jax

    settings = jobs[0].settings
    for start in range(0, len(jobs), _PREPARED * settings.search_batch):
        some = jobs[start : start + _PREPARED * settings.search_batch]
        goals_of = [_goal_of(job) for job in some]
        queries = [
            batched_plans.Query(scenes.load(goal.scene), goal, job.seed)
            for job, (goal, _) in zip(some, goals_of, strict=True)
        ]
        found = batched_plans.plans(settings.dialect, queries, batch=settings.search_batch, **settings.planner.options)
        for index, plan in found:
            job, (goal, skipped) = some[index], goals_of[index]
            yield job, plan_episode(goal, settings, seed=job.seed, name=job.name, skipped=skipped, plan=plan)


def _scene_of(job: EpisodeJob) -> str:
    """The name of the scene of a job that is no goal of a file."""
    assert isinstance(job.subject, str)
    if job.subject == PROCEDURAL or job.subject.startswith(PROCEDURAL + scenes.PREPARED):
        return f"{scenes.PROCEDURAL}{job.seed}{job.subject.removeprefix(PROCEDURAL)}"
    return job.subject


def _goal_of(job: EpisodeJob) -> tuple[Goal, dict[str, str]]:
    """What a job searches for, and what it had to skip: see `_goal`."""
    if isinstance(job.subject, Goal):
        return job.subject, {}
    return _goal(_scene_of(job), job.settings.seed)


def _goal(scene: str, seed: int) -> tuple[Goal, dict[str, str]]:
    """The goal of a RobotHow program in its own scene or in another one, there of the next program that fits; and
    why others do not.

    Raises:
        InputError: if the scene suits no program at all.
    """
    base, prepared, program = scene.rpartition(scenes.PREPARED)
    if not prepared:
        return goals.robothow_goal(scene.removeprefix(scenes.ROBOTHOW)), {}
    skipped: dict[str, str] = {}
    for candidate in _from(program, seed):
        try:
            return goals.transferred_goal(f"{base}{scenes.PREPARED}{candidate}"), skipped
        except scenes.Untransferable as error:
            skipped[candidate] = str(error).split(": ", 1)[1]
    raise InputError(f"{base}: suits no RobotHow program; {skipped[program]}")


def _from(program: str, seed: int) -> Iterator[str]:
    """The program, then all others in the order of the run."""
    yield program
    order = goals.robothow_order(seed)
    position = order.index(program)
    yield from (*order[position + 1 :], *order[:position])


def plan_episode(
    goal: Goal,
    settings: CollectSettings,
    *,
    seed: int,
    name: str,
    skipped: Mapping[str, str] | None = None,
    plan: Plan | None = None,
) -> Trajectory:
    """Search for a plan, where there is none yet, and carry it out. ``skipped``: RobotHow programs that the scene did
    not suit, and why."""
    scene = scenes.load(goal.scene)
    world = open_world(settings.engine, settings.dialect)
    plan = plan or settings.planner.plan(world, scene, goal, seed=seed)
    return settings.planner.carry_out(plan, world, scene, goal, seed=seed, name=name, skipped=skipped)
