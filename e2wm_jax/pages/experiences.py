"""The page of experiences: how many, with which verbs, and some of them drawn over the rooms of their homes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from e2wm_jax.experience.collect.shards import MANIFEST, load_trajectories
from e2wm_jax.experience.journey import journey
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.report import Section, bar_chart, details, key_values, page, paragraph, write
from e2wm_jax.storage.files import read_json

_VERBS = 12


class _Episode(NamedTuple):
    """What is kept of each trajectory while they go by."""

    steps: int
    failed: int
    reached: bool | None  # its goal; None without one


def write_page(path: Path, folder: Path, examples: int) -> None:
    """Draw a directory of `collect`, with so many of its trajectories, evenly spaced among those that reached their
    goal and those that did not.

    Raises:
        InputError: if there are none, or one is malformed.
    """
    episodes, verbs = [], Counter[str]()
    for found in load_trajectories([folder]):
        episodes.append(_episode(found))
        verbs.update(step.action.partition("]")[0].strip(" [") for step in found.steps)
    numbers = _chosen([one.reached for one in episodes], examples)
    shown = [found for n, found in enumerate(load_trajectories([folder])) if n in numbers]
    said = paragraph(_which([episodes[n] for n in numbers], len(episodes)))
    sections = [
        Section("What happened", [key_values(_facts(episodes)), _bars(verbs)]),
        Section("Trajectories", [said, *(block for found in shown for block in journey(found))]),
        Section("How it was made", [details("All settings", key_values(_settings(folder)))]),
    ]
    write(path, page(f"e2wm experiences: {folder.name}", sections))


def _episode(found: Trajectory) -> _Episode:
    reached = set(found.goal) <= set(found.achieved) if found.goal else None
    return _Episode(len(found.steps), sum(not step.ok for step in found.steps), reached)


def _chosen(reached: Sequence[bool | None], examples: int) -> list[int]:
    """Which episodes are drawn: as many that reached their goal as such that did not, where there are both."""
    groups = [[n for n, one in enumerate(reached) if one is kind] for kind in (True, False, None)]
    groups = [group for group in groups if group]
    shares = [0] * len(groups)
    for _ in range(min(examples, len(reached))):
        smallest = min((n for n, group in enumerate(groups) if shares[n] < len(group)), key=lambda n: shares[n])
        shares[smallest] += 1
    return sorted(
        group[n * len(group) // share] for group, share in zip(groups, shares, strict=True) for n in range(share)
    )


def _which(shown: Sequence[_Episode], count: int) -> str:
    kinds = Counter(one.reached for one in shown)
    parts = [f"{kinds[True]} that reached their goal", f"{kinds[False]} that did not"]
    said = f": {' and '.join(parts)}" if kinds[True] or kinds[False] else ""
    more = "; --examples N draws more" if len(shown) < count else ""
    return f"{len(shown)} of {count} are drawn{said}{more}."


def _facts(episodes: Sequence[_Episode]) -> dict[str, Any]:
    goals, lengths = [one.reached for one in episodes if one.reached is not None], [one.steps for one in episodes]
    facts: dict[str, Any] = {"episodes": len(episodes), "steps": sum(lengths)}
    if len(lengths) > 1:
        facts["steps of an episode"] = f"{min(lengths)} to {max(lengths)}, median {median(lengths):g}"
    facts["steps that failed"] = sum(one.failed for one in episodes)
    return facts | ({"goals reached": f"{sum(goals)} of {len(goals)}"} if goals else {})


def _bars(verbs: Counter[str]) -> str:
    values = {verb: {"steps": count} for verb, count in verbs.most_common(_VERBS)}
    return bar_chart(values, title="Steps by verb", x_label="steps")


def _settings(folder: Path) -> dict[str, Any]:
    return dict(read_json(folder / MANIFEST).get("settings", {}))
