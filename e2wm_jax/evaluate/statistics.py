"""How sure a score is: percentile bootstrap over examples (Efron 1979).

The examples of a set are drawn again, as many with replacement as there are; an interval holds the middle `level` of
the means of such draws.  It speaks of other examples of the same kind, not of other seeds of a training run.

Letters: N examples, R resamples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_DRAWS_AT_ONCE = 1 << 20  # numbers in memory


class Difference(NamedTuple):
    """Of two models on the same examples: mean of a - b, its interval, and a two-sided p."""

    mean: float
    low: float
    high: float
    p: float


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
) -> tuple[float, float]:
    """Low and high end of the interval of the mean of ``values`` [N], or of sum(weights values) / sum(weights).

    Raises:
        ValueError: for no values, or a level that is not between 0 and 1.
    """
    return percentile_interval(bootstrap_means(values, seed, resamples, weights=weights), level)


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> Difference:
    """Mean of a - b over the examples that both were scored on, [N] each, resampled together.

    p is twice the share of resampled means on the other side of 0, itself counted as one more resample, so at least
    2 / (R + 1) and at most 1; two models that agree on every example have 1.

    Raises:
        ValueError: if the lengths differ or are 0.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{first.shape=} and {second.shape=}: pairs need the same examples")
    means = bootstrap_means(first - second, seed, resamples)
    beyond = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    p = min(1.0, 2 * (1 + int(beyond)) / (resamples + 1))
    return Difference(float(np.mean(first - second)), *percentile_interval(means, level), p)


def bootstrap_means(
    values: Sequence[float] | np.ndarray,
    seed: int = 0,
    resamples: int = 2000,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """The (weighted) means [R] of resampled ``values`` [N]; scores of several sets may be added before an interval.

    Raises:
        ValueError: for no values.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"{numbers.shape=}: give one value per example, and at least one")
    shares = None if weights is None else np.asarray(weights, np.float64)
    rng, rows = np.random.default_rng(seed), max(1, _DRAWS_AT_ONCE // len(numbers))
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, len(numbers), (min(rows, resamples - start), len(numbers)))
        if shares is None:
            means.append(numbers[drawn].mean(axis=1))
        else:
            means.append((shares * numbers)[drawn].sum(axis=1) / shares[drawn].sum(axis=1))
    return np.concatenate(means)


def percentile_interval(means: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle ``level`` of the means [R].

    Raises:
        ValueError: if the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"{level=} must be between 0 and 1")
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
