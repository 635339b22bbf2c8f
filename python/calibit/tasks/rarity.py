"""Slices by how common an item's words are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from calibit.measures.word_frequency import WordFrequencies, quarters, text_frequencies
from calibit.tasks.item import Item
from calibit.tasks.prompts import Prompt
from calibit.tasks.texts import load_text

OWN = "own"
"""Source of frequencies: the evaluated items themselves."""

RAREST, MEAN = "rarest word", "word frequency"
"""Slice keys."""

One = TypeVar("One", Item, Prompt)


def frequencies(source: str, texts: Iterable[str]) -> tuple[WordFrequencies, str]:
    """Counts of words, and where they come from in words.

    Args:
        source: `own`, `pydoc`, or a UTF-8 file.
        texts: what `own` counts.

    Raises:
        ValueError: no such file, or one without text.
    """
    if source == OWN:
        found, name = WordFrequencies.of(texts), "the evaluated items themselves"
    else:
        text = load_text(source)
        found, name = WordFrequencies.of([text.text]), text.name
    return found, f"slices by word frequency: {found.total:,} words of {name}"


def with_rarity(
    items: Sequence[One], known: WordFrequencies, texts: Mapping[tuple[str, str], str] | None = None
) -> list[One]:
    """The items with a slice for the quarter of their rarest word, and of their mean frequency.

    Args:
        items: items or prompts; the quarters are those of these items.
        known: counts of words.
        texts: by (task, id) the text to take in place of the item's own, for prompts with examples
            in front; items without one are left as they are.
    """
    shown = [
        text_of(item) if texts is None else texts.get((item.task, item.id), "") for item in items
    ]
    mean, rarest = text_frequencies(shown, known)
    out = []
    for item, *names in zip(items, quarters(rarest), quarters(mean), strict=True):
        own = {key: name for key, name in zip((RAREST, MEAN), names, strict=True) if name}
        out.append(replace(item, slices={**item.slices, **own}))
    return out


def text_of(item: Item | Prompt) -> str:
    """What an item asks: its context, or its prompt."""
    if isinstance(item, Prompt):
        return " ".join([item.prompt, *(turn["content"] for turn in item.messages)])
    return " ".join(item.contexts) if item.contexts else item.context
