"""A tiny model on disk, a few items and a text: the smallest real audit, in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import tiny_models
import tiny_tokenizers
from calibit.auditing import job as jobs

SETTINGS: dict[str, Any] = {"resamples": 120, "limit": None, "speed": "none"}
"""Arguments of every audit of the tests."""


def save_model(folder: Path, *, seed: int = 0, architecture: str = "llama") -> Path:
    """Write a tiny model with its tokenizer."""
    tiny_models.build(architecture, seed=seed).save_pretrained(folder)
    tiny_tokenizers.build().save_pretrained(folder)
    return folder


def save_items(file: Path, *, count: int = 80) -> Path:
    """Write items with two slices, labels balanced over the choices."""
    rng = np.random.default_rng(3)
    lines = []
    for index in range(count):
        letters = "".join(rng.choice(list("abcdefgh"), 6))
        row = {
            "context": f"the {letters} {index % 7} is",
            "choices": ["a cat", "dogs", "eel 4"][: 2 + index % 2],
            "label": index % 2,
            "domain": ("animals", "numbers")[index % 2],
            "lang": ("en", "de")[index // 2 % 2],
        }
        lines.append(json.dumps(row))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def save_text(file: Path) -> Path:
    """Write a text of some twenty windows of 32 tokens."""
    rng = np.random.default_rng(5)
    words = ["the", "cat", "sat", "on", "a", "mat.", "dogs", "eat", "7", "figs:", "no?"]
    file.write_text(" ".join(rng.choice(words, 220)), encoding="utf-8")
    return file


def job_of(folder: Path, **changes: Any) -> jobs.Job:
    """An audit of the model in `folder` with two schemes; `changes` replace fields of the job."""
    text = jobs.local(folder / "text.txt")
    fields: dict[str, Any] = {
        "model": jobs.local(folder / "model"),
        "schemes": ("int8", "gptq-int4-g32"),
        "tasks": (jobs.local(folder / "items.jsonl"),),
        "text": text,
        "calibration": text,
        "text_window": 32,
        "text_tokens": 300,
        **SETTINGS,
        **changes,
    }
    return jobs.Job(**fields)


def prepare(folder: Path) -> Path:
    """A folder with `model`, `items.jsonl` and `text.txt`."""
    save_model(folder / "model")
    save_items(folder / "items.jsonl")
    save_text(folder / "text.txt")
    return folder
