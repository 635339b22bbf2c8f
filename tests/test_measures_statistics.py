"""Resampling, tests, slices and text measures against plain references and invariances."""

from __future__ import annotations

import doctest
import importlib
import itertools
import math
import pkgutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

import golden
from calibit import measures as m
from calibit.measures import perplexity, selective, slice_search, slices
from calibit.measures.binning import bin_sums
from calibit.measures.calibration import ece_of_sums
from calibit.measures.intervals import (
    WORST_CLUSTERS,
    acceleration,
    bca_p,
    clopper_pearson,
    design_effect,
    paired_share_interval,
    percentile,
    share_design_effect,
    share_interval,
    tango_bounds,
    two_sided_z,
)
from calibit.measures.resampling import (
    count_chunks,
    permuted_group_sums,
    resampled_bin_sums,
    resampled_group_sums,
    resampled_means,
    resampled_sums,
    signed_group_sums,
)

FEW = m.Resampling(resamples=150, seed=3)


@pytest.mark.parametrize("module", [x.name for x in pkgutil.iter_modules(m.__path__)])
def test_examples_in_docstrings(module):
    failed, _ = doctest.testmod(importlib.import_module(f"calibit.measures.{module}"))
    assert failed == 0


def _reference_indices(n: int, resampling: m.Resampling) -> np.ndarray:
    return np.random.default_rng(resampling.seed).integers(0, n, (resampling.resamples, n))


def _items(seed: int, n: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    c = rng.random(n)
    return (np.round(c, 1) if ties else c), (rng.random(n) < c).astype(float)


@pytest.mark.parametrize("n", [1, 7, 501, 1 << 12])
def test_counts_do_not_depend_on_the_chunk(n):
    draw = m.Resampling(resamples=300, seed=1)
    counts = np.concatenate(list(count_chunks(n, draw)))
    wanted = np.array([np.bincount(row, minlength=n) for row in _reference_indices(n, draw)])
    assert (counts == wanted).all()


def test_resampled_sums_are_sums_of_drawn_items():
    values = np.random.default_rng(0).normal(size=(40, 2))
    wanted = values[_reference_indices(40, FEW)].sum(axis=1)
    assert resampled_sums(values, FEW) == pytest.approx(wanted)


@pytest.mark.parametrize("rule", ["width", "mass"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "bins"), [(1, 15), (5, 15), (64, 15), (97, 10)])
def test_resampled_bin_sums_bin_every_resample_anew(rule, ties, n, bins):
    c, r = _items(n, n, ties=ties)
    sums = resampled_bin_sums(c, r, bins=bins, rule=rule, resampling=FEW)
    assert sums.shape == (150, bins, 3)
    for got, index in zip(sums, _reference_indices(n, FEW), strict=True):
        wanted = ece_of_sums(bin_sums(c[index], r[index], bins=bins, rule=rule))
        assert float(ece_of_sums(got)) == pytest.approx(float(wanted), abs=1e-12)
        used = bin_sums(c[index], r[index], bins=bins, rule=rule)
        assert sorted(got[:, 0]) == sorted(used[:, 0])


@pytest.mark.parametrize("ties", [False, True])
def test_ranking_draws_are_those_of_every_resample(ties):
    c, r = _items(5, 60, ties=ties)
    ids = [f"{index:03d}" for index in range(60)]
    area, risk, excess = selective.ranking_draws(c, r, ids, FEW)
    for row, index in enumerate(np.sort(_reference_indices(60, FEW), axis=1)):
        names = [ids[i] for i in index]
        assert area[row] == pytest.approx(float(m.auroc(c[index], r[index])), abs=1e-12)
        assert risk[row] == pytest.approx(float(m.aurc(c[index], r[index], ids=names)), abs=1e-12)
        assert excess[row] == pytest.approx(
            float(m.e_aurc(c[index], r[index], ids=names)), abs=1e-12
        )


def test_bca_of_a_symmetric_sample_is_close_to_student():
    d = np.random.default_rng(2).normal(0.3, 1.0, 400)
    bca, t = m.mean_difference(d), m.t_interval(d)
    assert (bca.lower, bca.upper) == pytest.approx((t.lower, t.upper), abs=0.01)


def test_intervals_without_spread_and_with_one_item():
    constant = m.mean_difference(np.full(9, 0.25))
    assert (constant.lower, float(constant), constant.upper) == (0.25, 0.25, 0.25)
    alone = m.mean_difference([0.25])
    assert alone.lower is None and "at least 2 items" in alone.reason


def test_few_clusters_reach_as_far_as_students_t():
    """BCa of 12 clusters alone is narrower: it follows the skewness that one outlier makes."""
    d = np.repeat(np.r_[np.random.default_rng(8).normal(size=11), 6.0], 5)
    labels = np.repeat(np.arange(12), 5)
    found = m.mean_difference(d, clusters=labels)
    half = 2.200985 * m.clustered_standard_error(d, labels)  # t of 11 degrees at 97.5 %
    assert found.interval == "bca_t" and found.lower == pytest.approx(d.mean() - half, rel=1e-6)
    assert found.upper > d.mean() + half
    draws = resampled_means(d[:, None], m.Resampling(clusters=labels))[:, 0]
    for shift in (found.lower, found.upper):
        p = bca_p(d - shift, draws - shift, m.Resampling(clusters=labels))
        assert p == pytest.approx(0.05, abs=0.005)  # 1 / 9999 of the draws and their spacing


def test_shares_of_few_clusters_are_at_the_level_of_students_t():
    """Korn and Graubard's effective size of 10 copied items, five of each: 50 / 5 of 5 items' worth
    at (t_9 / t_49)^2; t from tables."""
    hits = np.repeat(np.r_[np.ones(3), np.zeros(7)], 5)
    draw = m.Resampling(clusters=np.repeat(np.arange(10), 5))
    effect = 5 * (10 / 9) * (49 / 50) * (2.2621572 / 2.0095752) ** 2
    assert design_effect(hits, draw.clusters) == pytest.approx(5 * (10 / 9) * (49 / 50), rel=1e-12)
    found = share_interval(hits, draw)
    wanted = beta.ppf(
        [0.025, 0.975], [15 / effect, 15 / effect + 1], [35 / effect + 1, 35 / effect]
    )
    assert (found.lower, found.upper) == pytest.approx(tuple(wanted), abs=1e-6)
    pair = paired_share_interval(np.zeros(50), hits, draw)
    counts = np.array([[0.0], [15.0], [50.0]]) / effect
    bounds = tango_bounds(*counts, two_sided_z(0.95))
    assert (pair.lower, pair.upper) == pytest.approx((bounds[0][0], bounds[1][0]), abs=1e-6)
    single = m.Resampling(clusters=np.arange(50))  # each item a cluster: as if independent
    assert share_interval(hits, single) == clopper_pearson(15, 50)
    assert share_interval(hits, m.Resampling(clusters=np.zeros(50, dtype=int))).upper > 0.99


def test_design_effect_of_a_share_nears_the_worst_case_where_few_clusters_changed():
    """By hand: 20 of 30 passages of ten items hold changes in one item each."""
    labels, values = np.repeat(np.arange(30), 10), np.zeros(300)
    values[:200:10] = 1.0
    for changed, signs in ((20, 1.0), (20, -1.0)):
        plain = design_effect(signs * values, labels)
        wanted = (changed * plain + WORST_CLUSTERS * 10) / (changed + WORST_CLUSTERS)
        assert plain == 1.0
        assert share_design_effect(signs * values, labels) == pytest.approx(wanted, rel=1e-12)
    assert share_design_effect(np.zeros(300), labels) == 10.0
    assert share_design_effect(values, np.arange(300)) == share_design_effect(values, None) == 1.0
    # Single items that changed say nothing of how alike the items of a passage are.
    mixed, changes = np.r_[labels, np.arange(30, 130)], np.r_[values[:300], np.ones(100)]
    seen = (20 * 100 + 100) ** 2 / (20 * 100**2 + 100)
    plain = design_effect(changes, mixed)
    wanted = (seen * plain + WORST_CLUSTERS * 3100 / 400) / (seen + WORST_CLUSTERS)
    assert share_design_effect(changes, mixed) == pytest.approx(wanted, rel=1e-12)


def test_tango_where_a_root_rounds_below_zero():
    """775 of 877 items lost, divided by a design effect: the discriminant has a double root."""
    counts = np.array([[66.0604495503455], [0.0], [74.75485710406838]])
    with np.errstate(invalid="raise"):
        lower, upper = tango_bounds(*counts, two_sided_z(0.95))
    assert lower[0] < -775 / 877 < upper[0] < -0.79


def test_paired_shares_of_few_clusters_hold_the_truth():
    """Eight passages of 25 questions that change together: 95 % are promised, and 600 experiments
    find less than 91 % (4.5 standard errors). At the normal quantile 88 % hold it."""
    rng, held, narrow = np.random.default_rng(11), 0, 0
    labels = np.repeat(np.arange(8), 25)
    draw = m.Resampling(clusters=labels)
    for _ in range(600):
        loss = np.repeat(rng.beta(1.0, 4.0, 8), 25)  # share of answers lost in a passage, mean 0.2
        before = np.ones(200)
        after = (rng.random(200) > loss).astype(float)
        found = paired_share_interval(before, after, draw)
        held += found.lower <= -0.2 <= found.upper
        effect = design_effect(after - before, labels)
        counts = np.array([[np.sum(after == 0.0)], [0.0], [200.0]]) / effect
        low, high = tango_bounds(*counts, two_sided_z(0.95))
        narrow += low[0] <= -0.2 <= high[0]
    assert held >= 0.91 * 600
    assert narrow < held


def test_clusters_of_one_item_equal_items():
    d = np.random.default_rng(4).normal(size=50)
    single = m.mean_difference(d, clusters=range(50), resampling=FEW)
    items = m.mean_difference(d, resampling=FEW)
    assert (single.lower, single.upper) == pytest.approx((items.lower, items.upper))
    assert single.extra["se"] == pytest.approx(items.extra["se"])


CLUSTERS = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 5] * 5) + np.repeat(np.arange(5) * 6, 12)


def _cluster_draws(resampling: m.Resampling) -> list[np.ndarray]:
    """Items of every resample of whole clusters, by definition."""
    members = [np.flatnonzero(c == CLUSTERS) for c in range(CLUSTERS.max() + 1)]
    drawn = _reference_indices(len(members), resampling)
    return [np.concatenate([members[c] for c in row]) for row in drawn]


CLUSTERED = m.Resampling(resamples=150, seed=3, clusters=CLUSTERS)


def test_clusters_are_drawn_whole():
    values = np.random.default_rng(0).normal(size=(60, 2))
    draws = _cluster_draws(CLUSTERED)
    wanted = np.array([values[index].sum(axis=0) for index in draws])
    assert resampled_sums(values, CLUSTERED) == pytest.approx(wanted)
    means = np.array([values[index].mean(axis=0) for index in draws])
    assert resampled_means(values, CLUSTERED) == pytest.approx(means)
    counts = np.concatenate(list(count_chunks(60, CLUSTERED)))
    assert (counts == [np.bincount(index, minlength=60) for index in draws]).all()


@pytest.mark.parametrize("rule", ["width", "mass"])
@pytest.mark.parametrize("ties", [False, True])
def test_bins_and_ranks_of_clusters_are_those_of_every_resample(rule, ties):
    c, r = _items(9, 60, ties=ties)
    sums = resampled_bin_sums(c, r, bins=7, rule=rule, resampling=CLUSTERED)
    drawn = selective.ranking_draws(c, r, None, CLUSTERED)
    for row, index in enumerate(_cluster_draws(CLUSTERED)):
        wanted = ece_of_sums(bin_sums(c[index], r[index], bins=7, rule=rule))
        assert float(ece_of_sums(sums[row])) == pytest.approx(float(wanted), abs=1e-12)
        assert drawn[0][row] == pytest.approx(float(m.auroc(c[index], r[index])), abs=1e-12)
        risk = m.aurc(c[np.sort(index)], r[np.sort(index)])
        assert drawn[1][row] == pytest.approx(float(risk), abs=1e-12)


def test_signs_of_clusters_are_common_to_their_items():
    values = np.random.default_rng(0).normal(size=60)
    everyone = np.ones((1, 60), dtype=bool)
    signs = np.random.default_rng(3).integers(0, 2, (150, 30)) * 2.0 - 1.0
    got = signed_group_sums(values[None, :], everyone, CLUSTERED)[:, 0]
    assert got == pytest.approx(signs[:, CLUSTERS] @ values)


def test_clusters_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected cluster numbers 0 to 1, got 0 to 2"):
        m.Resampling(clusters=np.array([0, 2, 2]))
    with pytest.raises(ValueError, match="expected clusters of 5 items, got 60"):
        resampled_sums(np.zeros((5, 1)), CLUSTERED)
    part = CLUSTERED.take(np.arange(60) % 2 == 0)
    assert part.clusters.max() + 1 == len(np.unique(CLUSTERS[::2]))


def test_jackknife_of_clusters_of_one_item_is_that_of_items():
    d = np.random.default_rng(1).exponential(size=40)
    assert acceleration(d, np.arange(40)) == pytest.approx(acceleration(d), rel=1e-12)
    left_out = [d[CLUSTERS[:40] != c].mean() for c in range(CLUSTERS[:40].max() + 1)]
    u = np.mean(left_out) - np.array(left_out)
    wanted = np.sum(u**3) / (6 * np.sum(u**2) ** 1.5)
    assert acceleration(d, CLUSTERS[:40]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("n", [50, 10_000])
def test_threads_change_no_draw(n):
    import torch

    c, r = _items(0, n, ties=False)
    member = np.random.default_rng(0).random((3, n)) < 0.3
    draw, found = m.Resampling(resamples=400), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(
                [
                    resampled_sums(c[:, None], draw),
                    resampled_bin_sums(c, r, bins=15, rule="width", resampling=draw),
                    resampled_bin_sums(c, r, bins=15, rule="mass", resampling=draw),
                    np.stack(selective.ranking_draws(c, r, None, draw)),
                    resampled_group_sums(c[None, :], member, draw),
                    signed_group_sums(c[None, :], member, draw),
                    permuted_group_sums(c, member, draw),
                ]
            )
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert one.tobytes() == two.tobytes()


def test_permuted_groups_hold_values_of_the_items():
    values = np.arange(12.0)
    member = np.zeros((2, 12), dtype=bool)
    member[0, :4], member[1] = True, True
    sums = permuted_group_sums(values, member, m.Resampling(resamples=2000))
    assert (sums[:, 1] == [values.sum(), (values**2).sum()]).all()
    # Mean 4 * 5.5; a sum of 4 of 12 has sd sqrt(4 * 8/11 * 143/12) = 5.9: 4 standard errors.
    assert sums[:, 0, 0].mean() == pytest.approx(22, abs=4 * 5.9 / math.sqrt(2000))
    assert len(np.unique(sums[:, 0, 0])) > 20


def test_duplicated_items_in_clusters_do_not_shrink_the_interval():
    d = np.random.default_rng(4).normal(size=60)
    doubled, labels = np.repeat(d, 5), np.repeat(np.arange(60), 5)
    width = {
        name: (lambda e: e.upper - e.lower)(m.mean_difference(values, clusters=clusters))
        for name, values, clusters in (("items", d, range(60)), ("clusters", doubled, labels))
    }
    # Fewer than 100 items have the levels of Student's t, as clusters have: nothing differs but the
    # order of addition.
    assert width["clusters"] == pytest.approx(width["items"], rel=1e-9)


def test_sign_flips_are_exact_up_to_twenty_items():
    d = np.array([0.3, -0.1, 0.2, 0.05, 0.4])
    means = [abs(np.dot(signs, d)) for signs in itertools.product((-1, 1), repeat=5)]
    wanted = np.mean([value >= abs(d.sum()) - 1e-12 for value in means])
    assert m.sign_flip_test(d) == wanted
    assert m.sign_flip_test(np.zeros(5)) == 1.0
    assert m.sign_flip_test([]) == 1.0


def test_wilcoxon_and_t_agree_with_scipy():
    from scipy import stats

    rng = np.random.default_rng(8)
    for n in (12, 50, 80):
        d = rng.normal(0.2, 1.0, n)
        assert m.wilcoxon(d).p == pytest.approx(stats.wilcoxon(d).pvalue, rel=1e-10)
        assert m.paired_t(d).p == pytest.approx(stats.ttest_1samp(d, 0).pvalue, rel=1e-9)
    tied = np.round(rng.normal(0.2, 1.0, 120), 1)
    wanted = stats.wilcoxon(tied, correction=False, method="approx").pvalue
    assert m.wilcoxon(tied).p == pytest.approx(wanted, rel=1e-10)
    assert m.wilcoxon(np.zeros(4)) is None and m.paired_t([1.0]) is None


def test_mcnemar_agrees_with_the_binomial_test():
    from scipy import stats

    for rw, wr in ((0, 0), (1, 0), (3, 3), (7, 20), (300, 260)):
        wanted = stats.binomtest(rw, rw + wr).pvalue if rw + wr else 1.0
        assert m.mcnemar(rw, wr).p == pytest.approx(wanted, rel=1e-9)
        assert m.mcnemar(rw, wr).mid_p <= m.mcnemar(rw, wr).p


def test_rates_agree_with_scipy():
    from scipy import stats

    for k, n in ((0, 7), (3, 7), (7, 7), (44, 500)):
        test = stats.binomtest(k, n)
        for method, ours in (("exact", m.clopper_pearson(k, n)), ("wilson", m.wilson(k, n))):
            wanted = test.proportion_ci(0.95, method=method)
            assert (ours.lower, ours.upper) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_tango_is_symmetric_and_contains_the_estimate():
    for rw, wr, n in ((3, 9, 40), (0, 40, 40), (1, 0, 1000)):
        forward, backward = m.tango(rw, wr, n), m.tango(wr, rw, n)
        assert forward.lower == pytest.approx(-backward.upper, abs=1e-12)
        assert forward.lower <= (wr - rw) / n <= forward.upper


def _worst_on_v1() -> tuple[np.ndarray, slices.Slices]:
    pair = golden.v1()
    rows = np.arange(500)
    d = pair.pa[rows, pair.y] - pair.pb[rows, pair.y]
    return d, slices.slices_by_key([{"part": str(index % 5)} for index in rows])


def test_worst_slice_oracle():
    d, family = _worst_on_v1()
    search = m.worst_slice(d, family)
    assert [s.damage for s in search.slices] == pytest.approx(
        [0.01496799, 0.01305933, 0.00950276, 0.02958236, 0.01599457], abs=5e-9
    )
    assert [s.se for s in search.slices] == pytest.approx(
        [0.0084219, 0.00866429, 0.00803024, 0.00806733, 0.00859976], abs=5e-9
    )
    assert [s.p_damage for s in search.slices] == pytest.approx(
        [0.1786, 0.2992, 0.4737, 0.0016, 0.1512], abs=1e-12
    )
    worst = search.worst
    assert worst.name == "part=3" and worst.n == 100
    assert worst.lower == pytest.approx(0.01136, abs=5e-6)
    assert (worst.damage - worst.lower) / worst.se == pytest.approx(2.258, abs=5e-4)
    assert (worst.upper - worst.damage) / worst.se == pytest.approx(2.420, abs=5e-4)
    assert search.bounds(0.95) == pytest.approx((worst.lower, worst.upper))
    assert search.bounds(0.99)[1] > search.bounds(0.95)[1]


def test_shrinking_oracle():
    search = m.worst_slice(*_worst_on_v1())
    result = slice_search.shrink([s.damage for s in search.slices], [s.se for s in search.slices])
    assert result.q == pytest.approx(3.5786173727, abs=6e-11)
    assert result.tau2 == 0.0
    assert result.mean == pytest.approx(0.0167539559, abs=6e-11)
    assert set(result.shrunken) == {result.mean}


def test_accuracy_slices_keep_bounds_without_any_flip():
    family = slices.slices_by_key([{"x": str(i % 2)} for i in range(100)])
    search = m.worst_slice(np.zeros(100), family, accuracy=True)
    upper2 = 1.959963984540054**2  # two-sided 95 % per slice: all of them must hold
    lower2 = 1.959963984540054**2  # one-sided 95 % over two slices, Bonferroni
    assert [s.upper for s in search.slices] == pytest.approx([upper2 / (50 + upper2)] * 2)
    assert [s.lower for s in search.slices] == pytest.approx([-lower2 / (50 + lower2)] * 2)
    assert search.bounds(0.99)[0] < search.bounds(0.95)[0]
    d = np.zeros(100)
    d[:3] = 1.0  # items 0 and 2 are even
    search = m.worst_slice(d, family, accuracy=True)
    assert search.worst.name == "x=0" and search.worst.damage == 0.04
    assert search.worst.upper == pytest.approx(-m.tango(2, 0, 50).lower)
    with pytest.raises(ValueError, match=r"\[worst_slice\] expected damage of accuracy"):
        m.worst_slice(d * 0.5, family, accuracy=True)
    with pytest.raises(ValueError, match=r"\[worst_slice\] expected damage of shape \[100\]"):
        m.worst_slice(d[:9], family)


def test_slices_without_any_damage_have_bounds_of_zero():
    family = slices.slices_by_key([{"x": str(i % 2)} for i in range(100)])
    search = m.worst_slice(np.zeros(100), family)
    assert search.bounds(0.95) == (0.0, 0.0)
    assert {s.p_damage for s in search.slices} == {1.0}


def test_small_whole_and_repeated_slices_are_not_searched():
    values = [
        {"lang": "en", "part": "a" if i < 29 else "b", "again": str(i < 50)} for i in range(99)
    ]
    names = slices.slices_by_key(values).names
    assert names == ("again=False", "again=True", "part=b")
    family = slices.slices_by_key(values)
    assert slices.pairs_of(family).names == ()
    assert (family + family).names == family.names
    assert slices.pairs_of(family, n_min=10).names == ("again=True, part=b",)
    empty = m.worst_slice(np.zeros(5), slices.slices_by_key([{}] * 5))
    assert empty.worst is None and "at least 30 items" in empty.reason
    with pytest.raises(ValueError, match=r"\[worst_slice\] expected at least one slice"):
        empty.bounds(0.95)


def test_contrast_finds_the_damaged_slice():
    rng = np.random.default_rng(0)
    d = rng.normal(0.0, 0.05, 400)
    d[:80] += 0.05
    family = slices.slices_by_key([{"fifth": str(i // 80)} for i in range(400)])
    search = m.worst_slice(d, family, resampling=m.Resampling(resamples=999))
    assert search.worst.name == "fifth=0"
    assert search.worst.p_contrast < 0.01 and search.worst.p_damage < 0.01
    assert min(s.p_contrast for s in search.slices if s.name != "fifth=0") > 0.05


@st.composite
def _pairs_of_models(draw):
    n = draw(st.integers(2, 25))
    # Sixteenths keep distinct values apart by more than the tolerance.
    step = st.integers(-400, 0).map(lambda v: v / 16)
    sizes = draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))
    a, b = (
        [np.array(draw(st.lists(step, min_size=k, max_size=k, unique=True))) for k in sizes]
        for _ in range(2)
    )
    gold = np.array([draw(st.integers(-1, k - 1)) for k in sizes])
    return a, b, gold


def _everything(a, b, gold, ids):
    first, second = (m.Scores.from_arrays(z, gold, ids=ids) for z in (a, b))
    out = {f"a.{name}": value.value for name, value in m.summarize(first).items()}
    out |= {
        name: value.value for name, value in m.differences(m.panel(first), m.panel(second)).items()
    }
    out |= {name: value.value for name, value in m.divergences(first, second).items()}
    known = first.labelled
    out |= {
        name: getattr(m, name)(first.correct[known], second.correct[known]).value
        for name in ("rr", "rw", "wr", "ww", "flips")
    }
    return out


@settings(max_examples=25, deadline=None)
@given(_pairs_of_models(), st.integers(0, 2**31))
def test_order_of_items_and_of_choices_does_not_matter(models, seed):
    a, b, gold = models
    rng = np.random.default_rng(seed)
    n = len(a)
    ids = [f"{index:02d}" for index in range(n)]
    before = _everything(a, b, gold, ids)
    # A shuffle of the items, and of each item's choices with its gold.
    order = rng.permutation(n)
    shuffles = [rng.permutation(len(a[i])) for i in order]
    moved = [
        gold[i] if gold[i] < 0 else int(np.flatnonzero(s == gold[i])[0])
        for i, s in zip(order, shuffles, strict=True)
    ]
    after = _everything(
        [a[i][s] for i, s in zip(order, shuffles, strict=True)],
        [b[i][s] for i, s in zip(order, shuffles, strict=True)],
        np.array(moved),
        [ids[i] for i in order],
    )
    # A common class exists only where choices keep their index: these depend on it for real.
    for name in before:
        if name.split(".")[-1] in ("sce", "ace_nixon", "tace", "debiased_l2_marginal", "ece_null"):
            continue
        assert (before[name] is None) == (after[name] is None), name
        if before[name] is not None:
            assert after[name] == pytest.approx(before[name], abs=1e-12), name


def test_order_of_choices_changes_no_bit():
    rng = np.random.default_rng(0)
    z = rng.normal(0.0, 30.0, (400, 5))
    shuffled = rng.permuted(z, axis=1)
    before, after = (m.Distributions.from_scores(x) for x in (z, shuffled))
    assert before.confidence.tolist() == after.confidence.tolist()
    assert before.entropy.tolist() == after.entropy.tolist()


@pytest.mark.parametrize("which", ["v1", "v2"])
def test_permuted_class_ids_change_paper_code_only(which):
    pair = getattr(golden, which)()
    order = np.arange(pair.a.shape[1])[::-1]
    gold = order[pair.y]
    ids = [str(index) for index in range(len(gold))]
    before = _everything(pair.a, pair.b, pair.y, ids)
    after = _everything(pair.a[:, order], pair.b[:, order], gold, ids)
    assert after == pytest.approx(before, abs=1e-12)
    changed = abs(m.paper_code.ece(pair.a[:, order], gold) - m.paper_code.ece(pair.a, pair.y))
    assert changed > 1e-3


def test_shards_in_any_order_give_identical_numbers():
    pair = golden.v1()
    ids = np.array([f"{index:03d}" for index in range(500)])
    before = m.summarize(m.Scores.from_arrays(pair.a, pair.y, ids=list(ids)))
    order = np.concatenate([np.arange(500)[s::7] for s in (3, 0, 6, 1, 5, 2, 4)])
    moved = m.Scores.from_arrays(pair.a[order], pair.y[order], ids=list(ids[order]))
    after = m.summarize(moved)
    for name, value in before.items():
        if name != "ece_null":
            assert float(after[name]) == pytest.approx(float(value), abs=1e-12), name


def test_normalised_entropy_divides_each_item_by_its_own_ln_k():
    """A certain pair, an even pair, an even triple, and one choice, which has no ln K."""
    rows = [np.array([0.0, -1e3]), np.zeros(2), np.zeros(3), np.zeros(1)]
    scores = m.Scores.from_arrays(rows)
    found = m.summarize(scores, resampling=m.Resampling(resamples=200))["entropy_normalised"]
    assert found.n == 3 and float(found) == pytest.approx(2 / 3, abs=1e-12)
    assert found.lower is not None and 0.0 <= found.lower <= found.upper <= 1.0
    moved = m.differences(m.panel(scores), m.panel(scores))["entropy_normalised"]
    assert moved.value == 0.0 and moved.n == 3
    alone = m.summarize(m.Scores.from_arrays([np.zeros(1)]))["entropy_normalised"]
    assert alone.value is None and alone.reason == "no items"


def test_summary_equals_the_single_functions_and_carries_intervals():
    pair = golden.v1()
    scores = m.Scores.from_arrays(pair.a, pair.y, rule="char")
    draw = m.Resampling(resamples=500)
    table = m.summarize(scores, resampling=draw)
    c, r = scores.distributions.confidence, scores.correct
    single = {
        "ece": m.ece(c, r, resampling=draw),
        "ece_mass": m.ece_mass(c, r, resampling=draw),
        "debiased_l1": m.debiased_l1(c, r, resampling=draw),
        "acc": m.acc(r, resampling=draw),
        "conf": m.conf(c, resampling=draw),
        "conf_err": m.conf_err(c, r, resampling=draw),
        "nll": m.nll(scores, resampling=draw),
        "entropy_normalised": m.entropy(scores, unit="normalised", resampling=draw),
        "brier": m.brier(scores, resampling=draw),
        "auroc": m.auroc(c, r, resampling=draw),
    }
    for name, wanted in single.items():
        got = table[name]
        assert (got.lower, got.upper) == pytest.approx((wanted.lower, wanted.upper)), name
        assert float(got) == pytest.approx(float(wanted)), name
        assert got.interval == wanted.interval and got.extra["rule"] == "char"


def test_rolling_windows_score_every_token_once():
    windows = perplexity.rolling_windows(10, 4)
    shown = [(list(context), list(targets)) for context, targets in windows]
    assert shown == [([-1], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    for n in range(13):
        targets = [t for _, window in perplexity.rolling_windows(n, 5) for t in window]
        assert targets == list(range(n))
    assert perplexity.rolling_windows(3, 8) == [(range(-1, 0), range(3))]


def test_perplexity_protocols_differ():
    nll, windows = [1.0, 2.0, 3.0, 6.0], [0, 0, 0, 1]
    assert float(m.ppl(nll)) == pytest.approx(math.exp(3.0))
    assert float(m.ppl(nll, protocol="gptq", windows=windows)) == pytest.approx(math.exp(4.0))
    assert float(perplexity.hf_stride_ppl([6.0, 2.0], [3, 1], [4, 2])) == pytest.approx(
        math.exp((2 * 4 + 2 * 2) / 6)
    )
    assert m.ppl([]).value is None


def test_change_of_text_nll_resamples_windows():
    rng = np.random.default_rng(0)
    windows = np.repeat(np.arange(40), 25)
    a = rng.normal(3.0, 1.0, 1000)
    b = a + 0.05 + rng.normal(0, 0.1, 40)[windows]
    change = m.d_text_nll(a, b, windows=windows, resampling=m.Resampling())
    naive = m.d_text_nll(a, b)
    assert float(change) == pytest.approx((b - a).mean())
    assert change.extra["se"] > 3 * naive.extra["se"]
    assert change.lower < change < change.upper
    assert change.extra["ratio_lower"] == pytest.approx(math.exp(change.lower))
    assert change.extra["windows"] == 40
    single = m.d_text_nll(a, b, windows=np.zeros(1000), resampling=m.Resampling())
    assert single.lower is None and "2 windows" in single.reason


def test_few_windows_have_students_interval():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(9), 20)
    a = rng.normal(3.0, 1.0, 180)
    b = a + rng.normal(0.05, 0.03, 9)[labels]
    change = m.d_text_nll(a, b, windows=labels, resampling=m.Resampling())
    means = np.bincount(labels, b - a) / 20
    expected = m.t_interval(means)
    assert change.interval == "t" and change.resamples is None
    assert (change.lower, change.upper) == pytest.approx((expected.lower, expected.upper))
    # Windows of unequal length: the clustered standard error of the mean per token.
    keep = np.arange(180) % 7 != labels
    uneven = m.d_text_nll(a[keep], b[keep], windows=labels[keep], resampling=m.Resampling())
    half = (uneven.upper - uneven.lower) / 2
    assert half == pytest.approx(2.306004135 * uneven.extra["se"])


def test_interval_of_few_windows_covers_more_often_than_a_bootstrap():
    rng, runs, hits = np.random.default_rng(0), 400, np.zeros(2)
    draw = m.Resampling(resamples=299)
    for _ in range(runs):
        units = np.stack([rng.normal(1.0, 0.6, 9), np.full(9, 20.0)], axis=1)
        student = perplexity.window_interval(units, draw)
        sums = resampled_sums(units, draw)
        boot = percentile(sums[:, 0] / sums[:, 1], draw)
        hits += [one.lower <= 1.0 / 20.0 <= one.upper for one in (student, boot)]
    # Nominal 95 %; three standard errors of the simulation are 3.3 %.
    assert hits[0] / runs >= 0.95 - 0.033
    assert hits[1] < hits[0]


def test_detokeniser_and_word_count():
    page = ' = Robert <unk> = \n He said : " hello " ( x ) , 3 @.@ 5 @-@ fold ; it \'s . \n'
    assert perplexity.detokenize_wikitext(page) == (
        ' = Robert <unk> =\nHe said: "hello" (x), 3.5-fold; it\'s.\n'
    )
    assert perplexity.count_words(" a b\n") == 4


def test_repetition_edges():
    assert m.seq_rep_n([[1, 2]], 3).value is None
    assert float(m.seq_rep_n([[1, 1, 1], [1]], 2)) == 0.5
    assert m.seq_rep_n([[1, 1, 1], [1]], 2).extra["left_out"] == 1
    assert float(m.distinct_n([[1, 1, 1]], 2)) == 0.5
    assert float(m.distinct_n_tok([[1, 1, 1]], 2)) == pytest.approx(1 / 3)
    assert m.dup_rate(["the of"]).value is None
    assert len(m.dup_rate(["x"]).extra["stop_words_sha256"]) == 64


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ([1] * 24, True),
        ([1] * 23, False),
        ([9] * 5 + [1, 2, 3] * 8, True),
        ([9] * 5 + [1, 2, 3] * 7, False),
        (list(range(64)) * 3, True),
        (list(range(65)) * 3, False),
        ([1] * 24 + [2], False),
        ([], False),
    ],
)
def test_loops(text, loops):
    assert float(m.loop_rate([text])) == float(loops)


def test_prefix_and_length():
    result = m.greedy_prefix([[1, 2, 3, 4], [5]], [[1, 2, 9], [5]])
    assert float(result) == 0.75 and result.extra["identical"] == 0.5
    assert float(m.len_tokens([[1, 2], [1]])) == 1.5
    assert float(m.nonterm_rate([True, False])) == 0.5


@pytest.mark.parametrize("n", [2, 10, 30])
def test_intervals_of_few_items_hold_the_mean(n):
    """400 samples of normal values: without Student's t 29 % of the intervals of 2 items hold the
    mean, and 91 % of those of 10."""
    from scipy.stats import binom

    draw, rng = m.Resampling(resamples=400), np.random.default_rng(n)
    found = [m.mean_difference(rng.normal(size=n), resampling=draw) for _ in range(400)]
    assert {one.interval for one in found} == {"bca_t"}
    held = sum(one.lower <= 0.0 <= one.upper for one in found)
    # A true coverage between 95 and 97.5 % (the union of two intervals) leaves this band once in
    # 10,000 cases on either side.
    assert binom.ppf(1e-4, 400, 0.95) <= held <= binom.ppf(1 - 1e-4, 400, 0.975)
