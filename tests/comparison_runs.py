"""Runs in memory for the tests of comparison and verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

import golden
from calibit.measures import Scores


class MemoryRun:
    """A run as `compare` needs it: meta, scores, texts and, where asked for, item lines."""

    def __init__(
        self,
        z: Sequence[Any],
        gold: Any = None,
        *,
        ids: Sequence[str] | None = None,
        task: str = "t",
        slices: Sequence[Mapping[str, str]] | None = None,
        text: np.ndarray | None = None,
        lines: list[dict[str, Any]] | None = None,
        **meta: Any,
    ) -> None:
        self._scores = {"gold": gold, "ids": ids, "task": task, "slices": slices}
        self._z, self._text, self._lines = z, text, lines
        described = {"name": "novel", "protocol": "gptq"}
        self.meta = {"text": [] if text is None else [described], **meta}

    def scores(self, rule: str = "sum") -> Scores:
        """The same scores under every rule."""
        return Scores.from_arrays(self._z, rule=rule, **self._scores)

    def text_nll(self, name: str) -> np.ndarray:
        """Token losses of the one text."""
        assert name == "novel" and self._text is not None
        return self._text

    def tokens(self, name: str) -> Any:
        """Windows of 32 tokens."""
        return SimpleNamespace(window=np.arange(len(self.text_nll(name))) // 32)

    def items(self) -> list[dict[str, Any]]:
        """Item lines."""
        return self._lines or []


def v1_runs(**options: Any) -> tuple[MemoryRun, MemoryRun]:
    """The golden vector V1 as reference and candidate, with five slices."""
    pair = golden.v1()
    shared = {"slices": [{"part": str(index % 5)} for index in range(500)], **options}
    a = MemoryRun(pair.a, pair.y, scheme="none", model="toy", **shared)
    return a, MemoryRun(pair.b, pair.y, scheme="nf4", model="toy", **shared)


def simulated(
    n: int, *, seed: int = 0, shift: float = 0.0, noise: float = 0.3, parts: int = 0
) -> tuple[MemoryRun, MemoryRun]:
    """Four choices, labels drawn from the reference; the candidate is noisier, less sure."""
    rng = np.random.default_rng(seed)
    a = rng.normal(0.0, 1.5, (n, 4))
    p = golden.softmax(a)
    y = (rng.random(n)[:, None] >= np.cumsum(p, 1)[:, :3]).sum(1)
    b = a + rng.normal(0.0, noise, a.shape)
    b[np.arange(n), y] -= shift
    slices = [{"part": str(index % parts)} for index in range(n)] if parts else None
    return MemoryRun(a, y, slices=slices), MemoryRun(b, y, slices=slices)
