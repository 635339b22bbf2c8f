"""Text to token ids: the BOS rule, and the split of context + choice into model input and targets.

The conventions are those of lm-evaluation-harness, so that scores can be compared with its own:
trailing white space of the context belongs to the continuation, context and context + continuation
are encoded apart with the same special tokens, and the continuation is what the second has beyond
the length of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

BOS_RULES = ("tokenizer", "always", "never")
"""`tokenizer`: what the tokenizer adds by default. A text that already starts with BOS never gets a
second one."""

_DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class EncodedChoices:
    """The choices of one item as token ids.

    Attributes:
        inputs: per choice the ids fed to the model, the last id of the continuation left off.
        targets: per choice the ids of the continuation; the last `len(targets[k])` positions of
            `inputs[k]` predict them.
        truncated: whether a context was cut on the left to fit the model.
        boundary_merge: whether the tokenizer joined the end of the context with the start of a
            choice.
        special_start: whether a continuation starts with a special token.
        reason: why the item cannot be scored; None where it can.
    """

    inputs: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]
    truncated: bool = False
    boundary_merge: bool = False
    special_start: bool = False
    reason: str | None = None


class Encoder:
    """A tokenizer with a fixed BOS rule.

    Args:
        tokenizer: any Hugging Face tokenizer.
        bos: one of BOS_RULES.

    Raises:
        ValueError: for an unknown rule, or `always` with a tokenizer that has no BOS token.
    """

    def __init__(self, tokenizer: Any, *, bos: str = "tokenizer") -> None:
        if bos not in BOS_RULES:
            raise ValueError(
                f"[evaluate] expected bos to be one of {', '.join(BOS_RULES)}, got {bos!r}"
            )
        if bos == "always" and tokenizer.bos_token_id is None:
            raise ValueError(
                "[evaluate] expected a tokenizer with a BOS token for bos='always', "
                "got one without; use 'never'"
            )
        self.tokenizer = tokenizer
        self.bos = bos

    @property
    def prefix_token(self) -> int:
        """The id that stands for an empty context: BOS, else EOS."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise ValueError(
            "[evaluate] expected a tokenizer with a BOS or EOS token for an empty context, "
            "got one with neither"
        )

    @property
    def special_tokens(self) -> frozenset[int]:
        """Ids that stand for no text; a token for unknown text does, unless it is BOS or EOS."""
        own, kept = self.tokenizer, (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        unknown = {getattr(own, "unk_token_id", None)} - set(kept)
        return frozenset(set(own.all_special_ids) - unknown)

    def __call__(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Token ids of each distinct text, special tokens by the BOS rule."""
        plain: list[str] = []
        special: list[str] = []
        for text in dict.fromkeys(texts):
            (special if self._adds_specials(text) else plain).append(text)
        ids = {**self.bare(plain), **self._run(special, add_special_tokens=True)}
        if self.bos == "always":
            first = self.tokenizer.bos_token_id
            ids = {text: row if row[:1] == [first] else [first, *row] for text, row in ids.items()}
        return {text: self._without_eos(text, row) for text, row in ids.items()}

    def bare(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Token ids of each distinct text without special tokens."""
        return self._run(list(dict.fromkeys(texts)), add_special_tokens=False)

    def _adds_specials(self, text: str) -> bool:
        bos = self.tokenizer.bos_token
        return self.bos == "tokenizer" and not (bos and text.startswith(bos))

    def _run(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[int]]:
        if not texts:
            return {}
        rows = self.tokenizer(
            texts,
            add_special_tokens=add_special_tokens,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        return {text: [int(token) for token in row] for text, row in zip(texts, rows, strict=True)}

    def _without_eos(self, text: str, row: list[int]) -> list[int]:
        """Drop an EOS that the tokenizer's template appended: nothing may follow it in a text that
        goes on."""
        eos, name = self.tokenizer.eos_token_id, self.tokenizer.eos_token
        added = (
            eos is not None
            and len(row) > 1
            and row[-1] == eos
            and not (name and text.endswith(name))
        )
        return row[:-1] if added else row


def encode_items(
    encoder: Encoder,
    pairs: Sequence[tuple[str | Sequence[str], Sequence[str]]],
    *,
    max_length: int,
) -> list[EncodedChoices]:
    """Encode items given as (context, continuations with their delimiter).

    Args:
        encoder: tokenizer and BOS rule.
        pairs: per item the context, or the context of each choice, and its continuations.
        max_length: positions the model can take.

    Returns:
        One EncodedChoices per pair, in order.
    """
    split = [_moved(contexts, texts) for contexts, texts in pairs]
    flat = [pair for item in split for pair in item]
    whole = encoder(context + text for context, text in flat if context)
    ids = encoder(context for context, _ in flat if context)
    bare = encoder.bare(text for context, text in flat if not context)
    special = encoder.special_tokens
    return [
        _assemble(
            [_split_ids(encoder, pair, whole, ids, bare) for pair in item], max_length, special
        )
        for item in split
    ]


def _moved(contexts: str | Sequence[str], texts: Sequence[str]) -> list[tuple[str, str]]:
    each = [contexts] * len(texts) if isinstance(contexts, str) else contexts
    return [_move_space(context, text) for context, text in zip(each, texts, strict=True)]


def _move_space(context: str, text: str) -> tuple[str, str]:
    """Move all trailing white space of the context to the front of the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + text


def _split_ids(
    encoder: Encoder,
    pair: tuple[str, str],
    whole: dict[str, list[int]],
    ids: dict[str, list[int]],
    bare: dict[str, list[int]],
) -> tuple[list[int], list[int], bool]:
    """(context ids, continuation ids, whether they merged at the boundary) of one continuation."""
    context, text = pair
    if not context:
        prefix, rest = [encoder.prefix_token], bare[text]
        return prefix, rest[1:] if rest[:1] == prefix else rest, False
    before, both = ids[context], whole[context + text]
    after = both[len(before) :]
    merged = both[: len(before)] != before
    if after or not text:
        return before or [encoder.prefix_token], after, merged
    common = sum(
        1 for _ in takewhile(lambda two: two[0] == two[1], zip(before, both, strict=False))
    )
    return both[:common] or [encoder.prefix_token], both[common:], True


def _assemble(
    parts: list[tuple[list[int], list[int], bool]], max_length: int, special: frozenset[int]
) -> EncodedChoices:
    inputs = tuple(tuple((before + after)[-(max_length + 1) :][:-1]) for before, after, _ in parts)
    return EncodedChoices(
        inputs=inputs,
        targets=tuple(tuple(after) for _, after, _ in parts),
        truncated=any(len(before) + len(after) > max_length + 1 for before, after, _ in parts),
        boundary_merge=any(merged for _, _, merged in parts),
        special_start=any(after[0] in special for _, after, _ in parts if after),
        reason=_unscorable([after for _, after, _ in parts], max_length),
    )


def _unscorable(continuations: list[list[int]], max_length: int) -> str | None:
    if not continuations:
        return "the item has no choices"
    for index, after in enumerate(continuations):
        if not after:
            return f"choice {index} has no tokens"
        if len(after) > max_length:
            return f"choice {index} has {len(after)} tokens, the model takes {max_length}"
    return None


def context_length(config: Any, tokenizer: Any) -> int:
    """Positions a model can take: from its configuration, else from the tokenizer, else 2,048."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_sequence_length",
        "max_seq_len",
        "seq_length",
    )
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if isinstance(limit, int) and 0 < limit < 10**9 else _DEFAULT_CONTEXT
