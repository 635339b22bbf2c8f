"""Grid against rounding: is it the codebook or the solver that saves a quantized model?

A 2 x 2 design: a uniform grid or a codebook, each rounded to nearest or solved with error feedback,
all with equal groups and scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.estimate import Estimate, plain
from calibit.measures.paired import mean_difference, sign_flip_test
from calibit.measures.resampling import Resampling
from calibit.measures.variance import LEAST_BUILDS, draw_variance

CELLS = ("uniform_nearest", "uniform_solved", "codebook_nearest", "codebook_solved")
SOLVED = (CELLS[1], CELLS[3])

EFFECTS: Mapping[str, tuple[float, float, float, float]] = {
    "grid": (-0.5, -0.5, 0.5, 0.5),
    "rounding": (-0.5, 0.5, -0.5, 0.5),
    "interaction": (1.0, -1.0, -1.0, 1.0),
}
"""Weights of the cells; below 0 an effect means less damage by the codebook, or by the solver. The
interaction is above 0 where the two together save less than each would alone."""


@dataclass(frozen=True)
class Effect:
    """One effect on the damage.

    Attributes:
        value: mean over items with its interval: BCa over items; with draws Student's t with k - 1
            degrees, the variance of the draws included, items taken as independent.
        p: sign flips of the items' contrasts, two-sided: the builds as they are.
        p_draws: Student's t, two-sided: the recipe over its calibration draws; None without draws.
        sd_draws: standard deviation of the effect between draws; None without draws.
    """

    value: Estimate
    p: float
    p_draws: float | None = None
    sd_draws: float | None = None


@dataclass(frozen=True)
class Ablation:
    """A 2 x 2 design.

    Attributes:
        cells: mean damage of each cell.
        effects: `grid`, `rounding` and `interaction`.
        k: calibration draws of the solved cells; 1 where there is one build of each.
    """

    cells: Mapping[str, float]
    effects: Mapping[str, Effect]
    k: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


def ablation(
    uniform_nearest: ArrayLike,
    uniform_solved: ArrayLike,
    codebook_nearest: ArrayLike,
    codebook_solved: ArrayLike,
    *,
    resampling: Resampling | None = None,
) -> Ablation:
    """Main effects of grid and rounding on a damage, and their interaction.

    Args:
        uniform_nearest, codebook_nearest: float [N], damage of each item.
        uniform_solved, codebook_solved: the same; with calibration draws float [N, k], k >= 3, draw
            j of both on the same text.
        resampling: level, resamples, seed and clusters.

    Raises:
        ValueError: arrays that do not fit together, or values that are not finite.

    Example:
        >>> found = ablation([3, 5], [2, 3], [2, 3], [2, 2])
        >>> [float(found.effects[name].value) for name in EFFECTS]
        [-1.0, -1.0, 1.0]
    """
    given = (uniform_nearest, uniform_solved, codebook_nearest, codebook_solved)
    tables = [np.asarray(values, dtype=np.float64) for values in given]
    k = _check(tables)
    draw = resampling or Resampling()
    columns = [table if table.ndim == 2 else table[:, None] for table in tables]
    effects = {}
    for name, weights in EFFECTS.items():
        contrast = sum(w * column for w, column in zip(weights, columns, strict=True))
        effects[name] = _effect(name, np.asarray(contrast), draw)
    cells = {name: float(table.mean()) for name, table in zip(CELLS, tables, strict=True)}
    return Ablation(cells, effects, k)


def _effect(name: str, contrast: np.ndarray, draw: Resampling) -> Effect:
    """Effect of a contrast, float64 [N, k]."""
    from scipy.special import stdtr

    items = contrast.mean(axis=1)
    value = mean_difference(items, metric=f"ablation_{name}", resampling=draw)
    clusters = draw.clusters_of(len(items))
    units = items if clusters is None else np.bincount(clusters, items)
    p = sign_flip_test(units, resamples=draw.resamples, seed=draw.seed)
    k = contrast.shape[1]
    if k == 1:
        return Effect(value, p)
    found = draw_variance(contrast, level=draw.level)
    t = abs(found.mean) / found.se_recipe if found.se_recipe > 0.0 else math.inf
    p_draws = 2.0 * float(stdtr(k - 1, -t)) if found.mean else 1.0
    return Effect(value.with_interval(found.recipe), p, p_draws, math.sqrt(found.var_draw))


def _check(tables: list[np.ndarray]) -> int:
    """The number of draws."""
    shapes = [list(table.shape) for table in tables]
    n, k = len(tables[0]), tables[1].shape[1] if tables[1].ndim == 2 else 1
    solved = [n] if k == 1 and tables[1].ndim == 1 else [n, k]
    if shapes != [[n], solved, [n], solved] or n < 2 or 1 < k < LEAST_BUILDS:
        raise ValueError(
            f"[ablation] expected damages [N] and, of the solved cells, [N] or [N, k >= "
            f"{LEAST_BUILDS}], got {', '.join(map(str, shapes))}"
        )
    for name, table in zip(CELLS, tables, strict=True):
        if not np.isfinite(table).all():
            item = int(np.nonzero(~np.isfinite(table))[0][0])
            raise ValueError(
                f"[ablation] expected finite damages, got infinity or NaN in item {item} of {name}"
            )
    return k
