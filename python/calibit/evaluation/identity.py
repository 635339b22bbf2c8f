"""Hashes that say what was evaluated: tokenizer, items, texts (weights: `calibit.fingerprint`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what decides the token ids: the whole pipeline of a fast tokenizer, else
    vocabulary and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content.pop("padding", None)  # settings of the last call, not of the tokenizer
        content.pop("truncation", None)
    else:
        content = {"vocabulary": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
    return text_hash(
        {
            "tokenizer": content,
            "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        }
    )


def text_hash(value: Any) -> str:
    """SHA-256 of a string, or of any JSON value in canonical form."""
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(value.encode("utf-8", errors="surrogatepass")).hexdigest()


def context_hash(contexts: Sequence[str]) -> str:
    """SHA-256 of an item's context, or of the contexts of its choices where they differ."""
    return text_hash(contexts[0] if len(set(contexts)) == 1 else list(contexts))


def contexts_of(item: Any) -> tuple[str, ...]:
    """The context of each choice of an item."""
    return tuple(getattr(item, "contexts", ())) or (item.context,) * len(item.choices)


def choices_hash(delimiter: str, choices: Sequence[str]) -> str:
    """SHA-256 of the delimiter and the choices of an item."""
    return text_hash([delimiter, *choices])


def items_hash(items: Iterable[Any]) -> str:
    """SHA-256 over everything that an evaluation takes from its items, in order."""
    return text_hash(
        [
            [
                item.id,
                item.task,
                item.context,
                item.delimiter,
                list(item.choices),
                item.gold,
                dict(item.slices),
                *_more(item),
            ]
            for item in items
        ]
    )


def _more(item: Any) -> list[Any]:
    """Contexts of the choices, several right answers and a rule for ties, where an item has
    them."""
    parts = {name: list(getattr(item, name, ())) for name in ("contexts", "right")}
    if getattr(item, "ties", ()):
        parts["ties"] = list(item.ties)
    return [parts] if any(parts.values()) else []
