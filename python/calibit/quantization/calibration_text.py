"""Calibration text: a file, strings, or Python's own manual, cut into equal segments of tokens.

The built-in text is one half of the manual that every CPython carries; the other half is left for
measuring (`calibit.tasks.texts.pydoc_text`).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from calibit.tasks.texts import PYDOC, pydoc_text

SEGMENTS = 16
LENGTH = 512
"""Default size, 8,192 tokens. On SmolLM2-135M twice as many took 1.65 times as long and moved the
held-out loss of gptq-int4-g128 by less than 0.1 nats a token, either way."""

HELD_OUT, HELD_OUT_LENGTH = 4, 256
"""Windows of text, and their tokens, on which the result is compared with nearest rounding."""

_MOST_CHARACTERS = 8_000_000


Source: TypeAlias = (
    "str | Path | Sequence[str] | torch.Tensor | Sequence[torch.Tensor] | Mapping[str, Any]"
    " | Calibration"
)
"""What `load` understands."""


@dataclass(frozen=True)
class Calibration:
    """Token sequences a Hessian is summed over.

    Attributes:
        sequences: int64 `[length]` each, without padding.
        source: where they came from, for records.
        held_out: sequences of the same text that are not calibrated on, int64 `[length]` each: on
            them the result is compared with nearest rounding.
        notes: sentences about shortcomings (too few tokens), for reports.
    """

    sequences: tuple[torch.Tensor, ...]
    source: str
    notes: tuple[str, ...] = ()
    held_out: tuple[torch.Tensor, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of tokens in all sequences."""
        return sum(sequence.numel() for sequence in self.sequences)

    @property
    def sha256(self) -> str:
        """Hash of the token ids and of where each sequence ends."""
        digest = hashlib.sha256()
        for sequence in self.sequences:
            digest.update(f"{sequence.numel()} ".encode() + sequence.numpy().tobytes())
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """What a record says about the calibration."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "sequences": len(self.sequences),
            "tokens": self.tokens,
            "held_out_tokens": sum(sequence.numel() for sequence in self.held_out),
            "notes": list(self.notes),
        }


def for_model(
    source: Source, tokenizer: Any | None, config: Any, *, tokens: int | None = None
) -> Calibration:
    """Calibration sequences of a length that a model can take.

    Args:
        source, tokenizer: as for `load`.
        config: the model's configuration, or None; no sequence of text is longer than its
            `max_position_embeddings`.
        tokens: how many tokens of text, in segments of up to `LENGTH`, the last of which may go
            beyond it; None takes `SEGMENTS` segments.

    Raises:
        ValueError: fewer than one token, and as `load`.
    """
    if tokens is not None and tokens < 1:
        raise ValueError(f"[calibration] expected at least one token, got {tokens}")
    context = getattr(config, "max_position_embeddings", None) or LENGTH
    length = min(LENGTH, context, tokens or LENGTH)
    segments = SEGMENTS if tokens is None else -(-tokens // length)
    return load(source, tokenizer, segments=segments, length=length)


def load(
    source: Source,
    tokenizer: Any | None = None,
    *,
    segments: int = SEGMENTS,
    length: int = LENGTH,
) -> Calibration:
    """Calibration sequences from whatever names them.

    Text is tokenised once, without special tokens, and `segments` windows of `length` tokens are
    taken at equal distances over the whole of it: deterministic, no seed. Sequences of tokens are
    used as they are.

    Args:
        source: `"pydoc"`, the path of a text file, a sequence of texts (joined by blank lines),
            token ids `[rows, length]` or a sequence of `[length]`, a tokenizer's output
            (`input_ids` and `attention_mask`: padding is cut off), or a `Calibration`.
        tokenizer: a Hugging Face tokenizer; needed for text.
        segments: how many windows to take from text.
        length: tokens per window.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: text without a tokenizer, or a source of another kind.
        ValueError: the text is shorter than one segment, or the file is not UTF-8.
    """
    if isinstance(source, Calibration):
        return source
    if isinstance(source, torch.Tensor):
        return Calibration(_rows(source), "token ids")
    if isinstance(source, Mapping):
        return Calibration(_unpadded(source), "token ids")
    if isinstance(source, str | Path):
        text, name = _read(source)
    elif len(source) > 0 and all(isinstance(item, torch.Tensor) for item in source):
        return Calibration(tuple(row for item in source for row in _rows(item)), "token ids")  # type: ignore[arg-type]
    elif len(source) > 0 and all(isinstance(item, str) for item in source):
        text, name = "\n\n".join(source), f"{len(source)} texts"  # type: ignore[arg-type]
    else:
        raise TypeError(
            "[calibration] expected 'pydoc', a file, texts or token ids, got "
            + (
                "an empty sequence"
                if len(source) == 0
                else f"a sequence of {type(source[0]).__name__}"
            )
        )
    if tokenizer is None:
        raise TypeError("[calibration] expected tokenizer= with calibration text, got none")
    return _windows(text, name, tokenizer, segments=segments, length=length)


def _windows(text: str, name: str, tokenizer: Any, *, segments: int, length: int) -> Calibration:
    """Windows at equal distances over the tokens of a text."""
    if segments < 1 or length < 1:
        raise ValueError(
            f"[calibration] expected at least one segment of one token, got {segments} of {length}"
        )
    notes = []
    if len(text) > _MOST_CHARACTERS:
        notes.append(f"only the first {_MOST_CHARACTERS:,} characters of {name} were used")
        text = text[:_MOST_CHARACTERS]
    # verbose=False: the tokenizer would warn that the text is longer than the model's context.
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    available = ids.numel() // length
    if available == 0:
        raise ValueError(
            f"[calibration] expected at least {length} tokens, got {ids.numel()} in {name}: give "
            "more text or shorter segments"
        )
    if available < segments:
        note = f"{name} has {available} segments of {length} tokens, not the {segments} asked for"
        notes.append(note)
        warnings.warn(
            f"[calibration] {note}: the result may fit the text too closely", stacklevel=3
        )
        segments = available
    step = (ids.numel() - length) / max(1, segments - 1)
    starts = [int(index * step) for index in range(segments)]
    return Calibration(
        tuple(ids[s : s + length].long() for s in starts),
        name,
        tuple(notes),
        _between(ids, starts, length),
    )


def _between(ids: torch.Tensor, starts: Sequence[int], length: int) -> tuple[torch.Tensor, ...]:
    """Up to `HELD_OUT` windows that no segment touches, from the widest gaps between segments."""
    short = min(length, HELD_OUT_LENGTH)
    ends = [0, *(start + length for start in starts)]
    gaps = [(begin, end) for begin, end in zip(ends, [*starts, ids.numel()], strict=True)]
    wide = sorted((g for g in gaps if g[1] - g[0] >= short), key=lambda g: g[0] - g[1])[:HELD_OUT]
    middles = sorted((begin + end - short) // 2 for begin, end in wide)
    return tuple(ids[start : start + short].long() for start in middles)


def _read(source: str | Path) -> tuple[str, str]:
    """Text and name of a file or of the built-in text."""
    if source == PYDOC:
        return pydoc_text("calibration"), PYDOC
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"[calibration] expected '{PYDOC}' or a text file, got {str(source)!r} which does not "
            "exist"
        )
    try:
        return path.read_text(encoding="utf-8"), path.name
    except UnicodeDecodeError as error:
        raise ValueError(f"[calibration] expected UTF-8 text, got {path.name}: {error}") from error


def _unpadded(batch: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """The real tokens of each row of a padded batch; unpadded sequences need no mask later on."""
    rows = _rows(torch.as_tensor(batch["input_ids"]))
    mask = batch.get("attention_mask")
    if mask is None:
        return rows
    kept = (row[m.bool()] for row, m in zip(rows, _rows(torch.as_tensor(mask)), strict=True))
    return tuple(row for row in kept if row.numel() > 0)


def _rows(ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The rows of a tensor of token ids."""
    if ids.dim() not in (1, 2) or ids.is_floating_point() or ids.numel() == 0:
        raise ValueError(
            "[calibration] expected integer token ids [rows, length], got "
            f"{ids.dtype} {list(ids.shape)}"
        )
    rows = ids.reshape(1, -1) if ids.dim() == 1 else ids
    return tuple(row.long().cpu() for row in rows)
