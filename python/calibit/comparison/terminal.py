"""The main numbers of a comparison as a terminal table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from calibit.measures.estimate import Estimate

if TYPE_CHECKING:
    from rich.table import Table

    from calibit.comparison.result import Comparison

_ROWS = (
    # metric, words, factor, decimals, unit
    ("acc", "accuracy", 100.0, 1, "%"),
    ("conf_true", "confidence in the right answer", 100.0, 2, "%"),
    ("conf", "confidence", 100.0, 2, "%"),
    ("ece", "calibration error (ECE)", 100.0, 2, "%"),
    ("nll", "NLL of the right answer, nats", 1.0, 4, ""),
    ("brier", "Brier score", 1.0, 4, ""),
    ("entropy", "entropy, nats", 1.0, 4, ""),
    ("auroc", "AUROC of the confidence", 1.0, 4, ""),
)


def comparison_table(comparison: Comparison) -> Table:
    """One row per metric: reference, candidate, change, interval of the change."""
    from rich.table import Table

    level = comparison.protocol["level"]
    names = [str(comparison.models[side]["name"]) for side in ("a", "b")]
    table = Table(title=f"{names[1]} against {names[0]}, {comparison.protocol['n']} items")
    table.add_column("metric")
    for heading in (*names, "change", f"{level:.0%} interval"):
        table.add_column(heading, justify="right")
    for metric, words, factor, digits, unit in _ROWS:
        values = [
            _shown(side[metric], factor, digits, unit) for side in (comparison.a, comparison.b)
        ]
        change = comparison.deltas[metric]
        table.add_row(words, *values, *_change(change, factor, digits))
    for text in comparison.texts:
        shown = [_shown(side, 1.0, 3, "") for side in (text.a, text.b)]
        ratio = text.ratio
        factors = ["n/a", ""] if ratio.value is None else [f"x{ratio.value:.4f}", _interval(ratio)]
        table.add_row(f"perplexity, {text.name}", *shown, *factors)
    _add_pair_rows(table, comparison)
    _add_written_rows(table, comparison)
    return table


def _add_pair_rows(table: Table, comparison: Comparison) -> None:
    table.add_section()
    flips = comparison.flips
    if flips.flips is not None:
        moved = f"{flips.rw} right to wrong, {flips.wr} wrong to right"
        table.add_row("flips", "", moved, str(flips.flips), _interval(flips.flip_rate, 100.0, 1))
    if comparison.mcnemar is not None:
        table.add_row("McNemar, exact p", "", "", f"{comparison.mcnemar.p:.4f}", "")
    table.add_row(
        "KL(a to b), nats", "", "", f"{comparison.kl_ab:.5f}", _interval(comparison.kl_ab)
    )
    distance = comparison.js_distance
    table.add_row("Jensen-Shannon distance", "", "", f"{distance:.5f}", _interval(distance))
    worst = comparison.worst_slice
    if worst and worst["slice"]:
        label = "largest loss shown in a slice, confidence in the right answer"
        table.add_row(label, "", *_worst(worst))


def _add_written_rows(table: Table, comparison: Comparison) -> None:
    """Answers in free text, the workload, languages."""
    found, texts = comparison.workload, comparison.parallel
    if comparison.generated or found is not None or texts:
        table.add_section()
    for task in comparison.generated:
        shown = [_shown(side, 100.0, 1, "%") for side in (task.a, task.b)]
        table.add_row(f"right answers, {task.task}", *shown, *_change(task.d_acc, 100.0, 1))
    if found is not None:
        for words, one, factor, digits in (
            ("token KL on the workload, nats", found.kl, 1.0, 5),
            ("same most probable token, %", found.same_top, 100.0, 1),
            ("greedy prefix, %", found.greedy_prefix, 100.0, 1),
        ):
            value = "n/a" if one.value is None else f"{factor * one.value:.{digits}f}"
            table.add_row(words, "", "", value, _interval(one, factor, digits))
    for text in texts:
        label, worst = f"largest rise of perplexity shown, {text.name}", text.worst
        if not worst["shown"]:
            table.add_row(label, "", "", "none shown", "")
            continue
        rise = f"x{worst['ratio']['value']:.4f}"
        table.add_row(label, "", worst["lang"], rise, _interval_of(worst["ratio"]))


def _interval_of(bounds: Mapping[str, float | None]) -> str:
    if bounds.get("lower") is None or bounds.get("upper") is None:
        return ""
    return f"[{bounds['lower']:.4f}, {bounds['upper']:.4f}]"


def _worst(worst: Mapping[str, Any]) -> list[str]:
    """Slice, change and bounds; damage becomes change, so the signs turn."""
    if not worst["lower"] > 0:
        return ["none shown", "", ""]
    bounds = f"[{-100 * worst['upper']:+.2f}, {-100 * worst['lower']:+.2f}]"
    return [f"{worst['slice']} (n {worst['n']})", f"{-100 * worst['damage']:+.2f}", bounds]


def _shown(estimate: Estimate, factor: float, digits: int, unit: str) -> str:
    if estimate.value is None:
        return "n/a"
    return f"{factor * estimate.value:.{digits}f}" + (f" {unit}" if unit else "")


def _change(estimate: Estimate, factor: float, digits: int) -> list[str]:
    if estimate.value is None:
        return ["n/a", ""]
    return [f"{factor * estimate.value:+.{digits}f}", _interval(estimate, factor, digits, "+")]


def _interval(estimate: Estimate, factor: float = 1.0, digits: int = 4, sign: str = "") -> str:
    if estimate.lower is None or estimate.upper is None:
        return ""
    low, high = (f"{factor * end:{sign}.{digits}f}" for end in (estimate.lower, estimate.upper))
    return f"[{low}, {high}]"
