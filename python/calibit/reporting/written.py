"""What a report says of text the models write or continue: answers in free text, the user's
prompts, languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calibit import numbers
from calibit.numbers import Style
from calibit.reporting import figures, tokens, view
from calibit.reporting.panels import trusted
from calibit.reporting.view import Audit, Candidate, Cell, Row

WRITTEN, PROMPTS, LANGUAGES = "Answers in free text", "Your prompts", "Languages"

_SHARE, _POINTS = Style(1, 100), Style(1, 100, signed=True)
_NATS = Style(4, small=True)
_WORDS, _MORE_WORDS = Style(2), Style(2, signed=True)

_PROMPT_ROWS = (
    # entry, label, short label, unit, style
    ("kl", "token KL from the original", "token KL", "nats", _NATS),
    (
        "d_p_true",
        "change of the probability of the original's token",
        "change of p",
        "points",
        Style(2, 100, signed=True),
    ),
    ("same_top", "tokens with the same first choice", "same top token", "%", _SHARE),
    ("greedy_prefix", "answer before the first other token", "greedy prefix", "%", _SHARE),
)


def rows(audit: Audit, *, details: bool = False) -> list[Row]:
    """The results table of an audit, with what the models wrote at its end; see `view.rows`."""
    measured = view.succeeded(audit)
    found = view.rows(audit, details=details)
    return [*found, *_task_rows(measured), *_prompt_rows(measured), *_language_rows(measured)]


def context(measured: Sequence[Candidate]) -> dict[str, Any]:
    """What the template shows; a part that no candidate has is empty."""
    return {
        "written": [_task(name, measured) for name in _task_names(measured)],
        "workload": [_prompts(one) for one in measured if one["comparison"].get("workload")],
        "prompt_slices": _prompt_slices(measured),
        "token_lines": tokens.table([one for one in measured if one["comparison"].get("workload")]),
        "languages": [_languages(place, measured) for place in range(_parallel_count(measured))],
    }


def _task_names(measured: Sequence[Candidate]) -> list[str]:
    return list(dict.fromkeys(t["task"] for one in measured for t in _tasks(one)))


def _tasks(one: Candidate) -> Sequence[Mapping[str, Any]]:
    return one["comparison"].get("generated") or ()


def _own(one: Candidate, task: str) -> Mapping[str, Any] | None:
    return next((t for t in _tasks(one) if t["task"] == task), None)


def _task_rows(measured: Sequence[Candidate]) -> list[Row]:
    found = []
    for name in _task_names(measured):
        own = [_own(one, name) for one in measured]
        first = next(t for t in own if t is not None)
        cells = [Cell(_SHARE.value(first["a"]["value"])), *map(_task_cell, own)]
        label = f"right answers of {name}"
        found.append(Row(f"written:{name}", label, name, "%", "points", WRITTEN, tuple(cells)))
    return found


def _task_cell(task: Mapping[str, Any] | None) -> Cell:
    if task is None:
        return Cell(numbers.MISSING)
    change = task["d_acc"]
    shade = view.tone(change, +1) if task["judged"] else ""
    bounds = _POINTS.interval(change["lower"], change["upper"])
    return Cell(_SHARE.value(task["b"]["value"]), _POINTS.value(change["value"]), bounds, shade)


def _prompt_rows(measured: Sequence[Candidate]) -> list[Row]:
    found = [one["comparison"].get("workload") for one in measured]
    if not any(found):
        return []
    table = []
    for key, label, short, unit, style in _PROMPT_ROWS:
        cells = [Cell("")]
        for one in found:
            value = (one or {}).get(key) or {}
            bounds = style.interval(value.get("lower"), value.get("upper"))
            cells.append(Cell(style.value(value.get("value")), "", bounds))
        table.append(Row(f"workload:{key}", label, short, unit, "", PROMPTS, tuple(cells)))
    return table


def _language_rows(measured: Sequence[Candidate]) -> list[Row]:
    """The language of each candidate whose rise has the largest lower bound, where one is shown."""
    cells = [Cell("")]
    for one in measured:
        texts = one["comparison"].get("parallel") or ()
        cells.append(_worst_language(texts[0]["worst"]) if texts else Cell(numbers.MISSING))
    if not any(one["comparison"].get("parallel") for one in measured):
        return []
    label = "largest rise of perplexity shown (by its lower bound)"
    return [Row("worst_language", label, "rise shown", "", "%", LANGUAGES, tuple(cells))]


def _worst_language(worst: Mapping[str, Any]) -> Cell:
    if not worst["shown"]:
        return Cell("none shown")
    change, bounds = _percent(worst["ratio"])
    return Cell(worst["lang"], change, bounds, "worse")


def _percent(ratio: Mapping[str, Any]) -> tuple[str, str]:
    """A ratio of perplexities as a change in percent, and its interval."""
    if ratio.get("value") is None:
        return numbers.MISSING, ""
    low, high = (None if ratio[end] is None else ratio[end] - 1 for end in ("lower", "upper"))
    return f"{_POINTS.value(ratio['value'] - 1)}{numbers.NO_BREAK}%", _POINTS.interval(low, high)


def _task(name: str, measured: Sequence[Candidate]) -> dict[str, Any]:
    """One task: its table over candidates, and over slices."""
    own = [(str(one["scheme"]), _own(one, name)) for one in measured]
    known = [(scheme, task) for scheme, task in own if task is not None]
    first = known[0][1]
    return {
        "name": name,
        "n": numbers.count(first["n"]),
        "note": next((task["note"] for _, task in known if task["note"]), ""),
        "rows": [_task_line(scheme, task) for scheme, task in known],
        "heads": [scheme for scheme, _ in known],
        "slices": _task_slices([task for _, task in known]),
        "repetition": _repetition([task for _, task in known]),
    }


_REPEATED = (
    # measure, words, unit
    *((f"seq_rep_{n}", f"repeated {n}-grams of tokens", "%") for n in range(1, 5)),
    *((f"distinct_{n}", f"distinct-{n}: unique per n-gram", "%") for n in range(1, 5)),
    *((f"distinct_tok_{n}", f"distinct-{n}: unique per token", "%") for n in range(1, 5)),
    ("dup_words", "duplicate content words an answer", ""),
    ("dup_rate", "duplicate content words", "%"),
    ("loop_rate", "answers that end in a loop", "%"),
)


def _repetition(tasks: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """(measure, answers, before, change of each candidate)."""
    first = tasks[0].get("repetition") or {}
    table = []
    for key, words, unit in _REPEATED:
        if key not in first:
            continue
        style, signed = (_SHARE, _POINTS) if unit else (_WORDS, _MORE_WORDS)
        found = [(task.get("repetition") or {}).get(key) for task in tasks]
        changes = [_with_bounds(one["change"], signed) if one else "" for one in found]
        before = f"{style.value(first[key]['a'])} {unit}".rstrip()
        table.append((words, numbers.count(first[key]["n"]), before, *changes))
    return table


def _task_line(scheme: str, task: Mapping[str, Any]) -> dict[str, Any]:
    change = task["d_acc"]
    return {
        "name": scheme,
        "before": f"{_SHARE.value(task['a']['value'])} %",
        "after": f"{_SHARE.value(task['b']['value'])} %",
        "change": _POINTS.value(change["value"]),
        "bounds": _POINTS.interval(change["lower"], change["upper"]),
        "tone": view.tone(change, +1) if task["judged"] else "",
        "lost": numbers.count(task["rw"]),
        "won": numbers.count(task["wr"]),
        "p": numbers.p_value(task["mcnemar"]["p"]),
        "p_holm": numbers.p_value(task.get("p_holm")),
        "same": f"{_SHARE.value(task['same_text'])} %",
        "limit": f"{_SHARE.value(task['limit_a'])} → {_SHARE.value(task['limit_b'])} %",
    }


def _task_slices(tasks: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """(slice, prompts, right before, change of each candidate)."""
    table = []
    for place, row in enumerate(tasks[0]["slices"]):
        changes = [_with_bounds(task["slices"][place]["d_acc"], _POINTS) for task in tasks]
        right = f"{_SHARE.value(row['a'])} %"
        table.append((f"{row['key']}: {row['value']}", numbers.count(row["n"]), right, *changes))
    return table


def _with_bounds(estimate: Mapping[str, Any], style: Style) -> str:
    bounds = style.interval(estimate["lower"], estimate["upper"])
    return f"{style.value(estimate['value'])} {bounds}".rstrip()


def _prompts(one: Candidate) -> dict[str, Any]:
    found = one["comparison"]["workload"]
    prefix, kl = found["greedy_prefix"], found["fidelity"].get("kl") or {}
    cells = []
    for key, *_, style in _PROMPT_ROWS:
        value = found[key]
        cells.append((style.value(value["value"]), style.interval(value["lower"], value["upper"])))
    return {
        "name": str(one["scheme"]),
        "prompts": numbers.count(found["prompts"]),
        "tokens": numbers.count(found["tokens"]),
        "cells": cells,
        "identical": f"{_SHARE.value(prefix['extra'].get('identical'))} %",
        "first": numbers.fixed(prefix["extra"].get("tokens"), digits=1),
        "own": f"{_SHARE.value(prefix['extra'].get('own'))} %",
        "tail": _NATS.value(kl.get("p99")),
    }


def _prompt_slices(measured: Sequence[Candidate]) -> list[tuple[str, ...]]:
    """(slice, prompts, token KL of each candidate)."""
    found = [one["comparison"]["workload"] for one in measured if one["comparison"].get("workload")]
    if not found:
        return []
    table = []
    for place, row in enumerate(found[0]["slices"]):
        values = [one["slices"][place]["kl"] for one in found]
        shown = [
            f"{_NATS.value(v['value'])} {_NATS.interval(v['lower'], v['upper'])}" for v in values
        ]
        table.append((f"{row['key']}: {row['value']}", numbers.count(row["n"]), *shown))
    return table


def _parallel_count(measured: Sequence[Candidate]) -> int:
    return max((len(one["comparison"].get("parallel") or ()) for one in measured), default=0)


def _languages(place: int, measured: Sequence[Candidate]) -> dict[str, Any]:
    """One parallel text: a line a language, a column a candidate."""
    known = [
        (str(one["scheme"]), one["comparison"]["parallel"][place])
        for one in measured
        if len(one["comparison"].get("parallel") or ()) > place
    ]
    first = known[0][1]
    ends = [
        row["ratio"][end]
        for _, text in known
        for row in text["languages"]
        for end in ("lower", "upper")
        if row["ratio"][end] is not None
    ]
    low, high = min([1.0, *ends]), max([1.0, *ends])
    return {
        "name": first["name"],
        "segments": numbers.count(first["segments"]),
        "documents": numbers.count(first["languages"][0]["documents"]),
        "heads": [scheme for scheme, _ in known],
        "worst": [(scheme, _worst_words(text["worst"])) for scheme, text in known],
        "rows": [
            {
                "lang": row["lang"],
                "tokens": numbers.count(row["tokens"]) + _cut_words(row),
                "ppl": numbers.significant(row["ppl_a"]["value"]),
                "cells": [
                    _language_cell(text, number, 1.05 * (low - 1), 1.05 * (high - 1))
                    for _, text in known
                ],
            }
            for number, row in enumerate(first["languages"])
        ],
    }


def _cut_words(row: Mapping[str, Any]) -> str:
    """How many segments were scored in part only; older comparisons do not say."""
    cut = row.get("cut") or 0
    return f" ({numbers.plural(cut, 'segment')} cut)" if cut else ""


def _worst_words(worst: Mapping[str, Any]) -> str:
    change, bounds = _percent(worst["ratio"])
    searched = f"bounds for all {numbers.plural(worst['searched'], 'language')} at once"
    if not worst["shown"]:
        return f"no language is shown to lose; nearest to it {worst['lang']}: {change} {bounds}"
    return f"{worst['lang']}: {change} {bounds}, {searched}"


def _language_cell(text: Mapping[str, Any], number: int, low: float, high: float) -> dict[str, Any]:
    row = text["languages"][number]
    ratio = row["ratio"]
    plot = ""
    if ratio["value"] is not None and ratio["lower"] is not None and high > low:
        shade = {"worse": "hold", "better": "ship"}.get(view.tone(ratio, -1, null=1.0), "")
        ends = (ratio["lower"] - 1, ratio["value"] - 1, ratio["upper"] - 1)
        plot = trusted(figures.interval_cell(ends, low=low, high=high, tone=shade))
    change, bounds = _percent(ratio)
    worst = text["worst"]
    return {
        "plot": plot,
        "text": f"{change} {bounds}",
        "kl": f"KL {_NATS.value(row['kl']['value'])}" if row["kl"]["value"] is not None else "",
        "worst": worst["shown"] and worst["lang"] == row["lang"],
    }
