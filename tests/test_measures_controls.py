"""Controls of a comparison (noise floor, regression to the mean, thresholds, recalibration, flips,
scoring rules, conformal sets, direction, draws, layers) against the golden vectors."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import golden
from calibit import measures as m
from calibit.measures.calibrators import LogisticFit, fit_logistic, log_loss
from calibit.measures.thresholds import coverage_threshold, risk_threshold

TIGHT = {"abs": 6e-11, "rel": 0.0}  # ten printed digits, rounded
DRAWN = 5e-4  # ends of intervals from another generator's draws


@functools.cache
def v1() -> golden.Pair:
    return golden.v1()


@functools.cache
def reruns() -> dict[str, np.ndarray]:
    return {f"run {index}": z for index, z in enumerate(golden.v5(v1().A) / 10000.0)}


@functools.cache
def d(side: str) -> m.Distributions:
    return m.Distributions.from_scores(getattr(v1(), side))


# 9.1 -------------------------------------------------------------------------------------------


@functools.cache
def floor() -> m.NoiseFloor:
    return m.noise_floor(v1().a, v1().b, reruns(), v1().y)


def test_noise_floor_of_v5():
    flips, kl = floor().magnitudes["all_flips"], floor().magnitudes["kl_ab"]
    assert [500 * rate for rate in flips.runs.values()] == pytest.approx([1, 2, 2])
    assert flips.floor == pytest.approx(0.0033333333, **TIGHT) and flips.largest == 0.004
    assert list(kl.runs.values()) == pytest.approx(
        [3.1696349626e-05, 3.0146534681e-05, 3.1453409939e-05], abs=6e-16
    )
    assert float(flips.excess) == pytest.approx(0.0966666667, **TIGHT)
    assert (flips.excess.lower, flips.excess.upper) == pytest.approx(
        (0.0726666667, 0.1246666667), abs=6e-11
    )
    assert float(kl.excess) == pytest.approx(0.0302499899, **TIGHT)
    assert (kl.excess.lower, kl.excess.upper) == pytest.approx((0.02786108, 0.0328978), abs=6e-9)
    assert kl.excess.unit == "nats" and kl.excess.interval == "bca"
    assert {x.state for x in floor().magnitudes.values()} == {"above_floor"}
    assert {x.p for x in floor().magnitudes.values()} == {1 / 10000}  # the smallest possible


def test_signed_changes_of_v5_are_printed_beside_the_candidate():
    signed = floor().signed["conf_true"]
    assert list(signed.runs.values()) == pytest.approx(
        [-0.0001654979, -0.0001622529, -0.0002505513], **TIGHT
    )
    assert signed.sigma0 == pytest.approx(0.0001970546, **TIGHT)
    assert signed.candidate == pytest.approx(-0.0166214007, **TIGHT)
    assert signed.ratio == pytest.approx(0.0166214007 / 0.0001970546, rel=1e-6)
    assert set(floor().signed) == {"acc", "conf_true", "nll", "ece"}


# 9.2 -------------------------------------------------------------------------------------------


@functools.cache
def initial() -> m.InitialConfidence:
    runs = list(reruns().values())
    forms = ((runs[0], v1().b), (runs[1], v1().b))
    return m.initial_confidence(v1().a, v1().b, v1().y, forms=forms, perturbed=runs)


def test_slopes_of_v1():
    found = initial()
    assert float(found.naive["conf_true"]) == pytest.approx(-0.0138541871, **TIGHT)
    assert float(found.naive["conf"]) == pytest.approx(-0.1384678908, **TIGHT)
    assert found.naive["conf"].extra["label"] == "naive"
    assert found.oldham.slope == pytest.approx(-0.0017775141, **TIGHT)
    assert found.oldham.r == pytest.approx(-0.0032768661, **TIGHT)
    assert found.oldham.t == pytest.approx(-0.0731266529, **TIGHT)
    assert float(found.perturbed["conf_true"].excess) == pytest.approx(-0.0140636205, **TIGHT)
    assert float(found.perturbed["conf"].excess) == pytest.approx(-0.1381926353, **TIGHT)
    assert float(found.split["conf"]) == pytest.approx(-0.1374639429, **TIGHT)
    assert float(found.iv["conf"]) == pytest.approx(-0.1375157509, **TIGHT)


def test_bins_by_initial_confidence_of_v1():
    wanted = [
        -0.0043369655, -0.0128044495, -0.0213213616, -0.0171616556, -0.0303731388,
        -0.0193865123, -0.0131059857, -0.0123172436, -0.0158138143, -0.0195928799,
    ]  # fmt: skip
    bins = initial().bins
    assert [row.change for row in bins] == pytest.approx(wanted, **TIGHT)
    # Logits uniform within 0.02 move p by 0.003 (sd), the mean of 50 items by 4e-4; five of those.
    assert all(-2e-3 < row.null_lower <= row.null <= row.null_upper < 2e-3 for row in bins)


def test_excess_slope_is_tested_against_the_spread_of_the_copies():
    null = initial().perturbed["conf"]
    spread = np.std(null.slopes, ddof=1)
    wanted = float(null.excess) / (spread * math.sqrt(1 + 1 / 3))
    assert null.test.statistic == pytest.approx(wanted) and null.test.df == 2
    assert null.excess.lower < null.excess < null.excess.upper < 0
    assert not initial().claim and "8 perturbed copies" in initial().reason


# 9.3 -------------------------------------------------------------------------------------------


@functools.cache
def transfer() -> m.ThresholdTransfer:
    return m.threshold_transfer(v1().a, v1().b, v1().y, coverage=0.5, in_sample=True)


def test_threshold_for_a_coverage_on_v1():
    found = transfer()
    assert found.tau == pytest.approx(0.6638490069, **TIGHT)
    a, b, rescaled = found.a, found.b, found.rescaled
    assert (a.coverage, a.risk, a.false_accepts) == pytest.approx((0.5, 0.44, 0.22))
    assert (a.far, a.frr) == pytest.approx((0.5045871560, 0.5035460993), **TIGHT)
    assert (b.coverage, b.risk, b.false_accepts) == pytest.approx(
        (0.474, 0.4345991561, 0.206), **TIGHT
    )
    assert (b.far, b.frr) == pytest.approx((0.4639639640, 0.5179856115), **TIGHT)
    assert (rescaled.coverage, rescaled.risk, rescaled.false_accepts) == pytest.approx(
        (0.484, 0.4338842975, 0.21), **TIGHT
    )
    assert found.tau_restored == pytest.approx(0.6483594655, **TIGHT)
    assert (found.restored.coverage, found.restored.risk) == pytest.approx((0.5, 0.436))
    assert (found.accepts.rw, found.accepts.wr) == (43, 30)
    assert found.accepts.p == pytest.approx(0.1597116831, **TIGHT)


def test_change_splits_into_temperature_and_shift():
    found = transfer()
    for name, change in found.change.items():
        parts = found.temperature_part[name] + found.shift_part[name]
        assert float(change) == pytest.approx(parts, abs=1e-15), name
        assert change.lower < change < change.upper, name
    assert float(found.change["coverage"]) == pytest.approx(-0.026)
    assert found.change["coverage"].interval == "tango"
    assert found.change["risk"].interval == "percentile"


def test_threshold_for_a_risk_on_v1():
    found = m.threshold_transfer(v1().a, v1().b, v1().y, risk=0.35, in_sample=True)
    assert found.tau == pytest.approx(0.7926005471, **TIGHT)
    assert 500 * found.a.coverage == pytest.approx(129)
    assert found.a.risk == pytest.approx(0.3488372093, **TIGHT)
    assert (found.b.coverage, found.b.risk) == pytest.approx((0.216, 0.3425925926), **TIGHT)
    assert found.tau_restored == pytest.approx(0.7580805343, **TIGHT)
    assert 500 * found.restored.coverage == pytest.approx(144)


def test_logistic_fits_of_v1():
    for fit, wanted in (
        (transfer().logistic_a, (0.2621430614, -0.0642836038)),
        (transfer().logistic_b, (0.2299773829, -0.0447132156)),
    ):
        assert (fit.alpha, fit.beta) == pytest.approx(wanted, **TIGHT)


def test_thresholds_are_judged_on_other_folds():
    found = m.threshold_transfer(v1().a, v1().b, v1().y, coverage=0.5)
    assert found.folds == 5 and not found.in_sample
    assert found.tau == transfer().tau  # the one to use comes from all items
    fold, c = m.folds_of([str(i) for i in range(500)]), d("a").confidence
    accept = np.zeros(500)
    for f in range(5):
        accept[fold == f] = c[fold == f] >= coverage_threshold(c[fold != f], 0.5)
    assert found.a.coverage == accept.mean()


# 9.4 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "temperature", "before", "after"),
    [
        ("a", 1.5640902897, 1.1131225080, 1.0527075556),
        ("b", 1.5096017035, 1.1207581235, 1.0715263183),
    ],
)
def test_temperature_of_v1(side, temperature, before, after):
    fit = m.fit_temperature(d(side), v1().y)
    assert fit.value == pytest.approx(temperature, **TIGHT) and not fit.clipped
    assert float(m.nll(d(side), v1().y)) == pytest.approx(before, **TIGHT)
    assert float(m.nll(fit.apply(d(side)), v1().y)) == pytest.approx(after, **TIGHT)


def test_label_free_temperature_of_v1_and_of_tokens():
    fit = m.label_free_temperature(d("a"), d("b"))
    assert fit.value == pytest.approx(0.9780931213, **TIGHT)
    rescaled = fit.apply(d("b"))
    assert float(m.nll(rescaled, v1().y)) == pytest.approx(1.1268450084, **TIGHT)
    assert float(m.kl_ab(d("a"), d("b"))) == pytest.approx(0.0302810887, **TIGHT)
    assert float(m.kl_ab(d("a"), rescaled)) == pytest.approx(0.0301411184, **TIGHT)
    tokens = golden.v4()
    assert m.label_free_temperature(tokens.a, tokens.b).value == pytest.approx(
        1.0231169989, **TIGHT
    )


@pytest.mark.parametrize(
    ("side", "alpha", "beta", "platt", "isotonic", "blocks"),
    [
        ("a", 0.2990748211, 0.0120650040, 0.2418785996, 0.2311239390, 10),
        ("b", 0.2354855751, 0.0533988489, 0.2445715054, 0.2388940755, 9),
    ],
)
def test_maps_of_the_top_answer_of_v1(side, alpha, beta, platt, isotonic, blocks):
    right = (d(side).predicted == v1().y).astype(float)
    fit = m.fit_platt(d(side), right)
    assert (fit.alpha, fit.beta) == pytest.approx((alpha, beta), **TIGHT)
    assert float(m.brier_top1(fit.apply(d(side)), right)) == pytest.approx(platt, **TIGHT)
    steps = m.fit_isotonic(d(side).confidence, right)
    assert float(m.brier_top1(steps.apply(d(side)), right)) == pytest.approx(isotonic, **TIGHT)
    assert len(steps.values) == len(steps.knots) == blocks


# 9.7 -------------------------------------------------------------------------------------------


@functools.cache
def anatomy() -> m.FlipAnatomy:
    return m.flip_anatomy(v1().a, v1().b, v1().y, reruns=reruns())


def test_cells_of_v1():
    wanted = {
        "conf_a": (0.7008610526, 0.5214760433, 0.4766990189, 0.6720879370, 0.4019659960),
        "conf_b": (0.6793724712, 0.5272085055, 0.4575688435, 0.6569286211, 0.4409226376),
        "margin": (0.4974005005, 0.1448677231, 0.1130982926, 0.4480980558, 0.0554488171),
        "d_conf_true": (-0.0214885814, -0.1621552966, 0.0994967048, -0.0043075081, -0.0063019617),
    }
    cells = anatomy().cells
    assert [cell.n for cell in cells] == [258, 24, 20, 192, 6]
    for name, means in wanted.items():
        spreads = [getattr(cell, name) for cell in cells]
        assert [spread.mean for spread in spreads] == pytest.approx(means, **TIGHT), name
        assert all(q[0] <= q[1] <= q[2] for q in (spread.quartiles for spread in spreads))


@pytest.mark.parametrize(
    ("theta", "errors", "corrections"), [(0.5, 15, 4), (0.6, 4, 1), (0.7, 1, 0), (0.9, 0, 0)]
)
def test_confident_errors_of_v1(theta, errors, corrections):
    found = m.flip_anatomy(
        v1().a, v1().b, v1().y, theta=theta, resampling=m.Resampling(resamples=100)
    )
    assert found.confident_errors.extra["count"] == errors
    assert found.confident_corrections.extra["count"] == corrections
    assert (found.confident_test.rw, found.confident_test.wr) == (errors, corrections)
    if not errors:
        assert found.confident_errors.upper == pytest.approx(0.0073506101, **TIGHT)


def test_perturbation_size_of_v1_and_of_the_reruns():
    sigma = anatomy().candidate.sigma
    assert float(sigma) == pytest.approx(0.491855, abs=5e-7) and sigma.unit == "nats"
    assert sigma.lower < sigma < sigma.upper
    assert [float(run.sigma) for run in anatomy().reruns.values()] == pytest.approx(
        [0.020207, 0.020469, 0.013011], abs=5e-7
    )


def test_flip_curve_of_v1_counts_every_flip():
    curve = anatomy().candidate.curve
    assert sum(row.flips for row in curve) == 50 and [row.n for row in curve] == [50] * 10
    assert all(row.lower <= row.rate <= row.upper for row in curve)
    band = m.wilson(curve[0].flips, 50)
    assert (curve[0].lower, curve[0].upper) == (band.lower, band.upper)
    # Maximum likelihood of one parameter need not meet the total, but comes close to it here.
    assert sum(row.expected for row in curve) == pytest.approx(50, rel=0.05)


# 9.8 -------------------------------------------------------------------------------------------


def test_attribution_of_pairwise_interactions_is_exact():
    solo, restored = [1.0, 2.0, 3.0], [1.3, 2.6, 2.9]
    phi, residual = m.shares(solo, restored, 6.4)
    assert phi.tolist() == pytest.approx([1.15, 2.3, 2.95]) and abs(residual) < 1e-12


def test_attribution_leaves_higher_orders_in_the_residual():
    phi, residual = m.shares([1.0, 2.0, 3.0], [1.6, 2.9, 3.2], 6.7)
    assert phi.tolist() == pytest.approx([1.3, 2.45, 3.1])
    assert residual == pytest.approx(-0.15)


# 9.9 -------------------------------------------------------------------------------------------


def test_variance_components_by_hand():
    found = m.draw_variance([[1, 2, 3], [2, 2, 5], [0, 3, 3], [1, 5, 5]])
    assert (found.ms_draw, found.ms_item, found.ms_res) == pytest.approx((28 / 3, 2, 1))
    assert (found.var_draw, found.var_item) == pytest.approx((25 / 12, 1 / 3))


def test_variance_components_of_v6():
    rows = np.arange(500)
    base = d("a").of(v1().y)[0]
    builds = [m.Distributions.from_scores(z / 10000.0) for z in golden.v6(v1().A)]
    change = np.stack([b.p.reshape(500, 4)[rows, v1().y] - base for b in builds], axis=1)
    found = m.draw_variance(change)
    assert found.builds == pytest.approx(
        (-0.0451309033, -0.0325374499, -0.0136395537, -0.0052582445), **TIGHT
    )
    assert (found.ms_draw, found.ms_item, found.ms_res) == pytest.approx(
        (0.1629858731, 0.0125726920, 0.0079696781), **TIGHT
    )
    assert found.var_draw == pytest.approx(3.1003238998e-04, abs=6e-15)
    assert found.var_item == pytest.approx(1.1507534774e-03, abs=6e-14)
    assert found.f == pytest.approx(20.4507472454, **TIGHT)
    assert (found.se_recipe, found.se_build) == pytest.approx((0.0091539305, 0.0181183126), **TIGHT)
    assert found.mean == pytest.approx(-0.0241415378, **TIGHT)
    assert (found.recipe.lower, found.recipe.upper) == pytest.approx(
        (-0.0532734301, 0.0049903544), **TIGHT
    )
    assert found.effect_below_draw
    assert math.sqrt(found.var_draw) == pytest.approx(0.0176077367, **TIGHT)


# 9.12 ------------------------------------------------------------------------------------------


def v8_models(rule: str) -> tuple[m.Scores, m.Scores]:
    """The literal items under a rule, and a candidate that gives every gold choice one nat less."""
    z, moved = [], []
    for item in golden.V8_ITEMS:
        texts, ll, tokens, unconditional = zip(*item, strict=True)
        counts = {
            "tokens": tokens,
            "chars": [len(t[1:]) for t in texts],
            "bytes": [len(t[1:].encode()) for t in texts],
            "unconditional": unconditional,
        }
        z.append(m.choice_scores(rule, ll, **counts))
        worse = [ll[0] - 1.0, *ll[1:]]
        moved.append(m.choice_scores(rule, worse, **counts))
    gold = np.zeros(3, dtype=np.int64)
    return m.Scores.from_arrays(z, gold, rule=rule), m.Scores.from_arrays(moved, gold, rule=rule)


def test_v8_under_every_rule():
    found = m.rule_sensitivity({rule: v8_models(rule) for rule in m.RULES})
    for rule in m.RULES:
        level = np.mean([item[1] for item in golden.V8_EXPECTED[rule]])
        assert found["conf_true"].levels[rule] == pytest.approx(level, **TIGHT)
        right = np.mean([item[0] == 0 for item in golden.V8_EXPECTED[rule]])
        assert found["acc"].levels[rule] == pytest.approx(right)
        assert float(found["conf_true"].changes[rule]) < 0
    # The rule moves the level by far more than the candidate moves it.
    assert found["conf_true"].level_range > 3


# 9.13 ------------------------------------------------------------------------------------------


def test_conformal_transfer_of_v1():
    first_half = np.arange(500) < 250
    found = m.conformal_transfer(v1().a, v1().b, v1().y, calibration=first_half)
    assert (found.n_calibration, found.n_test, found.rank) == (250, 250, 226)
    assert (found.q_a, found.q_b) == pytest.approx((0.9478747791, 0.9437765070), **TIGHT)
    sides = (found.a, found.transfer, found.recalibrated)
    assert [s.coverage for s in sides] == pytest.approx([0.932, 0.940, 0.940])
    assert [s.size for s in sides] == pytest.approx([2.644, 2.792, 2.748])
    assert [s.empty for s in sides] == [0, 0, 0]
    assert (found.test.rw, found.test.wr) == (2, 4) and found.test.p == pytest.approx(0.6875)
    assert float(found.coverage_loss) == pytest.approx(-0.008)
    assert float(found.inflation) == pytest.approx(2.748 - 2.644)
    assert (found.band.lower, found.band.upper) == pytest.approx((0.86053052, 0.93423399), abs=6e-9)


def test_conformal_splits_are_around_the_coverage_asked_for():
    found = m.conformal_transfer(v1().a, v1().b, v1().y)
    assert len(found.splits) == 6
    for side in ("a", "recalibrated"):
        mean, sd = found.splits[f"coverage.{side}"].mean, found.splits[f"coverage.{side}"].sd
        # Beta(226, 25) has mean 226/251 = 0.9004 and sd 0.019; the test half adds as much noise
        # again. The mean over 100 overlapping splits of the same items stays within one sd.
        assert abs(mean - 226 / 251) < 0.019 and 0.01 < sd < 0.04


# 9.14 ------------------------------------------------------------------------------------------


def test_direction_of_v4():
    tokens = golden.v4()
    found = m.direction(tokens.a, tokens.b, tokens.y)
    assert found.unsure_positions == 13
    assert float(found.unsure_share) == pytest.approx(0.2061595997, **TIGHT)
    assert found.unsure_share.extra["null"] == 13 / 64
    assert float(found.kl_entropy_correlation) == pytest.approx(0.1000915751, **TIGHT)
    assert float(found.d_log_conf_true) == pytest.approx(-0.0884396085, **TIGHT)
    assert float(found.d_conf_true) == pytest.approx(-0.0034032530, **TIGHT)
    assert found.silent_zone is None  # the floor is not known


# Outside implementations -----------------------------------------------------------------------


def test_isotonic_agrees_with_scipy():
    from scipy.optimize import isotonic_regression

    rng = np.random.default_rng(0)
    c = np.round(rng.random(300), 2)  # with ties
    r = (rng.random(300) < c).astype(float)
    knots, inverse, counts = np.unique(c, return_inverse=True, return_counts=True)
    wanted = isotonic_regression(np.bincount(inverse, r) / counts, weights=counts).x
    fit = m.fit_isotonic(c, r)
    got = np.asarray(fit.values)[np.searchsorted(fit.knots, knots, side="right") - 1]
    assert got == pytest.approx(wanted, abs=1e-12)


def test_temperature_minimises_the_nll():
    from scipy.optimize import minimize_scalar

    scaled = minimize_scalar(
        lambda log_t: float(m.nll(d("b").tempered(math.exp(log_t)), v1().y)),
        bounds=(-2, 2),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert m.fit_temperature(d("b"), v1().y).value == pytest.approx(math.exp(scaled.x), rel=1e-6)


def test_spearman_agrees_with_scipy():
    from scipy import stats

    tokens = golden.v4()
    base, other = (m.Distributions.from_scores(z) for z in (tokens.a, tokens.b))
    kl = m.fidelity.kl_values(base, other)
    wanted = stats.spearmanr(np.round(kl, 3), np.round(base.entropy, 2)).statistic
    ranks = [m.paired.average_ranks(x) for x in (np.round(kl, 3), np.round(base.entropy, 2))]
    assert np.corrcoef(*ranks)[0, 1] == pytest.approx(wanted, abs=1e-12)


def test_logistic_fit_agrees_with_a_general_optimiser():
    from scipy.optimize import minimize

    x = d("a").log_margin
    r = (d("a").predicted == v1().y).astype(float)
    wanted = minimize(
        lambda w: float(np.mean(np.logaddexp(0, w[0] * x + w[1]) - r * (w[0] * x + w[1]))),
        [0.0, 0.0],
        tol=1e-12,
    ).x
    fit = fit_logistic(x, r)
    assert (fit.alpha, fit.beta) == pytest.approx(tuple(wanted), abs=1e-5)


def test_f_test_agrees_with_scipy():
    from scipy import stats

    y = np.random.default_rng(0).normal(size=(40, 4)) + np.arange(4) * 0.1
    found = m.draw_variance(y)
    assert found.p == pytest.approx(stats.f.sf(found.f, 3, 117), rel=1e-10)


def test_thresholds_by_definition():
    rng = np.random.default_rng(1)
    c = np.round(rng.random(200), 2)
    r = (rng.random(200) < c).astype(float)
    assert coverage_threshold(c, 0.3) == np.sort(c)[::-1][59]
    tau = risk_threshold(c, r, 0.25)
    allowed = [t for t in np.unique(c) if np.sum(c >= t) >= 30 and np.mean(1 - r[c >= t]) <= 0.25]
    assert tau == min(allowed)


def test_log_loss_of_a_certain_error_is_infinite():
    assert log_loss(np.array([1.0, 0.5]), np.array([0.0, 1.0])).tolist() == pytest.approx(
        [math.inf, math.log(2)]
    )
    assert isinstance(fit_logistic(np.zeros(4), np.array([0.0, 1, 0, 1])), LogisticFit)
