"""Bootstrap resamples as sums of weighted units.

Every statistic here is a function of sums over the drawn items, so a resample needs its counts or
its sums only. The draws are numpy's `default_rng(seed).integers(0, N, (resamples, N))`, N the
number of items or of clusters, whatever the chunk size and the number of threads: two calls with
one seed and one N use the same items, which keeps two models paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from calibit import _C
from calibit.measures.binning import width_bins

CHUNK_ENTRIES = 1 << 19
"""Counts held at once (4 MiB of float64): larger chunks fall out of the cache and are slower."""


@dataclass(frozen=True)
class Resampling:
    """How an interval is bootstrapped.

    Attributes:
        level: two-sided level.
        resamples: number of resamples.
        seed: of all draws.
        clusters: int64 [N], number of the cluster (passage, prompt) of each item, from 0 without
            gaps; clusters are then drawn whole. None: items are drawn.

    Raises:
        ValueError: for a level outside (0, 1), fewer than 100 resamples, or cluster numbers with
            gaps.
    """

    level: float = 0.95
    resamples: int = 9999
    seed: int = 0
    clusters: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"[resampling] expected a level between 0 and 1, got {self.level}")
        if self.resamples < 100:
            raise ValueError(f"[resampling] expected at least 100 resamples, got {self.resamples}")
        if self.clusters is not None:
            found = np.unique(np.asarray(self.clusters))
            if not np.array_equal(found, np.arange(len(found))):
                raise ValueError(
                    f"[resampling] expected cluster numbers 0 to {len(found) - 1}, got "
                    f"{found[0]} to {found[-1]}"
                )

    def clusters_of(self, n: int) -> np.ndarray | None:
        """The clusters of n items; None where items are drawn.

        Raises:
            ValueError: for clusters of another number of items.
        """
        if self.clusters is not None and len(self.clusters) != n:
            raise ValueError(
                f"[resampling] expected clusters of {n} items, got {len(self.clusters)}"
            )
        return self.clusters

    @property
    def cluster_count(self) -> int | None:
        """Number of clusters; None where items are drawn."""
        return None if self.clusters is None else len(np.unique(self.clusters))

    @property
    def effective_clusters(self) -> float | None:
        """Effective number of clusters (`effective_count`); None where items are drawn."""
        return None if self.clusters is None else effective_count(self.clusters)

    def take(self, items: np.ndarray) -> Resampling:
        """The same for a part of the items (int64 indices or a boolean mask); clusters without
        items are dropped."""
        if self.clusters is None:
            return self
        _, number = np.unique(self.clusters[items], return_inverse=True)
        return replace(self, clusters=number)


def effective_count(clusters: np.ndarray) -> float:
    """How many clusters of equal size tell as much of the error of a mean: (sum n^2)^2 / sum n^4.

    It is G / (1 + Gamma) of Carter, Schnepel and Steigerwald (2017, "Asymptotic behavior of a
    t-test robust to cluster heterogeneity"), Gamma the squared coefficient of variation of the
    clusters' shares in the variance, in their worst case: items of a cluster are alike, so a
    cluster's share grows as the square of its size n. Kish's (sum n)^2 / sum n^2, for items that
    are not alike, lets many single items stand for a few large clusters.

    Args:
        clusters: int64 [N], number of each item's cluster.

    Returns:
        1 to the number of clusters, reached where all are of one size; 0 without items.
    """
    return effective_count_of(np.bincount(clusters).astype(np.float64))


def effective_count_of(sizes: np.ndarray) -> float:
    """`effective_count` of clusters of these sizes, float64; 0 for none."""
    share = sizes**2
    return float(share.sum() ** 2 / np.sum(share**2)) if len(share) else 0.0


def count_chunks(n: int, resampling: Resampling) -> Iterator[np.ndarray]:
    """How often each of n items occurs in each resample.

    Args:
        n: number of items.
        resampling: number of resamples, seed and clusters.

    Yields:
        float64 [rows, n]; the rows of all chunks add up to `resampling.resamples`.
    """
    clusters = resampling.clusters_of(n)
    units = n if clusters is None else int(clusters.max()) + 1
    random = _C.Pcg64(_generator(resampling.seed))
    rows = max(1, CHUNK_ENTRIES // n)
    for start in range(0, resampling.resamples, rows):
        counts = random.counts(units, min(rows, resampling.resamples - start))
        yield counts if clusters is None else counts[:, clusters]


def resampled_sums(columns: np.ndarray, resampling: Resampling) -> np.ndarray:
    """Sums of columns over resamples of the rows.

    Args:
        columns: float64 [N, m], one row per item.
        resampling: number of resamples, seed and clusters.

    Returns:
        float64 [resamples, m].
    """
    clusters = resampling.clusters_of(len(columns))
    units = columns
    if clusters is not None:
        units = np.stack([np.bincount(clusters, column) for column in columns.T], axis=1)
    return _C.resampled_sums(units, resampling.resamples, _generator(resampling.seed))


def resampled_means(columns: np.ndarray, resampling: Resampling) -> np.ndarray:
    """Means of columns over resamples of the rows.

    Args:
        columns: float64 [N, m], N >= 1.
        resampling: number of resamples, seed and clusters.

    Returns:
        float64 [resamples, m].
    """
    if resampling.clusters is None:
        return resampled_sums(columns, resampling) / len(columns)
    sums = resampled_sums(np.append(columns, np.ones((len(columns), 1)), axis=1), resampling)
    return sums[:, :-1] / sums[:, -1:]


def resampled_bin_sums(
    confidence: np.ndarray, correct: np.ndarray, *, bins: int, rule: str, resampling: Resampling
) -> np.ndarray:
    """Bin sums of a confidence histogram, recomputed on every resample: all that a binned
    calibration error needs.

    Args:
        confidence: float64 [N].
        correct: float64 [N], 0 or 1.
        bins: number of bins asked for.
        rule: "width" (i/M edges, closed on the right) or "mass" (equal counts, equal values
            together).
        resampling: number of resamples, seed and clusters.

    Returns:
        float64 [resamples, bins, 3]: count, sum of confidence, sum of correct per bin.
    """
    model = ((confidence, correct),)
    return paired_bin_sums(model, bins=bins, rule=rule, resampling=resampling)[0]


def paired_bin_sums(
    models: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    bins: int,
    rule: str,
    resampling: Resampling,
) -> np.ndarray:
    """`resampled_bin_sums` of several models on the same items, with the same draws, in one pass.

    This is the one place where calibration errors are resampled. Bins of equal mass move with every
    resample; those of equal width do not.

    Args:
        models: confidence and correct of each, float64 [N].
        bins, rule, resampling: as there.

    Returns:
        float64 [models, resamples, bins, 3].
    """
    orders = [np.argsort(c, kind="stable") for c, _ in models]
    placed = [_units(order, resampling) for order in orders]
    unit, units = np.stack([place for place, _ in placed]), placed[0][1]
    c = np.stack([column[order] for (column, _), order in zip(models, orders, strict=True)])
    r = np.stack([column[order] for (_, column), order in zip(models, orders, strict=True)])
    draws, seed = resampling.resamples, _generator(resampling.seed)
    if rule == "width":
        at = np.arange(bins)
        end = np.stack([np.searchsorted(width_bins(row, bins), at, side="right") for row in c])
        return _C.resampled_bin_sums(unit, c, r, bins, units, draws, seed, end=end)
    last = np.stack([last_of_ties(row) for row in c])
    return _C.resampled_bin_sums(unit, c, r, bins, units, draws, seed, last=last)


def resampled_ranking(
    confidence: np.ndarray, correct: np.ndarray, order: np.ndarray, resampling: Resampling
) -> np.ndarray:
    """AUROC, AURC and excess AURC on every resample; copies of an item stand next to each other.

    Args:
        confidence, correct: float64 [N].
        order: int64 [N], items by falling confidence.
        resampling: number of resamples, seed and clusters.

    Returns:
        float64 [resamples, 3]; AUROC is NaN where a resample holds one class only.
    """
    unit, units = _units(order, resampling)
    last = last_of_ties(confidence[order])
    seed = _generator(resampling.seed)
    return _C.resampled_ranking(unit, correct[order], last, units, resampling.resamples, seed)


def resampled_prefix_sums(
    values: np.ndarray, order: np.ndarray, share: float, resampling: Resampling
) -> np.ndarray:
    """Sum of values over the first items of an order, and over all, on every resample.

    Args:
        values: float64 [N].
        order: int64 [N], items in the order that counts.
        share: of the n copies that a resample holds, the first ceil(share n) enter the first sum.
        resampling: number of resamples, seed and clusters.

    Returns:
        float64 [resamples, 2].
    """
    unit, units = _units(order, resampling)
    seed = _generator(resampling.seed)
    return _C.resampled_prefix_sums(unit, values[order], share, units, resampling.resamples, seed)


def resampled_group_sums(
    values: np.ndarray, member: np.ndarray, resampling: Resampling
) -> np.ndarray:
    """Count, sum and sum of squares of groups of items on every resample.

    Args:
        values: float64 [S, N], per group and item (or [1, N], common to the groups).
        member: bool [S, N], which items belong to a group.
        resampling: number of resamples, seed and clusters.

    Returns:
        float64 [resamples, S, 3].
    """
    offsets, unit, value, units = _entries(values, member, resampling)
    seed = _generator(resampling.seed)
    return _C.resampled_group_sums(offsets, unit, value, units, resampling.resamples, seed)


def signed_group_sums(values: np.ndarray, member: np.ndarray, resampling: Resampling) -> np.ndarray:
    """Sums of groups of items under random signs, common to the groups and to the items of a
    cluster: the draws of `default_rng(seed).integers(0, 2, (resamples, N)) * 2 - 1`.

    Args:
        values, member: as in `resampled_group_sums`.
        resampling: number of sign patterns, seed and clusters.

    Returns:
        float64 [resamples, S].
    """
    offsets, unit, value, units = _entries(values, member, resampling)
    seed = _generator(resampling.seed)
    return _C.signed_group_sums(offsets, unit, value, units, resampling.resamples, seed)


def permuted_group_sums(
    values: np.ndarray, member: np.ndarray, resampling: Resampling
) -> np.ndarray:
    """Sum and sum of squares of groups after random permutations of the values over the items.

    Args:
        values: float64 [N].
        member: bool [S, N], which items belong to a group.
        resampling: number of permutations and seed.

    Returns:
        float64 [resamples, S, 2].
    """
    offsets, unit, _, _ = _entries(values[None, :], member, replace(resampling, clusters=None))
    seed = _generator(resampling.seed)
    return _C.permuted_group_sums(offsets, unit, values, resampling.resamples, seed)


def last_of_ties(ordered: np.ndarray) -> np.ndarray:
    """bool [N]: whether a value differs from the next one; the last one does."""
    return np.append(ordered[:-1] != ordered[1:], True)[: len(ordered)]


def _units(order: np.ndarray, resampling: Resampling) -> tuple[np.ndarray, int]:
    """Unit that each place of an order is drawn with, and the number of units."""
    clusters = resampling.clusters_of(len(order))
    if clusters is None:
        return order.astype(np.int32), len(order)
    return clusters[order].astype(np.int32), int(clusters.max()) + 1


def _entries(
    values: np.ndarray, member: np.ndarray, resampling: Resampling
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Groups as lists: offsets [S + 1], unit and value of every entry, number of units."""
    groups, items = np.nonzero(member)
    offsets = np.concatenate([[0], np.cumsum(np.count_nonzero(member, axis=1))])
    value = np.broadcast_to(values, member.shape)[groups, items]
    unit, units = _units(np.arange(member.shape[1]), resampling)
    return offsets, unit[items], value, units


def _generator(seed: int) -> list[int]:
    """High and low words of state and increment of numpy's PCG64."""
    state = np.random.PCG64(seed).state["state"]
    words = (state["state"], state["inc"])
    return [part for word in words for part in (word >> 64, word & 0xFFFFFFFFFFFFFFFF)]
