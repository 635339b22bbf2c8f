"""Prompts that a model continues: those of a user's workload, and tasks answered in free text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibit.tasks.answers import Answer
from calibit.tasks.rows import Row, read_rows

Message = Mapping[str, str]

NEW_TOKENS = 64
"""Longest continuation by default, in tokens."""

_LIMIT, _STOP = "max_new_tokens", "stop"
_EXAMPLE = '{"prompt": "2 + 2 ="}'
_USED = ("id", "task", "prompt", "messages", "answer")


@dataclass(frozen=True)
class Prompt:
    """What a model is given to continue.

    Attributes:
        id: unique inside its task, stable from run to run.
        task: name under which results are reported.
        prompt: the text, template applied; empty where there are `messages`.
        messages: turns of a conversation, each with `role` and `content`, for the chat template.
        answer: what a right continuation is; None where nobody says.
        slices: slice key -> value.
        max_new_tokens: longest continuation.
        stop: texts before which the continuation ends.
    """

    id: str
    task: str
    prompt: str = ""
    messages: tuple[Message, ...] = field(default=(), hash=False)
    answer: Answer | None = None
    slices: Mapping[str, str] = field(default_factory=dict, hash=False)
    max_new_tokens: int = NEW_TOKENS
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(
                f"[Prompt] expected max_new_tokens of at least 1, got {self.max_new_tokens}"
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types; the answer by its kind."""
        return {
            **vars(self),
            "messages": [dict(turn) for turn in self.messages],
            "slices": dict(self.slices),
            "stop": list(self.stop),
            "answer": None if self.answer is None else self.answer.to_dict(),
        }


def read_prompts(path: str | Path, *, max_new_tokens: int = NEW_TOKENS) -> list[Prompt]:
    """Read a workload.

    Args:
        path: JSON Lines: `{"prompt": text}` or `{"messages": [{"role", "content"}, ...]}`, and, if
            wanted, `id`, `answer` (a text that the continuation must equal, or an object as
            `Answer.of` takes it), `max_new_tokens` and `stop` (a list of texts); other string
            fields become slices, and so do the entries of an object `slices`.
        max_new_tokens: longest continuation of prompts that name none.

    Returns:
        The prompts in file order; one without an id gets the file's name and its number.

    Raises:
        ValueError: no such file, or a line that is no such object; the message names the line.
    """
    file = Path(path)
    found: list[Prompt] = []
    seen: dict[str, str] = {}
    for number, row in enumerate(read_rows(file, example=_EXAMPLE)):
        one = _prompt(row, file.stem, number, max_new_tokens)
        if one.id in seen:
            raise row.wrong("an id of its own", one.id, f"the same id stands in {seen[one.id]}")
        seen[one.id] = row.where
        found.append(one)
    return found


def _prompt(row: Row, task: str, number: int, max_new_tokens: int) -> Prompt:
    messages = row.fields.get("messages")
    text = "" if messages is not None else row.text("prompt")
    if messages is None and not text:
        raise row.wrong("'prompt' to be a text", text, "write what the model is asked")
    slices = row.slices(_USED)
    answer = row.fields.get("answer")
    try:
        right = None if answer is None else Answer.of(answer)
    except ValueError as error:
        raise row.wrong("an answer that can be checked", answer, str(error)) from error
    own = row.fields.get("id")
    return Prompt(
        id=f"{task}-{number}" if own is None else str(own),
        task=task,
        prompt=text,
        messages=() if messages is None else _turns(row, messages),
        answer=right,
        slices=slices,
        max_new_tokens=_limit(row, max_new_tokens),
        stop=_stops(row),
    )


def is_prompt(row: Row) -> bool:
    """Whether a row holds a prompt rather than a context with choices."""
    return "choices" not in row.fields and bool({"prompt", "messages"} & {*row.fields})


def _limit(row: Row, default: int) -> int:
    value = row.fields.get(_LIMIT, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise row.wrong(f"{_LIMIT!r} to be a number of at least 1", value, "write a whole number")
    return value


def _stops(row: Row) -> tuple[str, ...]:
    value = row.fields.get(_STOP, [])
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise row.wrong(f"{_STOP!r} to be a list of texts", value, "put the texts into a list")
    return tuple(value)


def _turns(row: Row, messages: Any) -> tuple[Message, ...]:
    valid = isinstance(messages, list) and bool(messages)
    if not valid or not all(
        isinstance(turn, dict) and {type(turn.get("role")), type(turn.get("content"))} == {str}
        for turn in messages
    ):
        raise row.wrong(
            "'messages' to be a list of objects with the texts 'role' and 'content'",
            messages,
            "write the turns in their order, the user's last one at the end",
        )
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in messages)
