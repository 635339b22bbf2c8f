"""Calibration error of the top label: all are functions of bin sums.

Every function takes bin sums with any number of leading axes, so that the value and its bootstrap
draws come from the same lines. Plug-in estimators are biased upwards for few items and many bins:
`ece_null` says what a perfectly calibrated model of the same confidences would show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.binning import DEFAULT_BINS, bin_sums, top_label, unit_values
from calibit.measures.confidence import NO_ITEMS
from calibit.measures.estimate import Estimate, undefined
from calibit.measures.intervals import percentile
from calibit.measures.resampling import Resampling, paired_bin_sums, resampled_bin_sums


@dataclass(frozen=True, eq=False)
class Change:
    """A change with its interval, the value on both sides, and the change on every resample
    (float64 [resamples])."""

    estimate: Estimate
    before: float
    after: float
    draws: np.ndarray


def ece(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    bins: int = DEFAULT_BINS,
    resampling: Resampling | None = None,
) -> Estimate:
    """Expected calibration error: sum of n_b/N |acc_b - conf_b| over equal-width bins.

    Args:
        confidence: float [N] in [0, 1].
        correct: [N], 0 or 1.
        bins: number of bins.
        resampling: asks for a percentile interval (of a biased estimator).

    Returns:
        Estimate; None without items.

    Raises:
        ValueError: for NaN, confidences outside [0, 1], unequal lengths.

    Example:
        >>> round(float(ece([0.95, 1.0, 1.0], [1, 1, 0], bins=10)), 10)
        0.3166666667
    """
    return _binned("ece", confidence, correct, bins, "width", ece_of_sums, resampling)


def ece_mass(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    bins: int = DEFAULT_BINS,
    resampling: Resampling | None = None,
) -> Estimate:
    """ECE over bins of equal mass (equal values stay together)."""
    return _binned("ece_mass", confidence, correct, bins, "mass", ece_of_sums, resampling)


def rmsce(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    bins: int = DEFAULT_BINS,
    resampling: Resampling | None = None,
) -> Estimate:
    """Root mean square calibration error, sqrt of sum n_b/N (acc_b - conf_b)^2, equal widths."""
    return _binned("rmsce", confidence, correct, bins, "width", l2_of_sums, resampling)


def mce(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = DEFAULT_BINS, n_min: int = 10
) -> Estimate:
    """Maximum of |acc_b - conf_b| over equal-width bins with at least `n_min` items.

    Args:
        confidence: float [N] in [0, 1].
        correct: [N], 0 or 1.
        bins: number of bins.
        n_min: smallest bin that counts; 1 = every non-empty bin.

    Returns:
        Estimate; `extra["n_bin"]` is the size of the bin that attains it. None if no bin is large
        enough.
    """
    c, r = top_label(confidence, correct, op="mce")
    facts = {"bins": bins, "binning": "width", "n_min": n_min}
    sums = bin_sums(c, r, bins=bins, rule="width")
    kept = sums[sums[:, 0] >= max(1, n_min)]
    if not len(kept):
        reason = f"no bin holds {n_min} items" if len(c) else NO_ITEMS
        return undefined("mce", reason, n=len(c), estimator="maximum", extra=facts)
    gaps = np.abs(kept[:, 2] - kept[:, 1]) / kept[:, 0]
    worst = int(np.argmax(gaps))
    return Estimate(
        "mce", float(gaps[worst]), "maximum", len(c), extra={**facts, "n_bin": int(kept[worst, 0])}
    )


def plugin_l2(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    bins: int = DEFAULT_BINS,
    resampling: Resampling | None = None,
) -> Estimate:
    """L2 calibration error over equal-mass bins, without bias correction."""
    return _binned("plugin_l2", confidence, correct, bins, "mass", l2_of_sums, resampling)


def debiased_l2(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    bins: int = DEFAULT_BINS,
    resampling: Resampling | None = None,
) -> Estimate:
    """L2 calibration error over equal-mass bins, bias-corrected (Kumar, Liang and Ma 2019).

    sqrt(max(0, sum of n_b/N [(conf_b - acc_b)^2 - acc_b (1 - acc_b) / (n_b - 1)])); bins with one
    item contribute 0.
    """
    return _binned(
        "debiased_l2",
        confidence,
        correct,
        bins,
        "mass",
        debiased_l2_of_sums,
        resampling,
        "debiased",
    )


def debiased_l1(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    bins: int = DEFAULT_BINS,
    resampling: Resampling | None = None,
) -> Estimate:
    """ECE over equal-mass bins minus its bias under a normal model of each bin's gap.

    The result may be negative.
    """
    return _binned(
        "debiased_l1",
        confidence,
        correct,
        bins,
        "mass",
        debiased_l1_of_sums,
        resampling,
        "debiased",
    )


def ece_null(
    confidence: ArrayLike, *, bins: int = DEFAULT_BINS, draws: int = 1000, seed: int = 0
) -> Estimate:
    """ECE that a perfectly calibrated model of these confidences would show by chance.

    Args:
        confidence: float [N] in [0, 1].
        bins: number of equal-width bins.
        draws: number of simulated data sets, r_i ~ Bernoulli(c_i).
        seed: seed of `numpy.random.default_rng`.

    Returns:
        Estimate of the mean; `extra["p95"]` is the 95 % point.
    """
    c = unit_values(confidence, op="ece_null", name="confidence")
    facts = {"bins": bins, "binning": "width", "draws": draws}
    if not len(c):
        return undefined("ece_null", NO_ITEMS, estimator="simulation", extra=facts)
    rng = np.random.default_rng(seed)
    from calibit.measures.binning import width_bins

    in_bin = (width_bins(c, bins)[:, None] == np.arange(bins)).astype(np.float64)
    expected = c @ in_bin
    values = []
    for start in range(0, draws, 100):
        right = (rng.random((min(100, draws - start), len(c))) < c).astype(np.float64)
        values.append(np.abs(right @ in_bin - expected).sum(axis=1) / len(c))
    null = np.concatenate(values)
    facts["p95"] = float(np.quantile(null, 0.95))
    return Estimate("ece_null", float(null.mean()), "simulation", len(c), seed=seed, extra=facts)


def binned_change(
    metric: str,
    before: tuple[ArrayLike, ArrayLike],
    after: tuple[ArrayLike, ArrayLike],
    *,
    bins: int = DEFAULT_BINS,
    resampling: Resampling | None = None,
) -> Change:
    """Change of a binned calibration error between two models on the same items.

    Both sides are computed anew on every resample, with the same draws; the interval is a
    percentile interval of a biased estimator.

    Args:
        metric: "ece", "rmsce", "ece_mass", "plugin_l2", "debiased_l2" or "debiased_l1".
        before, after: confidence [N] and correctness [N] of each model.
        bins: number of bins.
        resampling: the defaults of the project where omitted.

    Raises:
        ValueError: for an unknown metric, no items, or models on different numbers of items.
    """
    if metric not in STATISTICS:
        raise ValueError(
            f"[binned_change] expected a metric of {', '.join(STATISTICS)}, got {metric!r}"
        )
    models = [top_label(*side, op=metric) for side in (before, after)]
    if len(models[0][0]) != len(models[1][0]) or not len(models[0][0]):
        sizes = " and ".join(str(len(c)) for c, _ in models)
        raise ValueError(f"[binned_change] expected the same items in both, got {sizes} items")
    rule, statistic = STATISTICS[metric]
    draw = resampling or Resampling()
    values = [float(statistic(bin_sums(c, r, bins=bins, rule=rule))) for c, r in models]
    drawn = statistic(paired_bin_sums(models, bins=bins, rule=rule, resampling=draw))
    facts = {"bins": bins, "binning": rule, "biased_estimator": True}
    out = Estimate(metric, values[1] - values[0], "difference", len(models[0][0]), extra=facts)
    change = out.with_interval(percentile(drawn[1] - drawn[0], draw, value=out.value))
    return Change(change, values[0], values[1], drawn[1] - drawn[0])


def ece_of_sums(sums: np.ndarray) -> np.ndarray:
    """ECE from bin sums [..., M, 3] (count, sum of confidence, sum of correct)."""
    return np.abs(sums[..., 2] - sums[..., 1]).sum(axis=-1) / sums[..., 0].sum(axis=-1)


def l2_of_sums(sums: np.ndarray) -> np.ndarray:
    """Root of the weighted mean squared gap from bin sums [..., M, 3]."""
    n, gap, _ = _gaps(sums)
    return np.sqrt((n * gap**2).sum(axis=-1) / n.sum(axis=-1))


def squared_debiased_of_sums(sums: np.ndarray) -> np.ndarray:
    """Sum of n_b/N [gap_b^2 - acc_b (1 - acc_b)/(n_b - 1)] from bin sums [..., M, 3].

    The result may be negative.
    """
    n, gap, accuracy = _gaps(sums)
    noise = accuracy * (1.0 - accuracy) / np.maximum(n - 1.0, 1.0)
    return np.where(n >= 2, n * (gap**2 - noise), 0.0).sum(axis=-1) / n.sum(axis=-1)


def debiased_l2_of_sums(sums: np.ndarray) -> np.ndarray:
    """Debiased L2 error from bin sums [..., M, 3]."""
    return np.sqrt(np.maximum(0.0, squared_debiased_of_sums(sums)))


def debiased_l1_of_sums(sums: np.ndarray) -> np.ndarray:
    """Debiased ECE from bin sums [..., M, 3]."""
    from scipy.special import ndtr

    n, gap, accuracy = _gaps(sums)
    s = np.sqrt(accuracy * (1.0 - accuracy) / np.maximum(n, 1.0))
    safe = np.where(s > 0, s, 1.0)
    folded = safe * math.sqrt(2.0 / math.pi) * np.exp(-(gap**2) / (2.0 * safe**2)) + gap * (
        1.0 - 2.0 * ndtr(-gap / safe)
    )
    expected = np.where(s > 0, folded, np.abs(gap))
    return (n * (2.0 * np.abs(gap) - expected)).sum(axis=-1) / n.sum(axis=-1)


def _gaps(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = sums[..., 0]
    size = np.maximum(n, 1.0)
    return n, (sums[..., 2] - sums[..., 1]) / size, sums[..., 2] / size


def _binned(
    metric: str,
    confidence: ArrayLike,
    correct: ArrayLike,
    bins: int,
    rule: str,
    statistic: Callable[[np.ndarray], np.ndarray],
    resampling: Resampling | None,
    estimator: str = "plug-in",
) -> Estimate:
    c, r = top_label(confidence, correct, op=metric)
    facts = {"bins": bins, "binning": rule, "biased_estimator": True}
    if not len(c):
        return undefined(metric, NO_ITEMS, estimator=estimator, extra=facts)
    value = float(statistic(bin_sums(c, r, bins=bins, rule=rule)))
    out = Estimate(metric, value, estimator, len(c), extra=facts)
    if resampling is None:
        return out
    draws = statistic(resampled_bin_sums(c, r, bins=bins, rule=rule, resampling=resampling))
    return out.with_interval(percentile(draws, resampling, value=value, floor=min(0.0, value)))


STATISTICS: Mapping[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "ece": ("width", ece_of_sums),
    "rmsce": ("width", l2_of_sums),
    "ece_mass": ("mass", ece_of_sums),
    "plugin_l2": ("mass", l2_of_sums),
    "debiased_l2": ("mass", debiased_l2_of_sums),
    "debiased_l1": ("mass", debiased_l1_of_sums),
}
"""Metric -> binning rule and function of the bin sums."""
