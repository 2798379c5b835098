"""The page of experiences: how many, with which verbs, and some of them drawn over the rooms of their homes."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import e2wm_jax
from e2wm_jax.files import read_json
from e2wm_jax.report import Section, bar_chart, details, key_values, page, write
from e2wm_jax.simulate.journey import journey
from e2wm_jax.simulate.shards import MANIFEST, load_trajectories
from e2wm_jax.simulate.trajectory import Trajectory

_LEAST = 5  # steps of a trajectory that is worth drawing
_VERBS = 12


@dataclass
class _Counts:
    """What is counted while the trajectories go by."""

    episodes: int = 0
    steps: int = 0
    failed: int = 0
    reached: int = 0
    with_goal: int = 0
    verbs: Counter[str] = field(default_factory=Counter)

    def add(self, found: Trajectory) -> None:
        self.episodes += 1
        self.steps += len(found.steps)
        self.failed += sum(not step.ok for step in found.steps)
        self.with_goal += bool(found.goal)
        self.reached += bool(found.goal) and set(found.goal) <= set(found.achieved)
        self.verbs.update(step.action.partition("]")[0].strip(" [") for step in found.steps)


def write_page(path: Path, folder: Path, examples: int) -> None:
    """Draw a directory of `collect`, with so many of its trajectories, evenly spaced among the longer ones.

    Raises:
        InputError: if there are none, or one is malformed.
    """
    counts, longer = _Counts(), 0
    for found in load_trajectories([folder]):
        counts.add(found)
        longer += len(found.steps) >= _LEAST
    shown = _chosen(folder, longer, examples)
    sections = [
        Section("What was lived", [key_values(_facts(counts)), _bars(counts)]),
        Section("Trajectories", [block for found in shown for block in journey(found)]),
        Section("How it was made", [details("All settings", key_values(_settings(folder)))]),
    ]
    write(path, page(f"e2wm experiences: {folder.name}", sections, footer=f"e2wm_jax {e2wm_jax.__version__}"))


def _chosen(folder: Path, longer: int, examples: int) -> list[Trajectory]:
    """Trajectories evenly spaced; where all are short, the first ones."""
    fitting = (found for found in load_trajectories([folder]) if not longer or len(found.steps) >= _LEAST)
    every = max(longer // max(examples, 1), 1)
    return list(islice(fitting, 0, every * examples, every))


def _facts(counts: _Counts) -> dict[str, Any]:
    facts = {"episodes": counts.episodes, "steps": counts.steps, "steps that failed": counts.failed}
    return facts | ({"goals reached": f"{counts.reached} of {counts.with_goal}"} if counts.with_goal else {})


def _bars(counts: _Counts) -> str:
    values = {verb: {"steps": float(count)} for verb, count in counts.verbs.most_common(_VERBS)}
    return bar_chart(values, title="Steps by verb", x_label="steps")


def _settings(folder: Path) -> dict[str, Any]:
    return dict(read_json(folder / MANIFEST).get("settings", {}))
