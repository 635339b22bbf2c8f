"""Calibration text: a file, strings, Python's own manual or what the model itself writes, cut into
equal segments of tokens.

The built-in text is one half of the manual that every CPython carries; the other half is left for
measuring (`calibit.tasks.texts.pydoc_text`).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from calibit.quantization import documents, self_written

SEGMENTS = 16
LENGTH = 512
"""Default size, 8,192 tokens. On SmolLM2-135M twice as many took 1.65 times as long and moved the
held-out loss of gptq-int4-g128 by less than 0.1 nats a token, either way."""

C4_SEGMENTS, C4_LENGTH = 128, 2048
"""The same of C4: the setting of the GPTQ paper (arXiv 2210.17323, section 4)."""

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
    source: Source,
    tokenizer: Any | None,
    config: Any,
    *,
    tokens: int | None = None,
    seed: int | None = None,
    model: Any | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Calibration sequences of a length that a model can take.

    Args:
        source: as for `load`, or `self[:TEMPERATURE]`: what `model` writes (`self_written`).
        tokenizer: as for `load`.
        config: the model's configuration, or None; no sequence of text is longer than its
            `max_position_embeddings`.
        tokens: how many tokens of text, in segments of up to `LENGTH`, the last of which may go
            beyond it; None takes `SEGMENTS` segments, of C4 `C4_SEGMENTS` of `C4_LENGTH`.
        seed: as for `load`; of `self` 0 where omitted.
        model: the float model, for `self`, its weights in memory.
        progress: called with tokens done and tokens in all while the model writes.

    Raises:
        ValueError: fewer than one token, and as `load`.
        TypeError: `self` without the model, and as `load`.
    """
    if tokens is not None and tokens < 1:
        raise ValueError(f"[calibration] expected at least one token, got {tokens}")
    context = getattr(config, "max_position_embeddings", None) or LENGTH
    of_c4 = source == documents.C4
    wanted, longest = (C4_SEGMENTS, C4_LENGTH) if of_c4 else (SEGMENTS, LENGTH)
    length = min(longest, context, tokens or longest)
    segments = wanted if tokens is None else -(-tokens // length)
    if isinstance(source, str) and self_written.is_source(source):
        return _written(source, tokenizer, model, segments, length, seed or 0, progress)
    return load(source, tokenizer, segments=segments, length=length, seed=seed)


def load(
    source: Source,
    tokenizer: Any | None = None,
    *,
    segments: int = SEGMENTS,
    length: int = LENGTH,
    seed: int | None = None,
) -> Calibration:
    """Calibration sequences from whatever names them.

    Text is tokenised without special tokens. Without a seed its documents are joined by blank lines
    and `segments` windows of `length` tokens are taken at equal distances over the whole. With one,
    windows are drawn as in the GPTQ paper's code: a random document, again until one has at least
    `length` tokens, and a random window of it. C4 is always drawn (seed 0). Sequences of tokens are
    used as they are.

    Args:
        source: a name of `documents.read`, a sequence of texts (documents), token ids
            `[rows, length]` or a sequence of `[length]`, a tokenizer's output
            (`input_ids` and `attention_mask`: padding is cut off), or a `Calibration`.
        tokenizer: a Hugging Face tokenizer; needed for text.
        segments: how many windows to take from text.
        length: tokens per window.
        seed: of the draw; None takes windows at equal distances.

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
    texts: list[str]
    if isinstance(source, str | Path):
        texts, name = documents.read(source)
    elif len(source) > 0 and all(isinstance(item, torch.Tensor) for item in source):
        return Calibration(tuple(row for item in source for row in _rows(item)), "token ids")  # type: ignore[arg-type]
    elif len(source) > 0 and all(isinstance(item, str) for item in source):
        texts, name = [str(item) for item in source], f"{len(source)} texts"
    else:
        raise TypeError(
            "[calibration] expected 'pydoc', 'self', a file, texts or token ids, got "
            + (
                "an empty sequence"
                if len(source) == 0
                else f"a sequence of {type(source[0]).__name__}"
            )
        )
    if tokenizer is None:
        raise TypeError("[calibration] expected tokenizer= with calibration text, got none")
    if segments < 1 or length < 1:
        raise ValueError(
            f"[calibration] expected at least one segment of one token, got {segments} of {length}"
        )
    if seed is None and source != documents.C4:
        joined = "\n\n".join(texts)
        return _windows(joined, name, tokenizer, segments=segments, length=length)
    return _drawn(texts, name, tokenizer, segments=segments, length=length, seed=seed or 0)


def _written(
    source: str,
    tokenizer: Any | None,
    model: Any | None,
    segments: int,
    length: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> Calibration:
    """What the model writes; the last rows, cut short, are held out."""
    temperature = self_written.temperature_of(source)
    if model is None or tokenizer is None:
        raise TypeError(
            f"[calibration] expected tokenizer= and the model's weights for {source!r}, which the "
            "model writes itself; got none"
        )
    rows = self_written.write(
        model,
        tokenizer,
        rows=segments + HELD_OUT,
        length=length,
        temperature=temperature,
        seed=seed,
        progress=progress,
    )
    name = f"{self_written.SELF}, temperature {temperature:g}, seed {seed}"
    short = min(length, HELD_OUT_LENGTH)
    held_out = tuple(row[:short].clone() for row in rows[segments:])
    return Calibration(tuple(rows[:segments]), name, (), held_out)


def _windows(text: str, name: str, tokenizer: Any, *, segments: int, length: int) -> Calibration:
    """Windows at equal distances over the tokens of a text."""
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


def _drawn(
    texts: Sequence[str], name: str, tokenizer: Any, *, segments: int, length: int, seed: int
) -> Calibration:
    """Random windows of random documents, and held-out ones of documents that were not drawn."""
    rng = np.random.default_rng(seed)
    ids: dict[int, torch.Tensor] = {}
    starts: dict[int, list[int]] = {}

    def window(excluded: Collection[int], size: int) -> tuple[int, torch.Tensor] | None:
        for place in rng.permutation(len(texts)):
            document = int(place)
            if document in excluded:
                continue
            if document not in ids:
                row = tokenizer(texts[document], add_special_tokens=False, verbose=False)
                ids[document] = torch.tensor(row["input_ids"])
            if ids[document].numel() >= size:
                start = int(rng.integers(0, ids[document].numel() - size + 1))
                starts.setdefault(document, []).append(start)
                return document, ids[document][start : start + size].long()
        return None

    found = [window((), length) for _ in range(segments)]
    kept = [each for each in found if each is not None]
    if not kept:
        raise ValueError(
            f"[calibration] expected a document of at least {length} tokens, got none in {name}: "
            "give longer documents or shorter segments"
        )
    used = {document for document, _ in kept}
    held_out: list[torch.Tensor] = []
    if len(texts) == 1:  # no other document: what lies between the windows of this one
        held_out = list(_between(ids[0], sorted(starts[0]), length))
    short = min(length, HELD_OUT_LENGTH)
    while len(held_out) < HELD_OUT and (other := window(used, short)) is not None:
        used.add(other[0])
        held_out.append(other[1])
    sequences = tuple(each for _, each in kept)
    return Calibration(sequences, f"{name}, seed {seed}", (), tuple(held_out))


def foreign_text(calibration: Calibration, tokenizer: Any, prompts: Sequence[str]) -> str | None:
    """A sentence where the calibration text is of another kind than the prompts: its tokens per
    byte lie outside of the band that holds 98 % of theirs. Another language or code shows so.

    Args:
        calibration: token sequences.
        tokenizer: the tokenizer that made them.
        prompts: what the model will be asked.
    """
    texts = [text for text in dict.fromkeys(prompts) if text]
    if len(texts) < 2:
        return None
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    shares = [len(row) / len(text.encode()) for row, text in zip(rows, texts, strict=True)]
    low, high = np.percentile(shares, [1, 99])
    decoded = (tokenizer.decode(sequence.tolist()) for sequence in calibration.sequences)
    own = calibration.tokens / max(1, sum(len(text.encode()) for text in decoded))
    if low <= own <= high:
        return None
    return (
        f"the calibration text ({calibration.source}) has {own:.3f} tokens a byte, the prompts "
        f"{low:.3f} to {high:.3f}: it may be of another language or domain"
    )


def _unpadded(batch: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """The real tokens of each row of a padded batch; unpadded sequences need no mask later on."""
    if "input_ids" not in batch:
        raise TypeError(
            f"[calibration] expected input_ids of a tokenizer, got a mapping of {list(batch)}"
        )
    rows = _each(batch["input_ids"])
    mask = batch.get("attention_mask")
    if mask is None:
        return rows
    masks = _each(mask)
    lengths, others = ([row.numel() for row in each] for each in (rows, masks))
    if lengths != others:
        raise ValueError(
            f"[calibration] expected an attention_mask of the shape of input_ids, {len(lengths)} "
            f"rows of up to {max(lengths)}, got {len(others)} of up to {max(others)}"
        )
    kept = (row[each.bool()] for row, each in zip(rows, masks, strict=True))
    found = tuple(row for row in kept if row.numel() > 0)
    if not found:
        raise ValueError("[calibration] expected a token that attention_mask keeps, got none")
    return found


def _each(ids: Any) -> tuple[torch.Tensor, ...]:
    """The rows of a tensor, or of lists, which may differ in length."""
    if isinstance(ids, torch.Tensor) or not all(isinstance(row, Sequence) for row in ids):
        return _rows(torch.as_tensor(ids))
    found = tuple(part for row in ids if row for part in _rows(torch.as_tensor(row)))
    return found if found else _rows(torch.zeros(0, dtype=torch.long))  # which is refused


def _rows(ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The rows of a tensor of token ids."""
    if ids.dim() not in (1, 2) or ids.is_floating_point() or ids.numel() == 0:
        raise ValueError(
            "[calibration] expected integer token ids [rows, length], got "
            f"{ids.dtype} {list(ids.shape)}"
        )
    if bool((ids < 0).any()):
        raise ValueError(
            f"[calibration] expected token ids of 0 and above, got {int(ids.min())}: labels mark "
            "what is not to be learnt with -100; give input_ids"
        )
    rows = ids.reshape(1, -1) if ids.dim() == 1 else ids
    return tuple(row.long().cpu() for row in rows)
