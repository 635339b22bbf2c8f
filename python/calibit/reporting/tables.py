"""The tables of the page beside the main one: gates, slices, flips, memory and speed, layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calibit import numbers
from calibit.reporting import figures, view, wording
from calibit.reporting.panels import trusted
from calibit.reporting.view import Audit, Candidate

BAR = 110
"""Pixels of the longest bar of the speed table."""

MOST_LAYERS = 12
"""Rows of a table of layers; all are in audit.json."""

_STATE_TONES = {"pass": "ship", "fail": "hold", "open": "inconclusive", "unjudged": ""}

_MOST_MARGINS = 10
"""Damage up to this many margins is drawn to scale; beyond it, at the edge with an arrow."""

_SLICE_VIEWS = (
    # entry of a slice, search it belongs to, title, decimals
    ("d_conf_true", "conf_true", "Change of the confidence in the right answer, points", 1),
    ("d_acc", "acc", "Change of the accuracy, points", 1),
)

_SLICE_CAPTION = (
    "Left of the line is loss. The intervals hold for one slice at a time: of 20 that are printed, "
    "about one misses its true value. So a change is coloured only where it is shown with bounds "
    "that allow for having searched all slices (those with at least 30 items, for "
    "accuracy 10); the largest loss shown so is marked. Shrunken is the change "
    "drawn towards the mean of the slices of its key, the more the fewer its items (DerSimonian "
    "and Laird): what to expect of the slice on new items."
)


def gates(measured: Sequence[Candidate]) -> list[dict[str, Any]]:
    """One row a gate; the scale of a row spans its intervals, at least to the margin."""
    names = dict.fromkeys(gate["metric"] for one in measured for gate in one["verdict"]["gates"])
    return [_gate_row([_gate_of(one, name) for one in measured]) for name in names]


def _gate_of(one: Candidate, metric: str) -> Mapping[str, Any] | None:
    return next((gate for gate in one["verdict"]["gates"] if gate["metric"] == metric), None)


def _gate_row(row: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    known = [gate for gate in row if gate is not None]
    low, high = _gate_scale(known)
    return {
        "label": wording.gate_words(known[0])[0],
        "margin": wording.gate_margin(known[0]),
        "cells": [_gate_cell(gate, low, high) for gate in row],
    }


def _gate_scale(known: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Ends of a row's scale: every damage within reason, and the margin, lie inside."""
    margin = known[0]["margin"]
    bounds = [gate[end] for gate in known for end in ("lower", "upper") if gate[end] is not None]
    reach = max([margin, *map(abs, bounds)])
    damages = [min(max(gate["damage"], -margin), _MOST_MARGINS * margin) for gate in known]
    low = min(-min(reach, 1.2 * margin), 1.15 * min(damages))
    return low, max(1.2 * margin, min(1.08 * reach, 4 * margin), 1.15 * max(damages))


def _gate_cell(gate: Mapping[str, Any] | None, low: float, high: float) -> dict[str, Any]:
    if gate is None:
        return {"plot": "", "text": numbers.MISSING, "about": "", "state": "not judged"}
    plot = figures.interval_cell(
        _ends(gate, "damage"),
        low=low,
        high=high,
        margin=gate["margin"],
        tone=_STATE_TONES[gate["state"]],
    )
    damage = wording.gate_style(gate).value(gate["damage"])
    state = wording.GATE_STATES[gate["state"]]
    need = wording.gate_need(gate)
    where = wording.gate_slice(gate)
    bounds, special = wording.gate_bounds(gate)
    about = [special, f"in {where}" if where else ""]
    return {
        "plot": trusted(plot),
        "text": f"{damage} {bounds}".rstrip(),
        "about": ", ".join(filter(None, about)),
        "state": f"{state}: {need}" if need else state,
    }


def _ends(estimate: Mapping[str, Any], value: str) -> tuple[float, float, float] | None:
    if estimate["lower"] is None or estimate["upper"] is None:
        return None
    return estimate["lower"], estimate[value], estimate["upper"]


def slices(measured: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Per slice and candidate the change with its interval: first confidence, then accuracy."""
    found = [{row["name"]: row for row in one["comparison"]["slices"]} for one in measured]
    names = list(dict.fromkeys(name for table in found for name in table))
    if not names:
        return []
    result = []
    for entry, search, title, digits in _SLICE_VIEWS:
        searched = [one["comparison"]["worst_slices"].get(search) or {} for one in measured]
        rows = _slice_rows(found, names, searched, entry, digits)
        result.append({"title": title, "caption": _SLICE_CAPTION, "rows": rows})
    return result


def _slice_rows(
    found: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    searched: Sequence[Mapping[str, Any]],
    entry: str,
    digits: int,
) -> list[dict[str, Any]]:
    ends = [0.0]
    ends += [row[entry][end] or 0.0 for t in found for row in t.values() for end in _BOUNDS]
    low, high = 1.05 * min(ends), 1.05 * max(ends)
    rows, group = [], None
    for name in names:
        some = next(table[name] for table in found if name in table)
        cells = [
            _slice_cell(table.get(name), entry, low, high, digits, _shown(name, search))
            | {"shrunken": _shrunken(some, search, digits)}
            for table, search in zip(found, searched, strict=True)
        ]
        head = some["key"] if some["key"] != group else ""
        group = some["key"]
        count = numbers.count(some["n"])
        rows.append({"group": head, "label": some["value"], "n": count, "cells": cells})
    return rows


def _shown(name: str, search: Mapping[str, Any]) -> tuple[str, bool]:
    """What the bounds for all slices at once show of one: its tone, and whether it is the
    headline."""
    rows = search.get("slices") or ()
    one = next((row for row in rows if name in (row["name"], *row.get("also", ()))), None)
    tone = view.tone(one, -1)
    return tone, tone == "worse" and one is not None and search["slice"] == one["name"]


def _shrunken(row: Mapping[str, Any], search: Mapping[str, Any], digits: int) -> str:
    """Change of a slice drawn towards the mean of its key; empty where there is none."""
    family = (search.get("shrunken") or {}).get(row["key"]) or {}
    damage = (family.get("slices") or {}).get(row["name"])
    if damage is None:
        return ""
    return f"shrunken {numbers.fixed(-damage, digits=digits, scale=100, signed=True)}"


_BOUNDS = ("lower", "upper")


def _slice_cell(
    row: Mapping[str, Any] | None,
    entry: str,
    low: float,
    high: float,
    digits: int,
    shown: tuple[str, bool],
) -> dict[str, Any]:
    if row is None or row[entry]["value"] is None:
        return {"plot": "", "text": numbers.MISSING, "tone": "", "worst": False}
    estimate, (shade, worst) = row[entry], shown
    tone = {"worse": "hold", "better": "ship"}.get(shade, "")
    plot = figures.interval_cell(_ends(estimate, "value"), low=low, high=high, tone=tone)
    text = numbers.fixed(estimate["value"], digits=digits, scale=100, signed=True)
    bounds = numbers.interval(estimate["lower"], estimate["upper"], digits=digits, scale=100)
    return {"plot": trusted(plot), "text": f"{text} {bounds}", "tone": shade, "worst": worst}


def worst_slices(measured: Sequence[Candidate]) -> list[tuple[str, str]]:
    """Per candidate the largest loss of confidence shown in a slice, with bounds that hold for
    all."""
    said = []
    for one in measured:
        worst = one["comparison"].get("worst_slice")
        if worst and worst.get("slice"):
            said.append((str(one["scheme"]), _worst_slice(worst)))
    return said


def _worst_slice(worst: Mapping[str, Any]) -> str:
    searched = f"{numbers.plural(worst['searched'], 'slice')} searched"
    if not worst["lower"] > 0:
        most = numbers.fixed(worst["largest_upper"], digits=2, scale=100)
        risk = wording.slice_words(worst["riskiest"])
        may = f"{risk} may have lost up to {most} points"
        return f"no slice is shown to be damaged; {may} ({searched})"
    low, mid, high = (-worst[key] for key in ("upper", "damage", "lower"))
    change = numbers.fixed(mid, digits=2, scale=100, signed=True)
    bounds = numbers.interval(low, high, digits=2, scale=100)
    items = numbers.plural(worst["n"], "item")
    name = wording.slice_words(worst["slice"])
    return f"{name}: {change} points {bounds} ({items}; {searched})"


def flips(measured: Sequence[Candidate]) -> list[dict[str, Any]]:
    """How answers changed, with McNemar's exact test."""
    table = []
    for one in measured:
        cells, test = one["comparison"]["flips"], one["comparison"]["mcnemar"]
        if cells["flips"] is None:
            continue
        rate = cells["flip_rate"]
        table.append(
            {
                "name": one["scheme"],
                "counts": [numbers.count(cells[key]) for key in ("rr", "rw", "wr", "ww", "flips")],
                "share": f"{numbers.fixed(rate['value'], digits=1, scale=100)} %",
                "range": numbers.interval(
                    rate["lower"], rate["upper"], digits=1, scale=100, signed=False
                ),
                "all": numbers.count(cells["all_flips"]),
                "p": numbers.p_value(test["p"] if test else None),
            }
        )
    return table


def speed(audit: Audit, measured: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Memory and speed with bars, the original first."""
    everyone = [audit["baseline"], *measured]
    if not any(one["footprint"] for one in everyone):
        return []
    columns = [
        [_weight_memory(one) for one in everyone],
        [_rate(audit["baseline"], one, "decode_tok_s") for one in everyone],
        [_rate(audit["baseline"], one, "prefill_tok_s") for one in everyone],
    ]
    longest = [max((value or 0) for value, _, _ in column) or 1 for column in columns]
    table = []
    for place, one in enumerate(everyone):
        bars = [
            {"text": text, "range": span, "width": round(BAR * (value or 0) / most)}
            for (value, text, span), most in zip((c[place] for c in columns), longest, strict=True)
        ]
        table.append(
            {
                "name": one["scheme"] if place else "original",
                "style": "" if place else "base",
                "bars": bars,
                "peak": numbers.size(one["footprint"].get("peak_rss")),
                "kernels": (one.get("speed") or {}).get("kernels", numbers.MISSING),
            }
        )
    return table


def _weight_memory(one: Candidate) -> tuple[float | None, str, str]:
    stored = one["footprint"].get("bytes_model")
    return stored, numbers.size(stored), ""


def _rate(base: Candidate, one: Candidate, key: str) -> tuple[float | None, str, str]:
    """Rate, its print, and below it how many times the baseline's it is (or its quartiles)."""
    rate = (one.get("speed") or {}).get(key)
    if not rate:
        return None, numbers.MISSING, ""
    low, high = numbers.significant(rate["lower"]), numbers.significant(rate["upper"])
    below = f"{low}{numbers.MISSING}{high}"
    if one is not base:
        below = " ".join(filter(None, view.speed_change(base, one, key))) + f"; {below}"
    return rate["value"], numbers.significant(rate["value"]), below


_LAYER_HEADS = (
    "layer",
    "shape",
    "scheme",
    "bits per weight",
    "relative error",
    "output error against nearest",
)


def modules(measured: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Per candidate the layers with the largest error of their weights."""
    parts = []
    for one in measured:
        rows = one.get("modules") or []
        if not rows:
            continue
        shown = sorted(rows, key=lambda row: -(row.get("error") or 0))[:MOST_LAYERS]
        noted = sum(bool(row.get("notes")) for row in rows)
        seconds = (one.get("quantization") or {}).get("seconds")
        text = f"{numbers.plural(len(rows), 'layer')} quantized in {numbers.duration(seconds)}"
        text += f", {noted} of them with notes" if noted else ""
        text += (
            f". Below, the {len(shown)} with the largest relative error of the weights; all are in "
            "audit.json."
        )
        parts.append(
            {
                "name": one["scheme"],
                "text": text,
                "heads": _LAYER_HEADS,
                "rows": [_layer(row) for row in shown],
            }
        )
    return parts


def _layer(row: Mapping[str, Any]) -> tuple[str, ...]:
    ratio = row.get("loss_ratio")
    return (
        str(row["name"]),
        " \u00d7 ".join(map(str, row["shape"])),
        str(row["scheme"]),
        numbers.fixed(row.get("bits_per_weight"), digits=3),
        numbers.fixed(row.get("error"), digits=4),
        numbers.MISSING if ratio is None else numbers.ratio(ratio),
    )
