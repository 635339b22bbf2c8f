"""Planning a comparison: minimal detectable effect and the number of items needed."""

from __future__ import annotations

import math
from statistics import NormalDist

from calibit.measures.intervals import two_sided_z

DEFAULT_ALPHA = 0.05
DEFAULT_POWER = 0.8


def detection_z(*, alpha: float = DEFAULT_ALPHA, power: float = DEFAULT_POWER) -> float:
    """z_{1 - alpha/2} + z_{power}: 2.8015852181 for the defaults.

    Raises:
        ValueError: for alpha or power outside (0, 1).
    """
    if not (0.0 < alpha < 1.0 and 0.0 < power < 1.0):
        raise ValueError(
            f"[power] expected alpha and power between 0 and 1, got {alpha} and {power}"
        )
    return two_sided_z(1.0 - alpha) + two_sided_z(2.0 * power - 1.0)


def mde_accuracy(
    n: int, flip_rate: float, *, alpha: float = DEFAULT_ALPHA, power: float = DEFAULT_POWER
) -> float:
    """Smallest accuracy difference that n items detect; an upper bound, since the variance of d is
    at most the flip rate.

    Args:
        n: number of items.
        flip_rate: expected share of items whose correctness changes.
        alpha: two-sided error.
        power: probability of detection.
    """
    return mde_mean(n, math.sqrt(flip_rate), alpha=alpha, power=power)


def mde_mean(
    n: int, sd: float, *, alpha: float = DEFAULT_ALPHA, power: float = DEFAULT_POWER
) -> float:
    """Smallest mean difference that n items detect, sd = that of the per-item differences.

    Raises:
        ValueError: for fewer than one item.
    """
    if n < 1:
        raise ValueError(f"[power] expected at least 1 item, got {n}")
    return detection_z(alpha=alpha, power=power) * sd / math.sqrt(n)


def power_at(
    n: int, sd: float, margin: float, damage: float = 0.0, *, alpha: float = DEFAULT_ALPHA
) -> float:
    """Probability that n items show a damage to lie below a margin.

    Args:
        n: number of items.
        sd: standard deviation of the per-item differences.
        margin: largest acceptable damage.
        damage: the true damage.
        alpha: two-sided error.

    Raises:
        ValueError: for fewer than one item, or a spread that is not above 0.
    """
    if n < 1 or not sd > 0.0:
        raise ValueError(f"[power] expected at least 1 item and a spread above 0, got {n} and {sd}")
    return NormalDist().cdf((margin - damage) * math.sqrt(n) / sd - two_sided_z(1.0 - alpha))


def n_needed(
    sd: float,
    margin: float,
    damage: float = 0.0,
    *,
    alpha: float = DEFAULT_ALPHA,
    power: float = DEFAULT_POWER,
) -> int | None:
    """Items needed to show that a damage lies below a margin.

    Args:
        sd: standard deviation of the per-item differences (sqrt of the flip rate for accuracy).
        margin: largest acceptable damage.
        damage: the damage to expect.
        alpha: two-sided error.
        power: probability of showing it.

    Returns:
        The number of items, or None (unreachable) where the damage is not below the margin.

    Example:
        >>> n_needed(0.1**0.5, 0.01)
        7849
    """
    if damage >= margin:
        return None
    return math.ceil((detection_z(alpha=alpha, power=power) * sd / (margin - damage)) ** 2)
