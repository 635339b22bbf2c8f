"""What a report says of builds with other calibration draws: effect, luck of the draw, items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from calibit import numbers
from calibit.reporting.controls import CLAIMS
from calibit.reporting.view import Candidate

_WORDS = {**CLAIMS, "text_nll": ("NLL of the text", "nats", 1, 4)}


def tables(measured: Sequence[Candidate]) -> list[dict[str, Any]]:
    """A table for each candidate that was built more than once."""
    return [_table(str(one["scheme"]), one["draws"]) for one in measured if one.get("draws")]


def lines(measured: Sequence[Candidate]) -> list[str]:
    """The same for a terminal, a sentence for each candidate."""
    found = []
    for table in tables(measured):
        parts = [
            f"{row['label']}, {row['unit']}: {row['mean']} {row['bounds']}, sd of draws "
            f"{row['rest'][0]}"
            for row in table["rows"]
        ]
        found.append(
            f"{table['name']}, change over {table['k']} calibration draws [interval of the "
            f"scheme]: {'; '.join(parts)}. ECE {table['ece']}."
        )
    return found


def _table(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    rows = [_row(metric, one) for metric, one in found["changes"].items()]
    return {"name": name, "k": found["k"], "rows": rows, "ece": _ece(found["ece"])}


def words(metric: str) -> str:
    """What a metric of `calibit.comparison.Draws` is called."""
    return _WORDS[metric][0]


def _row(metric: str, one: Mapping[str, Any]) -> dict[str, Any]:
    label, unit, scale, digits = _WORDS[metric]

    def shown(value: float, *, signed: bool = True) -> str:
        return numbers.fixed(value, digits=digits, scale=scale, signed=signed)

    recipe = one["recipe"]
    bounds = numbers.interval(recipe["lower"], recipe["upper"], digits=digits, scale=scale)
    p = one["p"] if one["p_permutation"] is None else one["p_permutation"]
    return {
        "label": label,
        "unit": unit,
        "builds": " ".join(map(shown, one["builds"])),
        "mean": shown(one["mean"]),
        "bounds": bounds,
        "rest": (
            shown(math.sqrt(one["var_draw"]), signed=False),
            shown(one["se_build"], signed=False),
            numbers.p_value(p),
            "below the draws" if one["effect_below_draw"] else "above the draws",
        ),
    }


def _ece(found: Mapping[str, Any] | None) -> str:
    """ECE of the builds, their spread and what the items alone would cause."""
    if found is None:
        return numbers.MISSING
    values = " ".join(numbers.fixed(value, digits=2, scale=100) for value in found["values"])
    sd, items = (numbers.fixed(found[key], digits=2, scale=100) for key in ("sd", "sd_items"))
    return f"{values} %, sd {sd} points, of which the items alone would cause {items}"
