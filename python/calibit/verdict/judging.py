"""Ship, hold or inconclusive: whether the damage of a candidate lies below the margins of a policy.

`ship` needs every damage below its margin with confidence: an intersection-union test, so no
correction for the number of gates. `hold` needs one damage above its margin with confidence, at a
level corrected for their number. Anything else is `inconclusive` and says how many items are
needed. "No significant difference" is never read as "no damage". Slices too small to show that
their accuracy is within the margin, even where no answer changed, can cause a `hold`; `ship` does
not wait for them and says how many they are. Where all are too small, it does not ship under a
policy that sets the margin itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from calibit.verdict.gates import FAIL, OPEN, PASS, UNJUDGED, Gate, gate_of, slice_gate_of
from calibit.verdict.policy import LABELLED, WORST, Policy
from calibit.verdict.sentences import (
    AT_CHANCE,
    NO_SLICE,
    gate_sentence,
    left_out_sentence,
    missing_sentence,
    small_sentence,
    suspect_sentence,
    unjudged_sentence,
    unlabelled_sentence,
    unsearched_sentence,
)

if TYPE_CHECKING:
    from calibit.comparison import Comparison
    from calibit.measures.slice_search import SliceSearch

SHIP, HOLD, INCONCLUSIVE = "ship", "hold", "inconclusive"
EXIT_CODES: Mapping[str, int] = {SHIP: 0, HOLD: 1, INCONCLUSIVE: 2}

MOST_UNLABELLED = 0.01
"""Largest share of a task's items without a right answer beside which anything ships."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a candidate.

    Attributes:
        verdict: "ship", "hold" or "inconclusive".
        reasons: plain sentences, the decisive ones first.
        gates: every metric judged.
        policy: the margins used.
    """

    verdict: str
    reasons: tuple[str, ...]
    gates: tuple[Gate, ...]
    policy: Policy

    @property
    def exit_code(self) -> int:
        """0 ship, 1 hold, 2 inconclusive."""
        return EXIT_CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types; an infinite bound becomes null."""
        gates = [asdict(gate) for gate in self.gates]
        for gate in gates:
            gate |= {key: _finite(gate[key]) for key in ("lower", "upper", "strict_lower")}
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "reasons": list(self.reasons),
            "gates": gates,
            "policy": self.policy.to_dict(),
        }


def judge(comparison: Comparison, policy: Policy | None = None) -> Verdict:
    """Judge a comparison under a policy.

    Args:
        comparison: two runs compared.
        policy: margins; the default policy where omitted (accuracy 3 points, conf_true 0.02, NLL
            0.03 nats, worst slice twice those).

    Returns:
        The verdict; a failed self-audit or a metric that cannot be judged makes it inconclusive.
    """
    chosen = policy or Policy()
    gates = _gates(comparison, chosen)
    by_state = {state: [g for g in gates if g.state == state] for state in (FAIL, OPEN, PASS)}
    broken = [
        f"The self-audit failed: {check.check} ({check.detail})."
        for check in comparison.checks
        if not check.passed
    ]
    missing = _missing(comparison, chosen, gates)
    if broken:
        verdict = INCONCLUSIVE
    elif by_state[FAIL]:
        verdict = HOLD
    elif missing or by_state[OPEN]:
        verdict = INCONCLUSIVE
    else:
        verdict = SHIP
    failed, unsettled, passed = ([gate_sentence(g) for g in group] for group in by_state.values())
    reasons = (
        *broken,
        *failed,
        *missing,
        *unsettled,
        *passed,
        *(small_sentence(gate) for gate in gates if gate.too_small),
        *_without_slices(comparison, chosen),
        *_left_out(comparison, chosen),
    )
    return Verdict(verdict, reasons, gates, chosen)


def _gates(comparison: Comparison, policy: Policy) -> tuple[Gate, ...]:
    level = float(comparison.protocol["level"])
    sliced = {WORST + name: one for name, one in _searches(comparison, policy).items()}
    judged = [name for name in policy.margins if name in comparison.evidence or name in sliced]
    out = []
    for name in judged:
        margin = policy.margins[name]
        if name in sliced:
            overall = comparison.evidence.get(name.removeprefix(WORST))
            out.append(
                slice_gate_of(
                    sliced[name],
                    margin,
                    level=level,
                    gates=len(judged),
                    effective_clusters=None if overall is None else overall.effective_clusters,
                )
            )
        else:
            evidence = comparison.evidence[name]
            out.append(gate_of(evidence, margin, level=level, gates=len(judged)))
    return tuple(out)


def _searches(comparison: Comparison, policy: Policy) -> dict[str, SliceSearch]:
    """The worst-slice searches among the slices of the policy; those without any are left out."""
    return {name: one for name, one in _chosen(comparison, policy).items() if one.slices}


def _chosen(comparison: Comparison, policy: Policy) -> dict[str, SliceSearch]:
    """The worst-slice searches among the slices of the policy.

    Raises:
        ValueError: a slice key that no item has.
    """
    if not policy.slices:
        return dict(comparison.worst_slices)
    known = {str(row["key"]) for row in comparison.slices}
    absent = [key for key in policy.slices if key not in known]
    if absent:
        raise ValueError(
            f"[policy] expected slice keys of the items ({', '.join(sorted(known)) or 'none'}), "
            f"got {', '.join(absent)}"
        )
    return {name: one.only(policy.slices) for name, one in comparison.worst_slices.items()}


def _missing(comparison: Comparison, policy: Policy, gates: Sequence[Gate]) -> list[str]:
    """What the policy asks for and the runs do not answer: `ship` needs all of it."""
    judged = {gate.metric for gate in gates}
    absent = [name for name in policy.required if name not in judged]
    overall = [name for name in absent if not name.startswith(WORST)]
    unsearched = [name for name in absent if name.startswith(WORST)]
    found = []
    if overall:
        few = [one.shortfall for one in comparison.generated if not one.judged]
        lost = [text.lost_reason for text in comparison.texts if text.lost]
        whys = {"gen_acc": few, "text_nll": lost}
        known = {metric: "; ".join(why) for metric, why in whys.items() if why}
        labelled = bool(comparison.protocol["n_labelled"])
        found.append(missing_sentence(overall, labelled=labelled, known=known))
    if unsearched:
        found.append(unsearched_sentence(unsearched))
    found += [*_unlabelled(comparison, policy), *_at_chance(comparison, policy)]
    unjudged = [gate for gate in gates if gate.state == UNJUDGED]
    found += [unjudged_sentence(gate) for gate in unjudged if gate.metric in policy.required]
    found += _suspects(comparison, policy, gates)
    if not found and len(unjudged) == len(gates):
        found.append("Nothing was judged: the runs hold nothing that the policy asks for.")
    return found


def _suspects(comparison: Comparison, policy: Policy, gates: Sequence[Gate]) -> list[str]:
    """Slices too small to pass whose loss is shown to exceed the margin, though not at the level
    that a hold takes."""
    level, searches = float(comparison.protocol["level"]), _searches(comparison, policy)
    found = []
    for gate in gates:
        if not gate.too_small or gate.state == FAIL:
            continue
        search = searches[gate.metric.removeprefix(WORST)]
        lower, upper = search.intervals(level, all_at_once=True)
        for one, low, high in zip(search.slices, lower, upper, strict=True):
            if one.name in gate.too_small and low > gate.margin:
                found.append(suspect_sentence(gate, one, (float(low), float(high)), level))
    return found


def _unlabelled(comparison: Comparison, policy: Policy) -> list[str]:
    """What became of items without a right answer no metric of labels says; they may be ruined."""
    protocol = comparison.protocol
    if not _asks_labels(policy) or not protocol["n_labelled"]:
        return []
    tasks = [(str(task["name"]), task["n"], task["n_labelled"]) for task in protocol["tasks"]]
    blind = [one for one in tasks if one[1] - one[2] > MOST_UNLABELLED * one[1]]
    return [unlabelled_sentence(blind)] if blind else []


def _at_chance(comparison: Comparison, policy: Policy) -> list[str]:
    """A reference that only guesses has nothing to lose: an equal candidate may be ruined."""
    guesses = comparison.models["a"].get("at_chance", False)
    return [AT_CHANCE] if guesses and _asks_labels(policy) else []


def _asks_labels(policy: Policy) -> bool:
    return any(name.removeprefix(WORST) in LABELLED for name in policy.required)


def _without_slices(comparison: Comparison, policy: Policy) -> list[str]:
    """A note where slices would be judged if there were any."""
    asked = any(name.startswith(WORST) for name in policy.margins)
    missed = any(name.startswith(WORST) for name in policy.required)
    searched = bool(_searches(comparison, policy))
    if not asked or missed or searched or not comparison.worst_slices:
        return []
    return [f"Slices were not judged: {NO_SLICE}."]


def _left_out(comparison: Comparison, policy: Policy) -> list[str]:
    """Slices that were too small to be searched, for the damages that the policy judges in them."""
    groups: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for metric, search in _chosen(comparison, policy).items():
        if WORST + metric in policy.margins and search.left_out:
            small = tuple((one.name, one.n) for one in search.left_out)
            groups.setdefault(small, []).append(metric)
    return [left_out_sentence(metrics, small) for small, metrics in groups.items()]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
