"""Tables of a comparison: per slice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from calibit.measures.estimate import Estimate
from calibit.measures.intervals import paired_share_interval
from calibit.measures.paired import mean_difference
from calibit.measures.resampling import Resampling
from calibit.measures.scores import Scores


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
        draw = resampling.take(np.array(items))
        row["d_acc"] = accuracy_change(right_a[items], right_b[items], draw)
        row["d_conf_true"] = mean_difference(change[items], metric="d_conf_true", resampling=draw)
        rows.append(row)
    return rows


def accuracy_change(before: np.ndarray, after: np.ndarray, resampling: Resampling) -> Estimate:
    """Change of accuracy with Tango's interval.

    Args:
        before, after: float64 [N], 1 where an item is right.
        resampling: level and clusters.
    """
    rw, wr, n = int(np.sum(before > after)), int(np.sum(before < after)), len(before)
    out = Estimate("d_acc", (wr - rw) / n, "difference", n, extra={"rw": rw, "wr": wr})
    return out.with_interval(paired_share_interval(before, after, resampling))
