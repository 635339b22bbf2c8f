"""Scheme strings: what to do to a weight, such as ``nf4``, ``gptq-int4-g128`` or ``int4-g32-asym``.

A scheme is ``[solver-]format[-option...]``. Tokens are accepted in any order and printed in one.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibit.registry import Format, formats

FLOATS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Scheme tokens that leave weights in floating point, with the torch dtype's name."""

SOLVERS: dict[str, str] = {
    "gptq": "column by column, each rounding error passed on to the columns not yet rounded",
    "gptaq": "gptq towards what the unquantized model has in the layer's place: makes good errors "
    "of the layers before (about half again as many passes)",
}
"""Solvers other than nearest rounding, with what they do."""

OPTIONS: dict[str, str] = {
    "dq": "double quantization: 8-bit scales with a second level of scales (codebook formats)",
    "s32": "float32 scales, as codebook formats have them, in place of float16 (integer formats)",
    "asym": "integer zero point per group (integer formats)",
    "fzero": "real zero point per group (integer formats); asym-fzero says the same",
    "actorder": "round the columns with the largest activations first (gptq, gptaq)",
    "mse": "clip search: a group's range is the one with the smallest error, not the whole "
    "(gptq: errors weighted by what they cost the layer's outputs)",
    "a8": "activations rounded to 8-bit integers, token by token",
    "llm": "LLM.int8(), with int8 only: row scales max|w| / 127, 8-bit activations, columns with "
    "an outlier apart",
    "kv8": "keys and values of the cache rounded to 8 bits, by token and head; also on fp32, bf16, "
    "fp16",
    "kv4": "the same in 4 bits",
    "head": "also quantize the output head (lm_head)",
}
"""Options in canonical order, with what they do."""

_CACHE_BITS = {"kv8": 8, "kv4": 4}

ALIASES = {"w8a8": "int8-row-a8"}
"""Other spellings of a part of a scheme."""

ROW, TENSOR = 0, -1
_CODEBOOK_SUFFIXES = (".txt", ".csv")


@dataclass(frozen=True)
class Scheme:
    """What to do to a weight. Made by `parse`; ``str()`` gives the canonical scheme string.

    Attributes:
        solver: ``"nearest"`` or a key of `SOLVERS`.
        format: name in the registry, path of a codebook file, or ``fp32``, ``bf16``, ``fp16``.
        group: weights along a row that share a scale; 0 = the row, -1 = the whole tensor.
        options: subset of `OPTIONS`.
        codebook: the values of a codebook file as they were when it was read; None for built-in
            formats.
    """

    solver: str
    format: str
    group: int
    options: frozenset[str] = frozenset()
    codebook: tuple[float, ...] | None = None

    def __str__(self) -> str:
        options = [option for option in OPTIONS if option in self.options]
        if self.is_float:
            return "-".join([self.format, *options])
        parts = [self.solver] if self.solver != "nearest" else []
        if "llm" in self.options:
            options.remove("llm")
            return "-".join([*parts, "llm", self.format, *options])
        parts.append(self.format)
        weight_format = self.weight_format
        if weight_format.is_integer or self.group != weight_format.group:
            parts.append({ROW: "row", TENSOR: "tensor"}.get(self.group, f"g{self.group}"))
        return "-".join(parts + options)

    @property
    def is_solved(self) -> bool:
        """Whether a solver needs calibration: every solver but nearest rounding does."""
        return self.solver in SOLVERS

    @property
    def nearest(self) -> Scheme:
        """The scheme that stores weights in the same form and rounds each to its nearest code."""
        return replace(self, solver="nearest", options=self.options - {"actorder"})

    @property
    def of_weight(self) -> Scheme:
        """What is done to a weight: the scheme without the options of the model's cache."""
        return replace(self, options=self.options.difference(_CACHE_BITS))

    @property
    def cache_bits(self) -> int | None:
        """Bits of the keys and values in the cache; None where they stay as they are."""
        return next((bits for name, bits in _CACHE_BITS.items() if name in self.options), None)

    @property
    def is_float(self) -> bool:
        """Whether the scheme leaves weights in floating point."""
        return self.format in FLOATS

    @property
    def weight_format(self) -> Format:
        """The format of the codes. Raises ValueError for a floating-point scheme."""
        if self.is_float:
            raise ValueError(f"[scheme] expected a quantized format, got {self.format}")
        known = formats().get(self.format)
        if known is not None:
            return known
        if self.codebook is None:
            return read_codebook(self.format)
        return _codebook_format(self.format, self.codebook)

    @property
    def scale_type(self) -> str:
        """How scales are stored: `f16`, `f32` or `e8m0`; ValueError for a floating-point scheme."""
        return "f32" if self.options & {"s32", "llm"} else self.weight_format.scale_type

    @property
    def bits(self) -> int:
        """Bits of one code (16 or 32 for a floating-point scheme)."""
        return {"fp32": 32}.get(self.format, 16) if self.is_float else self.weight_format.bits


def known_tokens() -> list[str]:
    """Every token a scheme string may hold, for messages and help."""
    granularity = ["g32", "g64", "g128", "g<multiple of 8>", "row", "tensor"]
    words = [*SOLVERS, *formats(), *FLOATS, *granularity, *OPTIONS, *ALIASES]
    return [*words, "<codebook file>.txt"]


def parse(text: str | Scheme, *, codebook: Sequence[float] | None = None) -> Scheme:
    """The scheme a string stands for.

    Args:
        text: scheme string, case-insensitive; or a Scheme, returned as it is.
        codebook: the values of the codebook file, if the string names one, where a checkpoint holds
            them: the file, which may have changed or be on another machine, is not read then.

    Returns:
        The scheme, with the format's default group filled in.

    Raises:
        ValueError: unknown token (the message lists the known ones), an empty or repeated one, two
            formats or groups, or options that do not go together.
        TypeError: neither a string nor a Scheme.

    Example:
        >>> str(parse("g128-int4-gptq")), parse("nf4").group
        ('gptq-int4-g128', 64)
    """
    if isinstance(text, Scheme):
        return text
    if not isinstance(text, str):
        raise TypeError(
            f"[scheme] expected a string such as 'nf4' or a Scheme, got {type(text).__name__}"
        )
    file, tokens = _split(_spelled_out(text))
    _check_tokens(tokens, text)
    found: dict[str, list[str]] = {"solver": [], "format": [*file], "group": [], "option": []}
    for token in tokens:
        found[_kind(token, text)].append(token)
    if {"asym", "fzero"} <= set(found["option"]):
        found["option"].remove("asym")  # a real zero point is asymmetric by itself
    for kind in ("solver", "format", "group"):
        if len(found[kind]) > 1:
            raise ValueError(f"[scheme] expected one {kind} in '{text}', got {found[kind]}")
    if not found["format"]:
        raise ValueError(
            f"[scheme] expected a format in '{text}', one of: {', '.join([*formats(), *FLOATS])}"
        )
    solver = found["solver"][0] if found["solver"] else "nearest"
    values = _values(file[0], codebook) if file else None
    scheme = Scheme(solver, found["format"][0], 0, frozenset(found["option"]), values)
    group = _group(found["group"][0]) if found["group"] else _default_group(scheme)
    scheme = replace(scheme, group=group)
    _check(scheme, text, bool(found["group"]))
    return scheme


def read_codebook(path: str) -> Format:
    """A format whose codebook is read from a text file of 2, 4, 8 or 16 numbers.

    Values are separated by blanks, commas or line ends; ``#`` starts a comment. Scales are float32
    and ``max|w| / max|value|``; groups are 64 unless the scheme says otherwise.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, or holds another count, duplicates or no
            number.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"[codebook] cannot read '{path}': {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"[codebook] expected UTF-8 text in '{path}', got byte "
            f"0x{error.object[error.start]:02x} at position {error.start}"
        ) from None
    words = [w for line in lines for w in re.split(r"[\s,;]+", line.split("#")[0]) if w]
    try:
        values = tuple(float(w) for w in words)
    except ValueError as error:
        raise ValueError(f"[codebook] expected numbers in '{path}', got: {error}") from None
    return _codebook_format(path, values)


def _codebook_format(path: str, values: Sequence[float]) -> Format:
    """The format of a codebook file with these values; they are checked as float32 holds them."""
    if len(values) not in (2, 4, 8, 16):
        raise ValueError(f"[codebook] expected 2, 4, 8 or 16 values in '{path}', got {len(values)}")
    with np.errstate(over="ignore"):
        held = tuple(float(np.float32(value)) for value in values)
    if not all(math.isfinite(v) for v in held) or len(set(held)) != len(held):
        raise ValueError(
            f"[codebook] expected finite, distinct values in '{path}', as float32 holds them, got "
            f"{tuple(values)}"
        )
    return Format(path, len(held).bit_length() - 1, 64, "f32", held)


def _values(path: str, given: Sequence[float] | None) -> tuple[float, ...] | None:
    """The values of a codebook file: those given, else those in the file."""
    found = read_codebook(path) if given is None else _codebook_format(path, given)
    return found.codebook


def _spelled_out(text: str) -> str:
    """The string with every alias replaced."""
    return "-".join(ALIASES.get(part.strip().lower(), part) for part in text.split("-"))


def _split(text: str) -> tuple[list[str], list[str]]:
    """The codebook path, if the string names one, and the other tokens in lower case."""
    suffixes = "|".join(re.escape(s) for s in _CODEBOOK_SUFFIXES)
    match = re.fullmatch(rf"(?:({'|'.join(SOLVERS)})-)?(.*(?:{suffixes}))(?:-(.*))?", text.strip())
    if match:
        rest = [match[1]] if match[1] else []
        return [match[2]], rest + (match[3].lower().split("-") if match[3] is not None else [])
    return [], text.strip().lower().split("-") if text.strip() else []


def _check_tokens(tokens: list[str], text: str) -> None:
    """Refuse empty tokens, and one that comes twice."""
    if "" in tokens:
        raise ValueError(f"[scheme] expected words joined by single hyphens, got '{text}'")
    repeated = [token for token in tokens if tokens.count(token) > 1]
    if repeated:
        raise ValueError(f"[scheme] expected '{repeated[0]}' once, got it twice in '{text}'")


def _kind(token: str, text: str) -> str:
    if token in SOLVERS:
        return "solver"
    if token in formats() or token in FLOATS:
        return "format"
    if token in ("row", "tensor") or re.fullmatch(r"g[1-9]\d*", token):
        return "group"
    if token in OPTIONS:
        return "option"
    near = difflib.get_close_matches(token, [*SOLVERS, *formats(), *FLOATS, *OPTIONS, *ALIASES], 1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    raise ValueError(
        f"[scheme] unknown token '{token}' in '{text}'{hint}; known: {', '.join(known_tokens())}"
    )


def _group(token: str) -> int:
    return {"row": ROW, "tensor": TENSOR}.get(token) if token[0] != "g" else int(token[1:])  # type: ignore[return-value]


def _default_group(scheme: Scheme) -> int:
    if scheme.is_float or "llm" in scheme.options:
        return ROW
    return scheme.weight_format.group


def _check(scheme: Scheme, text: str, group_given: bool) -> None:
    """Refuse combinations that mean nothing, with the reason."""

    def refuse(reason: str) -> None:
        raise ValueError(f"[scheme] '{text}': {reason}")

    cache = scheme.options.intersection(_CACHE_BITS)
    if len(cache) > 1:
        refuse(f"expected one of {' and '.join(_CACHE_BITS)}, got both")
    if scheme.is_float:
        if scheme.options - cache or group_given or scheme.solver != "nearest":
            refuse(
                f"{scheme.format} leaves weights in floating point and takes no other token but "
                f"{' or '.join(_CACHE_BITS)}"
            )
        return
    weight_format = scheme.weight_format
    if "llm" in scheme.options:
        others = scheme.options - {"llm", "head"} - cache
        if scheme.format != "int8" or scheme.group != ROW or others or scheme.is_solved:
            refuse("llm stands for LLM.int8(): write llm-int8, alone or with head, kv8 or kv4")
    if scheme.group > 0 and scheme.group % 8:
        refuse(f"expected a group that is a multiple of 8, got {scheme.group}")
    if weight_format.scale_type == "e8m0" and scheme.group != weight_format.group:
        refuse(f"{scheme.format} is defined with groups of {weight_format.group}")
    if scheme.options & {"asym", "fzero"} and not weight_format.is_integer:
        refuse("a zero point needs an integer format (int2 to int8)")
    if "s32" in scheme.options and not weight_format.is_integer:
        refuse(f"s32 is for integer formats; the scales of {scheme.format} have one type")
    if "dq" in scheme.options and weight_format.scale_type != "f32":
        refuse("dq needs a format with float32 scales, such as nf4, fp4 or a codebook file")
    if "actorder" in scheme.options and not scheme.is_solved:
        refuse(f"actorder is an option of the solvers {' and '.join(SOLVERS)}")
