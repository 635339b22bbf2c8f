"""What several candidates did to each item, beside one reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibit.comparison.pairing import RunLike, as_run, pair
from calibit.measures.scores import Scores

METRICS = ("conf_true", "nll", "acc")
"""Quantities that are means over items."""

WORSE = {"conf_true": -1, "nll": +1, "acc": -1}
"""Sign of a change for the worse."""


def labelled_scores(
    reference: RunLike | str | Path, runs: Sequence[RunLike | str | Path], *, rule: str
) -> list[Scores]:
    """Scores of the reference and of every run, on the items with a known answer and a choice.

    Args:
        reference: a run or the folder of one.
        runs: the others.
        rule: scoring rule.

    Raises:
        ValueError: the runs do not pair, or share no such item.
    """
    base = as_run(reference)
    sides = [pair(base, as_run(run), rule=rule, allow_partial=False) for run in runs]
    first = sides[0].a
    keep = first.labelled & (first.distributions.k > 1)
    if not keep.any():
        raise ValueError("[compare] expected items with a known answer, got none")
    return [first.take(keep), *(side.b.take(keep) for side in sides)]


def values(scores: Scores, metric: str) -> np.ndarray:
    """A metric of each item, float64 [N]: `conf_true`, `nll` (nats) or `acc`."""
    if metric == "acc":
        return scores.correct
    p, log_p = scores.distributions.of(scores.gold)
    return p if metric == "conf_true" else -log_p
