"""compare_draws(): how much of a scheme's effect is the luck of its calibration text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibit.comparison import per_item
from calibit.comparison.pairing import RunLike, as_run
from calibit.comparison.texts import text_windows
from calibit.measures.estimate import plain
from calibit.measures.resampling import Resampling
from calibit.measures.variance import (
    LEAST_BUILDS,
    DrawSpread,
    DrawVariance,
    draw_variance,
    ece_draw_spread,
)

HEAVY_TAILED = ("nll", "text_nll")
"""Metrics whose F test is joined by a permutation test."""


@dataclass(frozen=True)
class Draws:
    """Builds of one scheme with different calibration draws, beside the reference.

    Attributes:
        k: number of builds.
        changes: `conf_true`, `nll`, `acc` (items) and `text_nll` (windows of the texts) -> variance
            components of the change from the reference.
        ece: calibration error of each build, its spread, and the spread that the items alone would
            cause; None without labelled items.
        level: of the intervals.
    """

    k: int
    changes: Mapping[str, DrawVariance]
    ece: DrawSpread | None = None
    level: float = field(default=0.95)

    @property
    def below_draw(self) -> tuple[str, ...]:
        """Metrics whose mean change is less than twice the spread of the draws."""
        return tuple(name for name, one in self.changes.items() if one.effect_below_draw)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain({**vars(self), "effect_below_draw": list(self.below_draw)})


def compare_draws(
    reference: RunLike | str | Path,
    builds: Sequence[RunLike | str | Path],
    *,
    rule: str = "sum",
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Draws:
    """Split the change of a scheme into effect, calibration draw and item.

    Items are taken as independent, and so are the draws: a text of few more tokens than the draws
    use makes them alike, and their spread too small.

    Args:
        reference: run of the original, or its folder.
        builds: runs of at least three builds of one scheme that differ in their calibration draw.
        rule: scoring rule.
        level: of the intervals.
        resamples: of the permutation tests and of the spread of the calibration error.
        seed: of both.

    Raises:
        ValueError: fewer than three builds, runs that do not pair, or nothing to compare.

    Example:
        >>> found = compare_draws("runs/base", ["runs/0", "runs/1", "runs/2"])  # doctest: +SKIP
        >>> found.changes["conf_true"].var_draw ** 0.5                          # doctest: +SKIP
        0.0176
    """
    if len(builds) < LEAST_BUILDS:
        raise ValueError(f"[draws] expected at least {LEAST_BUILDS} builds, got {len(builds)}")
    base, runs = as_run(reference), [as_run(run) for run in builds]
    draw = Resampling(level=level, resamples=resamples, seed=seed)
    tables, spread = _of_items(base, runs, rule, draw)
    windows = _of_windows(base, runs)
    if windows is not None:
        tables["text_nll"] = windows
    if not tables:
        raise ValueError("[draws] expected labelled items or a text in the runs, got neither")
    changes = {
        name: draw_variance(table, level=level, permutation=draw if name in HEAVY_TAILED else None)
        for name, table in tables.items()
    }
    return Draws(len(runs), changes, spread, level)


def _of_items(
    base: RunLike, runs: Sequence[RunLike], rule: str, draw: Resampling
) -> tuple[dict[str, np.ndarray], DrawSpread | None]:
    """Changes per item and build, float64 [N, k] by metric, and the calibration errors."""
    if base.scores(rule).labelled.sum() < 2:
        return {}, None
    first, *others = per_item.labelled_scores(base, runs, rule=rule)
    tables = {}
    for metric in per_item.METRICS:
        before = per_item.values(first, metric)
        tables[metric] = np.stack([per_item.values(one, metric) - before for one in others], axis=1)
    confidence = np.stack([one.distributions.confidence for one in others])
    correct = np.stack([one.correct for one in others])
    own = per_item.clustered(draw, base, rule=rule)
    return tables, ece_draw_spread(confidence, correct, resampling=own)


def _of_windows(base: RunLike, runs: Sequence[RunLike]) -> np.ndarray | None:
    """Change of the mean NLL of each window of the texts, float64 [windows, k]; None for fewer than
    two windows."""
    columns = []
    for run in runs:
        nll_a, nll_b, windows = text_windows(base, run)
        if len(windows) == 0 or windows.max() < 1:
            return None
        columns.append(np.bincount(windows, nll_b - nll_a) / np.bincount(windows))
    return np.stack(columns, axis=1)
