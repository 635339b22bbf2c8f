"""From a sample to the lines of a run's items.jsonl and docs.jsonl."""

from __future__ import annotations

import math
from typing import Any

from calibit.evaluation.identity import choices_hash, context_hash, text_hash
from calibit.io.lm_eval.sample import Sample


def item_line(sample: Sample) -> dict[str, Any]:
    """The line of items.jsonl; token counts are unknown, and so are lengths without choices."""
    bad = [(k, ll) for k, ll in enumerate(sample.ll) if not math.isfinite(ll)]
    reason = f"the log-likelihood of choice {bad[0][0]} is {bad[0][1]}" if bad else None
    line: dict[str, Any] = {
        "kind": "choice",
        "id": _id(sample),
        "task": sample.task,
        "slices": {},
        "gold": sample.gold,
        "ll": None if bad else list(sample.ll),
        "is_greedy": None if sample.greedy is None else list(sample.greedy),
        "doc_hash": sample.doc_hash,
        "prompts_hash": text_hash(list(sample.prompts)),
        "reason": reason,
    }
    if sample.contexts is not None and sample.choices is not None:
        line["chars"] = [len(choice) for choice in sample.choices]
        line["bytes"] = [len(choice.encode()) for choice in sample.choices]
        line["context_hash"] = context_hash(sample.contexts)
        line["choices_hash"] = choices_hash(sample.delimiter, sample.choices)
    if sample.unconditional is not None and all(map(math.isfinite, sample.unconditional)):
        line["unconditional"] = list(sample.unconditional)
    return line


def doc_line(sample: Sample) -> dict[str, Any]:
    """The line of docs.jsonl: context and choices where they are known apart, else the prompts."""
    line: dict[str, Any] = {"id": _id(sample), "task": sample.task}
    if sample.contexts is None or sample.choices is None:
        return {**line, "prompts": list(sample.prompts)}
    if len(set(sample.contexts)) == 1:
        line["context"] = sample.contexts[0]
    else:
        line["contexts"] = list(sample.contexts)
    return {**line, "delimiter": sample.delimiter, "choices": list(sample.choices)}


def _id(sample: Sample) -> str:
    return f"{sample.task}-{sample.doc_id}"
