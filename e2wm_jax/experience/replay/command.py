"""`e2wm replay`: a program, or what `collect` wrote, run in the world; or what a scene holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.experience.collect.shards import shard_lines
from e2wm_jax.experience.replay.notes import notes
from e2wm_jax.experience.replay.references import differences, replay_episode, replay_record
from e2wm_jax.running.progress import progress_bar
from e2wm_jax.storage.files import read_json_lines, read_text, write_json_lines
from e2wm_jax.worlds.household.actions import parse_script
from e2wm_jax.worlds.household.changes import Step
from e2wm_jax.worlds.household.engine import Engine, open_world
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.world import replay

ROBOTHOW = "robothow"  # as --scene alone: the list of the programs
_SHOWN = 10  # differences


@dataclass(frozen=True)
class ReplaySettings:
    """Run a program in a scene and show each step; or compare trajectories with what the world does now.

    Exit code 1: a step failed, or something is otherwise than recorded.
    """

    script: Path | None = None
    """Program: one line "[Walk] <sofa> (352)" per step; other lines are titles."""
    scene: str | None = None
    """Where to run it: a VirtualHome graph (.json, .json.gz), procedural:SEED or robothow:ID; without --script, show
    what is in it, and for robothow alone which programs there are."""
    trajectories: Path | None = None
    """Instead of a script: a directory of `e2wm collect` or one of its shards, or JSON lines {"id", "init", "steps":
    [{"a", ...}]}; compared with what they say of each step, or replayed into --out."""
    scenes: Path | None = None
    """Folder of scenes that have moved, and of TrimmedTestScene<k>_graph.json for trajectories that begin in
    "scene:<k>"."""
    out: Path | None = None
    """With --trajectories: write them here as they go now, and do not compare."""
    dialect: str | None = None
    """Rules of the world: vh23, vh19 or e2wm; by default those of each trajectory, otherwise vh23."""
    engine: Engine = "array"
    """Ours, for vh23, vh19 and e2wm; or the installed virtualhome executor, which is vh23."""


def run(settings: ReplaySettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for options that do not go together, or malformed files.
    """
    open_world(settings.engine, settings.dialect or "vh23")  # refuses names that it does not know
    if settings.trajectories is not None:
        if settings.script is not None or settings.scene is not None:
            raise InputError("--trajectories goes without --script and --scene: each says where it begins")
        return _replay_trajectories(settings, settings.trajectories)
    if settings.out is not None:
        raise InputError("--out goes with --trajectories; --json prints the steps of a script")
    if settings.scene is None:
        raise InputError("give --script FILE with --scene FILE|robothow:ID, or --trajectories FILE|DIR")
    if settings.script is None:
        return _programs() if settings.scene == ROBOTHOW else _contents(settings.scene)
    return _replay_script(settings, settings.script, settings.scene)


def _replay_script(settings: ReplaySettings, script: Path, name: str) -> dict[str, Any]:
    actions = parse_script(read_text(script).splitlines(), str(script))
    dialect, scene = settings.dialect or "vh23", scenes.load(name)
    steps = replay(open_world(settings.engine, dialect), scene, actions)
    said = notes(scene, actions, steps, dialect)
    records = [step.to_json() | ({"note": note} if note else {}) for step, note in zip(steps, said, strict=True)]
    return {"succeeded": sum(step.ok for step in steps), "steps": records}


def _replay_trajectories(settings: ReplaySettings, path: Path) -> dict[str, Any]:
    world_of = cache(lambda dialect: open_world(settings.engine, settings.dialect or dialect))
    found: list[str] = []
    replayed, steps = [], 0
    with progress_bar("replay", None, "trajectory") as bar:
        for where, record in _records(path):
            again = replay_record if "init" in record else replay_episode
            dialect = record.get("dialect") or "vh23"
            ours = again(world_of(str(dialect)), record, settings.scenes, where)
            steps += len(ours["steps"])
            if settings.out is None:
                found += differences(record, ours, where)
            replayed.append(ours)
            bar.update()
    if not replayed:
        raise InputError(f"--trajectories {path}: no trajectories in it; collect some with `e2wm collect --out DIR`")
    if settings.out is not None:
        write_json_lines(settings.out, replayed)
        return {"trajectories": len(replayed), "steps": steps}
    return {"trajectories": len(replayed), "steps": steps, "differences": found}


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records with their file and line."""
    if path.is_dir():
        yield from shard_lines(path)
    else:
        yield from ((f"{path}:{number}", record) for number, record in read_json_lines(path))


def _programs() -> dict[str, Any]:
    return {"programs": {program: scenes.program_title(program) for program in scenes.program_ids()}}


def _contents(name: str) -> dict[str, Any]:
    """What one can name in a line: rooms and classes with their ids."""
    scene = scenes.load(name)
    ids = {name: [node.id for node in nodes] for name, nodes in sorted(scene.by_class.items())}
    rooms = {name for name, nodes in scene.by_class.items() if nodes[0].is_room}
    return {
        "rooms": {name: ids[name] for name in ids if name in rooms},
        "classes": {name: ids[name] for name in ids if name not in rooms},
    }


def exit_code(result: dict[str, Any]) -> int:
    """1 where a step of a script failed or a trajectory went otherwise than recorded."""
    failed = "succeeded" in result and result["succeeded"] < len(result["steps"])
    return int(failed or bool(result.get("differences")))


def show(result: dict[str, Any]) -> None:
    """One line per step: mark, action, what went wrong, how many edges and states changed."""
    if "trajectories" in result:
        _show_trajectories(result)
    elif "steps" in result:
        for step in result["steps"]:
            print(f"{'ok  ' if step['ok'] else 'FAIL'}  {step['a']}  {_outcome(step)}")
        print(f"{result['succeeded']} of {len(result['steps'])} steps succeeded")
    elif "programs" in result:
        for program, title in result["programs"].items():
            print(f"robothow:{program}  {title}")
    else:
        for kind, classes in result.items():
            print(f"{kind}: " + "; ".join(f"{name} {', '.join(map(str, ids))}" for name, ids in classes.items()))


def _show_trajectories(result: dict[str, Any]) -> None:
    print(f"{result['trajectories']} trajectories replayed, {result['steps']} steps")
    if "differences" in result:
        for line in result["differences"][:_SHOWN]:
            print(line)
        more = len(result["differences"]) - _SHOWN
        print(f"and {more} more differences" if more > 0 else f"{len(result['differences'])} differences")


def _outcome(step: dict[str, Any]) -> str:
    """In words: what went wrong, how much changed, what the reader should know."""
    done = Step.from_json(step)
    changes = len(done.edges_added + done.edges_removed) + len(done.states_added + done.states_removed)
    told = [f"{changes} changes" if changes else "nothing changed"] if done.ok else []
    crash = [done.exception] if done.exception and "note" not in step else []
    return "; ".join([*told, *done.messages, *crash, *([step["note"]] if "note" in step else [])])
