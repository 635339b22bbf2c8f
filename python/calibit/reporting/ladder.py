"""What a report says of the ladder of bits: prediction sets of the original, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibit import numbers
from calibit.reporting.view import Audit


def context(audit: Audit) -> dict[str, Any]:
    """The table of the page; empty where there is no ladder."""
    found = audit.get("ladder") or {}
    if not found.get("steps"):
        return {}
    worst = next(row for row in found["steps"] if row["name"] == found["largest"])
    return {
        "wanted": numbers.percent(1.0 - found["alpha"]),
        "n": f"{numbers.count(found['n_calibration'])} items set the threshold, "
        f"{numbers.count(found['n_test'])} judge it",
        "rows": [_row(one) for one in found["steps"]],
        "largest": _largest(worst),
    }


def _largest(worst: Mapping[str, Any]) -> str:
    if not worst["loss"] > 0.0:
        return "No step loses coverage."
    lost = numbers.fixed(worst["loss"], digits=1, scale=100)
    p = numbers.p_value(worst["p"])
    return f"The largest loss is that of the step to {worst['name']}: {lost} points (p {p})."


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    share, lost = numbers.fixed(one["coverage"], digits=1, scale=100), one["loss"]
    first = lost is None
    return (
        "original" if first else str(one["name"]),
        numbers.fixed(one["bits_per_weight"], digits=2),
        f"{share} %",
        numbers.fixed(one["size"], digits=2),
        "" if first else numbers.fixed(-lost, digits=1, scale=100, signed=True),
        "" if first else numbers.p_value(one["p"]),
    )
