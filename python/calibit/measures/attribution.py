"""Layer attribution: which layer did it, from its first and its last marginal contribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.estimate import plain
from calibit.measures.resampling import Resampling
from calibit.measures.simultaneous import family_moments, sign_flip_p, studentised_maxima


@dataclass(frozen=True)
class UnitShare:
    """Attribution to one unit (block or linear layer).

    Attributes:
        name: of the unit.
        solo: damage with only this unit quantized.
        restored: damage that keeping only this unit in full precision takes away.
        share: phi, the mean of the two.
        lower, upper: simultaneous bounds over all units.
        p: adjusted one-sided p value of "this unit does no damage".
    """

    name: str
    solo: float
    restored: float
    share: float
    lower: float
    upper: float
    p: float


@dataclass(frozen=True)
class Attribution:
    """Damage split over units.

    Attributes:
        total: damage of the fully quantized model.
        units: every unit, in the order given.
        residual: total minus the sum of the shares: interactions of three and more units.
        level: simultaneous one-sided level of each bound.
    """

    total: float
    units: tuple[UnitShare, ...]
    residual: float
    level: float

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


def shares(solo: ArrayLike, restored: ArrayLike, total: float) -> tuple[np.ndarray, float]:
    """phi = (S + G) / 2 of every unit, and the residual v(b) - sum of phi.

    phi is the Shapley value wherever interactions are at most pairwise.

    Args:
        solo: float [L], S: damage with only that unit quantized.
        restored: float [L], G: damage of the quantized model minus that with only that unit in full
            precision.
        total: v(b), damage of the fully quantized model.

    Returns:
        float64 [L] and the residual.

    Raises:
        ValueError: unless solo and restored are finite and of one length.

    Example:
        >>> phi, residual = shares([1, 2, 3], [1.3, 2.6, 2.9], 6.4)
        >>> phi.round(10).tolist(), round(residual, 10) + 0.0
        ([1.15, 2.3, 2.95], 0.0)
    """
    s, g = np.asarray(solo, dtype=np.float64), np.asarray(restored, dtype=np.float64)
    if s.ndim != 1 or s.shape != g.shape or not (np.isfinite(s).all() and np.isfinite(g).all()):
        raise ValueError(
            f"[shares] expected finite solo and restored of one shape [L], got {list(s.shape)} "
            f"and {list(g.shape)}"
        )
    phi = (s + g) / 2.0
    return phi, float(total) - float(phi.sum())


def attribute(
    solo: ArrayLike,
    restored: ArrayLike,
    total: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> Attribution:
    """Attribute a damage that is a mean over items to units, with simultaneous bounds.

    Args:
        solo: float [L, N], damage per item with only that unit quantized.
        restored: float [L, N], damage per item that restoring only that unit takes away.
        total: float [N], damage per item of the fully quantized model.
        names: [L] names of the units; their index where omitted.
        resampling: level (of each one-sided simultaneous bound), resamples and seed.

    Raises:
        ValueError: for arrays that do not fit together, or values that are not finite.
    """
    s, g, v = (np.asarray(values, dtype=np.float64) for values in (solo, restored, total))
    if s.ndim != 2 or s.shape != g.shape or v.shape != s.shape[1:] or not s.size:
        raise ValueError(
            "[attribute] expected solo and restored [L, N] and total [N], "
            f"got {list(s.shape)}, {list(g.shape)} and {list(v.shape)}"
        )
    for name, values in (("solo", s), ("restored", g), ("total", v)):
        if not np.isfinite(values).all():
            item = int(np.nonzero(~np.isfinite(values))[-1][0])
            raise ValueError(
                f"[attribute] expected finite {name}, got infinity or NaN in item {item}"
            )
    draw = resampling or Resampling()
    phi, member = (s + g) / 2.0, np.ones(s.shape, dtype=bool)
    mean, se, _ = family_moments(phi, member)
    low, high = (np.quantile(m, draw.level) for m in studentised_maxima(phi, member, draw))
    p = sign_flip_p(phi, member, draw)
    labels = [str(index) for index in range(len(s))] if names is None else list(names)
    columns = (s.mean(axis=1), g.mean(axis=1), mean, mean - low * se, mean + high * se, p)
    units = tuple(
        UnitShare(label, *map(float, row))
        for label, row in zip(labels, zip(*columns, strict=True), strict=True)
    )
    overall = float(v.mean())
    return Attribution(overall, units, overall - float(mean.sum()), draw.level)
