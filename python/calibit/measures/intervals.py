"""Confidence intervals of rates, of paired accuracy differences and of bootstrapped statistics."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from calibit.measures.estimate import Estimate, Interval
from calibit.measures.resampling import Resampling, effective_count, effective_count_of

_NORMAL = NormalDist()

FEW_ITEMS = 100
"""Below this many independent items BCa is joined with Student's t over items."""

FEW_CLUSTERS = 30
"""Below this many clusters the error of a mean over them is itself uncertain: no verdict passes on
them, and a report says so (Cameron and Miller 2015, section VI, name 20 to 50). Clusters of unequal
size count as `effective_count` says."""

WORST_CLUSTERS = 8
"""Clusters as alike inside as can be, which the design effect of a share counts beside those seen:
with fewer, damage at its margin in rare clusters passes more often than verdicts promise."""


def few_clusters(effective: float | None) -> bool:
    """Whether clusters are too few for a verdict to pass on them; independent items never are.

    Args:
        effective: effective number of clusters, judged to the nearest whole number.
    """
    return effective is not None and round(effective) < FEW_CLUSTERS


def two_sided_z(level: float) -> float:
    """Normal quantile of a two-sided level: 1.96 for 0.95."""
    return _NORMAL.inv_cdf(0.5 + level / 2.0)


def clopper_pearson(k: int, n: int, *, level: float = 0.95) -> Interval:
    """Exact binomial interval of a rate k / n (Clopper and Pearson 1934).

    Args:
        k: number of events.
        n: number of trials.
        level: two-sided level.

    Raises:
        ValueError: unless 0 <= k <= n.
    """
    from scipy.special import betaincinv

    _check_rate(k, n, "clopper_pearson")
    if n == 0:
        return Interval(None, None, level, "clopper_pearson", reason="no trials")
    alpha = 1.0 - level
    lower = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, alpha / 2))
    upper = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - alpha / 2))
    return Interval(lower, upper, level, "clopper_pearson")


def wilson(k: int, n: int, *, level: float = 0.95) -> Interval:
    """Score interval of a rate k / n (Wilson 1927), for binned plots.

    Raises:
        ValueError: unless 0 <= k <= n.
    """
    _check_rate(k, n, "wilson")
    if n == 0:
        return Interval(None, None, level, "wilson", reason="no trials")
    z2 = two_sided_z(level) ** 2
    rate = k / n
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(max(0.0, centre - half), min(1.0, centre + half), level, "wilson")


def tango(rw: int, wr: int, n: int, *, level: float = 0.95) -> Interval:
    """Score interval of the paired accuracy difference (wr - rw) / n (Tango 1998).

    It does not degenerate without discordant pairs, and its one-sided error stays at or below
    nominal.

    Args:
        rw: items right before and wrong after.
        wr: items wrong before and right after.
        n: all items.
        level: two-sided level.

    Raises:
        ValueError: unless the counts fit into n.
    """
    if rw < 0 or wr < 0 or rw + wr > n:
        raise ValueError(f"[tango] expected 0 <= rw + wr <= n, got rw {rw}, wr {wr}, n {n}")
    if n == 0:
        return Interval(None, None, level, "tango", reason="no items")
    lower, upper = tango_bounds(np.array([rw]), np.array([wr]), np.array([n]), two_sided_z(level))
    return Interval(float(lower[0]), float(upper[0]), level, "tango")


def tango_bounds(
    rw: np.ndarray, wr: np.ndarray, n: np.ndarray, z: float
) -> tuple[np.ndarray, np.ndarray]:
    """Tango's bounds for many tables at once, by bisection.

    Args:
        rw, wr, n: [m], discordant counts and sizes (real numbers where a design effect divided
            them).
        z: normal quantile.

    Returns:
        lower and upper bounds of (wr - rw) / n, float64 [m] each.
    """
    # The lower bound of a table is the negated upper bound of the mirrored table.
    return -_tango_upper(wr, rw, n, z), _tango_upper(rw, wr, n, z)


def share_interval(hits: np.ndarray, resampling: Resampling) -> Interval:
    """Clopper and Pearson's interval of the share of hits.

    With clusters, hits and items are divided by `share_design_effect`, at the level of Student's t
    (Korn and Graubard 1998).

    Args:
        hits: float64 [N], 0 or 1.
        resampling: level and clusters.
    """
    from scipy.special import betaincinv

    level, n = resampling.level, len(hits)
    effect = _widening(hits, resampling)
    if n == 0 or effect == 1.0:
        return clopper_pearson(int(hits.sum()), n, level=level)
    k, size, alpha = float(hits.sum()) / effect, n / effect, 1.0 - level
    lower = 0.0 if k == 0 else float(betaincinv(k, size - k + 1, alpha / 2))
    upper = 1.0 if k == size else float(betaincinv(k + 1, size - k, 1 - alpha / 2))
    return Interval(lower, upper, level, "clopper_pearson")


def within(found: Estimate, low: float, high: float = math.inf) -> Estimate:
    """An estimate with its interval cut to the values that the quantity can take.

    Args:
        found: the estimate; its value stays inside the interval.
        low, high: least and largest possible value.
    """
    if found.value is None or found.lower is None or found.upper is None:
        return found
    lower, upper = max(low, found.lower), min(high, found.upper)
    return replace(found, lower=min(lower, found.value), upper=max(upper, found.value))


def bounded_mean(found: Estimate, shares: np.ndarray) -> Estimate:
    """A mean of shares with its interval cut to 0 to 1.

    Shares that are all alike say nothing of their spread. As no mean p of shares has a larger
    variance than p (1 - p), theirs is Clopper and Pearson's interval of as many trials.

    Args:
        found: the mean, with the interval that the spread gives.
        shares: float64 [N], 0 to 1.
    """
    from scipy.special import betaincinv

    if found.lower is None or found.upper is None or found.level is None:
        return found
    if np.ptp(shares) > 0.0:
        return within(found, 0.0, 1.0)
    n, k, alpha = len(shares), float(shares.sum()), 1.0 - found.level
    lower = 0.0 if k <= 0.0 else float(betaincinv(k, n - k + 1, alpha / 2))
    upper = 1.0 if k >= n else float(betaincinv(k + 1, n - k, 1 - alpha / 2))
    return found.with_interval(Interval(lower, upper, found.level, "clopper_pearson"))


def paired_share_interval(
    before: np.ndarray, after: np.ndarray, resampling: Resampling
) -> Interval:
    """Tango's interval of the share after minus the share before.

    With clusters, all counts are divided by `share_design_effect`, at the level of Student's t.

    Args:
        before, after: float64 [N], 0 or 1.
        resampling: level and clusters.
    """
    rw, wr, n = paired_counts(before, after, resampling)
    if n == 0:
        return tango(0, 0, 0, level=resampling.level)
    first, second, size = (np.array([count]) for count in (rw, wr, n))
    lower, upper = tango_bounds(first, second, size, two_sided_z(resampling.level))
    return Interval(float(lower[0]), float(upper[0]), resampling.level, "tango")


def paired_counts(
    before: np.ndarray, after: np.ndarray, resampling: Resampling
) -> tuple[float, float, float]:
    """Items with a hit before only, after only, and all items, divided by the design effect.

    The effect is widened to Student's t at the level, as the clusters that it is estimated from
    may be few.

    Args:
        before, after: float64 [N], 0 or 1.
        resampling: level and clusters.
    """
    effect = _widening(after - before, resampling)
    counts = (np.sum(before > after), np.sum(before < after), len(before))
    rw, wr, n = (float(count) / effect for count in counts)
    return rw, wr, n


def design_effect(values: np.ndarray, clusters: np.ndarray | None) -> float:
    """Variance of the mean under clustering, divided by that of independent items; at least 1.

    The variance is the jackknife's over clusters: where one cluster holds most items, their sum
    of deviations from a mean that is mostly theirs says little, and leaving it out says all.
    Without any spread it cannot be estimated: then it is sum n^2 / N, n the size of a cluster, as
    if the items of a cluster were one.

    Args:
        values: float64 [N].
        clusters: int64 [N], number of each item's cluster; None gives 1.
    """
    if clusters is None or not len(values):
        return 1.0
    n, count = len(values), int(clusters.max()) + 1
    apart = values - values.mean()
    square = float(np.sum(apart**2))
    if square == 0.0 or count < 2:
        return float(np.sum(np.bincount(clusters) ** 2.0)) / n
    between = _jackknife_error(values, clusters) ** 2 * n * n
    return max(1.0, between * (n - 1) / (n * square))


def share_design_effect(values: np.ndarray, clusters: np.ndarray | None) -> float:
    """Design effect of a share, drawn towards the worst case where few clusters can show it.

    How much alike the items of a cluster are is seen only in clusters that hold a value other than
    the commonest one, such as a changed answer. The worst case, sum n^2 / N, counts as
    WORST_CLUSTERS more of these; where they are many, little is left of it. docs/validity.md has
    what this does to verdicts.

    Args:
        values: float64 [N], of few different values: hits, or differences of hits.
        clusters: int64 [N], number of each item's cluster; None gives 1.
    """
    effect = design_effect(values, clusters)
    if clusters is None or not len(values):
        return effect
    kinds, counts = np.unique(values, return_counts=True)
    sizes = np.bincount(clusters).astype(np.float64)
    telling = np.unique(clusters[values != kinds[counts.argmax()]])
    seen = effective_count_of(sizes[telling])
    worst = float(np.sum(sizes**2)) / len(values)
    return max(effect, (seen * effect + WORST_CLUSTERS * worst) / (seen + WORST_CLUSTERS))


def percentile(
    draws: np.ndarray,
    resampling: Resampling,
    *,
    value: float | None = None,
    floor: float = -math.inf,
) -> Interval:
    """Percentile interval of draws, linear interpolation.

    A calibration error of resampled items is larger than that of the items themselves, so the draws
    may leave the estimate out. They are then shifted by their median bias onto the estimate: the
    interval has their width and holds it.

    Args:
        draws: float64 [resamples]; NaN draws are dropped.
        resampling: level, and what is recorded.
        value: the estimate, where the interval has to hold it.
        floor: least possible value of the statistic.
    """
    kept = draws[np.isfinite(draws)]
    if len(kept) < 0.9 * len(draws):
        return _bootstrapped("percentile", resampling, reason="undefined on many resamples")
    tail = (1.0 - resampling.level) / 2.0
    bounds = np.quantile(kept, [tail, 1.0 - tail])
    if value is None:
        return _bootstrapped("percentile", resampling, bounds)
    # A draw equal to the estimate may differ from it in its last bits.
    slack = 1e-12 * (1.0 + abs(value))
    inside = bounds[0] - slack <= value <= bounds[1] + slack
    if not inside:
        bounds = np.maximum(floor, bounds - (float(np.median(kept)) - value))
    held = np.array([min(bounds[0], value), max(bounds[1], value)])
    return _bootstrapped("percentile" if inside else "percentile_centred", resampling, held)


def bca(values: np.ndarray, draws: np.ndarray, resampling: Resampling) -> Interval:
    """Bias-corrected and accelerated interval of a mean (Efron 1987).

    Clusters are few, and their sums have heavy tails: BCa alone holds the truth in 91 to 93 % of
    samples of 40 clusters. With clusters its levels are therefore widened to those of Student's t
    (the expanded percentiles of Hesterberg, arXiv 1411.5279), and the interval reaches at least as
    far as Student's t over clusters; docs/validity.md has the coverage. Below 100 items without
    clusters each item counts as a cluster: BCa alone holds the mean of normal values in 29 % of
    samples of 2 items, 83 % of 5, 91 % of 10.

    Args:
        values: float64 [N], the per-item values whose mean is estimated.
        draws: float64 [resamples], resampled means.
        resampling: level, clusters (the jackknife then leaves out whole clusters), and what is
            recorded.

    Returns:
        The interval; without spread both bounds are the mean, and with a mean outside all draws the
        percentile interval takes the place of BCa.
    """
    mean, spread = float(np.mean(values)), float(np.std(values))
    clusters = _several(values, resampling)
    if len(values) < 2 or (clusters is not None and clusters.max() == 0):
        what = "items" if resampling.clusters is None else "clusters"
        return _bootstrapped("bca", resampling, reason=f"an interval needs at least 2 {what}")
    if np.ptp(values) == 0.0:
        return _bootstrapped("bca", resampling, np.array([mean, mean]))
    # A draw equal to the mean may differ in its last bit, by the order of addition in a product.
    below = float(np.mean(draws < mean - 1e-12 * (abs(mean) + spread)))
    if not 0.0 < below < 1.0:
        found = percentile(draws, resampling, value=mean)
        if clusters is None or found.lower is None or found.upper is None:
            return found
        bounds = np.array([found.lower, found.upper])
    else:
        z0, a = _NORMAL.inv_cdf(below), acceleration(values, clusters)
        z = two_sided_z(resampling.level) if clusters is None else _expanded_z(clusters, resampling)
        bounds = np.quantile(draws, [_bca_level(z0, a, end) for end in (-z, z)])
    if clusters is None:
        return _bootstrapped("bca", resampling, bounds)
    half = _student_t(clusters, resampling.level) * _jackknife_error(values, clusters)
    wider = np.array([min(bounds[0], mean - half), max(bounds[1], mean + half)])
    return _bootstrapped("bca_t", resampling, wider)


def cluster_error(values: np.ndarray, clusters: np.ndarray) -> float:
    """Standard error of a mean over clusters of items: sqrt(sum over clusters of (sum of d_i -
    mean)^2 C / (C - 1)) / N.

    Args:
        values: float64 [N].
        clusters: int64 [N], number of each item's cluster, at least two.
    """
    sums = np.bincount(clusters, values - values.mean())
    return math.sqrt(float(np.sum(sums**2)) * len(sums) / (len(sums) - 1)) / len(values)


def _jackknife_error(values: np.ndarray, clusters: np.ndarray) -> float:
    """Jackknife error of a mean over clusters left out whole; `cluster_error` where all are of one
    size."""
    sizes, n, count = np.bincount(clusters), len(values), int(clusters.max()) + 1
    moved = np.bincount(clusters, values - values.mean()) / (n - sizes)
    return math.sqrt(float(np.sum(moved**2)) * (count - 1) / count)


def percentile_p(draws: np.ndarray) -> float:
    """Two-sided p value of "the statistic is 0": where the percentile interval just excludes 0.

    Args:
        draws: float64 [resamples]; NaN draws are dropped.
    """
    kept = draws[np.isfinite(draws)]
    tail = min(int(np.sum(kept <= 0.0)), int(np.sum(kept >= 0.0)))
    return min(1.0, 2.0 * (1 + tail) / (1 + len(kept)))


def bca_p(values: np.ndarray, draws: np.ndarray, resampling: Resampling) -> float:
    """Two-sided p value of "the mean is 0": where the BCa interval just excludes 0.

    Args:
        values: float64 [N], the per-item values.
        draws: float64 [resamples], resampled means.
        resampling: the clusters.
    """
    mean, spread = float(np.mean(values)), float(np.std(values))
    if spread == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    below = float(np.mean(draws < mean - 1e-12 * (abs(mean) + spread)))
    if not 0.0 < below < 1.0:
        return percentile_p(draws)
    z0 = _NORMAL.inv_cdf(below)
    clusters = _several(values, resampling)
    a = acceleration(values, clusters)
    # The level whose quantile is 0: z0 + (z0 + z) / (1 - a (z0 + z)) = w, solved for z.
    share = (0.5 + float(np.sum(draws < 0.0)) + 0.5 * float(np.sum(draws == 0.0))) / (
        1 + len(draws)
    )
    w = _NORMAL.inv_cdf(share) - z0
    z = abs(w / (1.0 + a * w) - z0)
    if clusters is None:
        return min(1.0, 2.0 * _NORMAL.cdf(-z))
    from scipy.special import stdtr

    count, error = int(clusters.max()) + 1, _jackknife_error(values, clusters)
    t = z / math.sqrt(count / (count - 1))
    t = min(t, abs(mean) / error) if error > 0.0 else t
    return min(1.0, 2.0 * float(stdtr(_degrees(clusters), -t)))


def acceleration(values: np.ndarray, clusters: np.ndarray | None = None) -> float:
    """BCa acceleration of a mean: sum u^3 / (6 (sum u^2)^1.5), u from its leave-one-out values.

    Args:
        values: float64 [N], not all equal.
        clusters: int64 [N], number of each item's cluster, at least two; they are left out whole.
    """
    if clusters is None:
        u = (values - values.mean()) / (len(values) - 1)
    else:
        sums, sizes = np.bincount(clusters, values), np.bincount(clusters)
        left_out = (values.sum() - sums) / (len(values) - sizes)
        u = left_out.mean() - left_out
    square = float(np.sum(u**2))
    return float(np.sum(u**3)) / (6.0 * square**1.5) if square > 0.0 else 0.0


def t_interval(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """Student's interval of the mean of `values` [N], N - 1 degrees of freedom."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return Interval(None, None, level, "t", reason="an interval needs at least 2 values")
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(values))
    return Interval(mean - half, mean + half, level, "t")


def _bootstrapped(
    method: str, draw: Resampling, bounds: np.ndarray | None = None, *, reason: str | None = None
) -> Interval:
    lower, upper = (None, None) if bounds is None else (float(bounds[0]), float(bounds[1]))
    return Interval(lower, upper, draw.level, method, draw.resamples, draw.seed, reason)


def _several(values: np.ndarray, draw: Resampling) -> np.ndarray | None:
    """The clusters, or the items where each is its own and they are few; None for many items."""
    n, clusters = len(values), draw.clusters_of(len(values))
    if clusters is not None and (n < 2 or int(clusters.max()) + 1 < n):
        return clusters
    return np.arange(n) if 1 < n < FEW_ITEMS else None


def _student_t(clusters: np.ndarray, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(_degrees(clusters), 0.5 + level / 2.0))


def _degrees(clusters: np.ndarray) -> float:
    """Degrees of freedom of an error over clusters: their effective number less 1, at least 1."""
    return max(1.0, effective_count(clusters) - 1.0)


def _widening(values: np.ndarray, draw: Resampling) -> float:
    """Design effect times (t of C - 1 degrees / t of N - 1 degrees) squared, C the effective number
    of clusters; 1 without clusters."""
    from scipy.special import stdtrit

    n, clusters = len(values), draw.clusters_of(len(values))
    if clusters is None or n < 2:
        return 1.0
    degrees = np.array([_degrees(clusters), n - 1])
    few, many = stdtrit(degrees, 0.5 + draw.level / 2.0)
    return share_design_effect(values, clusters) * float(few / many) ** 2


def _expanded_z(clusters: np.ndarray, draw: Resampling) -> float:
    count = int(clusters.max()) + 1
    return math.sqrt(count / (count - 1)) * _student_t(clusters, draw.level)


def _bca_level(z0: float, a: float, z: float) -> float:
    return _NORMAL.cdf(z0 + (z0 + z) / (1.0 - a * (z0 + z)))


def _check_rate(k: int, n: int, op: str) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"[{op}] expected 0 <= k <= n, got k {k}, n {n}")


def _tango_upper(rw: np.ndarray, wr: np.ndarray, n: np.ndarray, z: float) -> np.ndarray:
    estimate = (wr - rw) / n
    low, high = estimate.astype(np.float64), np.ones(len(estimate))
    for _ in range(60):
        middle = (low + high) / 2.0
        b = rw + wr - middle * (2 * n + rw - wr)
        root = np.sqrt(np.maximum(0.0, b * b + 8 * n * rw * middle * (1 - middle)))
        q = (b + root) / (4 * n)
        inside = middle - estimate < z * np.sqrt(np.maximum(0.0, (2 * q + middle - middle**2) / n))
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return (low + high) / 2.0
