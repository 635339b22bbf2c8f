"""What several candidates did to each item, beside one reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from calibit.comparison.pairing import Paired, RunLike, as_run, cluster_labels, pair
from calibit.measures.resampling import Resampling
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
    keep = _known(first)
    if not keep.any():
        raise ValueError("[compare] expected items with a known answer, got none")
    return [first.take(keep), *(side.b.take(keep) for side in sides)]


def clustered(
    draw: Resampling, reference: RunLike | str | Path, *, rule: str, labelled: bool = True
) -> Resampling:
    """The resampling with the clusters (passages, documents) of a run's items.

    Args:
        draw: level, resamples and seed.
        reference: a run whose items are those of `labelled_scores`.
        rule: scoring rule.
        labelled: leave out the items without a known answer, as there.
    """
    base = as_run(reference)
    both: Paired = pair(base, base, rule=rule, allow_partial=False)
    labels = cluster_labels(both, None)
    keep = _known(both.a) if labelled else both.a.distributions.k > 1
    return replace(draw, clusters=labels).take(keep)


def _known(scores: Scores) -> np.ndarray:
    """bool [N]: items with a choice and a known answer."""
    return scores.labelled & (scores.distributions.k > 1)


def values(scores: Scores, metric: str) -> np.ndarray:
    """A metric of each item, float64 [N]: `conf_true`, `nll` (nats) or `acc`."""
    if metric == "acc":
        return scores.correct
    p, log_p = scores.distributions.of(scores.gold)
    return p if metric == "conf_true" else -log_p
