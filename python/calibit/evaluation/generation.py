"""Greedy continuations, several prompts at a time.

Prompts of a batch are padded on the left and masked, so that all continue at the same position.
Whatever a model's own generation settings say of sampling or penalties is switched off: two models
are compared on what they find most probable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Tokens = tuple[int, ...]

_MOST_ROWS = 32
_CACHE_FACTOR = 4  # cached positions of a batch, at most, in units of `batch_tokens`

_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
}


@dataclass(frozen=True)
class Continued:
    """One continuation.

    Attributes:
        ids: the generated tokens, the end token among them where the model gave one.
        text: them as text without special tokens, cut before the first stop text.
        ended: whether the model stopped by itself or at a stop text, before the limit.
    """

    ids: Tokens
    text: str
    ended: bool


def plan_prompts(
    lengths: Sequence[int], limits: Sequence[int], *, batch_tokens: int
) -> list[tuple[int, ...]]:
    """Which prompts are continued together: those of one limit and of similar length.

    Args:
        lengths: tokens of each prompt.
        limits: longest continuation of each.
        batch_tokens: as for `evaluate`; four times as many positions may lie in the cache.

    Returns:
        Indices of each batch, longest prompts first.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-limits[i], -lengths[i], i))
    batches: list[tuple[int, ...]] = []
    at = 0
    while at < len(order):
        first = order[at]
        room = _CACHE_FACTOR * batch_tokens // (lengths[first] + limits[first])
        rows = max(1, min(_MOST_ROWS, room))
        same = [i for i in order[at : at + rows] if limits[i] == limits[first]]
        batches.append(tuple(same))
        at += len(same)
    return batches


def continue_greedily(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Tokens],
    *,
    max_new_tokens: int,
    stops: Sequence[Sequence[str]] | None = None,
) -> list[Continued]:
    """Continue prompts with the most probable token at every step.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        prompts: token ids of each prompt, at least one.
        max_new_tokens: longest continuation.
        stops: per prompt the texts before which it ends; None for none.
    """
    longest, ends = max(map(len, prompts)), _end_tokens(model, tokenizer)
    pad = min(ends, default=0)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    stops = [()] * len(prompts) if stops is None else stops
    with torch.no_grad():
        found = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=sorted(ends) or None,
            stopping_criteria=[_stopping(tokenizer, longest, stops)] if any(stops) else None,
            **_GREEDY,
        )
    new = found[:, longest:].tolist()
    return [
        _continued(tokenizer, row, ends, own, max_new_tokens)
        for row, own in zip(new, stops, strict=True)
    ]


def cut_at(text: str, stops: Sequence[str]) -> str:
    """A text before the first of the stop texts."""
    for stop in stops:
        text = text.split(stop)[0]
    return text


def _continued(
    tokenizer: Any, row: list[int], ends: set[int], stops: Sequence[str], limit: int
) -> Continued:
    at = next((place for place, token in enumerate(row) if token in ends), None)
    ids = tuple(row if at is None else row[: at + 1])
    text = tokenizer.decode(ids, skip_special_tokens=True)
    stopped = any(stop in text for stop in stops)
    if stopped:  # rows of a batch go on until all have ended
        ids = _until_stop(tokenizer, ids, stops)
    return Continued(ids, cut_at(text, stops), at is not None or stopped or len(ids) < limit)


def _until_stop(tokenizer: Any, ids: Tokens, stops: Sequence[str]) -> Tokens:
    """The tokens up to the one that completes a stop text."""
    for count in range(1, len(ids)):
        text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        if any(stop in text for stop in stops):
            return ids[:count]
    return ids


def _stopping(
    tokenizer: Any, start: int, stops: Sequence[Sequence[str]]
) -> Callable[..., torch.Tensor]:
    """A criterion that ends a row when its text holds one of its stop texts."""

    def stopped(rows: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        ended = []
        for row, own in zip(rows, stops, strict=True):
            text = tokenizer.decode(row[start:], skip_special_tokens=True)
            ended.append(any(stop in text for stop in own))
        return torch.tensor(ended, device=rows.device)

    return stopped


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """End tokens of the tokenizer and of the model's generation settings."""
    settings = getattr(model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    found = named if isinstance(named, list) else [named]
    return {int(one) for one in (*found, tokenizer.eos_token_id) if one is not None}
