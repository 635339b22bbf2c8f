"""Simultaneous inference about many means of the same items: maxT over resamples."""

from __future__ import annotations

import numpy as np

from calibit.measures.resampling import Resampling, resampled_group_sums, signed_group_sums


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
        values: float64 [S, N], per member and item (or [1, N], common to the members).
        member: bool [S, N], which items belong to a member.
    """
    inside = np.where(member, values, 0.0)
    return moments(inside.sum(axis=1), (inside * inside).sum(axis=1), member.sum(axis=1))


def studentised_maxima(
    values: np.ndarray, member: np.ndarray, draw: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    """Maxima over the family of (D* - D)/SE* and of (D - D*)/SE* on every resample of the items.

    Args:
        values, member: as in `family_moments`.
        draw: number of resamples, seed and clusters.

    Returns:
        Two arrays float64 [resamples]; their quantiles are simultaneous bounds in standard errors.
    """
    mean = family_moments(values, member)[0]
    size, total, squares = np.moveaxis(resampled_group_sums(values, member, draw), -1, 0)
    star, se, size = moments(total, squares, size)
    usable = (se > 0) & (size >= 2)
    t = np.where(usable, (star - mean) / np.where(usable, se, 1.0), 0.0)
    return t.max(axis=1), (-t).max(axis=1)


def sign_flip_p(values: np.ndarray, member: np.ndarray, draw: Resampling) -> np.ndarray:
    """Adjusted one-sided p values of "mean 0" by sign flips common to the family (single-step
    maxT).

    Args:
        values, member: as in `family_moments`.
        draw: number of sign patterns, seed and clusters.

    Returns:
        float64 [S].
    """
    mean, se, size = family_moments(values, member)
    squares = (np.where(member, values, 0.0) ** 2).sum(axis=1)
    star, star_se, _ = moments(signed_group_sums(values, member, draw), squares, size)
    return adjusted_p(ratio(mean, se), ratio(star, star_se))


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, and 0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def adjusted_p(observed: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Share of draws [B, S] whose largest statistic reaches each observed one [S], with the
    observed itself counted."""
    largest = np.sort(drawn.max(axis=1))
    reached = len(largest) - np.searchsorted(largest, observed - 1e-9, side="left")
    return (1.0 + reached) / (1.0 + len(largest))
