"""Intervals against scipy's bootstrap, draw for draw, and against cases whose distribution is known."""

import numpy as np
import pytest

from e2wm_jax.evaluate import statistics
from e2wm_jax.evaluate.statistics import bootstrap_interval, bootstrap_means, paired_difference, percentile_interval


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(7).gamma(2.0, size=(2, 60))


def scipy_interval(data, statistic, seed: int, level: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    bootstrap = pytest.importorskip("scipy.stats").bootstrap
    found = bootstrap(
        data,
        statistic,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        paired=len(data) > 1,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return tuple(found.confidence_interval)


@pytest.mark.parametrize(("seed", "level", "resamples"), [(0, 0.95, 2000), (3, 0.8, 999)])
def test_intervals_equal_scipy(values, seed, level, resamples):
    ours = bootstrap_interval(values[0], seed, level, resamples)
    np.testing.assert_allclose(ours, scipy_interval((values[0],), np.mean, seed, level, resamples), rtol=1e-12)


def test_weighted_intervals_equal_scipy(values):
    def ratio(x: np.ndarray, w: np.ndarray, axis: int) -> np.ndarray:
        return (x * w).sum(axis) / w.sum(axis)

    ours = bootstrap_interval(values[0], 1, weights=values[1])
    np.testing.assert_allclose(ours, scipy_interval((values[0], values[1]), ratio, 1), rtol=1e-12)


def test_paired_intervals_equal_scipy(values):
    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis) - y.mean(axis)

    found = paired_difference(values[0], values[1], 5)
    np.testing.assert_allclose(found[1:3], scipy_interval((values[0], values[1]), difference, 5), rtol=1e-9)
    assert found.mean == pytest.approx(values[0].mean() - values[1].mean())


def test_two_values_by_hand():
    """Means of two draws from {0, 1} are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4."""
    assert bootstrap_interval([0, 1]) == (0.0, 1.0)
    assert bootstrap_interval([0, 1], level=0.4) == (0.5, 0.5)
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)


def test_p_by_hand():
    assert paired_difference([1, 0, 1], [1, 0, 1]).p == 1.0
    assert paired_difference([2, 3, 4], [1, 2, 3], resamples=999) == (1.0, 1.0, 1.0, pytest.approx(2 / 1000))
    # One of four is worse by as much as the others are better: a draw of four is at most 0 if two or more are that
    # one, with probability 1 - .75^4 - 4 (.25) .75^3.
    found = paired_difference([1, 1, 1, 0], [0, 0, 0, 1], resamples=40000)
    assert found.mean == 0.5
    assert found.p == pytest.approx(2 * (1 - 0.75**4 - 0.75**3), abs=0.02)
    assert paired_difference([0, 0, 0, 1], [1, 1, 1, 0], resamples=40000).p == pytest.approx(found.p, abs=1e-9)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        low, high = bootstrap_interval(rng.normal(1.0, 2.0, 50), trial, resamples=400)
        inside += low <= 1.0 <= high
    assert 0.90 < inside / 300 < 0.98


def test_draws_do_not_depend_on_how_many_are_in_memory(values, monkeypatch):
    whole = bootstrap_means(values[0], 2, 501)
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 7 * 60)
    np.testing.assert_array_equal(bootstrap_means(values[0], 2, 501), whole)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        percentile_interval(np.zeros(3), 1.0)
    with pytest.raises(ValueError, match="the same examples"):
        paired_difference([1.0, 2.0], [1.0])
