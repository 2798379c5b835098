"""`collect`: episodes over a process pool into a directory of shards, resumable at any moment.

An episode depends on the settings and its number alone, so the bytes written do not depend on how many workers there
are or how often the run was interrupted. Workers import the simulation only, never JAX. With `--search mcts-batched`
there are none: the main process searches, on JAX's default device.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from e2wm_jax.errors import InputError
from e2wm_jax.experience.collect.jobs import ROBOTHOW, CollectSettings, EpisodeJob, play, play_side_by_side, subjects
from e2wm_jax.experience.collect.shards import ShardWriter, load_trajectories, open_run, write_manifest
from e2wm_jax.experience.search import planner
from e2wm_jax.experience.search.choose import Method, compile_engine
from e2wm_jax.experience.trajectory import FORMAT, Trajectory
from e2wm_jax.running.interrupt import terminated_as_interrupted
from e2wm_jax.running.progress import progress_bar
from e2wm_jax.storage.files import sha256
from e2wm_jax.worlds.household.engine import open_world
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.homes import files as scene_files

_HOW = {"out", "workers", "search_batch", "world"}  # no part of what decides about the content; `world` stands beside
_IN_FLIGHT = 2  # episodes per worker that are handed out at a time


def collect(settings: CollectSettings) -> dict[str, Any]:
    """Collect episodes into ``settings.out``, continuing the run that may be there.

    Returns:
        ``episodes``, ``steps``, ``goals_reached`` (all facts hold at the end) of the whole run; ``collected``,
        ``seconds`` and ``episodes_per_second`` of this call.

    Raises:
        InputError: for settings that cannot work, before anything is written.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with what is done saved.
    """
    _check(settings)
    found = subjects(settings)
    episodes = settings.episodes or len(found)
    kept = scene_files.kept_names(one.scene if isinstance(one, Goal) else one for one in found)
    recorded = _recorded_settings(settings, episodes, kept)
    open_run(settings.out, recorded)
    started = time.monotonic()
    writer = ShardWriter(settings.out, episodes)
    scene_files.keep(kept, settings.out)
    _save_manifest(writer, settings.world, recorded)
    jobs = [EpisodeJob(index, found[index % len(found)], settings) for index in writer.missing()]
    try:
        with terminated_as_interrupted(), progress_bar("collect", episodes, "episode") as bar:
            bar.update(episodes - len(jobs))
            reached = 0
            for job, trajectory in _run(jobs, settings.workers):
                lived = replace(trajectory, scene=scene_files.renamed(trajectory.scene, kept))
                writer.add(job.episode, lived.to_json())
                reached += is_reached(trajectory)
                bar.set_postfix({"goals reached": reached} if settings.policy == "mcts" else {}, refresh=False)
                bar.update()
    finally:
        statistics = _save_manifest(writer, settings.world, recorded)
    seconds = time.monotonic() - started
    pace = {"seconds": round(seconds, 3), "episodes_per_second": round(len(jobs) / max(seconds, 1e-9), 3)}
    return {**statistics, "collected": len(jobs), **pace}


def is_reached(trajectory: Trajectory) -> bool:
    """Whether an episode with a goal ended with all of its facts true."""
    return bool(trajectory.goal) and set(trajectory.goal) <= set(trajectory.achieved)


def _check(settings: CollectSettings) -> None:
    for name in ("episodes", "workers", "simulations", "search_batch", "max_depth", "episode_length"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    choices = {
        "policy": ("mcts", "random"),
        "search": get_args(Method),
        "reward": tuple(planner.REWARDS),
        "style": ("carry", "uniform", "track"),
    }
    for name, known in choices.items():
        if getattr(settings, name) not in known:
            raise InputError(f"--{name} {getattr(settings, name)}: choose one of {', '.join(known)}")
    if settings.policy == "mcts" and settings.scene and settings.goals not in (None, ROBOTHOW):
        raise InputError("--scene goes with --goals robothow; each goal of a file names its own scene")
    if settings.policy == "random" and settings.goals:
        raise InputError("--goals is for --policy mcts; with random name scenes (see --scene)")
    open_world(settings.engine, settings.dialect)
    if settings.engine == "virtualhome" and settings.search != "mcts":
        raise InputError(f"--search {settings.search} needs the array engine; leave out --engine virtualhome")


def _recorded_settings(settings: CollectSettings, episodes: int, kept: dict[Path, str]) -> dict[str, Any]:
    """The settings that decide the content of the run; files by their content, wherever they lie."""
    unused = {
        "mcts": {"episode_length", "style"} | (set() if settings.scene else {"scene"}),
        "random": {"goals", "search", "simulations", "max_depth", "reward", "shorten"},
    }[settings.policy]
    recorded = {key: value for key, value in asdict(settings).items() if key not in unused | _HOW}
    recorded["episodes"] = episodes
    if settings.policy == "mcts":
        recorded["goals"] = settings.goals or ROBOTHOW
        if recorded["goals"] != ROBOTHOW:
            path = Path(recorded["goals"])
            recorded |= {"goals": path.name, "goals_sha256": sha256(path)}
            recorded |= {"scene": list(kept.values())} if kept else {}
    else:
        recorded["scene"] = [ROBOTHOW]
    if settings.scene:
        recorded["scene"] = [scene_files.renamed(name, kept) for name in settings.scene]
    return recorded


def _save_manifest(writer: ShardWriter, world: str, recorded: dict[str, Any]) -> dict[str, Any]:
    statistics = {"episodes": 0, "steps": 0, "goals_reached": 0, "facts": 0, "facts_achieved": 0}
    write_manifest(writer.folder, {"format": FORMAT, "world": world, "settings": recorded})
    for trajectory in load_trajectories([writer.folder]):
        statistics["episodes"] += 1
        statistics["steps"] += len(trajectory.steps)
        statistics["goals_reached"] += is_reached(trajectory)
        statistics["facts"] += len(trajectory.goal)
        statistics["facts_achieved"] += len(trajectory.achieved)
    complete = statistics["episodes"] == writer.episodes
    manifest = {"format": FORMAT, "world": world, "settings": recorded, "complete": complete, "statistics": statistics}
    write_manifest(writer.folder, manifest)
    return statistics


def _run(jobs: list[EpisodeJob], workers: int) -> Iterator[tuple[EpisodeJob, Trajectory]]:
    """The jobs with their episodes, as they are finished."""
    if jobs and jobs[0].settings.policy == "mcts" and jobs[0].settings.search == "mcts-batched":
        yield from play_side_by_side(jobs)
        return
    if workers == 1 or len(jobs) < 2:
        yield from ((job, play(job)) for job in jobs)
        return
    if jobs[0].settings.engine == "array":
        searches = (jobs[0].settings.search,) if jobs[0].settings.policy == "mcts" else ()
        compile_engine(*searches)  # each process would otherwise do so for itself
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_start_worker)
    try:
        waiting = iter(jobs)
        running: dict[Future[Trajectory], EpisodeJob] = {}
        while True:
            while len(running) < _IN_FLIGHT * workers and (job := next(waiting, None)) is not None:
                running[pool.submit(play, job)] = job
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
