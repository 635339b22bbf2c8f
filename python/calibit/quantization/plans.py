"""Plans: which scheme each linear layer of a model gets.

A plan maps patterns to schemes: `{"layers.0": "keep", "mlp.*": "nf4", "*": "int8"}`. The first
pattern that matches a layer decides, so special cases come first; a layer that no pattern matches
is kept in floating point. A pattern is compared with
every run of whole dotted parts of the layer's name, with `*`, `?` and `[...]` as in a shell (`*`
also crosses dots): `down_proj`, `mlp.*`, `layers.0` (everything below it, not `layers.10`) and
`model.layers.*.mlp.up_proj` all work. A pattern that starts with `re:` is a regular expression
searched in the full name.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from calibit import schemes
from calibit.schemes import Scheme

KEEP = "keep"
"""The word that leaves the layers of a pattern in floating point."""

_NEAR_NAMES = 5


@dataclass(frozen=True)
class Plan:
    """Patterns and what to do with the layers they match.

    Attributes:
        rules: `(pattern, scheme)` in order; a scheme of None keeps the layer in floating point.
        text: the scheme or the plan as the user wrote it, for records.
    """

    rules: tuple[tuple[str, Scheme | None], ...]
    text: str

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """The distinct schemes of the plan, in order."""
        return tuple(dict.fromkeys(scheme for _, scheme in self.rules if scheme is not None))

    @property
    def cache_bits(self) -> int | None:
        """Bits of the keys and values in the cache, which all schemes of a plan agree on."""
        return next((scheme.cache_bits for scheme in self.schemes), None)

    @property
    def changes_nothing(self) -> bool:
        """Whether neither weights nor the cache are quantized."""
        return all(scheme.is_float for scheme in self.schemes) and self.cache_bits is None


def load(spec: str | Path | Scheme | Mapping[str, str | Scheme] | Plan) -> Plan:
    """A plan from a scheme, a mapping, or the path of a JSON file.

    Args:
        spec: a scheme (`"nf4"`, applied to every layer), a mapping of pattern to scheme or
            `"keep"`, a path, or a string that ends in `.json`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not UTF-8 or not a JSON object of strings, repeats a pattern, or
            names an unknown scheme.
    """
    if isinstance(spec, Plan):
        return spec
    if isinstance(spec, Mapping):
        return _from_mapping(spec, "plan")
    if isinstance(spec, Path) or (isinstance(spec, str) and spec.endswith(".json")):
        return _from_mapping(_read(Path(spec)), f"plan {Path(spec).name}")
    scheme = spec if isinstance(spec, Scheme) else schemes.parse(spec)
    return Plan((("*", scheme),), str(scheme))


def matches(pattern: str, name: str) -> bool:
    """Does a pattern name this module? (The rule is in the module's docstring.)

    Example:
        >>> matches("layers.0", "model.layers.0.mlp.up_proj")
        True
        >>> matches("layers.1", "model.layers.10.mlp.up_proj")
        False
    """
    if pattern.startswith("re:"):
        return re.search(pattern[3:], name) is not None
    parts = name.split(".")
    runs = (
        ".".join(parts[start:end])
        for start in range(len(parts))
        for end in range(start + 1, len(parts) + 1)
    )
    return any(fnmatchcase(run, pattern) for run in runs)


def assign(plan: Plan, names: Iterable[str], head: str | None) -> dict[str, Scheme | None]:
    """The scheme of each layer, None where it stays in floating point.

    The output head is kept unless the scheme that reaches it has the option `head`, or the pattern
    that reaches it matches no other layer.

    Args:
        plan: the plan.
        names: names of the linear layers.
        head: name of the output head, or None.

    Raises:
        ValueError: a pattern matches no layer; the message lists the nearest names. A pattern whose
            layers all match patterns before it, with other schemes.
    """
    names = tuple(names)
    matched = {pattern: [n for n in names if matches(pattern, n)] for pattern, _ in plan.rules}
    check_matched(matched, names, "plan")
    assigned: dict[str, Scheme | None] = {}
    deciding: dict[str, str] = {}
    for name in names:
        rule = next(((p, s) for p, s in plan.rules if name in matched[p]), None)
        pattern, scheme = rule if rule is not None else ("", None)
        if name == head and scheme is not None and "head" not in scheme.options:
            scheme = scheme if matched[pattern] == [name] else None
        assigned[name], deciding[name] = scheme, pattern
    for pattern, scheme in plan.rules:
        hits = matched[pattern]
        if pattern not in deciding.values() and any(assigned[name] != scheme for name in hits):
            raise ValueError(
                f"[plan] expected special cases first, got {pattern!r} which never decides: "
                f"{hits[0]!r} matches {deciding[hits[0]]!r} before it; change their order"
            )
    return assigned


def check_matched(matched: Mapping[str, list[str]], names: tuple[str, ...], what: str) -> None:
    """Refuse patterns that match nothing, naming the layers that come near."""
    for pattern, hits in matched.items():
        if hits:
            continue
        near = near_names(pattern, names)
        raise ValueError(
            f"[{what}] expected patterns that match a linear layer, got {pattern!r} which matches "
            f"none of {len(names)}; near: {', '.join(near) if near else 'no layer at all'}"
        )


def check_pattern(pattern: str, what: str) -> None:
    """Refuse a pattern that is no regular expression although it says so."""
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            raise ValueError(
                f"[{what}] expected a regular expression after 're:', got {pattern!r}: {error}"
            ) from error


def near_names(pattern: str, names: tuple[str, ...]) -> list[str]:
    """Layer names, or their last parts, that resemble a pattern; some names when none does."""
    wanted = pattern.removeprefix("re:").strip("*.^$")
    candidates = dict.fromkeys(
        candidate for name in names for candidate in (name, name.rsplit(".", 1)[-1])
    )
    near = difflib.get_close_matches(wanted, candidates, n=_NEAR_NAMES, cutoff=0.4)
    return near or list(candidates)[:_NEAR_NAMES]


def _from_mapping(mapping: Mapping[str, Any], source: str) -> Plan:
    """Rules from a mapping of strings."""
    if not mapping:
        raise ValueError(f"[{source}] expected at least one pattern, got none")
    rules: list[tuple[str, Scheme | None]] = []
    for pattern, value in mapping.items():
        if not isinstance(pattern, str) or not isinstance(value, str | Scheme):
            raise ValueError(
                f'[{source}] expected {{"pattern": "scheme" or "keep"}}, got {pattern!r}: {value!r}'
            )
        rules.append((pattern, _rule(pattern, value, source)))
    caches = {str(s): s.cache_bits for _, s in rules if s is not None}
    if len(set(caches.values())) > 1:
        raise ValueError(
            f"[{source}] expected schemes that agree on the cache (kv8, kv4 or neither), which is "
            f"the whole model's, got {', '.join(caches)}"
        )
    text = json.dumps({p: KEEP if s is None else str(s) for p, s in rules})
    return Plan(tuple(rules), text)


def _rule(pattern: str, value: str | Scheme, source: str) -> Scheme | None:
    """The scheme of one rule; None for `keep`."""
    check_pattern(pattern, source)
    if value == KEEP:
        return None
    scheme = value if isinstance(value, Scheme) else schemes.parse(value)
    if scheme.is_float:
        raise ValueError(
            f'[{source}] expected a quantized format or "keep" for {pattern!r}, got '
            f"{str(scheme)!r}: a floating-point format casts a whole model, not single layers"
        )
    return scheme


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; repeated keys are refused."""
    if not path.is_file():
        raise FileNotFoundError(
            f"[plan] expected a JSON file, got {str(path)!r} which does not exist"
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated = {key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1}
        if repeated:
            raise ValueError(
                f"[plan {path.name}] expected each pattern once, got {sorted(repeated)} twice"
            )
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"[plan {path.name}] expected JSON, got an error in line {error.lineno}: {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"[plan {path.name}] expected UTF-8 text, got byte "
            f"0x{error.object[error.start]:02x} at position {error.start}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"[plan {path.name}] expected a JSON object, got {type(content).__name__}")
    return content
