"""Log-likelihoods of tokens under any Hugging Face causal language model.

The output layer runs only at the positions whose prediction is needed. A forward pre-hook on it
picks them, so that whatever the model does afterwards (soft capping, scaling) stays the model's own
code; where a check on a few tokens shows that nothing follows, the layer is called in slices
instead, which bounds the memory of long texts. Log-softmax is `logit - logsumexp(logits)`, of
float32 exponentials summed in float64 (torch's own `log_softmax` is about 8e-6 too high over large
vocabularies on CPU), and sums over tokens are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from calibit import next_token
from calibit.evaluation.batching import Batch, Tokens, Trie, cut
from calibit.evaluation.encoding import EncodedChoices

HEADS = ("sliced", "gathered", "full")
"""How the output layer is reached: called on slices of the picked positions; inside the model's
forward on all picked positions at once; on every position."""

_SLICE = 1 << 23  # logits held at once in mode "sliced": 32 MiB of float32


@dataclass(frozen=True)
class ChoiceScores:
    """Scores of one item's choices.

    Attributes:
        ll: per choice the sum of its tokens' log-probabilities, nats, float64; may be non-finite.
        greedy: per choice whether every token is the model's first choice.
    """

    ll: tuple[float, ...]
    greedy: tuple[bool, ...]


@dataclass(frozen=True)
class _Queries:
    """Predictions wanted from one forward pass.

    Attributes:
        rows, columns: int64 [P], the distinct positions that predict something.
        where: int64 [Q], ascending, position of each query.
        tokens: int64 [Q], the token whose probability is wanted.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    where: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def of(cls, wanted: Sequence[tuple[int, int, int]]) -> _Queries:
        """From (row, column, token) triples sorted by position."""
        table = np.array(wanted, dtype=np.int64).reshape(-1, 3)
        position, where = np.unique(table[:, 0] << 32 | table[:, 1], return_inverse=True)
        parts = (position >> 32, position & 0xFFFFFFFF, where, table[:, 2])
        return cls(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))


class Scorer:
    """Scores token sequences with one model.

    Args:
        model: causal language model in evaluation mode.
        head: one of HEADS.
    """

    def __init__(self, model: Any, *, head: str = "full") -> None:
        self.model = model
        self.head = head
        self.layer: Any = model.get_output_embeddings()  # None in mode "full" alone

    def choices(self, items: Sequence[EncodedChoices], batch: Batch) -> list[ChoiceScores]:
        """Scores of the items of a batch, in the batch's order."""
        chosen = [items[index] for index in batch.items]
        inputs = [tokens for item in chosen for tokens in item.inputs]
        targets = [tokens for item in chosen for tokens in item.targets]
        trie = cut(inputs, batch.cuts)
        ll, greedy = np.zeros(len(inputs)), np.ones(len(inputs), dtype=bool)
        wanted = _wanted(trie, inputs, targets)
        for (logp, hit), asked in zip(self._levels(trie, wanted), wanted, strict=True):
            owners = [owner for *_, owner in asked]
            np.add.at(ll, owners, logp)
            np.logical_and.at(greedy, owners, hit)
        ends = np.cumsum([len(item.inputs) for item in chosen])
        return [
            ChoiceScores(tuple(part.tolist()), tuple(hits.tolist()))
            for part, hits in zip(np.split(ll, ends[:-1]), np.split(greedy, ends[:-1]), strict=True)
        ]

    def sequences(self, rows: Sequence[Tokens], first: Sequence[int] = ()) -> list[np.ndarray]:
        """Negative log-likelihood of every token of each sequence from position `first` on (1 where
        omitted), nats, float64 `[len(row) - first]`."""
        starts = first or (1,) * len(rows)
        wanted = [
            (r, c - 1, row[c])
            for r, (row, start) in enumerate(zip(rows, starts, strict=True))
            for c in range(start, len(row))
        ]
        logp, _, _ = self._forward(_padded([row[:-1] for row in rows]), _Queries.of(wanted))
        sizes = [len(row) - start for row, start in zip(rows, starts, strict=True)]
        return np.split(-logp, np.cumsum(sizes)[:-1])

    def _levels(
        self, trie: Trie, wanted: Sequence[Sequence[tuple[int, int, int, int]]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(log-probabilities, hits) of each level's queries, one forward pass per level."""
        cache: Any = None
        last = len(trie.levels) - 1
        for depth, (level, asked) in enumerate(zip(trie.levels, wanted, strict=True)):
            if depth and not hasattr(cache, "reorder_cache"):
                raise TypeError("[evaluate] expected a cache that can be continued, got none")
            if depth and level.parents != tuple(range(len(trie.levels[depth - 1].rows))):
                cache.reorder_cache(torch.tensor(level.parents))
            queries = _Queries.of([query[:3] for query in asked])
            logp, hit, cache = self._forward(
                _padded(level.rows), queries, cache=cache, keep_cache=depth < last
            )
            yield logp, hit

    def _forward(
        self, ids: torch.Tensor, queries: _Queries, *, cache: Any = None, keep_cache: bool = False
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        """One pass: (log-probability float64 [Q], whether it is the largest bool [Q], the
        cache)."""
        options = {} if cache is None else {"past_key_values": cache}
        picked: list[torch.Tensor] = []

        def pick(hidden: torch.Tensor) -> torch.Tensor:
            chosen = hidden[queries.rows.to(hidden.device), queries.columns.to(hidden.device)]
            if self.head == "gathered" and len(chosen):
                return chosen[None]
            picked.append(chosen)
            return hidden[:1, -1:]

        with torch.no_grad(), tapped(None if self.head == "full" else self.layer, pick):
            output = self.model(
                input_ids=ids.to(self.model.device),
                use_cache=keep_cache or cache is not None,
                return_dict=True,
                **options,
            )
            logits = output.logits
            if self.head == "full":
                logits = logits[queries.rows.to(logits.device), queries.columns.to(logits.device)]
        slices = self._slices(picked[0]) if picked else iter([logits.reshape(-1, logits.shape[-1])])
        logp, hit = _log_probabilities(slices, queries)
        return logp, hit, getattr(output, "past_key_values", None)

    def _slices(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """Logits of picked hidden states `[P, H]`, a bounded number at a time."""
        step = max(1, _SLICE // self.model.config.get_text_config().vocab_size)
        for start in range(0, len(hidden), step):
            with torch.no_grad():
                yield self.layer(hidden[start : start + step])


@contextmanager
def tapped(
    layer: nn.Module | None, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Run with the input of a layer replaced by `change(input)`; nothing happens for None."""
    if layer is None:
        yield
        return
    handle = layer.register_forward_pre_hook(
        lambda _, inputs: (change(inputs[0]), *inputs[1:]) if inputs else None
    )
    try:
        yield
    finally:
        handle.remove()


def _log_probabilities(
    slices: Iterator[torch.Tensor], queries: _Queries
) -> tuple[np.ndarray, np.ndarray]:
    """(log-probability, is the first largest) of each query from consecutive slices of logits `[*,
    V]`."""
    logp = np.zeros(len(queries.where))
    hit = np.zeros(len(queries.where), dtype=bool)
    start = 0
    for logits in slices:
        low, high = np.searchsorted(queries.where.numpy(), [start, start + len(logits)])
        where = (queries.where[low:high] - start).to(logits.device)
        tokens = queries.tokens[low:high].to(logits.device)
        norm, first = _normalizers(logits)
        logp[low:high] = (logits[where, tokens].double() - norm[where]).cpu().numpy()
        hit[low:high] = (first[where] == tokens).cpu().numpy()
        start += len(logits)
    return logp, hit


def _normalizers(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-sum-exp float64, first largest) of each row."""
    if logits.device.type != "cpu" or logits.dtype == torch.float64:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return torch.logsumexp(logits, dim=-1).double(), logits.argmax(dim=-1)
    norm, first = next_token.normalizers(logits.contiguous())
    return torch.from_numpy(norm), torch.from_numpy(first)


def _wanted(
    trie: Trie, inputs: Sequence[Tokens], targets: Sequence[Tokens]
) -> list[list[tuple[int, int, int, int]]]:
    """Per level the (row, column, token, owner) of every prediction, sorted by position."""
    wanted: list[list[tuple[int, int, int, int]]] = [[] for _ in trie.levels]
    ends = [level.end for level in trie.levels]
    for owner, (fed, tokens) in enumerate(zip(inputs, targets, strict=True)):
        depth = 0
        for position, token in enumerate(tokens, start=len(fed) - len(tokens)):
            while position >= ends[depth]:
                depth += 1
            column = position - trie.levels[depth].start
            wanted[depth].append((trie.row_of[owner][depth], column, token, owner))
    return [sorted(level) for level in wanted]


def _padded(rows: Sequence[Tokens]) -> torch.Tensor:
    """Rows as int64 `[R, longest]`, padded on the right by repeating their last id, out of every
    scored position's sight."""
    longest = max(map(len, rows))
    return torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows])
