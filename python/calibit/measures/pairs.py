"""Reference and candidate on the same items: what every comparison of two models starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.distributions import Distributions, as_distributions
from calibit.measures.proper import labelled_pair
from calibit.measures.resampling import Resampling
from calibit.measures.scores import UNLABELLED, Scores


@dataclass(frozen=True, eq=False)
class LabelledPair:
    """Two models on N labelled items with at least two choices each.

    Attributes:
        a, b: distributions of reference and candidate, item by item.
        gold: int64 [N], index of the right choice.
        ids: item ids; folds are made from them.
        known: bool [M], which of the items given are these N.
    """

    a: Distributions
    b: Distributions
    gold: np.ndarray
    ids: tuple[str, ...]
    known: np.ndarray

    @property
    def n(self) -> int:
        """Number of items."""
        return self.a.n

    def resampling(self, given: Resampling | None) -> Resampling:
        """How these items are resampled: as given for all items, or the project's defaults."""
        return (given or Resampling()).take(self.known)

    @cached_property
    def right_a(self) -> np.ndarray:
        """float64 [N]: 1 where the reference is right."""
        return (self.a.predicted == self.gold).astype(np.float64)

    @cached_property
    def right_b(self) -> np.ndarray:
        """float64 [N]: 1 where the candidate is right."""
        return (self.b.predicted == self.gold).astype(np.float64)

    @cached_property
    def d_p_true(self) -> np.ndarray:
        """float64 [N]: change of the probability of the right choice."""
        return self.b.of(self.gold)[0] - self.a.of(self.gold)[0]

    @cached_property
    def d_log_p_true(self) -> np.ndarray:
        """float64 [N]: change of its log probability, nats."""
        return self.b.of(self.gold)[1] - self.a.of(self.gold)[1]


def same_items(a: Any, b: Any, *, op: str) -> tuple[Distributions, Distributions]:
    """Distributions of two models on the same items.

    Args:
        a, b: Scores, Distributions, or log scores [N, K] (K may differ per item).
        op: name used in error messages.

    Raises:
        ValueError: if the items differ in number or in number of choices.
    """
    first, second = as_distributions(a, op=op), as_distributions(b, op=op)
    if first.n != second.n:
        raise ValueError(
            f"[{op}] expected the same items in a and b, got {first.n} and {second.n} items"
        )
    different = np.flatnonzero(first.k != second.k)
    if len(different):
        item = int(different[0])
        raise ValueError(
            f"[{op}] expected equal numbers of choices, "
            f"got {first.k[item]} and {second.k[item]} in item {item}"
        )
    return first, second


def labelled_models(
    a: Any,
    b: Any,
    gold: ArrayLike | None = None,
    *,
    ids: Sequence[str] | None = None,
    op: str,
) -> LabelledPair:
    """Two models on their labelled items; unlabelled ones are left out.

    Args:
        a, b: reference and candidate: Scores, Distributions, or log scores [N, K].
        gold: int [N], -1 = unlabelled; taken from `a` where it is a Scores.
        ids: [N] item ids; those of `a` where it is a Scores, else "0", "1", ...
        op: name used in error messages.

    Raises:
        ValueError: naming the item, if the two do not pair, an item has one choice only (it can
            neither be answered wrongly nor change), or no item is labelled.
    """
    first, second = same_items(a, b, op=op)
    labels = getattr(a, "gold", None) if gold is None else gold
    kept, right = labelled_pair(first, labels, op=op)
    names = _ids(a, ids, first.n, op)
    known = np.asarray(labels) != UNLABELLED
    if isinstance(a, Scores) and isinstance(b, Scores):
        _same_keys(a, b, op)
        if gold is None:
            _same_gold(a.gold, b.gold, names, op)
    pair = LabelledPair(
        kept,
        second if known.all() else second.take(known),
        right,
        tuple(name for name, is_known in zip(names, known, strict=True) if is_known),
        known,
    )
    if not pair.n:
        raise ValueError(f"[{op}] expected at least one labelled item, got none")
    refuse_single_choices(pair.a, pair.ids, op=op)
    return pair


def refuse_single_choices(distributions: Distributions, ids: Sequence[str], *, op: str) -> None:
    """Refuse items with one choice: they have no margin and no odds.

    Raises:
        ValueError: naming the first such item.
    """
    alone = np.flatnonzero(distributions.k < 2)
    if len(alone):
        raise ValueError(
            f"[{op}] expected at least 2 choices per item, got 1 in item {ids[int(alone[0])]!r}"
        )


def _ids(a: Any, ids: Sequence[str] | None, n: int, op: str) -> tuple[str, ...]:
    names = getattr(a, "ids", None) if ids is None else ids
    if names is None:
        return tuple(str(index) for index in range(n))
    if len(names) != n:
        raise ValueError(f"[{op}] expected {n} ids, got {len(names)}")
    return tuple(str(name) for name in names)


def _same_keys(a: Scores, b: Scores, op: str) -> None:
    for first, second in zip(a.keys, b.keys, strict=True):
        if first != second:
            raise ValueError(
                f"[{op}] expected the same items in the same order in a and b, "
                f"got {'/'.join(first)} and {'/'.join(second)}"
            )


def _same_gold(first: np.ndarray, second: np.ndarray, ids: Sequence[str], op: str) -> None:
    different = np.flatnonzero(first != second)
    if len(different):
        item = int(different[0])
        raise ValueError(
            f"[{op}] expected the same right choice in a and b, "
            f"got {first[item]} and {second[item]} in item {ids[item]!r}"
        )
