"""Perplexity texts: how a text becomes windows of token ids, under a named protocol.

`gptq`: the parts, joined by blank lines, are encoded once, cut into disjoint windows of 2,048
tokens (another length is part of the protocol's name), the tail dropped; every token of a window
but its first is scored. This is the convention of the GPTQ paper's code.

`documents`: one sequence per document, cut to the model's context; every token but the first is
scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from calibit.evaluation.batching import Tokens
from calibit.evaluation.encoding import Encoder

PROTOCOLS = ("gptq", "documents")
GPTQ_WINDOW = 2048


@dataclass(frozen=True)
class Text:
    """A text whose tokens are scored.

    Attributes:
        name: what results are called by.
        parts: the document or documents; `gptq` joins them with blank lines.
        protocol: one of PROTOCOLS.
        window: longest window in tokens; the model's context caps it. None: 2,048 for `gptq`, the
            context for `documents`.
        max_tokens: stop with the window in which this many scored tokens are reached; None scores
            all.
    """

    name: str
    parts: str | tuple[str, ...]
    protocol: str = "gptq"
    window: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(
                f"[Text] expected a protocol of {', '.join(PROTOCOLS)}, got {self.protocol!r}"
            )
        for label, value, least in (("window", self.window, 2), ("max_tokens", self.max_tokens, 1)):
            if value is not None and value < least:
                raise ValueError(f"[Text] expected {label} of at least {least}, got {value}")
        if not any(self.documents):
            raise ValueError(f"[Text] expected some text in {self.name!r}, got none")

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        separator: str | None = None,
        protocol: str = "gptq",
        window: int | None = None,
        max_tokens: int | None = None,
    ) -> Text:
        """Read a UTF-8 file.

        Args:
            path: the file, or `pydoc`; see `calibit.tasks.load_text`.
            separator: what stands between documents ("\\n" makes every line one); None takes the
                file as one part.
            protocol, window, max_tokens: as for Text.

        Raises:
            ValueError: if there is no such file, it is not UTF-8, or it holds nothing.
        """
        from calibit.tasks import load_text

        source = load_text(str(path))
        parts = [source.text] if separator is None else source.text.split(separator)
        kept = tuple(part for part in parts if part.strip())
        return cls(source.name, kept, protocol=protocol, window=window, max_tokens=max_tokens)

    @property
    def documents(self) -> tuple[str, ...]:
        """The parts as a tuple."""
        return (self.parts,) if isinstance(self.parts, str) else tuple(self.parts)

    @property
    def sha256(self) -> str:
        """Hash of the parts, each followed by a zero byte."""
        return hashlib.sha256(
            b"".join(part.encode() + b"\0" for part in self.documents)
        ).hexdigest()


@dataclass(frozen=True)
class Windows:
    """An encoded text.

    Attributes:
        text: where it comes from.
        protocol: full protocol id, such as `gptq`, `gptq@w512@40` (window of 512, first 40
            windows).
        window: longest window, tokens.
        rows: token ids of each window, at least two each.
        bytes: UTF-8 bytes of the text that the windows cover; None where the tokenizer cannot say.
    """

    text: Text
    protocol: str
    window: int
    rows: tuple[Tokens, ...]
    bytes: int | None

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return sum(len(row) - 1 for row in self.rows)


def make_windows(encoder: Encoder, text: Text, *, max_length: int) -> Windows:
    """Cut a text into windows by its protocol.

    Args:
        encoder: tokenizer and BOS rule.
        text: the text.
        max_length: positions the model can take.

    Raises:
        ValueError: if the text is shorter than one window.
    """
    if text.protocol == "documents":
        return _documents(encoder, text, max_length)
    window = min(text.window or GPTQ_WINDOW, max_length)
    whole = "\n\n".join(text.documents)
    ids = encoder([whole])[whole]
    available = len(ids) // window
    if not available:
        raise ValueError(
            f"[evaluate] expected a text of at least one window of {window} tokens, got {len(ids)} "
            f"tokens in {text.name!r}; give a smaller window or protocol 'documents'"
        )
    used = (
        available
        if text.max_tokens is None
        else min(available, -(-text.max_tokens // (window - 1)))
    )
    rows = tuple(tuple(ids[i * window : (i + 1) * window]) for i in range(used))
    name = _name(
        "gptq", window if window != GPTQ_WINDOW else None, used if used < available else None
    )
    return Windows(text, name, window, rows, _covered_bytes(encoder, whole, ids, used * window))


def plan_windows(rows: Sequence[Tokens], *, batch_tokens: int) -> list[tuple[int, ...]]:
    """Batches of window indices: longest first, at least one window each, padding counted."""
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    batches: list[tuple[int, ...]] = []
    at = 0
    while at < len(order):
        size = max(1, batch_tokens // len(rows[order[at]]))
        batches.append(tuple(order[at : at + size]))
        at += size
    return batches


def _documents(encoder: Encoder, text: Text, max_length: int) -> Windows:
    window = min(text.window or max_length, max_length)
    ids = encoder(text.documents)
    full = [(part, ids[part]) for part in text.documents if len(ids[part]) > 1]
    if not full:
        raise ValueError(
            f"[evaluate] expected a document of at least two tokens in {text.name!r}, got none"
        )
    rows = [(part, tuple(row[:window])) for part, row in full]
    limit = text.max_tokens or float("inf")
    before = accumulate((len(row) - 1 for _, row in rows), initial=0)
    used = [
        row for row, _ in takewhile(lambda pair: pair[1] < limit, zip(rows, before, strict=False))
    ]
    name = _name(
        "documents", window if text.window else None, len(used) if len(used) < len(full) else None
    )
    sizes = [_covered_bytes(encoder, part, ids[part], len(row)) for part, row in used]
    known = [size for size in sizes if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    return Windows(text, name, window, tuple(row for _, row in used), total)


def _name(protocol: str, window: int | None, count: int | None) -> str:
    return "@".join(
        [protocol, *([f"w{window}"] if window else []), *([str(count)] if count else [])]
    )


def _covered_bytes(encoder: Encoder, text: str, ids: Sequence[int], used: int) -> int | None:
    """UTF-8 bytes of the text up to the last used token."""
    if used >= len(ids):
        return len(text.encode())
    if not encoder.tokenizer.is_fast:
        return None
    options: dict[str, Any] = {
        "add_special_tokens": False,
        "return_offsets_mapping": True,
        "verbose": False,
    }
    offsets = encoder.tokenizer(text, **options)["offset_mapping"]
    last = used - 1 - (len(ids) - len(offsets))  # special tokens stand in front and have no offsets
    return len(text[: offsets[last][1]].encode()) if last >= 0 else 0


def wikitext_rows(path: str | Path) -> tuple[str, ...]:
    """Rows of the WikiText-2 raw file as data-set readers give them: blank lines are empty, others
    keep their line end.

    Args:
        path: `wiki.test.raw` or a copy of it; `Text("wikitext2", wikitext_rows(path))` is then the
            `gptq` protocol's text.
    """
    rows = Path(path).read_bytes().decode("utf-8").split("\n")[:-1]
    return tuple(row + "\n" if row.strip() else "" for row in rows)
