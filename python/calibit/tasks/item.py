"""The multiple-choice item every task yields, and the seeded subsample of a list of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar


@dataclass(frozen=True)
class Item:
    """One question with its answer choices, exactly as the model sees them.

    Attributes:
        id: unique inside its task and stable from run to run, "<task>-<index>".
        task: name under which results are reported, e.g. "arc_easy".
        context: the text before the answer, template applied; may be empty.
        choices: the answer texts without delimiter, at least two.
        gold: index of the right choice; None where it is not known.
        slices: slice key -> value, e.g. {"lang": "en", "domain": "capitals"}.
        delimiter: what stands between context and choice; continuation k is
            `delimiter + choices[k]`.
        contexts: the context of each choice, where choices stand inside it (then `choices` are what
            follows, and `context` is empty); empty where all share `context`.
        right: the right choices, where there are several; their probabilities count together.
        ties: order in which choices of equal score win; empty for their own order.
        system: the beginning of every context that is an instruction and no question; a chat
            template puts it into the system turn.
    """

    id: str
    task: str
    context: str
    choices: tuple[str, ...]
    gold: int | None
    slices: Mapping[str, str] = field(default_factory=dict, hash=False)
    delimiter: str = " "
    contexts: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    ties: tuple[int, ...] = ()
    system: str = ""


class _HasSlices(Protocol):
    """What a sample is drawn by."""

    @property
    def id(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def slices(self) -> Mapping[str, str]: ...


Sampled = TypeVar("Sampled", bound=_HasSlices)


def digest(*parts: object) -> int:
    """Return a 512-bit integer that depends only on the text of `parts`: the same on every
    machine and Python version, which `random.shuffle` does not promise."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha512(text.encode("utf-8")).digest(), "big")


def limit(items: Sequence[Sampled], n: int, *, seed: int = 0) -> list[Sampled]:
    """Draw `n` items so that every task, language and domain keeps its share.

    A systematic sample: the items are sorted by task, then by slice values (the key with the
    fewest values first), in seeded random order inside equal values, and every (N/n)-th is
    taken. Each task, each value of the coarsest slice key and each combination thus gets its
    proportional share, give or take one item. Deterministic; unlabelled items count like
    others.

    Args:
        items: the items to draw from, ids unique inside a task.
        n: number of items wanted, at least 1; all are returned when there are no more.
        seed: chooses the sample.

    Returns:
        The drawn items in the order they had in `items`.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"[limit] expected a number of items of at least 1, got {n}")
    if n >= len(items):
        return list(items)
    keys = _coarse_first(items)
    ranked = sorted(
        range(len(items)),
        key=lambda i: (
            items[i].task,
            tuple(items[i].slices.get(key, "") for key in keys),
            digest(seed, items[i].id),
        ),
    )
    start = digest(seed, "start") % len(items)  # a random phase, in units of 1/n of an item
    taken = {ranked[(start + k * len(items)) // n] for k in range(n)}
    return [item for i, item in enumerate(items) if i in taken]


def _coarse_first(items: Sequence[Sampled]) -> list[str]:
    values: dict[str, set[str]] = {}
    for item in items:
        for key, value in item.slices.items():
            values.setdefault(key, set()).add(value)
    return sorted(values, key=lambda key: (len(values[key]), key))
