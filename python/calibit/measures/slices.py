"""Families of slices: named subsets of the items.

A slice is defined by the input or by the reference's outputs, never by the candidate's: slices that
depend on the candidate would select its errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from calibit.measures.binning import named_quarters

_QUARTILES = ("quartile 1", "quartile 2", "quartile 3", "quartile 4")

N_MIN = 30
"""Smallest slice that is searched for damage that is a mean."""

N_MIN_ACC = 10
"""Smallest slice that is searched for loss of accuracy, whose bounds hold for few items. With six
margins and three slices, fewer than 9 items cannot show a loss above 6 points even where every
answer is lost; each of them would widen the bounds of the others."""


class Small(NamedTuple):
    """A slice too small to be searched, and its number of items."""

    key: str
    name: str
    n: int


class Label(NamedTuple):
    """What a slice is called: its key, "lang", and its name, "lang=en"."""

    key: str
    name: str


@dataclass(frozen=True, eq=False)
class Slices:
    """Named subsets of N items.

    Attributes:
        names: one name per slice, for example "domain=capitals" or "domain=capitals, lang=en".
        member: bool [S, N].
        labels: per slice the key and name of every slice that holds these items, the name shown
            first; where omitted, the key is what stands before "=" in the name.
        left_out: slices of the family that have fewer than `n_min` items.
        n_min: smallest slice of the family.
    """

    names: tuple[str, ...]
    member: np.ndarray
    labels: tuple[tuple[Label, ...], ...] = ()
    left_out: tuple[Small, ...] = ()
    n_min: int = N_MIN

    def __post_init__(self) -> None:
        if not self.labels:
            labels = tuple((Label(name.partition("=")[0], name),) for name in self.names)
            object.__setattr__(self, "labels", labels)

    def at_least(self, n_min: int) -> Slices:
        """The slices with so many items; the others are left out, by name."""
        size = self.member.sum(axis=1)
        kept = np.flatnonzero(size >= n_min)
        small = [
            Small(*label, int(n))
            for labels, n in zip(self.labels, size, strict=True)
            if n < n_min
            for label in labels
        ]
        return Slices(
            tuple(self.names[i] for i in kept),
            self.member[kept],
            tuple(self.labels[i] for i in kept),
            (*self.left_out, *small),
            n_min,
        )

    def __add__(self, other: Slices) -> Slices:
        """Both families together; a slice that holds the same items as an earlier one becomes
        another label of that one.
        """
        return _distinct(self.labels + other.labels, np.concatenate([self.member, other.member]))


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
    labels, rows = [], []
    for (key, value), members in sorted(named.items()):
        if len(members) < len(values):
            row = np.zeros(len(values), dtype=bool)
            row[members] = True
            labels.append((Label(key, f"{key}={value}"),))
            rows.append(row)
    every = np.array(rows, dtype=bool).reshape(len(rows), len(values))
    return _distinct(labels, every).at_least(n_min)


def quartile_slices(name: str, values: np.ndarray, *, n_min: int = N_MIN) -> Slices:
    """Four slices by the quartiles of a quantity of the reference or of the input; equal values
    stay together, and a slice that is no quarter for it says so, "lowest 60 %".

    Args:
        name: name of the quantity.
        values: float64 [N].
        n_min: smallest slice kept.
    """
    found = named_quarters(values, _QUARTILES, ("lowest", "highest"))
    return slices_by_key([{name: quarter} for quarter in found], n_min=n_min)


def pairs_of(slices: Slices, *, n_min: int = N_MIN) -> Slices:
    """All intersections of two slices with at least `n_min` items that are smaller than both."""
    labels, rows = [], []
    for first, second in combinations(range(len(slices.names)), 2):
        both = slices.member[first] & slices.member[second]
        if n_min <= both.sum() < min(slices.member[first].sum(), slices.member[second].sum()):
            key, name = map(
                ", ".join, zip(slices.labels[first][0], slices.labels[second][0], strict=True)
            )
            labels.append((Label(key, name),))
            rows.append(both)
    return _distinct(labels, np.array(rows, dtype=bool).reshape(len(rows), slices.member.shape[1]))


def _distinct(labels: Sequence[tuple[Label, ...]], member: np.ndarray) -> Slices:
    found: dict[bytes, list[int]] = {}
    for index, row in enumerate(member):
        found.setdefault(np.packbits(row).tobytes(), []).append(index)
    merged = tuple(
        tuple(dict.fromkeys(label for index in same for label in labels[index]))
        for same in found.values()
    )
    kept = [same[0] for same in found.values()]
    return Slices(tuple(one[0].name for one in merged), member[kept], merged)
