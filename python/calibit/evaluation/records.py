"""What a run stores: the job's identity, the lines of items.jsonl and docs.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from calibit.evaluation.encoding import EncodedChoices
from calibit.evaluation.identity import choices_hash, context_hash, contexts_of, items_hash
from calibit.evaluation.scoring import ChoiceScores
from calibit.evaluation.text import Windows
from calibit.measures.self_audit import NOT_FINITE, SPECIAL_START
from calibit.runs import CONTINUATION

if TYPE_CHECKING:
    from calibit.evaluation.outputs import Asked
    from calibit.tasks import Item


def describe_tasks(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Name, number of items and hash of each task, in order of appearance."""
    by_task: dict[str, list[Item]] = {}
    for item in items:
        by_task.setdefault(item.task, []).append(item)
    return [
        {"name": name, "n": len(own), "items_hash": items_hash(own)}
        for name, own in by_task.items()
    ]


def describe_texts(
    texts: Sequence[Windows], batches: Sequence[Sequence[Any]]
) -> list[dict[str, Any]]:
    """Protocol, sizes and shard numbers of each text."""
    described, shard = [], 0
    for windows, own in zip(texts, batches, strict=True):
        described.append(
            {
                "name": windows.text.name,
                "protocol": windows.protocol,
                "tokens": windows.scored,
                "windows": len(windows.rows),
                "window": windows.window,
                "bytes": windows.bytes,
                **{
                    key: value
                    for key, value in (("words", windows.words), ("stride", windows.stride))
                    if value is not None
                },
                "sha256": windows.text.sha256,
                "shards": [shard, shard + len(own)],
            }
        )
        shard += len(own)
    return described


def item_lines(
    items: Sequence[Item],
    encoded: Sequence[EncodedChoices],
    scores: Sequence[ChoiceScores | None],
    without: Sequence[ChoiceScores | None] | None,
) -> Iterator[dict[str, Any]]:
    """Lines of items.jsonl in item order.

    Args:
        items: the items.
        encoded: their token ids.
        scores: their scores; None where an item could not be scored.
        without: scores of the same choices after an empty context, or None where not asked for.
    """
    for index, (item, ids, score) in enumerate(zip(items, encoded, scores, strict=True)):
        reason = ids.reason or _not_finite(score)
        line = {
            "kind": "choice" if len(item.choices) > 1 else CONTINUATION,
            "id": item.id,
            "task": item.task,
            "slices": dict(item.slices),
            "gold": item.gold,
            **({"right": list(item.right)} if getattr(item, "right", ()) else {}),
            **({"ties": list(item.ties)} if getattr(item, "ties", ()) else {}),
            "ll": None if reason or score is None else list(score.ll),
            "tokens": [len(tokens) for tokens in ids.targets],
            "chars": [len(choice) for choice in item.choices],
            "bytes": [len(choice.encode()) for choice in item.choices],
            "is_greedy": None if reason or score is None else list(score.greedy),
        }
        if without is not None:
            alone = without[index]
            line["unconditional"] = None if alone is None or _not_finite(alone) else list(alone.ll)
        line |= {
            "truncated": ids.truncated,
            "boundary_merge": ids.boundary_merge,
            SPECIAL_START: ids.special_start,
            "context_hash": context_hash(contexts_of(item)),
            "choices_hash": choices_hash(item.delimiter, item.choices),
            "reason": reason,
        }
        yield line


def doc_lines(items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """Lines of docs.jsonl in item order."""
    for item in items:
        yield {
            "id": item.id,
            "task": item.task,
            "context": item.context,
            **({"contexts": list(item.contexts)} if getattr(item, "contexts", ()) else {}),
            "delimiter": item.delimiter,
            "choices": list(item.choices),
        }


def prompt_lines(asked: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """Lines of docs.jsonl of prompts, in their order."""
    for one in asked:
        if one.text:
            answer = None if one.prompt.answer is None else one.prompt.answer.to_dict()
            ids = {"id": one.prompt.id, "task": one.prompt.task}
            yield {**ids, "prompt": one.text, "answer": answer}


def _not_finite(score: ChoiceScores | None) -> str | None:
    for index, value in enumerate(score.ll if score is not None else ()):
        if not math.isfinite(value):
            return f"{NOT_FINITE} {index} is {value}"
    return None
