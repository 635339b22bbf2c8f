"""Threshold transfer: an abstain or route threshold set on the full model, used on the quantized.

An item is accepted where the confidence is at least tau. Thresholds are set on other items than
they are judged on: five folds, set on four, applied to the fifth, results pooled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.calibrators import LogisticFit, fit_logistic, label_free_temperature
from calibit.measures.estimate import Estimate, plain, undefined
from calibit.measures.folds import FOLDS, folds_of
from calibit.measures.intervals import paired_share_interval, percentile
from calibit.measures.paired import McNemar, mcnemar
from calibit.measures.pairs import LabelledPair, labelled_models
from calibit.measures.resampling import Resampling, count_chunks, resampled_means

LEAST_ACCEPTED = 30
"""Items that a threshold for a target risk must accept: fewer say nothing about a risk."""

QUANTITIES = ("coverage", "risk", "false_accepts", "far", "frr")


@dataclass(frozen=True)
class OperatingPoint:
    """What one model does at a threshold.

    Attributes:
        coverage: share of items accepted.
        risk: share of wrong items among the accepted; None if nothing is accepted.
        false_accepts: share of items accepted and wrong.
        far: share of the wrong items that is accepted; None without wrong items.
        frr: share of the right items that is rejected; None without right items.
    """

    coverage: float
    risk: float | None
    false_accepts: float
    far: float | None
    frr: float | None


@dataclass(frozen=True)
class ThresholdTransfer:
    """A threshold of the reference, applied to the candidate.

    Attributes:
        target: "coverage", "risk" or "tau".
        value: what was asked for.
        n: number of items.
        folds: number of folds the threshold was set on and judged on in turn; None where it was
            given, or set and judged on the same items (`in_sample`).
        in_sample: whether it was judged on the items it was set on.
        tau: threshold set on all items of the reference; None where no threshold meets the target.
        tau_restored: threshold that restores the target on the candidate; None for a given tau, or
            where no threshold does.
        temperature: label-free temperature that turns the candidate into b'.
        a, b, rescaled, restored: reference, candidate and b' at tau, candidate at `tau_restored`.
        change: quantity -> candidate minus reference at tau, with an interval.
        temperature_part: quantity -> candidate minus b': what one global temperature would undo.
        shift_part: quantity -> b' minus reference.
        accepts, false_accepts: McNemar's test on items accepted (accepted and wrong) by one model.
        logistic_a, logistic_b: fits of right or wrong on the log margin.
        reason: why there is no threshold.
    """

    target: str
    value: float
    n: int
    folds: int | None
    in_sample: bool
    tau: float | None = None
    tau_restored: float | None = None
    temperature: float | None = None
    a: OperatingPoint | None = None
    b: OperatingPoint | None = None
    rescaled: OperatingPoint | None = None
    restored: OperatingPoint | None = None
    change: Mapping[str, Estimate] | None = None
    temperature_part: Mapping[str, Estimate] | None = None
    shift_part: Mapping[str, Estimate] | None = None
    accepts: McNemar | None = None
    false_accepts: McNemar | None = None
    logistic_a: LogisticFit | None = None
    logistic_b: LogisticFit | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


def threshold_transfer(
    a: Any,
    b: Any,
    gold: ArrayLike | None = None,
    *,
    coverage: float | None = None,
    risk: float | None = None,
    tau: float | None = None,
    ids: Sequence[str] | None = None,
    in_sample: bool = False,
    resampling: Resampling | None = None,
) -> ThresholdTransfer:
    """What a confidence threshold of the reference does on the candidate.

    Args:
        a, b: reference and candidate: Scores, Distributions, or log scores [N, K].
        gold: int [N], -1 = unlabelled (left out); taken from `a` where it is a Scores.
        coverage: target share of accepted items, in (0, 1]; or
        risk: target share of wrong items among the accepted, in (0, 1); or
        tau: the threshold itself, in [0, 1].
        ids: item ids, from which folds are made; those of `a` where it is a Scores.
        in_sample: judge the threshold on the items it was set on (for checks; optimistic).
        resampling: of the intervals; the defaults of the project where omitted.

    Returns:
        The transfer; `tau` is None, with a reason, where no threshold meets the target.

    Raises:
        ValueError: unless exactly one target is given and lies in its range, or for items that do
            not pair, have one choice, or are not labelled.
    """
    target, value = _target(coverage, risk, tau)
    pair = labelled_models(a, b, gold, ids=ids, op="threshold_transfer")
    draw = pair.resampling(resampling)
    folds = None if target == "tau" or in_sample else FOLDS
    setting = _Setting(target, value, in_sample, folds)
    out = ThresholdTransfer(target, value, pair.n, folds, in_sample)
    found = _thresholds(pair, setting)
    if isinstance(found, str):
        return replace(out, reason=found)
    accept, right_a, right_b = found.accept, pair.right_a, pair.right_b
    change, temperature_part, shift_part = _changes(pair, found, setting, draw)
    wrong = (accept["a"] * (1.0 - right_a), accept["b"] * (1.0 - right_b))
    return replace(
        out,
        tau=found.tau,
        tau_restored=found.tau_restored,
        temperature=found.temperature,
        a=_point(accept["a"], right_a),
        b=_point(accept["b"], right_b),
        rescaled=_point(accept["rescaled"], right_b),
        restored=_point(accept["restored"], right_b) if "restored" in accept else None,
        change=change,
        temperature_part=temperature_part,
        shift_part=shift_part,
        accepts=_discordance(accept["a"], accept["b"]),
        false_accepts=_discordance(*wrong),
        logistic_a=fit_logistic(pair.a.log_margin, right_a),
        logistic_b=fit_logistic(pair.b.log_margin, right_b),
    )


def accepted_at_coverage(a: Any, b: Any, coverage: float) -> dict[str, np.ndarray] | None:
    """Which items both models accept at the reference's threshold, as in `threshold_transfer`.

    Args:
        a, b: Scores of reference and candidate; the labelled items enter.
        coverage: target share of accepted items, in (0, 1].

    Returns:
        float64 [n] each, 0 or 1: "a" and "b" (accepted), "false_a" and "false_b" (accepted and
        wrong); None where all items are in one fold.
    """
    pair = labelled_models(a, b, None, ids=None, op="accepted_at_coverage")
    fold = folds_of(pair.ids, FOLDS)
    parts = np.unique(fold)
    if len(parts) < 2:
        return None
    limit = np.empty(pair.n)
    for part in parts:
        limit[fold == part] = coverage_threshold(pair.a.confidence[fold != part], coverage)
    sides = (("a", pair.a, pair.right_a), ("b", pair.b, pair.right_b))
    out = {name: (model.confidence >= limit).astype(np.float64) for name, model, _ in sides}
    return out | {f"false_{name}": out[name] * (1.0 - right) for name, _, right in sides}


def coverage_threshold(confidence: np.ndarray, q: float) -> float:
    """The ceil(q N)-th largest confidence: accepts at least a share q (ties all accepted)."""
    kept = max(1, math.ceil(q * len(confidence) - 1e-9))
    return float(np.sort(confidence)[len(confidence) - kept])


def risk_threshold(confidence: np.ndarray, correct: np.ndarray, rho: float) -> float | None:
    """Threshold of the largest set of most confident items with a risk of at most `rho`.

    Equal confidences are accepted together; None where no such set holds 30 items.
    """
    order = np.argsort(-confidence, kind="stable")
    c = confidence[order]
    accepted = np.arange(1, len(c) + 1)
    risk = np.cumsum(1.0 - correct[order]) / accepted
    last_of_ties = np.append(c[:-1] > c[1:], True)
    allowed = np.flatnonzero((risk <= rho) & (accepted >= LEAST_ACCEPTED) & last_of_ties)
    return float(c[allowed[-1]]) if len(allowed) else None


@dataclass(frozen=True)
class _Setting:
    target: str
    value: float
    in_sample: bool
    folds: int | None

    def threshold(self, confidence: np.ndarray, correct: np.ndarray) -> float | None:
        if self.target == "tau":
            return self.value
        if self.target == "coverage":
            return coverage_threshold(confidence, self.value)
        return risk_threshold(confidence, correct, self.value)


@dataclass(frozen=True, eq=False)
class _Thresholds:
    """Thresholds set on all items, and who is accepted (float64 [N]) under those of the folds.

    `accept` has no "restored" where no threshold restores the target.
    """

    tau: float
    tau_restored: float | None
    temperature: float
    accept: Mapping[str, np.ndarray]
    confidence: Mapping[str, np.ndarray]


def _target(*given: float | None) -> tuple[str, float]:
    names = ("coverage", "risk", "tau")
    asked = [(name, value) for name, value in zip(names, given, strict=True) if value is not None]
    if len(asked) != 1:
        raise ValueError(
            "[threshold_transfer] expected one of coverage, risk and tau, "
            f"got {', '.join(name for name, _ in asked) or 'none'}"
        )
    name, value = asked[0]
    inside = {"coverage": 0 < value <= 1, "risk": 0 < value < 1, "tau": 0 <= value <= 1}[name]
    if not inside:
        raise ValueError(f"[threshold_transfer] expected a {name} between 0 and 1, got {value}")
    return name, float(value)


def _thresholds(pair: LabelledPair, setting: _Setting) -> _Thresholds | str:
    """Thresholds of every fold and of all items; the reason where one does not exist."""
    everyone = np.ones(pair.n, dtype=bool)
    parts = [(everyone, everyone)]
    if setting.folds is not None:
        fold = folds_of(pair.ids, setting.folds)
        parts = [(fold != f, fold == f) for f in np.unique(fold)]
        if len(parts) < 2:
            return "all items are in one fold: none is left to set a threshold on"
    tau, restored, temperature = whole = _set_on(pair, setting, everyone)
    found = [whole if len(parts) == 1 else _set_on(pair, setting, train) for train, _ in parts]
    if tau is None or any(own is None for own, _, _ in found):
        least = f"{LEAST_ACCEPTED} accepted items"
        return f"no threshold with at least {least} has a risk of at most {setting.value:g}"
    accept = {name: np.empty(pair.n) for name in ("a", "b", "rescaled", "restored")}
    confidence = {"a": pair.a.confidence, "b": pair.b.confidence, "rescaled": np.empty(pair.n)}
    for (own, own_restored, own_temperature), (_, test) in zip(found, parts, strict=True):
        confidence["rescaled"][test] = pair.b.take(test).tempered(own_temperature).confidence
        for name, c in confidence.items():
            accept[name][test] = c[test] >= own
        limit = np.nan if own_restored is None else own_restored
        accept["restored"][test] = confidence["b"][test] >= limit
    known = setting.target != "tau" and None not in [restored, *(own for _, own, _ in found)]
    if not known:
        del accept["restored"]
    return _Thresholds(tau, restored if known else None, temperature, accept, confidence)


def _set_on(
    pair: LabelledPair, setting: _Setting, items: np.ndarray
) -> tuple[float | None, float | None, float]:
    """Threshold of the reference, restoring threshold of the candidate, label-free temperature."""
    return (
        setting.threshold(pair.a.confidence[items], pair.right_a[items]),
        setting.threshold(pair.b.confidence[items], pair.right_b[items]),
        label_free_temperature(pair.a.take(items), pair.b.take(items)).value,
    )


def _point(accept: np.ndarray, right: np.ndarray) -> OperatingPoint:
    values = _quantities(_columns(accept, right).mean(axis=0)[None, :])
    numbers = {name: float(x[0]) if np.isfinite(x[0]) else None for name, x in values.items()}
    return OperatingPoint(**numbers)  # type: ignore[arg-type]


def _columns(accept: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Indicators whose means determine an operating point, float64 [N, 3]."""
    return np.stack([accept, accept * (1.0 - right), right], axis=1)


def _quantities(means: np.ndarray) -> dict[str, np.ndarray]:
    """Coverage, risk, false accepts, FAR, FRR from means of `_columns` [rows, 3]."""
    accepted, false, right = means.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "coverage": accepted,
            "risk": false / accepted,
            "false_accepts": false,
            "far": false / (1.0 - right),
            "frr": 1.0 - (accepted - false) / right,
        }


def _changes(
    pair: LabelledPair, found: _Thresholds, setting: _Setting, draw: Resampling
) -> tuple[dict[str, Estimate], dict[str, Estimate], dict[str, Estimate]]:
    """Change b - a, its temperature part b - b' and its shift part b' - a, each with intervals."""
    sides = (("a", pair.right_a), ("b", pair.right_b), ("rescaled", pair.right_b))
    columns = {name: _columns(found.accept[name], right) for name, right in sides}
    if setting.in_sample and setting.target != "tau":
        drawn = _redrawn_means(pair, found, setting, draw)
    else:
        means = resampled_means(np.concatenate(list(columns.values()), axis=1), draw)
        drawn = {name: means[:, 3 * i : 3 * i + 3] for i, name in enumerate(columns)}
    values = {name: _quantities(column.mean(axis=0)[None, :]) for name, column in columns.items()}
    draws = {name: _quantities(means) for name, means in drawn.items()}
    accept = {name: column[:, :2] for name, column in columns.items()}

    def difference(second: str, first: str) -> dict[str, Estimate]:
        return {
            quantity: _difference(
                quantity,
                float(values[second][quantity][0] - values[first][quantity][0]),
                draws[second][quantity] - draws[first][quantity],
                (accept[first], accept[second]),
                draw,
            )
            for quantity in QUANTITIES
        }

    return difference("b", "a"), difference("b", "rescaled"), difference("rescaled", "a")


def _difference(
    quantity: str,
    value: float,
    draws: np.ndarray,
    accept: tuple[np.ndarray, np.ndarray],
    draw: Resampling,
) -> Estimate:
    """Shares of all items carry Tango's interval, ratios a percentile interval."""
    n = len(accept[0])
    if not math.isfinite(value):
        return undefined(quantity, "no items to divide by", n=n)
    out = Estimate(quantity, value, "difference", n)
    column = {"coverage": 0, "false_accepts": 1}.get(quantity)
    if column is None:
        return out.with_interval(percentile(draws, draw, value=value))
    before, after = (indicators[:, column] for indicators in accept)
    return out.with_interval(paired_share_interval(before, after, draw))


def _discordance(first: np.ndarray, second: np.ndarray) -> McNemar:
    return mcnemar(int(np.sum(first > second)), int(np.sum(first < second)))


def _redrawn_means(
    pair: LabelledPair, found: _Thresholds, setting: _Setting, draw: Resampling
) -> dict[str, np.ndarray]:
    """Means of `_columns` on every resample, with the threshold set anew on each."""
    sides = {"a": pair.right_a, "b": pair.right_b, "rescaled": pair.right_b}
    of_counts = _redrawn_tau(setting, found.confidence["a"], pair.right_a)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    for counts in count_chunks(pair.n, draw):
        tau = of_counts(counts)
        size = counts.sum(axis=1)
        for name, right in sides.items():
            accepted = counts * (found.confidence[name][None, :] >= tau[:, None])
            sums = [accepted.sum(axis=1), accepted @ (1.0 - right), counts @ right]
            parts[name].append(np.stack(sums, axis=1) / size[:, None])
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def _redrawn_tau(
    setting: _Setting, confidence: np.ndarray, correct: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Threshold of every resample from its counts [rows, N]; NaN where there is none."""
    order = np.argsort(-confidence, kind="stable")
    c, wrong = confidence[order], 1.0 - correct[order]
    last_of_ties = np.append(c[:-1] > c[1:], True)

    def tau(counts: np.ndarray) -> np.ndarray:
        ordered = counts[:, order]
        seen = np.cumsum(ordered, axis=1)
        if setting.target == "coverage":
            needed = np.maximum(1.0, np.ceil(setting.value * seen[:, -1] - 1e-9))
            return c[np.argmax(seen >= needed[:, None], axis=1)]
        with np.errstate(invalid="ignore"):
            risk = np.cumsum(ordered * wrong, axis=1) / seen
        allowed = (risk <= setting.value) & (seen >= LEAST_ACCEPTED) & last_of_ties
        last = allowed.shape[1] - 1 - np.argmax(allowed[:, ::-1], axis=1)
        # The least confident item that was drawn, not one below it without a copy.
        reached = np.take_along_axis(seen, last[:, None], axis=1)
        return np.where(allowed.any(axis=1), c[np.argmax(seen >= reached, axis=1)], np.nan)

    return tau
