"""Slices by how common an item's words are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

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
    return found, f"Slices by word frequency: {found.total:,} words of {name} were counted."


def with_rarity(
    items: Sequence[One], known: WordFrequencies, texts: Mapping[tuple[str, str], str] | None = None
) -> list[One]:
    """The items with a slice for the quarter of their rarest word, and of their mean frequency,
    among the items of their task.

    Args:
        items: items or prompts.
        known: counts of words.
        texts: by (task, id) the text to take in place of the item's own, for prompts with examples
            in front; items without one are left as they are.
    """
    shown = [
        text_of(item) if texts is None else texts.get((item.task, item.id), "") for item in items
    ]
    mean, rarest = text_frequencies(shown, known)
    found: list[dict[str, str]] = [{} for _ in items]
    for task in dict.fromkeys(item.task for item in items):
        own = np.array([index for index, item in enumerate(items) if item.task == task])
        for key, values in ((RAREST, rarest), (MEAN, mean)):
            for index, quarter in zip(own, quarters(values[own]), strict=True):
                found[index] |= {} if quarter is None else {key: f"{quarter} by {key}"}
    pairs = zip(items, found, strict=True)
    return [replace(item, slices={**item.slices, **more}) for item, more in pairs]


def text_of(item: Item | Prompt) -> str:
    """What an item asks: its context, or its prompt."""
    if isinstance(item, Prompt):
        return " ".join([item.prompt, *(turn["content"] for turn in item.messages)])
    return " ".join(item.contexts) if item.contexts else item.context
