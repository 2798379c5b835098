"""Where the plans of a task file can be carried out: beside the file, in experiences, or in RobotHow's programs.

A file of `e2wm tasks` has its sources beside it. For others the episodes it was made of may be given. E2WM's own files
tell neither scene nor goal; there, an example about one of the activities that RobotHow's published programs show takes
place in the world of such a program: one that has all items of the prompt and all objects of the reference, if there
is one. Of several, the one whose sentences are the reference, then one in which most of the prompt's conditions hold,
then the first by id. The goal is known only where the program is the reference itself. These programs were written in
the world of dialect vh19: their walks leave closeness alone.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from e2wm_jax.data.source import TaskExample
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.plans.text import meanings, sentences
from e2wm_jax.experience.collect.shards import load_trajectories
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.storage.files import read_json_lines
from e2wm_jax.tasks import source
from e2wm_jax.tasks.household import plan
from e2wm_jax.tasks.household.sentences import action_sentence, condition_sentences, words
from e2wm_jax.tasks.source import Source
from e2wm_jax.worlds.household import goals
from e2wm_jax.worlds.household.homes import files as scene_files
from e2wm_jax.worlds.household.homes import scenes

OTHER_ACTIVITY = "its activity is not among RobotHow's published programs"
OTHER_OBJECTS = "no published program of its activity has its objects"
NO_EPISODE = "no episode of the experiences has its plan"
_QUESTION = re.compile(r"How to (?P<task>[^?]*)\?\s*(?:Given items include (?P<items>[^.]*)\.)?(?P<rest>.*)", re.DOTALL)


class Asked(NamedTuple):
    """The last question of a prompt."""

    task: str
    items: tuple[str, ...]  # as text: "home office"
    conditions: tuple[str, ...]  # sentences without full stops


def asked(prompt: str, where: str) -> Asked:
    """What a prompt of plan generation asks.

    Raises:
        InputError: if the prompt has another form.
    """
    match = _QUESTION.search(prompt, max(prompt.rfind("How to "), 0))
    if match is None:
        raise InputError(f'{where}: not a prompt of plan generation; expected "Q: How to ...? ... A:"')
    items = tuple(item.strip() for item in (match["items"] or "").split(",") if item.strip())
    rest = match["rest"].strip().removesuffix("A:")
    return Asked(match["task"].strip().lower(), items, tuple(sentences(rest)))


def beside(data: Path) -> Path:
    """Where `e2wm tasks` puts the sources of a file; a packed file's are those of the unpacked one."""
    return data.with_name(data.name.removesuffix(".gz") + source.SUFFIX)


def read_sources(path: Path, examples: Sequence[TaskExample]) -> list[Source]:
    """The sources of a file's examples, their scenes as seen from here.

    Raises:
        InputError: naming file and line of what is malformed, or if the numbers of lines differ.
    """
    found = [source.from_json(record, f"{path}:{line}") for line, record in read_json_lines(path)]
    if len(found) != len(examples):
        raise InputError(f"{path}: {len(found)} sources for {len(examples)} examples; make both anew with e2wm tasks")
    return [replace(one, scene=scene_files.located(one.scene, path.parent)) for one in found]


def from_experiences(folders: Iterable[Path], examples: Sequence[TaskExample]) -> list[Source | str]:
    """The episode of each example, or why there is none: by question and plan, else by activity and plan.

    Raises:
        InputError: if a folder holds no experiences, or a prompt has another form.
    """
    by_text: dict[tuple[str, str], Trajectory] = {}
    for trajectory in load_trajectories(folders):
        if trajectory.task is not None and trajectory.steps:
            text = plan.plan_text(trajectory.steps)
            exact = plan.question(trajectory.task, _items(trajectory), condition_sentences(trajectory.conditions))
            by_text.setdefault((exact, text), trajectory)
            by_text.setdefault((trajectory.task.lower(), text), trajectory)
    found: list[Source | str] = []
    for example in examples:
        line = example.input.rsplit("Q: ", 1)[-1].removesuffix("A:").strip()
        keys = (line, example.ref), (asked(example.input, example.where).task, example.ref)
        episode = next((by_text[key] for key in keys if key in by_text), None)
        found.append(NO_EPISODE if episode is None else source.source_of(episode))
    return found


def _items(trajectory: Trajectory) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for item in trajectory.items if item != scenes.CHARACTER))


def from_robothow(examples: Sequence[TaskExample], dialect: str) -> list[Source | str]:
    """For each example the world of a published program, or why there is none.

    Raises:
        InputError: if `virtualhome-eval` is not installed, or a prompt has another form.
    """
    by_title: dict[str, list[str]] = {}
    for program_id in scenes.program_ids():
        by_title.setdefault(scenes.program_title(program_id).lower(), []).append(program_id)
    return [_robothow(asked(one.input, one.where), one.ref, by_title, dialect) for one in examples]


def _robothow(question: Asked, reference: str, by_title: dict[str, list[str]], dialect: str) -> Source | str:
    programs = by_title.get(question.task)
    if programs is None:
        return OTHER_ACTIVITY
    fitting = [one for one in map(_known, programs) if one.has(question.items, reference)]
    if not fitting:
        return OTHER_OBJECTS
    wanted = set(question.conditions)

    def unfit(one: _Program) -> tuple[bool, int, str]:
        return one.text != reference, -len(wanted & one.conditions), one.id

    best = min(fitting, key=unfit)
    found = Source(best.id, scenes.ROBOTHOW + best.id, dialect, goal=(), things=best.things)
    return replace(found, goal=goals.robothow_goal(best.id).facts) if best.text == reference else found


class _Program(NamedTuple):
    """What prompts are compared with, as text."""

    id: str
    text: str
    classes: frozenset[str]
    conditions: frozenset[str]
    things: tuple[int, ...]

    def has(self, items: Iterable[str], plan: str) -> bool:
        """Whether its world has these items and everything that a plan names, in one reading of each sentence."""
        if not self.classes.issuperset(items):
            return False
        readings = filter(None, map(meanings, sentences(plan)))
        return all(any(self.classes.issuperset(map(words, one.names)) for one in found) for found in readings)


@cache
def _known(program_id: str) -> _Program:
    program = scenes.program(program_id)
    things = tuple(dict.fromkeys(thing.id for action in program.script for thing in action.things))
    nodes = [program.init.nodes[node] for node in things]
    told = condition_sentences(goals.conditions(program.init, nodes))
    return _Program(
        program_id,
        " ".join(action_sentence(str(action)) for action in program.script),
        frozenset(map(words, program.init.by_class)),
        frozenset(sentence.removesuffix(".") for sentence in told),
        things,
    )
