"""compare_ablation(): what the grid and what the rounding did, from the runs of a 2 x 2 design."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibit.comparison import per_item
from calibit.comparison.pairing import RunLike
from calibit.measures.ablation import CELLS, Ablation, ablation
from calibit.measures.estimate import plain
from calibit.measures.resampling import Resampling

Source = RunLike | str | Path


@dataclass(frozen=True)
class GridAndRounding:
    """A 2 x 2 design for several damages.

    Attributes:
        damages: `conf_true`, `nll`, `acc` -> effects; damage is the change with the sign that makes
            more worse.
        n: items.
        level: of the intervals.
    """

    damages: Mapping[str, Ablation]
    n: int
    level: float

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


def compare_ablation(
    reference: Source,
    cells: Mapping[str, Source | Sequence[Source]],
    *,
    rule: str = "sum",
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> GridAndRounding:
    """Effects of grid and rounding on what quantization did to each item; items of one cluster
    (passage, document) are resampled together.

    Args:
        reference: run of the original.
        cells: `uniform_nearest`, `uniform_solved`, `codebook_nearest`, `codebook_solved` -> its
            run, or of a solved cell the runs of three or more calibration draws, the same draws in
            both.
        rule: scoring rule.
        level, resamples, seed: of the intervals and tests.

    Raises:
        ValueError: cells missing, runs that do not pair, or solved cells of different draws.

    Example:
        >>> names = ("uniform_nearest", "uniform_solved", "codebook_nearest", "codebook_solved")
        >>> runs = dict(zip(names, ("runs/a", "runs/b", "runs/c", "runs/d")))
        >>> compare_ablation("runs/base", runs).damages["nll"].effects["grid"].p  # doctest: +SKIP
        0.0002
    """
    if set(cells) != set(CELLS):
        raise ValueError(f"[ablation] expected runs of {', '.join(CELLS)}, got {', '.join(cells)}")
    several = {name: _several(cells[name]) for name in CELLS}
    flat = [run for runs in several.values() for run in runs]
    first, *others = per_item.labelled_scores(reference, flat, rule=rule)
    draw = Resampling(level=level, resamples=resamples, seed=seed)
    draw = per_item.clustered(draw, reference, rule=rule)
    damages = {}
    for metric in per_item.METRICS:
        before, left = per_item.values(first, metric), iter(others)
        tables = []
        for runs in several.values():
            columns = [per_item.values(next(left), metric) - before for _ in runs]
            table = per_item.WORSE[metric] * np.stack(columns, axis=1)
            tables.append(table if len(runs) > 1 else table[:, 0])
        damages[metric] = ablation(*tables, resampling=draw)
    return GridAndRounding(damages, first.n, level)


def _several(runs: Source | Sequence[Source]) -> list[Source]:
    return list(runs) if isinstance(runs, list | tuple) else [runs]  # type: ignore[list-item]
