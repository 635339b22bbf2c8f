"""Binning rules and tables of bin sums.

`width`: edges i/M, bin i holds (i-1)/M < c <= i/M, and 0 goes to the first bin. `mass`: parts as
equal as possible, equal values together. `mass_edges`: the rule of the code published with the
ACE/SCE/TACE paper (Nixon et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

DEFAULT_BINS = 15

_RANGE_TOLERANCE = 1e-6


def width_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each value under the `width` rule, int64 [N].

    The edges are quotients i/M: running sums or linspace move values such as 0.3 into a
    neighbouring bin.

    Args:
        values: float64 [N] in [0, 1].
        bins: M.
    """
    edges = np.arange(1, bins + 1) / bins
    return np.minimum(np.searchsorted(edges, values, side="left"), bins - 1)


def mass_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Upper edges of the `mass` rule: float64 [min(bins, N)], the last one +inf.

    An edge is the midpoint of the last value of a part and the first value of the next.

    Args:
        values: float64 [N], N >= 1.
        bins: number of parts asked for.
    """
    ordered = np.sort(values)
    parts = min(bins, len(ordered))
    sizes = np.full(parts, len(ordered) // parts)
    sizes[: len(ordered) % parts] += 1
    ends = np.cumsum(sizes)[:-1]
    return np.append((ordered[ends - 1] + ordered[ends]) / 2.0, np.inf)


def mass_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each value under `mass`, int64 [N]: the first bin whose edge is >= the value."""
    return np.searchsorted(mass_edges(values, bins), values, side="left")


def named_quarters(
    values: np.ndarray, names: tuple[str, str, str, str], ends: tuple[str, str]
) -> list[str]:
    """The quarter of each value among all by the `mass` rule, under a name that is true of it.

    Equal values stay together, so with many of them a group may be far larger than a quarter, and
    another one empty. A group of at most a third that begins and ends within a twentieth of the
    values (or one value) of where a quarter does has that quarter's name; any other is named by its
    place.

    Args:
        values: float64 [N].
        names: of the four quarters, from the least values to the largest.
        ends: what the least and the largest values are called.

    Returns:
        One name per value.

    Example:
        >>> named_quarters(np.array([1.0, 1, 1, 2]), ("a", "b", "c", "d"), ("least", "largest"))
        ['least 75 %', 'least 75 %', 'least 75 %', 'd']
    """
    if not len(values):
        return []
    index = mass_bins(values, len(names))
    last = np.cumsum(np.bincount(index, minlength=len(names)))
    found = {}
    for group in np.unique(index):
        start, stop = (int(last[group - 1]) if group else 0), int(last[group])
        found[group] = _quarter_name(start, stop, len(values), names, ends)
    return [found[group] for group in index]


def _quarter_name(
    start: int, stop: int, n: int, names: tuple[str, str, str, str], ends: tuple[str, str]
) -> str:
    """Name of the values at places start to stop of n in rising order."""
    apart = [max(abs(start - k * n / 4.0), abs(stop - (k + 1) * n / 4.0)) for k in range(4)]
    nearest = int(np.argmin(apart))
    if 3 * (stop - start) <= n and apart[nearest] <= max(1.0, n / 20.0):
        return names[nearest]
    low, high = round(100 * start / n), round(100 * stop / n)
    if start == 0 and stop == n:
        return "all alike"
    if start == 0:
        return f"{ends[0]} {high} %"
    if stop == n:
        return f"{ends[1]} {100 - low} %"
    return f"{low} to {high} % from the {ends[0]}"


def published_mass_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each value under the `mass_edges` rule, int64 [N].

    Edges are the sorted values at positions round(b n / M), halves to even; the bin is the number
    of edges <= value, minus 1.
    """
    ordered = np.sort(values)
    positions = [min(round(b * len(ordered) / bins), len(ordered) - 1) for b in range(bins)]
    return np.searchsorted(ordered[positions], values, side="right") - 1


BINNING_RULES = {"width": width_bins, "mass": mass_bins, "mass_edges": published_mass_bins}


def bin_index(values: np.ndarray, bins: int, rule: str) -> np.ndarray:
    """Bin of each value under a named rule, int64 [N].

    Raises:
        ValueError: for an unknown rule or fewer than one bin.
    """
    if rule not in BINNING_RULES:
        raise ValueError(f"[binning] expected a rule of {', '.join(BINNING_RULES)}, got {rule!r}")
    if bins < 1:
        raise ValueError(f"[binning] expected at least 1 bin, got {bins}")
    return BINNING_RULES[rule](values, bins) if len(values) else np.empty(0, dtype=np.int64)


def bin_sums(confidence: np.ndarray, correct: np.ndarray, *, bins: int, rule: str) -> np.ndarray:
    """Count, sum of confidence and sum of correct per bin.

    Args:
        confidence, correct: float64 [N].
        bins: number of bins.
        rule: binning rule.

    Returns:
        float64 [bins, 3].
    """
    index = bin_index(confidence, bins, rule)
    columns = (None, confidence, correct)
    return np.stack(
        [np.bincount(index, weights=column, minlength=bins) for column in columns], axis=1
    ).astype(float)


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram, with a Wilson interval of the accuracy.

    `conf`, `acc`, `acc_lower`, `acc_upper` are None in an empty bin.
    """

    lo: float
    hi: float
    n: int
    conf: float | None
    acc: float | None
    acc_lower: float | None
    acc_upper: float | None


def reliability(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    bins: int = DEFAULT_BINS,
    rule: str = "width",
    level: float = 0.95,
) -> tuple[ReliabilityBin, ...]:
    """Bins of a reliability diagram.

    Args:
        confidence: float [N] in [0, 1].
        correct: [N], 0 or 1.
        bins: number of bins.
        rule: "width" or "mass".
        level: level of the Wilson intervals.

    Returns:
        One entry per bin, empty ones included; none without items.
    """
    from calibit.measures.intervals import wilson

    c, r = top_label(confidence, correct, op="reliability")
    if not len(c):
        return ()
    upper = (
        np.minimum(mass_edges(c, bins), 1.0) if rule == "mass" else np.arange(1, bins + 1) / bins
    )
    lower = np.concatenate([[0.0], upper[:-1]])
    table = []
    for lo, hi, (n, conf, right) in zip(
        lower, upper, bin_sums(c, r, bins=len(upper), rule=rule), strict=True
    ):
        band = wilson(int(right), int(n), level=level)
        mean = float(conf / n) if n else None
        share = float(right / n) if n else None
        entry = ReliabilityBin(float(lo), float(hi), int(n), mean, share, band.lower, band.upper)
        table.append(entry)
    return tuple(table)


def top_label(
    confidence: ArrayLike, correct: ArrayLike, *, op: str
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and correctness as float64 [N], checked.

    Raises:
        ValueError: for NaN, values outside [0, 1], correctness other than 0 and 1, or unequal
            lengths.
    """
    c, r = unit_values(confidence, op=op, name="confidence"), indicator(correct, op=op)
    if len(c) != len(r):
        raise ValueError(
            f"[{op}] expected confidence and correct of one length, got {len(c)} and {len(r)}"
        )
    return c, r


def unit_values(values: ArrayLike, *, op: str, name: str) -> np.ndarray:
    """`values` as float64 [N] in [0, 1] (rounding up to 1e-6 beyond is accepted).

    Raises:
        ValueError: naming the first offending item.
    """
    out = np.asarray(values, dtype=np.float64)
    if out.ndim != 1:
        raise ValueError(f"[{op}] expected {name} of shape [N], got {list(out.shape)}")
    bad = ~((out >= -_RANGE_TOLERANCE) & (out <= 1.0 + _RANGE_TOLERANCE))
    if bad.any():
        item = int(np.flatnonzero(bad)[0])
        raise ValueError(f"[{op}] expected {name} in [0, 1], got {out[item]} in item {item}")
    return np.clip(out, 0.0, 1.0)


def indicator(values: ArrayLike, *, op: str, name: str = "correct") -> np.ndarray:
    """`values` as float64 [N] of zeros and ones.

    Raises:
        ValueError: for anything else, naming the first offending item.
    """
    out = np.asarray(values, dtype=np.float64)
    if out.ndim != 1:
        raise ValueError(f"[{op}] expected {name} of shape [N], got {list(out.shape)}")
    bad = (out != 0.0) & (out != 1.0)
    if bad.any():
        item = int(np.flatnonzero(bad)[0])
        raise ValueError(f"[{op}] expected {name} to be 0 or 1, got {out[item]} in item {item}")
    return out
