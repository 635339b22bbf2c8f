"""Bootstrap resamples as sums of weighted units.

Every statistic here is a function of sums over the drawn items, so a resample needs its counts or
its sums only. The draws are numpy's `default_rng(seed).integers(0, N, (resamples, N))`, whatever
the chunk size: two calls with one seed and one N use the same items, which keeps two models paired.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from calibit import _C
from calibit.measures.binning import width_bins

CHUNK_ENTRIES = 1 << 19
"""Counts held at once (4 MiB of float64): larger chunks fall out of the cache and are slower."""


@dataclass(frozen=True)
class Resampling:
    """How an interval is bootstrapped: two-sided level, number of resamples, seed.

    Raises:
        ValueError: for a level outside (0, 1) or fewer than 100 resamples.
    """

    level: float = 0.95
    resamples: int = 9999
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"[resampling] expected a level between 0 and 1, got {self.level}")
        if self.resamples < 100:
            raise ValueError(f"[resampling] expected at least 100 resamples, got {self.resamples}")


def count_chunks(n: int, resampling: Resampling) -> Iterator[np.ndarray]:
    """How often each of n units occurs in each resample.

    Args:
        n: number of units.
        resampling: number of resamples and seed.

    Yields:
        float64 [rows, n]; the rows of all chunks add up to `resampling.resamples`.
    """
    rng = np.random.default_rng(resampling.seed)
    rows = max(1, CHUNK_ENTRIES // n)
    for start in range(0, resampling.resamples, rows):
        size = min(rows, resampling.resamples - start)
        draw = rng.integers(0, n, (size, n))
        draw += np.arange(size)[:, None] * n
        yield np.bincount(draw.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def resampled_sums(units: np.ndarray, resampling: Resampling) -> np.ndarray:
    """Weighted sums of columns over resamples of the rows.

    Args:
        units: float64 [N, m], one row per resampled unit (item, cluster, window).
        resampling: number of resamples and seed.

    Returns:
        float64 [resamples, m].
    """
    return _C.resampled_sums(units, resampling.resamples, _generator(resampling.seed))


def resampled_means(values: np.ndarray, resampling: Resampling) -> np.ndarray:
    """Means of columns over resamples of the rows.

    Args:
        values: float64 [N, m], N >= 1.
        resampling: number of resamples and seed.

    Returns:
        float64 [resamples, m].
    """
    return resampled_sums(values, resampling) / len(values)


def resampled_bin_sums(
    confidence: np.ndarray, correct: np.ndarray, *, bins: int, rule: str, resampling: Resampling
) -> np.ndarray:
    """Bin sums of a confidence histogram, recomputed on every resample: all that a binned
    calibration error needs.

    This is the one place where calibration errors are resampled. Bins of equal mass move with every
    resample; those of equal width do not.

    Args:
        confidence: float64 [N].
        correct: float64 [N], 0 or 1.
        bins: number of bins asked for.
        rule: "width" (i/M edges, closed on the right) or "mass" (equal counts, equal values
            together).
        resampling: number of resamples and seed.

    Returns:
        float64 [resamples, bins, 3]: count, sum of confidence, sum of correct per bin.
    """
    if rule == "width":
        place = width_bins(confidence, bins).astype(np.int32)
        draws = _generator(resampling.seed)
        return _C.resampled_bin_sums(place, confidence, correct, bins, resampling.resamples, draws)
    order = np.argsort(confidence, kind="stable")
    starts = np.flatnonzero(np.diff(confidence[order], prepend=-np.inf))
    facts = np.stack([np.ones(len(order)), confidence[order], correct[order]])
    return np.concatenate(
        [
            _mass_bin_sums(counts[:, order], starts, facts, bins)
            for counts in count_chunks(len(order), resampling)
        ]
    )


def _generator(seed: int) -> list[int]:
    """High and low words of state and increment of numpy's PCG64."""
    state = np.random.PCG64(seed).state["state"]
    words = (state["state"], state["inc"])
    return [part for word in words for part in (word >> 64, word & 0xFFFFFFFFFFFFFFFF)]


def _mass_bin_sums(
    counts: np.ndarray, starts: np.ndarray, facts: np.ndarray, bins: int
) -> np.ndarray:
    # counts [rows, N] in order of confidence, starts [G] of the runs of equal confidence, facts [3,
    # N]
    rows, n = counts.shape
    ends = np.append(starts[1:], n) - 1
    weighted = [np.cumsum(counts * fact, axis=1) for fact in facts]
    if len(ends) < n:
        weighted = [column[:, ends] for column in weighted]
    parts = min(bins, n)
    sizes = np.full(parts, n // parts)
    sizes[: n % parts] += 1
    positions = np.cumsum(sizes)
    groups = len(starts)
    seen = (weighted[0] + np.arange(rows)[:, None] * (n + 1)).ravel()
    wanted = (positions[None, :] + np.arange(rows)[:, None] * (n + 1)).ravel()
    last = np.searchsorted(seen, wanted).reshape(rows, parts) - np.arange(rows)[:, None] * groups
    cumulative = np.stack([np.take_along_axis(x, last, axis=1) for x in weighted], axis=2)
    sums = np.zeros((rows, bins, 3))
    sums[:, :parts] = np.diff(cumulative, axis=1, prepend=0.0)
    return sums
