"""Skill against forgetting: where each arm stands, which lie on the Pareto front, and who dominates whom.

    skill        mean over the QA and generation sets of accuracy, ROUGE-L or list overlap; higher is better
    forgetting   mean over corpora of nats per token above the base's; lower is better

Arm a dominates b if it is at least as good in both and better in one.  In one of the two it is better beyond chance if
the 95 % interval of the paired difference (bootstrap over examples, sets and corpora each by themselves) lies on its
side of 0, and every seed that both have agrees; it dominates clearly if it is so in both.  Bootstrap speaks of other
examples, seeds of other runs: neither stands for the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax.compare.examples import Sample, difference, mean_sample, sample_of
from e2wm_jax.evaluate.results import headline
from e2wm_jax.evaluate.statistics import bootstrap_means, percentile_interval
from e2wm_jax.storage.files import read_json

SKILL_KINDS = ("qa", "generate")
BASE = "base"


@dataclass(frozen=True)
class _Standing:
    """An arm's scores, or the base's."""

    name: str
    series: str
    seeds: tuple[int, ...]
    skill: np.ndarray  # [seeds], mean over sets
    forgetting: np.ndarray  # [seeds], mean over corpora
    sets: dict[str, np.ndarray]  # [seeds] of each set: its score; of each corpus: nats above the base's
    nats: list[Sample | None]  # of each corpus, means over seeds
    skill_means: np.ndarray | None  # [R], resampled; all arms by the same draws, so a difference of two is paired
    nats_means: np.ndarray | None


def trade_off(record: Mapping[str, Any], out: Path) -> list[dict[str, Any]]:
    """Base and arms as comparison.json has them: skill and forgetting with an interval, front and dominance.

    An interval is the mean and its standard error where there are several seeds, else a 95 % bootstrap interval over
    examples, or nothing where predictions are missing.
    """
    base = record["base"]
    kinds = {one["name"]: one["kind"] for one in (*record["config"]["sets"], *record["config"]["texts"])}
    standings = [_standing(BASE, BASE, [base | {"seed": 0}], base, kinds, out)]
    for arm in record["arms"]:
        runs = [run for run in arm["runs"] if run["sets"]]
        if runs:
            standings.append(_standing(arm["name"], arm["series"], runs, base, kinds, out))
    return [_entry(one, standings) for one in standings]


def _standing(
    name: str,
    series: str,
    runs: Sequence[Mapping[str, Any]],
    base: Mapping[str, Any],
    kinds: Mapping[str, str],
    out: Path,
) -> _Standing:
    scores = {
        one: np.array([run["sets"][one][headline(base["sets"][one])] for run in runs])
        - (base["sets"][one]["nats"] if kinds[one] == "perplexity" else 0.0)
        for one in base["sets"]
    }
    skills = [one for one in scores if kinds[one] in SKILL_KINDS]
    texts = [one for one in scores if kinds[one] == "perplexity"]

    examples = [read_json(out / run["folder"] / "result.json")["examples"] for run in runs]

    def sample(one: str) -> Sample | None:
        return mean_sample([sample_of(found, one) for found in examples])

    nats = [sample(one) for one in texts]
    return _Standing(
        name=name,
        series=series,
        seeds=tuple(run["seed"] for run in runs),
        skill=np.mean([scores[one] for one in skills], axis=0),
        forgetting=np.mean([scores[one] for one in texts], axis=0),
        sets=scores,
        nats=nats,
        skill_means=_means([sample(one) for one in skills]),
        nats_means=_means(nats),
    )


def _entry(one: _Standing, standings: Sequence[_Standing]) -> dict[str, Any]:
    base = standings[0]
    beaten = [other for other in standings if _dominates(one, other)]
    unlike = [difference(a, b) for a, b in zip(one.nats, base.nats, strict=True)]
    beyond = {other.name: _beyond_chance(one, other) for other in standings if other is not one}
    return {
        "arm": one.name,
        "series": one.series,
        "runs": len(one.seeds),
        "skill": _with_interval(one.skill, one.skill_means),
        "forgetting": _with_interval(one.forgetting, _means(unlike)) if one is not base else _fixed(0.0),
        "error_of": "seeds" if len(one.seeds) > 1 else "examples",
        "sets": {name: _with_error(values) for name, values in one.sets.items()},
        "front": not any(_dominates(other, one) for other in standings),
        "dominates": [other.name for other in beaten],
        "clearly": [name for name, better in beyond.items() if all(better)],
        "more_skill": [name for name, (skill, _) in beyond.items() if skill],
        "less_forgetting": [name for name, (_, kept) in beyond.items() if kept],
    }


def _dominates(a: _Standing, b: _Standing) -> bool:
    skill, kept = a.skill.mean() - b.skill.mean(), b.forgetting.mean() - a.forgetting.mean()
    return bool(skill >= 0 and kept >= 0 and (skill > 0 or kept > 0))


def _beyond_chance(a: _Standing, b: _Standing) -> tuple[bool, bool]:
    """Whether a has more skill, and whether it forgets less, beyond what other examples and seeds change."""
    skill, kept = _positive(a.skill_means, b.skill_means), _positive(b.nats_means, a.nats_means)
    both = [seed for seed in a.seeds if seed in b.seeds]
    if BASE in (a.name, b.name) or len(both) < 2:
        return skill, kept
    ours, theirs = ([one.seeds.index(seed) for seed in both] for one in (a, b))
    return (
        skill and bool((a.skill[ours] > b.skill[theirs]).all()),
        kept and bool((a.forgetting[ours] < b.forgetting[theirs]).all()),
    )


def _positive(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether the 95 % interval of a - b lies above 0."""
    return a is not None and b is not None and percentile_interval(a - b)[0] > 0


def _means(samples: Sequence[Sample | None]) -> np.ndarray | None:
    """Resampled means over sets [R]; None where a set's examples are not known."""
    found = [sample for sample in samples if sample is not None]
    if not found or len(found) < len(samples):
        return None
    return np.mean([bootstrap_means(s.values, number, weights=s.weights) for number, s in enumerate(found)], axis=0)


def _with_interval(values: np.ndarray, means: np.ndarray | None) -> dict[str, Any]:
    """Mean over seeds with its standard error, or for one seed the interval over examples."""
    mean = float(values.mean())
    if len(values) > 1:
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        return {"mean": mean, "low": mean - error, "high": mean + error}
    return {"mean": mean, "low": None, "high": None} if means is None else _fixed(mean, *percentile_interval(means))


def _fixed(mean: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"mean": mean, "low": mean if low is None else low, "high": mean if high is None else high}


def _with_error(values: np.ndarray) -> dict[str, Any]:
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "error": error}
