"""The figures of the page, one panel a candidate, with their captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from calibit import numbers
from calibit.reporting import figures, view, wording
from calibit.reporting.view import Audit, Candidate, Points

if TYPE_CHECKING:
    from markupsafe import Markup

_MEMORY = "weight memory, MB"

Panel = dict[str, Any]
"""name, plot and caption."""


def trusted(drawing: str) -> Markup:
    """Markup made by `calibit.reporting.svg`, which escapes its texts."""
    from markupsafe import Markup

    return Markup(drawing)


def trade_off(audit: Audit) -> list[Markup]:
    """Weight memory against the change of perplexity; without a text, against the divergence.

    Returns:
        The drawing for wide and for narrow screens; nothing where there is nothing to draw.
    """
    measured = view.succeeded(audit)
    first = audit["baseline"]["footprint"].get("bytes_model")
    marks = [mark for mark in map(_mark, measured) if mark is not None]
    if not first or not marks:
        return []
    origin = {"name": "original", "x": first / 1e6, "y": 0.0, "lower": 0.0, "upper": 0.0}
    text = audit["protocol"].get("text")
    label = f"change of perplexity of {text['name']}, %" if text else "KL from original, nats"
    points = [*marks, {**origin, "verdict": ""}]
    return [
        trusted(figures.trade_off(points, x_label=_MEMORY, y_label=label, narrow=narrow))
        for narrow in (False, True)
    ]


def _mark(one: Candidate) -> dict[str, Any] | None:
    texts, size = one["comparison"]["texts"], one["footprint"].get("bytes_model")
    found = texts[0]["ratio"] if texts else one["comparison"]["kl_ab"]
    if not size or found.get("value") is None or found.get("lower") is None:
        return None
    shift, scale = (1, 100) if texts else (0, 1)
    value, low, high = (scale * (found[key] - shift) for key in ("value", "lower", "upper"))
    ends = {"y": value, "lower": low, "upper": high}
    return {"name": one["scheme"], "x": size / 1e6, **ends, "verdict": view.verdict(one)}


def reliability(measured: Sequence[Candidate]) -> list[Panel]:
    """Reliability diagrams."""
    found: list[Panel] = []
    for one in measured:
        comparison = one["comparison"]
        base, own = comparison["reliability_a"], comparison["reliability_b"]
        if not any(row["n"] for row in own):
            continue
        name, ece = str(one["scheme"]), one["metrics"]["ece"]["value"]
        shown = f"{numbers.fixed(ece, digits=1, scale=100)} %"
        caption = (
            f"ECE {shown}, {_change(comparison['deltas']['ece'])} against the original."
            f"{_chance(one)}"
        )
        if comparison["models"]["b"].get("at_chance"):
            caption += f" {wording.AT_CHANCE}"
        plot = figures.reliability(base, own, name=name, ece=shown)
        found.append({"name": name, "plot": trusted(plot), "caption": caption})
    return found


def _change(delta: Mapping[str, Any]) -> str:
    """A difference of shares, "−0.60 points [−1.10, −0.13]"."""
    change = numbers.fixed(delta["value"], digits=2, scale=100, signed=True)
    bounds = numbers.interval(delta["lower"], delta["upper"], digits=2, scale=100)
    return f"{change} points {bounds}".rstrip()


def _chance(one: Candidate) -> str:
    null = one["metrics"].get("ece_null") or {}
    p95 = (null.get("extra") or {}).get("p95")
    if p95 is None:
        return ""
    most = numbers.fixed(p95, digits=1, scale=100)
    return f" By chance alone a calibrated model would show up to {most} %."


def before_after(measured: Sequence[Candidate], points: Points) -> list[Panel]:
    """Probability of the right answer before against after."""
    found: list[Panel] = []
    for one in measured:
        own = points.get(one["scheme"])
        if own is None or not len(own["conf_true_a"]):
            continue
        name, flips = str(one["scheme"]), one["comparison"]["flips"]
        plot = figures.before_after(
            own["conf_true_a"], own["conf_true_b"], own["correct_a"], own["correct_b"], name=name
        )
        change = _change(one["comparison"]["deltas"]["conf_true"])
        caption = f"{change} on average; {flips['rw']} answers lost, {flips['wr']} won."
        found.append({"name": name, "plot": trusted(plot), "caption": caption})
    return found


def by_initial(measured: Sequence[Candidate]) -> list[Panel]:
    """Change by the baseline's confidence, all on one scale."""
    groups = [
        [row for row in _initial(one).get("bins", ()) if row["lower"] is not None]
        for one in measured
    ]
    ends = [abs(row[key]) for rows in groups for row in rows for key in ("lower", "upper")]
    found: list[Panel] = []
    for one, rows in zip(measured, groups, strict=True):
        if not rows:
            continue
        name = str(one["scheme"])
        plot = figures.change_by_initial(rows, name=name, reach=1.05 * max(ends))
        found.append({"name": name, "plot": trusted(plot), "caption": _slope(one)})
    return found


def _initial(one: Candidate) -> Mapping[str, Any]:
    return (one["comparison"].get("controls") or {}).get("initial") or {}


def _slope(one: Candidate) -> str:
    found = _initial(one)
    naive, oldham = found["naive"]["conf_true"], found["oldham"]
    if naive.get("value") is None:
        return ""
    slope = numbers.fixed(naive["value"], digits=3, signed=True)
    text = f"Naive slope {slope} {numbers.interval(naive['lower'], naive['upper'], digits=3)}"
    if oldham:
        slope = numbers.fixed(oldham["slope"], digits=3, signed=True)
        text += f"; Oldham's {slope}, p {numbers.p_value(oldham['p'])}"
    return f"{text}. {_controls(found)}".rstrip()


def _controls(found: Mapping[str, Any]) -> str:
    """What the controls of regression to the mean say, and whether the claim may be made."""
    parts = []
    iv, null = found["iv"].get("conf_true"), found["perturbed"].get("conf_true")
    if iv and iv["value"] is not None:
        bounds = numbers.interval(iv["lower"], iv["upper"], digits=3)
        value = numbers.fixed(iv["value"], digits=3, signed=True)
        parts.append(f"Across two wordings {value} {bounds}.")
    if null and null["excess"]["value"] is not None:
        excess = null["excess"]
        bounds = numbers.interval(excess["lower"], excess["upper"], digits=3)
        value = numbers.fixed(excess["value"], digits=3, signed=True)
        copies = numbers.count(len(null["slopes"]))
        parts.append(f"In excess of {copies} noisy copies of the original {value} {bounds}.")
    if not parts:
        return ""
    verdict = "Unsure items lose more" if found["claim"] else "No claim that unsure items lose more"
    return " ".join([*parts, f"{verdict}: {found['reason']}."])
