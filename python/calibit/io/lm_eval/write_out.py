"""Per-item results of lm-evaluation-harness 0.3 (2023): `<task>_write_out_info.json`.

An entry holds each prompt with its choice in one text, `prompt_i`, and its log-likelihood
`logit_i`. Where one ends and the other begins follows from the task's format: its closing words
("\\nAnswer:"), or the text of the right ending. HellaSwag and OpenBookQA have neither: a cut at the
first difference would be wrong wherever choices share their first letters, so their lengths stay
unknown, and rules that need them are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calibit.io.lm_eval.files import read_json
from calibit.io.lm_eval.sample import Sample, check_recorded, in_order
from calibit.tasks.catalog import TASKS

TODAY = {"xstory_cloze_en": "xstorycloze_en"}
"""Names of 2023 and those of today, where they differ."""

_DELIMITER = " "


def read(file: Path, task: str, config: Mapping[str, Any]) -> tuple[list[Sample], str | None]:
    """Read the samples of one task.

    Args:
        file: the file, one JSON array.
        task: name of the task in 2023.
        config: not used; 2023 recorded none.

    Returns:
        The samples by document number, and a note where the task was left out.

    Raises:
        ValueError: for an entry that cannot be read, or a repeated document.
    """
    entries = read_json(file)
    if not isinstance(entries, list):
        raise ValueError(f"[lm_eval] {file}: expected an array of documents, got another content")
    found = []
    for number, entry in enumerate(entries):
        where = f"{file}, entry {number}"
        prompts, ll = _numbered(entry, "prompt", where), _numbered(entry, "logit", where)
        if len(prompts) < 2 or len(prompts) != len(ll):
            return [], f"{task}: left out, it is not multiple choice"
        if not all(isinstance(one, str) for one in prompts):
            raise ValueError(f"[lm_eval] {where}: expected texts as prompt_i, got {prompts}")
        if not all(isinstance(one, (int, float)) for one in ll):
            raise ValueError(f"[lm_eval] {where}: expected numbers as logit_i, got {ll}")
        order = (1, 0) if task == "boolq" else range(len(prompts))  # 2023: yes, no
        sample = _sample(task, entry, where, [prompts[k] for k in order], [ll[k] for k in order])
        check_recorded(file, sample.doc_id, sample.ll, sample.gold, _accuracy(entry))
        found.append(sample)
    return in_order(found, file), None


def _numbered(entry: Any, name: str, where: str) -> list[Any]:
    """The values of `<name>_0`, `<name>_1`, ..."""
    if not isinstance(entry, dict) or not isinstance(entry.get("doc_id"), int):
        raise ValueError(f"[lm_eval] {where}: expected an object with doc_id, got another content")
    values: list[Any] = []
    while f"{name}_{len(values)}" in entry:
        values.append(entry[f"{name}_{len(values)}"])
    return values


def _sample(
    task: str, entry: Mapping[str, Any], where: str, prompts: Sequence[str], ll: Sequence[float]
) -> Sample:
    truth = entry.get("truth")
    cut = _after_closing_words(TODAY.get(task, task), prompts)
    gold = truth if isinstance(truth, int) and not isinstance(truth, bool) else None
    if isinstance(truth, str):
        gold, cut = _gold_of_text(truth, prompts, cut, where)
    if gold is None or not 0 <= gold < len(prompts):
        raise ValueError(
            f"[lm_eval] {where}: expected truth as the number or the text of a choice, got "
            f"{truth!r}"
        )
    known = cut is not None
    return Sample(
        task=TODAY.get(task, task),
        doc_id=entry["doc_id"],
        prompts=tuple(prompts),
        ll=tuple(map(float, ll)),
        gold=gold,
        contexts=tuple(text[:cut] for text in prompts) if known else None,
        choices=tuple(text[cut:].removeprefix(_DELIMITER) for text in prompts) if known else None,
        delimiter=_DELIMITER,
    )


def _after_closing_words(task: str, prompts: Sequence[str]) -> int | None:
    """Length of the context where the task's format ends in fixed words."""
    format_ = TASKS[task].main.context if task in TASKS else ""
    closing = format_.rpartition("}")[2]
    at = prompts[0].rfind(closing + _DELIMITER) if closing else -1
    while at >= 0 and not all(text.startswith(prompts[0][: at + len(closing)]) for text in prompts):
        at = prompts[0].rfind(closing + _DELIMITER, 0, at)
    return None if at < 0 else at + len(closing)


def _gold_of_text(
    truth: str, prompts: Sequence[str], cut: int | None, where: str
) -> tuple[int, int]:
    """(right choice, length of the context) where `truth` is the text of the right choice.

    With that text taken off the end of its prompt, what is left begins every other prompt; an
    ending that merely contains another fails this.
    """
    text = _DELIMITER + truth.removeprefix(_DELIMITER)
    found = []
    for k, prompt in enumerate(prompts):
        length = len(prompt) - len(text)
        start = prompt[:length] + _DELIMITER
        fits = prompt.endswith(text) and all(other.startswith(start) for other in prompts)
        if fits and cut in (None, length):
            found.append((k, length))
    if len(found) != 1:
        raise ValueError(
            f"[lm_eval] {where}: expected truth to be the text of one choice, got {truth!r}, which "
            f"fits {len(found)} of {len(prompts)}"
        )
    return found[0]


def _accuracy(entry: Mapping[str, Any]) -> float | None:
    value = entry.get("acc")
    return float(value) if value in ("0.0", "1.0", "0", "1") else None
