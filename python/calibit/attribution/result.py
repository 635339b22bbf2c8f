"""Attributed: what an attribution found, and how it is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibit import numbers
from calibit.attribution.job import SCHEMA

if TYPE_CHECKING:
    from rich.console import RenderableType

FILE, PLAN_FILE = "attribution.json", "plan.json"

_OBJECTIVES = {
    "kl": "KL from the original, nats",
    "conf_true": "loss of confidence in the right answer",
    "nll": "rise of the NLL of the right answer, nats",
}
_DIGITS = 5

POOR = 0.25
"""Share of the damage that a residual may be before the shares are called rough."""


@dataclass(frozen=True, eq=False)
class Attributed:
    """A finished attribution.

    Attributes:
        path: its folder; with a budget `plan.json` in it is accepted wherever a scheme is.
        data: the content of `attribution.json`.
    """

    path: Path
    data: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Attributed:
        """Read a finished attribution from its folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: a file of another kind.
        """
        file = Path(path) / FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"[attribute] expected the folder of a finished attribution, got {str(path)!r} "
                f"without {FILE}"
            )
        data = json.loads(file.read_text(encoding="utf-8"))
        if data.get("schema") != SCHEMA:
            raise ValueError(
                f"[attribute] expected schema {SCHEMA!r} in {file}, got {data.get('schema')!r}"
            )
        return cls(Path(path), data)

    @property
    def plan(self) -> Path | None:
        """The plan file; None without a budget."""
        return self.path / PLAN_FILE if self.data["plan"] is not None else None

    def to_dict(self) -> dict[str, Any]:
        """The content of `attribution.json`."""
        return dict(self.data)

    def table(self) -> RenderableType:
        """Units and their shares, the plan, and what it does to the items set apart."""
        from rich.console import Group

        return Group(_units(self.data), *_lines(self.data))


def _units(data: Mapping[str, Any]) -> Any:
    from rich.table import Table

    found, plan = data["attribution"], data["plan"]
    title = f"{data['scheme']}: {_OBJECTIVES[data['objective']]}, {data['n_measured']} items"
    table = Table(title=title)
    table.add_column("unit")
    for heading in ("alone", "restored", "share", "simultaneous bounds", "p"):
        table.add_column(heading, justify="right")
    if plan is not None:
        table.add_column("plan")
    for one in found["units"]:
        cells = [numbers.fixed(one[key], digits=_DIGITS) for key in ("solo", "restored", "share")]
        bounds = numbers.interval(one["lower"], one["upper"], digits=_DIGITS, signed=False)
        row = [one["name"], *cells, bounds, numbers.p_value(one["p"])]
        table.add_row(*row, *([plan["schemes"][one["name"]]] if plan is not None else []))
    return table


def _lines(data: Mapping[str, Any]) -> list[str]:
    """Total and residual; the plan; what it does to the items set apart."""
    found, plan = data["attribution"], data["plan"]
    total, residual = (numbers.fixed(found[key], digits=_DIGITS) for key in ("total", "residual"))
    lines = [
        f"Damage of the whole: {total}; the shares leave {residual}, which is due to interactions "
        "of three and more units. p and bounds hold for all units at once, each bound by itself at "
        f"{numbers.percent(found['level'])}."
    ]
    if abs(found["residual"]) > POOR * abs(found["total"]):
        lines.append(
            f"That is more than {numbers.percent(POOR)} of the damage: so far from the original "
            "the units cannot be told apart one by one, and the shares are a rough guide."
        )
    if plan is None:
        return lines
    lines.append(
        f"Plan: {numbers.plural(len(plan['steps']), 'upgrade')} in "
        f"{numbers.plural(plan['rounds'], 'measurement')}, {plan['bits_per_weight']:.3f} of "
        f"{plan['budget_bits']:.3f} bits per weight; ended because {plan['reason']}."
    )
    lines.append(f"On {data['n_final']} items set apart, against the original:")
    for name, one in data["final"].items():
        kl, nll = one["kl_ab"], one["deltas"]["nll"]
        lines.append(
            f"  {name}, {one['bits_per_weight']:.3f} bits: KL {_shown(kl, 5)}, change of the NLL "
            f"{_shown(nll, 3)}, of accuracy {_shown(one['deltas']['acc'], 1, 100)} points; "
            f"{one['flips']} flips"
        )
    return lines


def _shown(estimate: Mapping[str, Any], digits: int, scale: float = 1) -> str:
    value = numbers.fixed(estimate["value"], digits=digits, scale=scale)
    if estimate["lower"] is None:
        return value
    bounds = numbers.interval(
        estimate["lower"], estimate["upper"], digits=digits, scale=scale, signed=False
    )
    return f"{value} {bounds}"
