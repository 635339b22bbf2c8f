"""How much faster a candidate is, with an interval from the repeats of both measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibit.measures.estimate import Estimate, Interval, undefined

RATES = ("decode_tok_s", "prefill_tok_s")


def speed_changes(
    a: Mapping[str, Any] | None, b: Mapping[str, Any] | None, *, level: float = 0.95
) -> dict[str, Estimate]:
    """Ratios of the speeds of two runs, candidate over reference.

    Args:
        a, b: `speed` of the two runs, as in run.json; None where it was not measured.
        level: two-sided level of the intervals.

    Returns:
        Rate id -> ratio of geometric means with an interval; rates that either lacks are left out.
    """
    if not a or not b:
        return {}
    return {key: _ratio(key, a[key], b[key], level) for key in RATES if a.get(key) and b.get(key)}


def _ratio(key: str, a: Mapping[str, Any], b: Mapping[str, Any], level: float) -> Estimate:
    first, second = a.get("values") or (), b.get("values") or ()
    metric = f"ratio_{key}"
    if min(len(first), len(second)) < 2:
        return undefined(metric, "an interval needs at least 2 repeats of both")
    return welch_ratio(metric, first, second, level=level)


def welch_ratio(
    metric: str, a: Sequence[float], b: Sequence[float], *, level: float = 0.95
) -> Estimate:
    """Ratio of the geometric means of two independent samples, b over a, with Welch's t interval of
    the difference of their logarithms (Welch 1947).

    It holds for the repeats: what changes between the two measurements, such as other work on the
    machine, is not in it.

    Args:
        metric: metric id.
        a, b: positive values, at least two each.
        level: two-sided level.
    """
    from scipy.special import stdtrit

    logs = [np.log(np.asarray(values, dtype=np.float64)) for values in (a, b)]
    share = [float(values.var(ddof=1)) / len(values) for values in logs]
    centre, error = float(logs[1].mean() - logs[0].mean()), math.sqrt(sum(share))
    out = Estimate(metric, math.exp(centre), "ratio of geometric means", min(map(len, logs)))
    if error == 0.0:
        return out.with_interval(Interval(math.exp(centre), math.exp(centre), level, "welch"))
    parts = [part**2 / (len(values) - 1) for part, values in zip(share, logs, strict=True)]
    half = float(stdtrit(sum(share) ** 2 / sum(parts), 0.5 + level / 2)) * error
    return out.with_interval(
        Interval(math.exp(centre - half), math.exp(centre + half), level, "welch")
    )
