"""A plan in the terminal: what the items can show before anything is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

from calibit import numbers
from calibit.reporting.wording import amount, gate_words


def plan_table(plan: Mapping[str, Any]) -> Group:
    """Rows of a plan, and what they rest on.

    Args:
        plan: `calibit.auditing.planning.Plan.to_dict()`.
    """
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for title in ("task", "damage", "items", "margin", "spread", "shows (80 %)", "power", "needed"):
        table.add_column(title, justify="left" if title in ("task", "damage") else "right")
    for row in plan["rows"]:
        metric = row["metric"]
        table.add_row(
            row["task"],
            gate_words({"metric": metric})[0],
            numbers.count(row["n"]),
            amount(metric, row["margin"], bare=True),
            _spread(row),
            amount(metric, row["mde"], bare=True),
            f"{numbers.fixed(row['power'], digits=0, scale=100)} %",
            numbers.count(row["needed"]),
        )
    return Group(table, "", *_notes(plan))


def _spread(row: Mapping[str, Any]) -> str:
    if row["metric"] in ("acc", "gen_acc"):
        return f"{numbers.fixed(row['sd'] ** 2, digits=1, scale=100)} % flips"
    return f"sd {numbers.fixed(row['sd'], digits=3)}"


def _notes(plan: Mapping[str, Any]) -> list[str]:
    if not plan["rows"]:
        return ["No gate of the policy is a mean over these items: nothing to plan."]
    source = plan["source"]
    said = [
        "shows: smallest damage that is detected in 80 % of runs. power: how often a candidate "
        "without damage is shown to stay below the margin. needed: items for which that is 80 %. "
        "A verdict judges all items at once."
    ]
    if any(row["assumed"] for row in plan["rows"]):
        rest = "" if source is None else " where that has none"
        said.append(f"Spreads are assumed{rest}; --earlier AUDIT takes them from your own.")
    if source is not None:
        said.append(f"Spreads from {source}.")
    return said
