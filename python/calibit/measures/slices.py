"""Worst-slice search with simultaneous bounds.

A slice is a set of items defined by the input or by the reference's outputs, never by the
candidate's. Searching many of them for the worst needs bounds that hold for all at once: a
studentised bootstrap of the maximum for means. For accuracy, whose slices often hold no or one
discordant pair, the studentised bootstrap degenerates (a resample without discordant pair has no
spread); its bounds are Tango's at the Bonferroni level instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import NormalDist

import numpy as np

from calibit.measures.intervals import tango_bounds
from calibit.measures.paired import sign_chunks
from calibit.measures.resampling import CHUNK_ENTRIES, Resampling, count_chunks

N_MIN = 30
"""Smallest slice that is searched."""


@dataclass(frozen=True, eq=False)
class Slices:
    """Named subsets of N items.

    Attributes:
        names: one name per slice, for example "domain=capitals" or "domain=capitals, lang=en".
        member: bool [S, N].
    """

    names: tuple[str, ...]
    member: np.ndarray

    def __add__(self, other: Slices) -> Slices:
        """Both families together, without slices that hold the same items as an earlier one."""
        return _distinct(self.names + other.names, np.concatenate([self.member, other.member]))


def slices_by_key(values: Sequence[Mapping[str, str]], *, n_min: int = N_MIN) -> Slices:
    """One slice per key and value with at least `n_min` items and fewer than all.

    Args:
        values: per item, slice key -> value.
        n_min: smallest slice kept.
    """
    named: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(values):
        for key, value in item.items():
            named.setdefault((key, str(value)), []).append(index)
    names, rows = [], []
    for (key, value), members in sorted(named.items()):
        if n_min <= len(members) < len(values):
            row = np.zeros(len(values), dtype=bool)
            row[members] = True
            names.append(f"{key}={value}")
            rows.append(row)
    return _distinct(tuple(names), np.array(rows, dtype=bool).reshape(len(rows), len(values)))


def quartile_slices(name: str, values: np.ndarray, *, n_min: int = N_MIN) -> Slices:
    """Four slices by the quartiles of a quantity of the reference or of the input (equal values
    together).

    Args:
        name: name of the quantity.
        values: float64 [N].
        n_min: smallest slice kept.
    """
    from calibit.measures.binning import mass_bins

    quarter = mass_bins(values, 4) if len(values) else np.empty(0, dtype=np.int64)
    return slices_by_key([{name: f"quartile {index + 1}"} for index in quarter], n_min=n_min)


def pairs_of(slices: Slices, *, n_min: int = N_MIN) -> Slices:
    """All intersections of two slices with at least `n_min` items that are smaller than both."""
    names, rows = [], []
    for first, second in combinations(range(len(slices.names)), 2):
        both = slices.member[first] & slices.member[second]
        if n_min <= both.sum() < min(slices.member[first].sum(), slices.member[second].sum()):
            names.append(f"{slices.names[first]}, {slices.names[second]}")
            rows.append(both)
    return _distinct(
        tuple(names), np.array(rows, dtype=bool).reshape(len(rows), slices.member.shape[1])
    )


@dataclass(frozen=True)
class SliceDamage:
    """Damage in one slice: mean, standard error, simultaneous bounds, adjusted p values.

    `p_damage` tests that the slice has no damage, `p_contrast` that it has no more than the rest.
    """

    name: str
    n: int
    damage: float
    se: float
    lower: float
    upper: float
    p_damage: float
    p_contrast: float


@dataclass(frozen=True, eq=False)
class SliceSearch:
    """Result of a worst-slice search over one family of slices.

    Attributes:
        metric: what the damage is of.
        slices: every slice searched.
        worst: the slice with the largest lower bound ("worst credible"); None without slices.
        level: simultaneous level of each one-sided bound.
        reason: why nothing was searched.
    """

    metric: str
    slices: tuple[SliceDamage, ...]
    level: float
    reason: str | None = None
    _bounds: BoundsMaker | None = field(default=None, repr=False)

    @property
    def worst(self) -> SliceDamage | None:
        """The slice with the largest lower bound."""
        return max(self.slices, key=lambda entry: entry.lower) if self.slices else None

    @property
    def riskiest(self) -> SliceDamage | None:
        """The slice with the largest upper bound: the one a verdict waits for."""
        return max(self.slices, key=lambda entry: entry.upper) if self.slices else None

    def bounds(self, level: float) -> tuple[float, float]:
        """Largest lower and largest upper bound over the slices at another one-sided level.

        Raises:
            ValueError: if nothing was searched.
        """
        if self._bounds is None:
            raise ValueError(f"[worst_slice] expected at least one slice, got none: {self.reason}")
        lower, upper = self._bounds.at(level)
        return float(lower.max()), float(upper.max())


@dataclass(frozen=True, eq=False)
class BoundsMaker:
    """Simultaneous bounds of S slices: studentised (resamples' maxima) or Tango (counts)."""

    damage: np.ndarray
    se: np.ndarray
    maxima: tuple[np.ndarray, np.ndarray] | None = None
    discordant: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def at(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds, float64 [S] each."""
        if self.maxima is not None:
            above, below = (float(np.quantile(maximum, level)) for maximum in self.maxima)
            return self.damage - above * self.se, self.damage + below * self.se
        if self.discordant is not None:
            return tango_bounds(
                *self.discordant, NormalDist().inv_cdf(1.0 - (1.0 - level) / len(self.damage))
            )
        return self.damage, self.damage


def worst_slice(
    damage: np.ndarray,
    slices: Slices,
    *,
    metric: str = "damage",
    resampling: Resampling | None = None,
) -> SliceSearch:
    """Search a family of slices for the largest damage, with simultaneous bounds.

    Args:
        damage: float64 [N], per item, positive = worse. Values -1, 0, 1 only (right before minus
            right after) are taken as accuracy and bounded by Tango's interval at the Bonferroni
            level.
        slices: the family.
        metric: name of the damage.
        resampling: level (of each one-sided bound), resamples and seed.
    """
    draw = resampling or Resampling()
    d = np.asarray(damage, dtype=np.float64)
    if not len(slices.names):
        return SliceSearch(metric, (), draw.level, reason=f"no slice with at least {N_MIN} items")
    member = slices.member.astype(np.float64)
    mean, se, size = _moments(member @ d, member @ d**2, member.sum(axis=1))
    if np.isin(d, (-1.0, 0.0, 1.0)).all():
        counts = ((member @ (d > 0)).round(), (member @ (d < 0)).round(), size)
        # Damage counts right -> wrong as positive: Tango's difference with the two counts
        # exchanged.
        maker = BoundsMaker(mean, se, discordant=(counts[1], counts[0], counts[2]))
    else:
        maker = BoundsMaker(mean, se, maxima=_studentised_maxima(d, member, mean, draw))
    lower, upper = maker.at(draw.level)
    p_damage = _sign_flip_p(d, member, mean, se, draw)
    p_contrast = _permutation_p(d, member, draw)
    rows = zip(slices.names, size, mean, se, lower, upper, p_damage, p_contrast, strict=True)
    table = tuple(SliceDamage(str(name), int(n), *map(float, rest)) for name, n, *rest in rows)
    return SliceSearch(metric, table, draw.level, _bounds=maker)


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


def _moments(
    total: np.ndarray, squares: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = np.maximum(size, 1.0)
    mean = total / count
    variance = np.maximum(0.0, squares - count * mean**2) / np.maximum(count - 1.0, 1.0)
    # What is left of a spread of zero after cancellation is not a spread.
    variance = np.where(variance <= 1e-24 * np.maximum(1e-12, squares), 0.0, variance)
    return mean, np.sqrt(variance / count), size


def _studentised_maxima(
    d: np.ndarray, member: np.ndarray, mean: np.ndarray, draw: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    units = np.concatenate([member * d, member * d**2, member], axis=0).T
    slices, high, low = len(member), [], []
    for counts in count_chunks(len(d), draw):
        sums = counts @ units
        star, se, size = _moments(
            sums[:, :slices], sums[:, slices : 2 * slices], sums[:, 2 * slices :]
        )
        usable = (se > 0) & (size >= 2)
        t = np.where(usable, (star - mean) / np.where(usable, se, 1.0), 0.0)
        high.append(t.max(axis=1))
        low.append((-t).max(axis=1))
    return np.concatenate(high), np.concatenate(low)


def _sign_flip_p(
    d: np.ndarray, member: np.ndarray, mean: np.ndarray, se: np.ndarray, draw: Resampling
) -> np.ndarray:
    size, squares, units = member.sum(axis=1), member @ d**2, (member * d).T
    observed = np.divide(mean, se, out=np.zeros_like(mean), where=se > 0)
    reached = np.zeros(len(member))
    for signs in sign_chunks(len(d), draw.resamples, draw.seed):
        star, star_se, _ = _moments(signs @ units, squares, size)
        t = np.divide(star, star_se, out=np.zeros_like(star), where=star_se > 0)
        reached += (t.max(axis=1)[:, None] >= observed - 1e-9).sum(axis=0)
    return (1.0 + reached) / (1.0 + draw.resamples)


def _permutation_p(d: np.ndarray, member: np.ndarray, draw: Resampling) -> np.ndarray:
    observed = _contrast_t(d[None, :], member)[0]
    rng, reached = np.random.default_rng(draw.seed), np.zeros(len(member))
    rows = max(1, CHUNK_ENTRIES // len(d))
    for start in range(0, draw.resamples, rows):
        shuffled = rng.permuted(np.tile(d, (min(rows, draw.resamples - start), 1)), axis=1)
        reached += (_contrast_t(shuffled, member).max(axis=1)[:, None] >= observed - 1e-9).sum(
            axis=0
        )
    return (1.0 + reached) / (1.0 + draw.resamples)


def _contrast_t(d: np.ndarray, member: np.ndarray) -> np.ndarray:
    # Welch's t of slice against rest, [rows, S], for rows of values d [rows, N]
    size = member.sum(axis=1)
    total, squares = d @ member.T, d**2 @ member.T
    inside, inside_se, _ = _moments(total, squares, size)
    rest = _moments(
        d.sum(axis=1, keepdims=True) - total,
        (d**2).sum(axis=1, keepdims=True) - squares,
        d.shape[1] - size,
    )
    error = np.sqrt(inside_se**2 + rest[1] ** 2)
    return np.divide(inside - rest[0], error, out=np.zeros_like(error), where=error > 0)


def _distinct(names: tuple[str, ...], member: np.ndarray) -> Slices:
    first: dict[bytes, int] = {}
    for index, row in enumerate(member):
        first.setdefault(np.packbits(row).tobytes(), index)
    kept = sorted(first.values())
    return Slices(tuple(names[index] for index in kept), member[kept])
