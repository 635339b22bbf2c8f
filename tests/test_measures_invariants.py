"""lower <= value <= upper, for every metric with an interval, on small random data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from calibit import measures as m
from calibit.measures.calibration import STATISTICS, binned_change
from calibit.measures.estimate import Estimate
from calibit.measures.intervals import bounded_mean

DRAW = m.Resampling(resamples=199)
ONE_MODEL: dict[str, Callable[..., Estimate]] = {
    **{name: getattr(m, name) for name in STATISTICS},
    "auroc": m.auroc,
    "aurc": m.aurc,
}


def _sample(seed: int, n: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and correctness; calibrated where spread is 0."""
    rng = np.random.default_rng([seed, n])
    confidence = rng.uniform(0.25, 1.0, n)
    truth = np.clip(confidence + spread * rng.normal(size=n), 0.0, 1.0)
    return confidence, (rng.random(n) < truth).astype(float)


def _holds(found: Estimate) -> bool:
    if found.value is None or found.lower is None or found.upper is None:
        return found.reason is not None
    return found.lower <= found.value <= found.upper


@pytest.mark.parametrize("metric", sorted(ONE_MODEL))
@pytest.mark.parametrize("n", [5, 20, 80, 300])
def test_an_interval_holds_its_estimate(metric: str, n: int) -> None:
    for seed in range(15):
        found = ONE_MODEL[metric](*_sample(seed, n, 0.1 * (seed % 3)), resampling=DRAW)
        assert _holds(found), (seed, found)
        if metric in ("ece", "debiased_l2", "plugin_l2"):
            assert found.lower >= 0.0


@pytest.mark.parametrize("metric", sorted(STATISTICS))
@pytest.mark.parametrize("n", [5, 20, 80, 300])
def test_an_interval_of_a_change_holds_it(metric: str, n: int) -> None:
    for seed in range(15):
        before, right = _sample(seed, n, 0.2)
        after = np.clip(before**2, 0.0, 1.0)
        change = binned_change(metric, (before, right), (after, right), resampling=DRAW)
        assert _holds(change.estimate), (seed, change.estimate)


@pytest.mark.parametrize("method", ["bca", "percentile"])
@pytest.mark.parametrize("n", [2, 3, 5, 20, 150])
def test_an_interval_of_a_mean_holds_it(method: str, n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(20):
        values = rng.exponential(size=n) ** 3
        assert _holds(m.mean_difference(values, method=method, resampling=DRAW))


def test_draws_beside_the_estimate_are_centred_on_it() -> None:
    """A calibrated model: resampled items have a larger calibration error than the items."""
    centred = 0
    for seed in range(15):
        found = m.plugin_l2(*_sample(seed, 300, 0.0), resampling=DRAW)
        centred += found.interval == "percentile_centred"
    assert centred > 0


def test_shares_without_spread_have_an_interval() -> None:
    """Two prompts repeated whole: 0.025 ** (1 / 2) is the least share that shows two of two."""
    ones = np.ones(2)
    found = bounded_mean(m.mean_difference(ones, resampling=DRAW), ones)
    assert (found.lower, found.upper) == (pytest.approx(0.025**0.5), 1.0)
    assert found.interval == "clopper_pearson" and found.resamples is None
    uneven = np.array([1.0, 0.9, 1.0])
    found = bounded_mean(m.mean_difference(uneven, resampling=DRAW), uneven)
    assert 0.0 <= found.lower < float(found) < found.upper == 1.0
