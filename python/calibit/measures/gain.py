"""What recalibrating a model would gain, judged on items that its map was not fitted on.

Five folds: each item is rescaled by a map fitted on the other four folds. The map that would be
shipped is fitted on all items, and only where the gain is shown; otherwise it is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.calibration import binned_change, debiased_l2, ece
from calibit.measures.calibrators import (
    Isotonic,
    Platt,
    SliceTemperatures,
    Temperature,
    fit_isotonic,
    fit_platt,
    fit_slice_temperatures,
    fit_temperature,
    label_free_temperature,
    log_loss,
)
from calibit.measures.confidence import means_of
from calibit.measures.distributions import Distributions
from calibit.measures.estimate import Estimate, plain, undefined
from calibit.measures.folds import FOLDS, folds_of
from calibit.measures.intervals import percentile
from calibit.measures.pairs import LabelledPair, labelled_models
from calibit.measures.proper import brier_values
from calibit.measures.resampling import Resampling
from calibit.measures.selective import auroc, ranking_draws

DISTRIBUTION_METHODS = ("temperature", "label_free", "slice_temperature")
TOP_LABEL_METHODS = ("platt", "isotonic")
METHODS = (*DISTRIBUTION_METHODS, *TOP_LABEL_METHODS)

_BINNED = ("ece", "debiased_l2")

CalibrationMap = Temperature | SliceTemperatures | Platt | Isotonic


@dataclass(frozen=True)
class CalibrationGain:
    """A recalibration map and what it gains out of fold.

    Attributes:
        method: one of METHODS.
        map: fitted on all items.
        n, folds: number of items and of folds.
        before, after: metric -> value without and with the map, out of fold. Platt and isotonic
            change the confidence of the top answer only: they have a binary log loss instead of
            NLL and Brier score.
        change: metric -> after minus before with an interval, without refitting.
        decides: metric whose upper bound must lie below 0: "nll" or "log_loss".
        shown: whether it does: only then should the map be shipped, else the identity.
        reason: why it does not, or why there is no map.
    """

    method: str
    map: CalibrationMap | None
    n: int
    folds: int
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    change: Mapping[str, Estimate]
    decides: str
    shown: bool
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


def calibration_gain(
    scores: Any,
    gold: ArrayLike | None = None,
    *,
    method: str = "temperature",
    reference: Any = None,
    slices: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> CalibrationGain:
    """Fit a recalibration map and measure its gain on held-out folds.

    Args:
        scores: Scores, Distributions, or log scores [N, K] of the model to recalibrate.
        gold: int [N], -1 = unlabelled (left out); taken from Scores where omitted.
        method: "temperature", "label_free" (towards the reference, without labels),
            "slice_temperature", "platt" or "isotonic" (top answer only).
        reference: scores of the reference, for "label_free".
        slices: [N] slice of each item, for "slice_temperature".
        ids: item ids, from which folds are made; those of a Scores where omitted.
        resampling: of the intervals; the defaults of the project where omitted.

    Raises:
        ValueError: for an unknown method, what it needs and was not given, or bad items.
    """
    if method not in METHODS:
        raise ValueError(
            f"[calibration_gain] expected a method of {', '.join(METHODS)}, got {method!r}"
        )
    for name, needed, given in (
        ("reference", "label_free", reference),
        ("slices", "slice_temperature", slices),
    ):
        if method == needed and given is None:
            raise ValueError(f"[calibration_gain] expected {name} for method {method!r}, got none")
    other = scores if reference is None else reference
    pair = labelled_models(other, scores, _gold(scores, gold), ids=ids, op="calibration_gain")
    labels = _kept_labels(slices, _gold(scores, gold), pair)
    fit = _fitter(method, pair, labels)
    decides = "nll" if method in DISTRIBUTION_METHODS else "log_loss"
    fold = folds_of(pair.ids)
    if len(np.unique(fold)) < 2:
        alone = "all items are in one fold: none is left to fit on"
        return CalibrationGain(method, None, pair.n, FOLDS, {}, {}, {}, decides, False, alone)
    before, after = _out_of_fold(pair, labels, fit, fold, method)
    change = _change(before, after, pair.resampling(resampling))
    shown, reason = _decision(change[decides])
    values = [_values(side) for side in (before, after)]
    everyone = np.arange(pair.n)
    return CalibrationGain(
        method, fit(everyone), pair.n, FOLDS, values[0], values[1], change, decides, shown, reason
    )


@dataclass(frozen=True, eq=False)
class _State:
    """A model before or after: per-item losses, and confidence and correctness of the top answer.

    `losses`: metric -> float64 [N].
    """

    losses: Mapping[str, np.ndarray]
    confidence: np.ndarray
    correct: np.ndarray


def _gold(scores: Any, gold: ArrayLike | None) -> ArrayLike | None:
    return getattr(scores, "gold", None) if gold is None else gold


def _kept_labels(
    slices: Sequence[str] | None, gold: ArrayLike | None, pair: LabelledPair
) -> np.ndarray:
    known = np.asarray(gold) >= 0
    if slices is None:
        return np.full(pair.n, "")
    if len(slices) != len(known):
        raise ValueError(f"[calibration_gain] expected {len(known)} slices, got {len(slices)}")
    return np.array([str(label) for label in slices])[known]


def _fitter(
    method: str, pair: LabelledPair, labels: np.ndarray
) -> Callable[[np.ndarray], CalibrationMap]:
    """Items (indices) -> map fitted on them."""

    def fit(items: np.ndarray) -> CalibrationMap:
        d = pair.b.take(items)
        if method == "temperature":
            return fit_temperature(d, pair.gold[items])
        if method == "label_free":
            return label_free_temperature(pair.a.take(items), d)
        if method == "slice_temperature":
            return fit_slice_temperatures(d, labels[items].tolist(), pair.gold[items])
        if method == "platt":
            return fit_platt(d, pair.right_b[items])
        return fit_isotonic(d.confidence, pair.right_b[items])

    return fit


def _out_of_fold(
    pair: LabelledPair,
    labels: np.ndarray,
    fit: Callable[[np.ndarray], CalibrationMap],
    fold: np.ndarray,
    method: str,
) -> tuple[_State, _State]:
    temperature, confidence = np.ones(pair.n), pair.b.confidence.copy()
    for f in np.unique(fold):
        test = np.flatnonzero(fold == f)
        found = fit(np.flatnonzero(fold != f))
        if isinstance(found, Temperature):
            temperature[test] = found.value
        elif isinstance(found, SliceTemperatures):
            default = found.overall.value
            temperature[test] = [found.slices.get(str(label), default) for label in labels[test]]
        else:
            confidence[test] = found.apply(pair.b.take(test))
    if method in DISTRIBUTION_METHODS:
        return _of_distributions(pair.b, pair), _of_distributions(
            pair.b.tempered(temperature), pair
        )
    return _of_confidence(pair.b.confidence, pair), _of_confidence(confidence, pair)


def _of_distributions(d: Distributions, pair: LabelledPair) -> _State:
    losses = {
        "nll": -d.of(pair.gold)[1],
        "brier": brier_values(d, pair.gold),
        "brier_top1": (d.confidence - pair.right_b) ** 2,
    }
    return _State(losses, d.confidence, pair.right_b)


def _of_confidence(c: np.ndarray, pair: LabelledPair) -> _State:
    losses = {"log_loss": log_loss(c, pair.right_b), "brier_top1": (c - pair.right_b) ** 2}
    return _State(losses, c, pair.right_b)


def _values(state: _State) -> dict[str, float | None]:
    c, r = state.confidence, state.correct
    return {
        **{name: float(values.mean()) for name, values in state.losses.items()},
        "ece": ece(c, r).value,
        "debiased_l2": debiased_l2(c, r).value,
        "auroc": auroc(c, r).value,
        "acc": float(r.mean()),
    }


def _change(before: _State, after: _State, draw: Resampling) -> dict[str, Estimate]:
    out = _loss_changes(before, after, draw)
    sides = ((before.confidence, before.correct), (after.confidence, after.correct))
    out |= {name: binned_change(name, *sides, resampling=draw).estimate for name in _BINNED}
    out["auroc"] = _auroc_change(before, after, draw)
    by_construction = "the answers stay the same"
    out["acc"] = Estimate("acc", 0.0, "difference", len(after.correct), reason=by_construction)
    return out


def _loss_changes(before: _State, after: _State, draw: Resampling) -> dict[str, Estimate]:
    units = {name: "" if name.startswith("brier") else "nats" for name in before.losses}
    finite, out = {}, {}
    for name, first in before.losses.items():
        if np.isfinite(first).all() and np.isfinite(after.losses[name]).all():
            finite[name] = after.losses[name] - first
        else:
            reason = "an answer that was called certain is wrong: its loss is infinite"
            facts = {"n": len(first), "unit": units[name], "estimator": "difference"}
            out[name] = undefined(name, reason, **facts)
    return out | means_of(finite, draw, units=units)


def _auroc_change(before: _State, after: _State, draw: Resampling) -> Estimate:
    values = [auroc(side.confidence, side.correct) for side in (before, after)]
    if values[0].value is None or values[1].value is None:
        return undefined("auroc", values[0].reason or "undefined", n=values[0].n, estimator="rank")
    draws = [ranking_draws(s.confidence, s.correct, None, draw)[0] for s in (before, after)]
    out = Estimate("auroc", values[1] - values[0], "difference", values[0].n)
    return out.with_interval(percentile(draws[1] - draws[0], draw, value=out.value))


def _decision(change: Estimate) -> tuple[bool, str | None]:
    if change.value is None:
        return False, change.reason
    if change.upper is None:
        return False, change.reason or "too few items for an interval"
    if change.upper < 0.0:
        return True, None
    return False, "the interval of the change does not lie below 0: the gain is not shown"
