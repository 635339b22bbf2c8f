"""Calibration text kept in a file: JSON Lines that can be read, and calibrated on again.

    {"source": ..., "held_out": false, "tokens": [...], "text": ...}

A line a sequence. What a model wrote for hours is not written again after an interruption, and a
reader can see what was calibrated on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from calibit.quantization.calibration_text import Calibration

PREFIX = "text-"


def file_name(asked: str) -> str:
    """Name of the file that holds what was asked for."""
    return f"{PREFIX}{hashlib.sha256(asked.encode()).hexdigest()[:16]}.jsonl"


def kept(file: Path, make: Callable[[], Calibration], tokenizer: Any) -> Calibration:
    """The calibration in a file; where there is none, made and written.

    Args:
        file: appears whole or not at all, in a folder that is created.
        make: makes the calibration.
        tokenizer: decodes its tokens for the reader.

    Raises:
        ValueError: the file was changed.
    """
    if file.is_file():
        return read(file)
    calibration = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".tmp")
    with draft.open("w", encoding="utf-8") as stream:
        for held_out, rows in ((False, calibration.sequences), (True, calibration.held_out)):
            for row in rows:
                line = {
                    "source": calibration.source,
                    "held_out": held_out,
                    "tokens": row.tolist(),
                    "text": tokenizer.decode(row.tolist()),
                }
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    draft.replace(file)
    return calibration


def read(file: Path) -> Calibration:
    """The calibration in a file that `kept` wrote.

    Raises:
        ValueError: the file was changed.
    """
    try:
        # Not splitlines: what a model writes may hold U+0085, U+2028 and U+2029.
        texts = file.read_text(encoding="utf-8").split("\n")
        lines = [json.loads(line) for line in texts if line]
        rows = [(bool(one["held_out"]), torch.tensor(one["tokens"])) for one in lines]
        source = str(lines[0]["source"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"[calibration] expected sequences of tokens in {file.name}, got a changed file "
            f"({error!r}): remove it to have them written again"
        ) from error
    return Calibration(
        tuple(row for held_out, row in rows if not held_out),
        source,
        (),
        tuple(row for held_out, row in rows if held_out),
    )
