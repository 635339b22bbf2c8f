"""Calibration error of every class.

Classes exist only where all items have the same number of choices; otherwise the value is None.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.binning import DEFAULT_BINS, bin_index, bin_sums
from calibit.measures.calibration import ece_of_sums, squared_debiased_of_sums
from calibit.measures.estimate import Estimate, undefined
from calibit.measures.proper import labelled_pair


def sce(scores: Any, gold: ArrayLike | None = None, *, bins: int = DEFAULT_BINS) -> Estimate:
    """Static calibration error: mean over classes of the equal-width ECE of (p_k, 1[y = k]) (Nixon
    et al. 2019).

    Args:
        scores: Scores, Distributions, or log scores [N, K].
        gold: int [N]; taken from Scores where omitted.
        bins: number of bins per class.

    Returns:
        Estimate; None where K differs between items.
    """
    return _classwise("sce", scores, gold, bins, "width")


def ace_nixon(
    scores: Any,
    gold: ArrayLike | None = None,
    *,
    bins: int = DEFAULT_BINS,
    rule: str = "mass_edges",
    equal_weight: bool = False,
) -> Estimate:
    """Adaptive calibration error: as `sce` with ranges of equal mass (Nixon et al. 2019).

    "ACE" has at least four meanings in print; this is the one of its authors' code.

    Args:
        scores: Scores, Distributions, or log scores [N, K].
        gold: int [N]; taken from Scores where omitted.
        bins: number of ranges R per class.
        rule: "mass_edges" (the published code's) or "mass".
        equal_weight: weight every range 1/(K R), the formula as printed in the paper, instead of by
            count.
    """
    return _classwise("ace_nixon", scores, gold, bins, rule, equal_weight=equal_weight)


def tace(
    scores: Any,
    gold: ArrayLike | None = None,
    *,
    bins: int = DEFAULT_BINS,
    rule: str = "mass_edges",
    threshold: float = 0.01,
) -> Estimate:
    """Thresholded adaptive calibration error (Nixon et al. 2019).

    As `ace_nixon`, over the items with p_k > threshold, divided by their count per class.
    """
    return _classwise("tace", scores, gold, bins, rule, threshold=threshold)


def debiased_l2_marginal(
    scores: Any, gold: ArrayLike | None = None, *, bins: int = DEFAULT_BINS
) -> Estimate:
    """Root of the mean over classes of the debiased squared error of (p_k, 1[y = k]).

    Equal-mass bins; bias correction of Kumar, Liang and Ma (2019).
    """
    facts = {"bins": bins, "binning": "mass"}
    matrix, right, problem, n = _class_matrix(scores, gold, "debiased_l2_marginal")
    if matrix is None or right is None:
        return undefined("debiased_l2_marginal", problem, n=n, estimator="debiased", extra=facts)
    columns = zip(matrix.T, right.T, strict=True)
    squared = [
        float(squared_debiased_of_sums(bin_sums(p, hit, bins=bins, rule="mass")))
        for p, hit in columns
    ]
    value = float(np.sqrt(max(0.0, float(np.mean(squared)))))
    return Estimate("debiased_l2_marginal", value, "debiased", n, extra=facts)


def _classwise(
    metric: str,
    scores: Any,
    gold: ArrayLike | None,
    bins: int,
    rule: str,
    *,
    threshold: float | None = None,
    equal_weight: bool = False,
) -> Estimate:
    facts: dict[str, Any] = {"bins": bins, "binning": rule, "biased_estimator": True}
    if threshold is not None:
        facts["threshold"] = threshold
    if equal_weight:
        facts["weight"] = "equal"
    matrix, right, problem, n = _class_matrix(scores, gold, metric)
    if matrix is None or right is None:
        return undefined(metric, problem, n=n, estimator="plug-in", extra=facts)
    values = []
    for p, hit in zip(matrix.T, right.T, strict=True):
        kept = p > threshold if threshold is not None else np.ones(len(p), dtype=bool)
        values.append(_class_error(p[kept], hit[kept], bins, rule, equal_weight))
    return Estimate(metric, float(np.mean(values)), "plug-in", n, extra=facts)


def _class_error(p: np.ndarray, hit: np.ndarray, bins: int, rule: str, equal_weight: bool) -> float:
    if not len(p):
        return 0.0
    if not equal_weight:
        return float(ece_of_sums(bin_sums(p, hit, bins=bins, rule=rule)))
    index = bin_index(p, bins, rule)
    size = np.bincount(index, minlength=bins)
    gap = np.bincount(index, hit - p, minlength=bins)
    return float(np.abs(gap[size > 0] / size[size > 0]).sum() / bins)


def _class_matrix(
    scores: Any, gold: ArrayLike | None, op: str
) -> tuple[np.ndarray | None, np.ndarray | None, str, int]:
    distributions, labels = labelled_pair(scores, gold, op=op)
    if not distributions.n:
        return None, None, "no labelled items", 0
    matrix = distributions.matrix()
    if matrix is None:
        counts = ", ".join(str(k) for k in np.unique(distributions.k))
        reason = f"the number of choices differs between items ({counts}): no common classes"
        return None, None, reason, distributions.n
    return (
        matrix,
        (labels[:, None] == np.arange(matrix.shape[1])).astype(np.float64),
        "",
        distributions.n,
    )
