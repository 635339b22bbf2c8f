"""What the page says beyond plain differences: where answers changed, what happens to a system
built on the original, whether the change is real and which way it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from calibit import numbers
from calibit.numbers import Style
from calibit.reporting import figures
from calibit.reporting.panels import trusted
from calibit.reporting.view import Candidate

Control = Mapping[str, Any]
Row = tuple[str, ...]

CELLS = {
    "rr": "right, stays right",
    "rw": "right, becomes wrong",
    "wr": "wrong, becomes right",
    "ww_same": "wrong, same answer",
    "ww_other": "wrong, another wrong answer",
}
STATES = {
    "robust": "the same sign under every rule",
    "scoring_dependent": "the sign depends on the rule",
    "mixed_sign": "different signs, within the noise",
    "undecided": "not settled under every rule",
}
CLAIMS = {
    "acc": ("accuracy", "points", 100, 1),
    "conf_true": ("confidence in the right answer", "points", 100, 2),
    "nll": ("NLL of the right answer", "nats", 1, 3),
    "ece": ("calibration error (ECE)", "points", 100, 2),
}
MAGNITUDES = {
    "all_flips": ("changed answers", "% of items", Style(2, 100)),
    "kl_ab": ("KL from the original", "nats", Style(5, small=True)),
    "jsd": ("Jensen\u2013Shannon divergence", "nats", Style(5, small=True)),
    "tv": ("total variation", "points", Style(3, 100, small=True)),
    "abs_d_conf_true": (
        "change of the right answer's probability, without sign",
        "points",
        Style(3, 100, small=True),
    ),
}


def context(measured: Sequence[Candidate]) -> dict[str, Any]:
    """What the template of the controls shows; a part that no candidate has is empty."""
    found = [(str(one["scheme"]), one["comparison"].get("controls") or {}) for one in measured]
    system = {
        "thresholds": _each(found, "threshold", _threshold),
        "sets": _each(found, "conformal", _sets),
        "repair": _each(found, "recalibration", _repair),
    }
    real = {
        "noise": _each(found, "noise", _noise),
        "direction": _each(found, "direction", _direction),
        "rules": _each(found, "rules", _rules),
    }
    return {
        "anatomy": _each(found, "flips", _anatomy),
        "system": system if any(system.values()) else {},
        "threshold_target": _target(found),
        "set_coverage": _set_coverage(found),
        "real": real if any(real.values()) else {},
    }


def _each(found: Sequence[tuple[str, Control]], key: str, show: Any) -> list[Any]:
    """What `show` makes of a control of every candidate that has it; None is left out."""
    made = [show(name, controls[key]) for name, controls in found if controls.get(key)]
    return [one for one in made if one is not None]


def _percent(value: float | None, digits: int = 1) -> str:
    return f"{numbers.fixed(value, digits=digits, scale=100)} %"


def change(estimate: Control, *, digits: int = 1, scale: float = 100, unit: str = "points") -> str:
    """A change with its unit and interval, "−2.1 points [−4.0, −0.3]"."""
    value = numbers.fixed(estimate["value"], digits=digits, scale=scale, signed=True)
    if estimate["value"] is None:
        return value
    bounds = numbers.interval(estimate["lower"], estimate["upper"], digits=digits, scale=scale)
    return f"{value} {unit} {bounds}".strip()


# Where answers changed -------------------------------------------------------------------------


def _anatomy(name: str, found: Control) -> dict[str, Any]:
    candidate = found["candidate"]
    plot = figures.flip_curve(
        candidate["curve"], [run["curve"] for run in found["reruns"].values()], name=name
    )
    rows = [
        (
            CELLS[cell["name"]],
            numbers.count(cell["n"]),
            *(_spread(cell[key]) for key in ("conf_a", "conf_b", "margin", "d_conf_true")),
        )
        for cell in found["cells"]
    ]
    return {"name": name, "plot": trusted(plot), "caption": _size(found), "cells": rows}


def _spread(spread: Control) -> str:
    if spread["mean"] is None:
        return numbers.MISSING
    low, _, high = spread["quartiles"]
    mean = numbers.fixed(spread["mean"], digits=1, scale=100)
    return f"{mean} {numbers.interval(low, high, digits=1, scale=100, signed=False)}"


def _size(found: Control) -> str:
    """Perturbation size and confident new errors, in a sentence each."""
    sigma = found["candidate"]["sigma"]
    if sigma["value"] is None:
        text = f"No perturbation size: {sigma['reason']}."
    else:
        size = numbers.fixed(sigma["value"], digits=2)
        bounds = numbers.interval(sigma["lower"], sigma["upper"], digits=2, signed=False)
        text = f"Perturbation size {size} nats {bounds}"
        runs = [run["sigma"]["value"] for run in found["reruns"].values()]
        known = [value for value in runs if value is not None]
        text += (
            f"; re-runs of the original up to {numbers.fixed(max(known), digits=3)}."
            if known
            else "."
        )
    errors, corrections = found["confident_errors"], found["confident_corrections"]
    level = _percent(found["theta"], 0)
    bounds = numbers.interval(errors["lower"], errors["upper"], digits=2, scale=100, signed=False)
    count = errors["extra"]["count"]
    return (
        f"{text} New errors made with a confidence above {level}: {count}, "
        f"{_percent(errors['value'], 2)} of the items {bounds}; corrections as confident: "
        f"{corrections['extra']['count']}."
    )


# A system built on the original ----------------------------------------------------------------


def _target(found: Sequence[tuple[str, Control]]) -> str:
    for _, controls in found:
        threshold = controls.get("threshold")
        if threshold:
            return numbers.percent(threshold["value"])
    return ""


def _threshold(name: str, found: Control) -> dict[str, Any] | None:
    if found["tau"] is None:
        return None
    a, b, moved = found["a"], found["b"], found["change"]
    restored = found["tau_restored"]
    return {
        "name": name,
        "tau": numbers.fixed(found["tau"], digits=3),
        "answered": (_percent(a["coverage"]), _percent(b["coverage"]), change(moved["coverage"])),
        "wrong": (_percent(a["risk"]), _percent(b["risk"]), change(moved["risk"])),
        "restored": numbers.fixed(restored, digits=3),
    }


def _set_coverage(found: Sequence[tuple[str, Control]]) -> str:
    for _, controls in found:
        sets = controls.get("conformal")
        if sets:
            return numbers.percent(1 - sets["alpha"])
    return ""


def _sets(name: str, found: Control) -> dict[str, Any]:
    sides = [found[key] for key in ("a", "transfer", "recalibrated")]
    band = found["band"]
    loss = {**found["coverage_loss"], "value": -found["coverage_loss"]["value"]}
    for end, other in (("lower", "upper"), ("upper", "lower")):
        bound = found["coverage_loss"][other]
        loss[end] = None if bound is None else -bound
    return {
        "name": name,
        "coverage": [_percent(side["coverage"]) for side in sides],
        "loss": change(loss),
        "size": [numbers.fixed(side["size"], digits=2) for side in sides],
        "inflation": change(found["inflation"], digits=2, scale=1, unit="choices"),
        "band": numbers.interval(band["lower"], band["upper"], digits=0, scale=100, signed=False),
        "n": f"{numbers.count(found['n_calibration'])} to set, "
        f"{numbers.count(found['n_test'])} to judge",
    }


def _repair(name: str, found: Control) -> dict[str, Any] | None:
    if found["map"] is None:
        return None
    before, after, moved = found["before"], found["after"], found["change"]
    shown = "yes: the gain is shown" if found["shown"] else "no: the gain is not shown"
    if found["map"].get("clipped"):
        shown = "no: at the end of the range"
    return {
        "name": name,
        "temperature": numbers.fixed(found["map"]["value"], digits=2),
        "nll": (
            numbers.fixed(before["nll"], digits=3),
            numbers.fixed(after["nll"], digits=3),
            change(moved["nll"], digits=3, scale=1, unit="nats"),
        ),
        "ece": (_percent(before["ece"]), _percent(after["ece"]), change(moved["ece"])),
        "shown": shown,
    }


# Is it real, and which way ---------------------------------------------------------------------


def _noise(name: str, found: Control) -> dict[str, Any]:
    rows = []
    for key, one in found["magnitudes"].items():
        words, unit, style = MAGNITUDES[key]
        above = one["state"] == "above_floor"
        excess, signed = one["excess"], replace(style, signed=True)
        bounds = signed.interval(excess["lower"], excess["upper"])
        rows.append(
            (
                words,
                unit,
                *(style.value(one[side]) for side in ("floor", "largest", "candidate")),
                f"{signed.value(excess['value'])} {bounds}".strip(),
                "above the floor" if above else "not distinguishable",
            )
        )
    same = {True: "bit-identical", False: "not bit-identical", None: ""}[found["deterministic"]]
    runs = numbers.join(list(found["runs"]))
    return {"name": name, "rows": rows, "runs": runs, "repeat": same}


def _direction(name: str, found: Control) -> tuple[str, str]:
    fell, share = found["lost_share"], found["unsure_share"]
    bounds = numbers.interval(fell["lower"], fell["upper"], digits=0, scale=100, signed=False)
    text = (
        f"The probability of the right answer fell on {_percent(fell['value'], 0)} of the items "
        f"{bounds}; on average it changed by {change(found['d_conf_true'], digits=2)}; net change "
        f"of right answers {change(found['net_flips'])}."
    )
    if share["value"] is not None:
        even = _percent(share["extra"]["null"], 0)
        bounds = numbers.interval(share["lower"], share["upper"], digits=0, scale=100, signed=False)
        text += (
            f" {_percent(share['value'], 0)} {bounds} of the divergence lies in the fifth of the "
            f"items that the original was least sure about (spread evenly: {even})."
        )
    if found["silent_zone"]:
        text += " It changed more than noise does, but in no direction: KL must not rank it."
    return name, text


def _rules(name: str, found: Mapping[str, Control]) -> dict[str, Any]:
    rows = []
    for metric, one in found.items():
        words, unit, scale, digits = CLAIMS[metric]
        cells = [
            change(estimate, digits=digits, scale=scale, unit="")
            for estimate in one["changes"].values()
        ]
        rows.append((f"{words}, {unit}", *cells, STATES[one["state"]]))
    return {"name": name, "rules": list(next(iter(found.values()))["changes"]), "rows": rows}
