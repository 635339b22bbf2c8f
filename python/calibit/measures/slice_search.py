"""Worst-slice search with simultaneous bounds.

Searching many slices for the worst needs bounds that hold for all at once: a studentised bootstrap
of the maximum for means.

Slices often hold no or one item whose correctness changed. A resample without such an item has no
spread, so the studentised bootstrap degenerates for accuracy. Its bounds are Tango's: lower bounds
at the Bonferroni level over the slices, because one of them is enough to raise an alarm; upper
bounds without correction, because all of them must stay below a margin (intersection-union).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np

from calibit.measures.intervals import paired_counts, tango_bounds, two_sided_z
from calibit.measures.resampling import Resampling, permuted_group_sums
from calibit.measures.simultaneous import (
    adjusted_p,
    family_moments,
    moments,
    ratio,
    sign_flip_p,
    studentised_maxima,
)
from calibit.measures.slices import Label, Slices, Small


@dataclass(frozen=True)
class SliceDamage:
    """Damage in one slice: mean, standard error, simultaneous bounds, adjusted p values.

    `p_damage` tests that the slice has no damage, `p_contrast` that it has no more than the rest.
    `labels` holds key and name of every slice of the family with these items.
    """

    name: str
    n: int
    damage: float
    se: float
    lower: float
    upper: float
    p_damage: float
    p_contrast: float
    labels: tuple[Label, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, eq=False)
class SliceSearch:
    """Result of a worst-slice search over one family of slices.

    Attributes:
        metric: what the damage is of.
        slices: every slice searched.
        worst: the slice with the largest lower bound ("worst credible"); None without slices.
        level: simultaneous level of each one-sided bound.
        reason: why nothing was searched.
        clusters: number of clusters that all items form; None where items are independent.
        left_out: slices with too few items to be searched.
    """

    metric: str
    slices: tuple[SliceDamage, ...]
    level: float
    reason: str | None = None
    clusters: int | None = None
    left_out: tuple[Small, ...] = ()
    _bounds: BoundsMaker | None = field(default=None, repr=False)

    def only(self, keys: Sequence[str]) -> SliceSearch:
        """The search with the slices of some keys alone ("lang" for "lang=en").

        Simultaneous bounds of means stay those of the whole family: wider than they need be. A
        slice with the items of another has the name of the first of these keys that it answers to.

        Args:
            keys: slice keys.
        """
        names = [_called(one, keys) for one in self.slices]
        kept = [i for i, name in enumerate(names) if name is not None]
        left = tuple(one for one in self.left_out if one.key in keys)
        if not kept or self._bounds is None:
            reason = f"no slice of {', '.join(keys)}"
            return SliceSearch(self.metric, (), self.level, reason, left_out=left)
        chosen = tuple(replace(self.slices[i], name=str(names[i])) for i in kept)
        return replace(
            self, slices=chosen, left_out=left, _bounds=self._bounds.take(np.array(kept))
        )

    @property
    def worst(self) -> SliceDamage | None:
        """The slice with the largest lower bound."""
        return max(self.slices, key=lambda entry: entry.lower) if self.slices else None

    @property
    def method(self) -> str:
        """Method of the bounds."""
        tango = self._bounds is not None and self._bounds.discordant is not None
        return "tango per slice" if tango else "studentised bootstrap of the maximum"

    def upper_quantile(self, level: float) -> float:
        """How many standard errors the upper end of an interval lies above its estimate."""
        return 0.0 if self._bounds is None else self._bounds.quantiles(level, all_at_once=False)[1]

    def bounds(self, level: float) -> tuple[float, float]:
        """Largest lower and largest upper bound over the slices at another one-sided level.

        Raises:
            ValueError: if nothing was searched.
        """
        if self._bounds is None:
            raise ValueError(f"[worst_slice] expected at least one slice, got none: {self.reason}")
        lower, upper = self._bounds.at(level)
        return float(lower.max()), float(upper.max())

    def intervals(self, level: float, *, all_at_once: bool) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of every slice, float64 [S] each, at another level.

        Args:
            level: of each one-sided simultaneous bound, or, without `all_at_once`, of a two-sided
                interval.
            all_at_once: bounds that hold for all slices at once. Without it, accuracy has each
                slice's own interval; those of means hold at once either way.

        Raises:
            ValueError: if nothing was searched.
        """
        if self._bounds is None:
            raise ValueError(f"[worst_slice] expected at least one slice, got none: {self.reason}")
        return self._bounds.intervals(level, all_at_once=all_at_once)


@dataclass(frozen=True, eq=False)
class BoundsMaker:
    """Bounds of S slices at any level: studentised (resamples' maxima) or Tango (counts)."""

    damage: np.ndarray
    se: np.ndarray
    maxima: tuple[np.ndarray, np.ndarray] | None = None
    discordant: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def take(self, slices: np.ndarray) -> BoundsMaker:
        """The bounds of some slices, by int64 indices."""
        counts = self.discordant
        return BoundsMaker(
            self.damage[slices],
            self.se[slices],
            self.maxima,
            None if counts is None else (counts[0][slices], counts[1][slices], counts[2][slices]),
        )

    def at(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower bounds for all slices at once, float64 [S], and upper bounds: of means one-sided,
        of accuracy the ends of each slice's own interval.
        """
        lower, upper = self.intervals(level, all_at_once=True)
        if self.discordant is not None:
            upper = self.intervals(level, all_at_once=False)[1]
        return lower, upper

    def intervals(self, level: float, *, all_at_once: bool) -> tuple[np.ndarray, np.ndarray]:
        """Both bounds of one kind, float64 [S] each; see `SliceSearch.intervals`."""
        below, above = self.quantiles(level, all_at_once=all_at_once)
        if self.discordant is not None:
            return tango_bounds(*self.discordant, below)
        return self.damage - below * self.se, self.damage + above * self.se

    def quantiles(self, level: float, *, all_at_once: bool) -> tuple[float, float]:
        """Standard errors between the estimate and its lower and its upper bound.

        Each end of a two-sided interval errs with half of 1 - level.
        """
        if self.maxima is not None:
            share = level if all_at_once else (1.0 + level) / 2.0
            low, high = (float(np.quantile(maximum, share)) for maximum in self.maxima)
            return low, high
        bonferroni = NormalDist().inv_cdf(1.0 - (1.0 - level) / len(self.damage))
        z = bonferroni if all_at_once else two_sided_z(level)
        return z, z


def worst_slice(
    damage: np.ndarray,
    slices: Slices,
    *,
    metric: str = "damage",
    accuracy: bool = False,
    resampling: Resampling | None = None,
) -> SliceSearch:
    """Search a family of slices for the largest damage, with bounds for all of them.

    Args:
        damage: float64 [N], per item, positive = worse.
        slices: the family.
        metric: name of the damage.
        accuracy: the damage is right before minus right after, -1, 0 or 1 per item: Tango's bounds.
        resampling: level (of each one-sided simultaneous bound), resamples and seed.

    Raises:
        ValueError: if the damage does not fit the items of the slices, or is none of accuracy.
    """
    draw = resampling or Resampling()
    d = np.asarray(damage, dtype=np.float64)
    if d.shape != slices.member.shape[1:]:
        raise ValueError(
            f"[worst_slice] expected damage of shape {list(slices.member.shape[1:])}, "
            f"got {list(d.shape)}"
        )
    if accuracy and not np.isin(d, (-1.0, 0.0, 1.0)).all():
        raise ValueError("[worst_slice] expected damage of accuracy in -1, 0, 1, got other values")
    if not len(slices.names):
        reason = f"no slice with at least {slices.n_min} items"
        return SliceSearch(metric, (), draw.level, reason, left_out=slices.left_out)
    member = slices.member
    mean, se, size = family_moments(d[None, :], member)
    if accuracy:
        maker = BoundsMaker(mean, se, discordant=_discordant(d, member, draw))
    else:
        maker = BoundsMaker(mean, se, maxima=studentised_maxima(d[None, :], member, draw))
    lower, upper = maker.at(draw.level)
    p_damage = sign_flip_p(d[None, :], member, draw)
    p_contrast = _permutation_p(d, member, draw)
    rows = zip(slices.labels, size, mean, se, lower, upper, p_damage, p_contrast, strict=True)
    table = tuple(
        SliceDamage(labels[0].name, int(n), *map(float, rest), labels=labels)
        for labels, n, *rest in rows
    )
    clusters, small = draw.cluster_count, slices.left_out
    return SliceSearch(metric, table, draw.level, None, clusters, small, maker)


@dataclass(frozen=True)
class Heterogeneity:
    """DerSimonian-Laird summary of disjoint slices.

    Heterogeneity Q, variance tau^2 between slices, common mean, slice means shrunken towards it.
    """

    q: float
    tau2: float
    mean: float
    shrunken: tuple[float, ...]


def shrink(damage: Sequence[float], se: Sequence[float]) -> Heterogeneity:
    """Shrink the means of disjoint slices towards their common mean (DerSimonian and Laird 1986).

    Args:
        damage: mean per slice.
        se: standard error per slice, all above 0.

    Raises:
        ValueError: for fewer than two slices or a standard error of 0.
    """
    d, s = np.asarray(damage, dtype=np.float64), np.asarray(se, dtype=np.float64)
    if len(d) < 2 or d.shape != s.shape or not (s > 0).all():
        raise ValueError("[shrink] expected at least two slices with standard errors above 0")
    weight = 1.0 / s**2
    fixed = float((weight * d).sum() / weight.sum())
    q = float((weight * (d - fixed) ** 2).sum())
    tau2 = max(0.0, (q - (len(d) - 1)) / float(weight.sum() - (weight**2).sum() / weight.sum()))
    pooled = 1.0 / (s**2 + tau2)
    mean = float((pooled * d).sum() / pooled.sum())
    return Heterogeneity(q, tau2, mean, tuple((mean + tau2 / (tau2 + s**2) * (d - mean)).tolist()))


def _called(one: SliceDamage, keys: Sequence[str]) -> str | None:
    named = {label.key: label.name for label in reversed(one.labels)}
    return next((named[key] for key in keys if key in named), None)


def _discordant(
    d: np.ndarray, member: np.ndarray, draw: Resampling
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items won, lost and all of every slice, divided by its design effect.

    Damage counts right to wrong as positive: Tango's difference with its counts exchanged.
    """
    won, lost = ((d < 0).astype(np.float64), (d > 0).astype(np.float64))
    rows = [paired_counts(won[row], lost[row], draw.take(row)) for row in member]
    first, second, size = np.array(rows).T
    return first, second, size


def _permutation_p(d: np.ndarray, member: np.ndarray, draw: Resampling) -> np.ndarray:
    inside = member @ np.stack([d, d * d], axis=1)
    observed = _contrast_t(inside[None], d, member)[0]
    return adjusted_p(observed, _contrast_t(permuted_group_sums(d, member, draw), d, member))


def _contrast_t(sums: np.ndarray, d: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Welch's t of slice against rest, [rows, S], from sums and squares inside [rows, S, 2]."""
    size, (total, squares) = member.sum(axis=1), np.moveaxis(sums, -1, 0)
    inside, inside_se, _ = moments(total, squares, size)
    rest, rest_se, _ = moments(d.sum() - total, (d * d).sum() - squares, len(d) - size)
    return ratio(inside - rest, np.sqrt(inside_se**2 + rest_se**2))
