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

from calibit.comparison.joining import Key, Side, join, prompts_of
from calibit.measures.paired import cluster_index
from calibit.measures.scores import Scores
from calibit.runs import RECALIBRATION

CLUSTER_FIELD = "cluster"
"""Field of an item line that names the cluster (passage, document) of an item."""

_SHOWN = 5
SAME_META = {"tokenizer_hash": "tokenizer", "bos": "BOS rule"}
"""Entries of run.json that two runs must share -> words for them."""

_SAME_ITEM = {"context_hash": "prompt", "choices_hash": "choices"}


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
        lost: items that a scored and b evaluated without a score: damage, not missing items.
        warnings: what the reader should know.
        recalibrated: whether the scores of one went through a recalibration map.
    """

    a: Scores
    b: Scores
    lines_a: list[Mapping[str, Any]] = field(default_factory=list)
    lines_b: list[Mapping[str, Any]] = field(default_factory=list)
    unpaired: tuple[int, int] = (0, 0)
    warnings: tuple[str, ...] = ()
    recalibrated: bool = False
    lost: tuple[Key, ...] = ()


def as_run(run: RunLike | str | Path) -> RunLike:
    """The run itself, the one recorded in a folder, or an output of lm-evaluation-harness."""
    if not isinstance(run, str | Path):
        return run
    from calibit.io.lm_eval import is_output, read_lm_eval
    from calibit.runs import META, Run

    path = Path(run)
    return read_lm_eval(path) if not (path / META).is_file() and is_output(path) else Run.load(path)


def pair(a: RunLike, b: RunLike, *, rule: str, allow_partial: bool) -> Paired:
    """Pair the items of two runs by (task, id); imported runs as `joining` says.

    Args:
        a: reference run.
        b: candidate run.
        rule: scoring rule.
        allow_partial: compare the common items instead of refusing where some are missing or were
            asked in different words.

    Raises:
        ValueError: if tokenizer or BOS rule differ, items are missing, or prompts, choices or
            labels of an item differ; the message names the first items.
    """
    warnings = _check_meta(a.meta, b.meta)
    first, second = _side(a, rule), _side(b, rule)
    second, how = join(first, second)
    warnings += [how] if how else []
    sides = first.scores, second.scores
    keys = _common_keys(first, second, allow_partial)
    common = _same_prompts(first, second, keys, allow_partial)
    different = len(keys) - len(common)
    if keys and not common:
        raise ValueError("[compare] expected common items, got none asked in the same words")
    unpaired = (sides[0].n - len(common), sides[1].n - len(common))
    chosen = [_select(scores, common) for scores in sides]
    refuse("number of choices", _differing(common, *([len(z) for z in s.z] for s in chosen)))
    refuse("right answer", _differing(common, *(s.gold.tolist() for s in chosen)))
    if any(unpaired):
        warnings.append(
            f"only {len(common)} items are in both runs: {unpaired[0]} of a and {unpaired[1]} of b "
            "were left out" + (f", {different} for different prompts" if different else "")
        )
    lines_a, lines_b = (list(side.lines.values()) for side in (first, second))
    warnings += _other_slices(*chosen)
    maps = [words for side, run in (("a", a), ("b", b)) if (words := _map_of(run.meta, side))]
    warnings += maps
    return Paired(
        chosen[0],
        chosen[1],
        lines_a,
        lines_b,
        unpaired,
        tuple(warnings),
        bool(maps),
        _lost(first, second),
    )


def aligned(scores: Scores, like: Scores, *, name: str) -> Scores:
    """Scores of the items of `like`, in their order.

    Args:
        scores: they may hold more items.
        like: scores whose items are wanted.
        name: of the run, for error messages.

    Raises:
        ValueError: naming the items, if some are missing or have another right answer or number of
            choices.
    """
    held = set(scores.keys)
    missing = [key for key in like.keys if key not in held]
    if missing:
        raise ValueError(
            f"[compare] expected all items in {name}, got {len(missing)} missing{_names(missing)}"
        )
    found = _select(scores, like.keys)
    for what, own, other in (
        ("number of choices", [len(z) for z in found.z], [len(z) for z in like.z]),
        ("right answer", found.gold.tolist(), like.gold.tolist()),
    ):
        different = _differing(like.keys, own, other)
        if different:
            raise ValueError(
                f"[compare] expected the same {what} in {name} as in the reference, got "
                f"{len(different)} items that differ{_names(different)}"
            )
    return found


def cluster_labels(paired: Paired, by: str | None) -> np.ndarray | None:
    """Cluster number of every paired item, int64 [N]; None where items are independent.

    Args:
        paired: the items.
        by: a slice key or a field of the item lines whose values name clusters; items without one
            are clusters of their own. None takes the field `cluster`, which some tasks write. The
            reference's values count; where it has none, the candidate's.

    Raises:
        ValueError: if no item has the key named.
    """
    wanted = CLUSTER_FIELD if by is None else by
    first, second = (
        _values(scores, lines, wanted)
        for scores, lines in ((paired.a, paired.lines_a), (paired.b, paired.lines_b))
    )
    labels: list[tuple[str, ...]] = []
    for key, value in zip(paired.a.keys, _held(first) or second, strict=True):
        labels.append(("item", *key) if value is None else ("cluster", key[0], value))
    found = cluster_index(labels, paired.a.n)
    if by is not None and paired.a.n and all(label[0] == "item" for label in labels):
        known = sorted({name for slices in paired.a.slices for name in slices})
        raise ValueError(
            f"[compare] expected a slice key or item field for clusters, got {by!r}; slice keys: "
            f"{', '.join(known) or 'none'}"
        )
    return found if len(found) and found.max() + 1 < len(found) else None


def _other_slices(a: Scores, b: Scores) -> list[str]:
    """That b declares other slices; an imported run declares none, and says nothing against a."""
    pairs = zip(a.keys, a.slices, b.slices, strict=True)
    told = [key for key, own, other in pairs if other and own != other]
    if not told:
        return []
    return [f"{len(told)} items have other slices in b than in a{_names(told)}: those of a count"]


def _held(values: list[str | None]) -> list[str | None]:
    return values if any(value is not None for value in values) else []


def _values(scores: Scores, lines: Sequence[Mapping[str, Any]], name: str) -> list[str | None]:
    """Value of a slice key or line field of every item, as text; None where it has none."""
    known = by_key(lines)
    found = [
        slices.get(name, known.get(key, {}).get(name))
        for key, slices in zip(scores.keys, scores.slices, strict=True)
    ]
    return [None if value is None else str(value) for value in found]


def _side(run: RunLike, rule: str) -> Side:
    read = getattr(run, "docs", None)
    docs = (read() if read else None) or ()
    return Side(run.scores(rule), by_key(_lines(run)), by_key(docs))


def by_key(lines: Iterable[Mapping[str, Any]]) -> dict[Key, Mapping[str, Any]]:
    """Item lines by (task, id)."""
    return {(str(line["task"]), str(line["id"])): line for line in lines}


def _check_meta(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Refuse what makes log-likelihoods incomparable; warnings of what merely differs."""
    for key, words in SAME_META.items():
        left, right = a.get(key), b.get(key)
        if left is not None and right is not None and left != right:
            raise ValueError(
                f"[compare] expected the same {words} in both runs, got {left!r} and {right!r}; "
                "their log-likelihoods are not comparable"
            )
    first, second = (dict(meta.get("settings") or {}) for meta in (a, b))
    token = "tokenizer_bos_token"
    known = first.get(token), second.get(token)
    if None not in known and known[0] != known[1] and a.get("bos") != "never":
        raise ValueError(
            f"[compare] expected the same BOS token in both runs, got {known[0]} and {known[1]}; "
            "their log-likelihoods are not comparable"
        )
    warnings = [
        f"{side}: {note}" for side, m in (("a", a), ("b", b)) for note in m.get("notes", ())
    ]
    if not (first and second):
        return warnings
    return warnings + [
        f"the evaluations differ in {key}: {first.get(key)} and {second.get(key)}"
        for key in {**first, **second}
        if first.get(key) != second.get(key)
    ]


def _map_of(meta: Mapping[str, Any], side: str) -> str | None:
    """A sentence on the recalibration map of a run; None without one."""
    found = meta.get(RECALIBRATION)
    if found is None:
        return None
    return f"{side}: its scores went through the {found['method']} map of its calibration.json"


def _common_keys(first: Side, second: Side, allow_partial: bool) -> list[Key]:
    a, b = first.scores.keys, second.scores.keys
    in_a, in_b = set(a), set(b)
    only_a, only_b = [key for key in a if key not in in_b], [key for key in b if key not in in_a]
    common = [key for key in a if key in in_b]
    if (only_a or only_b) and not allow_partial:
        raise ValueError(
            "[compare] expected the same items in both runs, got "
            f"{len(only_a)} only in a{_names(only_a)} and {len(only_b)} only in b{_names(only_b)}; "
            f"{_unscored(only_b, first, 'a')}{_unscored(only_a, second, 'b')}evaluate both on the "
            "same items, or compare the common ones: --allow_partial"
        )
    if (a or b) and not common:
        raise ValueError("[compare] expected common items, got two runs without any")
    return common


def _lost(first: Side, second: Side) -> tuple[Key, ...]:
    """Items that the first run scored, and the second holds without a score."""
    scored = set(second.scores.keys)
    return tuple(key for key in first.scores.keys if key in second.lines and key not in scored)


def _unscored(keys: Sequence[Key], side: Side, name: str) -> str:
    """Which of the missing items a run holds without a score, and why."""
    for key in keys:
        reason = side.lines.get(key, {}).get("reason")
        if reason:
            return f"{'/'.join(key)} was not scored in {name}: {reason}; "
    return ""


def _select(scores: Scores, keys: Sequence[Key]) -> Scores:
    if scores.keys == tuple(keys):
        return scores
    place = {key: index for index, key in enumerate(scores.keys)}
    return scores.take(np.array([place[key] for key in keys], dtype=np.int64))


def _lines(run: RunLike) -> list[Mapping[str, Any]]:
    read = getattr(run, "items", None)
    return [line for line in read() if line.get("kind", "choice") == "choice"] if read else []


def _same_prompts(a: Side, b: Side, common: Sequence[Key], allow_partial: bool) -> list[Key]:
    """The items that were asked in the same words; others are refused or left out."""
    kept = list(common)
    for name, words in _SAME_ITEM.items():
        values = [[side.lines.get(key, {}).get(name) for key in kept] for side in (a, b)]
        known = [i for i, pair in enumerate(zip(*values, strict=True)) if None not in pair]
        differing = _differing(
            [kept[i] for i in known], *([side[i] for i in known] for side in values)
        )
        kept = _without(kept, differing, words, allow_partial)
    shown = [
        key
        for key in kept
        if "prompts" in a.docs.get(key, ()) or "prompts" in b.docs.get(key, ())
        if key in a.docs and key in b.docs
    ]
    texts = [[prompts_of(side.docs[key]) for key in shown] for side in (a, b)]
    return _without(kept, _differing(shown, *texts), "prompt", allow_partial)


def _without(kept: list[Key], differing: list[Key], words: str, allow_partial: bool) -> list[Key]:
    if not allow_partial:
        refuse(words, differing)
    gone = set(differing)
    return [key for key in kept if key not in gone]


def _differing(keys: Sequence[Key], a: Sequence[Any], b: Sequence[Any]) -> list[Key]:
    return [key for key, left, right in zip(keys, a, b, strict=True) if left != right]


def refuse(what: str, keys: list[Key]) -> None:
    """Refuse to compare items that differ, naming the first.

    Raises:
        ValueError: if there are any.
    """
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
