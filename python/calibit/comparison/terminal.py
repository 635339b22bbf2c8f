"""The main numbers of a comparison as a terminal table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from calibit import numbers
from calibit.measures.estimate import Estimate
from calibit.numbers import Style

if TYPE_CHECKING:
    from rich.table import Table

    from calibit.comparison.result import Comparison

_SHARE, _SHARE_2, _VALUE = Style(1, 100), Style(2, 100), Style(4)
_DIVERGENCE = Style(5, small=True)
_REPETITION = {"seq_rep_4": "repeated 4-grams", "loop_rate": "answers that end in a loop"}

_ROWS = (
    # metric, words, style, unit
    ("acc", "accuracy", _SHARE, "%"),
    ("conf_true", "confidence in the right answer", _SHARE_2, "%"),
    ("conf", "confidence", _SHARE_2, "%"),
    ("ece", "calibration error (ECE)", _SHARE_2, "%"),
    ("nll", "NLL of the right answer, nats", _VALUE, ""),
    ("brier", "Brier score", _VALUE, ""),
    ("entropy", "entropy, nats", _VALUE, ""),
    ("auroc", "AUROC of the confidence", _VALUE, ""),
)


def comparison_table(comparison: Comparison) -> Table:
    """One row per metric: reference, candidate, change, interval of the change."""
    from rich.table import Table

    level = numbers.percent(comparison.protocol["level"]).replace(" ", "")
    a, b = (comparison.models[side] for side in ("a", "b"))
    items = numbers.plural(comparison.protocol["n"], "item")
    table = Table(title=f"{b['title']} against {a['title']}, {items}")
    table.add_column("metric")
    for heading in (str(a["name"]), str(b["name"]), "change", f"{level} interval"):
        table.add_column(heading, justify="right")
    for metric, words, style, unit in _ROWS:
        values = [_shown(side[metric], style, unit) for side in (comparison.a, comparison.b)]
        table.add_row(words, *values, *_change(comparison.deltas[metric], style))
        if metric == "ece":
            by_chance = [_by_chance(side.get("ece_null")) for side in (comparison.a, comparison.b)]
            if any(by_chance):
                table.add_row("  by chance alone, up to", *by_chance, "", "")
    for text in comparison.texts:
        shown = [_shown(side, Style(3)) for side in (text.a, text.b)]
        ratio = text.ratio
        factor = "n/a" if ratio.value is None else _factor(ratio.value)
        table.add_row(f"perplexity, {text.name}", *shown, factor, _interval(ratio, _VALUE))
    _add_pair_rows(table, comparison)
    _add_written_rows(table, comparison)
    return table


def _by_chance(null: Estimate | None) -> str:
    """The ECE that a calibrated model stays below 19 times in 20; empty where none was drawn."""
    p95 = None if null is None else null.extra.get("p95")
    return "" if p95 is None else f"{numbers.ascii_(_SHARE_2.value(float(p95)))} %"


def _add_pair_rows(table: Table, comparison: Comparison) -> None:
    table.add_section()
    flips = comparison.flips
    if flips.flips is not None:
        moved = f"{flips.rw} right to wrong, {flips.wr} wrong to right"
        table.add_row("flips", "", moved, str(flips.flips), _interval(flips.flip_rate, _SHARE))
    if comparison.mcnemar is not None:
        table.add_row("McNemar, exact p", "", "", numbers.fixed(comparison.mcnemar.p, digits=4), "")
    for words, one in (
        ("KL(a to b), nats", comparison.kl_ab),
        ("Jensen-Shannon distance", comparison.js_distance),
    ):
        table.add_row(words, "", "", _shown(one, _DIVERGENCE), _interval(one, _DIVERGENCE))
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
        shown = [_shown(side, _SHARE, "%") for side in (task.a, task.b)]
        table.add_row(f"right answers, {task.task}", *shown, *_change(task.d_acc, _SHARE))
        for metric, words in _REPETITION.items():
            if row := task.repetition.get(metric):
                sides = [f"{numbers.fixed(row[side], scale=100)} %" for side in ("a", "b")]
                label = f"{words}, {task.task}"
                table.add_row(label, *sides, *_change(row["change"], _SHARE))
    if found is not None:
        for words, one, style in (
            ("token KL on the workload, nats", found.kl, _DIVERGENCE),
            ("same most probable token, %", found.same_top, _SHARE),
            ("greedy prefix, %", found.greedy_prefix, _SHARE),
        ):
            table.add_row(words, "", "", _shown(one, style), _interval(one, style))
    for text in texts:
        label, worst = f"largest rise of perplexity shown, {text.name}", text.worst
        if not worst["shown"]:
            table.add_row(label, "", "", "none shown", "")
            continue
        ratio = worst["ratio"]
        bounds = numbers.ascii_(_VALUE.interval(ratio.get("lower"), ratio.get("upper")))
        table.add_row(label, "", worst["lang"], _factor(ratio["value"]), bounds)


def _factor(ratio: float) -> str:
    return f"x{numbers.fixed(ratio, digits=4)}"


def _worst(worst: Mapping[str, Any]) -> list[str]:
    """Slice, change and bounds; damage becomes change, so the signs turn."""
    if not worst["lower"] > 0:
        return ["none shown", "", ""]
    low, change, high = (-worst[key] for key in ("upper", "damage", "lower"))
    style = replace(_SHARE_2, signed=True)
    shown = (style.value(change), style.interval(low, high))
    return [f"{worst['slice']} (n {worst['n']})", *map(numbers.ascii_, shown)]


def _shown(estimate: Estimate, style: Style, unit: str = "") -> str:
    shown = numbers.ascii_(style.value(estimate.value))
    return f"{shown} {unit}" if unit and estimate.value is not None else shown


def _change(estimate: Estimate, style: Style) -> list[str]:
    signed = replace(style, signed=True)
    return [_shown(estimate, signed), _interval(estimate, signed)]


def _interval(estimate: Estimate, style: Style) -> str:
    return (
        ""
        if estimate.value is None
        else numbers.ascii_(style.interval(estimate.lower, estimate.upper))
    )
