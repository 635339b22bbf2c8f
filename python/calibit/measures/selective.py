"""Ranking and selective prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.binning import top_label
from calibit.measures.confidence import NO_ITEMS
from calibit.measures.estimate import Estimate, undefined
from calibit.measures.intervals import percentile
from calibit.measures.resampling import Resampling, resampled_ranking


def auroc(
    confidence: ArrayLike, correct: ArrayLike, *, resampling: Resampling | None = None
) -> Estimate:
    """Probability that a right item has more confidence than a wrong one, ties counted half.

    Args:
        confidence: float [N] in [0, 1].
        correct: [N], 0 or 1.
        resampling: asks for a percentile interval.

    Returns:
        Estimate; None if all items are right or all are wrong.
    """
    c, r = top_label(confidence, correct, op="auroc")
    if not len(c):
        return undefined("auroc", NO_ITEMS, estimator="rank")
    if r.min() == r.max():
        return undefined(
            "auroc", f"all items are {'right' if r[0] else 'wrong'}", n=len(c), estimator="rank"
        )
    out = Estimate("auroc", _auroc(c, r), "rank", len(c))
    if resampling is None:
        return out
    draws = ranking_draws(c, r, None, resampling)[0]
    return out.with_interval(percentile(draws, resampling, value=out.value, floor=0.0))


def aurc(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    ids: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> Estimate:
    """Area under the risk-coverage curve: mean over j of the error rate of the j most confident
    items.

    Args:
        confidence: float [N] in [0, 1].
        correct: [N], 0 or 1.
        ids: item ids that order equal confidences; position where omitted.
        resampling: asks for a percentile interval.
    """
    c, r = top_label(confidence, correct, op="aurc")
    if not len(c):
        return undefined("aurc", NO_ITEMS, estimator="rank")
    out = Estimate("aurc", float(np.mean(_risks(c, r, ids))), "rank", len(c))
    if resampling is None:
        return out
    draws = ranking_draws(c, r, ids, resampling)[1]
    return out.with_interval(percentile(draws, resampling, value=out.value, floor=0.0))


def e_aurc(
    confidence: ArrayLike, correct: ArrayLike, *, ids: Sequence[str] | None = None
) -> Estimate:
    """AURC minus the AURC of the best possible order of the same items (Geifman et al. 2019)."""
    c, r = top_label(confidence, correct, op="e_aurc")
    if not len(c):
        return undefined("e_aurc", NO_ITEMS, estimator="rank")
    j = np.arange(1, len(c) + 1)
    best = np.mean(np.maximum(0.0, j - r.sum()) / j)
    return Estimate("e_aurc", float(np.mean(_risks(c, r, ids)) - best), "rank", len(c))


def sel_acc(
    confidence: ArrayLike, correct: ArrayLike, q: float, *, ids: Sequence[str] | None = None
) -> Estimate:
    """Accuracy of the ceil(q N - 1e-9) most confident items.

    Args:
        confidence: float [N] in [0, 1].
        correct: [N], 0 or 1.
        q: share of the items, 0 < q <= 1.
        ids: item ids that order equal confidences.

    Raises:
        ValueError: for q outside (0, 1].
    """
    c, r = top_label(confidence, correct, op="sel_acc")
    if not 0.0 < q <= 1.0:
        raise ValueError(f"[sel_acc] expected 0 < q <= 1, got {q}")
    metric = f"sel_acc@{q:g}"
    if not len(c):
        return undefined(metric, NO_ITEMS, extra={"q": q})
    kept = max(1, math.ceil(q * len(c) - 1e-9))
    return Estimate(metric, float(r[rank_order(c, ids)[:kept]].mean()), n=kept, extra={"q": q})


def rank_order(confidence: np.ndarray, ids: Sequence[str] | None) -> np.ndarray:
    """Indices by falling confidence, equal ones by item id (by position without ids), int64 [N].

    Raises:
        ValueError: for a wrong number of ids.
    """
    if ids is None:
        return np.argsort(-confidence, kind="stable")
    if len(ids) != len(confidence):
        raise ValueError(f"[aurc] expected {len(confidence)} ids, got {len(ids)}")
    return np.lexsort((np.asarray(ids, dtype=str), -confidence))


def ranking_draws(
    confidence: np.ndarray, correct: np.ndarray, ids: Sequence[str] | None, resampling: Resampling
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUROC, AURC and excess AURC on every resample; copies of an item stand next to each other in
    the order.

    Args:
        confidence, correct: float64 [N].
        ids: item ids that order equal confidences.
        resampling: number of resamples and seed.

    Returns:
        Three arrays float64 [resamples]; AUROC is NaN where a resample holds one class only.
    """
    drawn = resampled_ranking(confidence, correct, rank_order(confidence, ids), resampling)
    return drawn[:, 0], drawn[:, 1], drawn[:, 2]


def _risks(c: np.ndarray, r: np.ndarray, ids: Sequence[str] | None) -> np.ndarray:
    wrong = 1.0 - r[rank_order(c, ids)]
    return np.cumsum(wrong) / np.arange(1, len(c) + 1)


def _auroc(confidence: np.ndarray, correct: np.ndarray) -> float:
    order = np.argsort(confidence, kind="stable")
    c, hit = confidence[order], correct[order]
    starts = np.flatnonzero(np.append(True, c[1:] != c[:-1]))
    right, wrong = (np.add.reduceat(side, starts) for side in (hit, 1.0 - hit))
    below = np.cumsum(wrong) - 0.5 * wrong
    return float(np.sum(right * below) / (right.sum() * wrong.sum()))
