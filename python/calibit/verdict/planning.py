"""What a comparison can show, before anything is run: smallest damage, power at the margins, items
needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from calibit.measures.power import (
    DEFAULT_POWER,
    detection_z,
    mde_mean,
    n_needed,
    power_at,
    share_n_needed,
    share_power_at,
)
from calibit.measures.slices import N_MIN
from calibit.verdict.gates import least_items
from calibit.verdict.policy import Policy

FLIP_RATE = 0.10
"""Assumed share of items whose correctness changes: a convention, careful for 4 bits."""

SPREADS: Mapping[str, float] = {"conf_true": 0.10, "nll": 0.30, "brier": 0.15, "brier_top1": 0.15}
"""Assumed standard deviations of per-item changes where no earlier comparison gives them:
conventions, not findings."""

_WRITTEN = "gen_acc"
_SHARES = ("acc", _WRITTEN)
ALL = "all"


@dataclass(frozen=True)
class Planned:
    """What the items of one task show about one gate.

    Attributes:
        task: name, or ALL.
        metric: the damage, as policies name it.
        n: number of items.
        margin: largest acceptable damage.
        sd: standard deviation of the per-item damage (the root of the flip rate for accuracies).
        assumed: whether `sd` is a convention, not taken from a comparison.
        mde: damage that n items detect with a power of 0.8.
        power: probability that a candidate without any damage is shown to lie below the margin.
        needed: items for which that is 0.8.
    """

    task: str
    metric: str
    n: int
    margin: float
    sd: float
    assumed: bool
    mde: float
    power: float
    needed: int


def plan_gates(
    choices: Mapping[str, int],
    written: Mapping[str, int],
    policy: Policy,
    *,
    level: float = 0.95,
    flip_rate: float = FLIP_RATE,
    spreads: Mapping[str, float] | None = None,
) -> list[Planned]:
    """Plan the gates of a policy that are means over items; gates judge ALL, tasks are shown beside
    it.

    Margins of the worst slice, of texts and of excesses over re-runs depend on more than the number
    of items and are left out.

    Args:
        choices: task -> items with choices.
        written: task -> prompts that are answered in free text.
        policy: the margins.
        level: two-sided level of the intervals that decide.
        flip_rate: expected share of items whose correctness changes.
        spreads: metric -> standard deviation from an earlier comparison; these go first.

    Raises:
        ValueError: for a flip rate outside (0, 1].
    """
    if not 0.0 < flip_rate <= 1.0:
        raise ValueError(f"[power] expected a flip rate above 0 and at most 1, got {flip_rate}")
    seen = dict(spreads or {})
    known = {**dict.fromkeys(_SHARES, math.sqrt(flip_rate)), **SPREADS, **seen}
    rows = []
    for metric, margin in policy.margins.items():
        if metric not in known:
            continue
        for task, n in _sizes(written if metric == _WRITTEN else choices):
            rows.append(_planned(task, metric, n, margin, known[metric], metric not in seen, level))
    return rows


def _sizes(tasks: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    if not tasks:
        return
    yield ALL, sum(tasks.values())
    if len(tasks) > 1:
        yield from tasks.items()


def _planned(
    task: str, metric: str, n: int, margin: float, sd: float, assumed: bool, level: float
) -> Planned:
    alpha = 1.0 - level
    if metric in _SHARES and sd <= 1.0:
        found = share_power_at(n, sd**2, margin, alpha=alpha)
        needed = share_n_needed(sd**2, margin, alpha=alpha)
    else:  # a mean, or a share whose items form clusters
        least = least_items(margin, level) if metric in _SHARES else N_MIN
        found = power_at(n, sd, margin, alpha=alpha) if n >= least else 0.0
        needed = max(n_needed(sd, margin, alpha=alpha) or 0, least)
    mde = mde_mean(n, sd, alpha=alpha)
    return Planned(task, metric, n, margin, sd, assumed, mde, found, needed)


def spreads_of(content: Mapping[str, Any]) -> dict[str, float]:
    """Standard deviations of per-item damages from a stored comparison or audit, the largest of its
    candidates.

    Args:
        content: of `comparison.json` or `audit.json`.

    Raises:
        ValueError: if it holds no judged comparison.
    """
    found: dict[str, float] = {}
    for one in content.get("candidates") or [content]:
        comparison = one.get("comparison") or one
        z = detection_z(alpha=1.0 - float((comparison.get("protocol") or {}).get("level", 0.95)))
        mde = comparison.get("mde") or {}
        for gate in (one.get("verdict") or {}).get("gates") or ():
            if gate["metric"] in mde:
                sd = mde[gate["metric"]] * math.sqrt(gate["n"]) / z
                found[gate["metric"]] = max(sd, found.get(gate["metric"], 0.0))
    if not found:
        raise ValueError("[power] expected a comparison with judged damages, got none")
    return found


def to_dict(rows: Iterable[Planned]) -> dict[str, Any]:
    """Rows and what they assume, as JSON types."""
    return {"power": DEFAULT_POWER, "rows": [asdict(row) for row in rows]}
