"""Gates: one damage against its margin, and the number of items that would settle it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from calibit.comparison.evidence import UNITS, Evidence
from calibit.measures.intervals import two_sided_z
from calibit.measures.power import detection_z
from calibit.measures.slice_search import SliceDamage, SliceSearch
from calibit.verdict.policy import WORST

PASS, FAIL, OPEN = "pass", "fail", "open"


@dataclass(frozen=True)
class Gate:
    """One metric against its margin. Damage is positive where the candidate is worse.

    Attributes:
        metric: metric id.
        margin: largest acceptable damage.
        damage: estimate.
        lower, upper: bounds of the damage at `level`; the interval printed is the one that decides.
        level: level of the bounds.
        state: "pass" (upper bound below the margin), "fail" (lower bound above it at the corrected
            level), "open".
        n: items behind the estimate.
        n_needed: items that would settle an open gate with power 0.8; None where not open, or where
            the damage is not below the margin, so that more items cannot show it.
        unit: unit of damage and margin.
        method: method of the bounds.
        slice: the slice judged, for worst-slice gates.
        units: what n and n_needed count.
    """

    metric: str
    margin: float
    damage: float
    lower: float
    upper: float
    level: float
    state: str
    n: int
    n_needed: int | None
    unit: str
    method: str
    slice: str | None = None
    units: str = "items"


def gate_of(evidence: Evidence, margin: float, *, level: float, gates: int) -> Gate:
    """Judge one damage over all items.

    Args:
        evidence: the damage with its bounds.
        margin: largest acceptable damage.
        level: two-sided level of the interval that can pass the gate.
        gates: number of gates; failing one takes a lower bound at level 1 - (1 - level) / gates.
    """
    lower, upper = evidence.at(level)
    strict = evidence.at(1.0 - (1.0 - level) / gates)[0]
    state = PASS if upper < margin else FAIL if strict > margin else OPEN
    needed = None
    if state == OPEN:
        quantile = two_sided_z(level)
        needed = _n_needed(evidence.metric, evidence.damage, evidence.sd, margin, quantile)
    return Gate(
        metric=evidence.metric,
        margin=margin,
        damage=evidence.damage,
        lower=lower,
        upper=upper,
        level=level,
        state=state,
        n=evidence.n,
        n_needed=None if needed is None else max(needed, evidence.n + 1),
        unit=evidence.unit,
        method=evidence.method,
        units=evidence.units,
    )


def slice_gate_of(search: SliceSearch, margin: float, *, level: float, gates: int) -> Gate:
    """Judge the worst slice: pass if the upper bounds of all slices are below the margin.

    The gate shows the slice that decides: the largest lower bound of a failed gate, the largest
    upper bound of a passed one, the slice that needs most items of an open one.

    Args:
        search: worst-slice search with at least one slice.
        margin: largest acceptable damage in any slice.
        level: simultaneous level of each one-sided bound.
        gates: number of gates, as in `gate_of`.
    """
    upper = search.bounds(level)[1]
    strict = search.bounds(1.0 - (1.0 - level) / gates)[0]
    state = PASS if upper < margin else FAIL if strict > margin else OPEN
    needed: dict[str, int | None] = {}
    if state == OPEN:
        waiting = [entry for entry in search.slices if entry.upper >= margin]
        needed = {entry.name: _slice_needed(search, entry, margin, level) for entry in waiting}
        shown = max(waiting, key=lambda entry: needed[entry.name] or math.inf)
    else:
        key = "lower" if state == FAIL else "upper"
        shown = max(search.slices, key=lambda entry: getattr(entry, key))
    return Gate(
        metric=WORST + search.metric,
        margin=margin,
        damage=shown.damage,
        lower=shown.lower,
        upper=shown.upper,
        level=level,
        state=state,
        n=shown.n,
        n_needed=needed.get(shown.name),
        unit=UNITS.get(search.metric, ""),
        method=search.method,
        slice=shown.name,
    )


def _slice_needed(
    search: SliceSearch, entry: SliceDamage, margin: float, level: float
) -> int | None:
    sd = entry.se * math.sqrt(entry.n)
    quantile = search.upper_quantile(level)
    needed = _n_needed(search.metric, entry.damage, sd, margin, quantile)
    return None if needed is None else max(needed, entry.n + 1)


def _n_needed(metric: str, damage: float, sd: float, margin: float, quantile: float) -> int | None:
    if damage >= margin:
        return None
    power = detection_z() - two_sided_z(0.95)
    needed = ((quantile + power) * sd / (margin - damage)) ** 2
    if metric == "acc":
        # Without discordant pairs Tango's bound is z^2 / (N + z^2), whatever the spread.
        needed = max(needed, quantile**2 * (1.0 - margin) / margin)
    return math.ceil(needed)
