"""Multiple-choice tasks written as YAML files of lm-evaluation-harness.

Templates are Jinja2 over the row's fields, in a sandbox. What would need code of the task's own
(`!function`, `process_docs`, `process_results`, `class`) or another kind of request is refused by
its name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from calibit.tasks import hub
from calibit.tasks.catalog import Examples
from calibit.tasks.item import Item
from calibit.tasks.rows import Row

_USED = {
    "task",
    "include",
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "training_split",
    "validation_split",
    "test_split",
    "fewshot_split",
    "fewshot_config",
    "fewshot_delimiter",
    "num_fewshot",
    "output_type",
    "description",
    "doc_to_text",
    "doc_to_choice",
    "doc_to_target",
    "target_delimiter",
}
_WITHOUT_EFFECT = {
    "tag",
    "task_alias",
    "group",
    "group_alias",
    "metric_list",
    "metadata",
    "should_decontaminate",
    "doc_to_decontamination_query",
    "generation_kwargs",
}
"""Fields that change no log-likelihood."""


@dataclass(frozen=True)
class _Function:
    """A field that names code of the task's own."""

    name: str


class _Loader(yaml.SafeLoader):
    """YAML with the harness's tag `!function` kept as a name."""


def _function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Function:
    return _Function(str(loader.construct_scalar(node)))


_Loader.add_constructor("!function", _function)


def tasks_in(folder: Path) -> dict[str, Path]:
    """Name -> file of every task in a folder and below.

    Raises:
        ValueError: no such folder, a file that is no YAML, or a name that two files claim.
    """
    if not folder.is_dir():
        raise ValueError(f"[tasks] expected include_path to be a folder, got {str(folder)!r}")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml")):
        name = _parse(path).get("task")
        if not isinstance(name, str):
            continue
        if name in found:
            raise ValueError(
                f"[tasks] expected every task once in {folder}, got {name!r} in {found[name]} and "
                f"{path}"
            )
        found[name] = path
    return found


@dataclass(frozen=True)
class HarnessTask:
    """One task.

    Attributes:
        path: its file.
        config: its fields, those of included files below its own.
    """

    path: Path
    config: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> HarnessTask:
        """Read a task and refuse what cannot be done.

        Raises:
            ValueError: naming the field.
        """
        config = {key: value for key, value in _included(path).items() if value is not None}
        for key, value in config.items():
            if isinstance(value, _Function):
                raise ValueError(
                    f"[tasks] {path}: expected a field name or a template as {key!r}, got the "
                    f"function {value.name}; code of a task is not run here"
                )
        unknown = sorted(set(config) - _USED - _WITHOUT_EFFECT)
        if config.get("repeats", 1) == 1 and "repeats" in unknown:
            unknown.remove("repeats")
        if unknown:
            raise ValueError(
                f"[tasks] {path}: expected a task without {', '.join(unknown)}; not supported here"
            )
        if config.get("output_type") != "multiple_choice":
            raise ValueError(
                f"[tasks] {path}: expected output_type multiple_choice, got "
                f"{config.get('output_type')!r}"
            )
        missing = [key for key in ("doc_to_text", "doc_to_choice", "doc_to_target")
                   if key not in config]  # fmt: skip
        if missing:
            raise ValueError(f"[tasks] {path}: expected {', '.join(missing)}, got none")
        return cls(path, config)

    @property
    def name(self) -> str:
        """Name of the task."""
        return str(self.config["task"])

    @property
    def num_fewshot(self) -> int:
        """Examples that the file itself asks for."""
        return int(self.config.get("num_fewshot", 0))

    @property
    def between(self) -> str:
        """What stands behind each example."""
        return str(self.config.get("fewshot_delimiter", "\n\n"))

    @property
    def drawing(self) -> Examples:
        """How examples are drawn.

        Raises:
            ValueError: for another sampler than `default` and `first_n`.
        """
        settings = dict(self.config.get("fewshot_config") or {})
        sampler = settings.pop("sampler", "default")
        if settings or sampler not in ("default", "first_n"):
            raise ValueError(
                f"[tasks] {self.path}: expected fewshot_config with sampler default or first_n "
                f"alone, got {self.config['fewshot_config']}"
            )
        return Examples(first=sampler == "first_n")

    @property
    def evaluated(self) -> str:
        """The split that is evaluated: test, else validation."""
        split = self.config.get("test_split") or self.config.get("validation_split")
        if not split:
            raise ValueError(f"[tasks] {self.path}: expected test_split or validation_split")
        return str(split)

    @property
    def examples(self) -> str | None:
        """The split that examples come from; None where it is the evaluated one."""
        names = ("fewshot_split", "training_split", "validation_split")
        split = next((str(self.config[key]) for key in names if self.config.get(key)), None)
        return None if split == self.evaluated else split

    def rows(self, *, examples: bool = False) -> list[Row]:
        """Rows of the evaluated split, or of the examples', as the file says where they are."""
        split = self.examples if examples else self.evaluated
        return hub.fetch(
            self.name,
            str(self.config.get("dataset_path")),
            self.config.get("dataset_name"),
            str(split),
            options=self.config.get("dataset_kwargs"),
        )

    def items(self, rows: Sequence[Row]) -> list[Item]:
        """One item per row, in order.

        Raises:
            ValueError: a template that fails, or a choice or target of another kind; the message
                names file and row.
        """
        return [self._item(row, number) for number, row in enumerate(rows)]

    def _item(self, row: Row, number: int) -> Item:
        try:
            text = self._render("doc_to_text", row)
            choices = self._choices(row)
            target = self._render("doc_to_target", row)
            system = self._render("description", row)
        except (SyntaxError, TypeError, ValueError) as error:
            raise row.wrong(
                f"the templates of {self.path} to fit", dict(row.fields), str(error)
            ) from error
        own = row.fields.get("id")
        item = Item(
            id=f"{self.name}-{number}" if own is None else str(own),
            task=self.name,
            context="",
            choices=choices,
            gold=None,
            delimiter=str(self.config.get("target_delimiter", " ")),
            system=str(system),
        )
        if isinstance(
            text, int
        ):  # the choices are contexts, and this is the number of the right one
            contexts = tuple(f"{system}{choice}" for choice in choices)
            ending = (str(target),) * len(choices)
            return replace(item, contexts=contexts, choices=ending, gold=text)
        gold = _right(target, choices, row, self.path)
        return replace(
            item,
            context=f"{system}{text}",
            gold=gold[0] if len(gold) == 1 else None,
            right=gold if len(gold) > 1 else (),
        )

    def _choices(self, row: Row) -> tuple[str, ...]:
        given = self.config["doc_to_choice"]
        if isinstance(given, dict):
            given = list(given.values())
        if isinstance(given, str):
            known = given in row.fields
            given = row.fields[given] if known else ast.literal_eval(render(given, row.fields))
        if not isinstance(given, (list, tuple)) or len(given) < 2:
            raise ValueError(f"doc_to_choice must give at least two choices, it gave {given!r}")
        if not all(isinstance(text, str) for text in given):
            raise TypeError(f"doc_to_choice must give texts, it gave {given!r}")
        return tuple(given)

    def _render(self, field: str, row: Row) -> Any:
        """A field of the row, or a template's text; digits and lists become what they stand for."""
        given = self.config.get(field, "")
        if not isinstance(given, str):
            return given
        if given in row.fields:
            return row.fields[given]
        text = render(given, row.fields)
        if field in ("doc_to_text", "doc_to_target") and text.isdigit():
            return int(text)
        if field == "doc_to_target" and text.startswith("[") and text.endswith("]"):
            try:
                return ast.literal_eval(text)
            except (SyntaxError, ValueError):
                return text
        return text


def _right(target: Any, choices: Sequence[str], row: Row, path: Path) -> tuple[int, ...]:
    """Indices of the right choices."""
    found = []
    for one in target if isinstance(target, (list, tuple)) else [target]:
        if isinstance(one, str) and one in choices:
            found.append(choices.index(one))
        elif isinstance(one, int) and 0 <= one < len(choices):
            found.append(int(one))
        else:
            raise row.wrong(
                f"doc_to_target of {path} to be a choice or its number", one, "correct the row"
            )
    return tuple(found)


def render(template: str, fields: Mapping[str, Any]) -> str:
    """Fill a Jinja2 template, in a sandbox; a field that is missing is an error.

    Raises:
        ValueError: for a template that is not valid or does not fit the fields.
    """
    from jinja2 import TemplateError

    try:
        return _environment().from_string(template).render(**fields)
    except TemplateError as error:
        raise ValueError(f"template {template!r}: {error}") from error


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    made.filters["regex_replace"] = lambda text, pattern, new, count=0: re.sub(
        pattern, new, text, count=count
    )
    return made


def _included(path: Path, trail: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path in trail:
        raise ValueError(f"[tasks] {path}: expected included files to end, got a circle")
    config = _parse(path)
    below: dict[str, Any] = {}
    names = config.pop("include", None) or []
    for name in [names] if isinstance(names, str) else names:
        other = (path.parent / name).resolve()
        if not other.is_file():
            raise ValueError(f"[tasks] {path}: expected the included file {name}, got none there")
        below |= _included(other, (*trail, path))
    return {**below, **config}


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"[tasks] {path}: expected valid YAML, got: {error}") from error
    return content if isinstance(content, dict) else {}
