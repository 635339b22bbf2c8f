"""What every benchmark here shares: work timed in turn, ratios with their spread, one JSON line per
row that names the machine.

A shared machine moves by tens of percent within minutes, so no second is compared with a second of
another moment: everything in a row runs in turn, and what is reported is the ratio within a turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibit.doctor import diagnose
from calibit.footprint import interleaved


@dataclass(frozen=True)
class Ratio:
    """One time divided by another's of the same turn: median over turns and 15-85 % band."""

    value: float
    lower: float
    upper: float

    @classmethod
    def of(cls, above: np.ndarray, below: np.ndarray) -> Ratio:
        """Ratio of two arrays of seconds `[turns]`, turn by turn."""
        lower, value, upper = np.percentile(above / below, [15, 50, 85])
        return cls(float(value), float(lower), float(upper))

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.lower:.2f}, {self.upper:.2f}]"


def time_in_turn(
    work: Mapping[str, Callable[[], object]], *, turns: int = 15, seconds: float = 0.02
) -> dict[str, np.ndarray]:
    """Seconds per call of each piece of work, float64 `[turns]`, all measured in turn.

    Each is called as often per turn as fills `seconds`, at least once; one turn is dropped.
    """

    def repeated(function: Callable[[], object], calls: int) -> Callable[[], object]:
        return lambda: [function() for _ in range(calls)]

    calls = {}
    for name, function in work.items():
        function()
        start = time.perf_counter()
        function()
        calls[name] = max(1, int(seconds / (time.perf_counter() - start)))
    batches = {name: repeated(function, calls[name]) for name, function in work.items()}
    spent = interleaved(batches, repeats=turns, warmups=1)
    return {name: values / calls[name] for name, values in spent.items()}


def machine() -> dict[str, Any]:
    """Processor, threads, kernel table, versions, commit and date: what a figure stands on."""
    facts = diagnose()
    packages = {row["name"]: row["installed"] for row in facts["packages"]}
    return {
        "cpu": facts["machine"]["cpu"],
        "cores": facts["machine"]["cores"],
        "threads": facts["machine"]["threads"],
        "kernels": next(table["name"] for table in facts["kernels"] if table["active"]),
        "python": facts["machine"]["python"],
        "torch": packages["torch"],
        "calibit": facts["calibit"]["version"],
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip()


class Rows:
    """Prints each row as it comes; writes it as a JSON line where a file is named."""

    def __init__(self, op: str, out: Path | None) -> None:
        self._file = out.open("w", encoding="utf-8") if out else None
        self._facts = {"op": op, **machine()}
        print(" · ".join(f"{name} {value}" for name, value in self._facts.items()), flush=True)

    def add(self, text: str, row: Mapping[str, Any]) -> None:
        """Print `text`; write `row` with the facts of the machine."""
        print(text, flush=True)
        if self._file:
            self._file.write(json.dumps({**self._facts, **row}) + "\n")
            self._file.flush()


def fail(sentence: str) -> None:
    """End the benchmark: what it would time is wrong, or cannot run."""
    sys.exit(f"benchmark: {sentence}")
