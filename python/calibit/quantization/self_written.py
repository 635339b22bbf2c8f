"""Calibration text that the model writes itself, where no text of its kind is at hand.

In the manner of LLM-QAT (Liu et al., arXiv 2305.17888, section 3.1): each sequence starts with the
tokenizer's BOS token, or, where there is none, with a token drawn from the vocabulary, and every
further token is sampled from the model. After an end token the sequence goes on with a new start,
as packed training text does. The whole model must be in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

SELF = "self"
"""Name of the source; `self:0.8` samples with temperature 0.8."""

_ROWS = 32  # sequences written together


def is_source(source: object) -> bool:
    """Whether a calibration source asks the model to write its text."""
    return isinstance(source, str) and source.partition(":")[0] == SELF


def temperature_of(source: str) -> float:
    """The temperature of a source `self` (1) or `self:TEMPERATURE`.

    Raises:
        ValueError: not a number above 0.

    Example:
        >>> temperature_of("self"), temperature_of("self:0.8")
        (1.0, 0.8)
    """
    text = source.partition(":")[2]
    try:
        found = float(text) if text or source.endswith(":") else 1.0
    except ValueError:
        found = math.nan
    if not 0.0 < found < math.inf:
        raise ValueError(
            f"[calibration] expected '{SELF}' or '{SELF}:TEMPERATURE' with a temperature above 0, "
            f"got {source!r}"
        )
    return found


def write(
    model: Any,
    tokenizer: Any,
    *,
    rows: int,
    length: int,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[torch.Tensor]:
    """Sequences sampled from a model.

    The draws of a row depend on the seed and its number alone. The same seed gives the same tokens
    on one machine and number of threads; elsewhere logits may differ in their last bits.

    Args:
        model: causal language model with a key-value cache.
        tokenizer: its tokenizer; tokens that it lacks are never written.
        rows: how many sequences.
        length: tokens of each, the start token among them.
        temperature: of the sampling.
        seed: of the sampling.
        progress: called with tokens done and tokens in all.

    Returns:
        int64 `[length]` each.

    Raises:
        ValueError: the model keeps no key-value cache, or gives NaN.
    """
    writer = _Writer.of(model, tokenizer, temperature)
    training = model.training
    model.eval()
    found: list[torch.Tensor] = []
    try:
        for first in range(0, rows, _ROWS):
            draws = [_Draws(seed, row) for row in range(first, min(rows, first + _ROWS))]
            columns = []
            for column in writer.columns(draws, length):
                columns.append(column)
                if progress is not None:
                    progress(len(found) * length + len(columns) * len(draws), rows * length)
            found += torch.stack(columns, dim=1).unbind()
    finally:
        model.train(training)
    return found


class _Draws:
    """The random numbers of one row."""

    def __init__(self, seed: int, row: int) -> None:
        self._random = np.random.default_rng([seed, row])

    def uniform(self) -> float:
        """In [0, 1)."""
        return float(self._random.random())

    def one_of(self, ids: np.ndarray) -> int:
        """One of the tokens."""
        return int(ids[self._random.integers(len(ids))])


@dataclass(frozen=True)
class _Writer:
    """A model and how it writes.

    Attributes:
        model: the model.
        starts: tokens that a text may start with.
        ends: tokens that end it.
        vocabulary: tokens that the tokenizer has.
        temperature: of the sampling.
    """

    model: Any
    starts: np.ndarray
    ends: frozenset[int]
    vocabulary: int
    temperature: float

    @classmethod
    def of(cls, model: Any, tokenizer: Any, temperature: float) -> _Writer:
        """What a tokenizer says about starts and ends."""
        known = min(len(tokenizer), model.get_input_embeddings().num_embeddings)
        settings = getattr(model, "generation_config", None)
        named = getattr(settings, "eos_token_id", None)
        several = named if isinstance(named, list) else [named]
        ends = {int(one) for one in (*several, tokenizer.eos_token_id) if one is not None}
        start = tokenizer.bos_token_id
        if start is None or start >= known:
            special = set(tokenizer.all_special_ids)
            starts = np.array([token for token in range(known) if token not in special])
        else:
            starts = np.array([start])
        return cls(model, starts, frozenset(ends), known, temperature)

    @torch.no_grad()
    def columns(self, draws: list[_Draws], length: int) -> Iterator[torch.Tensor]:
        """The next token of every row, int64 `[rows]`, `length` times."""
        cache = None
        tokens = [own.one_of(self.starts) for own in draws]
        for place in range(length):
            column = torch.tensor(tokens)
            yield column
            if place + 1 == length:
                return
            out = self.model(
                input_ids=column[:, None].to(self.model.device),
                past_key_values=cache,
                use_cache=True,
            )
            cache = getattr(out, "past_key_values", None)
            if cache is None:
                raise ValueError(
                    f"[calibration] expected a model with a key-value cache for '{SELF}', got "
                    f"{type(self.model).__name__}: give a text"
                )
            sampled = self._sample(out.logits[:, -1], draws)
            tokens = [
                own.one_of(self.starts) if self._starts_anew(before) else after
                for own, before, after in zip(draws, tokens, sampled, strict=True)
            ]

    def _starts_anew(self, token: int) -> bool:
        """Whether a start must follow; GPT-2's end token is itself the start of what follows."""
        return token in self.ends and not (len(self.starts) == 1 and token == self.starts[0])

    def _sample(self, logits: torch.Tensor, draws: list[_Draws]) -> list[int]:
        """One token of each row's distribution, by inversion."""
        scaled = logits[:, : self.vocabulary].double().cpu() / self.temperature
        shares = torch.softmax(scaled, dim=-1).cumsum(dim=-1)
        if not bool(torch.isfinite(shares[:, -1]).all()):
            raise ValueError(
                f"[calibration] expected finite logits for '{SELF}', got NaN or Inf: the model "
                "cannot write"
            )
        at = torch.tensor([[own.uniform()] for own in draws], dtype=torch.float64)
        places = torch.searchsorted(shares, at * shares[:, -1:], right=True)[:, 0]
        return [int(place) for place in places.clamp(max=self.vocabulary - 1)]
