"""Anatomy of changed answers: where they happen, how sure the models were, how large the push was.

A perturbation of the log margin with standard deviation sigma flips an item of margin m with
probability Phi(-m / sigma): one number in logit units that says how large the disturbance is, and
whether the flips are near-ties. For more than two choices it is an approximation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.binning import mass_bins, mass_edges
from calibit.measures.estimate import Estimate, plain, undefined
from calibit.measures.intervals import percentile, share_interval, wilson
from calibit.measures.paired import McNemar, mcnemar
from calibit.measures.pairs import LabelledPair, labelled_models
from calibit.measures.resampling import Resampling, resampled_sums

CURVE_BINS = 10
CONFIDENT = 0.9
"""Confidence above which an error counts as confident."""

_QUARTILES = (0.25, 0.5, 0.75)
_GRID_HALF = 24
_GRID_REACH = 8.0
"""Standard errors of log sigma that the grid of the bootstrap covers to each side."""

CELLS = ("rr", "rw", "wr", "ww_same", "ww_other")


@dataclass(frozen=True)
class Spread:
    """Mean and quartiles of a quantity; all None without items."""

    mean: float | None
    quartiles: tuple[float, ...] | None


@dataclass(frozen=True)
class FlipCell:
    """One way answers went: right or wrong before, right or wrong after.

    Attributes:
        name: "rr", "rw", "wr", "ww_same" (the same wrong answer) or "ww_other".
        n: number of items.
        conf_a, conf_b: confidence of both models.
        margin: of the reference, largest minus second largest probability.
        d_conf_true: change of the probability of the right choice.
    """

    name: str
    n: int
    conf_a: Spread
    conf_b: Spread
    margin: Spread
    d_conf_true: Spread


@dataclass(frozen=True)
class CurveBin:
    """Changed answers among items of similar reference log margin, with a Wilson interval.

    `expected`: number of flips expected under the fitted perturbation size; None without one.
    """

    lo: float
    hi: float
    n: int
    margin: float
    flips: int
    rate: float
    lower: float
    upper: float
    expected: float | None


@dataclass(frozen=True)
class Perturbation:
    """Perturbation size of one run against the reference, with its flip curve.

    Attributes:
        sigma: in nats of log margin, maximum likelihood, percentile interval; None where no answer
            changed (the size is below what these items resolve) or no size fits.
        curve: ten groups of equal size by the reference's log margin.
    """

    sigma: Estimate
    curve: tuple[CurveBin, ...]


@dataclass(frozen=True)
class FlipAnatomy:
    """Changed answers taken apart.

    Attributes:
        n: number of items.
        theta: confidence above which an answer counts as confident.
        cells: the five cells.
        confident_errors: share of items right before and wrong after with confidence above theta.
        confident_corrections: share wrong before and right after with confidence above theta.
        confident_test: McNemar's test between the two.
        candidate: perturbation size and flip curve of the candidate.
        reruns: re-run of the reference -> the same.
    """

    n: int
    theta: float
    cells: tuple[FlipCell, ...]
    confident_errors: Estimate
    confident_corrections: Estimate
    confident_test: McNemar
    candidate: Perturbation
    reruns: Mapping[str, Perturbation] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


def flip_anatomy(
    a: Any,
    b: Any,
    gold: ArrayLike | None = None,
    *,
    reruns: Mapping[str, Any] | None = None,
    theta: float = CONFIDENT,
    resampling: Resampling | None = None,
) -> FlipAnatomy:
    """Take changed answers apart.

    Args:
        a, b: reference and candidate: Scores, Distributions, or log scores [N, K].
        gold: int [N], -1 = unlabelled (left out); taken from `a` where it is a Scores.
        reruns: name -> the reference run again, to compare perturbation sizes with.
        theta: confidence above which an answer counts as confident.
        resampling: of the intervals; the defaults of the project where omitted.

    Raises:
        ValueError: for theta outside [0, 1), or items that do not pair, have one choice, or are not
            labelled.
    """
    if not 0.0 <= theta < 1.0:
        raise ValueError(f"[flip_anatomy] expected theta in [0, 1), got {theta}")
    pair = labelled_models(a, b, gold, op="flip_anatomy")
    draw = pair.resampling(resampling)
    others = {
        name: labelled_models(a, run, gold, op=f"flip_anatomy, {name}").b
        for name, run in (reruns or {}).items()
    }
    margin, sure = pair.a.log_margin, pair.b.confidence > theta
    errors = (pair.right_a > pair.right_b) & sure
    corrections = (pair.right_a < pair.right_b) & sure

    def pushed(predicted: np.ndarray) -> Perturbation:
        return perturbation(margin, predicted != pair.a.predicted, resampling=draw)

    return FlipAnatomy(
        pair.n,
        theta,
        _cells(pair),
        _rate("confident_errors", errors, theta, draw),
        _rate("confident_corrections", corrections, theta, draw),
        mcnemar(int(errors.sum()), int(corrections.sum())),
        pushed(pair.b.predicted),
        {name: pushed(run.predicted) for name, run in others.items()},
    )


def perturbation(
    margin: np.ndarray, flipped: np.ndarray, *, resampling: Resampling | None = None
) -> Perturbation:
    """Perturbation size behind a pattern of flips, P(flip) = Phi(-margin / sigma), and the curve.

    Args:
        margin: float64 [N], reference log margins, nats, at least 0.
        flipped: bool [N], whether the answer changed.
        resampling: of the interval; the defaults of the project where omitted.
    """
    draw = resampling or Resampling()
    sigma = _sigma(margin, flipped, draw)
    return Perturbation(sigma, _curve(margin, flipped, sigma.value, draw.level))


def _cells(pair: LabelledPair) -> tuple[FlipCell, ...]:
    before, after = pair.right_a == 1.0, pair.right_b == 1.0
    same = pair.a.predicted == pair.b.predicted
    wrong = ~before & ~after
    members = (before & after, before & ~after, ~before & after, wrong & same, wrong & ~same)
    columns = (pair.a.confidence, pair.b.confidence, pair.a.margin, pair.d_p_true)
    return tuple(
        FlipCell(name, int(inside.sum()), *(_spread(column[inside]) for column in columns))
        for name, inside in zip(CELLS, members, strict=True)
    )


def _spread(values: np.ndarray) -> Spread:
    if not len(values):
        return Spread(None, None)
    return Spread(float(values.mean()), tuple(np.quantile(values, _QUARTILES).tolist()))


def _rate(metric: str, chosen: np.ndarray, theta: float, draw: Resampling) -> Estimate:
    count, n = int(chosen.sum()), len(chosen)
    out = Estimate(metric, count / n, n=n, extra={"count": count, "theta": theta})
    return out.with_interval(share_interval(chosen.astype(np.float64), draw))


def _curve(
    margin: np.ndarray, flipped: np.ndarray, sigma: float | None, level: float
) -> tuple[CurveBin, ...]:
    from scipy.special import ndtr

    place, edges = mass_bins(margin, CURVE_BINS), mass_edges(margin, CURVE_BINS)
    rows, low = [], 0.0
    for index, edge in enumerate(edges):
        inside = place == index
        high = min(float(edge), float(margin.max()))
        if inside.any():
            n, flips = int(inside.sum()), int(flipped[inside].sum())
            band = wilson(flips, n, level=level)
            expected = float(ndtr(-margin[inside] / sigma).sum()) if sigma else None
            facts = (low, high, n, float(margin[inside].mean()), flips, flips / n)
            rows.append(CurveBin(*facts, float(band.lower or 0), float(band.upper or 0), expected))
        low = high
    return tuple(rows)


def _sigma(margin: np.ndarray, flipped: np.ndarray, draw: Resampling) -> Estimate:
    facts: dict[str, Any] = {"n": len(margin), "unit": "nats", "estimator": "maximum likelihood"}
    # Items of margin 0 flip with probability 1/2 at any size and say nothing about it.
    m, flip = margin[margin > 0.0], flipped[margin > 0.0].astype(bool)
    draw = draw.take(margin > 0.0)
    if not flip.any():
        reason = "no answer changed: the size is below what these items resolve"
        return undefined("sigma", reason, **facts)
    if m[flip].sum() >= m[~flip].sum():
        reason = "answers changed at large margins as often as at small ones: no size fits"
        return undefined("sigma", reason, **facts)
    centre, error = _maximum(m, flip)
    grid = centre + error * _GRID_REACH * np.arange(-_GRID_HALF, _GRID_HALF + 1) / _GRID_HALF
    columns = _log_likelihood(m, flip, grid)
    drawn = resampled_sums(np.concatenate([columns, flip[:, None]], axis=1), draw)
    sizes = np.where(drawn[:, -1] > 0, np.exp(_peak(drawn[:, :-1], grid)), 0.0)
    value = math.exp(centre)
    bounds = percentile(sizes, draw, value=value, floor=0.0)
    return Estimate("sigma", value, **facts).with_interval(bounds)


def _log_likelihood(margin: np.ndarray, flipped: np.ndarray, log_sigma: np.ndarray) -> np.ndarray:
    """Log likelihood per item and candidate size, float64 [N, G]."""
    from scipy.special import log_ndtr

    z = margin[:, None] / np.exp(log_sigma)[None, :]
    return log_ndtr(np.where(flipped[:, None], -z, z))


def _maximum(margin: np.ndarray, flipped: np.ndarray) -> tuple[float, float]:
    """log sigma of largest likelihood, and its standard error.

    The likelihood is concave in 1 / sigma, so its derivative has one root: bisection.
    """
    low, high = math.log(margin.min()) - 10.0, math.log(margin.max()) + 10.0
    while (middle := (low + high) / 2.0) not in (low, high):
        low, high = (middle, high) if _score(margin, flipped, middle) > 0.0 else (low, middle)
    step = 1e-4
    bend = _score(margin, flipped, low - step) - _score(margin, flipped, low + step)
    return low, 1.0 / math.sqrt(max(bend / (2.0 * step), 1e-6))


def _score(margin: np.ndarray, flipped: np.ndarray, log_sigma: float) -> float:
    """Derivative of the log likelihood with respect to log sigma."""
    from scipy.special import log_ndtr

    z = margin / math.exp(log_sigma)
    ratio = np.exp(
        -0.5 * z * z - 0.5 * math.log(2.0 * math.pi) - log_ndtr(np.where(flipped, -z, z))
    )
    return float(np.sum(np.where(flipped, z, -z) * ratio))


def _peak(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Place of the largest value of each row by a parabola through three grid points."""
    rows = np.arange(len(values))
    best = np.argmax(values, axis=1)
    inner = np.clip(best, 1, len(grid) - 2)
    below, here, above = (values[rows, inner + shift] for shift in (-1, 0, 1))
    bend = below - 2.0 * here + above
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = np.where(bend < 0, (below - above) / (2.0 * bend), 0.0)
    step = grid[1] - grid[0]
    return np.where(best == inner, grid[inner] + np.clip(shift, -1, 1) * step, grid[best])
