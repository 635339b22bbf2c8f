"""What a report says of grid and rounding: the 2 x 2 designs of an audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibit import numbers
from calibit.reporting.controls import CLAIMS
from calibit.reporting.view import Audit

_CELLS = {
    "uniform_nearest": "uniform, nearest",
    "uniform_solved": "uniform, GPTQ",
    "codebook_nearest": "codebook, nearest",
    "codebook_solved": "codebook, GPTQ",
}
_EFFECTS = {
    "grid": "codebook in place of uniform",
    "rounding": "GPTQ in place of nearest",
    "interaction": "interaction",
}
_DAMAGES = {
    "conf_true": "loss of confidence in the right answer",
    "nll": "rise of the NLL of the right answer",
    "acc": "loss of accuracy",
}


def tables(audit: Audit) -> list[dict[str, Any]]:
    """A table for each design: a row a damage, the cells' means, then the effects."""
    return [_table(one) for one in audit.get("ablations") or ()]


def lines(audit: Audit) -> list[str]:
    """The same for a terminal, a sentence for each damage."""
    found = []
    for table in tables(audit):
        names = f"{table['cells'][0][1]} against {table['cells'][2][1]}, nearest against GPTQ"
        for row in table["rows"]:
            effects = "; ".join(
                f"{head} {value} {bounds}, {p}"
                for head, (value, bounds, p) in zip(table["heads"], row["effects"], strict=True)
            )
            found.append(f"{names}: {row['damage']}, {row['unit']}: {effects}.")
    return found


def _table(design: Mapping[str, Any]) -> dict[str, Any]:
    k = next(iter(design["damages"].values()))["k"]
    return {
        "cells": [(_CELLS[cell], name) for cell, name in design["cells"].items()],
        "heads": list(_EFFECTS.values()),
        "rows": [_row(metric, one) for metric, one in design["damages"].items()],
        "n": numbers.count(design["n"]),
        "draws": k if k > 1 else 0,
    }


def _row(metric: str, found: Mapping[str, Any]) -> dict[str, Any]:
    _, unit, scale, digits = CLAIMS[metric]
    cells = [
        numbers.fixed(found["cells"][cell], digits=digits, scale=scale, signed=True)
        for cell in _CELLS
    ]
    effects = [_effect(found["effects"][name], digits, scale) for name in _EFFECTS]
    return {"damage": _DAMAGES[metric], "unit": unit, "cells": cells, "effects": effects}


def _effect(one: Mapping[str, Any], digits: int, scale: float) -> tuple[str, str, str]:
    """Value, interval and p."""
    value = one["value"]
    shown = numbers.fixed(value["value"], digits=digits, scale=scale, signed=True)
    bounds = numbers.interval(value["lower"], value["upper"], digits=digits, scale=scale)
    p = numbers.p_value(one["p"] if one["p_draws"] is None else one["p_draws"])
    return shown, bounds, f"p {p}"
