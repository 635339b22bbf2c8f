"""Measures against the golden vectors.

Every printed digit, and the numbers of independent implementations.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

import golden
from calibit import measures as m
from calibit.measures.confidence import entropy_values
from calibit.measures.intervals import acceleration
from calibit.measures.paired import standard_error

TIGHT = {"abs": 6e-11, "rel": 0.0}  # ten printed digits, rounded


@functools.cache
def data(name: str) -> golden.Pair:
    return {"V1": golden.v1, "V2": golden.v2, "V4": golden.v4}[name]()


@functools.cache
def top_label(column: str) -> tuple[np.ndarray, np.ndarray]:
    pair = data(column[:2])
    scores = m.Distributions.from_scores(getattr(pair, column[3]))
    return scores.confidence, (scores.predicted == pair.y).astype(float)


@pytest.mark.parametrize(
    ("name", "digest", "sums"),
    [
        (
            "V1",
            "075a638faae7d1180324df2f7fa844e7a06fdd1974b01ba33a62c067e6425522",
            (58967363, 52909375, 772),
        ),
        (
            "V2",
            "5530a763a5f0aeefb9b012f5d69031c415522360ad0fa99f7f3f3abad3609283",
            (17788593, 16089602, 157),
        ),
        ("V4", "be8ba591049f1b0b466d0ec8a20d09c0476be77316c6b25ac74c67ccd3a7d5ea", None),
    ],
)
def test_generators_reproduce_the_published_hashes(name, digest, sums):
    pair = data(name)
    assert pair.sha256() == digest
    if sums:
        assert (pair.A.sum(), pair.B.sum(), pair.y.sum()) == sums


def test_generators_of_reruns_builds_and_decoding():
    A = data("V1").A
    assert (
        golden.v5(A)[0, 0].tolist() == [38408, 58137, 46504, 57655]
        and golden.v5(A).sum() == 176895209
    )
    assert (
        golden.v6(A)[0, 0].tolist() == [25016, 35012, 30370, 42630]
        and golden.v6(A).sum() == 200480473
    )
    y = golden.v7()
    y[1, :, 4:8, :] -= 0.05
    assert (y / 0.2).sum() == pytest.approx(295.6046612725, abs=1e-9)


def _distribution(column):
    return m.Distributions.from_scores(getattr(data(column[:2]), column[3]))


def _with_top_label(function, **options):
    return lambda column: function(*top_label(column), **options)


def _with_scores(function, **options):
    return lambda column: function(_distribution(column), data(column[:2]).y, **options)


ONE_MODEL = {
    "acc": lambda k: m.acc(top_label(k)[1]),
    "conf": lambda k: m.conf(top_label(k)[0]),
    "conf_true": lambda k: m.conf_true(_distribution(k).of(data(k[:2]).y)[0]),
    "conf_err": _with_top_label(m.conf_err),
    "conf_correct": _with_top_label(m.conf_correct),
    "entropy nats": lambda k: m.entropy(_distribution(k)),
    "entropy bits": lambda k: m.entropy(_distribution(k), unit="bits"),
    "entropy normalised": lambda k: m.entropy(_distribution(k), unit="normalised"),
    "margin": lambda k: m.margin(_distribution(k)),
    "ece 10": _with_top_label(m.ece, bins=10),
    "ece 15": _with_top_label(m.ece),
    "ece 100": _with_top_label(m.ece, bins=100),
    "mce 10, 1": _with_top_label(m.mce, bins=10, n_min=1),
    "mce 15, 1": _with_top_label(m.mce, n_min=1),
    "mce 15, 10": _with_top_label(m.mce),
    "rmsce": _with_top_label(m.rmsce),
    "ece_mass 10": _with_top_label(m.ece_mass, bins=10),
    "ece_mass 15": _with_top_label(m.ece_mass),
    "ace_nixon 10": _with_scores(m.ace_nixon, bins=10),
    "ace_nixon 15": _with_scores(m.ace_nixon),
    "sce 10": _with_scores(m.sce, bins=10),
    "sce 15": _with_scores(m.sce),
    "tace 10": _with_scores(m.tace, bins=10),
    "tace 15": _with_scores(m.tace),
    "debiased_l2": _with_top_label(m.debiased_l2),
    "plugin_l2": _with_top_label(m.plugin_l2),
    "debiased_l2_marginal": _with_scores(m.debiased_l2_marginal),
    "debiased_l1": _with_top_label(m.debiased_l1),
    "smece": _with_top_label(m.smece),
    "smece at 0.05": _with_top_label(m.smece, bandwidth=0.05),
    "smece bandwidth": lambda k: m.smece(*top_label(k)).extra["bandwidth"],
    "brier": _with_scores(m.brier),
    "brier_top1": _with_top_label(m.brier_top1),
    "nll": _with_scores(m.nll),
    "auroc": _with_top_label(m.auroc),
    "aurc": _with_top_label(m.aurc),
    "e_aurc": _with_top_label(m.e_aurc),
    "abs_gap": _with_top_label(m.abs_gap),
    "sel_acc@0.1": _with_top_label(m.sel_acc, q=0.1),
    "paper_code.ece": _with_scores(m.paper_code.ece),
    "paper_code.ace": _with_scores(m.paper_code.ace),
    "paper_code.mce_binary": _with_scores(m.paper_code.mce_binary),
    "paper_code.mce": _with_scores(m.paper_code.mce),
    "paper_code.sce": _with_scores(m.paper_code.sce),
}


@pytest.mark.parametrize("quantity", ONE_MODEL)
@pytest.mark.parametrize("column", ["V1 a", "V1 b", "V2 a", "V2 b"])
def test_one_model(quantity, column):
    value = float(ONE_MODEL[quantity](column))
    assert value == pytest.approx(golden.ONE_MODEL[quantity][column], **TIGHT)


@pytest.mark.parametrize(
    ("options", "a", "b"),
    [
        ({"rule": "mass"}, 0.0804802934, 0.0814341673),
        ({"rule": "mass", "equal_weight": True}, 0.0808480993, 0.0818565045),
    ],
)
def test_variants_of_ace(options, a, b):
    assert float(_with_scores(m.ace_nixon, **options)("V1 a")) == pytest.approx(a, **TIGHT)
    assert float(_with_scores(m.ace_nixon, **options)("V1 b")) == pytest.approx(b, **TIGHT)


def test_ece_mass_with_the_published_edges():
    from calibit.measures.binning import bin_sums
    from calibit.measures.calibration import ece_of_sums

    for column, expected in (("V1 a", 0.1761784477), ("V1 b", 0.1548493103)):
        sums = bin_sums(*top_label(column), bins=15, rule="mass_edges")
        assert float(ece_of_sums(sums)) == pytest.approx(expected, **TIGHT)


def test_ace_variants_agree_when_bins_divide_the_items():
    values = [
        float(_with_scores(m.ace_nixon, bins=10, rule=rule, equal_weight=equal)("V1 a"))
        for rule in ("mass", "mass_edges")
        for equal in (False, True)
    ]
    assert np.ptp(values) < 1e-12


def test_ece_null_of_the_named_generator():
    for column, mean, p95 in (("V1 a", 0.048408, 0.069495), ("V1 b", 0.049523, 0.070771)):
        null = m.ece_null(top_label(column)[0])
        assert float(null) == pytest.approx(mean, abs=5e-7)
        assert null.extra["p95"] == pytest.approx(p95, abs=5e-7)


PAIR = {
    "kl_ab": ((0.0302810887, 0.1728562208), (0.0181469520, 0.1611564563)),
    "kl_ba": ((0.0317767101, 0.1781481306), (0.0191148114, 0.1629493732)),
    "jsd": ((0.0110395436, 0.0622156961), (0.0066365660, 0.0576477996)),
}


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize("which", ["V1", "V2"])
def test_divergences(name, which):
    pair = data(which)
    options = {"unit": "bits"} if name == "jsd" else {}
    value = getattr(m, name)(pair.a, pair.b, **options)
    mean, largest = PAIR[name][which == "V2"]
    assert float(value) == pytest.approx(mean, **TIGHT)
    assert value.extra["max"] == pytest.approx(largest, **TIGHT)


@pytest.mark.parametrize(
    ("which", "nats", "distance", "base_e", "tv"),
    [
        ("V1", 0.0076520285, 0.0937404686, 0.0780440594, 0.0858384440),
        ("V2", 0.0046001170, 0.0623488127, 0.0519087916, 0.0576831644),
    ],
)
def test_distances(which, nats, distance, base_e, tv):
    pair = data(which)
    assert float(m.jsd(pair.a, pair.b)) == pytest.approx(nats, **TIGHT)
    assert float(m.js_distance(pair.a, pair.b)) == pytest.approx(distance, **TIGHT)
    assert float(m.js_distance(pair.a, pair.b, base=np.e)) == pytest.approx(base_e, **TIGHT)
    assert float(m.tv(pair.a, pair.b)) == pytest.approx(tv, **TIGHT)


@pytest.mark.parametrize(
    ("which", "cells", "other", "p", "mid_p"),
    [
        ("V1", (258, 24, 20, 198), 6, 0.6515878272, 0.5514843298),
        ("V2", (210, 11, 9, 70), 0, 0.8238029480, 0.6636238098),
    ],
)
def test_flips_and_mcnemar(which, cells, other, p, mid_p):
    pair = data(which)
    before, after = top_label(f"{which} a")[1], top_label(f"{which} b")[1]
    assert tuple(int(f(before, after)) for f in (m.rr, m.rw, m.wr, m.ww)) == cells
    assert int(m.flips(before, after)) == cells[1] + cells[2]
    assert int(m.all_flips(pair.a.argmax(1), pair.b.argmax(1))) == cells[1] + cells[2] + other
    test = m.mcnemar(cells[1], cells[2])
    assert (test.p, test.mid_p) == (pytest.approx(p, **TIGHT), pytest.approx(mid_p, **TIGHT))


def change_of_conf_true(which: str) -> np.ndarray:
    pair = data(which)
    rows = np.arange(len(pair.y))
    return pair.pb[rows, pair.y] - pair.pa[rows, pair.y]


@pytest.mark.parametrize(
    ("which", "mean", "sd", "t", "p_t", "p_w", "a", "bca", "percentile"),
    [
        (
            "V1",
            -0.0166214007,
            0.0835545766,
            -4.4481802604,
            1.0685830896e-05,
            1.6939913494e-04,
            -0.0021715401,
            (-0.0240540290, -0.0095060167),
            (-0.02385948, -0.00930751),
        ),
        (
            "V2",
            -0.0008424047,
            0.0829341661,
            -0.1759332474,
            0.8604654785,
            0.2636215059,
            0.0006096078,
            (-0.0100912535, 0.0087336791),
            (-0.01021296, 0.00863183),
        ),
    ],
)
def test_change_of_conf_true(which, mean, sd, t, p_t, p_w, a, bca, percentile):
    d = change_of_conf_true(which)
    estimate = m.d_conf_true(data(which).a, data(which).b, data(which).y, resampling=m.Resampling())
    assert float(estimate) == pytest.approx(mean, **TIGHT)
    assert float(np.std(d, ddof=1)) == pytest.approx(sd, **TIGHT)
    assert acceleration(d) == pytest.approx(a, **TIGHT)
    assert (estimate.lower, estimate.upper) == pytest.approx(bca, abs=2e-10)
    plain = m.mean_difference(d, method="percentile")
    assert (plain.lower, plain.upper) == pytest.approx(percentile, abs=6e-9)
    assert m.paired_t(d).statistic == pytest.approx(t, **TIGHT)
    assert m.paired_t(d).p == pytest.approx(p_t, rel=1e-9)
    assert m.wilcoxon(d).p == pytest.approx(p_w, rel=1e-9)


def test_sign_flip_and_clusters_on_v1():
    d = change_of_conf_true("V1")
    assert m.sign_flip_test(d) == 0.0001
    assert m.clustered_standard_error(d, np.arange(500) // 5) == pytest.approx(
        0.0037426325, **TIGHT
    )
    assert standard_error(d) == pytest.approx(0.0037366743, **TIGHT)


def test_mcnemar_60_36():
    test = m.mcnemar(60, 36)
    assert test.p == pytest.approx(0.0184333529, **TIGHT)
    assert test.mid_p == pytest.approx(0.0143896330, **TIGHT)


def test_changes_of_ece_and_nll_on_v1():
    pair = data("V1")
    a, b = (m.Scores.from_arrays(z, pair.y) for z in (pair.a, pair.b))
    change = m.differences(*(m.panel(x, resampling=m.Resampling()) for x in (a, b)))
    assert float(change["ece"]) == pytest.approx(-0.0201426408, **TIGHT)
    assert (change["ece"].lower, change["ece"].upper) == pytest.approx(
        (-0.05659158, 0.0172418), abs=6e-8
    )
    assert change["ece"].extra["biased_estimator"] is True
    assert float(change["nll"]) == pytest.approx(0.0076356156, **TIGHT)
    log_p = [x.distributions.of(pair.y)[1] for x in (a, b)]
    d = log_p[0] - log_p[1]
    assert float(np.std(d, ddof=1)) == pytest.approx(0.2761866763, **TIGHT)
    plain = m.mean_difference(d, method="percentile")
    assert (plain.lower, plain.upper) == pytest.approx((-0.01658447, 0.03191775), abs=6e-9)


@pytest.mark.parametrize(
    ("counts", "bounds"),
    [
        ((24, 20, 500), (-0.0351227475, 0.0186627052)),
        ((11, 9, 300), (-0.0385544480, 0.0243982697)),
        ((2, 1, 10), (-0.4535443349, 0.2800528581)),
        ((60, 36, 2376), (-0.0184844933, -0.0020589359)),
        ((0, 0, 100), (-0.0369934982, 0.0369934982)),
        ((5, 0, 100), (-0.1117504692, -0.0111568269)),
    ],
)
def test_tango(counts, bounds):
    interval = m.tango(*counts)
    assert (interval.lower, interval.upper) == pytest.approx(bounds, **TIGHT)


def test_rates():
    exact, none, score = m.clopper_pearson(50, 500), m.clopper_pearson(0, 500), m.wilson(50, 500)
    assert (exact.lower, exact.upper) == pytest.approx((0.0751358151, 0.1297090857), **TIGHT)
    assert (none.lower, none.upper) == pytest.approx((0, 0.0073506101), **TIGHT)
    assert (score.lower, score.upper) == pytest.approx((0.0766775627, 0.1294219096), **TIGHT)


def test_planning():
    assert m.mde_accuracy(500, 44 / 500) == pytest.approx(0.0371672279, **TIGHT)
    assert m.mde_mean(500, np.std(change_of_conf_true("V1"), ddof=1)) == pytest.approx(
        0.0104686114, **TIGHT
    )
    assert m.n_needed(np.sqrt(0.10), 0.01) == 7849
    assert m.n_needed(0.3, 0.01, 0.01) is None


V3 = {
    "a": (
        0.7,
        0.589,
        0.464,
        0.6166666667,
        0.5771428571,
        0.331,
        0.391,
        1.4407276559,
        0.54726,
        0.9662623540,
        0.1824958670,
        0.0447213595,
        0.4285714286,
        0.481,
        0.28731,
        0.406,
        0.2753571429,
    ),
    "b": (
        0.6,
        0.534,
        0.423,
        0.4975,
        0.5583333333,
        0.236,
        0.344,
        1.5808247345,
        0.5725,
        1.0793689574,
        0.1337620268,
        0.0,
        0.5833333333,
        0.464,
        0.25506,
        0.331,
        0.4264682540,
    ),
}


@pytest.mark.parametrize("which", ["a", "b"])
def test_v3_checkable_by_hand(which):
    p = golden.V3_A if which == "a" else golden.V3_B
    y, full = golden.V3_Y, m.Distributions.from_probabilities(p)
    c, r = full.confidence, (full.predicted == y).astype(float)
    values = [
        m.acc(r),
        m.conf(c),
        m.conf_true(full.of(y)[0]),
        m.conf_err(c, r),
        m.conf_correct(c, r),
        m.ece(c, r, bins=5),
        m.ece(c, r, bins=10),
        m.entropy(full, unit="bits"),
        m.brier(full, y),
        m.nll(full, y),
        m.smece(c, r),
        m.debiased_l2(c, r),
        m.auroc(c, r),
        m.abs_gap(c, r),
        m.brier_top1(c, r),
        m.margin(full),
        m.aurc(c, r),
    ]
    assert [float(v) for v in values] == pytest.approx(list(V3[which]), abs=1e-10)
    sizes = [b.n for b in m.reliability(c, r, bins=5)]
    assert sizes == ([0, 3, 3, 2, 2] if which == "a" else [0, 5, 2, 2, 1])


def test_v3_pair():
    a, b = (m.Distributions.from_probabilities(p) for p in (golden.V3_A, golden.V3_B))
    y = golden.V3_Y
    right = [(x.predicted == y).astype(float) for x in (a, b)]
    assert [int(f(*right)) for f in (m.rr, m.rw, m.wr, m.ww)] == [5, 2, 1, 2]
    assert int(m.all_flips(a.predicted, b.predicted)) == int(m.flips(*right)) == 3
    d = b.of(y)[0] - a.of(y)[0]
    assert d.mean() == pytest.approx(-0.041)
    assert m.sign_flip_test(d) == 0.1953125
    assert float(m.kl_ab(a, b)) == pytest.approx(0.0385233608, **TIGHT)
    assert float(m.kl_ba(a, b)) == pytest.approx(0.0416155652, **TIGHT)
    assert float(m.jsd(a, b, unit="bits")) == pytest.approx(0.0142689201, **TIGHT)
    assert float(m.js_distance(a, b)) == pytest.approx(0.1093598557, **TIGHT)
    assert float(m.tv(a, b)) == pytest.approx(0.101, **TIGHT)
    assert (a.ties, b.ties) == (1, 0)


def test_v4_token_level():
    pair = data("V4")
    result = m.token_fidelity(pair.a, pair.b, pair.y)
    ppl, kl, delta = result.perplexity(), result.divergence(), result.delta()
    expected = {
        "ppl_base": 16.1011820001,
        "ppl": 17.5900305216,
        "ppl_se": 1.4861205643,
        "log_ratio": 0.0884396085,
        "log_ratio_se": 0.0449799945,
        "difference": 1.4888485215,
        "correlation": 0.8497466643,
    }
    assert {name: ppl[name] for name in expected} == pytest.approx(expected, **TIGHT)
    assert (kl["mean"], kl["mean_se"]) == pytest.approx((0.0629649996, 0.0018363225), **TIGHT)
    assert (kl["max"], kl["median"]) == pytest.approx((0.0947683068, 0.0628208001), **TIGHT)
    assert (delta["mean"], delta["mean_se"]) == pytest.approx(
        (-0.0034032530, 0.0030123336), **TIGHT
    )
    assert (delta["rms"], delta["min"], delta["max"]) == pytest.approx(
        (0.0241506483, -0.0676118439, 0.0540060811), **TIGHT
    )
    assert result.same_top_share()["share"] == 0.4375
    assert sum(row["n"] for row in result.kl_by_top_probability()) == 64


def test_v4_truncation_needs_a_tail():
    from calibit.measures.token_level import kl_top_k

    pair = data("V4")
    a, b = (m.Distributions.from_scores(z) for z in (pair.a, pair.b))
    assert kl_top_k(a, b, 5, tail="none").mean() == pytest.approx(0.0588434314, **TIGHT)
    assert kl_top_k(a, b, 5, tail="none").min() == pytest.approx(-0.0514, abs=5e-5)
    assert kl_top_k(a, b, 5, tail="renormalised").mean() == pytest.approx(0.0507662943, **TIGHT)
    assert kl_top_k(a, b, 5).mean() == pytest.approx(0.0294326575, **TIGHT)
    assert (kl_top_k(a, b, 5) <= kl_top_k(a, b, 50) + 1e-15).all()


@pytest.mark.parametrize("rule", m.RULES)
def test_v8_scoring_rules(rule):
    for item, (predicted, *p) in zip(golden.V8_ITEMS, golden.V8_EXPECTED[rule], strict=True):
        texts, ll, tokens, unconditional = zip(*item, strict=True)
        z = m.choice_scores(
            rule,
            ll,
            tokens=tokens,
            chars=[len(t[1:]) for t in texts],
            bytes=[len(t[1:].encode()) for t in texts],
            unconditional=unconditional,
        )
        full = m.Distributions.from_scores([z])
        assert full.predicted.tolist() == [predicted]
        assert full.p.tolist() == pytest.approx(p, **TIGHT)


def test_repetition_of_the_cat():
    text = "The cat sat on the mat. The cat sat on the mat and the dog sat on the cat."
    words = m.repetition.words(text)
    assert len(words) == 19
    values = [float(m.seq_rep_n([words], n, unit="words")) for n in (1, 2, 3, 4)]
    assert values == pytest.approx([0.6315789474, 0.4444444444, 0.2941176471, 0.1875], **TIGHT)
    stop = {"the", "on", "and", "a", "an", "of", "to", "in", "is", "it"}
    assert float(m.dup_words([text], stop_words=stop)) == 5
    assert float(m.dup_rate([text], stop_words=stop)) == pytest.approx(0.5555555556, **TIGHT)


def test_perplexity_normalisers():
    assert float(m.ppl([120.0, 60.0], normaliser=65)) == pytest.approx(15.9463628578, **TIGHT)
    assert float(m.bits_per_byte([120.0, 60.0], 310)) == pytest.approx(0.8376938947, **TIGHT)


def test_holm():
    assert m.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_noise_floor_excess_intervals_of_v5():
    pair = data("V1")
    reruns = golden.v5(pair.A) / 10000.0
    flipped = (pair.a.argmax(1) != pair.b.argmax(1)).astype(float)
    floor = (pair.a.argmax(1) != reruns.argmax(2)).mean(0)
    excess = m.mean_difference(flipped - floor)
    assert float(excess) == pytest.approx(0.0966666667, **TIGHT)
    assert (excess.lower, excess.upper) == pytest.approx((0.0726666667, 0.1246666667), abs=5e-4)


def test_entropy_values_reject_an_unknown_unit():
    with pytest.raises(
        ValueError, match=r"\[entropy\] expected unit nats, bits or normalised, got 'hartleys'"
    ):
        entropy_values(m.Distributions.from_scores(data("V1").a), "hartleys")
