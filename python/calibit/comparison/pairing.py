"""Pairing of two runs: the same items, prompts, choices, labels, tokenizer and BOS rule, or a
refusal.

A difference between two models means something only on the same items asked in the same way. What
does not pair is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from calibit.measures.scores import Scores

_SHOWN = 5
_SAME_META = {"tokenizer_hash": "tokenizer", "bos": "BOS rule"}
_SAME_ITEM = {"context_hash": "prompt", "choices_hash": "choices"}

Key = tuple[str, str]


class RunLike(Protocol):
    """What a comparison needs of a run; `calibit.runs.Run` has it, and so may an importer's class.

    Optional: `items()` (lines with hashes and greedy flags), `tokens(name)` (with `.window`) and
    `text_names()`.
    """

    @property
    def meta(self) -> Mapping[str, Any]:
        """Model, scheme, tokenizer hash, BOS rule, texts."""

    def scores(self, rule: str = "sum") -> Scores:
        """Scores of the choices under a rule."""

    def text_nll(self, name: str) -> np.ndarray:
        """Negative log-likelihood per token of a text, nats."""


@dataclass(frozen=True, eq=False)
class Paired:
    """Two models' scores on the same items in the same order.

    Attributes:
        a, b: scores, item by item.
        lines_a, lines_b: the runs' item lines, empty where a run has none.
        unpaired: items left out of a and of b.
        warnings: what the reader should know.
    """

    a: Scores
    b: Scores
    lines_a: list[Mapping[str, Any]] = field(default_factory=list)
    lines_b: list[Mapping[str, Any]] = field(default_factory=list)
    unpaired: tuple[int, int] = (0, 0)
    warnings: tuple[str, ...] = ()


def as_run(run: RunLike | str | Path) -> RunLike:
    """The run itself, or the one recorded in a folder."""
    if isinstance(run, str | Path):
        from calibit.runs import Run

        return Run.load(run)
    return run


def pair(a: RunLike, b: RunLike, *, rule: str, allow_partial: bool) -> Paired:
    """Pair the items of two runs by (task, id).

    Args:
        a: reference run.
        b: candidate run.
        rule: scoring rule.
        allow_partial: compare the common items instead of refusing where some are missing.

    Raises:
        ValueError: if tokenizer or BOS rule differ, items are missing, or prompts, choices or
            labels
            of an item differ; the message names the first items.
    """
    _check_meta(a.meta, b.meta)
    first, second = a.scores(rule), b.scores(rule)
    common = _common_keys(first.keys, second.keys, allow_partial)
    unpaired = (first.n - len(common), second.n - len(common))
    first, second = _select(first, common), _select(second, common)
    _refuse(
        "number of choices",
        _differing(common, [len(z) for z in first.z], [len(z) for z in second.z]),
    )
    _refuse("right answer", _differing(common, first.gold.tolist(), second.gold.tolist()))
    lines_a, lines_b = _lines(a), _lines(b)
    _check_lines(lines_a, lines_b, common)
    warnings = []
    if any(unpaired):
        warnings.append(
            f"only {len(common)} items are in both runs: {unpaired[0]} of a and {unpaired[1]} of b "
            "were left out"
        )
    return Paired(first, second, lines_a, lines_b, unpaired, tuple(warnings))


def _check_meta(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    for key, words in _SAME_META.items():
        left, right = a.get(key), b.get(key)
        if left is not None and right is not None and left != right:
            raise ValueError(
                f"[compare] expected the same {words} in both runs, got {left!r} and {right!r}; "
                "their log-likelihoods are not comparable"
            )


def _common_keys(a: Sequence[Key], b: Sequence[Key], allow_partial: bool) -> list[Key]:
    in_a, in_b = set(a), set(b)
    only_a, only_b = [key for key in a if key not in in_b], [key for key in b if key not in in_a]
    common = [key for key in a if key in in_b]
    if (only_a or only_b) and not allow_partial:
        raise ValueError(
            "[compare] expected the same items in both runs, got "
            f"{len(only_a)} only in a{_names(only_a)} and {len(only_b)} only in b{_names(only_b)}; "
            "evaluate both on the same items, or allow a partial comparison"
        )
    if (a or b) and not common:
        raise ValueError("[compare] expected common items, got two runs without any")
    return common


def _select(scores: Scores, keys: Sequence[Key]) -> Scores:
    if scores.keys == tuple(keys):
        return scores
    place = {key: index for index, key in enumerate(scores.keys)}
    return scores.take(np.array([place[key] for key in keys], dtype=np.int64))


def _lines(run: RunLike) -> list[Mapping[str, Any]]:
    read = getattr(run, "items", None)
    return [line for line in read() if line.get("kind", "choice") == "choice"] if read else []


def _check_lines(
    a: Iterable[Mapping[str, Any]], b: Iterable[Mapping[str, Any]], common: Sequence[Key]
) -> None:
    by_key = [{(str(line["task"]), str(line["id"])): line for line in lines} for lines in (a, b)]
    for name, words in _SAME_ITEM.items():
        values = [[lines.get(key, {}).get(name) for key in common] for lines in by_key]
        known = [i for i, pair in enumerate(zip(*values, strict=True)) if None not in pair]
        _refuse(
            words,
            _differing([common[i] for i in known], *([side[i] for i in known] for side in values)),
        )


def _differing(keys: Sequence[Key], a: Sequence[Any], b: Sequence[Any]) -> list[Key]:
    return [key for key, left, right in zip(keys, a, b, strict=True) if left != right]


def _refuse(what: str, keys: list[Key]) -> None:
    if keys:
        raise ValueError(
            f"[compare] expected the same {what} per item in both runs, got {len(keys)} items that "
            f"differ{_names(keys)}"
        )


def _names(keys: Sequence[Key]) -> str:
    if not keys:
        return ""
    shown = ", ".join(f"{task}/{item}" for task, item in keys[:_SHOWN])
    return f" ({shown}{', ...' if len(keys) > _SHOWN else ''})"
