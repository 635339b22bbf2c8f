"""Does a claim about two models depend on how choices of different length are scored?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibit.measures.calibration import binned_change
from calibit.measures.estimate import Estimate, plain
from calibit.measures.intervals import (
    bca,
    bca_p,
    paired_counts,
    paired_share_interval,
    percentile_p,
)
from calibit.measures.paired import holm
from calibit.measures.pairs import LabelledPair, labelled_models
from calibit.measures.resampling import Resampling, resampled_means

ROBUST = "robust"
DEPENDENT = "scoring_dependent"
MIXED = "mixed_sign"
UNDECIDED = "undecided"

CLAIMS = ("acc", "conf_true", "nll", "ece")


@dataclass(frozen=True)
class RuleSensitivity:
    """One signed claim under several scoring rules.

    Attributes:
        metric: "acc", "conf_true", "nll" or "ece".
        changes: rule -> candidate minus reference with its interval.
        levels: rule -> value of the reference.
        p: rule -> two-sided p value, by inversion of its interval, adjusted after Holm.
        state: "robust" (every interval excludes 0, with one sign), "scoring_dependent" (two exclude
            it with opposite signs after Holm), "mixed_sign" (estimates of different sign), else
            "undecided".
        level_range: largest minus smallest level over the rules, divided by the size of the change
            under the first rule; None where that is 0.
    """

    metric: str
    changes: Mapping[str, Estimate]
    levels: Mapping[str, float]
    p: Mapping[str, float]
    state: str
    level_range: float | None

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


def rule_sensitivity(
    models: Mapping[str, tuple[Any, Any]], *, resampling: Resampling | None = None
) -> dict[str, RuleSensitivity]:
    """The claims about accuracy, conf_true, NLL and ECE under every rule.

    Args:
        models: rule -> reference and candidate as Scores of the same items, the main rule first.
        resampling: of the intervals; the defaults of the project where omitted.

    Returns:
        Metric -> its sensitivity.

    Raises:
        ValueError: for fewer than two rules, or items that do not pair.
    """
    if len(models) < 2:
        raise ValueError(f"[rule_sensitivity] expected at least 2 rules, got {len(models)}")
    pairs = {
        rule: labelled_models(a, b, op=f"rule_sensitivity, {rule}")
        for rule, (a, b) in models.items()
    }
    draw = resampling or Resampling()
    claims = {rule: _claims(pair, pair.resampling(draw)) for rule, pair in pairs.items()}
    return {metric: _judged(metric, claims, draw.level) for metric in CLAIMS}


@dataclass(frozen=True)
class _Claim:
    change: Estimate
    level: float
    p: float


def _claims(pair: LabelledPair, draw: Resampling) -> dict[str, _Claim]:
    columns = {"conf_true": pair.d_p_true, "nll": -pair.d_log_p_true}
    drawn = resampled_means(np.stack(list(columns.values()), axis=1), draw)
    levels = {"conf_true": pair.a.of(pair.gold)[0], "nll": -pair.a.of(pair.gold)[1]}
    out = {"acc": _accuracy(pair, draw)}
    for index, (metric, values) in enumerate(columns.items()):
        unit = "nats" if metric == "nll" else ""
        change = Estimate(metric, float(values.mean()), "difference", pair.n, unit)
        draws = drawn[:, index]
        bounded = change.with_interval(bca(values, draws, draw))
        out[metric] = _Claim(bounded, float(levels[metric].mean()), bca_p(values, draws, draw))
    return out | {"ece": _calibration(pair, draw)}


def _accuracy(pair: LabelledPair, draw: Resampling) -> _Claim:
    rw, wr, _ = paired_counts(pair.right_a, pair.right_b, draw)
    value = float(np.mean(pair.right_b - pair.right_a))
    change = Estimate("acc", value, "difference", pair.n)
    # At a difference of 0 Tango's score is McNemar's z without correction.
    p = math.erfc(abs(wr - rw) / math.sqrt(2.0 * (rw + wr))) if rw + wr else 1.0
    bounded = change.with_interval(paired_share_interval(pair.right_a, pair.right_b, draw))
    return _Claim(bounded, float(pair.right_a.mean()), p)


def _calibration(pair: LabelledPair, draw: Resampling) -> _Claim:
    sides = ((pair.a.confidence, pair.right_a), (pair.b.confidence, pair.right_b))
    change = binned_change("ece", *sides, resampling=draw)
    return _Claim(change.estimate, change.before, percentile_p(change.draws))


def _judged(
    metric: str, claims: Mapping[str, Mapping[str, _Claim]], level: float
) -> RuleSensitivity:
    found = {rule: one[metric] for rule, one in claims.items()}
    adjusted = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
    changes = {rule: one.change for rule, one in found.items()}
    levels = {rule: one.level for rule, one in found.items()}
    first = abs(float(next(iter(changes.values()))))
    spread = max(levels.values()) - min(levels.values())
    return RuleSensitivity(
        metric,
        changes,
        levels,
        adjusted,
        _state(changes, adjusted, 1.0 - level),
        spread / first if first > 0.0 else None,
    )


def _state(changes: Mapping[str, Estimate], p: Mapping[str, float], alpha: float) -> str:
    signs = {rule: _sign(float(one)) for rule, one in changes.items()}
    outside = {
        rule: one.lower is not None
        and one.upper is not None
        and (one.lower > 0.0 or one.upper < 0.0)
        for rule, one in changes.items()
    }
    if all(outside.values()) and len(set(signs.values())) == 1:
        return ROBUST
    strict = {signs[rule] for rule in changes if outside[rule] and p[rule] < alpha}
    if {-1, 1} <= strict:
        return DEPENDENT
    return MIXED if {-1, 1} <= set(signs.values()) else UNDECIDED


def _sign(value: float) -> int:
    return (value > 0.0) - (value < 0.0)
