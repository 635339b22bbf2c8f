"""What items can show before anything is run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import audit_cases
from calibit import cli
from calibit.auditing.inputs import read_inputs
from calibit.auditing.planning import plan, sentence
from calibit.measures import mde_accuracy, mde_mean, n_needed
from calibit.measures.intervals import tango
from calibit.measures.power import MANY_CHANGED, power_at, share_n_needed, share_power_at
from calibit.measures.slices import N_MIN
from calibit.verdict import Policy
from calibit.verdict.gates import least_items
from calibit.verdict.planning import ALL, SPREADS, plan_gates, spreads_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("plan")
    audit_cases.save_items(place / "items.jsonl")
    return place


def test_power_is_0_8_at_the_items_needed() -> None:
    n = n_needed(0.3, 0.02) or 0
    assert power_at(n, 0.3, 0.02) == pytest.approx(0.8, abs=1e-4)  # n is rounded up
    assert power_at(n - 1, 0.3, 0.02) < 0.8 <= power_at(n, 0.3, 0.02)


def test_power_is_the_share_of_simulated_runs_that_pass() -> None:
    rng = np.random.default_rng(0)
    n, sd, margin, draws = 400, 0.3, 0.04, 20_000
    upper = rng.normal(0.01, sd / math.sqrt(n), draws) + 1.959964 * sd / math.sqrt(n)
    share = float(np.mean(upper < margin))
    # 4 standard errors of a share of 20,000 draws: 4 * sqrt(.25 / 20000) = 0.014
    assert power_at(n, sd, margin, damage=0.01) == pytest.approx(share, abs=0.014)


@pytest.mark.parametrize(
    ("n", "rate", "margin"), [(125, 0.01, 0.03), (40, 0.3, 0.2), (1, 0.5, 0.1)]
)
def test_power_of_a_share_is_the_sum_over_every_table(n: int, rate: float, margin: float) -> None:
    total = 0.0
    for changed in range(n + 1):
        chance = math.comb(n, changed) * rate**changed * (1 - rate) ** (n - changed)
        if chance < 1e-13:
            continue
        for lost in range(changed + 1):
            lower = tango(lost, changed - lost, n).lower
            assert lower is not None
            total += chance * math.comb(changed, lost) / 2**changed * (-lower < margin)
    # 126 chances below 1e-13 left out
    assert share_power_at(n, rate, margin) == pytest.approx(total, abs=1e-10)


def test_a_share_with_few_changes_needs_more_than_the_normal_approximation_says() -> None:
    needed = share_n_needed(0.02, 0.03)
    assert share_power_at(needed, 0.02, 0.03) >= 0.8 > share_power_at(needed - 1, 0.02, 0.03)
    assert (n_needed(math.sqrt(0.02), 0.03), needed) == (175, 280)
    assert share_power_at(175, 0.02, 0.03) < 0.55
    assert share_n_needed(0.0, 0.03) == least_items(0.03, 0.95)
    with pytest.raises(ValueError, match=r"a flip rate of 0 to 1, got 9 and 1\.5"):
        share_power_at(9, 1.5, 0.03)


def test_many_changed_answers_are_nearly_normal() -> None:
    n = 10 * MANY_CHANGED
    both = share_power_at(n, 0.1, 0.005), share_power_at(n + 1, 0.1, 0.005)
    assert both[1] == power_at(n + 1, math.sqrt(0.1), 0.005)
    assert both[0] == pytest.approx(both[1], abs=1e-3)


@pytest.mark.parametrize(("n", "sd"), [(0, 0.1), (10, 0.0), (10, math.nan)])
def test_power_refuses(n: int, sd: float) -> None:
    with pytest.raises(ValueError, match=r"\[power\] expected at least 1 item and a spread"):
        power_at(n, sd, 0.01)


def test_rows_are_those_of_the_measures() -> None:
    rows = plan_gates({"one": 500, "two": 300}, {"own": 40}, Policy(), flip_rate=0.088)
    found = {(row.task, row.metric): row for row in rows}
    one = found["one", "acc"]
    # (1.9599639845 + 0.8416212336) * sqrt(0.088 / 500)
    assert one.mde == pytest.approx(0.0371672279, abs=1e-10) == mde_accuracy(500, 0.088)
    assert one.needed == share_n_needed(0.088, 0.03) > (n_needed(math.sqrt(0.088), 0.03) or 0)
    assert one.power == share_power_at(500, 0.088, 0.03)
    assert found[ALL, "acc"].n == 800
    assert found[ALL, "nll"].mde == mde_mean(800, SPREADS["nll"])
    assert found[ALL, "gen_acc"].n == 40
    assert ("own", "acc") not in found and not any("worst" in row.metric for row in rows)


def test_needed_and_power_know_what_verdicts_ask_at_least() -> None:
    few = plan_gates({"t": 20}, {}, Policy({"acc": 0.2, "nll": 3.0}), flip_rate=0.001)
    found = {row.metric: row for row in few}
    assert found["nll"].needed == N_MIN and found["nll"].power == 0.0
    assert found["acc"].needed == least_items(0.2, 0.95) == 16 and found["acc"].power > 0.9


def test_spreads_of_an_earlier_comparison_go_first() -> None:
    gates = [{"metric": "nll", "n": 500}, {"metric": "kl", "n": 500}]
    mde = {"nll": mde_mean(500, 0.25), "acc": 0.1}
    content = {"mde": mde, "protocol": {"level": 0.95}, "verdict": {"gates": gates}}
    spreads = spreads_of(content)
    assert spreads == {"nll": pytest.approx(0.25)}
    rows = {row.metric: row for row in plan_gates({"t": 9}, {}, Policy(), spreads=spreads)}
    assert rows["nll"].sd == pytest.approx(0.25) and not rows["nll"].assumed
    assert rows["acc"].assumed
    with pytest.raises(ValueError, match="expected a comparison with judged damages"):
        spreads_of({"candidates": []})


@pytest.mark.parametrize("rate", [0.0, 1.5, math.nan])
def test_flip_rate_is_a_share(rate: float) -> None:
    with pytest.raises(ValueError, match="flip rate above 0 and at most 1"):
        plan_gates({"t": 9}, {}, Policy(), flip_rate=rate)


def test_command_prints_the_plan_and_its_assumptions(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["power", "--tasks", str(folder / "items.jsonl"), "--limit", "all"]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "10.0 % flips" in text and "accuracy" in text and "Spreads are assumed" in text
    assert cli.main([*words, "--json", "--flip_rate", "0.04"]) == 0
    found = json.loads(capsys.readouterr().out)
    row = next(row for row in found["rows"] if row["metric"] == "acc" and row["task"] == ALL)
    assert row["mde"] == mde_accuracy(row["n"], 0.04)


def test_command_takes_spreads_from_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["power", "--tasks", str(folder / "items.jsonl"), "--earlier", str(tmp_path)]
    assert cli.main(words) == 3
    assert "expected comparison.json or audit.json" in capsys.readouterr().err
    content = {
        "mde": {"nll": mde_mean(500, 0.25)},
        "verdict": {"gates": [{"metric": "nll", "n": 500}]},
    }
    (tmp_path / "comparison.json").write_text(json.dumps(content))
    assert cli.main(words) == 0
    assert "sd 0.250" in capsys.readouterr().out


def test_an_audit_says_first_what_it_can_show(folder: Path) -> None:
    job = audit_cases.job_of(folder, text="none", calibration="pydoc")
    inputs = read_inputs(job)
    said = sentence(job, inputs, 3) or ""
    row = next(row for row in plan(job, inputs).rows if row.metric == "acc" and row.task == ALL)
    assert said.startswith(f"3 models, {row.n} items each; shown with a power of 80 %")
    assert f"accuracy {100 * row.mde:.1f} points" in said
