"""Checks of the measurement that need a further run: the same run twice, and an 8-bit build.

A failed check forces "inconclusive", as those of `self_audit` do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibit.measures.paired import mean_difference
from calibit.measures.resampling import Resampling
from calibit.measures.scores import Scores
from calibit.measures.self_audit import Check


def identical_run(once: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]]) -> Check:
    """Whether the same items scored twice by the same model have the same log-likelihoods, bit for
    bit.

    Args:
        once, again: item lines of the two runs, in the same order.
    """
    moved = [
        str(a["id"])
        for a, b in zip(once, again, strict=True)
        if (a["id"], a.get("ll")) != (b["id"], b.get("ll"))
    ]
    detail = f"a: {len(once)} items scored twice, {len(moved)} with another log-likelihood"
    return Check("identical run", not moved, len(moved), moved[0] if moved else None, detail)


def eight_bit_control(
    reference: Scores,
    control: Scores,
    candidate: Scores,
    *,
    resampling: Resampling | None = None,
) -> list[Check]:
    """Whether an 8-bit build of the reference is no further from it than a candidate of fewer bits.

    Rounding to 8 bits moves weights sixteen times less than rounding to 4. If it changes answers or
    likelihoods more than the candidate does, the loader or the prompts are suspect, not the
    rounding. It fails where the interval of the difference lies above 0.

    Args:
        reference, control, candidate: scores of the same items in the same order.
        resampling: of the intervals.

    Returns:
        One check of the changed answers, and one of the likelihood where items have labels.

    Raises:
        ValueError: other items, or another order.
    """
    if not reference.keys == control.keys == candidate.keys:
        raise ValueError("[eight_bit_control] expected the same items in the same order")
    answers = reference.distributions.predicted
    flipped = [1.0 * (x.distributions.predicted != answers) for x in (control, candidate)]
    found = [_not_above("all_flips", flipped[0], flipped[1], "", resampling)]
    known = reference.labelled
    if known.any():
        gold = reference.gold[known]
        loss = [-x.distributions.take(known).of(gold)[1] for x in (control, candidate)]
        found.append(_not_above("nll", loss[0], loss[1], " nats", resampling))
    return found


def _not_above(
    metric: str,
    control: np.ndarray,
    candidate: np.ndarray,
    unit: str,
    resampling: Resampling | None,
) -> Check:
    excess = mean_difference(control - candidate, metric=metric, resampling=resampling)
    failed = excess.lower is not None and excess.lower > 0
    detail = (
        f"b: {metric} of an 8-bit build {float(np.mean(control)):.4g}{unit}, of the candidate "
        f"{float(np.mean(candidate)):.4g}{unit}"
        + ("; suspect the loader or the prompts" if failed else "")
    )
    return Check(f"8-bit control, {metric}", not failed, int(failed), None, detail)
