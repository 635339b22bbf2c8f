"""Which inputs go through the model together, and how their shared beginnings are encoded once.

The inputs of a batch (one per choice) form a trie. It is cut into levels at a few positions; each
level is one forward pass whose rows are the distinct beginnings up to the level's end, continuing
from the cache of the level before. So the context is encoded once for all choices of an item, a
choice of one token costs nothing beyond its context, and a template or few-shot prefix common to
several items is encoded once for all of them.

Every row that continues into the next level is full, so only rows that end are padded, on the
right: causal attention hides the padding from every scored position, and no attention mask or
position argument is needed. Positions, rotary angles, ALiBi biases and sliding windows are then
whatever the model computes for a plain prompt with a cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from calibit.evaluation.encoding import EncodedChoices

Tokens = tuple[int, ...]

PASS_COST = 35
"""Fixed cost of a forward pass in tokens: on two AVX2 cores a 135M fp32 model needs 57 ms for one
token and 1.75 ms for each further one. Larger models and GPUs have similar or larger ratios; the
plan, not the result, depends on it."""

MAX_ITEMS = 256
_CACHE_FACTOR = 4  # a level may hold this many times `batch_tokens` positions in the cache


@dataclass(frozen=True)
class Batch:
    """One unit of work: what is scored together and stored together.

    Attributes:
        items: indices of the encoded items.
        cuts: ends of the levels, increasing; the last is the length of the longest input.
    """

    items: tuple[int, ...]
    cuts: tuple[int, ...]


@dataclass(frozen=True)
class Level:
    """The rows of one forward pass.

    Attributes:
        start, end: positions of the inputs that it covers.
        rows: ids of each row, 1..end-start of them.
        parents: row of the level before that each row continues (empty for the first level).
    """

    start: int
    end: int
    rows: tuple[Tokens, ...]
    parents: tuple[int, ...]


@dataclass(frozen=True)
class Trie:
    """Inputs cut into levels.

    Attributes:
        levels: the forward passes in order.
        row_of: for input i and level l that it reaches, `row_of[i][l]` is its row.
    """

    levels: tuple[Level, ...]
    row_of: tuple[tuple[int, ...], ...]


def plan(items: Sequence[EncodedChoices], *, batch_tokens: int, share: bool = True) -> list[Batch]:
    """Batches over all scorable items: deterministic, from the whole list.

    Args:
        items: encoded items; those with a `reason` are left out.
        batch_tokens: tokens a forward pass may hold (more only where a single item needs it).
        share: False encodes every choice from its first token on, in one pass per batch (the
            reference way).

    Returns:
        Batches in the order in which they are run.
    """
    usable = [_Shape.of(index, item) for index, item in enumerate(items) if item.reason is None]
    if not usable:
        return []
    best = min(
        (_segment(sorted(usable, key=key), batch_tokens, share) for key in _ORDERS),
        key=lambda found: found[0],
    )
    return [_batch(group, items, share) for group in best[1]]


def cut(inputs: Sequence[Tokens], cuts: Sequence[int]) -> Trie:
    """The levels of a batch: distinct beginnings of the inputs at each cut.

    Args:
        inputs: token ids of each input.
        cuts: increasing ends of levels, the last at least the longest input's length.
    """
    ordered = sorted(set(inputs))
    cover: dict[Tokens, Tokens] = {}
    for index in reversed(
        range(len(ordered))
    ):  # an input that begins another one needs no row of its own
        tokens, following = ordered[index], ordered[index + 1] if index + 1 < len(ordered) else ()
        cover[tokens] = cover[following] if following[: len(tokens)] == tokens else tokens
    leaves = sorted(set(cover.values()))
    levels: list[Level] = []
    seats: list[dict[Tokens, int]] = []
    for start, end in zip((0, *cuts[:-1]), cuts, strict=True):
        names = dict.fromkeys(leaf[:end] for leaf in leaves if len(leaf) > start)
        above = seats[-1] if seats else {}
        parents = tuple(above[name[:start]] for name in names) if above else ()
        levels.append(Level(start, end, tuple(name[start:] for name in names), parents))
        seats.append({name: row for row, name in enumerate(names)})
    row_of = tuple(
        tuple(
            seat[cover[tokens][:end]]
            for seat, start, end in _reached(seats, cuts, len(cover[tokens]))
        )
        for tokens in inputs
    )
    return Trie(tuple(levels), row_of)


def best_cuts(inputs: Sequence[Tokens]) -> tuple[int, ...]:
    """The cuts with the fewest tokens computed, PASS_COST included: a shortest path over branching
    points and ends."""
    leaves = sorted(set(inputs))
    lengths = np.array([len(leaf) for leaf in leaves])
    common = np.array([0, *(_common(a, b) for a, b in pairwise(leaves))])
    covered = np.append(common[1:] == lengths[:-1], False)  # begins its successor
    # Dropping a covered leaf keeps min() of the two overlaps as the overlap of its neighbours.
    for index in np.flatnonzero(covered):
        common[index + 1] = min(common[index], common[index + 1])
    lengths, common = lengths[~covered], common[~covered]
    points = np.unique(np.concatenate([[0], common, lengths]))
    cost = np.full(points.size, np.inf)
    came = np.zeros(points.size, dtype=np.int64)
    cost[0] = 0.0
    for here, start in enumerate(points[:-1]):
        alive = lengths > start
        rows = (common[alive, None] < points[None, here + 1 :]).sum(axis=0)
        total = cost[here] + PASS_COST + rows * (points[here + 1 :] - start)
        better = total < cost[here + 1 :]
        cost[here + 1 :][better] = total[better]
        came[here + 1 :][better] = here
    path, at = [], points.size - 1
    while at > 0:
        path.append(int(points[at]))
        at = int(came[at])
    return tuple(reversed(path))


def shared_length(item: EncodedChoices) -> int:
    """Tokens that the inputs of all choices of an item have in common at their beginning."""
    return _common(min(item.inputs), max(item.inputs))


def tokens_of(batch: Batch, items: Sequence[EncodedChoices]) -> int:
    """Tokens that a batch sends through the model, padding included."""
    trie = cut([tokens for index in batch.items for tokens in items[index].inputs], batch.cuts)
    return sum(len(level.rows) * (level.end - level.start) for level in trie.levels)


@dataclass(frozen=True)
class _Shape:
    """What the planner needs to know of an item: the shared beginning and the rows beyond it."""

    index: int
    shared: Tokens
    rows: int
    longest: int

    @classmethod
    def of(cls, index: int, item: EncodedChoices) -> _Shape:
        shared = item.inputs[0][: shared_length(item)]
        tails = {tokens[len(shared) :] for tokens in item.inputs} - {()}
        return cls(index, shared, len(tails), max(map(len, item.inputs)))


_ORDERS: tuple[Callable[[_Shape], Any], ...] = (
    lambda shape: (len(shape.shared), shape.longest, shape.shared, shape.index),
    lambda shape: (len(shape.shared), shape.shared, shape.index),
    lambda shape: (shape.shared, shape.index),
)
"""Equal lengths together (no padding), or equal beginnings together (shared templates): the cheaper
plan wins."""


def _segment(order: list[_Shape], limit: int, share: bool) -> tuple[float, list[list[_Shape]]]:
    """Cheapest split of an order into consecutive batches, by dynamic programming from the end."""
    best = [float("inf")] * len(order) + [0.0]
    stop = [0] * len(order)
    overlap = [_common(a.shared, b.shared) for a, b in pairwise(order)] + [0]
    for first in reversed(range(len(order))):
        group = _Group()
        for last in range(first, min(first + MAX_ITEMS, len(order))):
            group.add(order[last], overlap[last - 1] if last > first else len(order[last].shared))
            cost, width = group.cost() if share else group.plain_cost()
            if last > first and (
                width > limit or group.rows * group.longest > _CACHE_FACTOR * limit
            ):
                break
            if cost + best[last + 1] < best[first]:
                best[first], stop[first] = cost + best[last + 1], last + 1
    groups, at = [], 0
    while at < len(order):
        groups.append(order[at : stop[at]])
        at = stop[at]
    return best[0], groups


class _Group:
    """Running totals of a candidate batch, with the cost of its best simple cut."""

    def __init__(self) -> None:
        self.size = self.rows = self.longest = 0
        self.begin = self.overlap = 1 << 30
        self.childless: Counter[int] = Counter()

    def add(self, shape: _Shape, overlap: int) -> None:
        length = len(shape.shared)
        self.size += 1
        self.rows += max(1, shape.rows)
        self.longest = max(self.longest, shape.longest)
        self.begin = min(self.begin, length)
        self.overlap = min(self.overlap, overlap, length)
        if not shape.rows:
            self.childless[length] += 1

    def plain_cost(self) -> tuple[float, int]:
        width = self.rows * self.longest
        return PASS_COST + width, width

    def cost(self) -> tuple[float, int]:
        """(tokens and passes of the best of four simple cuts, widest pass in tokens)."""
        begin, overlap = self.begin, self.overlap
        tail = (self.rows - self.childless[begin]) * (self.longest - begin)
        tail_cost = PASS_COST + tail if tail else 0
        found = [
            self.plain_cost(),
            (PASS_COST + self.size * begin + tail_cost, max(self.size * begin, tail)),
        ]
        if 0 < overlap < begin:
            middle = self.size * (begin - overlap)
            late = self.rows * (self.longest - overlap)
            found.append((2 * PASS_COST + overlap + middle + tail_cost, max(overlap, middle, tail)))
            found.append((2 * PASS_COST + overlap + late, max(overlap, late)))
        return min(found)


def _batch(group: list[_Shape], items: Sequence[EncodedChoices], share: bool) -> Batch:
    indices = tuple(shape.index for shape in group)
    inputs = [tokens for index in indices for tokens in items[index].inputs]
    return Batch(indices, best_cuts(inputs) if share else (max(map(len, inputs)),))


def _reached(
    seats: Sequence[dict[Tokens, int]], cuts: Sequence[int], length: int
) -> list[tuple[dict[Tokens, int], int, int]]:
    return [(s, a, b) for s, a, b in zip(seats, (0, *cuts[:-1]), cuts, strict=True) if a < length]


def _common(a: Tokens, b: Tokens) -> int:
    """Length of the common beginning."""
    for position, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return position
    return min(len(a), len(b))
