"""Gates: one damage against its margin, and the number of items that would settle it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from calibit.comparison.evidence import TANGO, UNITS, Evidence
from calibit.measures.intervals import FEW_CLUSTERS, few_clusters, two_sided_z
from calibit.measures.power import detection_z
from calibit.measures.slice_search import SliceSearch
from calibit.measures.slices import N_MIN
from calibit.verdict.policy import WORST

PASS, FAIL, OPEN, UNJUDGED = "pass", "fail", "open", "unjudged"


@dataclass(frozen=True)
class Gate:
    """One metric against its margin. Damage is positive where the candidate is worse.

    The bounds are those of the interval that decides: of a failed gate at the corrected level, of
    any other gate at the policy's.

    Attributes:
        metric: metric id.
        margin: largest acceptable damage.
        damage: estimate.
        lower, upper: bounds of the damage at `level`.
        level: level of the bounds.
        state: "pass" (upper bound below the margin), "fail" (lower bound above it at the corrected
            level), "open", or "unjudged" (no slice is large enough to pass).
        n: items behind the estimate.
        n_needed: items that would settle an open gate with power 0.8; None where not open, or where
            the damage is not below the margin, so that more items cannot show it.
        unit: unit of damage and margin.
        method: method of the bounds.
        slice: the slice judged, for worst-slice gates.
        units: what n and n_needed count.
        strict_lower, strict_level: lower bound (of the slice shown) at the corrected level, which
            `fail` needs above the margin, and that level.
        all_at_once: whether the bounds hold for all slices at once.
        slices: number of slices searched.
        n_least: items the gate needs to pass, whatever they show: of a mean over items or prompts
            30, of accuracy in a slice those that suffice where no answer changes.
        too_small: slices with fewer: they can fail the gate, and passing does not rest on them.
        clusters: number of clusters that the items form; None where items are independent.
        effective_clusters: how many of equal size they are worth. Fewer than 30 never pass.
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
    strict_lower: float | None = None
    strict_level: float | None = None
    all_at_once: bool = False
    slices: int = 0
    n_least: int = 0
    too_small: tuple[str, ...] = ()
    clusters: int | None = None
    effective_clusters: float | None = None

    @property
    def few_clusters(self) -> bool:
        """Whether the items form too few clusters to pass."""
        return few_clusters(self.effective_clusters)


def gate_of(evidence: Evidence, margin: float, *, level: float, gates: int) -> Gate:
    """Judge one damage over all items.

    Bounds of a mean need enough items for its tails to be seen: fewer than 30 never pass. A window
    of text is itself a mean of hundreds of tokens, and Tango's bounds know their number of items.
    Fewer than 30 effective clusters never pass either, whatever the metric: their spread is
    uncertain.

    Args:
        evidence: the damage with its bounds.
        margin: largest acceptable damage.
        level: two-sided level of the interval that can pass the gate.
        gates: number of gates; failing one takes an interval at level 1 - (1 - level) / gates.
    """
    strict_level = corrected(level, gates)
    plain, strict = evidence.at(level), evidence.at(strict_level)
    n_least = 0 if evidence.method == TANGO or evidence.units == "windows" else N_MIN
    state = PASS if plain[1] < margin else FAIL if strict[0] > margin else OPEN
    if state == PASS and (evidence.n < n_least or few_clusters(evidence.effective_clusters)):
        state = OPEN
    lower, upper = strict if state == FAIL else plain
    needed = None
    if state == OPEN:
        least = least_items(margin, level) if evidence.method == TANGO else n_least
        least = max(least, _of_enough_clusters(evidence.n, evidence.effective_clusters))
        quantile = two_sided_z(level)
        needed = _n_needed(evidence.damage, evidence.sd, margin, quantile, least=least)
    return Gate(
        metric=evidence.metric,
        margin=margin,
        damage=evidence.damage,
        lower=lower,
        upper=upper,
        level=strict_level if state == FAIL else level,
        state=state,
        n=evidence.n,
        n_needed=_more_than(evidence.n, needed),
        unit=evidence.unit,
        method=evidence.method,
        units=evidence.units,
        strict_lower=strict[0],
        strict_level=strict_level,
        n_least=n_least,
        clusters=evidence.clusters,
        effective_clusters=evidence.effective_clusters,
    )


def slice_gate_of(
    search: SliceSearch,
    margin: float,
    *,
    level: float,
    gates: int,
    effective_clusters: float | None = None,
) -> Gate:
    """Judge the worst slice: pass if the upper bounds of all slices are below the margin.

    Accuracy has a bound above 0 in a slice whose answers did not change at all. A slice whose size
    alone keeps that bound above the margin says nothing about passing, whatever the candidate: it
    is left out there and named. It can still fail the gate.

    Args:
        search: worst-slice search with at least one slice.
        margin: largest acceptable damage in any slice.
        level: level of the bounds that can pass the gate.
        gates: number of gates, as in `gate_of`.
        effective_clusters: of all items; clusters of one size where omitted.

    Returns:
        The gate, with the slice that decides: the largest lower bound of a failed gate, the largest
        upper bound of any other.
    """
    strict_level = corrected(level, gates)
    effective = search.clusters if effective_clusters is None else effective_clusters
    strict = search.intervals(strict_level, all_at_once=True)
    plain = search.intervals(level, all_at_once=False)
    least = least_items(margin, level) if search.metric == "acc" else 0
    sizes = np.array([entry.n for entry in search.slices])
    judged = np.flatnonzero(sizes >= least)
    state, bounds = _slice_state(plain[1][judged], strict[0], margin), plain
    if state == PASS and few_clusters(effective):
        state = OPEN
    if state == FAIL:
        at, bounds = int(strict[0].argmax()), strict
    else:
        among = judged if len(judged) else np.arange(len(sizes))
        at = int(among[plain[1][among].argmax()])
    shown = search.slices[at]
    needed = None
    if state == OPEN:
        sd, quantile = shown.se * math.sqrt(shown.n), search.upper_quantile(level)
        needed = _n_needed(shown.damage, sd, margin, quantile, least=least)
    return Gate(
        metric=WORST + search.metric,
        margin=margin,
        damage=shown.damage,
        lower=float(bounds[0][at]),
        upper=float(bounds[1][at]),
        level=strict_level if state == FAIL else level,
        state=state,
        n=shown.n,
        n_needed=_more_than(shown.n, needed),
        unit=UNITS.get(search.metric, ""),
        method=search.method,
        slice=shown.name,
        strict_lower=float(strict[0][at]),
        strict_level=strict_level,
        all_at_once=state == FAIL or search.metric != "acc",
        slices=len(sizes),
        n_least=least,
        too_small=tuple(search.slices[i].name for i in np.flatnonzero(sizes < least)),
        clusters=search.clusters,
        effective_clusters=effective,
    )


def corrected(level: float, gates: int) -> float:
    """Bonferroni's level for failing one of several gates: 0.9917 for 0.95 and 6 gates."""
    return 1.0 - (1.0 - level) / gates


def least_items(margin: float, level: float) -> int:
    """Fewest items whose accuracy can be shown to stay within a margin: without a changed answer
    the upper end of Tango's interval is z^2 / (n + z^2).

    Args:
        margin: largest acceptable loss.
        level: two-sided level.

    Example:
        >>> least_items(0.06, 0.95)
        61
    """
    return max(1, math.floor(two_sided_z(level) ** 2 * (1.0 - margin) / margin) + 1)


def _of_enough_clusters(n: int, effective: float | None) -> int:
    """Items that form enough clusters of the sizes seen; 0 where there are enough."""
    return math.ceil(n * FEW_CLUSTERS / effective) if effective and few_clusters(effective) else 0


def _slice_state(upper: np.ndarray, strict_lower: np.ndarray, margin: float) -> str:
    if strict_lower.max() > margin:
        return FAIL
    if not len(upper):
        return UNJUDGED
    return PASS if upper.max() < margin else OPEN


def _n_needed(
    damage: float, sd: float, margin: float, quantile: float, *, least: int
) -> int | None:
    if damage >= margin:
        return None
    power = detection_z() - two_sided_z(0.95)
    return max(least, math.ceil(((quantile + power) * sd / (margin - damage)) ** 2))


def _more_than(n: int, needed: int | None) -> int | None:
    """An open gate needs more than it has; one item has no spread to plan with."""
    if needed is None:
        return None
    return max(needed, n + 1 if n > 1 else N_MIN)
