"""Measures at the edges: empty input, one class, ties, bin edges, bad input, mixed choices."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from calibit import measures as m
from calibit.measures.binning import width_bins

TOP_LABEL = [
    m.conf_err,
    m.conf_correct,
    m.overconfidence,
    m.abs_gap,
    m.ece,
    m.ece_mass,
    m.mce,
    m.rmsce,
    m.plugin_l2,
    m.debiased_l2,
    m.debiased_l1,
    m.smece,
    m.brier_top1,
    m.auroc,
    m.aurc,
    m.e_aurc,
]


@pytest.mark.parametrize("measure", TOP_LABEL, ids=lambda f: f.__name__)
def test_no_items_give_no_value_and_a_reason(measure):
    result = measure([], [])
    assert result.value is None and result.reason
    assert result.to_dict()["value"] is None
    with pytest.raises(ValueError, match=rf"\[{result.metric}\] expected a value, got none"):
        float(result)


@pytest.mark.parametrize("measure", [m.margin, m.entropy])
def test_no_distributions_give_no_value(measure):
    assert measure(np.empty((0, 4))).value is None


@pytest.mark.parametrize("measure", [m.nll, m.brier, m.sce, m.ace_nixon, m.tace])
def test_unlabelled_items_give_no_value(measure):
    result = measure(np.zeros((3, 2)), np.array([-1, -1, -1]))
    assert result.value is None and result.reason


@pytest.mark.parametrize("measure", [m.kl_ab, m.kl_ba, m.jsd, m.js_distance, m.tv, m.d_conf])
def test_no_pairs_give_no_value(measure):
    assert measure([], []).value is None


def test_unlabelled_items_are_left_out_and_counted():
    z = np.log([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    assert m.nll(z, np.array([0, -1, -1])).n == 1
    assert float(m.nll(z, np.array([0, -1, -1]))) == pytest.approx(-math.log(0.9))


def test_confidence_of_one_is_in_the_last_bin():
    value = m.ece([0.95, 1.0, 1.0], [1, 1, 0], bins=10)
    assert float(value) == pytest.approx(0.3166666667, abs=1e-10)


def test_confidence_of_zero_is_in_the_first_bin():
    assert float(m.ece([0.0, 1.0], [0, 1], bins=10)) == 0.0
    assert width_bins(np.array([0.0, 1.0]), 10).tolist() == [0, 9]


def test_values_on_edges_belong_to_the_lower_bin():
    value = m.ece([0.1, 0.2, 0.3, 0.5, 0.7], [0, 1, 0, 1, 1], bins=10)
    assert float(value) == pytest.approx(0.4)
    c = np.arange(1, 16) / 15
    r = [0, 1] * 7 + [1]
    assert float(m.ece(c, r)) == pytest.approx(0.4355555556, abs=1e-10)


def test_no_quotient_leaves_its_bin():
    for bins in range(2, 101):
        values = np.arange(1, bins + 1) / bins
        assert (width_bins(values, bins) == np.arange(bins)).all()


def test_all_equal_confidences():
    c, r = np.full(8, 0.25), [1, 1, 0, 0, 0, 0, 0, 0]
    assert float(m.ece(c, r)) == 0.0
    assert float(m.ece_mass(c, r)) == 0.0
    assert float(m.auroc(c, r)) == 0.5
    assert m.Distributions.from_scores(np.zeros((8, 4))).ties == 8


def test_one_item():
    assert float(m.ece([0.8], [1])) == pytest.approx(0.2)
    assert m.auroc([0.8], [1]).value is None
    assert float(m.smece([0.8], [1])) == pytest.approx(0.1999797716, abs=1e-10)


@pytest.mark.parametrize(
    ("r", "ece", "smece"), [(1, 0.2666666667, 0.2664365669), (0, 0.7333333333, 0.7332258035)]
)
def test_one_class(r, ece, smece):
    c = [0.6, 0.7, 0.9]
    assert float(m.ece(c, [r] * 3)) == pytest.approx(ece, abs=1e-10)
    assert float(m.smece(c, [r] * 3)) == pytest.approx(smece, abs=1e-10)
    assert m.auroc(c, [r] * 3).reason == ("all items are right" if r else "all items are wrong")
    assert (m.conf_err(c, [r] * 3).value is None) == bool(r)


def test_scores_that_underflow():
    full = m.Distributions.from_scores([[-1000.0, -1001.0, -2000.0]])
    assert full.p.tolist() == pytest.approx([0.7310585786, 0.2689414214, 0.0], abs=1e-10)
    assert float(m.entropy(full, unit="bits")) == pytest.approx(0.8399415380, abs=1e-10)


def test_disjoint_distributions():
    a, b = (m.Distributions.from_probabilities([p]) for p in ([1.0, 0.0], [0.0, 1.0]))
    assert float(m.jsd(a, b, unit="bits")) == 1.0
    assert float(m.js_distance(a, b)) == 1.0
    assert float(m.js_distance(a, b, base=math.e)) == pytest.approx(0.8325546112, abs=1e-10)
    assert float(m.kl_ab(a, b)) == math.inf
    described = m.kl_ab(a, b).to_dict()
    assert described["value"] is None and "infinite" in described["reason"]
    json.dumps(described, allow_nan=False)


def test_js_distance_of_nearly_equal_distributions_is_finite():
    p = np.array([[0.1, 0.2, 0.7]])
    full = [m.Distributions.from_scores(np.log(p) + shift) for shift in (0.0, 1e-16)]
    assert 0.0 <= float(m.js_distance(*full)) < 1e-7


def test_entropy_with_a_zero_probability_is_finite():
    full = m.Distributions.from_probabilities([[1.0, 0.0], [0.5, 0.5]])
    assert float(m.entropy(full)) == pytest.approx(math.log(2) / 2)


MIXED = [np.log([0.5, 0.3, 0.2]), np.log([0.7, 0.1, 0.1, 0.1]), np.log([0.2] * 5)]


@pytest.mark.parametrize("measure", [m.sce, m.ace_nixon, m.tace, m.debiased_l2_marginal])
def test_mixed_choice_counts_are_refused_by_classwise_measures(measure):
    result = measure(MIXED, np.array([0, 0, 4]))
    assert result.value is None
    assert result.reason == (
        "the number of choices differs between items (3, 4, 5): no common classes"
    )


def test_mixed_choice_counts_are_fine_elsewhere():
    scores = m.Scores.from_arrays(MIXED, np.array([0, 0, 4]))
    table = m.summarize(scores)
    assert {table[name].n for name in ("acc", "conf", "nll", "brier", "ece")} == {3}
    assert float(table["nll"]) == pytest.approx(-math.log(0.5 * 0.7 * 0.2) / 3)
    assert float(table["brier"]) == pytest.approx(
        np.mean([0.25 + 0.09 + 0.04, 0.09 + 0.03, 0.64 + 4 * 0.04])
    )
    assert table["sce"].value is None


def test_one_choice_per_item():
    scores = m.Scores.from_arrays([[-3.0], [-5.0]], np.array([0, 0]))
    table = m.summarize(scores)
    assert float(table["acc"]) == float(table["conf"]) == float(table["margin"]) == 1.0
    assert float(table["entropy"]) == float(table["nll"]) == 0.0
    assert m.entropy(scores, unit="normalised").value is None


def test_perfect_oracle_of_099():
    z = np.log(np.tile([0.99, 0.01], (50, 1)))
    table = m.summarize(m.Scores.from_arrays(z, np.zeros(50, dtype=int)))
    assert float(table["acc"]) == 1.0
    assert float(table["ece"]) == pytest.approx(0.01)
    assert float(table["nll"]) == pytest.approx(-math.log(0.99))


@pytest.mark.parametrize(("ones", "expected"), [(50, 0.49), (62, 0.37), (100, 0.01)])
def test_paper_code_ece_of_a_perfect_classifier(ones, expected):
    gold = np.array([1] * ones + [0] * (100 - ones))
    z = np.log(np.where(gold[:, None] == np.arange(2), 0.99, 0.01))
    assert float(m.paper_code.ece(z, gold)) == pytest.approx(expected)
    assert float(m.paper_code.ce(z, gold)) == pytest.approx(expected)
    scores = m.Scores.from_arrays(z, gold)
    assert float(m.summarize(scores)["ece"]) == pytest.approx(0.01)


def test_paper_code_drops_items_with_another_choice_count():
    result = m.paper_code.ace(MIXED, np.array([0, 0, 4]))
    assert (result.n, result.extra["dropped"]) == (1, 2)


def test_quarters_are_larger_in_front_when_items_do_not_divide():
    from calibit.measures.binning import mass_bins

    assert np.bincount(mass_bins(np.arange(10.0), 4)).tolist() == [3, 3, 2, 2]
    assert np.bincount(mass_bins(np.arange(3.0), 15)).tolist() == [1, 1, 1]
    assert mass_bins(np.array([1.0, 2.0, 2.0, 2.0, 3.0]), 2).tolist() == [0, 0, 0, 0, 1]


def test_mce_names_the_size_of_its_bin_and_needs_one_large_enough():
    c, r = [0.95] * 12 + [0.05], [1] * 6 + [0] * 6 + [1]
    assert float(m.mce(c, r)) == pytest.approx(0.45)
    assert m.mce(c, r).extra["n_bin"] == 12
    assert float(m.mce(c, r, n_min=1)) == pytest.approx(0.95)
    assert m.mce(c[:3], r[:3]).reason == "no bin holds 10 items"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: m.ece([0.5, math.nan], [1, 0]),
            r"\[ece\] expected confidence in \[0, 1\], got nan",
        ),
        (lambda: m.ece([0.5, 1.5], [1, 0]), r"\[ece\] expected confidence in .* got 1.5 in item 1"),
        (lambda: m.ece([0.5, -0.1], [1, 0]), r"\[ece\] expected confidence in .* got -0.1"),
        (lambda: m.ece([0.5], [2]), r"\[ece\] expected correct to be 0 or 1, got 2.0 in item 0"),
        (lambda: m.ece([0.5], [1, 0]), r"\[ece\] expected confidence and correct of one length"),
        (lambda: m.ece([[0.5]], [1]), r"\[ece\] expected confidence of shape \[N\]"),
        (lambda: m.ece([0.5], [1], bins=0), r"\[binning\] expected at least 1 bin, got 0"),
        (lambda: m.acc([0.5]), r"\[acc\] expected correct to be 0 or 1"),
        (lambda: m.sel_acc([0.5], [1], 0.0), r"\[sel_acc\] expected 0 < q <= 1, got 0.0"),
        (lambda: m.nll([[0.0, math.nan]], [0]), r"\[nll\] expected finite log scores, got NaN"),
        (lambda: m.nll([[0.7, 0.3]], [0]), r"\[nll\] expected log scores, got probabilities"),
        (lambda: m.nll([[0.0, -1.0]], [2]), r"\[nll\] expected gold in -1..1, got 2 in item 0"),
        (lambda: m.nll([[0.0, -1.0]], [0.5]), r"\[nll\] expected integer gold, got float64"),
        (lambda: m.nll([[0.0, -1.0]]), r"\[nll\] expected gold, the index of the right choice"),
        (lambda: m.nll([[0.0, -1.0]], [0, 1]), r"\[nll\] expected gold of shape \[1\], got \[2\]"),
        (lambda: m.margin([[]]), r"\[margin\] expected a row \[K\] with K >= 1 per item"),
        (
            lambda: m.margin([[-math.inf, -math.inf]]),
            r"\[margin\] expected a finite score, got only -inf in item 0",
        ),
        (
            lambda: m.Distributions.from_probabilities([[0.5, 0.4]]),
            r"\[probabilities\] expected probabilities that sum to 1, got a sum of 0.9 in item 0",
        ),
        (
            lambda: m.Distributions.from_probabilities([[1.5, -0.5]]),
            r"expected probabilities, got a negative value in item 0",
        ),
        (
            lambda: m.Distributions.from_probabilities([[math.nan, 1.0]]),
            r"expected probabilities, got NaN in item 0",
        ),
        (
            lambda: m.kl_ab([[0.0, -1.0]], [[0.0, -1.0, -2.0]]),
            r"\[kl_ab\] expected equal numbers of choices, got 2 and 3 in item 0",
        ),
        (
            lambda: m.tv([[0.0, -1.0]], [[0.0, -1.0]] * 2),
            r"\[tv\] expected the same items in a and b, got 1 and 2 items",
        ),
        (lambda: m.flips([1], [1, 0]), r"\[flips\] expected the same items in a and b"),
        (lambda: m.tango(3, 3, 5), r"\[tango\] expected 0 <= rw \+ wr <= n"),
        (lambda: m.mcnemar(-1, 3), r"\[mcnemar\] expected counts of at least 0"),
        (lambda: m.Resampling(level=1.0), r"\[resampling\] expected a level between 0 and 1"),
        (lambda: m.Resampling(resamples=5), r"\[resampling\] expected at least 100 resamples"),
        (lambda: m.mean_difference([math.inf]), r"\[mean_difference\] expected finite values"),
        (lambda: m.ppl([1.0], protocol="c4"), r"\[ppl\] expected a protocol of gptq, lm_eval"),
        (lambda: m.choice_scores("best", [0.0]), r"\[scores\] expected a rule of sum, token"),
        (lambda: m.choice_scores("token", [0.0]), r"\[scores\] expected tokens per choice"),
        (lambda: m.choice_scores("pmi", [0.0]), r"\[scores\] expected unconditional"),
        (lambda: m.choice_scores("char", [0.0], chars=[0]), r"\[scores\] expected 1 counts of"),
    ],
)
def test_bad_input_gets_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _scores(**changes):
    fields = {
        "ids": ("0", "1"),
        "tasks": ("t", "t"),
        "gold": np.array([0, 1]),
        "z": (np.array([0.0, -1.0]), np.array([0.0, -1.0])),
        "slices": ({}, {}),
    }
    return m.Scores(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ("0",)}, r"\[scores\] expected one entry per item in every field"),
        ({"ids": ("0", "0")}, r"\[scores\] expected every \(task, id\) once, got repeats: t/0"),
        ({"gold": np.array([0, 2])}, r"\[scores\] expected gold in -1..1, got 2 in item '1'"),
        (
            {"z": (np.array([0.0, -1.0]), np.array([0.0, np.nan]))},
            r"\[scores\] expected finite scores, got \[0.0, nan\] in item '1' of task 't'",
        ),
    ],
)
def test_scores_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        _scores(**changes)


def test_scores_from_run_lines_pass_over_failed_items():
    line = {"kind": "choice", "task": "t", "gold": 1, "ll": [-1.0, -2.0], "slices": {"lang": "en"}}
    lines = [{**line, "id": "a"}, {**line, "id": "b", "ll": None, "reason": "context too long"}]
    scores = m.Scores.from_items([*lines, {"kind": "generate", "id": "c", "task": "t"}])
    assert scores.keys == (("t", "a"),)
    assert scores.correct.tolist() == [0.0]
    assert scores.slices == ({"lang": "en"},)
    with pytest.raises(ValueError, match=r"expected tokens per choice .* in item 'a' of task 't'"):
        m.Scores.from_items(lines, rule="token")


def test_an_estimate_acts_as_a_float():
    value = m.Estimate("acc", 0.75, n=4)
    assert value == 0.75 and value > 0.5 and value <= 1 and f"{value:.1%}" == "75.0%"
    assert value + 1 == 1.75 and 1 - value == 0.25 and -value == -0.75 and round(value, 1) == 0.8
    assert float(np.mean([value, value])) == 0.75 and abs(value) == 0.75 and int(value) == 0
    assert np.asarray([value], dtype=float).tolist() == [0.75]
    assert f"{m.Estimate('auroc', None, reason='one class'):.3f}" == "n/a"
    assert {value: 1}[0.75] == 1


def test_estimates_serialise():
    described = m.ece([0.2, 0.9], [0, 1], resampling=m.Resampling(resamples=200)).to_dict()
    text = json.loads(json.dumps(described, allow_nan=False))
    assert text["metric"] == "ece" and text["n"] == 2 and text["seed"] == 0
    assert text["extra"] == {"bins": 15, "binning": "width", "biased_estimator": True}
    assert text["interval"] == "percentile" and text["resamples"] == 200


def test_reliability_bins_cover_the_unit_interval():
    table = m.reliability([0.05, 0.31, 0.99, 1.0], [0, 1, 1, 0], bins=4)
    assert [(b.lo, b.hi) for b in table] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]
    assert [b.n for b in table] == [1, 1, 0, 2]
    assert table[2].acc is None and table[3].acc == 0.5
    assert table[3].acc_lower < 0.5 < table[3].acc_upper
    assert m.reliability([], []) == ()
    assert sum(b.n for b in m.reliability([0.1, 0.2, 0.3], [0, 1, 1], rule="mass", bins=2)) == 3
