"""Small multiple-choice items with shared templates and choices of several lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Item:
    """The fields of an item that an evaluation reads."""

    id: str
    context: str
    choices: tuple[str, ...]
    gold: int | None = 0
    task: str = "toy"
    slices: Mapping[str, str] = field(default_factory=dict, hash=False)
    delimiter: str = " "


def toy_items(count: int = 12) -> list[Item]:
    """Items whose contexts share templates, with choices of one to six tokens."""
    words = ["a", "be", "cat", "dogs", "eagle", "fox a", "g b c", "i"]
    return [
        Item(
            f"toy-{i}",
            f"{('Question: ', 'the ')[i % 2]}{words[i % 8] * (1 + i % 3)} {i}?",
            tuple(words[(i + k * (1 + i % 2)) % 8] for k in range(2 + i % 3)),
            gold=i % 2,
            slices={"parity": str(i % 2)},
        )
        for i in range(count)
    ]
