"""Tests of "nothing changed on average", for readers who look for a p value.

They decide nothing: a verdict rests on intervals against margins.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from calibit.measures.paired import paired_t, sign_flip_test, wilcoxon
from calibit.measures.resampling import Resampling
from calibit.measures.summaries import Panel

TESTED = ("conf_true", "nll", "brier")
"""Means of per-item values whose change is tested."""


def difference_tests(a: Panel, b: Panel, resampling: Resampling) -> dict[str, dict[str, Any]]:
    """Paired t, Wilcoxon's signed-rank test and random sign flips of every metric of TESTED.

    Items count as independent, also where they form clusters.

    Args:
        a, b: panels of the same items.
        resampling: number and seed of the sign flips.

    Returns:
        Metric id -> test -> statistic and p value; a test is None where nothing differs. Metrics
        without labels, or with values that are not finite, are left out.
    """
    found = {}
    for metric in TESTED:
        before, after = (side.statistics[metric].values for side in (a, b))
        if before is None or after is None or not len(before):
            continue
        change = after - before
        if not np.isfinite(change).all():
            continue
        tests = {"paired_t": paired_t(change), "wilcoxon": wilcoxon(change)}
        flips = sign_flip_test(change, resamples=resampling.resamples, seed=resampling.seed)
        found[metric] = {
            **{name: None if one is None else asdict(one) for name, one in tests.items()},
            "sign_flip": flips,
        }
    return found
