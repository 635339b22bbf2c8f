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
from calibit.measures.slice_search import SliceSearch, shrink

NO_SHRINKING = "its standard errors take items as independent, and these form clusters"


def slice_keys(scores: Scores) -> tuple[Mapping[str, str], ...]:
    """Slice values per item; the task is a slice key where there are several tasks."""
    if len(set(scores.tasks)) < 2:
        return scores.slices
    return tuple(
        {**item, "task": task} for task, item in zip(scores.tasks, scores.slices, strict=True)
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


def shrunken(search: SliceSearch) -> dict[str, dict[str, Any]]:
    """Damages of the slices of each key shrunken towards their common mean: what a slice may be
    expected to show on new items, where few items alone make its own mean extreme.

    Slices of one key are disjoint; only those that were searched enter.

    Args:
        search: over slices of any keys.

    Returns:
        Key -> Q, tau2 (variance between slices), mean and, by name, slices of DerSimonian and Laird
        (see `calibit.measures.slice_search.shrink`), or the reason why not; keys of a single slice
        are left out.
    """
    family: dict[str, dict[str, tuple[float, float]]] = {}
    for one in search.slices:
        for label in one.labels:
            family.setdefault(label.key, {})[label.name] = (one.damage, one.se)
    return {key: _shrunken(own, search) for key, own in family.items() if len(own) > 1}


def _shrunken(own: Mapping[str, tuple[float, float]], search: SliceSearch) -> dict[str, Any]:
    damage, se = zip(*own.values(), strict=True)
    if search.clusters is not None:
        return {"reason": NO_SHRINKING}
    if not min(se) > 0.0:
        return {"reason": "a slice whose items all moved alike has no standard error"}
    found = shrink(damage, se)
    slices = dict(zip(own, found.shrunken, strict=True))
    return {"q": found.q, "tau2": found.tau2, "mean": found.mean, "slices": slices}
