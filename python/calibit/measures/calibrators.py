"""Recalibration maps, fitted: temperature (with or without labels, per slice), Platt, isotonic.

A temperature rescales the whole distribution over choices. Platt's and the isotonic map replace
the confidence of the top answer only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.binning import indicator, top_label
from calibit.measures.distributions import Distributions, as_distributions
from calibit.measures.pairs import refuse_single_choices, same_items
from calibit.measures.proper import labelled_pair

BETA_RANGE = (0.01, 100.0)
"""Range of the inverse temperature; a solution at its end is reported as clipped."""

SHRINKAGE = 200
"""Items at which a slice's own temperature weighs as much as that of all items."""

_BISECTIONS = 80  # ln(1e4) / 2^80 is far below the spacing of doubles


@dataclass(frozen=True)
class Temperature:
    """Divide log scores by `value`; above 1 makes a model less sure.

    `clipped`: the best value lies at the end of the range or beyond.
    """

    value: float
    clipped: bool = False

    def apply(self, distributions: Distributions) -> Distributions:
        """The rescaled distributions."""
        return distributions.tempered(self.value)


@dataclass(frozen=True)
class SliceTemperatures:
    """A temperature per slice, and one for items of other slices."""

    overall: Temperature
    slices: Mapping[str, float] = field(default_factory=dict)

    def apply(self, distributions: Distributions, labels: Sequence[str]) -> Distributions:
        """The rescaled distributions.

        Args:
            distributions: N items.
            labels: [N] slice of each item.
        """
        values = [self.slices.get(str(label), self.overall.value) for label in labels]
        return distributions.tempered(np.array(values))


@dataclass(frozen=True)
class Platt:
    """Confidence 1 / (1 + exp(-(alpha s + beta))), s = log odds of the top answer (Platt 1999)."""

    alpha: float
    beta: float

    def apply(self, distributions: Distributions) -> np.ndarray:
        """New confidence of the top answer, float64 [N]."""
        return _sigmoid(self.alpha * distributions.log_odds + self.beta)


@dataclass(frozen=True)
class Isotonic:
    """Step function of the confidence: value of the largest knot <= c, the first value below it."""

    knots: tuple[float, ...]
    values: tuple[float, ...]

    def apply(self, distributions: Distributions) -> np.ndarray:
        """New confidence of the top answer, float64 [N]."""
        place = np.searchsorted(self.knots, distributions.confidence, side="right") - 1
        return np.asarray(self.values)[np.maximum(place, 0)]


@dataclass(frozen=True)
class LogisticFit:
    """Logistic regression r ~ alpha x + beta by maximum likelihood.

    `alpha`, `beta` are None where no finite fit exists (see `reason`).
    """

    alpha: float | None
    beta: float | None
    reason: str | None = None


def fit_temperature(scores: Any, gold: ArrayLike | None = None) -> Temperature:
    """Temperature of least mean NLL (Guo et al. 2017).

    With beta = 1 / T the mean NLL is convex; its minimum solves
    sum_i (E_{p^beta}[ll] - ll_y) = 0, by bisection on log beta.

    Args:
        scores: Scores, Distributions, or log scores [N, K] (K may differ per item).
        gold: int [N], -1 = unlabelled (left out); taken from Scores where omitted.

    Returns:
        The temperature; 1 where the scores of no item differ.

    Raises:
        ValueError: without labelled items, or where a right choice has probability 0.
    """
    d, labels = labelled_pair(scores, gold, op="fit_temperature")
    if not d.n:
        raise ValueError("[fit_temperature] expected at least one labelled item, got none")
    log_p = d.of(labels)[1]
    if np.isneginf(log_p).any():
        item = int(np.argmin(log_p))
        raise ValueError(
            "[fit_temperature] expected right choices with a probability above 0, "
            f"got 0 in item {item}"
        )
    return _solve(d, float(log_p.sum()))


def label_free_temperature(reference: Any, candidate: Any) -> Temperature:
    """Temperature T* at which the candidate comes closest to the reference, without labels.

    Minimises sum_i KL(p_a || softmax(ll_b / T)). It imitates the reference, miscalibration
    included. With tokens as choices it is the same at token level.

    Args:
        reference: Scores, Distributions, or log scores [N, K].
        candidate: the model to rescale, on the same items.

    Raises:
        ValueError: without items, or where the candidate gives probability 0 to what the reference
            does not.
    """
    a, b = same_items(reference, candidate, op="label_free_temperature")
    if not a.n:
        raise ValueError("[label_free_temperature] expected at least one item, got none")
    with np.errstate(invalid="ignore"):
        terms = np.where(a.p > 0, a.p * b.log_p, 0.0)
    if np.isneginf(terms).any():
        item = int(np.searchsorted(a.offsets, int(np.argmin(terms)), side="right")) - 1
        raise ValueError(
            "[label_free_temperature] expected a candidate that gives a probability above 0 to "
            f"what the reference does, got 0 in item {item}"
        )
    return _solve(b, float(terms.sum()))


def fit_slice_temperatures(
    scores: Any, labels: Sequence[str], gold: ArrayLike | None = None
) -> SliceTemperatures:
    """Temperature per slice, its logarithm shrunk towards that of all items.

    log T_s = w log T_s^ + (1 - w) log T^, w = n_s / (n_s + 200): small slices overfit even one
    parameter.

    Args:
        scores: Scores, Distributions, or log scores [N, K].
        labels: [N] slice of each item.
        gold: int [N]; taken from Scores where omitted.

    Raises:
        ValueError: as `fit_temperature`, or for a wrong number of labels.
    """
    d = as_distributions(scores, op="fit_slice_temperatures")
    right = np.asarray(getattr(scores, "gold", None) if gold is None else gold)
    if len(labels) != d.n:
        raise ValueError(f"[fit_slice_temperatures] expected {d.n} slice labels, got {len(labels)}")
    overall = fit_temperature(d, right)
    names = np.array([str(label) for label in labels])
    found = {}
    for name in sorted(set(names[right >= 0])):
        inside = np.flatnonzero((names == name) & (right >= 0))
        weight = len(inside) / (len(inside) + SHRINKAGE)
        own = fit_temperature(d.take(inside), right[inside]).value
        shrunk = weight * math.log(own) + (1 - weight) * math.log(overall.value)
        found[str(name)] = math.exp(shrunk)
    return SliceTemperatures(overall, found)


def fit_platt(scores: Any, correct: ArrayLike) -> Platt:
    """Platt's scaling of the top answer, with his smoothed targets (Platt 1999).

    Targets are (N+ + 1)/(N+ + 2) and 1/(N- + 2), so that a fit exists for separable data too.

    Args:
        scores: Scores, Distributions, or log scores [N, K].
        correct: [N], 0 or 1: whether the top answer is right.

    Raises:
        ValueError: without items, or for an item whose top answer has no odds (one choice, or
            probability 1).
    """
    d, r = as_distributions(scores, op="fit_platt"), indicator(correct, op="fit_platt")
    if d.n != len(r) or not d.n:
        raise ValueError(f"[fit_platt] expected one correctness per item, got {len(r)} for {d.n}")
    refuse_single_choices(d, [str(i) for i in range(d.n)], op="fit_platt")
    if np.isinf(d.log_odds).any():
        item = int(np.flatnonzero(np.isinf(d.log_odds))[0])
        raise ValueError(f"[fit_platt] expected confidences below 1, got 1 in item {item}")
    positive, negative = float(r.sum()), float(len(r) - r.sum())
    target = np.where(r == 1.0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    return Platt(*_newton(d.log_odds, target))


def fit_isotonic(confidence: ArrayLike, correct: ArrayLike) -> Isotonic:
    """Non-decreasing step function of the confidence by pooling adjacent violators.

    Equal confidences are pooled first (Zadrozny and Elkan 2002).

    Args:
        confidence: float [N] in [0, 1].
        correct: [N], 0 or 1.

    Raises:
        ValueError: without items.

    Example:
        >>> fit_isotonic([0.2, 0.4, 0.6, 0.8], [0, 1, 0, 1]).values
        (0.0, 0.5, 1.0)
    """
    c, r = top_label(confidence, correct, op="fit_isotonic")
    if not len(c):
        raise ValueError("[fit_isotonic] expected at least one item, got none")
    knots, inverse, counts = np.unique(c, return_inverse=True, return_counts=True)
    starts: list[float] = []
    sums: list[float] = []
    sizes: list[float] = []
    for knot, total, size in zip(knots, np.bincount(inverse, r), counts, strict=True):
        starts.append(float(knot))
        sums.append(float(total))
        sizes.append(float(size))
        while len(starts) > 1 and sums[-2] * sizes[-1] >= sums[-1] * sizes[-2]:
            starts.pop()
            sums[-2:] = [sums[-2] + sums[-1]]
            sizes[-2:] = [sizes[-2] + sizes[-1]]
    return Isotonic(tuple(starts), tuple(s / n for s, n in zip(sums, sizes, strict=True)))


def fit_logistic(x: np.ndarray, correct: np.ndarray) -> LogisticFit:
    """Logistic regression of right or wrong on one number, by maximum likelihood.

    Args:
        x: float64 [N], finite.
        correct: float64 [N], 0 or 1.

    Returns:
        The fit; without numbers where one class is missing, x separates the classes, or x does not
        vary.
    """
    right, wrong = x[correct == 1.0], x[correct == 0.0]
    if not len(right) or not len(wrong):
        return LogisticFit(None, None, f"all items are {'right' if len(right) else 'wrong'}")
    if np.ptp(x) == 0.0:
        return LogisticFit(None, None, "all items have the same value")
    if wrong.max() <= right.min() or right.max() <= wrong.min():
        return LogisticFit(None, None, "right and wrong items do not overlap")
    return LogisticFit(*_newton(x, correct))


def log_loss(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Binary log loss of the top answer per item, nats, float64 [N]; infinite where a certain
    answer is wrong."""
    with np.errstate(divide="ignore"):
        return -np.log(np.where(correct == 1.0, confidence, 1.0 - confidence))


def _solve(d: Distributions, target: float) -> Temperature:
    """Temperature at which the expected log scores under p^(1/T) sum to `target`."""
    excess = _expected_log_score(d)
    if excess(BETA_RANGE[0]) == excess(BETA_RANGE[1]):
        return Temperature(1.0)
    low, high = BETA_RANGE
    if excess(low) >= target:
        return Temperature(1.0 / low, clipped=True)
    if excess(high) <= target:
        return Temperature(1.0 / high, clipped=True)
    low, high = math.log(low), math.log(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if excess(math.exp(middle)) > target else (middle, high)
    return Temperature(math.exp(-(low + high) / 2.0))


def _expected_log_score(d: Distributions) -> Callable[[float], float]:
    """beta -> sum over items of E_{p^beta}[log p]; choices of probability 0 do not enter."""
    starts, owner = d.offsets[:-1], np.repeat(np.arange(d.n), d.k)
    shifted = d.log_p - np.maximum.reduceat(d.log_p, starts)[owner]
    finite = np.where(np.isneginf(d.log_p), 0.0, d.log_p)

    def total(beta: float) -> float:
        weight = np.exp(beta * shifted)
        part = np.add.reduceat(weight * finite, starts) / np.add.reduceat(weight, starts)
        return float(part.sum())

    return total


def _newton(x: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """alpha, beta of least cross entropy between `target` and sigmoid(alpha x + beta)."""
    spread = float(np.std(x))
    mean = float(target.mean())
    if spread == 0.0:
        return 0.0, math.log(mean / (1.0 - mean))
    centre = float(x.mean())
    design = np.stack([(x - centre) / spread, np.ones_like(x)], axis=1)
    weights = np.array([0.0, math.log(mean / (1.0 - mean))])
    loss = _cross_entropy(design @ weights, target)
    for _ in range(200):
        p = _sigmoid(design @ weights)
        hessian = (design * (p * (1.0 - p))[:, None]).T @ design
        step = np.linalg.solve(hessian, design.T @ (target - p))
        scale, limit = 1.0, loss + 1e-14  # what rounding alone may add
        while scale > 1e-6 and _cross_entropy(design @ (weights + scale * step), target) > limit:
            scale /= 2.0
        weights = weights + scale * step
        loss = _cross_entropy(design @ weights, target)
        if float(np.abs(step).max()) < 1e-12:
            break
    alpha = float(weights[0]) / spread
    return alpha, float(weights[1]) - alpha * centre


def _cross_entropy(z: np.ndarray, target: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0.0, z) - target * z))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -z))
