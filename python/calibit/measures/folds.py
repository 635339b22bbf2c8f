"""Folds that depend on an item's id alone, so that the same item is held out in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

FOLDS = 5


def fold_of(item: str, folds: int = FOLDS) -> int:
    """Fold of one item: the first 32 bits of the SHA-256 of its id, modulo the number of folds.

    Args:
        item: item id.
        folds: number of folds.

    Example:
        >>> [fold_of(item) for item in ("arc_easy-0", "arc_easy-1", "boolq-0", "hellaswag-1")]
        [2, 4, 1, 1]
    """
    return int(hashlib.sha256(item.encode()).hexdigest()[:8], 16) % folds


def folds_of(items: Sequence[str], folds: int = FOLDS) -> np.ndarray:
    """Fold of every item, int64 [N].

    Raises:
        ValueError: for fewer than two folds.
    """
    if folds < 2:
        raise ValueError(f"[folds] expected at least 2 folds, got {folds}")
    return np.array([fold_of(item, folds) for item in items], dtype=np.int64)
