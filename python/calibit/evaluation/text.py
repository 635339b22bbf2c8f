"""Perplexity texts: how a text becomes windows of token ids, under a named protocol.

`gptq`: the parts, joined by blank lines, are encoded once, cut into disjoint windows of 2,048
tokens (another length is part of the protocol's name), the tail dropped; every token of a window
but its first is scored. This is the convention of the GPTQ paper's code.

`documents`: one sequence per document, cut to the model's context; every token but the first is
scored.

`llama_cpp`, `hf_stride`, `lm_eval`: the windows of llama.cpp's perplexity tool, of the perplexity
guide of Hugging Face transformers and of lm-evaluation-harness (pages detokenised as WikiText's,
perplexity per word of the raw page); see `calibit.evaluation.protocols`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from calibit.evaluation.batching import Tokens
from calibit.evaluation.encoding import Encoder
from calibit.evaluation.protocols import (
    Window,
    hf_stride_windows,
    llama_cpp_windows,
    lm_eval_windows,
    until_scored,
)
from calibit.measures.perplexity import count_words, detokenize_wikitext

PROTOCOLS = ("gptq", "documents", "llama_cpp", "lm_eval", "hf_stride")
GPTQ_WINDOW = 2048
LLAMA_CPP_WINDOW = 512
STRIDE = 512

_TITLE = re.compile(r" = [^=].*[^=] = ")


@dataclass(frozen=True)
class Text:
    """A text whose tokens are scored.

    Attributes:
        name: what results are called by.
        parts: the document or documents; where windows do not keep to documents they are joined
            with blank lines.
        protocol: one of PROTOCOLS.
        window: longest window in tokens; the model's context caps it. None: 2,048 for `gptq`, 512
            for `llama_cpp`, else the context.
        max_tokens: stop with the window (`lm_eval`: the page) in which this many scored tokens are
            reached; None scores all.
        stride: tokens between windows of `hf_stride`. None: 512, or half the window where that is
            less.
    """

    name: str
    parts: str | tuple[str, ...]
    protocol: str = "gptq"
    window: int | None = None
    max_tokens: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(
                f"[Text] expected a protocol of {', '.join(PROTOCOLS)}, got {self.protocol!r}"
            )
        sizes = (
            ("window", self.window, 2),
            ("max_tokens", self.max_tokens, 1),
            ("stride", self.stride, 1),
        )
        for label, value, least in sizes:
            if value is not None and value < least:
                raise ValueError(f"[Text] expected {label} of at least {least}, got {value}")
        if self.stride is not None and self.protocol != "hf_stride":
            raise ValueError(
                f"[Text] expected a stride with protocol hf_stride alone, got {self.protocol}"
            )
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
                file as one part, under `lm_eval` as WikiText's pages where it has their titles.
            protocol, window, max_tokens: as for Text.

        Raises:
            ValueError: if there is no such file, it is not UTF-8, or it holds nothing.
        """
        from calibit.tasks import load_text

        source = load_text(str(path))
        if separator is None:
            parts = wikitext_pages(source.text) if protocol == "lm_eval" else [source.text]
        else:
            parts = source.text.split(separator)
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
        first: position of the first scored token of each window; empty where that is 1 throughout.
        words: words of the pages under `lm_eval`.
        stride: tokens between windows under `hf_stride`.
    """

    text: Text
    protocol: str
    window: int
    rows: tuple[Tokens, ...]
    bytes: int | None
    first: tuple[int, ...] = ()
    words: int | None = None
    stride: int | None = None

    @property
    def firsts(self) -> tuple[int, ...]:
        """Position of the first scored token of each window."""
        return self.first or (1,) * len(self.rows)

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return sum(map(len, self.rows)) - sum(self.firsts)


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
    if text.protocol == "lm_eval":
        return _pages(encoder, text, max_length)
    default = {"gptq": GPTQ_WINDOW, "llama_cpp": LLAMA_CPP_WINDOW}.get(text.protocol)
    window = min(text.window or default or max_length, max_length)
    whole = "\n\n".join(text.documents)
    ids = encoder([whole])[whole]
    stride = _stride(text, window)
    cut = _cut(encoder, text.protocol, ids, window, stride)
    if not cut:
        least = 2 if stride else window
        raise ValueError(
            f"[evaluate] expected a text of at least one window of {least} tokens, got {len(ids)} "
            f"tokens in {text.name!r}; give a smaller window or protocol 'documents'"
        )
    used = list(until_scored(cut, text.max_tokens))
    named = window if window != default and (default or text.window) else None
    name = _name(
        text.protocol, named, len(used) if len(used) < len(cut) else None, stride=stride or None
    )
    end = (len(used) - 1) * (stride or window) + len(used[-1][0])
    covered = _covered_bytes(encoder, whole, ids, end)
    rows, first = zip(*used, strict=True)
    return Windows(text, name, window, rows, covered, first, stride=stride or None)


def _stride(text: Text, window: int) -> int:
    """Stride of `hf_stride`, checked; 0 for the others."""
    if text.protocol != "hf_stride":
        return 0
    stride = text.stride or min(STRIDE, max(1, window // 2))
    if stride > window:
        raise ValueError(
            f"[evaluate] expected a stride of at most the window of {window} tokens, got {stride}"
        )
    return stride


def _cut(
    encoder: Encoder, protocol: str, ids: Sequence[int], window: int, stride: int
) -> list[Window]:
    if protocol == "hf_stride":
        return hf_stride_windows(ids, window=window, stride=stride)
    if protocol == "llama_cpp":
        bos = encoder.tokenizer.bos_token_id
        return llama_cpp_windows(ids, window=window, bos=bos if ids[:1] == [bos] else None)
    starts = range(0, len(ids) // window * window, window)
    return [(tuple(ids[start : start + window]), 1) for start in starts]


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


def _pages(encoder: Encoder, text: Text, max_length: int) -> Windows:
    """Windows of `lm_eval`, whole pages up to the limit; words and bytes are of the raw pages."""
    window = min(text.window or max_length, max_length)
    clean = {page: detokenize_wikitext(page) for page in text.documents}
    ids = encoder.bare(clean.values())
    prefix = encoder.prefix_token
    used: list[str] = []
    found: list[Window] = []
    scored = 0
    for page in text.documents:
        if text.max_tokens is not None and scored >= text.max_tokens:
            break
        used.append(page)
        found += lm_eval_windows(ids[clean[page]], window=window, prefix=prefix)
        scored += len(ids[clean[page]])
    if not found:
        raise ValueError(f"[evaluate] expected a page with a token in {text.name!r}, got none")
    name = _name(
        "lm_eval",
        window if text.window else None,
        len(used) if len(used) < len(text.documents) else None,
    )
    rows, first = zip(*found, strict=True)
    size = sum(len(page.encode()) for page in used)
    return Windows(text, name, window, rows, size, first, words=sum(map(count_words, used)))


def _name(
    protocol: str, window: int | None, count: int | None, *, stride: int | None = None
) -> str:
    parts = [("w", window), ("s", stride), ("", count)]
    return "@".join([protocol, *(f"{mark}{size}" for mark, size in parts if size)])


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


def wikitext_pages(text: str) -> tuple[str, ...]:
    """Pages of a raw WikiText file, each from its title ` = Title = ` to the next.

    Args:
        text: content of the file, such as `wiki.test.raw`; `Text("wikitext2", pages, "lm_eval")`
            is then what lm-evaluation-harness scores.

    Returns:
        The pages; the whole text where it has no title.
    """
    pages: list[list[str]] = []
    for line in text.splitlines(keepends=True):
        if not pages or _TITLE.fullmatch(line.removesuffix("\n")):
            pages.append([])
        pages[-1].append(line)
    joined = tuple("".join(page) for page in pages)
    return tuple(page for page in joined if page.strip())
