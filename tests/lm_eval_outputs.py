"""Output folders of lm-evaluation-harness, written by hand in the layout of every version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIME = "2025-03-01T10-20-30.123456"

VERSIONS = {
    "0.3": None,
    "0.4.2": None,
    "0.4.4": None,
    "0.4.8": "0.4.8",
    "0.4.9.2": "0.4.9.2",
}
"""Layout of a version -> what its results file states as `lm_eval_version`."""


@dataclass(frozen=True)
class Doc:
    """One document with the answers of a model: requests in the order of the harness."""

    doc: Mapping[str, Any]
    context: str
    choices: Sequence[str]
    gold: int
    ll: Sequence[float]

    @property
    def acc(self) -> float:
        return float(max(range(len(self.ll)), key=self.ll.__getitem__) == self.gold)


def arc(n: int = 6, shift: float = 0.0) -> list[Doc]:
    """Documents in the manner of ARC, with three to five choices that begin alike."""
    return [
        Doc(
            doc={"id": f"M_{i}", "question": f"What is {i}?", "answerKey": "A"},
            context=f"Question: What is {i}?\nAnswer:",
            choices=[f"the number {i + k}" for k in range(3 + i % 3)],
            gold=i % 3,
            ll=[-1.25 - 0.5 * ((i + k) % 4) - shift * k for k in range(3 + i % 3)],
        )
        for i in range(n)
    ]


def write(
    folder: Path,
    version: str,
    tasks: Mapping[str, Sequence[Doc]],
    *,
    truth: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write an output folder.

    Args:
        folder: where to.
        version: a key of VERSIONS.
        tasks: documents by task.
        truth: 2023 alone: task -> function from a document to `truth`; its index by default.
        results, config: entries that replace those of the results file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "results": {task: {"acc,none": 0.5} for task in tasks},
        "versions": dict.fromkeys(tasks, 1.0),
        "config": {
            "model": "hf",
            "model_args": "pretrained=tiny,dtype=float32",
            "use_cache": None,
            "limit": None,
            "batch_size": 8,
            **(config or {}),
        },
    }
    if VERSIONS[version]:
        content["lm_eval_version"] = VERSIONS[version]
    content |= results or {}
    name = {"0.3": "out.json", "0.4.2": "results.json"}.get(version, f"results_{TIME}.json")
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    for task, docs in tasks.items():
        if version == "0.3":
            made = (truth or {}).get(task, lambda one: one.gold)
            entries = [_entry_2023(i, one, made(one)) for i, one in enumerate(docs)]
            (folder / f"{task}_write_out_info.json").write_text(json.dumps(entries, indent=4))
        elif version == "0.4.2":
            lines = [_line_of_array(i, one) for i, one in enumerate(docs)]
            (folder / f"pretrained__tiny,dtype__float32_{task}.jsonl").write_text(
                json.dumps(lines, indent=2)
            )
        else:
            samples(folder, task).write_text(
                "".join(
                    json.dumps(line(i, one, version), ensure_ascii=False) + "\n"
                    for i, one in enumerate(docs)
                ),
                encoding="utf-8",
            )
    return folder


def samples(folder: Path, task: str) -> Path:
    """Path of a samples file since 0.4.3."""
    return folder / f"samples_{task}_{TIME}.jsonl"


def line(doc_id: int, one: Doc, version: str = "0.4.8") -> dict[str, Any]:
    """A line since 0.4.3: numbers as strings; `filter` and `metrics` since 0.4.7."""
    answers = [[str(ll), "False"] for ll in one.ll]
    found = {
        "doc_id": doc_id,
        "doc": one.doc,
        "target": str(one.gold),
        "arguments": {
            f"gen_args_{k}": {"arg_0": one.context, "arg_1": f" {choice}"}
            for k, choice in enumerate(one.choices)
        },
        "resps": [[answer] for answer in answers],
        "filtered_resps": answers,
        "doc_hash": _hash(json.dumps(one.doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(one.context),
        "target_hash": _hash(str(one.gold)),
        "acc": one.acc,
    }
    return found if version == "0.4.4" else {**found, "filter": "none", "metrics": ["acc"]}


def _line_of_array(doc_id: int, one: Doc) -> dict[str, Any]:
    return {
        "doc_id": doc_id,
        "doc": one.doc,
        "target": one.gold,
        "arguments": [[one.context, f" {choice}"] for choice in one.choices],
        "resps": [[[ll, False]] for ll in one.ll],
        "filtered_resps": [[ll, False] for ll in one.ll],
        "acc": one.acc,
    }


def _entry_2023(doc_id: int, one: Doc, truth: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"doc_id": doc_id}
    entry |= {f"prompt_{k}": f"{one.context} {choice}" for k, choice in enumerate(one.choices)}
    entry |= {f"logit_{k}": ll for k, ll in enumerate(one.ll)}
    return {**entry, "truth": truth, "acc": str(one.acc)}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
