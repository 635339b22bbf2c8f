"""Proper scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.binning import top_label
from calibit.measures.confidence import mean_of
from calibit.measures.distributions import Distributions, as_distributions, segment_sum
from calibit.measures.estimate import Estimate
from calibit.measures.resampling import Resampling
from calibit.measures.scores import UNLABELLED, Scores


def brier(
    scores: Any, gold: ArrayLike | None = None, *, resampling: Resampling | None = None
) -> Estimate:
    """Brier score over all choices: mean of sum_k (p_k - 1[y = k])^2, range 0..2 (twice the binary
    one for K = 2).

    Args:
        scores: Scores, Distributions, or log scores [N, K] (K may differ per item).
        gold: int [N], -1 = unlabelled (left out); taken from Scores where omitted.
        resampling: asks for a BCa interval.

    Raises:
        ValueError: for a gold index out of range, or none given.
    """
    distributions, labels = labelled_pair(scores, gold, op="brier")
    return mean_of("brier", brier_values(distributions, labels), resampling)


def brier_top1(
    confidence: ArrayLike, correct: ArrayLike, *, resampling: Resampling | None = None
) -> Estimate:
    """Brier score of the top label: mean (c - r)^2."""
    c, r = top_label(confidence, correct, op="brier_top1")
    return mean_of("brier_top1", (c - r) ** 2, resampling)


def nll(
    scores: Any, gold: ArrayLike | None = None, *, resampling: Resampling | None = None
) -> Estimate:
    """Negative log-likelihood of the gold choice: mean -log p_y, nats, not clipped.

    Args:
        scores: Scores, Distributions, or log scores [N, K] (K may differ per item).
        gold: int [N], -1 = unlabelled (left out); taken from Scores where omitted.
        resampling: asks for a BCa interval.
    """
    distributions, labels = labelled_pair(scores, gold, op="nll")
    return mean_of("nll", -distributions.of(labels)[1], resampling, unit="nats")


def brier_values(distributions: Distributions, gold: np.ndarray) -> np.ndarray:
    """Brier score per item, float64 [N]."""
    hit = np.zeros_like(distributions.p)
    hit[distributions.offsets[:-1] + gold] = 1.0
    return segment_sum((distributions.p - hit) ** 2, distributions.offsets)


def labelled_pair(
    scores: Any, gold: ArrayLike | None, *, op: str
) -> tuple[Distributions, np.ndarray]:
    """Distributions and gold indices of the labelled items.

    Args:
        scores: Scores, Distributions, or log scores.
        gold: int [N], -1 = unlabelled; taken from Scores where None.
        op: name used in error messages.

    Returns:
        Distributions of M items and int64 [M].

    Raises:
        ValueError: for missing labels, a wrong length, or an index out of range.
    """
    distributions = as_distributions(scores, op=op)
    if gold is None:
        if not isinstance(scores, Scores):
            raise ValueError(
                f"[{op}] expected gold, the index of the right choice per item, got none"
            )
        gold = scores.gold
    labels = np.asarray(gold)
    if labels.shape != (distributions.n,):
        raise ValueError(
            f"[{op}] expected gold of shape [{distributions.n}], got {list(labels.shape)}"
        )
    if labels.size and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"[{op}] expected integer gold, got {labels.dtype}")
    labels = labels.astype(np.int64)
    outside = (labels < UNLABELLED) | (labels >= distributions.k)
    if outside.any():
        item = int(np.flatnonzero(outside)[0])
        most = int(distributions.k[item]) - 1
        raise ValueError(f"[{op}] expected gold in -1..{most}, got {labels[item]} in item {item}")
    known = labels != UNLABELLED
    if known.all():
        return distributions, labels
    return distributions.take(known), labels[known]
