"""Plain sentences for the reasons of a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from calibit.verdict.gates import FAIL, PASS, Gate
from calibit.verdict.policy import WORST

_WORDS = {
    # metric: words, direction of damage, unit, factor, decimals
    "acc": ("accuracy", "loss", "points", 100.0, 2),
    "conf_true": ("confidence in the right answer", "loss", "points", 100.0, 2),
    "nll": ("NLL of the right answer", "increase", "nats", 1.0, 4),
    "brier": ("Brier score", "increase", "", 1.0, 4),
    "brier_top1": ("Brier score of the top answer", "increase", "", 1.0, 4),
    "text_nll": ("NLL of the text", "increase", "nats per token", 1.0, 4),
}


def gate_sentence(gate: Gate) -> str:
    """What a gate says: metric, damage with bounds, margin, and what an open gate waits for."""
    words, direction, unit, factor, digits = _WORDS[gate.metric.removeprefix(WORST)]
    unit = f" {unit}" if unit else ""
    damage, low, high = (
        f"{factor * value + 0.0:.{digits}f}" for value in (gate.damage, gate.lower, gate.upper)
    )
    tango = gate.metric.endswith("acc")
    kind = "interval" if not gate.slice else "bounds" if tango else "simultaneous bounds"
    seen = f"{direction} {damage}{unit} ({gate.level:.0%} {kind} {low} to {high})"
    margin = f"the margin of {factor * gate.margin:g}{unit}"
    where = f" in the worst slice ({gate.slice}, {gate.n:,} items)" if gate.slice else ""
    lead = f"{words[0].upper()}{words[1:]}{where}"
    if gate.state == PASS:
        return f"{lead} holds: {seen}, below {margin}."
    if gate.state == FAIL:
        return f"{lead} is damaged: {seen}, above {margin}."
    return f"{lead} is not settled: {seen} against {margin}; {_wanted(gate)}."


def missing_sentence(metrics: Sequence[str], *, labelled: bool) -> str:
    """Which metrics of the policy could not be judged, and why."""
    why = "the runs do not hold what it takes" if labelled else "no item is labelled"
    return f"Not judged: {', '.join(_WORDS[metric][0] for metric in metrics)} ({why})."


def _wanted(gate: Gate) -> str:
    if gate.n_needed is None:
        return "the damage seen is not below the margin, so more items are unlikely to clear it"
    place = " in this slice" if gate.slice else ""
    return f"about {gate.n_needed:,} {gate.units}{place} are needed, {gate.n:,} were used"
