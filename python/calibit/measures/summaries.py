"""All measures of one model, and of the change between two, from one set of resamples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from calibit.measures import calibration, classwise, selective, smooth
from calibit.measures.binning import DEFAULT_BINS, bin_sums
from calibit.measures.calibration import STATISTICS
from calibit.measures.confidence import NO_ITEMS, entropy_values, means_of
from calibit.measures.estimate import Estimate, undefined
from calibit.measures.fidelity import jsd_values, kl_values, tv_values
from calibit.measures.intervals import (
    bca,
    paired_share_interval,
    percentile,
    share_interval,
    within,
)
from calibit.measures.proper import brier_values
from calibit.measures.resampling import Resampling, resampled_bin_sums, resampled_means
from calibit.measures.scores import Scores

NO_LABELS = "no labelled items"

_UNITS = {"nll": "nats", "entropy": "nats"}
_LABEL_MEANS = ("acc", "conf_true", "overconfidence", "abs_gap", "brier", "brier_top1", "nll")
_LABEL_RATIOS = ("conf_correct", "conf_err")


@dataclass(frozen=True, eq=False)
class Statistic:
    """One metric of one model with what an interval needs.

    Attributes:
        estimate: the value, without interval.
        values: float64 [n] per-item values where the metric is their mean, else None.
        draws: float64 [resamples] resampled values, None where it is not resampled.
        resampling: how they were resampled, with the clusters of these n items.
    """

    estimate: Estimate
    values: np.ndarray | None = None
    draws: np.ndarray | None = None
    resampling: Resampling | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """All statistics of one model.

    Attributes:
        scores: the items.
        resampling: how intervals are made; None = none.
        statistics: metric id -> Statistic.
    """

    scores: Scores
    resampling: Resampling | None
    statistics: Mapping[str, Statistic] = field(default_factory=dict)

    def estimates(self) -> dict[str, Estimate]:
        """Metric id -> Estimate, with an interval where the metric has one."""
        return {name: _with_interval(name, one) for name, one in self.statistics.items()}


def summarize(
    scores: Scores, *, bins: int = DEFAULT_BINS, resampling: Resampling | None = None
) -> dict[str, Estimate]:
    """Every measure of one model.

    Args:
        scores: the items; unlabelled ones enter only what needs no label.
        bins: number of bins of the calibration errors.
        resampling: asks for intervals (accuracy: Clopper-Pearson; means: BCa; ECE-like:
            percentile).

    Returns:
        Metric id -> Estimate, in the order of the specification; each names the scoring rule in
        `extra["rule"]`.
    """
    return panel(scores, bins=bins, resampling=resampling).estimates()


def panel(
    scores: Scores,
    *,
    bins: int = DEFAULT_BINS,
    resampling: Resampling | None = None,
    simulate: bool = True,
) -> Panel:
    """The statistics behind `summarize`, with their resamples.

    Two panels of the same items and resampling use the same resamples, so their differences are
    paired.

    Args:
        scores: the items.
        bins: number of bins of the calibration errors.
        resampling: asks for resamples.
        simulate: whether to simulate `ece_null`, the slowest of them.
    """
    out = _item_statistics(scores, resampling)
    known = scores if scores.labelled.all() else scores.take(scores.labelled)
    draw = None if resampling is None else resampling.take(scores.labelled)
    if known.n:
        out |= _label_means(known, draw) | _binned(known, bins, draw) | _ranking(known, draw)
        out |= _without_interval(known, bins, simulate=simulate)
    else:
        names = (*_LABEL_MEANS, *_LABEL_RATIOS, *STATISTICS, *_RANKED, *_POINTS)
        out |= {
            name: Statistic(undefined(name, NO_LABELS if scores.n else NO_ITEMS)) for name in names
        }
    marked = {
        name: replace(
            one, estimate=replace(one.estimate, extra={**one.estimate.extra, "rule": scores.rule})
        )
        for name, one in sorted(out.items(), key=lambda pair: _ORDER.index(pair[0]))
    }
    return Panel(scores, resampling, marked)


def differences(a: Panel, b: Panel) -> dict[str, Estimate]:
    """Change of every metric, b minus a, with the interval that fits it.

    Accuracy: Tango. Means of per-item values: BCa. Everything else that is resampled: percentile.

    Args:
        a, b: panels of the same items in the same order, made with the same resampling.
    """
    out = {}
    for name, first in a.statistics.items():
        second = b.statistics[name]
        if name in _NO_DIFFERENCE:
            continue
        if first.estimate.value is None or second.estimate.value is None:
            reason = first.estimate.reason or second.estimate.reason or "undefined"
            out[name] = undefined(
                name, reason, unit=first.estimate.unit, extra=first.estimate.extra
            )
            continue
        change = second.estimate - first.estimate
        facts = {**first.estimate.extra, "a": float(first.estimate), "b": float(second.estimate)}
        estimate = replace(first.estimate, value=change, estimator="difference", extra=facts)
        out[name] = (
            estimate if a.resampling is None else _bounded_difference(name, estimate, first, second)
        )
    return out


def divergences(
    a: Scores, b: Scores, *, resampling: Resampling | None = None
) -> dict[str, Estimate]:
    """Divergences between two models on the same items, by metric id (jsd in bits)."""
    first, second = a.distributions, b.distributions
    jsd = jsd_values(first, second) / math.log(2.0)
    columns = {
        "kl_ab": kl_values(first, second),
        "kl_ba": kl_values(second, first),
        "jsd": jsd,
        "js_distance": np.sqrt(jsd),
        "tv": tv_values(first, second),
    }
    units = {"kl_ab": "nats", "kl_ba": "nats", "jsd": "bits"}
    facts: dict[str, dict[str, Any]] = {name: {"rule": a.rule} for name in columns}
    for name, values in columns.items():
        facts[name] |= {"max": float(values.max())} if len(values) else {}
    facts["js_distance"]["base"] = 2.0
    named = means_of(columns, resampling, units=units)
    return {
        name: within(replace(one, extra=facts[name]), *RANGES[name]) for name, one in named.items()
    }


RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("conf", "conf_true", "conf_err", "conf_correct"), (0.0, 1.0)),
    **dict.fromkeys(("margin", "abs_gap", "brier_top1", "auroc", "aurc"), (0.0, 1.0)),
    "entropy_normalised": (0.0, 1.0),
    **dict.fromkeys(("jsd", "js_distance", "tv"), (0.0, 1.0)),
    **dict.fromkeys(("kl_ab", "kl_ba", "nll", "entropy"), (0.0, math.inf)),
    "brier": (0.0, 2.0),
}
"""Values that a level or a divergence can take (jsd in bits, js_distance in base 2): intervals are
cut to them. Changes have no such limits here."""

SURER_HALF = "sel_acc@0.5"
"""Accuracy of the half of the items that a model is surest about."""

_RANKED = ("auroc", "aurc", "e_aurc", SURER_HALF)
_POINTS = ("mce", "sce", "ace_nixon", "tace", "debiased_l2_marginal", "smece", "ece_null")
_NO_DIFFERENCE = ("ece_null", "ties")
_ORDER = (
    *(
        "acc",
        "conf",
        "conf_true",
        "conf_err",
        "conf_correct",
        "overconfidence",
        "margin",
        "entropy",
        "entropy_normalised",
        "abs_gap",
    ),
    *(
        "ece",
        "ece_mass",
        "mce",
        "rmsce",
        "sce",
        "ace_nixon",
        "tace",
        "debiased_l2",
        "plugin_l2",
        "debiased_l2_marginal",
    ),
    *("debiased_l1", "smece", "ece_null", "brier", "brier_top1", "nll", *_RANKED, "ties"),
)


def _item_statistics(scores: Scores, resampling: Resampling | None) -> dict[str, Statistic]:
    d = scores.distributions
    out = _means({"conf": d.confidence, "margin": d.margin, "entropy": d.entropy}, resampling)
    several = None if resampling is None else resampling.take(d.k > 1)
    out |= _means({"entropy_normalised": entropy_values(d, "normalised")}, several)
    count = Estimate("ties", float(d.ties), "count", d.n, "items")
    out["ties"] = Statistic(count if d.n else undefined("ties", NO_ITEMS, unit="items"))
    return out


def _label_means(scores: Scores, resampling: Resampling | None) -> dict[str, Statistic]:
    d, r = scores.distributions, scores.correct
    p_true, log_p_true = d.of(scores.gold)
    c = d.confidence
    columns = {
        "acc": r,
        "conf_true": p_true,
        "overconfidence": c - r,
        "abs_gap": np.abs(c - r),
        "brier": brier_values(d, scores.gold),
        "brier_top1": (c - r) ** 2,
        "nll": -log_p_true,
        "conf_correct": c * r,
        "conf_err": c * (1.0 - r),
    }
    out = _means(columns, resampling)
    shares = {"conf_correct": r, "conf_err": 1.0 - r}
    out |= {
        name: _ratio(name, out[name], share, out["acc"].draws) for name, share in shares.items()
    }
    return out


def _means(
    columns: Mapping[str, np.ndarray], resampling: Resampling | None
) -> dict[str, Statistic]:
    n = len(next(iter(columns.values())))
    if not n:
        return {name: Statistic(undefined(name, NO_ITEMS)) for name in columns}
    draws = None
    if resampling is not None:
        draws = resampled_means(np.stack(list(columns.values()), axis=1), resampling)
    return {
        name: Statistic(
            Estimate(name, float(values.mean()), n=n, unit=_UNITS.get(name, "")),
            values,
            None if draws is None else draws[:, index],
            resampling,
        )
        for index, (name, values) in enumerate(columns.items())
    }


def _ratio(
    name: str, part: Statistic, share: np.ndarray, acc_draws: np.ndarray | None
) -> Statistic:
    count = int(share.sum())
    if not count:
        return Statistic(
            undefined(name, "no right items" if name == "conf_correct" else "no wrong items")
        )
    estimate = Estimate(name, part.estimate * len(share) / count, n=count)
    if part.draws is None or acc_draws is None:
        return Statistic(estimate)
    weight = acc_draws if name == "conf_correct" else 1.0 - acc_draws
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = np.where(weight > 1e-12, part.draws / weight, np.nan)
        return Statistic(estimate, draws=draws, resampling=part.resampling)


def _binned(scores: Scores, bins: int, resampling: Resampling | None) -> dict[str, Statistic]:
    c, r = scores.distributions.confidence, scores.correct
    sums = {rule: bin_sums(c, r, bins=bins, rule=rule) for rule in ("width", "mass")}
    drawn = {}
    if resampling is not None:
        drawn = {
            rule: resampled_bin_sums(c, r, bins=bins, rule=rule, resampling=resampling)
            for rule in sums
        }
    out = {}
    for name, (rule, statistic) in STATISTICS.items():
        estimator = "debiased" if name.startswith("debiased") else "plug-in"
        facts = {"bins": bins, "binning": rule, "biased_estimator": True}
        estimate = Estimate(name, float(statistic(sums[rule])), estimator, len(c), extra=facts)
        draws = statistic(drawn[rule]) if drawn else None
        out[name] = Statistic(estimate, draws=draws, resampling=resampling)
    return out


def _ranking(scores: Scores, resampling: Resampling | None) -> dict[str, Statistic]:
    c, r = scores.distributions.confidence, scores.correct
    ids = [f"{task}/{item}" for task, item in scores.keys]
    half = {SURER_HALF: Statistic(selective.sel_acc(c, r, 0.5, ids=ids))}
    auroc, aurc = selective.auroc(c, r), selective.aurc(c, r, ids=ids)
    e_aurc = selective.e_aurc(c, r, ids=ids)
    if resampling is None:
        points = {"auroc": auroc, "aurc": aurc, "e_aurc": e_aurc}
        return half | {name: Statistic(one) for name, one in points.items()}
    drawn = selective.ranking_draws(c, r, ids, resampling)
    first = drawn[0] if auroc.value is not None else None
    return half | {
        "auroc": Statistic(auroc, draws=first, resampling=resampling),
        "aurc": Statistic(aurc, draws=drawn[1], resampling=resampling),
        "e_aurc": Statistic(e_aurc, draws=drawn[2], resampling=resampling),
    }


def _without_interval(scores: Scores, bins: int, *, simulate: bool) -> dict[str, Statistic]:
    d, r, gold = scores.distributions, scores.correct, scores.gold
    named = {
        "mce": calibration.mce(d.confidence, r, bins=bins),
        "sce": classwise.sce(d, gold, bins=bins),
        "ace_nixon": classwise.ace_nixon(d, gold, bins=bins),
        "tace": classwise.tace(d, gold, bins=bins),
        "debiased_l2_marginal": classwise.debiased_l2_marginal(d, gold, bins=bins),
        "smece": smooth.smece(d.confidence, r),
    }
    if simulate:
        named["ece_null"] = calibration.ece_null(d.confidence, bins=bins)
    return {name: Statistic(estimate) for name, estimate in named.items()}


def _with_interval(name: str, one: Statistic) -> Estimate:
    out, draw = one.estimate, one.resampling
    if draw is None or out.value is None:
        return out
    if name == "acc" and one.values is not None:
        return out.with_interval(share_interval(one.values, draw))
    found = _bounded(out, one.values, one.draws, draw)
    return within(found, *RANGES[name]) if name in RANGES else found


def _bounded(
    out: Estimate, values: np.ndarray | None, draws: np.ndarray | None, draw: Resampling | None
) -> Estimate:
    if draws is None or draw is None:
        return out
    if values is not None and np.isfinite(values).all():
        return out.with_interval(bca(values, draws, draw))
    return out.with_interval(percentile(draws, draw, value=out.value))


def _bounded_difference(name: str, out: Estimate, a: Statistic, b: Statistic) -> Estimate:
    draw = a.resampling
    if name == "acc" and a.values is not None and b.values is not None and draw is not None:
        return out.with_interval(paired_share_interval(a.values, b.values, draw))
    values = b.values - a.values if a.values is not None and b.values is not None else None
    draws = b.draws - a.draws if a.draws is not None and b.draws is not None else None
    return _bounded(out, values, draws, draw)
