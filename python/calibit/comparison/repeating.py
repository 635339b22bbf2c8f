"""How much two models' own answers repeat themselves, paired by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibit.comparison.evidence import Evidence, mean_evidence, without_spread
from calibit.measures.estimate import Estimate
from calibit.measures.paired import mean_difference
from calibit.measures.repetition import LONGEST_N_GRAM
from calibit.measures.resampling import Resampling, resampled_means

GATED = "seq_rep_4"
"""What the gate `repetition` judges: the share of repeated 4-grams of token ids (Welleck et al.
2020, arXiv 1908.04319)."""

_N_GRAMS = range(1, LONGEST_N_GRAM + 1)
METRICS = (
    *(f"seq_rep_{n}" for n in _N_GRAMS),
    *(f"distinct_{n}" for n in _N_GRAMS),
    *(f"distinct_tok_{n}" for n in _N_GRAMS),
    "dup_words",
    "dup_rate",
    "loop_rate",
)

Pair = tuple[Mapping[str, Any], Mapping[str, Any]]


def compare_repetition(pairs: Sequence[Pair], draw: Resampling) -> dict[str, Mapping[str, Any]]:
    """Repetition of both models' answers to the same prompts.

    Args:
        pairs: lines of both runs per prompt.
        draw: of the intervals.

    Returns:
        Per metric of METRICS a and b (means over the prompts where both texts are long enough), n,
        and `change`: b - a with an interval; empty where a run has no repetition recorded.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for metric in METRICS:
        known, table = _table(pairs, metric)
        if not len(table):
            continue
        change: Estimate = mean_difference(
            table[:, 1] - table[:, 0], metric=f"d_{metric}", resampling=draw.take(known)
        )
        a, b = table.mean(axis=0)
        found[metric] = {"a": float(a), "b": float(b), "n": len(table), "change": change}
    return found


def repetition_evidence(pairs: Sequence[Pair], draw: Resampling) -> Evidence | None:
    """Rise of GATED; None below two prompts where it is known."""
    known, table = _table(pairs, GATED)
    if len(table) < 2:
        return None
    damage = table[:, 1] - table[:, 0]
    own = draw.take(known)
    drawn = resampled_means(damage[:, None], own)[:, 0]
    return without_spread(mean_evidence("repetition", damage, drawn, own), damage, own)


def _table(pairs: Sequence[Pair], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Places of the prompts that have both values, int64 [n], and the values, float64 [n, 2]."""
    rows = [[_value(line, metric) for line in pair] for pair in pairs]
    known = np.array([i for i, row in enumerate(rows) if None not in row], dtype=np.int64)
    values = [rows[place] for place in known]
    return known, np.array(values, dtype=np.float64).reshape(-1, 2)


def _value(line: Mapping[str, Any], metric: str) -> float | None:
    stored: Mapping[str, float | None] = line.get("repetition") or {}
    if metric == "loop_rate":
        return stored.get("loop")
    name = metric.replace("distinct_", "seq_rep_")
    if metric.startswith("distinct_") and not metric.startswith("distinct_tok"):
        share = stored.get(name)
        return None if share is None else 1.0 - share
    return stored.get(metric)
