"""What the scores of a set, as `eval all` and the comparisons keep them, say in one number."""

import math
from collections.abc import Mapping
from typing import Any

# The score of a set by which models are compared.
HEADLINES = ("accuracy", "lcs", "rougeL", "mean", "nats")
Scores = Mapping[str, Any]


def power(base: float, exponent: float) -> float | None:
    """base ** exponent, such as a perplexity e ** nats; None where that is beyond float64 (from 710 nats on)."""
    try:
        return math.exp(exponent) if base == math.e else base**exponent
    except OverflowError:
        return None


def headline(scores: Scores) -> str:
    """The metric by which models are compared on a set: accuracy, lcs, rougeL, bAbI's mean, or nats."""
    return next(name for name in HEADLINES if isinstance(scores.get(name), int | float))


def majority_of(scores: Scores) -> float | None:
    """What always giving the most frequent answer scores; of bAbI the mean over tasks; None where none occurs twice."""
    found = scores.get("majority")
    if not isinstance(found, Mapping):
        return found
    return None if max(scores["n"].values()) == 1 else sum(found.values()) / len(found)


def number_of(scores: Scores) -> int:
    """How many examples a set has; of bAbI in all of its tasks."""
    found = scores["n"]
    return sum(found.values()) if isinstance(found, Mapping) else found
