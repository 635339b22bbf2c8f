"""Controls and clusters of a comparison: what they hold, what they need, what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest

import golden
from calibit import measures as m
from calibit.comparison import Comparison, ExtraRuns, compare
from comparison_runs import MemoryRun, simulated, v1_runs

QUICK = {"resamples": 300}


def with_lines(run: MemoryRun, *, unconditional: bool = False) -> MemoryRun:
    """The run with item lines: lengths that differ between choices."""
    scores = run.scores()
    run._lines = [
        {
            "id": item,
            "task": task,
            "kind": "choice",
            "gold": int(gold),
            "ll": z.tolist(),
            "tokens": [1 + k % 2 for k in range(len(z))],
            "chars": [4 + k for k in range(len(z))],
            "bytes": [4 + k for k in range(len(z))],
            **(
                {"unconditional": (-0.1 * np.arange(1, len(z) + 1)).tolist()}
                if unconditional
                else {}
            ),
        }
        for item, task, gold, z in zip(scores.ids, scores.tasks, scores.gold, scores.z, strict=True)
    ]
    run.scores = lambda rule="sum": m.Scores.from_items(run._lines, rule=rule)
    return run


@pytest.fixture(scope="module")
def v1() -> Comparison:
    pair = golden.v1()
    a, b = v1_runs()
    shared = {"slices": [{"part": str(index % 5)} for index in range(500)]}
    runs = {
        f"run {i}": MemoryRun(z / 10000.0, pair.y, **shared)
        for i, z in enumerate(golden.v5(pair.A))
    }
    return compare(a, b, extra=ExtraRuns(reruns=runs, repeat=a))


def test_every_control_of_v1_is_there(v1):
    found = v1.controls
    assert set(found.reasons) == {"rules"} and "lengths" in found.reasons["rules"]
    assert float(found.noise.magnitudes["all_flips"].excess) == pytest.approx(0.0966666667)
    assert found.noise.deterministic is True
    assert float(found.initial.naive["conf_true"]) == pytest.approx(-0.0138541871, abs=1e-10)
    assert found.threshold.target == "coverage" and found.threshold.value == 0.8
    assert found.recalibration.shown and found.recalibration.method == "temperature"
    assert [cell.n for cell in found.flips.cells] == [258, 24, 20, 192, 6]
    assert len(found.flips.reruns) == 3
    assert found.conformal.n_calibration + found.conformal.n_test == 500
    assert float(found.direction.d_conf_true) == pytest.approx(-0.0166214007, abs=1e-10)
    assert found.direction.silent_zone is False  # conf_true fell


def test_controls_are_in_the_dictionary(v1):
    content = json.loads(json.dumps(v1.to_dict(), allow_nan=False))["controls"]
    assert content["noise"]["magnitudes"]["kl_ab"]["state"] == "above_floor"
    assert content["threshold"]["change"]["risk"]["lower"] is not None
    assert content["recalibration"]["map"]["value"] == pytest.approx(1.5096017035)
    assert len(content["flips"]["candidate"]["curve"]) == 10
    assert content["conformal"]["band"]["method"] == "beta"
    assert content["initial"]["bins"][0]["n"] == 50 and content["initial"]["claim"] is False
    assert content["direction"]["unsure_share"]["extra"]["null"] == 0.2


def test_rules_come_from_the_item_lines():
    a, b = (with_lines(run) for run in simulated(120, shift=0.4))
    found = compare(a, b, **QUICK).controls.rules
    assert list(found["acc"].changes) == ["sum", "byte", "char", "token"]
    assert {one.state for one in found.values()} <= {
        "robust", "scoring_dependent", "mixed_sign", "undecided",
    }  # fmt: skip
    sums = compare(a, b, **QUICK).deltas["conf_true"]
    assert float(found["conf_true"].changes["sum"]) == pytest.approx(float(sums))
    more = [with_lines(run, unconditional=True) for run in simulated(120)]
    assert "pmi" in compare(*more, **QUICK).controls.rules["acc"].changes


def test_runs_of_another_form_and_perturbed_copies_give_a_claim():
    rng = np.random.default_rng(0)
    a, b = simulated(300, noise=0.2)
    z, gold = np.stack(a.scores().z), a.scores().gold

    def noisy(base: np.ndarray) -> MemoryRun:
        return MemoryRun(base + rng.normal(0, 0.2, z.shape), gold)

    extra = ExtraRuns(
        perturbed=[noisy(z) for _ in range(8)],
        other_form=(noisy(z), noisy(np.stack(b.scores().z))),
    )
    found = compare(a, b, extra=extra, **QUICK).controls.initial
    assert set(found.iv) == {"conf_true", "conf"} and len(found.perturbed["conf"].slopes) == 8
    assert "slope" in found.reason
    assert all(row.null is not None for row in found.bins)


def test_another_form_of_some_items_is_used_for_those():
    a, b = simulated(90)
    some = [MemoryRun(run.scores().z[:50], run.scores().gold[:50]) for run in (b, a)]
    found = compare(a, b, extra=ExtraRuns(other_form=tuple(some)), **QUICK).controls.initial
    assert found.n == 90 and found.iv["conf"].n == 50


def test_further_runs_must_hold_the_same_items():
    a, b = simulated(40)
    short = MemoryRun(a.scores().z[:39], a.scores().gold[:39])
    with pytest.raises(ValueError, match=r"expected all items in batch 1, got 1 missing \(t/39\)"):
        compare(a, b, extra=ExtraRuns(reruns={"batch 1": short}), **QUICK)
    other = MemoryRun(a.scores().z, (a.scores().gold + 1) % 4)
    with pytest.raises(ValueError, match="expected the same right answer in repeat as in the ref"):
        compare(a, b, extra=ExtraRuns(repeat=other), **QUICK)


def test_a_repeat_alone_gives_a_floor_of_zero_or_of_its_own():
    a, b = simulated(60)
    same = compare(a, b, extra=ExtraRuns(repeat=a), **QUICK).controls.noise
    assert same.deterministic is True and same.magnitudes["kl_ab"].floor == 0.0
    moved = MemoryRun(np.stack(a.scores().z) + 1e-6 * np.arange(4), a.scores().gold)
    other = compare(a, b, extra=ExtraRuns(repeat=moved), **QUICK).controls.noise
    assert other.deterministic is False and other.runs == ("repeat",)


def test_items_with_one_choice_are_left_out_and_counted():
    z = [np.zeros(1)] + [np.random.default_rng(i).normal(size=3) for i in range(40)]
    gold = [0] * 41
    result = compare(MemoryRun(z, gold), MemoryRun([1.1 * row for row in z], gold), **QUICK)
    assert result.controls.left_out == 1 and result.controls.flips.n == 40


def test_few_items_give_reasons_not_errors():
    for n in (1, 2, 3):
        a, b = simulated(n)
        content = compare(a, b, **QUICK).to_dict()
        json.dumps(content, allow_nan=False)
        assert content["controls"]["flips"] is not None


# Clusters --------------------------------------------------------------------------------------


def clustered(n: int = 400, size: int = 8) -> tuple[MemoryRun, MemoryRun, list[dict[str, str]]]:
    """Items of one passage share their answers, so that a passage says little more than an item."""
    a, b = simulated(n // size, noise=1.0, seed=2)
    z = [np.repeat(np.stack(run.scores().z), size, axis=0) for run in (a, b)]
    gold = np.repeat(a.scores().gold, size)
    slices = [{"passage": str(index // size)} for index in range(n)]
    jitter = 1e-6 * np.arange(n)[:, None] * np.arange(4)  # no exact ties
    runs = [MemoryRun(x + jitter, gold, slices=slices) for x in z]
    return runs[0], runs[1], slices


def width(one: m.Estimate) -> float:
    return one.upper - one.lower


def test_clusters_widen_every_interval():
    a, b, _ = clustered()
    items, whole = compare(a, b, **QUICK), compare(a, b, clusters="passage", **QUICK)
    assert (items.protocol["clusters"], whole.protocol["clusters"]) == (None, 50)
    # Eight copies: intervals of independent items are too narrow by a factor of sqrt(8) = 2.8.
    for name in ("acc", "conf_true", "nll", "brier", "ece", "auroc"):
        assert 1.8 < width(whole.deltas[name]) / width(items.deltas[name]) < 4.2, name
    assert 1.8 < width(whole.kl_ab) / width(items.kl_ab) < 4.2
    assert 1.8 < width(whole.flips.flip_rate) / width(items.flips.flip_rate) < 4.2
    for name in ("acc", "conf_true", "nll"):
        one, two = (c.evidence[name] for c in (items, whole))
        assert 1.8 < np.ptp(two.at(0.95)) / np.ptp(one.at(0.95)) < 4.2, name
        assert two.sd > 1.8 * one.sd
    change = (c.controls.threshold.change["coverage"] for c in (items, whole))
    one, two = map(width, change)
    assert two > 1.5 * one
    assert any("form 50 clusters" in note for note in whole.warnings)
    assert not whole.protocol["few_clusters"] and not items.protocol["few_clusters"]
    assert not any("effective clusters are few" in note for note in whole.warnings)


def test_an_item_line_may_name_the_cluster():
    a, b, slices = clustered(80)
    for run in (a, b):
        with_lines(run)
        for line, names in zip(run._lines, slices, strict=True):
            line["cluster"] = names["passage"]
    found = compare(a, b, **QUICK)
    assert found.protocol["clusters"] == 10 and found.protocol["few_clusters"]
    assert any("10.0 effective clusters are few" in note for note in found.warnings)


def test_items_without_the_key_are_clusters_of_their_own():
    a, b = simulated(12)
    slices = [{"passage": "p"} if index < 4 else {} for index in range(12)]
    runs = [MemoryRun(run.scores().z, run.scores().gold, slices=slices) for run in (a, b)]
    assert compare(*runs, clusters="passage", **QUICK).protocol["clusters"] == 9


def test_an_unknown_cluster_key_is_refused():
    a, b, _ = clustered(80)
    message = "expected a slice key or item field for clusters, got 'page'; slice keys: passage"
    with pytest.raises(ValueError, match=message):
        compare(a, b, clusters="page", **QUICK)
