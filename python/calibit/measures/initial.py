"""Change against initial confidence, with the controls that regression to the mean demands.

Binning a change by the reference's own, noisy confidence shows a slope for any perturbation of a
bounded scale. Four controls: Oldham's slope, cross-fitting over two forms of each item, copies of
the reference perturbed as strongly as the candidate, and a rule for what may be claimed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.binning import mass_bins, mass_edges
from calibit.measures.estimate import Estimate, plain, undefined
from calibit.measures.intervals import percentile
from calibit.measures.paired import SignificanceTest, mean_difference
from calibit.measures.pairs import LabelledPair, labelled_models
from calibit.measures.resampling import Resampling, resampled_sums

INITIAL_BINS = 10
LEAST_COPIES = 8
"""Perturbed copies without which nothing may be claimed."""

CHANGES = ("conf_true", "conf")
"""What changes: the probability of the right choice, the confidence."""

_BAND = (0.025, 0.975)


@dataclass(frozen=True)
class Oldham:
    """Slope of the change of confidence on the mean of both (Oldham 1962).

    Its null is equal variance of the two, tested by `r`, `t`, `p` of Pitman and Morgan.
    """

    slope: float
    r: float
    t: float
    p: float


@dataclass(frozen=True)
class InitialBin:
    """Items of similar initial confidence.

    Attributes:
        lo, hi, n, conf: range, number of items, mean confidence of the reference.
        change, lower, upper: mean change of conf_true with its interval (naive view).
        null, null_lower, null_upper: mean and 2.5-97.5 % band of the perturbed copies' changes;
            None without copies.
    """

    lo: float
    hi: float
    n: int
    conf: float
    change: float | None
    lower: float | None
    upper: float | None
    null: float | None = None
    null_lower: float | None = None
    null_upper: float | None = None


@dataclass(frozen=True)
class PerturbationNull:
    """A slope in excess of those of perturbed copies of the reference.

    Attributes:
        excess: slope of the candidate minus the mean slope of the copies; its interval resamples
            items (common to all) and copies.
        slopes: of the copies.
        test: t test of "the candidate is one more copy", R - 1 degrees of freedom; None where the
            copies do not vary.
    """

    excess: Estimate
    slopes: tuple[float, ...]
    test: SignificanceTest | None


@dataclass(frozen=True)
class InitialConfidence:
    """Change by initial confidence, and what may be said about it.

    Attributes:
        n: number of items.
        naive: change -> slope on the reference's own confidence, labelled naive.
        bins: ten groups of equal size by the reference's confidence.
        oldham: None where there is no spread.
        split, iv: change -> cross-fitted slopes; empty without two forms of each item.
        perturbed: change -> excess over perturbed copies; empty without copies.
        claim: whether "items of low confidence lose more" may be printed.
        reason: why, or why not.
    """

    n: int
    naive: Mapping[str, Estimate]
    bins: tuple[InitialBin, ...]
    oldham: Oldham | None
    split: Mapping[str, Estimate] = field(default_factory=dict)
    iv: Mapping[str, Estimate] = field(default_factory=dict)
    perturbed: Mapping[str, PerturbationNull] = field(default_factory=dict)
    claim: bool = False
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


Form = tuple[Any, Any]
"""Reference and candidate on one form (wording) of the items."""


def initial_confidence(
    a: Any,
    b: Any,
    gold: ArrayLike | None = None,
    *,
    forms: tuple[Form, Form] | None = None,
    perturbed: Sequence[Any] = (),
    resampling: Resampling | None = None,
    form_resampling: Resampling | None = None,
) -> InitialConfidence:
    """Does the change depend on the initial confidence, beyond regression to the mean?

    Args:
        a, b: reference and candidate: Scores, Distributions, or log scores [N, K].
        gold: int [N], -1 = unlabelled (left out); taken from `a` where it is a Scores.
        forms: (reference, candidate) on two forms of the same items, for the cross-fitted slopes;
            they may be some of the items only.
        perturbed: at least 2 copies of the reference with weight noise of the candidate's size,
            run on the same items; a claim takes 8.
        resampling: of the intervals; the defaults of the project where omitted.
        form_resampling: the same for the items of `forms`, where they are others.

    Raises:
        ValueError: for items that do not pair, have one choice, or are not labelled; for one copy.
    """
    op = "initial_confidence"
    pair = labelled_models(a, b, gold, op=op)
    draw = pair.resampling(resampling)
    if len(perturbed) == 1:
        raise ValueError(f"[{op}] expected no perturbed copies or at least 2, got 1")
    copies = [
        labelled_models(a, one, gold, op=f"{op}, copy {i}") for i, one in enumerate(perturbed)
    ]
    found = InitialConfidence(
        pair.n,
        {name: _naive(pair, name, draw) for name in CHANGES},
        _bins(pair, copies, draw),
        oldham(pair.a.confidence, pair.b.confidence),
        *(_cross_fitted(forms, gold, form_resampling or resampling) if forms else ({}, {})),
        {name: _excess(pair, copies, name, draw) for name in CHANGES} if copies else {},
    )
    claim, reason = _claim(found)
    return InitialConfidence(**{**vars(found), "claim": claim, "reason": reason})


def slope(x: np.ndarray, d: np.ndarray) -> float | None:
    """Least-squares slope of d on x; None where x does not vary."""
    sums = _moments(x, d).sum(axis=0)
    return float(_slope(sums)) if np.ptp(x) > 0.0 else None


def oldham(before: np.ndarray, after: np.ndarray) -> Oldham | None:
    """Slope of the change on the mean of before and after, with Pitman and Morgan's test.

    Args:
        before, after: float64 [N].

    Returns:
        None for fewer than three items, or where the mean or the change does not vary.
    """
    from scipy.special import stdtr

    change, total = after - before, after + before
    if len(before) < 3 or np.ptp(change) == 0.0 or np.ptp(total) == 0.0:
        return None
    r = float(np.corrcoef(change, total)[0, 1])
    df = len(before) - 2
    t = r * math.sqrt(df / max(1e-300, 1.0 - r * r))
    return Oldham(float(slope(total / 2.0, change) or 0.0), r, t, float(2 * stdtr(df, -abs(t))))


def change_of(pair: LabelledPair, name: str) -> np.ndarray:
    """Change of conf_true or conf per item, float64 [N]."""
    return pair.d_p_true if name == "conf_true" else pair.b.confidence - pair.a.confidence


def _moments(x: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.stack([np.ones(len(x)), x, d, x * d, x * x], axis=1)


def _slope(sums: np.ndarray) -> np.ndarray:
    n, x, d, xd, xx = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xd - x * d / n) / (xx - x * x / n)


def _naive(pair: LabelledPair, name: str, draw: Resampling) -> Estimate:
    x, d = pair.a.confidence, change_of(pair, name)
    value = slope(x, d)
    if value is None:
        return undefined("slope", "the initial confidence does not vary", n=pair.n)
    draws = _slope(resampled_sums(_moments(x, d), draw))
    out = Estimate("slope", value, "least squares", pair.n, extra={"label": "naive", "of": name})
    return out.with_interval(percentile(draws, draw, value=value))


def _bins(
    pair: LabelledPair, copies: Sequence[LabelledPair], draw: Resampling
) -> tuple[InitialBin, ...]:
    c, change = pair.a.confidence, pair.d_p_true
    place, edges = mass_bins(c, INITIAL_BINS), mass_edges(c, INITIAL_BINS)
    rows, low = [], 0.0
    for index, edge in enumerate(edges):
        inside, high = place == index, min(float(edge), 1.0)
        if inside.any():
            mean = mean_difference(change[inside], resampling=draw.take(inside))
            null = [float(copy.d_p_true[inside].mean()) for copy in copies]
            band = np.quantile(null, _BAND).tolist() if null else [None, None]
            centre = float(np.mean(null)) if null else None
            facts = (int(inside.sum()), float(c[inside].mean()), mean.value, mean.lower, mean.upper)
            rows.append(InitialBin(low, high, *facts, centre, *band))
        low = high
    return tuple(rows)


def _cross_fitted(
    forms: tuple[Form, Form], gold: ArrayLike | None, resampling: Resampling | None
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Slopes of the change in one form on the confidence in the other: split and IV."""
    pairs = [
        labelled_models(*form, gold, op=f"initial_confidence, form {i}")
        for i, form in enumerate(forms, start=1)
    ]
    if pairs[0].ids != pairs[1].ids:
        sizes = " and ".join(str(pair.n) for pair in pairs)
        raise ValueError(
            f"[initial_confidence] expected the same items in both forms, got {sizes} items or "
            "others"
        )
    n, draw = pairs[0].n, pairs[0].resampling(resampling)
    split: dict[str, Estimate] = {}
    iv: dict[str, Estimate] = {}
    for name in CHANGES:
        (x1, d1), (x2, d2) = ((pair.a.confidence, change_of(pair, name)) for pair in pairs)
        columns = np.stack([np.ones(n), x1, x2, d1, d2, x1 * d2, x2 * d1, x1 * x2, x1**2, x2**2], 1)
        drawn = resampled_sums(columns, draw)
        for out, label, of in ((split, "cross-fitted", _split), (iv, "instrument", _iv)):
            value = float(of(columns.sum(axis=0)))
            facts = {"label": label, "of": name}
            if not math.isfinite(value):
                out[name] = undefined("slope", "the confidence does not vary", n=n, extra=facts)
                continue
            estimate = Estimate("slope", value, label, n, extra=facts)
            out[name] = estimate.with_interval(percentile(of(drawn), draw, value=value))
    return split, iv


def _crosses(sums: np.ndarray) -> list[np.ndarray]:
    """Centred cross products S(x1, d2), S(x2, d1), S(x1, x2), S(x1, x1), S(x2, x2)."""
    n, x1, x2, d1, d2, x1d2, x2d1, x1x2, x1x1, x2x2 = np.moveaxis(sums, -1, 0)
    pairs = ((x1d2, x1, d2), (x2d1, x2, d1), (x1x2, x1, x2), (x1x1, x1, x1), (x2x2, x2, x2))
    return [product - first * second / n for product, first, second in pairs]


def _split(sums: np.ndarray) -> np.ndarray:
    s12, s21, _, s11, s22 = _crosses(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (s12 / s11 + s21 / s22) / 2.0


def _iv(sums: np.ndarray) -> np.ndarray:
    s12, s21, sxx, _, _ = _crosses(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (s12 + s21) / (2.0 * sxx)


def _excess(
    pair: LabelledPair, copies: Sequence[LabelledPair], name: str, draw: Resampling
) -> PerturbationNull:
    """Excess slope with a two-level bootstrap: items with common indices, copies anew."""
    from scipy.special import stdtr

    x, changes = pair.a.confidence, [change_of(one, name) for one in (pair, *copies)]
    shared = np.stack([np.ones(pair.n), x, x * x], axis=1)
    own = np.stack([column for d in changes for column in (d, x * d)], axis=1)
    every = _slopes(np.concatenate([shared, own], axis=1).sum(axis=0)[None, :])[0]
    if not np.isfinite(every).all():
        none = undefined("slope", "the initial confidence does not vary", n=pair.n)
        return PerturbationNull(none, (), None)
    count = len(copies)
    drawn = _slopes(resampled_sums(np.concatenate([shared, own], axis=1), draw))
    rng = np.random.default_rng(draw.seed)
    chosen = rng.integers(1, count + 1, (draw.resamples, count))
    draws = drawn[:, 0] - np.take_along_axis(drawn, chosen, axis=1).mean(axis=1)
    value = float(every[0] - every[1:].mean())
    facts = {"of": name, "copies": count}
    excess = Estimate("slope", value, "excess", pair.n, extra=facts)
    spread = float(np.std(every[1:], ddof=1))
    test = None
    if spread > 0.0:
        t = value / (spread * math.sqrt(1.0 + 1.0 / count))
        test = SignificanceTest(t, float(2.0 * stdtr(count - 1, -abs(t))), count - 1)
    bounded = excess.with_interval(percentile(draws, draw, value=value))
    return PerturbationNull(bounded, tuple(every[1:].tolist()), test)


def _slopes(sums: np.ndarray) -> np.ndarray:
    """Slopes from sums of (1, x, x^2) and of (d, x d) per change: [rows, changes]."""
    n, x, xx = (sums[:, i, None] for i in range(3))
    d, xd = sums[:, 3::2], sums[:, 4::2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xd - x * d / n) / (xx - x * x / n)


def _claim(found: InitialConfidence) -> tuple[bool, str]:
    """Whether "items of low confidence lose more" may be printed: a positive slope of conf_true."""
    null, iv = found.perturbed.get("conf_true"), found.iv.get("conf_true")
    if null is None:
        return False, "there are no perturbed copies of the reference to compare with"
    if iv is None:
        return False, "the items were not asked in a second form"
    if len(null.slopes) < LEAST_COPIES:
        return False, f"a claim takes {LEAST_COPIES} perturbed copies, there are {len(null.slopes)}"
    lower, upper = null.excess.lower, iv.upper
    if lower is None or lower <= 0.0:
        return False, "the slope does not exceed that of perturbed copies"
    if upper is None or upper <= 0.0:
        return False, "the cross-fitted slope contradicts it"
    return True, "the slope exceeds that of perturbed copies, and the cross-fitted one agrees"
