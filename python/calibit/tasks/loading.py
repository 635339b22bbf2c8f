"""From a task's specification ("probe", "arc_easy=FILE.jsonl", "FILE.jsonl") to its items."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calibit.tasks import hub, prepare, probe
from calibit.tasks.building import build_items
from calibit.tasks.catalog import LOCAL, TASKS, Columns, Task, Wording
from calibit.tasks.item import Item
from calibit.tasks.rows import Row, read_rows

FORMS = ("main", "alt")


@dataclass(frozen=True)
class Loaded:
    """Items and what a report should say about them, e.g. corrections made while reading."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()


def known() -> tuple[str, ...]:
    """Names that `load` knows without a file of that name."""
    return (probe.NAME, *TASKS)


def load(spec: str, *, form: str = "main", repair: bool = True) -> list[Item]:
    """Load the items of a task; see `read` for arguments and errors."""
    return list(read(spec, form=form, repair=repair).items)


def read(spec: str, *, form: str = "main", repair: bool = True) -> Loaded:
    """Load the items of a task together with notes for the report.

    Args:
        spec: "probe"; "NAME=FILE.jsonl" (the template of task NAME on the rows of a file);
            "FILE.jsonl" (contexts as they stand); "NAME" (rows from the Hugging Face hub). A
            name may be followed by ":VALUE,..." to keep the items that have one of these slice
            values, e.g. "probe:en" or "mmlu:anatomy,astronomy=mmlu.jsonl".
            A row is a JSON object with `context`, `choices` (texts without delimiter) and, if
            known, `label` (index of the right choice), `id`, `task`; its other string fields
            become slices. Rows with the columns of the published data set are read too.
        form: "main", or "alt" for the task's second wording (same ids, choices in that
            wording, same gold).
        repair: correct known faults of published data (XCOPA's `question`); False reproduces
            tools that do not.

    Returns:
        The items in file order. A file that is not the full evaluation split gives a task name
        with its number of items ("boolq_2000"), so that a sample is never taken for the task.

    Raises:
        ValueError: unknown task, file or slice value, or a row that cannot be read; the message
            names file and line and says what to do.
        RuntimeError: rows from the hub asked for without the package `datasets`.
    """
    if form not in FORMS:
        raise ValueError(f"[tasks] expected a form among {', '.join(FORMS)}, got {form!r}")
    if Path(spec).is_file():
        return _verbatim(Path(spec), form)
    left, separator, file = spec.partition("=")
    name, _, wanted = left.partition(":")
    if name == probe.NAME and not separator:
        return _keep(Loaded(tuple(probe.render(form))), wanted, spec)
    if name not in TASKS:
        raise _unknown(spec, name, bool(separator))
    rows = read_rows(Path(file)) if separator else hub.download(name, TASKS[name])
    return _keep(_with_template(TASKS[name], rows, form, repair), wanted, spec)


def _unknown(spec: str, name: str, has_file: bool) -> ValueError:
    if not has_file and re.search(r"[/\\]|\.jsonl?$", spec):
        return ValueError(
            f"[tasks] expected a task or a JSON Lines file, got {spec!r}: no such file"
        )
    if name == probe.NAME:
        return ValueError(f"[tasks] expected {name!r} without a file, got {spec!r}")
    return ValueError(
        f"[tasks] expected one of the known tasks {', '.join(known())}, got {name!r}; for rows "
        "of your own give the file alone: FILE.jsonl"
    )


def _keep(loaded: Loaded, wanted: str, spec: str) -> Loaded:
    """Keep the items that have one of the comma-separated slice values."""
    if not wanted:
        return loaded
    values = {value for item in loaded.items for value in item.slices.values()}
    chosen = set(wanted.split(","))
    if not chosen <= values:
        raise ValueError(
            f"[tasks] expected slice values among {', '.join(sorted(values))}, got "
            f"{', '.join(sorted(chosen - values))} in {spec!r}"
        )
    kept = tuple(item for item in loaded.items if chosen & set(item.slices.values()))
    return replace(loaded, items=kept)


def _verbatim(path: Path, form: str) -> Loaded:
    if form != "main":
        raise ValueError(
            f"[tasks] expected a task with a second wording for form {form!r}, got {path}, whose "
            "contexts are used as they stand; give the other wording as a file of its own"
        )
    stem = path.stem + ("_verbatim" if path.stem in TASKS else "")

    def name(row: Row, _: Columns) -> str:
        own = row.fields.get("task", stem)
        return f"{own}_verbatim" if own in TASKS else str(own)

    items = build_items(read_rows(path), (LOCAL,), Wording("{context}"), prepare.nothing, name)
    return Loaded(tuple(items))


def _with_template(task: Task, rows: Sequence[Row], form: str, repair: bool) -> Loaded:
    notes: list[str] = []
    if task.name.startswith("xcopa") and repair:
        rows, notes = prepare.repair_questions(rows)

    def name(row: Row, columns: Columns) -> str:
        return task.name.format(lang=row.fields.get("lang", "")) + columns.suffix

    wording = task.main if form == "main" else task.alt
    items = build_items(rows, task.columns, wording, task.prepare, name)
    counts = Counter(item.task for item in items)
    for full, count in counts.items():
        if count != task.size:
            notes.append(f"{full}: {count} of {task.size} items, a sample; reported as such")
    names = {n: n if count == task.size else f"{n}_{count}" for n, count in counts.items()}
    return Loaded(tuple(replace(i, task=names[i.task]) for i in items), tuple(notes))
