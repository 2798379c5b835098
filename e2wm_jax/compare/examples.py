"""What a model got in each example of a set, from the predictions that its evaluation left.

Letters: N examples of a set.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from e2wm_jax.evaluate.questions import qa
from e2wm_jax.evaluate.results import headline
from e2wm_jax.evaluate.texts import generation
from e2wm_jax.storage.files import read_json_lines


class Sample(NamedTuple):
    """Scores of a set's examples and how much each counts: sum(weights values) / sum(weights) is the set's score."""

    values: np.ndarray  # [N]
    weights: np.ndarray  # [N]


def examples_of(evaluation: Path, sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of the examples of every evaluated set whose predictions are kept, as plain JSON."""
    found = {name: read_sample(evaluation, name, headline(scores)) for name, scores in sets.items()}
    return {
        name: {"values": sample.values.tolist(), "weights": sample.weights.tolist()}
        for name, sample in found.items()
        if sample is not None
    }


def sample_of(examples: Mapping[str, Any], name: str) -> Sample | None:
    """What `examples_of` wrote of a set."""
    found = examples.get(name)
    return None if found is None else Sample(np.array(found["values"]), np.array(found["weights"]))


def read_sample(evaluation: Path, name: str, metric: str) -> Sample | None:
    """Scores of the examples of set `name`; None where no predictions are kept, or none of such a score."""
    path = evaluation / "predictions" / f"{name}.jsonl"
    if not path.is_file():
        return None
    records = sorted((record for _, record in read_json_lines(path)), key=lambda record: record["index"])
    if metric == "nats":  # those of a document are their sum
        tokens = np.array([record["tokens"] for record in records], np.float64)
        return Sample(np.array([record["nats"] for record in records]) / tokens, tokens)
    if metric == "accuracy":
        values = np.array(qa.hits(records), np.float64)
    elif metric in ("lcs", "rougeL"):
        values = np.array(generation.example_scores(name, records)[metric], np.float64)
    else:
        return None
    return Sample(values, np.ones(len(values)))


def mean_sample(samples: Sequence[Sample | None]) -> Sample | None:
    """The mean over several runs, of each example."""
    found = [sample for sample in samples if sample is not None]
    if len(found) < len(samples) or not found or len({len(sample.values) for sample in found}) > 1:
        return None
    return Sample(np.mean([sample.values for sample in found], axis=0), found[0].weights)


def difference(a: Sample | None, b: Sample | None) -> Sample | None:
    """a - b, example by example."""
    if a is None or b is None or len(a.values) != len(b.values):
        return None
    return Sample(a.values - b.values, a.weights)
