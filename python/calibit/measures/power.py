"""Planning a comparison: minimal detectable effect and the number of items needed."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from calibit.measures.intervals import tango_bounds, two_sided_z

DEFAULT_ALPHA = 0.05
DEFAULT_POWER = 0.8
MANY_CHANGED = 2000
"""From so many changed answers on the normal approximation of a share's power errs by less than
0.001."""


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


def share_power_at(
    n: int, flip_rate: float, margin: float, *, alpha: float = DEFAULT_ALPHA
) -> float:
    """Probability that Tango's interval shows the loss of a share to lie below a margin where
    nothing is lost: answers change, as many for the better as for the worse.

    With few changed answers the normal approximation of `power_at` is far off: of 125 items of
    which 1 % change it says 92 %, and the interval passes a margin of 3 points in 58 %.

    Args:
        n: number of items.
        flip_rate: share of items whose correctness changes, 0 to 1.
        margin: largest acceptable loss.
        alpha: two-sided error.

    Raises:
        ValueError: for fewer than one item, or a flip rate outside [0, 1].
    """
    from scipy.special import bdtr, gammaln, xlog1py, xlogy

    if n < 1 or not 0.0 <= flip_rate <= 1.0:
        raise ValueError(
            f"[power] expected at least 1 item and a flip rate of 0 to 1, got {n} and {flip_rate}"
        )
    if n * flip_rate > MANY_CHANGED:
        return power_at(n, math.sqrt(flip_rate), margin, alpha=alpha)
    spread = 9.0 * math.sqrt(n * flip_rate * (1.0 - flip_rate)) + 9.0  # beyond it less than 1e-12
    changed = np.arange(
        max(0, math.floor(n * flip_rate - spread)), min(n, math.ceil(n * flip_rate + spread)) + 1
    )
    ways = gammaln(n + 1) - gammaln(changed + 1) - gammaln(n - changed + 1)
    chance = np.exp(ways + xlogy(changed, flip_rate) + xlog1py(n - changed, -flip_rate))
    most = _most_lost(changed.astype(np.float64), float(n), margin, two_sided_z(1.0 - alpha))
    passes = np.where(most < 0, 0.0, bdtr(np.maximum(most, 0.0), changed, 0.5))
    return float(min(1.0, np.sum(chance * passes)))


def _most_lost(changed: np.ndarray, n: float, margin: float, z: float) -> np.ndarray:
    """Most lost answers among the changed with which the loss is shown to lie below the margin;
    below 0 where it never is. float64 [m]."""
    passing, failing = np.full(len(changed), -1.0), changed + 1.0
    while (failing - passing > 1.0).any():
        lost = np.clip(np.floor((passing + failing) / 2.0), 0.0, changed)
        lower, _ = tango_bounds(lost, changed - lost, np.full(len(changed), n), z)
        below = -lower < margin
        passing, failing = np.where(below, lost, passing), np.where(below, failing, lost)
    return passing


def share_n_needed(
    flip_rate: float,
    margin: float,
    *,
    alpha: float = DEFAULT_ALPHA,
    power: float = DEFAULT_POWER,
) -> int:
    """Items needed to show that no share is lost, by Tango's interval (`share_power_at`).

    Args:
        flip_rate: share of items whose correctness changes, 0 to 1.
        margin: largest acceptable loss.
        alpha: two-sided error.
        power: probability of showing it.
    """
    low, high = 0, n_needed(math.sqrt(flip_rate), margin, alpha=alpha, power=power) or 1
    while share_power_at(high, flip_rate, margin, alpha=alpha) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        enough = share_power_at(middle, flip_rate, margin, alpha=alpha) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high
