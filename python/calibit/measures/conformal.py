"""Conformal transfer: prediction sets calibrated on the full model, used on the quantized.

The score is 1 - p_y (least ambiguous sets, Sadinle, Lei and Wasserman 2019): the set of an item
holds every choice with 1 - p_k <= q, where q is the ceil((n + 1)(1 - alpha))-th smallest score of
the calibration items. For exchangeable items it covers the truth with probability 1 - alpha.

Scores are compared as -log p, which orders them alike: long answers often have p below 1e-16, where
1 - p is 1 for all of them and a set would hold every choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.confidence import mean_of
from calibit.measures.distributions import Distributions
from calibit.measures.estimate import Estimate, Interval, plain
from calibit.measures.folds import folds_of
from calibit.measures.intervals import paired_share_interval
from calibit.measures.paired import McNemar, mcnemar
from calibit.measures.pairs import LabelledPair, labelled_models
from calibit.measures.resampling import Resampling
from calibit.measures.scores import Scores
from calibit.measures.simultaneous import sign_flip_p

ALPHA = 0.1
SPLITS = 100


@dataclass(frozen=True)
class SetFacts:
    """Prediction sets of one model at one quantile, on the test items.

    Attributes:
        coverage: share of items whose set holds the right choice.
        size: mean number of choices in a set.
        empty: share of empty sets.
    """

    coverage: float
    size: float
    empty: float


@dataclass(frozen=True)
class Repeated:
    """Mean and standard deviation over seeded splits."""

    mean: float
    sd: float


@dataclass(frozen=True)
class ConformalTransfer:
    """Prediction sets of the reference, transferred to the candidate.

    Attributes:
        alpha: error rate asked for.
        n_calibration, n_test: items on each side of the split.
        rank: rank of the quantile among the calibration scores; above n_calibration it is infinite.
        q_a, q_b: quantiles of reference and candidate; None where infinite (every choice is in
            every set).
        a, transfer, recalibrated: reference at q_a, candidate at q_a, candidate at q_b.
        coverage_loss: coverage of the reference minus that of the candidate, both at q_a.
        inflation: set size of the candidate at q_b minus that of the reference at q_a.
        test: McNemar's test on items covered by one of the two at q_a.
        band: where the reference's coverage falls for 95 % of calibration sets.
        splits: quantity -> mean and sd over seeded splits.
    """

    alpha: float
    n_calibration: int
    n_test: int
    rank: int
    q_a: float | None
    q_b: float | None
    a: SetFacts
    transfer: SetFacts
    recalibrated: SetFacts
    coverage_loss: Estimate
    inflation: Estimate
    test: McNemar
    band: Interval
    splits: Mapping[str, Repeated]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


def conformal_transfer(
    a: Any,
    b: Any,
    gold: ArrayLike | None = None,
    *,
    alpha: float = ALPHA,
    calibration: ArrayLike | None = None,
    ids: Sequence[str] | None = None,
    splits: int = SPLITS,
    resampling: Resampling | None = None,
) -> ConformalTransfer:
    """What happens to prediction sets when the model is exchanged under them.

    Args:
        a, b: reference and candidate: Scores, Distributions, or log scores [N, K].
        gold: int [N], -1 = unlabelled (left out); taken from `a` where it is a Scores.
        alpha: error rate, in (0, 1).
        calibration: bool [N labelled items], which items calibrate; by fold hash where omitted.
        ids: item ids, from which folds are made; those of `a` where it is a Scores.
        splits: number of further seeded splits into halves.
        resampling: of the intervals (its seed is that of the splits too).

    Raises:
        ValueError: for alpha outside (0, 1), a split with an empty side, or items that do not pair,
            have one choice, or are not labelled.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"[conformal_transfer] expected alpha between 0 and 1, got {alpha}")
    pair = labelled_models(a, b, gold, ids=ids, op="conformal_transfer")
    draw = pair.resampling(resampling)
    chosen = folds_of(pair.ids, 2) == 0 if calibration is None else np.asarray(calibration)
    if chosen.shape != (pair.n,) or chosen.dtype != bool or chosen.all() or not chosen.any():
        raise ValueError(
            f"[conformal_transfer] expected calibration and test items among {pair.n}, "
            f"got {int(np.sum(chosen))} calibration items"
        )
    score_a, score_b = (-d.of(pair.gold)[1] for d in (pair.a, pair.b))
    q_a, q_b = _quantile(score_a[chosen], alpha), _quantile(score_b[chosen], alpha)
    test, gold_test = np.flatnonzero(~chosen), pair.gold[~chosen]
    sides = [(pair.a.take(test), q_a), (pair.b.take(test), q_a), (pair.b.take(test), q_b)]
    covered, size = zip(*(_sets(d, q, gold_test) for d, q in sides), strict=True)
    facts = [_facts(c, s) for c, s in zip(covered, size, strict=True)]
    discordant = mcnemar(int(np.sum(covered[0] > covered[1])), int(np.sum(covered[0] < covered[1])))
    return ConformalTransfer(
        alpha,
        int(chosen.sum()),
        len(test),
        _rank(int(chosen.sum()), alpha),
        _shown(q_a),
        _shown(q_b),
        facts[0],
        facts[1],
        facts[2],
        _loss(covered[0], covered[1], draw.take(test)),
        mean_of("inflation", size[2] - size[0], draw.take(test), unit="choices"),
        discordant,
        coverage_band(int(chosen.sum()), alpha, level=draw.level),
        _repeated(pair, (score_a, score_b), alpha, splits, draw.seed),
    )


def coverage_band(n: int, alpha: float, *, level: float = 0.95) -> Interval:
    """Where the coverage of n calibration items' sets falls: Beta(n + 1 - l, l), l = floor((n + 1)
    alpha) (Vovk 2012).

    Args:
        n: number of calibration items.
        alpha: error rate.
        level: two-sided level.
    """
    from scipy.special import betaincinv

    least = math.floor((n + 1) * alpha + 1e-9)
    if least == 0:
        return Interval(None, None, level, "beta", reason="too few items: every set is full")
    ends = [float(betaincinv(n + 1 - least, least, share)) for share in _tails(level)]
    return Interval(ends[0], ends[1], level, "beta")


@dataclass(frozen=True)
class ThresholdJump:
    """Change of coverage between neighbouring steps of a ladder.

    Attributes:
        steps: coverage loss of each step against the one before (positive = less covered).
        worst: index of the step with the largest loss.
        p: adjusted one-sided p value of each step (single-step maxT over sign flips).
    """

    steps: tuple[float, ...]
    worst: int
    p: tuple[float, ...]


def threshold_jump(covered: np.ndarray, *, resampling: Resampling | None = None) -> ThresholdJump:
    """The largest loss of coverage between neighbouring steps of a bit ladder.

    Args:
        covered: [S, N], 1 where a step's set holds the right choice, all at the reference's
            quantile; first the reference, then fewer and fewer bits.
        resampling: number of sign patterns and seed.

    Raises:
        ValueError: for fewer than two steps.
    """
    table = np.asarray(covered, dtype=np.float64)
    if table.ndim != 2 or len(table) < 2 or not table.shape[1]:
        raise ValueError(
            f"[threshold_jump] expected covered of shape [S >= 2, N], got {list(table.shape)}"
        )
    lost = table[:-1] - table[1:]
    p = sign_flip_p(lost, np.ones(lost.shape, dtype=bool), resampling or Resampling())
    means = lost.mean(axis=1)
    return ThresholdJump(tuple(means.tolist()), int(np.argmax(means)), tuple(p.tolist()))


@dataclass(frozen=True)
class ConformalLadder:
    """Prediction sets of a reference and of its copies in fewer and fewer bits.

    Attributes:
        alpha: error rate asked for.
        quantile: of the reference's calibration items; None where infinite.
        n_calibration, n_test: items on each side of the split.
        sets: of the reference and of every step, all at that quantile, on the test items.
        jump: change of coverage from each of them to the next.
    """

    alpha: float
    quantile: float | None
    n_calibration: int
    n_test: int
    sets: tuple[SetFacts, ...]
    jump: ThresholdJump


def conformal_ladder(
    reference: Scores,
    steps: Sequence[Scores],
    *,
    alpha: float = ALPHA,
    resampling: Resampling | None = None,
) -> ConformalLadder:
    """Prediction sets calibrated on the reference, used along a ladder of bits.

    Items calibrate and test by fold hash, as in `conformal_transfer`.

    Args:
        reference: the items, labelled, with at least two choices each.
        steps: the same items of the models, fewer and fewer bits.
        alpha: error rate, in (0, 1).
        resampling: number of sign patterns, seed and clusters.

    Raises:
        ValueError: without steps, for items that do not pair, or that are all on one side of the
            split.
    """
    if not steps:
        raise ValueError("[conformal_ladder] expected at least one step, got none")
    pairs = [labelled_models(reference, step, op="conformal_ladder") for step in steps]
    first = pairs[0]
    chosen = folds_of(first.ids, 2) == 0
    if chosen.all() or not chosen.any():
        raise ValueError(
            "[conformal_ladder] expected items on both sides of the split, got "
            f"{int(chosen.sum())} of {first.n} to calibrate on"
        )
    test = np.flatnonzero(~chosen)
    q = _quantile(-first.a.of(first.gold)[1][chosen], alpha)
    models, gold = [first.a, *(pair.b for pair in pairs)], first.gold[test]
    covered, size = zip(*(_sets(one.take(test), q, gold) for one in models), strict=True)
    return ConformalLadder(
        alpha,
        _shown(q),
        int(chosen.sum()),
        len(test),
        tuple(_facts(c, s) for c, s in zip(covered, size, strict=True)),
        threshold_jump(np.stack(covered), resampling=first.resampling(resampling).take(test)),
    )


def _rank(n: int, alpha: float) -> int:
    return math.ceil((n + 1) * (1.0 - alpha) - 1e-9)


def _quantile(scores: np.ndarray, alpha: float) -> float:
    rank = _rank(len(scores), alpha)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def _shown(q: float) -> float | None:
    """The quantile of 1 - p, from that of -log p; None where infinite."""
    return None if math.isinf(q) else -math.expm1(-q)


def _sets(d: Distributions, q: float, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether the set holds the right choice, and its size, float64 [n] each."""
    inside = -d.log_p <= q
    covered = inside[d.offsets[:-1] + gold]
    sizes = np.add.reduceat(inside.astype(np.float64), d.offsets[:-1])
    return covered.astype(np.float64), sizes


def _facts(covered: np.ndarray, size: np.ndarray) -> SetFacts:
    return SetFacts(float(covered.mean()), float(size.mean()), float(np.mean(size == 0)))


def _loss(reference: np.ndarray, candidate: np.ndarray, draw: Resampling) -> Estimate:
    lost = float(np.mean(reference - candidate))
    out = Estimate("coverage_loss", lost, "difference", len(reference))
    return out.with_interval(paired_share_interval(candidate, reference, draw))


def _repeated(
    pair: LabelledPair, scores: tuple[np.ndarray, np.ndarray], alpha: float, splits: int, seed: int
) -> dict[str, Repeated]:
    """Coverage and size over seeded random splits into halves, whatever the order of the items."""
    rng, rows = np.random.default_rng(seed), []
    by_id, half = np.argsort(np.array(pair.ids), kind="stable"), pair.n // 2
    for _ in range(splits if half else 0):
        order = by_id[rng.permutation(pair.n)]
        calibration, test = order[:half], order[half:]
        q_a, q_b = (_quantile(score[calibration], alpha) for score in scores)
        row = []
        for d, q in ((pair.a, q_a), (pair.b, q_a), (pair.b, q_b)):
            covered, size = _sets(d, q, pair.gold)
            row += [covered[test].mean(), size[test].mean()]
        rows.append(row)
    if len(rows) < 2:
        return {}
    names = [f"{what}.{side}" for side in ("a", "transfer", "recalibrated") for what in _REPEATED]
    table = np.array(rows)
    mean, sd = table.mean(axis=0), table.std(axis=0, ddof=1)
    return {name: Repeated(float(m), float(s)) for name, m, s in zip(names, mean, sd, strict=True)}


_REPEATED = ("coverage", "size")


def _tails(level: float) -> tuple[float, float]:
    return (1.0 - level) / 2.0, (1.0 + level) / 2.0
