"""`collect`: episodes over a process pool into a directory of shards, resumable at any moment.

An episode depends on the settings and its number alone, so the bytes written do not depend on how many workers there
are or how often the run was interrupted. Workers import the simulation only, never JAX.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from e2wm_jax.errors import InputError
from e2wm_jax.files import sha256
from e2wm_jax.progress import progress_bar
from e2wm_jax.simulate import goals, planner, scenes
from e2wm_jax.simulate.actions import parse_action
from e2wm_jax.simulate.explorer import Style, explore
from e2wm_jax.simulate.goals import Goal
from e2wm_jax.simulate.planner import Reward
from e2wm_jax.simulate.replay import run
from e2wm_jax.simulate.scenes import Scene
from e2wm_jax.simulate.shards import ShardWriter, load_trajectories, open_run, write_manifest
from e2wm_jax.simulate.trajectory import Step, Trajectory
from e2wm_jax.simulate.virtualhome import VERSION, VirtualHome

ROBOTHOW = "robothow"
_IN_FLIGHT = 2  # episodes per worker that are handed out at a time
FORMAT = 1


@dataclass(frozen=True)
class CollectSettings:
    """What to collect. Everything but ``out`` and ``workers`` decides the content of the episodes."""

    out: Path
    policy: Literal["mcts", "random"]
    episodes: int | None = None  # None: one for each goal (mcts) or scene (random)
    goals: str | None = None  # mcts: "robothow" (also when None) or a file of goals
    scene: tuple[str, ...] = ()  # random: scenes in turn; none: the initial graphs of RobotHow
    dialect: str = "vh23"
    simulations: int = 20_000
    max_depth: int = 25
    reward: Reward = "official"
    shorten: bool = True  # mcts: leave out moves that the search did not need (E2WM relies on 20,000 simulations)
    episode_length: int = 20  # random: steps
    style: Style = "carry"  # random
    workers: int = os.cpu_count() or 1  # processes; the episodes do not depend on it
    seed: int = 0


@dataclass(frozen=True)
class _Job:
    """One episode: everything a worker needs."""

    episode: int
    subject: Goal | str  # a goal, a RobotHow program whose goal to reach, or a scene to explore
    settings: CollectSettings

    @property
    def seed(self) -> int:
        digest = hashlib.sha256(f"{self.settings.seed}:{self.episode}".encode()).digest()
        return int.from_bytes(digest[:6], "big")


def collect(settings: CollectSettings) -> dict[str, Any]:
    """Collect episodes into ``settings.out``, continuing the run that may be there.

    Returns:
        ``episodes``, ``steps``, ``goals_reached`` (all facts hold at the end) of the whole run; ``collected``,
        ``seconds`` and ``episodes_per_second`` of this call.

    Raises:
        InputError: for settings that cannot work, before anything is written.
        KeyboardInterrupt: passed on after what is done has been saved.
    """
    _check(settings)
    subjects = _subjects(settings)
    episodes = settings.episodes or len(subjects)
    recorded = _recorded_settings(settings, episodes)
    open_run(settings.out, recorded)
    started = time.monotonic()
    writer = ShardWriter(settings.out, episodes)
    _save_manifest(writer, recorded)
    jobs = [_Job(index, subjects[index % len(subjects)], settings) for index in writer.missing()]
    try:
        with progress_bar("collect", episodes, "episode") as bar:
            bar.update(episodes - len(jobs))
            reached = 0
            for job, trajectory in _run(jobs, settings.workers):
                writer.add(job.episode, trajectory.to_json())
                reached += is_reached(trajectory)
                bar.set_postfix({"goals reached": reached} if settings.policy == "mcts" else {}, refresh=False)
                bar.update()
    finally:
        statistics = _save_manifest(writer, recorded)
    seconds = time.monotonic() - started
    pace = {"seconds": round(seconds, 3), "episodes_per_second": round(len(jobs) / max(seconds, 1e-9), 3)}
    return {**statistics, "collected": len(jobs), **pace}


def is_reached(trajectory: Trajectory) -> bool:
    """Whether an episode with a goal ended with all of its facts true."""
    return bool(trajectory.goal) and set(trajectory.goal) <= set(trajectory.achieved)


def _check(settings: CollectSettings) -> None:
    for name in ("episodes", "workers", "simulations", "max_depth", "episode_length"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    choices = {"policy": ("mcts", "random"), "reward": tuple(planner.REWARDS), "style": ("carry", "uniform")}
    for name, known in choices.items():
        if getattr(settings, name) not in known:
            raise InputError(f"--{name} {getattr(settings, name)}: choose one of {', '.join(known)}")
    if settings.policy == "mcts" and settings.scene:
        raise InputError("--scene is for --policy random; with mcts each goal names its scene (see --goals)")
    if settings.policy == "random" and settings.goals:
        raise InputError("--goals is for --policy mcts; with random name scenes (see --scene)")
    VirtualHome(settings.dialect)


def _subjects(settings: CollectSettings) -> list[Goal | str]:
    """Goals or scenes, in turn; every scene named by the user is loaded once to see that it can be."""
    if settings.policy == "mcts" and settings.goals not in (None, ROBOTHOW):
        return list(goals.read_goals(Path(settings.goals)))
    if settings.policy == "random" and settings.scene:
        for name in settings.scene:
            scenes.load(name)
        return list(settings.scene)
    order = goals.robothow_order(settings.seed)
    return list(order if settings.policy == "mcts" else (f"{ROBOTHOW}:{program}" for program in order))


def _recorded_settings(settings: CollectSettings, episodes: int) -> dict[str, Any]:
    """The settings that decide the content of the run."""
    unused = {
        "mcts": {"scene", "episode_length", "style"},
        "random": {"goals", "simulations", "max_depth", "reward", "shorten"},
    }[settings.policy]
    recorded = {key: value for key, value in asdict(settings).items() if key not in unused | {"out", "workers"}}
    recorded["episodes"] = episodes
    if settings.policy == "mcts":
        recorded["goals"] = settings.goals or ROBOTHOW
        if recorded["goals"] != ROBOTHOW:
            recorded["goals_sha256"] = sha256(Path(recorded["goals"]))
    else:
        recorded["scene"] = list(settings.scene or (ROBOTHOW,))
    return recorded


def _save_manifest(writer: ShardWriter, recorded: dict[str, Any]) -> dict[str, Any]:
    statistics = {"episodes": 0, "steps": 0, "goals_reached": 0, "facts": 0, "facts_achieved": 0}
    write_manifest(writer.folder, {"format": FORMAT, "settings": recorded})
    for trajectory in load_trajectories([writer.folder]):
        statistics["episodes"] += 1
        statistics["steps"] += len(trajectory.steps)
        statistics["goals_reached"] += is_reached(trajectory)
        statistics["facts"] += len(trajectory.goal)
        statistics["facts_achieved"] += len(trajectory.achieved)
    complete = statistics["episodes"] == writer.episodes
    manifest = {"format": FORMAT, "settings": recorded, "engine": f"virtualhome {VERSION}"}
    write_manifest(writer.folder, {**manifest, "complete": complete, "statistics": statistics})
    return statistics


def _run(jobs: list[_Job], workers: int) -> Iterator[tuple[_Job, Trajectory]]:
    """The jobs with their episodes, as they are finished."""
    if workers == 1 or len(jobs) < 2:
        yield from ((job, _episode(job)) for job in jobs)
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_start_worker)
    try:
        waiting = iter(jobs)
        running: dict[Future[Trajectory], _Job] = {}
        while True:
            while len(running) < _IN_FLIGHT * workers and (job := next(waiting, None)) is not None:
                running[pool.submit(_episode, job)] = job
            if not running:
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            yield from ((running.pop(future), future.result()) for future in finished)
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()  # an episode may take minutes; it will be done again
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _episode(job: _Job) -> Trajectory:
    """Play one episode. Depends on nothing but the job."""
    settings = job.settings
    if settings.policy == "mcts":
        goal = goals.robothow_goal(job.subject) if isinstance(job.subject, str) else job.subject
        return plan_episode(goal, settings, seed=job.seed, name=f"mcts-{settings.seed}-{job.episode:06d}")
    assert isinstance(job.subject, str)
    scene = scenes.load(job.subject)
    world = VirtualHome(settings.dialect)
    steps = explore(world, scene, length=settings.episode_length, seed=job.seed, style=settings.style)
    return Trajectory(
        id=f"random-{settings.seed}-{job.episode:06d}",
        scene=scene.name,
        dialect=settings.dialect,
        policy="random",
        seed=job.seed,
        steps=tuple(steps),
        classes=_classes(scene, steps),
        search={"style": settings.style},
    )


def plan_episode(goal: Goal, settings: CollectSettings, *, seed: int, name: str) -> Trajectory:
    """Search for a plan and carry it out."""
    scene = scenes.load(goal.scene)
    world = VirtualHome(settings.dialect)
    plan = planner.search(
        world,
        scene,
        goal,
        simulations=settings.simulations,
        max_depth=settings.max_depth,
        reward=settings.reward,
        seed=seed,
        shorten=settings.shorten,
    )
    start = world.initial(scene)
    played = list(run(world, start, plan.actions))
    steps = [step for _, step in played]
    achieved = world.gained_test(scene, goal.facts)(played[-1][0] if played else start)
    return Trajectory(
        id=name,
        scene=goal.scene,
        dialect=settings.dialect,
        policy="mcts",
        seed=seed,
        steps=tuple(steps),
        classes=_classes(scene, steps),
        total_reward=plan.total_reward,
        task=goal.task,
        goal=goal.facts,
        achieved=tuple(sorted(achieved)),
        items=goal.items,
        conditions=goal.conditions,
        search={
            "simulations": plan.simulations,
            "nodes": plan.nodes,
            "moves": len(plan.moves),
            "proved": plan.proved,
            "reward": settings.reward,
        },
    )


def _classes(scene: Scene, steps: list[Step]) -> dict[int, str]:
    """The class of every node that the steps name or change."""
    nodes = {scene.character.id}
    for step in steps:
        nodes.update(thing.id for thing in parse_action(step.action).things)
        for source, _, target in (*step.edges_added, *step.edges_removed):
            nodes.update((source, target))
        nodes.update(node for node, _ in (*step.states_added, *step.states_removed))
    return {node: scene.nodes[node].class_name for node in sorted(nodes)}
