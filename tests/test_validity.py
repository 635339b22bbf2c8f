"""The simulation of docs/validity.md at a reduced size: wrong intervals and verdicts show up here
first."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import binom

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = 150
RARE = 1e-4
"""Chance that a sound product fails a line here; a dozen lines are looked at."""


@pytest.fixture(scope="module")
def validity() -> ModuleType:
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("validity")
    patch.setattr(module, "ITEMS", 24_000)
    patch.setattr(module, "SIZES", (200,))
    yield module
    patch.undo()


def band(low: float, high: float) -> tuple[float, float]:
    """Shares of EXPERIMENTS that a true coverage between low and high leaves only once in 1 / RARE
    cases, in percent."""
    lower, upper = binom.ppf(RARE, EXPERIMENTS, low), binom.ppf(1 - RARE, EXPERIMENTS, high)
    return 100 * lower / EXPERIMENTS, 100 * upper / EXPERIMENTS


@pytest.mark.parametrize("setting", ["4 bits", "passages"])
def test_intervals_hold_the_truth(validity: ModuleType, setting: str) -> None:
    """200 items, once independent and once 40 passages of five; the promised 93 to 97 %."""
    chosen = next(one for one in validity.SETTINGS if one.name == setting)
    bench = validity.Bench(EXPERIMENTS, 300)
    shares = bench._covered(validity.population(chosen), 200)
    low, high = band(0.93, 0.97)
    assert 83 < low < 88 and high > 99  # 150 experiments find what covers less than about 80 %
    for metric in validity.MEANS:
        assert low <= 100 * shares[metric] <= high, metric
    assert 100 * shares["acc"] >= band(0.94, 1.0)[0]


def test_ship_is_rare_at_the_margin_and_hold_without_damage(validity: ModuleType) -> None:
    one = validity.population(validity.SETTINGS[1])
    bench = validity.Bench(EXPERIMENTS, 300)
    truth = {
        metric: float(np.mean(after - before))
        for metric, (before, after) in validity.damages(one, np.arange(validity.ITEMS)).items()
    }
    most = binom.ppf(1 - RARE, EXPERIMENTS, 0.025) / EXPERIMENTS
    for metric in truth:
        margins = {name: value + 0.9 * (name != metric) for name, value in truth.items()}
        assert bench._said(one, 200, validity.Policy(margins), "ship") <= most < 0.1
    same = validity.without_damage(one)
    for before, after in validity.damages(same, np.arange(validity.ITEMS)).values():
        assert abs(float(np.mean(after - before))) < 1e-12  # nothing is damaged on average
    policy = validity.Policy(dict.fromkeys(truth, 1e-9))
    rare = binom.ppf(1 - RARE, EXPERIMENTS, 0.05) / EXPERIMENTS
    assert bench._said(same, 200, policy, "hold") <= rare


def test_intervals_that_are_too_narrow_are_found(
    validity: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 % intervals in place of 95 % ones fall out of the band."""
    bench = validity.Bench(EXPERIMENTS, 300)

    def narrow(one: object, n: int, seed: int) -> object:
        return validity.m.Resampling(level=0.8, resamples=300, seed=seed)

    monkeypatch.setattr(bench, "_resampling", narrow)
    shares = bench._covered(validity.population(validity.SETTINGS[1]), 200)
    assert any(100 * shares[metric] < band(0.93, 0.97)[0] for metric in validity.MEANS)


def test_the_document_keeps_its_promises(validity: ModuleType) -> None:
    """The printed shares of the whole simulation lie inside the targets."""
    text = (ROOT / "docs" / "validity.md").read_text(encoding="utf-8")
    assert "1,000 experiments per row" in text and f"seed {validity.SEED}" in text
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    covered = [row for row in rows if row[0] in {one.name for one in validity.SETTINGS} and
               len(row) == 8]  # fmt: skip
    assert len(covered) == 15
    for row in covered:
        assert all(93 <= float(share) <= 97 for share in row[2:6]) and float(row[6]) >= 94, row
    wrong = [row for row in rows if re.match(r"`(ship|hold)`", row[0])]
    assert len(wrong) >= 7
    for row in wrong:
        most = float(row[3]) / 100
        assert float(row[2]) / 100 <= most + 2 * (most * (1 - most) / 1000) ** 0.5, row
    powers = [row for row in rows if row[0].endswith(("below a margin", "change shown"))]
    assert len(powers) == 6
    for row in powers:
        low, high = float(row[3]) - 3, 100 if row[0].startswith("acc") else float(row[3]) + 3
        assert low <= float(row[2]) <= high, row
