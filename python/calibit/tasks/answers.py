"""When a free-text answer is right: equal text, a pattern, or JSON that fits a schema."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

EXACT, REGEX, SCHEMA = "exact", "regex", "json_schema"
KINDS = (EXACT, REGEX, SCHEMA)


@dataclass(frozen=True)
class Answer:
    """What a right answer is.

    Attributes:
        kind: one of KINDS.
        value: `exact`: the text, white space around it aside. `regex`: what the pattern's first
            match (its first group, where it has one) must equal; None takes any match.
            `json_schema`: the object that the JSON must equal; None takes any that fits.
        pattern: of `regex`.
        schema: of `json_schema` (JSON Schema, draft 2020-12).

    Raises:
        ValueError: an unknown kind, or a pattern or schema that is missing or invalid.
    """

    kind: str
    value: Any = None
    pattern: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"[answer] expected a kind of {', '.join(KINDS)}, got {self.kind!r}")
        if self.kind == EXACT and not isinstance(self.value, str):
            raise ValueError(f"[answer] expected a text to compare with, got {self.value!r}")
        if self.kind == REGEX:
            _compiled(self.pattern)
        if self.kind == SCHEMA:
            _validator(json.dumps(self.schema))

    @classmethod
    def of(cls, source: Any) -> Answer:
        """From a row's entry: a text, or an object with `exact`, `regex` or `json_schema`, and
        `value` beside the last two."""
        if isinstance(source, str):
            return cls(EXACT, source)
        named = [kind for kind in KINDS if isinstance(source, Mapping) and kind in source]
        if len(named) != 1:
            raise ValueError(f"[answer] expected a text or one of {', '.join(KINDS)}, got {source}")
        kind, content = named[0], source[named[0]]
        if kind == EXACT:
            return cls(EXACT, content)
        if kind == REGEX:
            if not isinstance(content, str):
                raise ValueError(f"[answer] expected a pattern for regex, got {content!r}")
            return cls(REGEX, source.get("value"), pattern=content)
        return cls(SCHEMA, source.get("value"), schema=content)

    def to_dict(self) -> dict[str, Any]:
        """The object that `of` reads."""
        if self.kind == EXACT:
            return {EXACT: self.value}
        content = self.pattern if self.kind == REGEX else dict(self.schema)
        return {self.kind: content, "value": self.value}

    def judge(self, text: str) -> tuple[bool, str | None]:
        """Whether a continuation is right, and what was taken from it; None where nothing could
        be.

        Example:
            >>> Answer("regex", "12", pattern=r"-?[0-9]+").judge(" 12 apples, not 13")
            (True, '12')
        """
        if self.kind == EXACT:
            return text.strip() == self.value.strip(), text.strip()
        if self.kind == REGEX:
            match = _compiled(self.pattern).search(text)
            if match is None:
                return False, None
            got = match[1] if match.re.groups else match[0]
            return self.value is None or got == str(self.value), got
        return self._judge_json(text)

    def _judge_json(self, text: str) -> tuple[bool, str | None]:
        found = first_json(text)
        if found is None:
            return False, None
        shown = json.dumps(found, ensure_ascii=False)
        fits = _validator(json.dumps(self.schema)).is_valid(found)
        return bool(fits) and (self.value is None or _same(found, self.value)), shown


def first_json(text: str) -> Any:
    """The first JSON object in a text; None without one.

    Example:
        >>> first_json('Sure: {"a": [1, 2]} and more')
        {'a': [1, 2]}
    """
    start = text.find("{")
    while start >= 0:
        try:
            return json.JSONDecoder().raw_decode(text, start)[0]
        except (ValueError, RecursionError):  # no JSON, or brackets in brackets without end
            start = text.find("{", start + 1)
    return None


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; true is no 1, as it is for Python."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    if not pattern:
        raise ValueError("[answer] expected a pattern for regex, got none")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"[answer] expected a regular expression, got {pattern!r}: {error}") from (
            error
        )


@functools.cache
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(json.loads(schema))
    except SchemaError as error:
        raise ValueError(f"[answer] expected a JSON Schema, got: {error.message}") from error
    _check_references(json.loads(schema))
    return Draft202012Validator(json.loads(schema))


def _check_references(schema: Any) -> None:
    """Refuse a `$ref` that leads nowhere, before an answer is judged by it."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ValueError(
                f"[answer] expected references within the JSON Schema, got {reference!r}, which "
                "leads nowhere: put what it means under $defs"
            ) from error


def _references(schema: Any) -> Iterator[str]:
    """Every `$ref` and `$dynamicRef` of a schema."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)
