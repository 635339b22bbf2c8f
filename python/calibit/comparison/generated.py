"""Two models' own answers to the same prompts: right or wrong, paired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from calibit.comparison.evidence import Evidence, accuracy_evidence
from calibit.comparison.pairing import CLUSTER_FIELD, RunLike, refuse
from calibit.comparison.repeating import compare_repetition, repetition_evidence
from calibit.comparison.tables import accuracy_change
from calibit.measures.confidence import acc
from calibit.measures.estimate import Estimate, plain
from calibit.measures.paired import McNemar, cluster_index, holm, mcnemar, mean_difference
from calibit.measures.resampling import Resampling
from calibit.measures.slices import N_MIN

FEWEST_RIGHT = N_MIN
"""Right answers of the reference from which a loss of them is judged: free text has no chance
level to stand out from, but a model that answers nothing has nothing to lose."""

Line = Mapping[str, Any]


@dataclass(frozen=True)
class GeneratedTask:
    """One task answered in free text.

    Attributes:
        task: its name.
        n: prompts.
        rr, rw, wr, ww: right and wrong before and after.
        a, b: shares of right answers, with Clopper and Pearson's intervals.
        d_acc: their change, with Tango's interval.
        mcnemar: exact and mid-p test of the changed answers.
        p_holm: its exact p, adjusted for the number of tasks by Holm's procedure (1979).
        same_text: share of prompts that both answer in the same words.
        d_tokens: change of the length, tokens.
        limit_a, limit_b: shares of answers cut off at the longest length.
        repetition: per measure of repetition a, b, n and change; empty where a run has none
            recorded.
        slices: per slice key and value: n, a, d_acc.
        judged: whether the reference is right often enough for a loss to be judged.
        note: why not.
    """

    task: str
    n: int
    rr: int
    rw: int
    wr: int
    ww: int
    a: Estimate
    b: Estimate
    d_acc: Estimate
    mcnemar: McNemar
    same_text: float
    d_tokens: Estimate
    limit_a: float
    limit_b: float
    repetition: Mapping[str, Mapping[str, Any]]
    slices: tuple[Mapping[str, Any], ...]
    judged: bool
    note: str | None
    p_holm: float | None = None

    @property
    def shortfall(self) -> str:
        """How many right answers of the original there are, and how many a judgement needs."""
        return f"original right on {self.rr + self.rw} of {self.n}, needs {FEWEST_RIGHT}"

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain({**vars(self), "mcnemar": asdict(self.mcnemar)})


@dataclass(frozen=True)
class Generated:
    """The tasks of two runs.

    Attributes:
        tasks: those of both runs.
        evidence: for the verdict.
        warnings: what the reader should know.
    """

    tasks: tuple[GeneratedTask, ...] = ()
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def compare_generated(
    a: RunLike,
    b: RunLike,
    resampling: Resampling,
    *,
    clusters: str | None = None,
    allow_partial: bool = False,
) -> Generated:
    """Compare the answers that both models wrote.

    Args:
        a, b: runs of reference and candidate.
        resampling: of the intervals; its clusters, those of other items, are not used.
        clusters: slice key or item field whose values name clusters of prompts, as for `compare`.
        allow_partial: compare the common prompts where some are missing.

    Raises:
        ValueError: if prompts are missing in one run, or were asked or judged differently.
    """
    first, second = (_lines(run) for run in (a, b))
    keys = [key for key in first if key in second]
    alone = [key for key in (*first, *second) if key not in first or key not in second]
    if alone and not allow_partial:
        raise ValueError(
            "[compare] expected the same prompts answered in free text in both runs, got "
            f"{len(alone)} in one run only, first {'/'.join(alone[0])}; evaluate both on the same "
            "prompts (both with --reference, which brings those of another run), or compare the "
            "common ones: --allow_partial"
        )
    for name, words in (("context_hash", "prompt"), ("choices_hash", "right answer")):
        refuse(words, [key for key in keys if first[key][name] != second[key][name]])
    if not keys:
        return Generated()
    pairs = [(first[key], second[key]) for key in keys]
    own = _clusters(pairs, clusters, required=resampling.clusters is None)
    draw = replace(resampling, clusters=own)
    names = np.array([key[0] for key in keys])
    tasks = []
    for name in dict.fromkeys(names.tolist()):
        part = np.flatnonzero(names == name)
        tasks.append(_task(name, [pairs[i] for i in part], draw.take(part)))
    adjusted = holm([one.mcnemar.p for one in tasks])
    tasks = [replace(one, p_holm=p) for one, p in zip(tasks, adjusted, strict=True)]
    judged = np.flatnonzero(np.isin(names, [one.task for one in tasks if one.judged]))
    warnings = [one.note for one in tasks if one.note]
    if alone:
        warnings.append(
            f"{len(alone)} prompts were answered in free text in one run only and left out: "
            f"{len(set(first) - set(second))} of a and {len(set(second) - set(first))} of b"
        )
    evidence = _evidence([pairs[i] for i in judged], draw.take(judged)) if judged.size else {}
    repeating = repetition_evidence(pairs, draw)
    if repeating is not None:
        evidence["repetition"] = repeating
    return Generated(tuple(tasks), evidence, tuple(warnings))


def _clusters(
    pairs: Sequence[tuple[Line, Line]], by: str | None, *, required: bool
) -> np.ndarray | None:
    """Cluster number of every pair; None where prompts are independent.

    Raises:
        ValueError: if the key is required and no prompt has it.
    """
    wanted = CLUSTER_FIELD if by is None else by
    values = [line["slices"].get(wanted, line.get(wanted)) for line, _ in pairs]
    if by is not None and required and all(value is None for value in values):
        known = sorted({name for line, _ in pairs for name in line["slices"]})
        raise ValueError(
            f"[compare] expected a slice key or item field for clusters of prompts, got {by!r}; "
            f"slice keys: {', '.join(known) or 'none'}"
        )
    labels = [
        ("prompt", str(line["task"]), str(line["id"]))
        if value is None
        else ("cluster", str(line["task"]), str(value))
        for value, (line, _) in zip(values, pairs, strict=True)
    ]
    found = cluster_index(labels, len(labels))
    return found if found.max() + 1 < len(found) else None


def _lines(run: RunLike) -> dict[tuple[str, str], Line]:
    read = getattr(run, "generated", None)
    return {(str(line["task"]), str(line["id"])): line for line in (read() if read else ())}


def _evidence(pairs: Sequence[tuple[Line, Line]], draw: Resampling) -> dict[str, Evidence]:
    before, after = _right(pairs)
    return {"gen_acc": replace(accuracy_evidence(before, after, draw), metric="gen_acc")}


def _right(pairs: Sequence[tuple[Line, Line]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array([[one["correct"] for one in pair] for pair in pairs], dtype=np.float64)
    return table[:, 0], table[:, 1]


def _task(name: str, pairs: Sequence[tuple[Line, Line]], draw: Resampling) -> GeneratedTask:
    before, after = _right(pairs)
    cells = Counter(zip(before.tolist(), after.tolist(), strict=True))
    rw, wr = cells[1.0, 0.0], cells[0.0, 1.0]
    lengths = np.array([b["tokens"] - a["tokens"] for a, b in pairs], dtype=np.float64)
    right = int(before.sum())
    return GeneratedTask(
        task=name,
        n=len(pairs),
        rr=cells[1.0, 1.0],
        rw=rw,
        wr=wr,
        ww=cells[0.0, 0.0],
        a=acc(before, resampling=draw),
        b=acc(after, resampling=draw),
        d_acc=accuracy_change(before, after, draw),
        mcnemar=mcnemar(rw, wr),
        same_text=float(np.mean([a["text_hash"] == b["text_hash"] for a, b in pairs])),
        d_tokens=mean_difference(lengths, metric="d_tokens", resampling=draw),
        limit_a=float(np.mean([not a["ended"] for a, _ in pairs])),
        limit_b=float(np.mean([not b["ended"] for _, b in pairs])),
        repetition=compare_repetition(pairs, draw),
        slices=tuple(_slices(pairs, draw)),
        judged=right >= FEWEST_RIGHT,
        note=None if right >= FEWEST_RIGHT else _too_few(name, right, len(pairs)),
    )


def _too_few(name: str, right: int, n: int) -> str:
    return (
        f"the original answers only {right} of {n} prompts of {name} right, fewer than "
        f"{FEWEST_RIGHT}: there is too little to lose, and no loss was judged"
    )


def _slices(pairs: Sequence[tuple[Line, Line]], draw: Resampling) -> list[dict[str, Any]]:
    members: dict[tuple[str, str], list[int]] = {}
    for index, (line, _) in enumerate(pairs):
        for key, value in line["slices"].items():
            members.setdefault((key, str(value)), []).append(index)
    before, after = _right(pairs)
    return [
        {
            "key": key,
            "value": value,
            "n": len(items),
            "a": float(before[items].mean()),
            "d_acc": accuracy_change(before[items], after[items], draw.take(np.array(items))),
        }
        for (key, value), items in sorted(members.items())
    ]
