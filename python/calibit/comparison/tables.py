"""Tables of a comparison: per slice, and change by initial confidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from calibit.measures.binning import mass_bins, mass_edges
from calibit.measures.estimate import Estimate
from calibit.measures.intervals import percentile, tango
from calibit.measures.paired import mean_difference
from calibit.measures.resampling import Resampling, resampled_sums
from calibit.measures.scores import Scores

INITIAL_BINS = 10


def slice_keys(scores: Scores) -> tuple[Mapping[str, str], ...]:
    """Slice values per item; the task is a slice key where there are several tasks."""
    if len(set(scores.tasks)) < 2:
        return scores.slices
    return tuple(
        {"task": task, **item} for task, item in zip(scores.tasks, scores.slices, strict=True)
    )


def slice_table(a: Scores, b: Scores, resampling: Resampling) -> list[dict[str, Any]]:
    """Change of accuracy and of conf_true in every slice, each with its own (not simultaneous)
    interval.

    Args:
        a, b: labelled items of both models, paired.
        resampling: of the intervals.

    Returns:
        One row per key and value with key, value, name, n, d_acc, d_conf_true.
    """
    members: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(slice_keys(a)):
        for key, value in item.items():
            members.setdefault((key, str(value)), []).append(index)
    right_a, right_b = a.correct, b.correct
    change = b.distributions.of(b.gold)[0] - a.distributions.of(a.gold)[0] if a.n else np.empty(0)
    rows = []
    for (key, value), items in sorted(members.items()):
        row = {"key": key, "value": value, "name": f"{key}={value}", "n": len(items)}
        row["d_acc"] = accuracy_change(right_a[items], right_b[items], level=resampling.level)
        row["d_conf_true"] = mean_difference(
            change[items], metric="d_conf_true", resampling=resampling
        )
        rows.append(row)
    return rows


def accuracy_change(before: np.ndarray, after: np.ndarray, *, level: float) -> Estimate:
    """Change of accuracy with Tango's interval.

    Args:
        before, after: float64 [N], 1 where an item is right.
        level: two-sided level.
    """
    rw, wr, n = int(np.sum(before > after)), int(np.sum(before < after)), len(before)
    out = Estimate("d_acc", (wr - rw) / n, "difference", n, extra={"rw": rw, "wr": wr})
    return out.with_interval(tango(rw, wr, n, level=level))


def change_by_initial(a: Scores, b: Scores, resampling: Resampling) -> list[dict[str, Any]]:
    """Mean change of conf_true in ten groups of equal size by the reference's confidence.

    This is the naive view: shared noise and the bounded scale alone produce a slope in it.

    Returns:
        Rows with lo, hi, n, conf (mean confidence of the reference), change, lower, upper.
    """
    if not a.n:
        return []
    c = a.distributions.confidence
    change = b.distributions.of(b.gold)[0] - a.distributions.of(a.gold)[0]
    place, edges = mass_bins(c, INITIAL_BINS), mass_edges(c, INITIAL_BINS)
    rows, low = [], 0.0
    for index, edge in enumerate(edges):
        inside, high = place == index, min(float(edge), 1.0)
        if inside.any():
            mean = mean_difference(change[inside], resampling=resampling)
            row: dict[str, Any] = {
                "lo": low,
                "hi": high,
                "n": int(inside.sum()),
                "conf": float(c[inside].mean()),
            }
            rows.append(row | {"change": mean.value, "lower": mean.lower, "upper": mean.upper})
        low = high
    return rows


def initial_slope(a: Scores, b: Scores, resampling: Resampling) -> dict[str, Any]:
    """Slope of the change on the initial confidence, naive and after Oldham.

    `naive`: change of conf_true on the reference's confidence, with a percentile interval.
    `oldham`: change of confidence on the mean of both, whose null is equal variance (Pitman-Morgan
    t).
    """
    out: dict[str, Any] = {"naive": None, "oldham": None}
    if a.n < 3:
        return out
    x, y = a.distributions.confidence, b.distributions.confidence
    change = b.distributions.of(b.gold)[0] - a.distributions.of(a.gold)[0]
    if np.ptp(x) > 0:
        columns = np.stack([np.ones(a.n), x, change, x * change, x * x], axis=1)
        naive = Estimate("slope", float(_slope(columns.sum(axis=0))), "least squares", a.n)
        draws = _slope(resampled_sums(columns, resampling))
        naive = naive.with_interval(percentile(draws, resampling))
        out["naive"] = replace(naive, extra={"label": "naive"})
    if np.ptp(x + y) > 0 and np.ptp(y - x) > 0:
        out["oldham"] = _oldham(x, y)
    return out


def _slope(sums: np.ndarray) -> np.ndarray:
    n, x, d, xd, xx = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xd - x * d / n) / (xx - x * x / n)


def _oldham(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    from scipy.special import stdtr

    middle, change = (x + y) / 2.0, y - x
    cross = float(np.mean((middle - middle.mean()) * (change - change.mean())))
    r = cross / float(np.std(middle) * np.std(change))
    df = len(x) - 2
    t = float(r * np.sqrt(df / max(1e-300, 1.0 - r * r)))
    return {
        "slope": cross / float(np.var(middle)),
        "r": r,
        "t": t,
        "p": float(2 * stdtr(df, -abs(t))),
    }
