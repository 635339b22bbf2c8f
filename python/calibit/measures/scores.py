"""Scores of multiple-choice items, and the rules that turn log-likelihoods into scores.

The rules: `sum` (log-likelihood of the choice, the only rule under which p is p(y | x) restricted
to the choices), `token`, `char` and `byte` (divided by the number of continuation tokens, of
characters, of UTF-8 bytes; the delimiter is not counted), `pmi` (minus the log-likelihood without
the context). lm-evaluation-harness calls them acc, -, acc_norm, acc_bytes and acc_mutual_info.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.distributions import Distributions

RULES = ("sum", "token", "char", "byte", "pmi")
UNLABELLED = -1
"""Value of `gold` for an item without a known answer."""

_LENGTH_OF_RULE = {"token": "tokens", "char": "chars", "byte": "bytes"}


def choice_scores(
    rule: str,
    ll: ArrayLike,
    *,
    tokens: ArrayLike | None = None,
    chars: ArrayLike | None = None,
    bytes: ArrayLike | None = None,
    unconditional: ArrayLike | None = None,
) -> np.ndarray:
    """Scores z of the choices of one item under a scoring rule.

    Args:
        rule: one of RULES.
        ll: [K] log-likelihoods (sums of token log probabilities, nats).
        tokens: [K] continuation tokens, needed by `token`.
        chars: [K] characters without the delimiter, needed by `char`.
        bytes: [K] UTF-8 bytes without the delimiter, needed by `byte`.
        unconditional: [K] log-likelihoods with an empty context, needed by `pmi`.

    Returns:
        float64 [K].

    Raises:
        ValueError: for an unknown rule, missing counts, or counts below one.

    Example:
        >>> choice_scores("char", [-6.0, -5.0], chars=[9, 3]).round(4).tolist()
        [-0.6667, -1.6667]
    """
    if rule not in RULES:
        raise ValueError(f"[scores] expected a rule of {', '.join(RULES)}, got {rule!r}")
    value = np.asarray(ll, dtype=np.float64)
    if rule == "sum":
        return value
    if rule == "pmi":
        if unconditional is None:
            raise ValueError(
                "[scores] expected unconditional log-likelihoods for rule 'pmi', got none"
            )
        return value - np.asarray(unconditional, dtype=np.float64)
    given = {"token": tokens, "char": chars, "byte": bytes}[rule]
    if given is None:
        raise ValueError(
            f"[scores] expected {_LENGTH_OF_RULE[rule]} per choice for rule {rule!r}, got none"
        )
    length = np.asarray(given, dtype=np.float64)
    if length.shape != value.shape or not (length >= 1).all():
        raise ValueError(
            f"[scores] expected {value.size} counts of at least 1 for rule {rule!r}, "
            f"got {length.tolist()}"
        )
    return value / length


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of N items under one rule; the number of choices K_i may differ per item.

    Attributes:
        ids: item ids, unique inside a task.
        tasks: task of each item.
        gold: int64 [N], index of the right choice, -1 where unknown.
        z: per item float64 [K_i], log scores.
        slices: per item, slice key -> value ({"domain": "capitals", "lang": "en"}).
        rule: the scoring rule that made z; printed beside every number.
    """

    ids: tuple[str, ...]
    tasks: tuple[str, ...]
    gold: np.ndarray
    z: tuple[np.ndarray, ...]
    slices: tuple[Mapping[str, str], ...]
    rule: str = "sum"

    def __post_init__(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in ("ids", "tasks", "gold", "z", "slices")}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"[scores] expected one entry per item in every field, got {sizes}")
        object.__setattr__(self, "gold", np.asarray(self.gold, dtype=np.int64))
        object.__setattr__(self, "z", tuple(np.asarray(row, dtype=np.float64) for row in self.z))
        for index, row in enumerate(self.z):
            name = f"item {self.ids[index]!r} of task {self.tasks[index]!r}"
            if row.ndim != 1 or not row.size:
                raise ValueError(
                    f"[scores] expected scores of shape [K], got {row.shape} in {name}"
                )
            if not np.isfinite(row).all():
                raise ValueError(f"[scores] expected finite scores, got {row.tolist()} in {name}")
            if not UNLABELLED <= self.gold[index] < row.size:
                raise ValueError(
                    f"[scores] expected gold in -1..{row.size - 1}, "
                    f"got {self.gold[index]} in {name}"
                )
        repeated = [key for key, count in Counter(self.keys).items() if count > 1]
        if repeated:
            shown = ", ".join(f"{task}/{item}" for task, item in repeated[:5])
            raise ValueError(f"[scores] expected every (task, id) once, got repeats: {shown}")

    @classmethod
    def from_arrays(
        cls,
        z: ArrayLike | Sequence[ArrayLike],
        gold: ArrayLike | None = None,
        *,
        ids: Sequence[str] | None = None,
        task: str = "items",
        slices: Sequence[Mapping[str, str]] | None = None,
        rule: str = "sum",
    ) -> Scores:
        """Scores from plain arrays; ids default to "0", "1", ...

        Args:
            z: [N, K] or N arrays [K_i] of log scores (not probabilities).
            gold: int [N], -1 where unknown; all unknown where omitted.
            ids: item ids.
            task: task of all items.
            slices: slice values per item.
            rule: name of the scoring rule that made z.
        """
        rows = tuple(np.asarray(row, dtype=np.float64) for row in z)  # type: ignore[union-attr]
        n = len(rows)
        return cls(
            ids=tuple(ids) if ids is not None else tuple(str(index) for index in range(n)),
            tasks=(task,) * n,
            gold=np.full(n, UNLABELLED) if gold is None else np.asarray(gold, dtype=np.int64),
            z=rows,
            slices=tuple(slices) if slices is not None else ({},) * n,
            rule=rule,
        )

    @classmethod
    def from_items(cls, items: Iterable[Mapping[str, Any]], *, rule: str = "sum") -> Scores:
        """Scores from the lines of a run's items.jsonl.

        Lines of another kind than "choice" are passed over, and so are lines whose `ll` is null
        (their `reason` says why): such an item is missing from the result, and pairing two runs
        then names it. An item with several right choices (`right`) becomes two outcomes, right and
        wrong, each with the pooled probability of its choices: `conf_true` is then TruthfulQA's
        mc2. Where an item says in which order choices of equal score win (`ties`), its choices
        stand in that order.

        Args:
            items: mappings with id, task, gold, ll, and what the rule needs (tokens, chars, bytes,
                unconditional).
            rule: scoring rule.
        """
        choices = (item for item in items if item.get("kind", "choice") == "choice")
        kept = [item for item in choices if item.get("ll") is not None]
        gold = [_gold(item) for item in kept]
        return cls(
            ids=tuple(str(item["id"]) for item in kept),
            tasks=tuple(str(item["task"]) for item in kept),
            gold=np.array(gold, dtype=np.int64),
            z=tuple(_item_scores(item, rule) for item in kept),
            slices=tuple(dict(item.get("slices") or {}) for item in kept),
            rule=rule,
        )

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.ids)

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """(task, id) of every item."""
        return tuple(zip(self.tasks, self.ids, strict=True))

    @cached_property
    def distributions(self) -> Distributions:
        """The normalised distributions over the choices."""
        return Distributions.from_scores(self.z, op="scores")

    @cached_property
    def labelled(self) -> np.ndarray:
        """bool [N]: whether the right choice is known."""
        return self.gold != UNLABELLED

    @cached_property
    def correct(self) -> np.ndarray:
        """float64 [N]: 1 where the first largest score is the gold choice, else 0."""
        return (self.distributions.predicted == self.gold).astype(np.float64)

    def take(self, items: np.ndarray) -> Scores:
        """The items given by int64 indices or a boolean mask, in that order."""
        index = np.flatnonzero(items) if items.dtype == bool else items
        return Scores(
            ids=tuple(self.ids[i] for i in index),
            tasks=tuple(self.tasks[i] for i in index),
            gold=self.gold[index],
            z=tuple(self.z[i] for i in index),
            slices=tuple(self.slices[i] for i in index),
            rule=self.rule,
        )


def available_rules(lines: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Scoring rules that every scored line of a run's items.jsonl has the numbers for.

    Args:
        lines: lines of choice items; those whose `ll` is null do not count.
    """
    scored = [line for line in lines if line.get("ll") is not None]
    if not scored:
        return frozenset()
    found = {"sum"}
    for rule, key in _LENGTH_OF_RULE.items():
        if all(line.get(key) and min(line[key]) >= 1 for line in scored):
            found.add(rule)
    if all(line.get("unconditional") for line in scored):
        found.add("pmi")
    return frozenset(found)


def _item_scores(item: Mapping[str, Any], rule: str) -> np.ndarray:
    counts = {key: item.get(key) for key in ("tokens", "chars", "bytes", "unconditional")}
    try:
        z = choice_scores(rule, item["ll"], **counts)
    except ValueError as error:
        raise ValueError(f"{error} in item {item['id']!r} of task {item['task']!r}") from error
    if item.get("ties"):
        z = z[np.array(item["ties"])]
    if not item.get("right"):
        return z
    right = np.isin(np.arange(len(z)), item["right"])
    return np.array([np.logaddexp.reduce(z[right]), np.logaddexp.reduce(z[~right])])


def _gold(item: Mapping[str, Any]) -> int:
    if item.get("right"):
        return 0
    if item.get("gold") is None:
        return UNLABELLED
    return list(item["ties"]).index(item["gold"]) if item.get("ties") else int(item["gold"])
