"""Token-level fidelity on the user's prompts, in the order of llama.cpp's `perplexity` tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from calibit import numbers
from calibit.numbers import Style
from calibit.reporting.view import Candidate

Line = tuple[str, ...]

_KL, _POINTS, _PLAIN = Style(6, small=True), Style(3, 100, signed=True), Style(4)
_POINTS_OF = {
    "max": "maximum",
    "p99.9": "99.9 %",
    "p99": "99 %",
    "p95": "95 %",
    "p90": "90 %",
    "p75": "75 %",
    "median": "median",
    "p25": "25 %",
    "p10": "10 %",
    "p5": "5 %",
    "p1": "1 %",
    "p0.1": "0.1 %",
    "min": "minimum",
}


def table(measured: Sequence[Candidate]) -> list[Line]:
    """(what, value of each candidate); empty where no candidate has token divergences."""
    found = [(one["comparison"].get("workload") or {}).get("fidelity") or {} for one in measured]
    if not any(found):
        return []
    columns = [_lines(one) for one in found]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [(name, *(column.get(name, numbers.MISSING) for column in columns)) for name in names]


def _lines(found: Mapping[str, Any]) -> dict[str, str]:
    if not found:
        return {}
    ppl, top = found["perplexity"], found.get("same_top") or {}
    return {
        "mean PPL(quantized)": _with_error(ppl["ppl"], ppl["ppl_se"], _PLAIN),
        "mean PPL(original)": _with_error(ppl["ppl_base"], ppl["ppl_base_se"], _PLAIN),
        "correlation of the ln PPL": _PLAIN.value(ppl["correlation"]),
        "mean ln(PPL(quantized)/PPL(original))": _with_error(
            ppl["log_ratio"], ppl["log_ratio_se"], Style(6, small=True)
        ),
        "PPL ratio": _with_error(ppl["ratio"], ppl["ratio_se"], _PLAIN),
        "PPL difference": _PLAIN.value(ppl["difference"]),
        **_distribution("KL, nats", found["kl"], _KL),
        **_distribution("change of p, points", found["delta_p"], _POINTS),
        "change of p, points: root mean square": _with_error(
            found["delta_p"]["rms"], found["delta_p"]["rms_se"], Style(3, 100)
        ),
        "same top token, %": _with_error(top.get("share"), top.get("se"), Style(3, 100)),
        **_buckets(found["kl_by_top_probability"]),
        **_by_entropy(found.get("kl_by_entropy")),
    }


def _distribution(name: str, found: Mapping[str, Any], style: Style) -> dict[str, str]:
    lines = {f"{name}: mean": _with_error(found["mean"], found["mean_se"], style)}
    points = {key: words for key, words in _POINTS_OF.items() if key in found}
    return lines | {f"{name}: {words}": style.value(found[key]) for key, words in points.items()}


def _buckets(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Mean KL where the original's largest probability lies in a range."""
    return {
        f"KL where its top probability is {row['lo']:g} to {row['hi']:g}": (
            f"{_KL.value(row['kl'])} ({numbers.plural(row['n'], 'token')})"
        )
        for row in rows
    }


def _by_entropy(found: Mapping[str, Any] | None) -> dict[str, str]:
    if not found or found["share"]["value"] is None:
        return {}
    share, style = found["share"], Style(1, 100)
    even = style.value(share["extra"]["null"])
    bounds = style.interval(share["lower"], share["upper"])
    return {
        f"share of the KL at the least sure fifth, % (evenly {even})": (
            f"{style.value(share['value'])} {bounds}".rstrip()
        ),
        "rank correlation of KL and entropy": _PLAIN.value(found["spearman"]["value"]),
    }


def _with_error(value: float | None, error: float | None, style: Style) -> str:
    if value is None or error is None:
        return style.value(value)
    return f"{style.value(value)} \u00b1 {replace(style, signed=False).value(error)}"
