"""Smooth calibration error (Blasiok and Nakkiran 2023), discretised as their `relplot`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.binning import top_label
from calibit.measures.confidence import NO_ITEMS
from calibit.measures.estimate import Estimate, undefined

_SMALLEST_BANDWIDTH = 0.001
_BISECTIONS = 10


def smece(confidence: ArrayLike, correct: ArrayLike, *, bandwidth: float | None = None) -> Estimate:
    """Smooth ECE: residuals smoothed with a reflected normal kernel, integrated in absolute value.

    Args:
        confidence: float [N] in [0, 1].
        correct: [N], 0 or 1.
        bandwidth: standard deviation of the kernel; None chooses it as the fixed point smECE_s = s.

    Returns:
        Estimate; `extra["bandwidth"]` is the bandwidth used. None without items.

    Raises:
        ValueError: for bad confidences, or a bandwidth that is not positive.
    """
    c, r = top_label(confidence, correct, op="smece")
    if not len(c):
        return undefined("smece", NO_ITEMS, estimator="kernel")
    if bandwidth is not None:
        if bandwidth <= 0:
            raise ValueError(f"[smece] expected a bandwidth above 0, got {bandwidth}")
        value, used = _smece_at(c, r, bandwidth), float(bandwidth)
    else:
        value, used = _fixed_point(c, r)
    return Estimate("smece", value, "kernel", len(c), extra={"bandwidth": used})


def _fixed_point(c: np.ndarray, r: np.ndarray) -> tuple[float, float]:
    at_one = _smece_at(c, r, 1.0)
    if at_one > 1.0:
        return at_one, 1.0
    low, high, value = 0.0, 1.0, at_one
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        error = _smece_at(c, r, middle)
        if middle < _SMALLEST_BANDWIDTH or middle < error:
            low = middle
        else:
            high, value = middle, error
    return value, high


def _smece_at(c: np.ndarray, r: np.ndarray, s: float) -> float:
    points = max(2000, round(20.0 / s)) // 2 + 1
    kernel = np.exp(-((np.linspace(0.0, 1.0, points) - 0.5) ** 2) / (2.0 * s * s)) / (
        s * np.sqrt(2.0 * np.pi)
    )
    at = np.linspace(0.0, 1.0, max(round(10.0 / s), 200))
    grid = np.linspace(0.0, 1.0, points)
    residual = np.interp(at, grid, _smooth(_spread(c, c - r, points), kernel))
    density = np.interp(at, grid, _smooth(_spread(c, np.ones_like(c), points), kernel)) + 1e-4
    return float(np.abs(residual).sum() / density.sum())


def _spread(values: np.ndarray, weights: np.ndarray, points: int) -> np.ndarray:
    place = values * (points - 1)
    left = np.minimum(place.astype(np.int64), points - 2)
    share = place - left
    out = np.bincount(left, weights * (1.0 - share), minlength=points)
    return out + np.bincount(left + 1, weights * share, minlength=points)


def _smooth(weights: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    points = len(weights)
    mirrored = np.concatenate([weights[:0:-1], weights, weights[-2::-1]])
    # "valid" part of the convolution, by FFT
    length = 1 << (len(mirrored) + points - 2).bit_length()
    spectrum = np.fft.rfft(mirrored, length) * np.fft.rfft(kernel, length)
    convolved = np.fft.irfft(spectrum, length)[points - 1 : len(mirrored)]
    return convolved[points // 2 : points // 2 + points]
