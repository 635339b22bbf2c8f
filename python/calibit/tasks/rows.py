"""Rows of a JSON Lines file, and messages that name the file and the line of a bad one."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

_SHOWN = 60  # characters of a wrong value that a message quotes


@dataclass(frozen=True)
class Row:
    """One JSON object and where it stands, e.g. `where` = "items.jsonl, line 12"."""

    fields: Mapping[str, Any]
    where: str

    def wrong(self, expected: str, got: object, remedy: str) -> ValueError:
        """Build the error for a value of this row; the caller raises it."""
        return self._error(expected, _shorten(repr(got)), remedy)

    def _error(self, expected: str, got: str, remedy: str) -> ValueError:
        return ValueError(f"[tasks] {self.where}: expected {expected}, got {got}; {remedy}")

    def text(self, name: str) -> str:
        """Return the string field `name`."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            missing = f"no field {name!r} among {', '.join(sorted(self.fields)) or 'none'}"
            got = _shorten(repr(value)) if name in self.fields else missing
            raise self._error(f"{name!r} to be a string", got, f"write a text under {name!r}")
        return value

    def choices(self, name: str) -> tuple[str, ...]:
        """Return the field `name` ("a" or "a.b"), a list of at least two non-empty strings."""
        value = self._nested(name)
        valid = isinstance(value, (list, tuple)) and len(value) >= 2
        if not valid or not all(isinstance(text, str) and text for text in value):
            raise self.wrong(
                f"{name!r} to be a list of at least 2 non-empty strings",
                value,
                "write the answer texts there, without the space in front",
            )
        return tuple(value)

    def flags(self, name: str, count: int) -> tuple[int, ...]:
        """Return where the list field `name` ("a" or "a.b") holds a 1; the other entries are 0."""
        value = self._nested(name)
        valid = isinstance(value, (list, tuple)) and len(value) == count
        if not valid or {*value} != {0, 1}:
            raise self.wrong(
                f"{name!r} to be a list of {count} numbers, 1 for right and 0 for wrong choices",
                value,
                "mark at least one right and one wrong choice",
            )
        return tuple(k for k, flag in enumerate(value) if flag == 1)

    def slices(self, used: Collection[str]) -> dict[str, str]:
        """Return the string fields outside `used`, and the entries of an object `slices`."""
        own = self.fields.get("slices", {})
        named = isinstance(own, Mapping) and all(isinstance(value, str) for value in own.values())
        if not named and not isinstance(own, str):
            raise self.wrong(
                "'slices' to be an object of strings",
                own,
                'such as {"lang": "en", "domain": "law"}',
            )
        free = {k: v for k, v in self.fields.items() if isinstance(v, str) and k not in used}
        return free | (dict(own) if isinstance(own, Mapping) else {})

    def _nested(self, name: str) -> Any:
        value: Any = self.fields
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def index(self, name: str, count: int, *, first: int = 0) -> int | None:
        """Return the field `name` as a 0-based index below `count`; None where it is absent.

        Args:
            name: field that holds an integer, or digits as text.
            count: number of choices.
            first: the number the data set gives to its first choice.
        """
        value = self.fields.get(name)
        if value is None:
            return None
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        valid = isinstance(number, int) and not isinstance(number, bool)
        if not valid or not first <= number < first + count:
            raise self.wrong(
                f"{name!r} to be an integer from {first} to {first + count - 1}",
                value,
                "number the choices in their order, or leave the field out for an unlabelled row",
            )
        return cast(int, number) - first


_CHOICE = '{"context": "2 + 2 =", "choices": ["3", "4"], "label": 1}'


def read_rows(path: Path, *, example: str = _CHOICE) -> list[Row]:
    """Read a JSON Lines file: UTF-8 with or without byte order mark, LF or CRLF line ends.

    Args:
        path: the file; empty lines are skipped.
        example: a row for the message on an empty file.

    Returns:
        One row per JSON object, in file order.

    Raises:
        ValueError: no such file, not UTF-8, a line that is no JSON object, or no row at all;
            the message names file and line.
    """
    if path.is_dir():
        raise ValueError(f"[tasks] expected a JSON Lines file, got {str(path)!r}: is a folder")
    if not path.is_file():
        raise ValueError(f"[tasks] expected a JSON Lines file, got {str(path)!r}: no such file")
    rows = []
    for number, raw in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        line = raw.strip(b" \t\r")
        if line:
            rows.append(_row(line, f"{path}, line {number}"))
    if not rows:
        raise ValueError(
            f"[tasks] {path}: expected one JSON object per line, got an empty file; write rows "
            f"such as {example}"
        )
    return rows


def _row(line: bytes, where: str) -> Row:
    try:
        text = line.decode("utf-8")
        fields = json.loads(text)
        json.dumps(fields, ensure_ascii=False).encode("utf-8")  # a lone surrogate has no UTF-8
    except UnicodeError as error:
        raise ValueError(
            f"[tasks] {where}: expected UTF-8 text, got {_shorten(repr(line))} ({error}); save "
            "the file as UTF-8"
        ) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"[tasks] {where}: expected a JSON object, got {_shorten(text)!r} ({error}); write "
            "one complete object per line"
        ) from error
    if not isinstance(fields, dict):
        raise ValueError(
            f"[tasks] {where}: expected a JSON object, got {_shorten(text)!r}; write one "
            'object {"context": ..., "choices": [...], "label": ...} per line'
        )
    return Row(fields, where)


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
