"""What a verdict judges: damages with bounds at any level.

Damage is the change with the sign chosen so that positive is worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from calibit.measures.intervals import (
    bca,
    design_effect,
    paired_share_interval,
    share_design_effect,
    share_interval,
)
from calibit.measures.noise import excess_values
from calibit.measures.perplexity import window_interval
from calibit.measures.resampling import Resampling, resampled_means
from calibit.measures.scores import Scores
from calibit.measures.slice_search import SliceSearch, worst_slice
from calibit.measures.slices import N_MIN, Slices
from calibit.measures.summaries import Panel
from calibit.measures.thresholds import accepted_at_coverage
from calibit.measures.token_level import token_units

DAMAGES: Mapping[str, int] = {
    "acc": -1,
    "conf_true": -1,
    "nll": +1,
    "brier": +1,
    "brier_top1": +1,
}
"""Metrics with a damage per item -> sign that makes a change worse."""

SLICED = ("acc", "conf_true", "nll")
"""Damages that are searched for their worst slice."""

TANGO = "tango"
"""Method of bounds of shares: above 0 even where no item changed."""

UNITS = {"nll": "nats", "text_nll": "nats", "kl": "nats", "token_kl": "nats"}

Bounds = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Evidence:
    """One damage with what a gate needs.

    Attributes:
        metric: "acc", "conf_true", "text_nll", ...
        damage: estimate, positive = worse.
        n: number of items (or tokens) behind it.
        sd: standard deviation of the per-item damage, for planning; with clusters, that of as many
            independent items with the same standard error.
        method: method of the bounds.
        at: level -> (lower, upper).
        unit: unit of the damage.
        units: what n counts.
        clusters: number of clusters that the n items form; None where items are independent.
        effective_clusters: how many of equal size they are worth.
    """

    metric: str
    damage: float
    n: int
    sd: float
    method: str
    at: Callable[[float], Bounds] = field(repr=False)
    unit: str = ""
    units: str = "items"
    clusters: int | None = None
    effective_clusters: float | None = None


def accuracy_evidence(before: np.ndarray, after: np.ndarray, resampling: Resampling) -> Evidence:
    """Damage of accuracy with Tango's bounds, negated to read as damage.

    Args:
        before, after: float64 [N], 1 where an item is right.
        resampling: the clusters.
    """

    return share_evidence("acc", before, after, resampling)


def share_evidence(
    metric: str, before: np.ndarray, after: np.ndarray, resampling: Resampling
) -> Evidence:
    """Damage that is a share of items before minus a share after, with Tango's bounds.

    Args:
        metric: metric id.
        before, after: float64 [N], 0 or 1.
        resampling: the clusters.
    """

    def at(level: float) -> Bounds:
        return _ends(paired_share_interval(after, before, replace(resampling, level=level)))

    effect = share_design_effect(after - before, resampling.clusters)
    sd = float(np.sqrt(effect * np.mean(before != after)))
    damage, clusters = float(np.mean(before - after)), _clusters(resampling)
    return Evidence(metric, damage, len(before), sd, TANGO, at, **clusters)


def mean_evidence(
    metric: str, damage: np.ndarray, draws: np.ndarray, resampling: Resampling
) -> Evidence:
    """Damage that is a mean over items, with BCa bounds.

    Args:
        metric: metric id.
        damage: float64 [N], per item.
        draws: float64 [resamples], resampled means of it.
        resampling: how they were resampled.
    """

    def at(level: float) -> Bounds:
        return _ends(bca(damage, draws, replace(resampling, level=level)))

    spread = float(np.std(damage, ddof=1)) if len(damage) > 1 else 0.0
    sd = spread * float(np.sqrt(design_effect(damage, resampling.clusters)))
    unit = UNITS.get(metric, "")
    method, value = bca(damage, draws, resampling).method, float(damage.mean())
    clusters = _clusters(resampling)
    return Evidence(metric, value, len(damage), sd, method, at, unit, **clusters)


def label_evidence(a: Panel, b: Panel) -> dict[str, Evidence]:
    """Evidence of every damage of DAMAGES, from panels with resamples; empty without labels."""
    out = {}
    for metric, sign in DAMAGES.items():
        first, second = a.statistics[metric], b.statistics[metric]
        draw = first.resampling
        if first.values is None or second.values is None or draw is None:
            continue
        if metric == "acc":
            out[metric] = accuracy_evidence(first.values, second.values, draw)
        elif first.draws is not None and second.draws is not None:
            damage = sign * (second.values - first.values)
            out[metric] = mean_evidence(metric, damage, sign * (second.draws - first.draws), draw)
    return out


def threshold_evidence(
    a: Scores, b: Scores, coverage: float, resampling: Resampling
) -> dict[str, Evidence]:
    """Evidence on a system that abstains below a threshold of the reference: loss of coverage, and
    more wrong answers accepted.

    Args:
        a, b: reference and candidate, labelled items with two choices or more.
        coverage: share of the items that the threshold lets the reference answer.
        resampling: the clusters.
    """
    found = accepted_at_coverage(a, b, coverage) if a.n else None
    if found is None:
        return {}
    return {
        "coverage": share_evidence("coverage", found["a"], found["b"], resampling),
        "false_accepts": share_evidence(
            "false_accepts", found["false_b"], found["false_a"], resampling
        ),
    }


def excess_evidence(
    a: Scores, b: Scores, reruns: Sequence[Scores], resampling: Resampling
) -> dict[str, Evidence]:
    """Evidence on magnitudes of change in excess over re-runs of the reference; empty without.

    Args:
        a, b: reference and candidate.
        reruns: the reference run again on the same items.
        resampling: of the bounds.
    """
    if not reruns or not a.n:
        return {}
    excess = excess_values(a, b, reruns)
    named = {"all_flips": excess["all_flips"], "kl": excess["kl_ab"]}
    drawn = resampled_means(np.stack(list(named.values()), axis=1), resampling)
    found = {
        metric: mean_evidence(metric, values, column, resampling)
        for (metric, values), column in zip(named.items(), drawn.T, strict=True)
    }
    changed = (a.distributions.predicted != b.distributions.predicted).astype(np.float64)
    return found | {"all_flips": _rare(found["all_flips"], changed, resampling)}


def _rare(found: Evidence, hits: np.ndarray, resampling: Resampling) -> Evidence:
    """Evidence on a share in excess of a floor, its bounds at least as wide as Clopper and
    Pearson's.

    Few hits tell a bootstrap little of their spread and none tell it nothing: of 60 items of which
    3 % change, none changes in one sample of six, and the bounds would be 0 and 0.

    Args:
        found: the evidence with bootstrapped bounds.
        hits: float64 [N], 0 or 1.
        resampling: the clusters.
    """
    floor = float(hits.mean()) - found.damage

    def at(level: float) -> Bounds:
        lower, upper = found.at(level)
        low, high = _ends(share_interval(hits, replace(resampling, level=level)))
        return min(lower, low - floor), max(upper, high - floor)

    sd = max(found.sd, len(hits) ** -0.5)  # as of one hit, where there is none
    return replace(found, sd=sd, method=f"{found.method} and clopper_pearson", at=at)


def without_spread(found: Evidence, damage: np.ndarray, resampling: Resampling) -> Evidence:
    """Evidence on a damage of -1 to 1 per item, whose bounds are those of a share where all items
    moved alike: they say nothing of the spread.

    Args:
        found: the evidence.
        damage: float64 [N].
        resampling: the clusters.
    """
    if not len(damage) or np.ptp(damage) > 0.0:
        return found

    def at(level: float) -> Bounds:
        unseen = _ends(share_interval(0.0 * damage, replace(resampling, level=level)))[1]
        return found.damage - unseen, found.damage + unseen

    return replace(found, sd=len(damage) ** -0.5, method="clopper_pearson", at=at)


def text_evidence(
    nll_a: np.ndarray, nll_b: np.ndarray, windows: np.ndarray, resampling: Resampling
) -> Evidence | None:
    """Damage of the text NLL per token; windows are the units. None below two windows."""
    _, labels = np.unique(windows, return_inverse=True)
    units = np.stack([np.bincount(labels, nll_b - nll_a), np.bincount(labels)], axis=1)
    if len(units) < 2:
        return None

    def at(level: float) -> Bounds:
        return _ends(window_interval(units, replace(resampling, level=level)))

    sd = float(np.std(units[:, 0] / units[:, 1], ddof=1))
    return Evidence(
        "text_nll",
        float(np.mean(nll_b - nll_a)),
        len(units),
        sd,
        window_interval(units, resampling).method,
        at,
        "nats",
        units="windows",
    )


def per_token_evidence(
    metric: str, damage: np.ndarray, clusters: np.ndarray, resampling: Resampling
) -> Evidence:
    """Damage that is a mean over tokens; prompts are the units.

    Args:
        metric: metric id.
        damage: float64 [n], per token.
        clusters: [n] prompt of each token.
        resampling: level, resamples and seed.
    """
    units = token_units(damage, clusters)

    def at(level: float) -> Bounds:
        return _ends(window_interval(units, replace(resampling, level=level)))

    sd = float(np.std(units[:, 0] / units[:, 1], ddof=1)) if len(units) > 1 else 0.0
    method = window_interval(units, resampling).method
    unit = UNITS.get(metric, "")
    value = float(damage.mean())
    return Evidence(metric, value, len(units), sd, method, at, unit, units="prompts")


def slice_searches(
    a: Panel, b: Panel, slices: Slices, resampling: Resampling
) -> dict[str, SliceSearch]:
    """Worst-slice search of every damage in SLICED; the slices are of the labelled items.

    Means need 30 items in a slice; accuracy is searched in all that are given.
    """
    out = {}
    larger = slices.at_least(N_MIN)
    for metric in SLICED:
        first, second = a.statistics[metric].values, b.statistics[metric].values
        if first is not None and second is not None:
            damage = DAMAGES[metric] * (second - first)
            right = metric == "acc"
            family = slices if right else larger
            out[metric] = worst_slice(
                damage, family, metric=metric, accuracy=right, resampling=resampling
            )
    return out


def _clusters(resampling: Resampling) -> dict[str, Any]:
    return {
        "clusters": resampling.cluster_count,
        "effective_clusters": resampling.effective_clusters,
    }


def _ends(interval: object) -> Bounds:
    lower, upper = getattr(interval, "lower", None), getattr(interval, "upper", None)
    return (
        -np.inf if lower is None else float(lower),
        np.inf if upper is None else float(upper),
    )
