"""Which item of one run is which of another, where their ids do not say it.

Runs of calibit carry the ids of their items. An imported run numbers the documents of its data set,
whose order or fields another release may have changed: there documents are matched by their hashes,
and last by what the model was shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from calibit.measures.scores import Scores

Key = tuple[str, str]
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Side:
    """One run as far as pairing needs it.

    Attributes:
        scores: its scores.
        lines: its item lines by key; empty where it has none.
        docs: its prompts by key; empty where they were not stored.
    """

    scores: Scores
    lines: Mapping[Key, Line]
    docs: Mapping[Key, Line]

    def renamed(self, names: Mapping[Key, Key]) -> Side:
        """The same items under the keys of another run, those without one under their own."""
        used = set(names.values())

        def name(key: Key) -> Key:
            own = names.get(key)
            return own or (key if key not in used else (key[0], f"{key[1]} (unpaired)"))

        keys = [name(key) for key in self.scores.keys]
        scores = replace(
            self.scores, tasks=tuple(task for task, _ in keys), ids=tuple(item for _, item in keys)
        )
        lines = {
            name(key): {**line, "task": name(key)[0], "id": name(key)[1]}
            for key, line in self.lines.items()
        }
        return Side(scores, lines, {name(key): doc for key, doc in self.docs.items()})


def join(a: Side, b: Side) -> tuple[Side, str | None]:
    """Give the items of b the keys of a.

    Args:
        a: reference.
        b: candidate.

    Returns:
        b, and how it was joined with which success; None where both carry ids of their own.
    """
    if not any("doc_hash" in line for side in (a, b) for line in side.lines.values()):
        return b, None
    if _same_documents(a, b):
        return b, _share("document number", {key: key for key in a.lines if key in b.lines}, a, b)
    for words, identity in (("document hash", _document), ("prompts and choices", _shown)):
        names = _match(a, b, identity)
        if names:
            return b.renamed(names), _share(words, names, a, b)
    return b, None


def prompts_of(doc: Line) -> tuple[str, ...] | None:
    """Every prompt of an item with its choice, as the model saw it; None where it is not stored."""
    if "prompts" in doc:
        return tuple(doc["prompts"])
    if "choices" not in doc:
        return None
    contexts = doc.get("contexts") or [doc["context"]] * len(doc["choices"])
    pairs = zip(contexts, doc["choices"], strict=True)
    return tuple(context + doc["delimiter"] + choice for context, choice in pairs)


def _same_documents(a: Side, b: Side) -> bool:
    """Whether the items with equal task and number are the same documents, as far as is known."""
    common = [key for key in a.lines if key in b.lines]
    for key in common:
        one, other = a.lines[key], b.lines[key]
        known = [name for name in ("doc_hash", "prompts_hash") if one.get(name) and other.get(name)]
        if not known or one[known[0]] != other[known[0]]:
            return False
    return bool(common)


def _match(a: Side, b: Side, identity: Callable[[Side, Key], Hashable | None]) -> dict[Key, Key]:
    """Key in b -> key in a of equal identity; of several equal items the n-th is the n-th."""
    waiting: dict[Hashable, list[Key]] = defaultdict(list)
    for key in reversed(a.scores.keys):
        waiting[identity(a, key)].append(key)
    waiting.pop(None, None)
    names: dict[Key, Key] = {}
    for key in b.scores.keys:
        own = waiting.get(identity(b, key))
        if own:
            names[key] = own.pop()
    return names


def _document(side: Side, key: Key) -> Hashable | None:
    found = side.lines.get(key, {}).get("doc_hash")
    return None if found is None else (key[0], found)


def _shown(side: Side, key: Key) -> Hashable | None:
    """The prompts with runs of white space folded, else the hashes of context and choices."""
    prompts = prompts_of(side.docs[key]) if key in side.docs else None
    if prompts is not None:
        return tuple(" ".join(text.split()) for text in prompts)
    line = side.lines.get(key, {})
    hashes = line.get("context_hash"), line.get("choices_hash")
    return None if None in hashes else hashes


def _share(words: str, names: Mapping[Key, Key], a: Side, b: Side) -> str:
    n = max(a.scores.n, b.scores.n)
    joined = sum(key in names for key in b.scores.keys)
    return f"items joined by {words}: {joined} of {n} ({100 * joined / max(n, 1):.4g} %)"
