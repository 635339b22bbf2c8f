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

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from calibit.evaluation.encoding import EncodedChoices

Tokens = tuple[int, ...]

PASS_COST = 33
POSITION_COST = 0.02
"""Costs in units of one more token in a pass: of a pass, and of each cached position that a row of
it continues from. Fitted to passes of a 135M fp32 Llama on AVX2 cores (95 ms, 0.057 ms, 2.84 ms of
one core). Only the plan depends on them, no result does."""

_CACHE_FACTOR = 4  # cached positions of a batch, at most, in units of `batch_tokens`


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

    @property
    def tokens(self) -> int:
        """Tokens sent through the model, padding included."""
        return len(self.rows) * (self.end - self.start)

    @property
    def cost(self) -> float:
        """Expected time in units of one token."""
        return PASS_COST + self.tokens + POSITION_COST * len(self.rows) * self.start


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

    Items of similar length are neighbours. A batch takes as many as the limit allows: the more
    items, the fewer passes, since every level serves all of them.

    Args:
        items: encoded items; those with a `reason` are left out.
        batch_tokens: tokens that a batch may send through the model, padding aside; more only where
            a single item needs it. Four times as many positions may lie in the cache.
        share: False encodes every choice from its first token on, in one pass per batch (the
            reference way).

    Returns:
        Batches in the order in which they are run.
    """
    usable = [_Shape.of(index, item) for index, item in enumerate(items) if item.reason is None]
    usable.sort(key=lambda shape: (len(shape.shared), shape.longest, shape.shared, shape.index))
    batches: list[Batch] = []
    group: list[_Shape] = []
    load = rows = 0
    for shape in usable:
        more, wide = shape.tokens(group[-1] if group else None, share), rows + shape.rows
        crowded = wide * shape.longest > _CACHE_FACTOR * batch_tokens
        if group and (load + more > batch_tokens or crowded):
            batches.append(_batch(group, items, share))
            group, load, rows = [], 0, 0
            more = shape.tokens(None, share)
        group.append(shape)
        load, rows = load + more, rows + shape.rows
    return [*batches, _batch(group, items, share)] if group else []


def cut(inputs: Sequence[Tokens], cuts: Sequence[int]) -> Trie:
    """The levels of a batch: distinct beginnings of the inputs at each cut.

    Args:
        inputs: token ids of each input.
        cuts: increasing ends of levels, the last at least the longest input's length.
    """
    cover: dict[Tokens, Tokens] = {}
    following: Tokens = ()
    for tokens in sorted(set(inputs), reverse=True):  # one that begins another needs no own row
        cover[tokens] = cover[following] if following[: len(tokens)] == tokens else tokens
        following = tokens
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
    """The cheapest cuts, a shortest path over branching points and ends of the inputs."""
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
        total = cost[here] + PASS_COST + rows * (points[here + 1 :] - start + POSITION_COST * start)
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
    return sum(level.tokens for level in trie.levels)


@dataclass(frozen=True)
class _Shape:
    """What the planner needs to know of an item.

    Attributes:
        index: of the item.
        shared: common beginning of its inputs.
        rows: distinct inputs.
        tails: tokens of the distinct inputs beyond the common beginning.
        longest: length of the longest input.
    """

    index: int
    shared: Tokens
    rows: int
    tails: int
    longest: int

    @classmethod
    def of(cls, index: int, item: EncodedChoices) -> _Shape:
        shared = item.inputs[0][: shared_length(item)]
        inputs = set(item.inputs)
        tails = sum(len(tokens) - len(shared) for tokens in inputs)
        return cls(index, shared, len(inputs), tails, max(map(len, inputs)))

    def tokens(self, before: _Shape | None, share: bool) -> int:
        """Tokens that the item adds to a batch after another one."""
        if not share:
            return self.rows * self.longest
        known = _common(before.shared, self.shared) if before is not None else 0
        return len(self.shared) - known + self.tails


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
