"""Run: one recorded evaluation, in memory and on disk.

A run is a folder: `run.json` (what was evaluated, how, with what), `items.jsonl` (one line per
item, in item order), `docs.jsonl` (prompts and choices, unless left out), `tokens/NNNN.npz`
(per-token losses of texts), `sequences.jsonl` with `forced/` (continuations of a workload, segments
of parallel texts: token ids, and per-token measures) and, last of all, `manifest.json` with the
SHA-256 of the others. A folder without a manifest is an evaluation that has not ended: its finished
batches lie in `items.part.jsonl`, one line each, and the same job continues after the last whole
line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from calibit.measures.scores import Scores

SCHEMA = "calibit.run/1"
CONTINUATION = "continuation"
"""Kind of an item with a single choice: right where it is the model's own greedy continuation."""

GENERATE = "generate"
"""Kind of an item that a model answered in its own words: `correct` says whether it was right."""

WORKLOAD = "workload"
"""Source of the continuations of a user's prompts."""

RECALIBRATION = "recalibration"
"""Entry of run.json: the map that the run's scores went through; missing without one."""

MANIFEST = "manifest.json"
META = "run.json"
ITEMS = "items.jsonl"
DOCS = "docs.jsonl"
PART = "items.part.jsonl"
SEQUENCES = "sequences.jsonl"
FORCED, GENERATED = "forced", "generated"
"""Folders of measures on given continuations, and (while a run is written) of continuations; also
entries of run.json."""


@dataclass(frozen=True)
class TokenLosses:
    """Per-token losses of one text, in text order.

    Attributes:
        nll: float64 `[n]`, negative log-likelihood of each scored token, nats; NaN where not
            finite.
        window: int64 `[n]`, the window or document it belongs to.
        position: int64 `[n]`, its position in that window, from 1.
    """

    nll: np.ndarray
    window: np.ndarray
    position: np.ndarray


@dataclass(frozen=True, eq=False)
class Forced:
    """A model's next-token measures on given continuations, in order.

    Attributes:
        sequences: lines of sequences.jsonl: source, id, group, cluster, slices, context, target.
        measures: arrays `[n]` over all positions: int64 `sequence` (its line), `position`, `token`,
            `argmax`; float64 `log_true`, `log_top`, `entropy` in nats, and `kl`, KL(reference ||
            this model), where the run had a reference.
    """

    sequences: tuple[dict[str, Any], ...]
    measures: Mapping[str, np.ndarray]

    @property
    def sources(self) -> tuple[str, ...]:
        """Workload and parallel texts, in order of appearance."""
        return tuple(dict.fromkeys(str(line["source"]) for line in self.sequences))


@dataclass(frozen=True, eq=False)
class Run:
    """One recorded evaluation.

    Attributes:
        meta: the content of run.json.
        path: its folder; None for a run that was kept in memory.
    """

    meta: Mapping[str, Any]
    path: Path | None = None
    _items: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    _docs: tuple[dict[str, Any], ...] | None = field(default=None, repr=False)
    _tokens: Mapping[str, TokenLosses] = field(default_factory=dict, repr=False)
    _forced: Forced | None = field(default=None, repr=False)

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a finished run and check every file against the manifest.

        Raises:
            FileNotFoundError: if there is no run at the path, or a file of it is missing.
            ValueError: if the run is unfinished, or a file was cut or changed.
        """
        folder = Path(path)
        if not (folder / META).is_file():
            raise FileNotFoundError(f"[Run.load] expected a run folder with {META}, got {folder}")
        if not (folder / MANIFEST).is_file():
            raise ValueError(
                f"[Run.load] expected a finished run in {folder}, got one with "
                f"{_count_lines(folder / PART)} finished batches and no manifest; evaluate the "
                "same job into this folder to finish it"
            )
        _verify(folder)
        meta = read_json(folder / META)
        docs = tuple(read_lines(folder / DOCS)) if (folder / DOCS).is_file() else None
        texts = {text["name"]: _read_tokens(folder, text) for text in meta["text"]}
        forced = _read_forced(folder) if (folder / SEQUENCES).is_file() else None
        return cls(meta, folder, tuple(read_lines(folder / ITEMS)), docs, texts, forced)

    @classmethod
    def of(
        cls,
        meta: Mapping[str, Any],
        items: Iterable[dict[str, Any]],
        docs: Iterable[dict[str, Any]] | None = None,
    ) -> Run:
        """A run in memory from its parts: `meta` as in run.json, lines as in items.jsonl and
        docs.jsonl."""
        return cls(meta, None, tuple(items), None if docs is None else tuple(docs))

    def detached(self) -> Run:
        """The same run without its folder."""
        return replace(self, path=None)

    def items(self) -> list[dict[str, Any]]:
        """Lines of items.jsonl in item order."""
        return [dict(item) for item in self._items]

    def docs(self) -> list[dict[str, Any]] | None:
        """Lines of docs.jsonl (id, task, context, choices, delimiter); None where they were left
        out."""
        return None if self._docs is None else [dict(doc) for doc in self._docs]

    def scores(self, rule: str = "sum") -> Scores:
        """Scores of the choices under a rule: `sum`, `token`, `char`, `byte` or `pmi`.

        Items without log-likelihoods (their `reason` says why) are left out. A run that was
        evaluated with a recalibration map gives the scores that the map leaves.

        Raises:
            ValueError: for a rule that the items have no numbers for, or another than the map's.
        """
        from calibit.measures.scores import Scores

        scores = Scores.from_items(self._items, rule=rule)
        recorded = self.meta.get(RECALIBRATION)
        if recorded is None:
            return scores
        from calibit.recalibration import recalibrated

        return recalibrated(scores, recorded)

    def continuations(self) -> list[dict[str, Any]]:
        """Lines of items with a single choice (LAMBADA): `is_greedy[0]` says whether it is right,
        `ll[0]` how likely it is; `ll` is None where it could not be scored."""
        return [dict(item) for item in self._items if item.get("kind") == CONTINUATION]

    def generated(self) -> list[dict[str, Any]]:
        """Lines of items that the model answered in its own words: text, `correct`, tokens."""
        return [dict(item) for item in self._items if item.get("kind") == GENERATE]

    def forced(self) -> Forced | None:
        """Measures on the continuations of a workload and on parallel texts; None without any."""
        return self._forced

    def text_names(self) -> tuple[str, ...]:
        """Names of the scored texts."""
        return tuple(self._tokens)

    def tokens(self, name: str | None = None) -> TokenLosses:
        """Per-token losses of a text, in text order.

        Args:
            name: the text; may be omitted where the run has one.

        Raises:
            ValueError: if there is no such text, or no name was given and there is not exactly one.
        """
        known = ", ".join(self._tokens) or "none"
        if name is None and len(self._tokens) != 1:
            raise ValueError(f"[Run] expected the name of a text, got none; the run has: {known}")
        chosen = next(iter(self._tokens)) if name is None else name
        if chosen not in self._tokens:
            raise ValueError(
                f"[Run] expected the name of a text of the run ({known}), got {chosen!r}"
            )
        return self._tokens[chosen]

    def text_nll(self, name: str | None = None) -> np.ndarray:
        """Negative log-likelihood of every scored token of a text, nats, float64 `[n_tokens]`, in
        text order."""
        return self.tokens(name).nll


def _verify(folder: Path) -> None:
    for name, expected in read_json(folder / MANIFEST)["sha256"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"[Run.load] expected {name} in {folder}, got nothing; the run lost a file"
            )
        if sha256_of(folder / name) != expected:
            raise ValueError(
                f"[Run.load] expected {folder / name} as the manifest records it, got another "
                f"content of {(folder / name).stat().st_size} bytes: the file was cut or changed "
                "after the run ended"
            )


def _read_tokens(folder: Path, text: Mapping[str, Any]) -> TokenLosses:
    return join_shards(folder, range(*text["shards"]))


def join_shards(folder: Path, shards: Iterable[int]) -> TokenLosses:
    """The losses of several shards of a run folder, sorted into text order."""
    parts = []
    for shard in shards:
        with np.load(folder / "tokens" / f"{shard:04d}.npz") as stored:
            parts.append((stored["nll"], stored["window"], stored["position"]))
    nll, window, position = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((position, window))
    return TokenLosses(nll[order], window[order], position[order])


def _read_forced(folder: Path) -> Forced:
    """All shards of a run's forced continuations, sorted into order."""
    parts: list[dict[str, np.ndarray]] = []
    for file in sorted((folder / FORCED).glob("*.npz")):
        with np.load(file) as stored:
            parts.append(dict(stored))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((columns["position"], columns["sequence"]))
    measures = {name: column[order] for name, column in columns.items()}
    return Forced(tuple(read_lines(folder / SEQUENCES)), measures)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: if the file is not valid JSON; the message names it.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"[Run] expected valid JSON in {path}, got: {error}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a JSON Lines file.

    Raises:
        ValueError: naming file and line, if one is not valid JSON.
    """
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"[Run] expected a JSON object in {path}, line {number}, got: {error}"
            ) from error
    return found


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
