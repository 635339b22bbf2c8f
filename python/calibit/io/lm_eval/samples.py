"""Per-item results of lm-evaluation-harness 0.4: an array until 0.4.2, lines since 0.4.3.

Since 0.4.3 numbers are strings, since 0.4.7 a document has one line per filter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibit.io.lm_eval.files import read_json
from calibit.io.lm_eval.sample import Sample, check_recorded, in_order

_UNFILTERED = "none"
_MUTUAL = "acc_mutual_info"

Request = tuple[str, str]  # context, continuation
Line = Mapping[str, Any]


def read(file: Path, task: str, config: Mapping[str, Any]) -> tuple[list[Sample], str | None]:
    """Read the samples of one task.

    Args:
        file: the file.
        task: name of the task.
        config: its configuration; `target_delimiter` is used, where it is given.

    Returns:
        The samples by document number, and a note where the task was left out.

    Raises:
        ValueError: for a line that cannot be read, or a repeated document.
    """
    lines = list(_lines(file))
    if not lines:
        return [], f"{task}: left out, its file is empty"
    used = [(where, line) for where, line in lines if line.get("filter", "none") == _UNFILTERED]
    if not used:
        names = sorted({str(line.get("filter")) for _, line in lines})
        return [], f"{task}: left out, its answers were filtered ({', '.join(names)})"
    _check_unfiltered(file, lines, used)
    if any(_number(line.get("acc")) not in (0.0, 1.0, None) for _, line in used):
        return [], f"{task}: left out, its accuracy is a share of each item"
    delimiter = str(config.get("target_delimiter", " "))
    found = []
    for where, line in used:
        requests = _requests(line, where)
        if requests is None or len(requests) < 2:
            return [], f"{task}: left out, it is not multiple choice"
        inputs = len({context for context, _ in requests}) == len(requests)
        gold = _gold_of_inputs(line) if inputs else _gold(line)
        if isinstance(gold, list):
            return [], f"{task}: left out, its items have several right answers"
        sample = _sample(task, line, where, requests, delimiter, gold)
        if sample.gold is None and gold is not None:
            return [], f"{task}: left out, its right answers are no choices ({gold!r})"
        check_recorded(file, sample.doc_id, sample.ll, sample.gold, _number(line.get("acc")))
        found.append(sample)
    return in_order(found, file), None


def _check_unfiltered(
    file: Path, lines: Sequence[tuple[str, Line]], used: Sequence[tuple[str, Line]]
) -> None:
    """Raises: where a document has filtered answers only, and would be lost among the others."""
    held = {str(line["doc_id"]) for _, line in used}
    lost = [where for where, line in lines if str(line["doc_id"]) not in held]
    if lost:
        raise ValueError(
            f"[lm_eval] {lost[0]}: expected filter {_UNFILTERED!r} for every document of {file}, "
            f"got {len(lost)} lines of documents without: the file was changed; evaluate again"
        )


def _lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, content) of every sample."""
    with file.open("rb") as stream:
        is_array = stream.read(1) == b"["
    if is_array:
        for number, content in enumerate(read_json(file)):
            yield _checked(content, f"{file}, entry {number}")
        return
    for number, raw in enumerate(file.read_bytes().split(b"\n"), 1):
        if not raw.strip():
            continue
        where = f"{file}, line {number}"
        try:
            content = json.loads(raw.decode("utf-8"))
        except ValueError as error:
            raise ValueError(
                f"[lm_eval] {where}: expected a JSON object, got {_short(raw)} ({error}); the "
                "file was cut or changed: evaluate again"
            ) from error
        yield _checked(content, where)


def _checked(content: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    wanted = ("doc_id", "arguments", "resps", "target")
    missing = [key for key in wanted if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(
            f"[lm_eval] {where}: expected a sample with {', '.join(wanted)}, got none of "
            f"{', '.join(missing)}"
        )
    for key, kinds, words in (("arguments", (dict, list), "requests"), ("resps", list, "answers")):
        if not isinstance(content[key], kinds):
            raise ValueError(
                f"[lm_eval] {where}: expected {key} to hold the {words} of a sample, got "
                f"{_short(repr(content[key]).encode())}"
            )
    return where, content


def _requests(line: Mapping[str, Any], where: str) -> list[Request] | None:
    """(context, continuation) of each request; None where they are no such pairs."""
    given = line["arguments"]
    if isinstance(given, dict):
        named = sorted(given.items(), key=lambda one: _request_number(one[0], where))
        given = [_in_order(one) for _, one in named]
    pairs = [tuple(one) for one in given if isinstance(one, (list, tuple))]
    if len(pairs) != len(given) or not all(
        len(one) == 2 and all(isinstance(text, str) for text in one) for one in pairs
    ):
        return None
    if len(line["resps"]) != len(pairs):
        raise ValueError(
            f"[lm_eval] {where}: expected one answer per request, got {len(line['resps'])} answers "
            f"to {len(pairs)} requests"
        )
    return pairs


def _request_number(name: str, where: str) -> int:
    number = name.rpartition("_")[2]
    if not number.isdecimal():
        raise ValueError(f"[lm_eval] {where}: expected requests gen_args_0, ..., got {name!r}")
    return int(number)


def _in_order(request: Any) -> Any:
    """The arguments of a request by their number: a tool may have written its keys in another
    order."""
    if isinstance(request, dict):
        return [value for _, value in sorted(request.items())]
    return request


def _sample(
    task: str,
    line: Mapping[str, Any],
    where: str,
    requests: Sequence[Request],
    delimiter: str,
    gold: int | str | None,
) -> Sample:
    answers = [_answer(one, where) for one in line["resps"]]
    k = len(requests)
    unconditional = None
    if _MUTUAL in (line.get("metrics") or ()) or _MUTUAL in line:
        k //= 2
        alone = requests[k:]
        if len(alone) != k or any(context for context, _ in alone):
            raise ValueError(
                f"[lm_eval] {where}: expected the second half of the requests to have an empty "
                f"context, as for {_MUTUAL}, got others"
            )
        unconditional = tuple(ll for ll, _ in answers[k:])
    texts = [continuation for _, continuation in requests[:k]]
    used = delimiter if all(text.startswith(delimiter) for text in texts) else ""
    choices = tuple(text.removeprefix(used) for text in texts)
    return Sample(
        task=task,
        doc_id=_doc_id(line, where),
        prompts=tuple(context + text for context, text in requests[:k]),
        ll=tuple(ll for ll, _ in answers[:k]),
        gold=_index(gold, choices),
        contexts=tuple(context for context, _ in requests[:k]),
        choices=choices,
        delimiter=used,
        greedy=tuple(greedy for _, greedy in answers[:k]),
        unconditional=unconditional,
        doc_hash=line.get("doc_hash") or _doc_hash(line),
    )


def _answer(repeats: Any, where: str) -> tuple[float, bool]:
    """The first of an answer's repeats: further ones only pad a rank of a parallel evaluation."""
    try:
        ll, greedy = repeats[0]
        return float(ll), greedy in (True, "True")
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ValueError(
            f"[lm_eval] {where}: expected a log-likelihood and whether it is greedy per request, "
            f"got {_short(repr(repeats).encode())}"
        ) from error


def _doc_id(line: Mapping[str, Any], where: str) -> int:
    if not isinstance(line["doc_id"], int) or isinstance(line["doc_id"], bool):
        raise ValueError(f"[lm_eval] {where}: expected doc_id as a number, got {line['doc_id']!r}")
    return line["doc_id"]


def _gold(line: Mapping[str, Any]) -> int | str | list[Any] | None:
    """The target: an index, a text, or a list of right answers; numbers may be text."""
    target = line["target"]
    if isinstance(target, str):
        try:
            target = json.loads(target)
        except ValueError:
            return target
    if isinstance(target, bool):  # the text "true": an answer, and no number
        return str(line["target"])
    return target if isinstance(target, (int, str, list)) else str(target)


def _gold_of_inputs(line: Mapping[str, Any]) -> int | None:
    """The right choice where choices stand inside the context, as in WinoGrande: `target` is then
    the common end, and the number, counted from 1, is in the document alone."""
    answer = (line.get("doc") or {}).get("answer")
    return int(answer) - 1 if isinstance(answer, str) and answer.isdecimal() else None


def _index(gold: int | str | None, choices: Sequence[str]) -> int | None:
    if isinstance(gold, int):
        return gold if 0 <= gold < len(choices) else None
    same = [
        k for k, text in enumerate(choices) if gold is not None and text.strip() == gold.strip()
    ]
    return same[0] if same else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _doc_hash(line: Mapping[str, Any]) -> str | None:
    """The hash that versions since 0.4.3 store, from the document of an older one."""
    if "doc" not in line:
        return None
    text = json.dumps(line["doc"], indent=2, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def _short(raw: bytes) -> str:
    text = raw.decode("utf-8", errors="replace").strip()
    return text if len(text) <= 60 else f"{text[:57]}..."
