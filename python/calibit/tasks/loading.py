"""From a task's specification ("probe", "arc_easy=FILE.jsonl", "FILE.jsonl") to its items."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibit.tasks import arithmetic_steps, fewshot, harness, hub, prepare, probe, tool_call
from calibit.tasks.building import build_items
from calibit.tasks.catalog import LOCAL, TASKS, Columns, Examples, Task, Wording
from calibit.tasks.item import Item
from calibit.tasks.prompts import Prompt, is_prompt, read_prompts
from calibit.tasks.rows import Row, read_rows

FORMS = ("main", "alt")

WRITTEN: Mapping[str, Callable[[str], list[Prompt]]] = {
    arithmetic_steps.NAME: arithmetic_steps.render,
    tool_call.NAME: tool_call.render,
}
"""Packaged tasks that are answered in free text."""


@dataclass(frozen=True)
class Loaded:
    """Items and what a report should say about them, e.g. corrections made while reading."""

    items: tuple[Item | Prompt, ...]
    notes: tuple[str, ...] = ()


def known(include_path: str | Path | None = None) -> tuple[str, ...]:
    """Names that `load` knows without a file of that name."""
    own = () if include_path is None else tuple(harness.tasks_in(Path(include_path)))
    return (probe.NAME, *WRITTEN, *TASKS, *(name for name in own if name not in TASKS))


def load(
    spec: str,
    *,
    form: str = "main",
    repair: bool = True,
    num_fewshot: int = 0,
    fewshot_seed: int = fewshot.SEED,
    include_path: str | Path | None = None,
) -> list[Any]:
    """Load the items of a task; see `read` for arguments and errors."""
    options = Options(form, repair, num_fewshot, fewshot_seed)
    return list(_read(spec, options, include_path).items)


def read(
    spec: str,
    *,
    form: str = "main",
    repair: bool = True,
    num_fewshot: int = 0,
    fewshot_seed: int = fewshot.SEED,
    include_path: str | Path | None = None,
) -> Loaded:
    """Load the items of a task together with notes for the report.

    Args:
        spec: "probe"; "NAME=FILE.jsonl" (the template of task NAME on the rows of a file);
            "FILE.jsonl" (contexts as they stand); "NAME" (rows from the Hugging Face hub). A
            name may be followed by ":VALUE,..." to keep the items that have one of these slice
            values, e.g. "probe:en" or "mmlu:anatomy,astronomy=mmlu.jsonl".
            A row is a JSON object with `context`, `choices` (texts without delimiter) and, if
            known, `label` (index of the right choice), `id`, `task`; its other string fields
            become slices, and so do the entries of an object `slices`. Rows with the columns of the
            published data set are read too. A file of rows with `prompt` (or `messages`) and
            `answer` is answered in free text, see `read_prompts`.
        form: "main", or "alt" for the task's second wording (same ids, choices in that
            wording, same gold).
        repair: correct known faults of published data (XCOPA's `question`); False reproduces
            tools that do not.
        num_fewshot: answered examples in front of each question: from the hub's split for them, or
            from the file itself, the question's own row left out.
        fewshot_seed: of their draw.
        include_path: folder with YAML files of lm-evaluation-harness's multiple-choice tasks; their
            names are known too, and come before the built-in ones.

    Returns:
        The items in file order. A file that is not the full evaluation split gives a task name
        with its number of items ("boolq_2000"), so that a sample is never taken for the task.

    Raises:
        ValueError: unknown task, file or slice value, or a row that cannot be read; the message
            names file and line and says what to do.
        RuntimeError: rows from the hub asked for without the package `datasets`.
    """
    loaded = _read(spec, Options(form, repair, num_fewshot, fewshot_seed), include_path)
    return replace(loaded, notes=(*loaded.notes, *_equal_choices(loaded.items)))


def _equal_choices(items: Sequence[Item | Prompt]) -> tuple[str, ...]:
    """A note on items with two choices of the same text: one of them can never be chosen."""
    found = [item.id for item in items if isinstance(item, Item) and _repeats(item)]
    if not found:
        return ()
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"{found[0]}{more}: two choices have the same text, so the later one is never the answer; "
        "correct or leave out such items",
    )


def _repeats(item: Item) -> bool:
    asked = item.contexts or ("",) * len(item.choices)
    return len(set(zip(asked, item.choices, strict=True))) < len(item.choices)


@dataclass(frozen=True)
class Options:
    """Settings of `read` that every kind of task shares; see there."""

    form: str
    repair: bool
    num_fewshot: int
    seed: int

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"[tasks] expected a form among {', '.join(FORMS)}, got {self.form!r}")
        if self.num_fewshot < 0:
            raise ValueError(f"[tasks] expected num_fewshot of at least 0, got {self.num_fewshot}")

    @property
    def note(self) -> str:
        """What a report should say of the examples."""
        return f"{self.num_fewshot} examples before every question, seed {self.seed}"


def _read(spec: str, options: Options, include_path: str | Path | None) -> Loaded:
    if Path(spec).is_file():
        return _verbatim(Path(spec), options)
    left, separator, file = spec.partition("=")
    name, _, wanted = left.partition(":")
    if include_path is not None and name in (files := harness.tasks_in(Path(include_path))):
        return _keep(
            _harness(files[name], Path(file) if separator else None, options), wanted, spec
        )
    if name == probe.NAME and not separator:
        if options.num_fewshot:
            raise ValueError("[tasks] expected num_fewshot 0 for 'probe', which has no examples")
        return _keep(Loaded(tuple(probe.render(options.form))), wanted, spec)
    if name in WRITTEN and not separator:
        if options.num_fewshot:
            raise _has_examples(name)
        return _keep(Loaded(tuple(WRITTEN[name](options.form))), wanted, spec)
    if name not in TASKS:
        raise _unknown(spec, name, bool(separator))
    task = TASKS[name]
    if options.num_fewshot and task.examples is None:
        raise _has_examples(name)
    rows = read_rows(Path(file)) if separator else hub.download(name, task)
    pool = None
    if options.num_fewshot and not separator and task.hub.examples != task.hub.split:
        pool = hub.download(name, task, examples=True)
    return _keep(_with_template(task, rows, pool, options), wanted, spec)


def _harness(path: Path, file: Path | None, options: Options) -> Loaded:
    if options.form != "main":
        raise ValueError(
            f"[tasks] expected form 'main' for {path}, got {options.form!r}: it has one wording"
        )
    task = harness.HarnessTask.load(path)
    items = task.items(read_rows(file) if file is not None else task.rows())
    count = options.num_fewshot or task.num_fewshot
    if not count:
        return Loaded(tuple(items))
    pool = None if file is not None or not task.examples else task.items(task.rows(examples=True))
    shown = fewshot.with_examples(
        items, pool, count, rule=task.drawing, seed=options.seed, between=task.between
    )
    return Loaded(tuple(shown), (f"{task.name}: {replace(options, num_fewshot=count).note}",))


def _has_examples(name: str) -> ValueError:
    return ValueError(
        f"[tasks] expected num_fewshot 0 for {name!r}, whose prompt has examples of its own"
    )


def _unknown(spec: str, name: str, has_file: bool) -> ValueError:
    if not has_file and re.search(r"[/\\]|\.jsonl?$", spec):
        return ValueError(
            f"[tasks] expected a task or a JSON Lines file, got {spec!r}: no such file"
        )
    if name == probe.NAME or name in WRITTEN:
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


def _verbatim(path: Path, options: Options) -> Loaded:
    if options.form != "main":
        raise ValueError(
            f"[tasks] expected a task with a second wording for form {options.form!r}, got {path}, "
            "whose contexts are used as they stand; give the other wording as a file of its own"
        )
    if is_prompt(read_rows(path)[0]):
        return _answered(path, options)
    stem = path.stem + ("_verbatim" if path.stem in TASKS else "")

    def name(row: Row, _: Columns) -> str:
        own = row.fields.get("task")
        if own is None:
            return stem
        if not isinstance(own, str | int) or isinstance(own, bool) or not str(own):
            raise row.wrong("'task' to be a name", own, "write a text, or leave the field out")
        return f"{own}_verbatim" if own in TASKS else str(own)

    items = build_items(read_rows(path), (LOCAL,), Wording("{context}"), prepare.nothing, name)
    if not options.num_fewshot:
        return Loaded(tuple(items))
    items = fewshot.with_examples(
        items, None, options.num_fewshot, rule=Examples(), seed=options.seed
    )
    return Loaded(tuple(items), (f"{path.name}: {options.note}",))


def _answered(path: Path, options: Options) -> Loaded:
    """Prompts of a file whose answers are known."""
    if options.num_fewshot:
        raise ValueError(f"[tasks] expected num_fewshot 0 for the prompts of {path}")
    found = read_prompts(path)
    without = [one.id for one in found if one.answer is None]
    if without:
        raise ValueError(
            f"[tasks] expected an 'answer' for every prompt of {path}, got none for "
            f"{without[0]!r}: prompts without one are a workload (--workload)"
        )
    return Loaded(tuple(found))


def _with_template(
    task: Task, rows: Sequence[Row], pool: Sequence[Row] | None, options: Options
) -> Loaded:
    notes: list[str] = []
    if task.name.startswith("xcopa") and options.repair:
        rows, notes = prepare.repair_questions(rows)
    items = _items(task, rows, options.form)
    if options.num_fewshot and task.examples is not None:
        others = None if pool is None else _items(task, pool, options.form)
        items = fewshot.with_examples(
            items, others, options.num_fewshot, rule=task.examples, seed=options.seed
        )
        notes.append(f"{task.name}: {options.note}")
    counts = Counter(item.task for item in items)
    for full, count in counts.items():
        if count != task.size:
            notes.append(f"{full}: {count} of {task.size} items, a sample; reported as such")
    names = {n: n if count == task.size else f"{n}_{count}" for n, count in counts.items()}
    return Loaded(tuple(replace(i, task=names[i.task]) for i in items), tuple(notes))


def _items(task: Task, rows: Sequence[Row], form: str) -> list[Item]:
    def name(row: Row, columns: Columns) -> str:
        return task.name.format(lang=row.fields.get("lang", "")) + columns.suffix

    wording = task.main if form == "main" else task.alt
    items = build_items(rows, task.columns, wording, task.prepare, name, task.order)
    count = len(task.ties)
    return [replace(i, ties=task.ties) if len(i.choices) == count else i for i in items]
