"""The drawings of the report, as inline SVG. Each takes plain numbers and returns markup.

Conventions: the baseline is grey and hollow, the candidate carries the accent colour; every figure
has a spoken label that gives its message in one sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from calibit import numbers
from calibit.reporting import svg
from calibit.reporting.svg import Scale

Bin = Mapping[str, Any]

PANEL = 300  # width of a small multiple, pixels of its own coordinate system
MOST_MARKS = 600  # marks drawn one by one in a figure; more would only overprint


def _plot(low: float, high: float) -> tuple[Scale, Scale]:
    return Scale(low, high, 44, PANEL - 10), Scale(low, high, PANEL - 46, 10)


def _frame(
    x: Scale, y: Scale, x_label: str, y_label: str, *, digits: int | None = None, target: int = 5
) -> list[str]:
    """Grid, tick labels and axis titles of a plot."""
    parts = []
    for scale, horizontal in ((x, True), (y, False)):
        values = svg.ticks(scale.low, scale.high, target=target)
        places = svg.tick_digits(values) if digits is None else digits
        for value in values:
            at, label = scale(value), numbers.fixed(value, digits=places)
            if horizontal:
                parts.append(svg.line(at, y.start, at, y.end, "grid"))
                parts.append(svg.text(at, y.start + 15, label, "tick"))
            else:
                parts.append(svg.line(x.start, at, x.end, at, "grid"))
                parts.append(svg.text(x.start - 6, at + 4, label, "tick", anchor="end"))
    parts.append(svg.text((x.start + x.end) / 2, y.start + 33, x_label, "title"))
    parts.append(svg.vertical_text(12, (y.start + y.end) / 2, y_label, "title"))
    return parts


def _consistency(bins: Sequence[Bin]) -> list[tuple[Bin, float, float]]:
    """Per filled bin, where 95 % of accuracies of a calibrated model with this many items lie.

    Bröcker and Smith, "Increasing the reliability of reliability diagrams", 2007.
    """
    from scipy.stats import binom

    filled = [row for row in bins if row["n"]]
    count = np.array([row["n"] for row in filled])
    share = np.clip([row["conf"] for row in filled], 0, 1)
    low, high = binom.ppf(0.025, count, share) / count, binom.ppf(0.975, count, share) / count
    return [(row, float(a), float(b)) for row, a, b in zip(filled, low, high, strict=True)]


def reliability(base: Sequence[Bin], candidate: Sequence[Bin], *, name: str, ece: str) -> str:
    """Reliability diagram: accuracy against confidence, item counts below.

    Args:
        base, candidate: bins with keys lo, hi, n, conf (mean confidence) and acc (accuracy).
        name: the candidate, for the spoken label.
        ece: its expected calibration error as printed.

    Returns:
        SVG. Grey bars are where a calibrated model's accuracy would fall in 95 % of samples.
    """
    x, y = _plot(0, 1)
    parts = _frame(x, y, "confidence", "accuracy", digits=1)
    parts.append(svg.line(x(0), y(0), x(1), y(1), "diagonal"))
    for row, low, high in _consistency(candidate):
        parts.append(
            svg.rect(
                x(row["lo"]) + 1, y(high), x(row["hi"]) - x(row["lo"]) - 2, y(low) - y(high), "band"
            )
        )
    for bins, style in ((base, "base"), (candidate, "cand")):
        filled = [row for row in bins if row["n"]]
        parts.append(svg.path([(x(row["conf"]), y(row["acc"])) for row in filled], f"{style}-line"))
        for row in filled:
            tip = f"{row['n']} items, confidence {row['conf']:.2f}, accuracy {row['acc']:.2f}"
            parts.append(svg.circle(x(row["conf"]), y(row["acc"]), 4.0, f"{style}-dot", tip))
    parts += _counts(base, candidate, x, top=PANEL - 2)
    label = f"Reliability diagram of {name}: expected calibration error {ece}."
    return svg.figure(PANEL, PANEL + 58, parts, label=label)


def _counts(base: Sequence[Bin], candidate: Sequence[Bin], x: Scale, *, top: float) -> list[str]:
    """Histogram of confidence under a reliability diagram; the tallest bin carries its count."""
    tallest = max([row["n"] for row in (*base, *candidate)], default=0) or 1
    height = Scale(0, tallest, 0, 38)
    parts = [svg.line(x.start, top + 50, x.end, top + 50, "axis")]
    for row in candidate:
        h = height(row["n"])
        parts.append(
            svg.rect(
                x(row["lo"]) + 1,
                top + 50 - h,
                x(row["hi"]) - x(row["lo"]) - 2,
                h,
                "cand-bar",
                numbers.plural(row["n"], "item"),
            )
        )
    for row in base:
        at = top + 50 - height(row["n"])
        parts.append(svg.line(x(row["lo"]) + 1, at, x(row["hi"]) - 1, at, "base-step"))
    parts.append(svg.text(x.start - 6, top + 22, numbers.count(tallest), "tick", anchor="end"))
    parts.append(svg.text(x.start - 6, top + 52, "0", "tick", anchor="end"))
    parts.append(svg.vertical_text(12, top + 34, "items", "title"))
    return parts


def before_after(
    before: Sequence[float],
    after: Sequence[float],
    was_right: Sequence[bool],
    is_right: Sequence[bool],
    *,
    name: str,
) -> str:
    """Probability of the right answer before against after, as density with the flips on top.

    Args:
        before, after: per item, probability of the right answer in baseline and candidate.
        was_right, is_right: per item, whether baseline and candidate answer correctly.
        name: the candidate, for the spoken label.
    """
    x, y = _plot(0, 1)
    a, b = np.asarray(before, float), np.asarray(after, float)
    was, now = np.asarray(was_right, bool), np.asarray(is_right, bool)
    parts = _frame(x, y, "before: probability of the right answer", "after", digits=1)
    parts += _density(a, b, x, y)
    parts.append(svg.line(x(0), y(0), x(1), y(1), "diagonal"))
    lost, won = np.flatnonzero(was & ~now), np.flatnonzero(~was & now)
    parts += [_triangle(x(a[i]), y(b[i]), down=True) for i in lost[:MOST_MARKS]]
    parts += [_triangle(x(a[i]), y(b[i]), down=False) for i in won[:MOST_MARKS]]
    label = (
        f"Probability of the right answer before and after {name}: {len(lost)} answers went "
        f"from right to wrong, {len(won)} from wrong to right."
    )
    return svg.figure(PANEL, PANEL, parts, label=label)


def _density(a: np.ndarray, b: np.ndarray, x: Scale, y: Scale, *, cells: int = 25) -> list[str]:
    """Squares whose strength (five classes, logarithmic) is the number of items inside."""
    table, _, _ = np.histogram2d(a, b, bins=cells, range=((0, 1), (0, 1)))
    most = math.log1p(table.max()) if table.size and table.max() else 1.0
    width, height = (x.end - x.start) / cells, (y.start - y.end) / cells
    parts = []
    for i, j in zip(*np.nonzero(table), strict=True):
        strength = max(1, math.ceil(5 * math.log1p(table[i, j]) / most))
        parts.append(
            svg.rect(
                x(i / cells),
                y((j + 1) / cells),
                width,
                height,
                f"heat h{strength}",
                numbers.plural(int(table[i, j]), "item"),
            )
        )
    return parts


def _triangle(x: float, y: float, *, down: bool) -> str:
    tip = 4.4 if down else -4.4
    corners = ((x - 3.6, y - tip / 2), (x + 3.6, y - tip / 2), (x, y + tip))
    return svg.path(corners, "lost" if down else "won", closed=True)


def change_by_initial(rows: Sequence[Bin], *, name: str, reach: float) -> str:
    """Mean change of the probability of the right answer, by the baseline's confidence.

    Args:
        rows: groups of items with keys conf, change, lower, upper (shares of 1) and n.
        name: the candidate, for the spoken label.
        reach: largest absolute change the vertical axis must show, share of 1.
    """
    span = 100 * reach or 1.0
    x, y = Scale(0, 1, 44, PANEL - 10), Scale(-span, span, 190, 10)
    parts = _frame(x, y, "confidence before", "change, points")
    parts.append(svg.line(x.start, y(0), x.end, y(0), "zero"))
    for row in rows:
        at = x(row["conf"])
        low, mid, high = (100 * row[key] for key in ("lower", "change", "upper"))
        tip = (
            f"{row['n']} items: {numbers.fixed(mid, digits=2, signed=True)} points "
            f"{numbers.interval(low, high, digits=2)}"
        )
        parts.append(svg.line(at, y(low), at, y(high), "cand-whisker"))
        parts.append(svg.circle(at, y(mid), 4.0, "cand-dot", tip))
    label = f"Change of the probability of the right answer by initial confidence, {name}."
    return svg.figure(PANEL, 236, parts, label=label)


def flip_curve(rows: Sequence[Bin], reruns: Sequence[Sequence[Bin]], *, name: str) -> str:
    """Share of changed answers by how far ahead the baseline's answer was.

    Args:
        rows: groups of items in order of the margin, with keys margin (nats), n, flips, rate,
            lower, upper, expected (number of flips under one perturbation size, or None).
        reruns: the same groups of each re-run of the baseline.
        name: the candidate, for the spoken label.
    """
    most = max([row["upper"] for row in rows], default=0.0) or 1.0
    far = max([row["margin"] for row in rows], default=0.0) or 1.0
    x, y = Scale(0, 1.04 * far, 44, PANEL - 10), Scale(0, 104 * most, 190, 10)
    parts = _frame(x, y, "log margin before, nats", "changed answers, %")
    for run in reruns:
        parts.append(svg.path([(x(r["margin"]), y(100 * r["rate"])) for r in run], "base-line"))
    expected = [row for row in rows if row["expected"] is not None]
    line = [(x(row["margin"]), y(100 * row["expected"] / row["n"])) for row in expected]
    parts.append(svg.path(line, "fit-line"))
    for row in rows:
        at = x(row["margin"])
        tip = f"{row['flips']} of {row['n']} answers changed at margin {row['margin']:.2f}"
        parts.append(svg.line(at, y(100 * row["lower"]), at, y(100 * row["upper"]), "cand-whisker"))
        parts.append(svg.circle(at, y(100 * row["rate"]), 4.0, "cand-dot", tip))
    total = sum(row["flips"] for row in rows)
    label = f"Changed answers by margin, {name}: {total} of {sum(row['n'] for row in rows)} items."
    return svg.figure(PANEL, 236, parts, label=label)


def interval_cell(
    estimate: tuple[float, float, float] | None,
    *,
    low: float,
    high: float,
    margin: float | None = None,
    tone: str = "",
) -> str:
    """A small interval on a shared scale, for a table cell.

    Args:
        estimate: (lower bound, value, upper bound); None draws the empty scale.
        low, high: range of the scale; an interval that leaves it ends in an arrow head, and a value
            outside is a hollow dot at the edge.
        margin: position of the margin line, if there is one.
        tone: class added to the interval (good, bad or nothing).
    """
    x = Scale(low, high, 6, 144)
    parts = [svg.line(x(0), 2, x(0), 22, "zero")]
    if margin is not None:
        parts.append(svg.line(x(margin), 2, x(margin), 22, "margin"))
    if estimate is not None:
        lower, value, upper = estimate
        parts.append(svg.line(x(lower), 12, x(upper), 12, f"cell-line {tone}"))
        shape = "cell-dot" if low <= value <= high else "cell-dot off"
        edge = min(max(x(value), 10.0), 140.0) if shape != "cell-dot" else x(value)
        parts.append(svg.circle(edge, 12, 4.0, f"{shape} {tone}"))
        if upper > high:
            parts.append(svg.path(((144, 7), (150, 12), (144, 17)), f"arrow {tone}", closed=True))
        if lower < low:
            parts.append(svg.path(((6, 7), (0, 12), (6, 17)), f"arrow {tone}", closed=True))
    frame: svg.Attributes = {"viewBox": "0 0 150 24", "class": "cell", "aria-hidden": "true"}
    return svg.element("svg", frame, "".join(parts))


def trade_off(
    points: Iterable[Mapping[str, Any]], *, x_label: str, y_label: str, narrow: bool = False
) -> str:
    """Size against damage, one mark per model.

    Args:
        points: mappings with name, x, y, lower, upper and verdict ("" for the baseline).
        x_label, y_label: axis titles with units.
        narrow: drawn for the width of a phone, where texts keep their size.
    """
    rows = list(points)
    width, height = (358, 340) if narrow else (720, 340)
    x = Scale(0, 1.08 * max(row["x"] for row in rows), 48 if narrow else 60, width - 20)
    ends = [row[key] for row in rows for key in ("lower", "y", "upper")] + [0.0]
    pad = 0.08 * (max(ends) - min(ends) or 1.0)
    y = Scale(min(ends) - pad, max(ends) + pad, height - 48, 16)
    parts = _frame(x, y, x_label, y_label, target=5 if narrow else 7)
    parts.append(svg.line(x.start, y(0), x.end, y(0), "zero"))
    taken: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: (row["x"], row["y"])):
        at, mid = x(row["x"]), y(row["y"])
        parts.append(
            svg.line(at, y(row["lower"]), at, y(row["upper"]), f"whisker {row['verdict']}")
        )
        parts.append(svg.circle(at, mid, 5.5, f"mark {row['verdict'] or 'base'}"))
        parts.append(_label(row["name"], at, mid, taken, right_edge=x.end))
    return svg.figure(width, height, parts, label=f"{y_label} against {x_label}, one mark a model.")


def _label(
    name: str, x: float, y: float, taken: list[tuple[float, float]], *, right_edge: float
) -> str:
    """A name beside its mark, moved down until it is clear of the labels set before."""
    left = x + 10 + 7 * len(name) > right_edge
    place = y + 4
    while any(abs(place - other) < 14 and abs(x - at) < 7.5 * len(name) for at, other in taken):
        place += 14
    taken.append((x, place))
    return svg.text(
        x - 10 if left else x + 10, place, name, "name", anchor="end" if left else "start"
    )
