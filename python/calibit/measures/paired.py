"""Paired statistics on the same items; the unpaired two-proportion test has no place here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.estimate import Estimate, undefined
from calibit.measures.intervals import bca, cluster_error, percentile
from calibit.measures.resampling import Resampling, resampled_means, signed_group_sums

_EXACT_LIMIT = 20
"""Up to this many units all 2^N sign patterns are tried."""


@dataclass(frozen=True)
class McNemar:
    """Two-sided McNemar test of the discordant pairs `rw` and `wr`: exact and mid-p values."""

    rw: int
    wr: int
    p: float
    mid_p: float


def mcnemar(rw: int, wr: int) -> McNemar:
    """Exact two-sided McNemar test (never to be compared with a one-sided one).

    Args:
        rw: items right before and wrong after.
        wr: items wrong before and right after.

    Raises:
        ValueError: for negative counts.

    Example:
        >>> round(mcnemar(60, 36).p, 10)
        0.0184333529
    """
    from scipy.special import bdtr

    if rw < 0 or wr < 0:
        raise ValueError(f"[mcnemar] expected counts of at least 0, got rw {rw}, wr {wr}")
    n, least = rw + wr, min(rw, wr)
    if n == 0:
        return McNemar(rw, wr, 1.0, 1.0)
    at_most = float(bdtr(least, n, 0.5))
    below = float(bdtr(least - 1, n, 0.5)) if least else 0.0
    return McNemar(rw, wr, min(1.0, 2.0 * at_most), min(1.0, at_most + below))


def mean_difference(
    values: ArrayLike,
    *,
    metric: str = "mean_difference",
    clusters: Sequence[object] | np.ndarray | None = None,
    method: str = "bca",
    resampling: Resampling | None = None,
) -> Estimate:
    """Mean of per-item differences with a bootstrap interval over items, or over clusters of items.

    Args:
        values: float [N], one difference per item.
        metric: metric id of the result.
        clusters: [N] cluster label per item (passage, prompt); clusters are then resampled whole.
            Those of `resampling` where omitted.
        method: "bca" or "percentile".
        resampling: level, resamples, seed and clusters; the defaults of the project where omitted.

    Returns:
        Estimate; `extra["se"]` is the (clustered) standard error, `extra["clusters"]` their number.

    Raises:
        ValueError: for values that are not finite, or an unknown method.
    """
    d, draw = _finite(values, "mean_difference"), resampling or Resampling()
    if method not in ("bca", "percentile"):
        raise ValueError(f"[mean_difference] expected method bca or percentile, got {method!r}")
    if not len(d):
        return undefined(metric, "no items")
    if clusters is not None:
        draw = replace(draw, clusters=cluster_index(clusters, len(d)))
    labels = draw.clusters_of(len(d))
    facts: dict[str, float | None] = {"se": standard_error(d)}
    if labels is not None:
        facts = {"se": clustered_standard_error(d, labels), "clusters": int(labels.max()) + 1}
    draws = resampled_means(d[:, None], draw)[:, 0]
    out = Estimate(metric, float(d.mean()), n=len(d), extra=facts)
    if method == "bca":
        return out.with_interval(bca(d, draws, draw))
    return out.with_interval(percentile(draws, draw, value=out.value))


def standard_error(values: np.ndarray) -> float | None:
    """sd / sqrt(N) with N - 1 in the variance; None for fewer than two values."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def clustered_standard_error(
    values: ArrayLike, clusters: Sequence[object] | np.ndarray
) -> float | None:
    """sqrt(sum over clusters of (sum of d_i - mean)^2 * C / (C - 1)) / N; None for fewer than two
    clusters.

    Args:
        values: float [N].
        clusters: [N] cluster label per item.
    """
    d = _finite(values, "clustered_standard_error")
    labels = cluster_index(clusters, len(d))
    if not len(d) or labels.max() == 0:
        return None
    return cluster_error(d, labels)


def cluster_index(clusters: Sequence[object] | np.ndarray, n: int) -> np.ndarray:
    """Cluster number per item in order of first appearance, int64 [n].

    Raises:
        ValueError: unless there is one label per item.
    """
    if len(clusters) != n:
        raise ValueError(f"[clusters] expected {n} labels, got {len(clusters)}")
    seen: dict[object, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in clusters], dtype=np.int64)


def sign_flip_test(values: ArrayLike, *, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p value of mean d = 0 by random sign flips; all 2^N sign patterns for N <= 20.

    Args:
        values: float [N], one difference per item.
        resamples: number of random sign patterns B.
        seed: seed of `numpy.random.default_rng`.

    Returns:
        Share of patterns at least as extreme, or (1 + number) / (1 + B) for random ones; 1 without
        items.
    """
    d = _finite(values, "sign_flip_test")
    if not len(d):
        return 1.0
    observed = abs(float(d.sum())) - 1e-12 * float(np.abs(d).sum())
    if len(d) <= _EXACT_LIMIT:
        sums = np.zeros(1)
        for value in d:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= observed))
    everyone = np.ones((1, len(d)), dtype=bool)
    sums = signed_group_sums(d[None, :], everyone, Resampling(resamples=resamples, seed=seed))
    return (1 + int(np.sum(np.abs(sums) >= observed))) / (1 + resamples)


@dataclass(frozen=True)
class SignificanceTest:
    """Statistic, two-sided p value and, where there are any, degrees of freedom of a test."""

    statistic: float
    p: float
    df: int | None = None


def paired_t(values: ArrayLike) -> SignificanceTest | None:
    """Paired t test of mean d = 0 with N - 1 degrees of freedom.

    Returns:
        The test; None without spread or with fewer than two values.
    """
    from scipy.special import stdtr

    d = _finite(values, "paired_t")
    error = standard_error(d)
    if not error:
        return None
    t = float(d.mean()) / error
    return SignificanceTest(t, float(2.0 * stdtr(len(d) - 1, -abs(t))), len(d) - 1)


def wilcoxon(values: ArrayLike) -> SignificanceTest | None:
    """Wilcoxon signed-rank test: zeros dropped, average ranks for ties.

    Exact for N <= 50 without ties, else the normal approximation without continuity correction.

    Returns:
        Statistic = the smaller rank sum; None if every difference is zero.
    """
    d = _finite(values, "wilcoxon")
    d = d[d != 0.0]
    if not len(d):
        return None
    sizes, counts = np.unique(np.abs(d), return_counts=True)
    plus = float(average_ranks(np.abs(d))[d > 0].sum())
    n = len(d)
    smaller = min(plus, n * (n + 1) / 2.0 - plus)
    if n <= 50 and len(sizes) == n:
        return SignificanceTest(smaller, min(1.0, 2.0 * _rank_sum_at_most(n, int(smaller))))
    variance = (
        n * (n + 1) * (2 * n + 1) / 24.0 - float(np.sum(counts.astype(float) ** 3 - counts)) / 48.0
    )
    z = (smaller - n * (n + 1) / 4.0) / math.sqrt(variance)
    return SignificanceTest(smaller, math.erfc(abs(z) / math.sqrt(2.0)))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1..N, ties with their average, float64 [N].

    Example:
        >>> average_ranks(np.array([3.0, 1.0, 3.0])).tolist()
        [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given.

    Example:
        >>> [round(p, 10) for p in holm([0.01, 0.04, 0.03, 0.005])]
        [0.03, 0.06, 0.06, 0.02]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _rank_sum_at_most(n: int, limit: int) -> float:
    ways = np.zeros(n * (n + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, n + 1):
        ways[rank:] = ways[rank:] + ways[:-rank]
    return float(ways[: limit + 1].sum() / 2.0**n)


def _finite(values: ArrayLike, op: str) -> np.ndarray:
    out = np.asarray(values, dtype=np.float64)
    if out.ndim != 1:
        raise ValueError(f"[{op}] expected values of shape [N], got {list(out.shape)}")
    if not np.isfinite(out).all():
        item = int(np.flatnonzero(~np.isfinite(out))[0])
        raise ValueError(f"[{op}] expected finite values, got {out[item]} in item {item}")
    return out
