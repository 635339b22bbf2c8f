"""Accuracy, confidence, entropy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.binning import indicator, top_label, unit_values
from calibit.measures.distributions import Distributions, as_distributions
from calibit.measures.estimate import Estimate, undefined
from calibit.measures.intervals import bca, percentile, share_interval
from calibit.measures.resampling import Resampling, resampled_means, resampled_sums

NO_ITEMS = "no items"


def acc(correct: ArrayLike, *, resampling: Resampling | None = None) -> Estimate:
    """Accuracy, the share of right items; its interval is Clopper and Pearson's.

    Args:
        correct: [N], 0 or 1.
        resampling: gives the level of the interval; no interval without it.

    Example:
        >>> float(acc([1, 0, 1, 1]))
        0.75
    """
    r = indicator(correct, op="acc")
    if not len(r):
        return undefined("acc", NO_ITEMS)
    out = Estimate("acc", float(r.mean()), n=len(r))
    if resampling is None:
        return out
    return out.with_interval(share_interval(r, resampling))


def conf(confidence: ArrayLike, *, resampling: Resampling | None = None) -> Estimate:
    """Mean confidence: mean over items of the largest probability [N]."""
    return mean_of("conf", unit_values(confidence, op="conf", name="confidence"), resampling)


def conf_true(p_true: ArrayLike, *, resampling: Resampling | None = None) -> Estimate:
    """Mean probability of the gold choice [N]."""
    return mean_of("conf_true", unit_values(p_true, op="conf_true", name="p_true"), resampling)


def conf_err(
    confidence: ArrayLike, correct: ArrayLike, *, resampling: Resampling | None = None
) -> Estimate:
    """Mean confidence over the wrong items; None without any."""
    c, r = top_label(confidence, correct, op="conf_err")
    return _conf_where("conf_err", c, 1.0 - r, resampling, "no wrong items")


def conf_correct(
    confidence: ArrayLike, correct: ArrayLike, *, resampling: Resampling | None = None
) -> Estimate:
    """Mean confidence over the right items; None without any."""
    c, r = top_label(confidence, correct, op="conf_correct")
    return _conf_where("conf_correct", c, r, resampling, "no right items")


def overconfidence(
    confidence: ArrayLike, correct: ArrayLike, *, resampling: Resampling | None = None
) -> Estimate:
    """Mean confidence minus accuracy; positive = overconfident."""
    c, r = top_label(confidence, correct, op="overconfidence")
    return mean_of("overconfidence", c - r, resampling)


def abs_gap(
    confidence: ArrayLike, correct: ArrayLike, *, resampling: Resampling | None = None
) -> Estimate:
    """Mean |c - r|: calibration error of right and wrong answers apart.

    It is never below a binned ECE of the same items.
    """
    c, r = top_label(confidence, correct, op="abs_gap")
    return mean_of("abs_gap", np.abs(c - r), resampling)


def margin(scores: Any, *, resampling: Resampling | None = None) -> Estimate:
    """Mean of the largest minus the second largest probability.

    Args:
        scores: Scores, Distributions, or log scores [N, K] (K may differ per item).
        resampling: asks for an interval.
    """
    return mean_of("margin", as_distributions(scores, op="margin").margin, resampling)


def entropy(scores: Any, *, unit: str = "nats", resampling: Resampling | None = None) -> Estimate:
    """Mean entropy of the distribution over choices, with 0 log 0 = 0.

    Args:
        scores: Scores, Distributions, or log scores [N, K] (K may differ per item).
        unit: "nats", "bits", or "normalised" (each item divided by ln K; items with one choice are
            left out).
        resampling: asks for an interval.

    Raises:
        ValueError: for an unknown unit.
    """
    return mean_of(
        "entropy",
        entropy_values(as_distributions(scores, op="entropy"), unit),
        resampling,
        unit=unit,
    )


def entropy_values(distributions: Distributions, unit: str) -> np.ndarray:
    """Entropy per item, float64 [N] ("normalised": of the items with at least two choices)."""
    if unit == "nats":
        return distributions.entropy
    if unit == "bits":
        return distributions.entropy / np.log(2.0)
    if unit != "normalised":
        raise ValueError(f"[entropy] expected unit nats, bits or normalised, got {unit!r}")
    several = distributions.k > 1
    return distributions.entropy[several] / np.log(distributions.k[several])


def mean_of(
    metric: str,
    values: np.ndarray,
    resampling: Resampling | None = None,
    *,
    unit: str = "",
    **extra: Any,
) -> Estimate:
    """Mean of per-item values with a BCa interval where asked for.

    Args:
        metric: metric id.
        values: float64 [N].
        resampling: asks for an interval.
        unit: unit of the values.
        extra: further facts.
    """
    found = means_of({metric: values}, resampling, units={metric: unit})[metric]
    return replace(found, extra=extra)


def means_of(
    columns: Mapping[str, np.ndarray],
    resampling: Resampling | None = None,
    *,
    units: Mapping[str, str] | None = None,
) -> dict[str, Estimate]:
    """Means of per-item values of the same items, with BCa intervals where asked for.

    Args:
        columns: metric id -> float64 [N].
        resampling: asks for intervals; values that are not all finite have none.
        units: metric id -> unit, "" where omitted.
    """
    known = units or {}
    out = {}
    for metric, values in columns.items():
        unit = known.get(metric, "")
        out[metric] = (
            Estimate(metric, float(np.mean(values)), n=len(values), unit=unit)
            if len(values)
            else undefined(metric, NO_ITEMS, unit=unit)
        )
    bounded = [x for x, v in columns.items() if len(v) and np.isfinite(v).all()]
    if resampling is None or not bounded:
        return out
    draws = resampled_means(np.stack([columns[x] for x in bounded], axis=1), resampling)
    for metric, drawn in zip(bounded, draws.T, strict=True):
        out[metric] = out[metric].with_interval(bca(columns[metric], drawn, resampling))
    return out


def _conf_where(
    metric: str, c: np.ndarray, chosen: np.ndarray, resampling: Resampling | None, reason: str
) -> Estimate:
    count = int(chosen.sum())
    if not count:
        return undefined(metric, reason if len(c) else NO_ITEMS)
    out = Estimate(metric, float((c * chosen).sum() / count), n=count)
    if resampling is None:
        return out
    sums = resampled_sums(np.stack([c * chosen, chosen], axis=1), resampling)
    with np.errstate(invalid="ignore"):
        draws = sums[:, 0] / sums[:, 1]
    return out.with_interval(percentile(draws, resampling, value=out.value, floor=0.0))
