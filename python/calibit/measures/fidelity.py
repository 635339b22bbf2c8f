"""Two models on the same items: divergences, changes of confidence, flips."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.binning import indicator
from calibit.measures.confidence import NO_ITEMS, mean_of
from calibit.measures.distributions import Distributions, segment_sum
from calibit.measures.estimate import Estimate, undefined
from calibit.measures.intervals import within
from calibit.measures.pairs import same_items
from calibit.measures.proper import labelled_pair
from calibit.measures.resampling import Resampling


def kl_ab(a: Any, b: Any, *, resampling: Resampling | None = None) -> Estimate:
    """Mean Kullback-Leibler divergence KL(a || b) in nats; infinite only where b gives 0 to what a
    does not.

    Args:
        a: reference: Scores, Distributions, or log scores [N, K] (K may differ per item).
        b: candidate on the same items.
        resampling: asks for a BCa interval.

    Returns:
        Estimate; `extra["max"]` is the largest item.

    Raises:
        ValueError: if the items differ in number or in number of choices.
    """
    return _divergence("kl_ab", kl_values(*same_items(a, b, op="kl_ab")), resampling, "nats")


def kl_ba(a: Any, b: Any, *, resampling: Resampling | None = None) -> Estimate:
    """Mean Kullback-Leibler divergence KL(b || a) in nats (arguments as in `kl_ab`)."""
    first, second = same_items(a, b, op="kl_ba")
    return _divergence("kl_ba", kl_values(second, first), resampling, "nats")


def jsd(a: Any, b: Any, *, unit: str = "nats", resampling: Resampling | None = None) -> Estimate:
    """Mean Jensen-Shannon divergence, at most ln 2 nats = 1 bit per item.

    Args:
        a, b: as in `kl_ab`.
        unit: "nats" or "bits".
        resampling: asks for a BCa interval.
    """
    if unit not in ("nats", "bits"):
        raise ValueError(f"[jsd] expected unit nats or bits, got {unit!r}")
    values = jsd_values(*same_items(a, b, op="jsd"))
    return _divergence(
        "jsd", values if unit == "nats" else values / math.log(2.0), resampling, unit
    )


def js_distance(
    a: Any, b: Any, *, base: float = 2.0, resampling: Resampling | None = None
) -> Estimate:
    """Mean over items of the Jensen-Shannon distance, the root of the divergence.

    It lies in [0, 1] for base 2. The mean of roots is not the root of the mean.
    """
    values = np.sqrt(jsd_values(*same_items(a, b, op="js_distance")) / math.log(base))
    return _divergence("js_distance", values, resampling, "", base=base)


def tv(a: Any, b: Any, *, resampling: Resampling | None = None) -> Estimate:
    """Mean total variation distance: half the sum of |p_a - p_b|."""
    first, second = same_items(a, b, op="tv")
    return _divergence("tv", tv_values(first, second), resampling, "")


def d_conf_true(
    a: Any, b: Any, gold: ArrayLike | None = None, *, resampling: Resampling | None = None
) -> Estimate:
    """Mean change of the gold choice's probability, b minus a.

    Args:
        a, b: as in `kl_ab`.
        gold: int [N], -1 = unlabelled; taken from `a` where it is a Scores.
        resampling: asks for a BCa interval.
    """
    same_items(a, b, op="d_conf_true")
    first, labels = labelled_pair(a, gold, op="d_conf_true")
    second, _ = labelled_pair(
        b, getattr(a, "gold", None) if gold is None else gold, op="d_conf_true"
    )
    return mean_of("d_conf_true", second.of(labels)[0] - first.of(labels)[0], resampling)


def d_conf(a: Any, b: Any, *, resampling: Resampling | None = None) -> Estimate:
    """Mean change of confidence (largest probability), b minus a."""
    first, second = same_items(a, b, op="d_conf")
    return mean_of("d_conf", second.confidence - first.confidence, resampling)


def rr(correct_a: ArrayLike, correct_b: ArrayLike) -> Estimate:
    """Number of items that both models get right."""
    return _cell("rr", correct_a, correct_b, 1, 1)


def rw(correct_a: ArrayLike, correct_b: ArrayLike) -> Estimate:
    """Number of items right in a and wrong in b."""
    return _cell("rw", correct_a, correct_b, 1, 0)


def wr(correct_a: ArrayLike, correct_b: ArrayLike) -> Estimate:
    """Number of items wrong in a and right in b."""
    return _cell("wr", correct_a, correct_b, 0, 1)


def ww(correct_a: ArrayLike, correct_b: ArrayLike) -> Estimate:
    """Number of items that both models get wrong."""
    return _cell("ww", correct_a, correct_b, 0, 0)


def flips(correct_a: ArrayLike, correct_b: ArrayLike) -> Estimate:
    """Number of items whose correctness changes, rw + wr; `extra["rate"]` is their share."""
    first, second = _paired_indicators(correct_a, correct_b, "flips")
    return _count("flips", first != second)


def all_flips(predicted_a: ArrayLike, predicted_b: ArrayLike) -> Estimate:
    """Number of items whose predicted choice changes (adds wrong to other wrong).

    The share is in `extra["rate"]`.
    """
    first, second = np.asarray(predicted_a), np.asarray(predicted_b)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"[all_flips] expected two arrays of one shape [N], "
            f"got {first.shape} and {second.shape}"
        )
    return _count("all_flips", first != second)


def recovery(value_a: float, value_b: float, *, metric: str = "recovery") -> Estimate:
    """Candidate's metric as a share of the reference's, b / a; None where the reference is 0."""
    if float(value_a) == 0.0:
        return undefined(metric, "the reference value is 0", estimator="ratio")
    return Estimate(metric, float(value_b) / float(value_a), "ratio")


def kl_values(a: Distributions, b: Distributions) -> np.ndarray:
    """KL(a || b) per item in nats, float64 [N]."""
    used = a.p > 0
    with np.errstate(invalid="ignore"):
        terms = np.where(used, a.p * (a.log_p - np.where(used, b.log_p, 0.0)), 0.0)
    return segment_sum(np.where(used, terms, 0.0), a.offsets)


def tv_values(a: Distributions, b: Distributions) -> np.ndarray:
    """Total variation distance per item, float64 [N]."""
    return segment_sum(np.abs(a.p - b.p), a.offsets) / 2.0


def jsd_values(a: Distributions, b: Distributions) -> np.ndarray:
    """Jensen-Shannon divergence per item in nats, float64 [N], clamped at 0."""
    top = np.maximum(a.log_p, b.log_p)
    with np.errstate(invalid="ignore"):
        apart = np.where(np.isneginf(top), 0.0, np.abs(a.log_p - b.log_p))
    # Equal distributions give exactly 0: the bracket vanishes, which logaddexp - log 2 does not.
    middle = top + (np.log1p(np.exp(-apart)) - math.log(2.0))
    mixture = Distributions(log_p=middle, p=np.exp(middle), offsets=a.offsets)
    return np.maximum(0.0, (kl_values(a, mixture) + kl_values(b, mixture)) / 2.0)


def _divergence(
    metric: str, values: np.ndarray, resampling: Resampling | None, unit: str, **facts: Any
) -> Estimate:
    if not len(values):
        return undefined(metric, NO_ITEMS, unit=unit)
    found = mean_of(metric, values, resampling, unit=unit, max=float(values.max()), **facts)
    return within(found, 0.0)


def _paired_indicators(
    correct_a: ArrayLike, correct_b: ArrayLike, op: str
) -> tuple[np.ndarray, np.ndarray]:
    first, second = (
        indicator(correct_a, op=op, name="correct_a"),
        indicator(correct_b, op=op, name="correct_b"),
    )
    if len(first) != len(second):
        raise ValueError(
            f"[{op}] expected the same items in a and b, got {len(first)} and {len(second)} items"
        )
    return first, second


def _cell(
    metric: str, correct_a: ArrayLike, correct_b: ArrayLike, before: int, after: int
) -> Estimate:
    first, second = _paired_indicators(correct_a, correct_b, metric)
    return _count(metric, (first == before) & (second == after))


def _count(metric: str, chosen: np.ndarray) -> Estimate:
    if not len(chosen):
        return undefined(metric, NO_ITEMS, estimator="count", unit="items")
    count = int(np.count_nonzero(chosen))
    return Estimate(
        metric, float(count), "count", len(chosen), "items", extra={"rate": count / len(chosen)}
    )
