"""What the notebook released with the first study computes; never a default,
always labelled.

The released notebook computes, for binary tasks, the gap between confidence and the class index;
for the others, cells of (bin, true class) instead of classes, without the top bin. These functions
reproduce that, for comparison with its numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.confidence import NO_ITEMS
from calibit.measures.estimate import Estimate, undefined
from calibit.measures.proper import labelled_pair


def ece(scores: Any, gold: ArrayLike | None = None, *, bins: int = 100) -> Estimate:
    """Sum of n_q/N |mean confidence - mean class index| (the class index stands where correctness
    should).

    Args:
        scores: Scores, Distributions, or log scores [N, K].
        gold: int [N]; taken from Scores where omitted.
        bins: M.
    """
    items = _Items.of(scores, gold, bins)
    if items is None:
        return undefined("paper_code.ece", NO_ITEMS)
    size, gap = items.class_index_gaps()
    return _estimate("paper_code.ece", float((size * np.abs(gap)).sum() / size.sum()), items, bins)


def mce_binary(scores: Any, gold: ArrayLike | None = None, *, bins: int = 100) -> Estimate:
    """Maximum over bins of mean confidence minus mean class index, without absolute value."""
    items = _Items.of(scores, gold, bins)
    if items is None:
        return undefined("paper_code.mce_binary", NO_ITEMS)
    return _estimate("paper_code.mce_binary", float(items.class_index_gaps()[1].max()), items, bins)


def sce(scores: Any, gold: ArrayLike | None = None, *, bins: int = 15) -> Estimate:
    """Sum over cells (bin, true class) of n/N |recall - mean confidence| / K.

    The top bin is never counted: bins are numbered 1..M, the loop visits 0..M-1.
    """
    items = _Items.of(scores, gold, bins)
    if items is None:
        return undefined("paper_code.sce", NO_ITEMS)
    size, gap = items.cells(items.bin, below=bins)
    return _estimate(
        "paper_code.sce", float((size * gap).sum() / len(items.c) / items.k), items, bins
    )


def mce(scores: Any, gold: ArrayLike | None = None, *, bins: int = 100) -> Estimate:
    """Maximum over the same cells; the top bin is never counted."""
    items = _Items.of(scores, gold, bins)
    if items is None:
        return undefined("paper_code.mce", NO_ITEMS)
    gap = items.cells(items.bin, below=bins)[1]
    return _estimate("paper_code.mce", float(gap.max(initial=0.0)), items, bins)


def ace(scores: Any, gold: ArrayLike | None = None, *, bins: int = 15) -> Estimate:
    """Sum over cells (confidence range, true class) of |recall - mean confidence| / (K R).

    Empty cells count in the divisor. Range 0 holds the lowest item and everything above the last
    threshold.
    """
    items = _Items.of(scores, gold, bins)
    if items is None:
        return undefined("paper_code.ace", NO_ITEMS)
    thresholds = np.sort(items.c)[np.arange(bins) * (len(items.c) // bins)]
    place = np.searchsorted(thresholds, items.c, side="left")
    gap = items.cells(np.where(place < bins, place, 0), below=bins)[1]
    return _estimate("paper_code.ace", float(gap.sum() / (items.k * bins)), items, bins)


def ce(scores: Any, gold: ArrayLike | None = None) -> Estimate:
    """The "CE" column: `ace` if K > 2, else `ece`; not multiplied by 100."""
    items = _Items.of(scores, gold, 1)
    return ace(scores, gold) if items is not None and items.k > 2 else ece(scores, gold)


class _Items:
    """Items with the first item's number of choices (the notebook drops the others)."""

    def __init__(self, matrix: np.ndarray, gold: np.ndarray, dropped: int, bins: int) -> None:
        self.c = matrix.max(axis=1)
        self.k = matrix.shape[1]
        self.gold = gold
        self.hit = (matrix.argmax(axis=1) == gold).astype(np.float64)
        self.dropped = dropped
        # q = 1..M: number of edges arange(0, 1, 1/M) that are <= c
        self.bin = np.searchsorted(np.arange(0.0, 1.0, 1.0 / bins), self.c, side="right")

    @classmethod
    def of(cls, scores: Any, gold: ArrayLike | None, bins: int) -> _Items | None:
        distributions, labels = labelled_pair(scores, gold, op="paper_code")
        if not distributions.n:
            return None
        k = int(distributions.k[0])
        kept = distributions.k == k
        matrix = distributions.take(kept).p.reshape(-1, k)
        return cls(matrix, labels[kept], int((~kept).sum()), bins)

    def class_index_gaps(self) -> tuple[np.ndarray, np.ndarray]:
        """Size and (mean confidence - mean class index) of every bin that is not empty."""
        size = np.bincount(self.bin)
        used = size > 0
        gap = np.bincount(self.bin, self.c - self.gold)
        return size[used], gap[used] / size[used]

    def cells(self, place: np.ndarray, *, below: int) -> tuple[np.ndarray, np.ndarray]:
        """Size and |recall - mean confidence| of the used cells (place < below, true class)."""
        cell = place * self.k + self.gold
        size = np.bincount(cell)
        gap = np.bincount(cell, self.hit - self.c)
        used = (size > 0) & (np.arange(len(size)) < below * self.k)
        return size[used], np.abs(gap[used]) / size[used]


def _estimate(metric: str, value: float, items: _Items, bins: int) -> Estimate:
    return Estimate(
        metric, value, "paper_code", len(items.c), extra={"bins": bins, "dropped": items.dropped}
    )
