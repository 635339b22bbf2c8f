"""Simultaneous inference about many means of the same items: maxT over resamples."""

from __future__ import annotations

import numpy as np

from calibit.measures.paired import sign_chunks
from calibit.measures.resampling import Resampling, count_chunks


def moments(
    total: np.ndarray, squares: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, its standard error (N - 1 in the variance) and the size, from sums.

    Args:
        total, squares: sums of values and of their squares.
        size: number of values.
    """
    count = np.maximum(size, 1.0)
    mean = total / count
    variance = np.maximum(0.0, squares - count * mean**2) / np.maximum(count - 1.0, 1.0)
    # What is left of a spread of zero after cancellation is not a spread.
    variance = np.where(variance <= 1e-24 * np.maximum(1e-12, squares), 0.0, variance)
    return mean, np.sqrt(variance / count), size


def family_moments(
    values: np.ndarray, member: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard error and size of every family member.

    Args:
        values: float64 [S, N] (or [1, N]), per member and item.
        member: float64 [S, N], 1 where an item belongs to the member.
    """
    inside = member * values
    return moments(inside.sum(axis=1), (inside * values).sum(axis=1), member.sum(axis=1))


def studentised_maxima(
    values: np.ndarray, member: np.ndarray, draw: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    """Maxima over the family of (D* - D)/SE* and of (D - D*)/SE* on every resample of the items.

    Args:
        values, member: as in `family_moments`.
        draw: number of resamples and seed.

    Returns:
        Two arrays float64 [resamples]; their quantiles are simultaneous bounds in standard errors.
    """
    mean = family_moments(values, member)[0]
    inside = member * values
    units = np.concatenate([inside, inside * values, member], axis=0).T
    slices, high, low = len(member), [], []
    for counts in count_chunks(values.shape[1], draw):
        sums = counts @ units
        star, se, size = moments(
            sums[:, :slices], sums[:, slices : 2 * slices], sums[:, 2 * slices :]
        )
        usable = (se > 0) & (size >= 2)
        t = np.where(usable, (star - mean) / np.where(usable, se, 1.0), 0.0)
        high.append(t.max(axis=1))
        low.append((-t).max(axis=1))
    return np.concatenate(high), np.concatenate(low)


def sign_flip_p(values: np.ndarray, member: np.ndarray, draw: Resampling) -> np.ndarray:
    """Adjusted one-sided p values of "mean 0" by sign flips common to the family (single-step
    maxT).

    Args:
        values, member: as in `family_moments`.
        draw: number of sign patterns and seed.

    Returns:
        float64 [S].
    """
    mean, se, size = family_moments(values, member)
    inside = member * values
    squares, units = (inside * values).sum(axis=1), inside.T
    observed = np.divide(mean, se, out=np.zeros_like(mean), where=se > 0)
    reached = np.zeros(len(member))
    for signs in sign_chunks(values.shape[1], draw.resamples, draw.seed):
        star, star_se, _ = moments(signs @ units, squares, size)
        t = np.divide(star, star_se, out=np.zeros_like(star), where=star_se > 0)
        reached += (t.max(axis=1)[:, None] >= observed - 1e-9).sum(axis=0)
    return (1.0 + reached) / (1.0 + draw.resamples)
