"""`e2wm tasks`: directories of experiences -> task files and their statistics."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.experience.collect.shards import load_trajectories
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.build import build
from e2wm_jax.tasks.statistics import statistics
from e2wm_jax.tasks.write import missing_scenes, write


@dataclass(frozen=True)
class TasksSettings:
    """Turn collected experiences into training and evaluation files in the official E2WM formats."""

    experiences: tuple[Path, ...]
    """Directories of `e2wm collect`: planned episodes (plans, activities) and random ones (counting, tracking)."""
    out: Path
    """Directory to write: train/*.json, eval/gen/*.json, eval/qa/*.json, statistics.json; beside plans to be
    evaluated *.json.sources, the worlds in which `e2wm eval plans` carries them out."""
    eval_share: float = 0.2
    """Share of goals, plans and stories that is held out; 1 makes evaluation files alone, 0 training files alone."""
    unseen_share: float = 0.2
    """Share of the task names that are held out with all of their plans, for plan_gen_unseen."""
    balanced_counts: bool = False
    """Counting: all numbers equally frequent as far as there is material, instead of the official frequencies."""
    seed: int = 0


def run(settings: TasksSettings) -> dict[str, Any]:
    """Run the command; returns the statistics.

    Raises:
        InputError: for malformed experiences, too little material, or a directory of other files.
    """
    sets = build(
        load_experiences(settings.experiences),
        seed=settings.seed,
        eval_share=settings.eval_share,
        unseen_share=settings.unseen_share,
        balanced_counts=settings.balanced_counts,
    )
    sets = replace(sets, notes=(*sets.notes, *missing_scenes(sets)))
    write(sets, settings.out)
    return statistics(sets)


def load_experiences(folders: Sequence[Path]) -> list[Trajectory]:
    """The trajectories of all runs, in order. Where two runs have an id in common, the name of its folder comes before
    each of the two (``plans/mcts-0-000001``), with a number where the folders are called alike.

    Raises:
        InputError: if a folder is given twice, is no run of `collect`, or holds a malformed record.
    """
    places = [folder.resolve() for folder in folders]
    if twice := [folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise InputError(f"--experiences {twice[0]}: given twice; name each directory once")
    runs = [list(load_trajectories([folder])) for folder in folders]
    names = [place.name for place in places]
    names = [
        f"{name}-{1 + names[:number].count(name)}" if names.count(name) > 1 else name
        for number, name in enumerate(names)
    ]
    found = Counter(identity for run in runs for identity in {one.id for one in run})
    return [
        replace(one, id=f"{name}/{one.id}") if found[one.id] > 1 else one
        for name, run in zip(names, runs, strict=True)
        for one in run
    ]


def show(result: dict[str, Any]) -> None:
    """A line per file, then what became of the episodes."""
    print(f"{'file':<40} {'n':>5}  {'words':>14}  {'answers':>7}  {'majority':>8}")
    for name, file in result["files"].items():
        words = "/".join(str(round(file["input_words"][key])) for key in ("min", "median", "max"))
        print(f"{name:<40} {file['n']:>5}  {words:>14}  {file['distinct_answers']:>7}  {file['majority']:>8.3f}")
    print("checked: train and eval share no plan, question, goal, state or story")
    print(f"unseen in train: {', '.join(result['unseen_tasks']) or 'no task'}")
    print("episodes: " + ", ".join(f"{number} {reason}" for reason, number in result["episodes"].items()))
    for note in result["notes"]:
        print(f"note: {note}")
