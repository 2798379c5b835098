"""`e2wm replay`: a program, or a file of reference trajectories, run in the world."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.files import read_text
from e2wm_jax.simulate import scenes
from e2wm_jax.simulate.actions import parse_script
from e2wm_jax.simulate.engines import Engine, open_world
from e2wm_jax.simulate.replay import replay, replay_file


@dataclass(frozen=True)
class ReplaySettings:
    """Run a program in a scene and show each step, or replay a file of reference trajectories."""

    script: Path | None = None
    """Program: one line "[Walk] <sofa> (352)" per step; other lines are titles."""
    scene: str | None = None
    """Where to run it: a VirtualHome graph (.json, .json.gz) or robothow:ID."""
    trajectories: Path | None = None
    """Instead of a script: JSON lines {"id", "init", "steps": [{"a"}]}, replayed into --out."""
    scenes: Path | None = None
    """Folder of TrimmedTestScene<k>_graph.json, for trajectories that begin in "scene:<k>"."""
    out: Path | None = None
    """Where replayed trajectories go."""
    dialect: str = "vh23"
    """Rules of the world: vh23, vh19 or e2wm."""
    engine: Engine = "array"
    """Ours, for vh23, vh19 and e2wm; or the installed virtualhome executor, which is vh23."""


def run(settings: ReplaySettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for options that do not go together, or malformed files.
    """
    world = open_world(settings.engine, settings.dialect)
    if settings.trajectories is not None:
        if settings.out is None or settings.script is not None:
            raise InputError("--trajectories needs --out FILE and goes without --script")
        return {"trajectories": replay_file(world, settings.trajectories, settings.scenes, settings.out)}
    if settings.script is None or settings.scene is None:
        raise InputError("give --script FILE with --scene FILE|robothow:ID, or --trajectories FILE with --out FILE")
    actions = parse_script(read_text(settings.script).splitlines(), str(settings.script))
    steps = replay(world, scenes.load(settings.scene), actions)
    return {"succeeded": sum(step.ok for step in steps), "steps": [step.to_json() for step in steps]}


def show(result: dict[str, Any]) -> None:
    """One line per step: mark, action, what went wrong, how many edges and states changed."""
    if "trajectories" in result:
        print(f"{result['trajectories']} trajectories replayed")
        return
    for step in result["steps"]:
        trouble = step.get("exc") or "; ".join(step.get("msg", ()))
        changes = sum(len(step.get(key, ())) for key in ("e+", "e-", "s+", "s-"))
        print(f"{'ok  ' if step['ok'] else 'FAIL'}  {step['a']}  {trouble or f'{changes} changes'}")
    print(f"{result['succeeded']} of {len(result['steps'])} steps succeeded")
