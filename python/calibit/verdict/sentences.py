"""Plain sentences for the reasons of a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from calibit import numbers
from calibit.measures.intervals import FEW_CLUSTERS
from calibit.measures.slice_search import SliceDamage
from calibit.measures.slices import N_MIN
from calibit.verdict.gates import FAIL, PASS, UNJUDGED, Gate
from calibit.verdict.policy import LABELLED, NEEDS, WORST

NO_SLICE = f"none has at least {N_MIN} items and fewer than all"
"""Why no slice is searched."""

AT_CHANCE = (
    "The accuracy of the original is not shown to be above chance: it has nothing to lose, so "
    "right answers cannot show what the candidate lost. Take tasks that the original can solve, or "
    "more items; or gate only what needs no labels, such as kl."
)
"""Why nothing ships on the labels of a reference that guesses."""

DIVERGENCES = ("kl", "token_kl")
"""Metrics that are often far below 1: shown with significant digits."""

_NAMED = 8  # slices that a sentence names
_FALSE_ACCEPTS = "rate of false accepts at the original's threshold"
_WORDS = {
    # metric: words, direction of damage, unit, factor, decimals
    "acc": ("accuracy", "loss", "points", 100.0, 2),
    "conf_true": ("confidence in the right answer", "loss", "points", 100.0, 2),
    "nll": ("NLL of the right answer", "increase", "nats", 1.0, 4),
    "brier": ("Brier score", "increase", "", 1.0, 4),
    "brier_top1": ("Brier score of the top answer", "increase", "", 1.0, 4),
    "gen_acc": ("accuracy of free-text answers", "loss", "points", 100.0, 2),
    "repetition": ("share of repeated 4-grams", "increase", "points", 100.0, 2),
    "token_kl": ("token KL on the workload", "divergence", "nats", 1.0, 4),
    "coverage": ("coverage at the original's threshold", "loss", "points", 100.0, 2),
    "false_accepts": (_FALSE_ACCEPTS, "increase", "points", 100.0, 2),
    "all_flips": ("share of changed answers", "excess over re-runs", "points", 100.0, 2),
    "kl": ("KL from the original", "excess over re-runs", "nats", 1.0, 4),
    "text_nll": ("NLL of the text", "increase", "nats per token", 1.0, 4),
}


def gate_sentence(gate: Gate) -> str:
    """What a gate says: metric, damage with bounds, margin, and what an open gate waits for."""
    words, direction, unit, factor, _ = _WORDS[gate.metric.removeprefix(WORST)]
    unit = f" {unit}" if unit else ""
    damage, low, high = (_shown(gate, value) for value in (gate.damage, gate.lower, gate.upper))
    kind = "bounds for all slices at once" if gate.all_at_once else "interval"
    bounds = f"{100 * gate.level:.3g}% {kind} {low} to {high}"
    seen = f"{direction} {damage}{unit} ({bounds if math.isfinite(gate.upper) else 'no interval'})"
    margin = f"the margin of {factor * gate.margin:g}{unit}"
    where = (
        f" in the worst slice ({gate.slice}, {_count(gate.n, gate.units)})" if gate.slice else ""
    )
    lead = f"{words[0].upper()}{words[1:]}{where}"
    if gate.state == PASS:
        return f"{lead} holds: {seen}, below {margin}."
    if gate.state == FAIL:
        return f"{lead} is damaged: {seen}, above {margin}."
    against = f"{seen} against {margin}{_at_the_corrected_level(gate)}"
    if gate.state == UNJUDGED:
        return f"{lead} is not judged: {against}; every slice is too small to pass."
    return f"{lead} is not settled: {against}; {_wanted(gate)}."


def small_sentence(gate: Gate) -> str:
    """How many slices were too small to rest `ship` on."""
    words = _WORDS[gate.metric.removeprefix(WORST)][0]
    slices = "slice was" if gate.slices == 1 else "slices were"
    return (
        f"{len(gate.too_small)} of {gate.slices} {slices} too small to show that {words} stays "
        f"within the margin, even where no answer changes (fewer than {gate.n_least} items): they "
        "could cause a hold, and ship does not rest on them."
    )


def suspect_sentence(
    gate: Gate, one: SliceDamage, bounds: tuple[float, float], level: float
) -> str:
    """That a slice too small to pass shows more loss than the margin, at a level not corrected for
    the number of margins."""
    words, direction, unit, factor, _ = _WORDS[gate.metric.removeprefix(WORST)]
    damage, low, high = (_shown(gate, value) for value in (one.damage, *bounds))
    return (
        f"Not settled: {words} in a small slice ({one.name}, {_count(one.n, gate.units)}): "
        f"{direction} {damage} {unit} ({100 * level:.3g}% bounds for all slices at once {low} to "
        f"{high}), above the margin of {factor * gate.margin:g} {unit}; measure more items of it."
    )


def unjudged_sentence(gate: Gate) -> str:
    """That no slice is large enough for a margin of the policy, and what to do."""
    words, _, unit, factor, _ = _WORDS[gate.metric.removeprefix(WORST)]
    return (
        f"Not judged: {words} in the worst slice: none of {gate.slices} slices has the "
        f"{gate.n_least} items that it takes to show a loss below the margin of "
        f"{factor * gate.margin:g} {unit}. {_remedy([gate.metric])}"
    )


def left_out_sentence(metrics: Sequence[str], slices: Sequence[tuple[str, int]]) -> str:
    """Which slices had too few items to be searched for some damages: `slices` are names with
    items."""
    words = ", ".join(_WORDS[metric][0] for metric in metrics)
    named = "; ".join(f"{name}, {_count(n, 'items')}" for name, n in slices[:_NAMED])
    more = f"; and {len(slices) - _NAMED:,} more" if len(slices) > _NAMED else ""
    return (
        f"Too few items to be searched for damage of {words}: {named}{more}. Nothing is said of "
        "them, and ship does not rest on them."
    )


def unsearched_sentence(metrics: Sequence[str]) -> str:
    """That there are no slices for margins of the policy, and what to do."""
    names = ", ".join(_WORDS[metric.removeprefix(WORST)][0] for metric in metrics)
    return f"Not judged: {names} in the worst slice: of slices {NO_SLICE}. {_remedy(metrics)}"


def unlabelled_sentence(tasks: Sequence[tuple[str, int, int]]) -> str:
    """That items have no right answer, and what to do: `tasks` are names, items, labelled items."""
    named = ", ".join(
        f"{n - known:,} of {n:,} items of {name}" for name, n, known in tasks[:_NAMED]
    )
    more = f" and of {len(tasks) - _NAMED:,} more tasks" if len(tasks) > _NAMED else ""
    return (
        f"Not judged: {named}{more}, which have no right answer. Label them, or leave them out of "
        "both runs."
    )


def _remedy(metrics: Sequence[str]) -> str:
    return f"Measure more items in each slice, or take {', '.join(metrics)} out of the policy."


def missing_sentence(
    metrics: Sequence[str], *, labelled: bool, known: Mapping[str, str] | None = None
) -> str:
    """Which metrics of the policy could not be judged, and why; `known`: metric -> its reason where
    the runs hold what it takes, but not enough of it."""
    by_reason: dict[str, list[str]] = {}
    for metric in metrics:
        why = "the runs do not hold what it takes"
        if known and metric in known:
            why = known[metric]
        elif metric in LABELLED and not labelled:
            why = "no item is labelled"
        elif metric in NEEDS:
            why = f"needs {NEEDS[metric]}"
        by_reason.setdefault(why, []).append(_WORDS[metric][0])
    parts = [f"{', '.join(names)} ({why})" for why, names in by_reason.items()]
    return f"Not judged: {'; '.join(parts)}."


def _shown(gate: Gate, value: float) -> str:
    """A damage or bound in the unit of its metric."""
    *_, factor, digits = _WORDS[gate.metric.removeprefix(WORST)]
    show = numbers.small if gate.metric in DIVERGENCES else numbers.fixed
    return numbers.ascii_(show(value, digits=digits, scale=factor))


def _at_the_corrected_level(gate: Gate) -> str:
    """Why a gate is open although its interval lies above the margin."""
    if not gate.lower > gate.margin or gate.strict_lower is None or gate.strict_level is None:
        return ""
    level, low = f"{100 * gate.strict_level:.3g}%", _shown(gate, gate.strict_lower)
    return f" (hold asks for {level}, where the bounds start at {low})"


def _wanted(gate: Gate) -> str:
    if gate.n_needed is None:
        return "the damage seen is not below the margin, so more items are unlikely to clear it"
    place, were = " in this slice" if gate.slice else "", "was" if gate.n == 1 else "were"
    if gate.few_clusters and gate.effective_clusters is not None:
        used = f"{gate.clusters} {'was' if gate.clusters == 1 else 'were'} used"
        effective = gate.effective_clusters
        even = round(effective) == gate.clusters
        worth = "" if even else f", worth {effective:.1f} of one size"
        return f"at least {FEW_CLUSTERS} clusters are needed to pass, {used}{worth}"
    if not gate.slice and gate.n < gate.n_least == gate.n_needed:
        least = _count(gate.n_least, gate.units)
        return f"at least {least} are needed to pass, {gate.n:,} {were} used"
    return f"about {_count(gate.n_needed, gate.units)}{place} are needed, {gate.n:,} {were} used"


def _count(n: int, units: str) -> str:
    return f"{n:,} {units.removesuffix('s') if n == 1 else units}"
