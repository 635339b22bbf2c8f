"""Calibration-draw variance: how much of a result belongs to the draw of the calibration text.

Builds of one recipe with different calibration draws, measured on the same items:
y_ij = mu + item_i + draw_j + e_ij, both random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.binning import DEFAULT_BINS, bin_sums, top_label
from calibit.measures.calibration import ece_of_sums
from calibit.measures.estimate import Interval, plain
from calibit.measures.resampling import CHUNK_ENTRIES, Resampling, resampled_bin_sums

LEAST_BUILDS = 3


@dataclass(frozen=True)
class DrawVariance:
    """Variance components of k builds on N items, and the error bars they demand.

    Attributes:
        n, k: items and builds.
        mean: over items and builds.
        builds: mean of each build.
        ms_draw, ms_item, ms_res: mean squares.
        var_draw, var_item, var_res: variance components.
        f, p: F = ms_draw / ms_res and its p value; None without residual variance.
        p_permutation: p value by permuting build labels within items; None unless asked for.
        se_recipe: standard error of the mean of the recipe.
        recipe: its interval, Student's t with k - 1 degrees.
        se_build: standard error of one shipped build as a sample of its recipe.
        effect_below_draw: |mean| < 2 sd of the draws: the effect is not larger than the luck of the
            draw.
    """

    n: int
    k: int
    mean: float
    builds: tuple[float, ...]
    ms_draw: float
    ms_item: float
    ms_res: float
    var_draw: float
    var_item: float
    var_res: float
    f: float | None
    p: float | None
    p_permutation: float | None
    se_recipe: float
    recipe: Interval
    se_build: float
    effect_below_draw: bool

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


def draw_variance(
    values: ArrayLike, *, level: float = 0.95, permutation: Resampling | None = None
) -> DrawVariance:
    """Split the variance of k builds on the same items into draw, item and residual.

    Args:
        values: float [N, k], metric of item i in build j (for example the change of conf_true).
        level: two-sided level of the interval.
        permutation: asks for the permutation test, for metrics with heavy tails.

    Raises:
        ValueError: for fewer than 3 builds or 2 items, or values that are not finite.
    """
    from scipy.special import fdtrc, stdtrit

    y = np.asarray(values, dtype=np.float64)
    _check(y)
    n, k = y.shape
    by_build, by_item, mean = y.mean(axis=0), y.mean(axis=1), float(y.mean())
    residual = y - by_build - by_item[:, None] + mean
    ms_draw = n * float(np.sum((by_build - mean) ** 2)) / (k - 1)
    ms_item = k * float(np.sum((by_item - mean) ** 2)) / (n - 1)
    ms_res = float(np.sum(residual**2)) / ((n - 1) * (k - 1))
    var_draw = max(0.0, (ms_draw - ms_res) / n)
    var_item = max(0.0, (ms_item - ms_res) / k)
    f = ms_draw / ms_res if ms_res > 0.0 else None
    se_recipe = math.sqrt(var_draw / k + var_item / n + ms_res / (k * n))
    half = float(stdtrit(k - 1, 0.5 + level / 2.0)) * se_recipe
    return DrawVariance(
        n=n,
        k=k,
        mean=mean,
        builds=tuple(by_build.tolist()),
        ms_draw=ms_draw,
        ms_item=ms_item,
        ms_res=ms_res,
        var_draw=var_draw,
        var_item=var_item,
        var_res=ms_res,
        f=f,
        p=None if f is None else float(fdtrc(k - 1, (n - 1) * (k - 1), f)),
        p_permutation=None if permutation is None else _permutation_p(y, permutation),
        se_recipe=se_recipe,
        recipe=Interval(mean - half, mean + half, level, "t"),
        se_build=math.sqrt(var_draw + (var_item + ms_res) / n),
        effect_below_draw=abs(mean) < 2.0 * math.sqrt(var_draw),
    )


@dataclass(frozen=True)
class DrawSpread:
    """Calibration error of k builds.

    Attributes:
        values: ECE of each build.
        sd: their standard deviation.
        sd_items: the standard deviation to expect from the items alone.
    """

    values: tuple[float, ...]
    sd: float
    sd_items: float


def ece_draw_spread(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    bins: int = DEFAULT_BINS,
    resampling: Resampling | None = None,
) -> DrawSpread:
    """Spread of the ECE over builds beside the spread that the items alone would cause.

    The latter is the root mean over pairs of builds of Var(ECE_j - ECE_l) / 2 over resamples of the
    items, both builds with the same ones.

    Args:
        confidence: float [k, N] in [0, 1].
        correct: [k, N], 0 or 1.
        bins: number of equal-width bins.
        resampling: the defaults of the project where omitted.

    Raises:
        ValueError: for fewer than 3 builds, or bad confidences.
    """
    pairs = zip(np.asarray(confidence), np.asarray(correct), strict=True)
    rows = [top_label(c, r, op="ece_draw_spread") for c, r in pairs]
    if len(rows) < LEAST_BUILDS:
        raise ValueError(
            f"[ece_draw_spread] expected at least {LEAST_BUILDS} builds, got {len(rows)}"
        )
    facts: dict[str, Any] = {"bins": bins, "rule": "width"}
    values = np.array([float(ece_of_sums(bin_sums(c, r, **facts))) for c, r in rows])
    draw = resampling or Resampling()
    drawn = np.stack(
        [ece_of_sums(resampled_bin_sums(c, r, **facts, resampling=draw)) for c, r in rows]
    )
    # The mean over pairs of Var(x_j - x_l) / 2 is the mean over resamples of the spread between
    # builds around their own means.
    centred = drawn - drawn.mean(axis=1, keepdims=True)
    sd_items = math.sqrt(float(np.mean(np.var(centred, axis=0, ddof=1))))
    return DrawSpread(tuple(values.tolist()), float(np.std(values, ddof=1)), sd_items)


def _check(y: np.ndarray) -> None:
    if y.ndim != 2 or y.shape[0] < 2 or y.shape[1] < LEAST_BUILDS:
        raise ValueError(
            f"[draw_variance] expected values of shape [N >= 2, k >= {LEAST_BUILDS}], "
            f"got {list(y.shape)}"
        )
    bad = ~np.isfinite(y)
    if bad.any():
        item, build = (int(index[0]) for index in np.nonzero(bad))
        raise ValueError(
            f"[draw_variance] expected finite values, got {y[item, build]} in item {item} of "
            f"build {build}"
        )


def _permutation_p(y: np.ndarray, draw: Resampling) -> float:
    """Share of permutations of the builds within items whose ms_draw is as large."""
    n, k = y.shape
    observed = float(np.sum(y.sum(axis=0) ** 2))
    slack = 1e-12 * max(1e-300, float(np.abs(y).sum()) ** 2)
    rng, reached = np.random.default_rng(draw.seed), 0
    rows = max(1, CHUNK_ENTRIES // (n * k))
    for start in range(0, draw.resamples, rows):
        count = min(rows, draw.resamples - start)
        shuffled = rng.permuted(np.broadcast_to(y, (count, n, k)), axis=2)
        reached += int(np.sum(np.sum(shuffled.sum(axis=1) ** 2, axis=1) >= observed - slack))
    return (1 + reached) / (1 + draw.resamples)
