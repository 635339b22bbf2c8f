"""Distributions over choices, in log space and float64; the number of choices may differ per item.

All items lie in one flat array with offsets, so that every measure is a segment operation. The
normaliser adds the exponentials of an item in sorted order: permuting the choices changes no bit,
so no value can cross a bin edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

SUM_TOLERANCE = 1e-6
"""How far the probabilities of an item may be from summing to one.

float32 softmax over a few choices: 1e-7.
"""


@dataclass(frozen=True, eq=False)
class Distributions:
    """N distributions with K_i choices each.

    Attributes:
        log_p: float64 [sum K_i], log probabilities of all items one after another; -inf for
            probability 0.
        p: float64 [sum K_i], the probabilities.
        offsets: int64 [N + 1]; item i lies at offsets[i]:offsets[i + 1].
    """

    log_p: np.ndarray
    p: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_scores(
        cls, scores: ArrayLike | Sequence[ArrayLike], *, op: str = "scores"
    ) -> Distributions:
        """Normalise log scores (log-likelihoods, logits, log probabilities) item by item.

        Args:
            scores: [N, K] or N arrays [K_i] of log scores.
            op: name used in error messages.

        Raises:
            ValueError: for NaN, +inf, an item without choices, or what looks like probabilities.
        """
        flat, offsets = flatten(scores, op)
        if np.isnan(flat).any() or np.isposinf(flat).any():
            item = int(item_of(offsets)[np.isnan(flat) | np.isposinf(flat)][0])
            raise ValueError(f"[{op}] expected finite log scores, got NaN or inf in item {item}")
        if _looks_like_probabilities(flat, offsets):
            raise ValueError(
                f"[{op}] expected log scores, got probabilities (none negative, all sum to 1); "
                "use Distributions.from_probabilities(p)"
            )
        log_p = flat - np.repeat(_log_sum_exp(flat, offsets, op), np.diff(offsets))
        return cls(log_p=log_p, p=np.exp(log_p), offsets=offsets)

    @classmethod
    def from_probabilities(
        cls, probabilities: ArrayLike | Sequence[ArrayLike], *, op: str = "probabilities"
    ) -> Distributions:
        """Take probabilities as they are (no renormalisation, so values on a bin edge stay there).

        Args:
            probabilities: [N, K] or N arrays [K_i]; each item sums to one within 1e-6.
            op: name used in error messages.

        Raises:
            ValueError: for NaN, negative values, or an item that does not sum to one.
        """
        flat, offsets = flatten(probabilities, op)
        owner = item_of(offsets)
        for bad, what in ((np.isnan(flat), "NaN"), (flat < 0, "a negative value")):
            if bad.any():
                raise ValueError(
                    f"[{op}] expected probabilities, got {what} in item {int(owner[bad][0])}"
                )
        total = segment_sum(flat, offsets)
        off = np.abs(total - 1.0) > SUM_TOLERANCE
        if off.any():
            item = int(np.flatnonzero(off)[0])
            raise ValueError(
                f"[{op}] expected probabilities that sum to 1, got a sum of {total[item]:.9g} "
                f"in item {item}; pass log scores if these are not probabilities"
            )
        with np.errstate(divide="ignore"):
            return cls(log_p=np.log(flat), p=flat, offsets=offsets)

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.offsets) - 1

    @cached_property
    def k(self) -> np.ndarray:
        """int64 [N]: number of choices per item."""
        return np.diff(self.offsets)

    @cached_property
    def confidence(self) -> np.ndarray:
        """float64 [N]: the largest probability of each item."""
        return np.maximum.reduceat(self.p, self.offsets[:-1]) if self.n else np.empty(0)

    @cached_property
    def predicted(self) -> np.ndarray:
        """int64 [N]: index of the first largest choice."""
        return self._first_of_top[0]

    @cached_property
    def ties(self) -> int:
        """Number of items whose largest score is shared by several choices."""
        return int(np.count_nonzero(self._first_of_top[1] > 1))

    @cached_property
    def log_margin(self) -> np.ndarray:
        """float64 [N]: log probability of the best choice minus that of the second best.

        Infinite where there is one choice.
        """
        first, second = self._top_two(self.log_p)
        with np.errstate(invalid="ignore"):
            return first - second

    @cached_property
    def margin(self) -> np.ndarray:
        """float64 [N]: largest minus second largest probability; where K = 1 the second is 0."""
        first, second = self._top_two(self.p)
        return first - np.where(np.isneginf(second), 0.0, second)

    @cached_property
    def log_odds(self) -> np.ndarray:
        """float64 [N]: log odds of the best choice against all the others together.

        Infinite where the others have probability 0.
        """
        first, second = self._top_two(self.log_p)
        top = np.where(np.isneginf(second), 0.0, second)
        rest = self.log_p - np.repeat(top, self.k)
        rest[self.offsets[:-1] + self.predicted] = -np.inf
        with np.errstate(divide="ignore"):
            return first - (top + np.log(segment_sum(np.exp(rest), self.offsets)))

    @cached_property
    def entropy(self) -> np.ndarray:
        """float64 [N], nats, with 0 log 0 = 0."""
        return -segment_sum(_times_log(self.p, self.log_p), self.offsets)

    def of(self, choice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probability and log probability of one choice per item.

        Args:
            choice: int64 [N], index of the choice.

        Returns:
            p and log p of it, float64 [N] each.
        """
        where = self.offsets[:-1] + choice
        return self.p[where], self.log_p[where]

    def tempered(self, temperature: float | np.ndarray) -> Distributions:
        """The distributions with their log scores divided by a temperature.

        Args:
            temperature: above 0; one for all items, or float64 [N].
        """
        scale = np.broadcast_to(1.0 / np.asarray(temperature, dtype=np.float64), (self.n,))
        scaled = self.log_p * np.repeat(scale, self.k)
        log_p = scaled - np.repeat(_log_sum_exp(scaled, self.offsets, "tempered"), self.k)
        return Distributions(log_p=log_p, p=np.exp(log_p), offsets=self.offsets)

    def take(self, items: np.ndarray) -> Distributions:
        """The distributions of `items` (int64 indices or a boolean mask), in that order."""
        index = np.flatnonzero(items) if items.dtype == bool else np.asarray(items, dtype=np.int64)
        sizes = self.k[index]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        where = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.offsets[:-1][index], sizes)
        return Distributions(log_p=self.log_p[where], p=self.p[where], offsets=offsets)

    def matrix(self) -> np.ndarray | None:
        """float64 [N, K] probabilities; None where the number of choices differs."""
        if self.n == 0 or (self.k != self.k[0]).any():
            return None
        return self.p.reshape(self.n, -1)

    @cached_property
    def _first_of_top(self) -> tuple[np.ndarray, np.ndarray]:
        if self.n == 0:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        top = np.maximum.reduceat(self.log_p, self.offsets[:-1])
        is_top = self.log_p == np.repeat(top, self.k)
        inside = np.arange(len(self.log_p)) - np.repeat(self.offsets[:-1], self.k)
        first = np.minimum.reduceat(np.where(is_top, inside, len(self.log_p)), self.offsets[:-1])
        return first, np.add.reduceat(is_top.astype(np.int64), self.offsets[:-1])

    def _top_two(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.n == 0:
            return np.empty(0), np.empty(0)
        first = np.maximum.reduceat(values, self.offsets[:-1])
        rest = values.copy()
        rest[self.offsets[:-1] + self.predicted] = -np.inf
        return first, np.maximum.reduceat(rest, self.offsets[:-1])


def as_distributions(value: Any, *, op: str) -> Distributions:
    """`value` as Distributions: itself, those of a Scores, or normalised log scores."""
    if isinstance(value, Distributions):
        return value
    inner = getattr(value, "distributions", None)
    if isinstance(inner, Distributions):
        return inner
    return Distributions.from_scores(value, op=op)


def flatten(values: ArrayLike | Sequence[ArrayLike], op: str) -> tuple[np.ndarray, np.ndarray]:
    """Values [N, K] or N arrays [K_i] as one float64 array and offsets int64 [N + 1].

    Raises:
        ValueError: for an item without choices, or values that are not numbers in rows.
    """
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype != object:
        n, k = values.shape
        if n and not k:
            raise ValueError(
                f"[{op}] expected at least one choice per item, got shape {values.shape}"
            )
        return values.astype(np.float64).ravel(), np.arange(n + 1, dtype=np.int64) * k
    rows = [np.asarray(row, dtype=np.float64) for row in values]  # type: ignore[union-attr]
    for index, row in enumerate(rows):
        if row.ndim != 1 or row.size == 0:
            raise ValueError(
                f"[{op}] expected a row [K] with K >= 1 per item, "
                f"got shape {row.shape} in item {index}"
            )
    sizes = np.array([row.size for row in rows], dtype=np.int64)
    flat = np.concatenate(rows) if rows else np.empty(0)
    return flat, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def item_of(offsets: np.ndarray) -> np.ndarray:
    """int64 [sum K_i]: the item that each flat entry belongs to."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def segment_sum(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sum of each item's entries, float64 [N].

    Entries are added in order of size, whatever the order of choices.
    """
    if len(offsets) < 2:
        return np.empty(0)
    order = np.lexsort((values, item_of(offsets)))
    return np.add.reduceat(values[order], offsets[:-1])


def _log_sum_exp(flat: np.ndarray, offsets: np.ndarray, op: str) -> np.ndarray:
    if len(offsets) < 2:
        return np.empty(0)
    top = np.maximum.reduceat(flat, offsets[:-1])
    if np.isneginf(top).any():
        raise ValueError(
            f"[{op}] expected a finite score, got only -inf in item {int(np.argmin(top))}"
        )
    shifted = np.exp(flat - np.repeat(top, np.diff(offsets)))
    return top + np.log(segment_sum(shifted, offsets))


def _looks_like_probabilities(flat: np.ndarray, offsets: np.ndarray) -> bool:
    if not len(flat) or (np.diff(offsets) < 2).all() or (flat < 0).any():
        return False
    return bool((np.abs(segment_sum(flat, offsets) - 1.0) <= SUM_TOLERANCE).all())


def _times_log(p: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    return np.where(p > 0, p * np.where(p > 0, log_p, 0.0), 0.0)
