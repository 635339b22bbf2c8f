"""Controls of a comparison at the edges: bad input, one class, no change, order, brute force."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

import golden
from calibit import measures as m
from calibit.measures.anatomy import perturbation
from calibit.measures.attribution import attribute
from calibit.measures.calibrators import fit_logistic
from calibit.measures.length_rules import _state
from calibit.measures.noise import WITHIN
from calibit.measures.thresholds import _redrawn_tau, _Setting, coverage_threshold, risk_threshold

FEW = m.Resampling(resamples=200, seed=3)


def pair(n: int = 60, *, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.normal(0.0, 1.5, (n, k))
    gold = np.array([rng.choice(k, p=p) for p in golden.softmax(a)])
    return a, a + rng.normal(0.0, 0.4, a.shape), gold


CONTROLS = {
    "noise_floor": lambda a, b, y: m.noise_floor(a, b, {"x": b}, y, resampling=FEW),
    "initial_confidence": lambda a, b, y: m.initial_confidence(a, b, y, resampling=FEW),
    "threshold_transfer": lambda a, b, y: m.threshold_transfer(
        a, b, y, coverage=0.5, resampling=FEW
    ),
    "calibration_gain": lambda a, b, y: m.calibration_gain(b, y, reference=a, resampling=FEW),
    "flip_anatomy": lambda a, b, y: m.flip_anatomy(a, b, y, resampling=FEW),
    "conformal_transfer": lambda a, b, y: m.conformal_transfer(a, b, y, resampling=FEW),
    "direction": lambda a, b, y: m.direction(a, b, y, resampling=FEW),
}
LABELLED = [name for name in CONTROLS if name != "noise_floor"]


@pytest.mark.parametrize("control", CONTROLS)
def test_nothing_to_measure_is_refused(control):
    none = np.empty((0, 4))
    with pytest.raises(
        ValueError, match=rf"\[{control}.*\] expected at least one .*item, got none"
    ):
        CONTROLS[control](none, none, np.empty(0, dtype=np.int64))


@pytest.mark.parametrize("control", LABELLED)
def test_unlabelled_items_alone_are_refused(control):
    a, b, _ = pair()
    with pytest.raises(ValueError, match=rf"\[{control}\] expected at least one labelled item"):
        CONTROLS[control](a, b, np.full(60, -1))


@pytest.mark.parametrize("control", LABELLED)
def test_an_item_with_one_choice_is_refused_by_name(control):
    a, b, gold = pair()
    a, b = list(a), list(b)
    a[7], b[7], gold[7] = a[7][:1], b[7][:1], 0
    with pytest.raises(ValueError, match=r"at least 2 choices per item, got 1 in item '7'"):
        CONTROLS[control](a, b, gold)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b.__setitem__((3, 0), np.nan), "NaN or inf in item 3"),
        (lambda b: b.__setitem__((5, 1), np.inf), "NaN or inf in item 5"),
    ],
)
def test_scores_that_are_not_finite_are_refused_by_item(control, damage, message):
    a, b, gold = pair()
    damage(b)
    with pytest.raises(ValueError, match=message):
        CONTROLS[control](a, b, gold)


@pytest.mark.parametrize("control", CONTROLS)
def test_probabilities_are_not_taken_for_scores(control):
    a, b, gold = pair()
    with pytest.raises(ValueError, match="expected log scores, got probabilities"):
        CONTROLS[control](golden.softmax(a), b, gold)


def test_probabilities_that_do_not_sum_to_one_are_refused_by_item():
    p = golden.softmax(pair()[0])
    p[11, 0] += 0.01
    with pytest.raises(ValueError, match=r"sum to 1, got a sum of 1.01 in item 11"):
        m.Distributions.from_probabilities(p)


@pytest.mark.parametrize("control", CONTROLS)
def test_items_that_do_not_pair_are_refused(control):
    a, b, gold = pair()
    with pytest.raises(ValueError, match="expected the same items in a and b, got 60 and 59"):
        CONTROLS[control](a, b[:-1], gold)
    ragged = list(b)
    ragged[4] = ragged[4][:3]
    with pytest.raises(ValueError, match="equal numbers of choices, got 4 and 3 in item 4"):
        CONTROLS[control](a, ragged, gold)


def test_scores_of_other_items_or_labels_are_refused_by_name():
    a, b, gold = pair(3)
    first = m.Scores.from_arrays(a, gold, ids=["x", "y", "z"])
    moved = m.Scores.from_arrays(b, gold, ids=["x", "z", "y"])
    with pytest.raises(ValueError, match="same items in the same order in a and b, got items/y"):
        m.flip_anatomy(first, moved)
    other = m.Scores.from_arrays(b, (gold + 1) % 4, ids=["x", "y", "z"])
    with pytest.raises(ValueError, match=r"same right choice in a and b, got . and . in item 'x'"):
        m.flip_anatomy(first, other)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("answer", ["all right", "all wrong"])
def test_one_class_only_gives_numbers_or_reasons(control, answer):
    a, b, _ = pair()
    best = a.argmax(1)
    for column in (a, b):
        column[np.arange(60), best] += 20.0
    gold = best if answer == "all right" else (best + 1) % 4
    found = CONTROLS[control](a, b, gold).to_dict()
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("control", CONTROLS)
def test_different_numbers_of_choices_are_measured(control):
    a, b, gold = pair(90)
    a = [row[: 2 + index % 3] for index, row in enumerate(a)]
    b = [row[: 2 + index % 3] for index, row in enumerate(b)]
    gold = np.minimum(gold, 1)
    json.dumps(CONTROLS[control](a, b, gold).to_dict(), allow_nan=False)


def _flat(value: object, path: str = "") -> dict[str, float]:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in ("lower", "upper", "p", "p_value")}
        return {k: v for key, x in kept.items() for k, v in _flat(x, f"{path}.{key}").items()}
    if isinstance(value, list):
        return {k: v for i, x in enumerate(value) for k, v in _flat(x, f"{path}.{i}").items()}
    return {path: float(value)} if isinstance(value, int | float) else {}


@pytest.mark.parametrize("control", CONTROLS)
def test_order_of_items_and_of_choices_does_not_matter(control):
    a, b, gold = pair(150)
    rng = np.random.default_rng(5)
    ids = [f"item-{index}" for index in range(150)]
    order = rng.permutation(150)
    shuffles = rng.permuted(np.tile(np.arange(4), (150, 1)), axis=1)
    moved = np.array([int(np.flatnonzero(shuffles[i] == gold[i])[0]) for i in range(150)])
    before = [m.Scores.from_arrays(z, gold, ids=ids) for z in (a, b)]
    after = [
        m.Scores.from_arrays(
            np.take_along_axis(z, shuffles, axis=1)[order],
            moved[order],
            ids=[ids[i] for i in order],
        )
        for z in (a, b)
    ]
    first, second = (_flat(CONTROLS[control](*side, None).to_dict()) for side in (before, after))
    assert first.keys() == second.keys() and len(first) > 5
    # Standard errors follow from the values; draws, and what they bound, depend on the order.
    for name, value in first.items():
        assert second[name] == pytest.approx(value, abs=1e-12), name


def test_folds_of_the_specification():
    wanted = {"arc_easy-0": 2, "arc_easy-1": 4, "boolq-0": 1, "hellaswag-1": 1}
    assert m.folds_of(list(wanted)).tolist() == list(wanted.values())
    with pytest.raises(ValueError, match=r"\[folds\] expected at least 2 folds, got 1"):
        m.folds_of(["x"], 1)


# Noise floor -----------------------------------------------------------------------------------


def test_a_rerun_as_candidate_is_not_above_the_floor():
    a, _, gold = pair(200)
    rng = np.random.default_rng(9)
    runs = [a + rng.normal(0, 0.05, a.shape) for _ in range(4)]
    found = m.noise_floor(a, runs[0], {str(i): z for i, z in enumerate(runs[1:])}, gold)
    assert {x.state for x in found.magnitudes.values()} == {WITHIN}
    assert all(x.p > 0.01 for x in found.magnitudes.values())


def test_relabelling_p_agrees_with_every_relabelling():
    a, b, _ = pair(8, seed=4)
    run = a + np.random.default_rng(1).normal(0, 0.35, a.shape)
    found = m.noise_floor(a, b, {"x": run}).magnitudes["tv"]
    tv = [np.abs(golden.softmax(a) - golden.softmax(z)).sum(1) / 2 for z in (run, b)]
    e = tv[1] - tv[0]
    means = [np.mean(signs * e) for signs in np.array(list(itertools.product((-1, 1), repeat=8)))]
    exact = np.mean(np.array(means) >= e.mean() - 1e-12)
    assert 0.02 < exact < 0.98
    # Three standard errors of 9,999 random relabellings.
    assert found.p == pytest.approx(exact, abs=3 * math.sqrt(exact * (1 - exact) / 9999) + 1e-4)


def test_batches_are_relabelled_and_resampled_whole():
    a, _, gold = pair(60)
    rng = np.random.default_rng(2)
    noise = np.repeat(rng.normal(0, 0.3, (6, 1)), 10, axis=0) * rng.normal(0, 1, a.shape)
    batches = np.repeat(np.arange(6), 10)
    single = m.noise_floor(a, a + noise, {"x": a + 0.1 * noise}, gold)
    whole = m.noise_floor(a, a + noise, {"x": a + 0.1 * noise}, gold, batches=batches)
    assert (single.clusters, whole.clusters) == (None, 6)
    # Six exchangeable units: no p value below 2^-6 is possible.
    assert all(x.p >= 2.0**-6 * 0.8 for x in whole.magnitudes.values())
    assert single.magnitudes["tv"].p < 1e-3


def test_a_repeat_that_differs_is_one_more_nuisance():
    a, b, gold = pair()
    same = m.noise_floor(a, b, {"x": a + 1e-3}, gold, repeat=a.copy(), resampling=FEW)
    assert same.deterministic is True and same.runs == ("x",)
    other = m.noise_floor(a, b, {}, gold, repeat=a + np.arange(4) * 1e-9, resampling=FEW)
    assert other.deterministic is False and other.runs == ("repeat",)
    with pytest.raises(ValueError, match="at least one re-run of the reference, got none"):
        m.noise_floor(a, b, {}, gold)
    exact = [m.Scores.from_arrays(z, gold) for z in (a, b, a)]
    found = m.noise_floor(exact[0], exact[1], {"x": a}, repeat=exact[2], resampling=FEW)
    assert found.deterministic is True
    assert found.signed["acc"].sigma0 == 0 and found.signed["acc"].ratio is None


# Initial confidence ----------------------------------------------------------------------------


def _noisy(rng, truth, size):
    """Two-choice items whose confidence is the true one plus noise, as log scores."""
    c = np.clip(truth + rng.normal(0, size, truth.shape), 0.51, 0.99)
    return np.log(np.stack([c, 1 - c], axis=1)), c


def test_instrument_recovers_the_true_slope_that_the_naive_view_turns_round():
    """Change = 0.2 (true confidence - 0.75), seen through errors as large as its spread."""
    rng = np.random.default_rng(0)
    n, truth = 20000, np.random.default_rng(1).uniform(0.65, 0.85, 20000)
    forms = []
    for _ in range(2):
        a, _ = _noisy(rng, truth, 0.04)
        b, _ = _noisy(rng, truth + 0.2 * (truth - 0.75), 0.04)
        forms.append((a, b))
    gold = np.zeros(n, dtype=np.int64)
    found = m.initial_confidence(*forms[0], gold, forms=tuple(forms), resampling=FEW)
    # Reliability = var(truth) / (var + 0.04^2) = 0.2^2/12 / (0.2^2/12 + 0.0016) = 0.676.
    assert float(found.split["conf"]) == pytest.approx(0.2 * 0.676, abs=0.02)
    assert found.iv["conf"].lower < 0.2 < found.iv["conf"].upper
    assert float(found.iv["conf"]) == pytest.approx(0.2, abs=0.03)
    assert float(found.naive["conf"]) < -0.1


def test_a_perturbation_of_the_candidates_size_explains_its_slope():
    a, _, gold = pair(800)
    rng = np.random.default_rng(3)

    def perturbed(extra: float) -> np.ndarray:
        """Noise, and a shrinkage of confidence where the model is unsure."""
        sure = golden.softmax(a).max(1, keepdims=True)
        return a * (1 - extra * (1 - sure)) + rng.normal(0, 0.3, a.shape)

    copies = [perturbed(0.0) for _ in range(10)]
    forms = ((a, a), (a, a))
    none = m.initial_confidence(a, perturbed(0.0), gold, perturbed=copies, forms=forms)
    assert none.perturbed["conf"].excess.lower < 0 < none.perturbed["conf"].excess.upper
    assert not none.claim and "does not exceed" in none.reason
    hit = m.initial_confidence(a, perturbed(0.8), gold, perturbed=copies)
    assert hit.perturbed["conf"].excess.lower > 0 and hit.perturbed["conf"].test.p < 0.01
    assert not hit.claim and "second form" in hit.reason


def test_a_claim_needs_both_controls():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.6, 0.95, 3000)
    gold = np.zeros(3000, dtype=np.int64)
    first, second = (_noisy(rng, truth, 0.01)[0] for _ in range(2))
    candidate = [_noisy(rng, truth - 0.3 * (0.95 - truth), 0.01)[0] for _ in range(2)]
    copies = [_noisy(rng, truth, 0.01)[0] for _ in range(9)]
    forms = ((first, candidate[0]), (second, candidate[1]))
    given = {"perturbed": copies, "forms": forms, "resampling": FEW}
    found = m.initial_confidence(first, candidate[0], gold, **given)
    assert found.claim and "exceeds" in found.reason
    against = ((first, first), (second, second + (truth[:, None] - 0.78) * [-1.0, 1.0]))
    given["forms"] = (against[1], against[1])
    denied = m.initial_confidence(first, candidate[0], gold, **given)
    assert not denied.claim and "contradicts" in denied.reason
    no_copies = m.initial_confidence(first, candidate[0], gold, resampling=FEW)
    assert not no_copies.claim and "no perturbed copies" in no_copies.reason


def test_bad_controls_of_initial_confidence_are_refused():
    a, b, gold = pair()
    with pytest.raises(ValueError, match="no perturbed copies or at least 2, got 1"):
        m.initial_confidence(a, b, gold, perturbed=[b])
    with pytest.raises(ValueError, match="same items in both forms, got 60 and 59 items"):
        short = gold.copy()
        short[0] = -1
        first = m.Scores.from_arrays(a, gold), m.Scores.from_arrays(b, gold)
        second = m.Scores.from_arrays(a, short), m.Scores.from_arrays(b, short)
        m.initial_confidence(*first, forms=(first, second))
    flat = m.initial_confidence(np.zeros((9, 4)), b[:9], gold[:9], perturbed=[b[:9]] * 2)
    assert flat.naive["conf"].value is None and flat.perturbed["conf"].test is None


# Thresholds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "value"), [("coverage", 0.4), ("risk", 0.3)])
def test_redrawn_thresholds_are_those_of_every_resample(target, value):
    a, _, gold = pair(80)
    base = m.Distributions.from_scores(np.round(a, 1))  # with equal confidences
    c, r = base.confidence, (base.predicted == gold).astype(float)
    index = np.random.default_rng(0).integers(0, 80, (50, 80))
    counts = np.array([np.bincount(row, minlength=80) for row in index]).astype(float)
    got = _redrawn_tau(_Setting(target, value, True, None), c, r)(counts)
    for row, tau in zip(index, got, strict=True):
        wanted = (
            coverage_threshold(c[row], value)
            if target == "coverage"
            else risk_threshold(c[row], r[row], value)
        )
        assert np.isnan(tau) if wanted is None else wanted == tau


def test_a_given_threshold_needs_no_folds():
    a, b, gold = pair()
    found = m.threshold_transfer(a, b, gold, tau=0.7, resampling=FEW)
    assert (found.tau, found.folds, found.tau_restored, found.restored) == (0.7, None, None, None)
    assert found.a.coverage == np.mean(golden.softmax(a).max(1) >= 0.7)


def test_a_risk_that_no_threshold_meets_has_a_reason():
    a, b, gold = pair(60)
    gold = (a.argmax(1) + 1) % 4
    found = m.threshold_transfer(a, b, gold, risk=0.1, resampling=FEW)
    assert found.tau is None and "no threshold" in found.reason
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "one of coverage, risk and tau, got none"),
        ({"coverage": 0.5, "tau": 0.5}, "got coverage, tau"),
        ({"coverage": 0.0}, "a coverage between 0 and 1, got 0.0"),
        ({"risk": 1.0}, "a risk between 0 and 1, got 1.0"),
        ({"tau": 1.5}, "a tau between 0 and 1, got 1.5"),
    ],
)
def test_targets_of_thresholds_are_checked(given, message):
    with pytest.raises(ValueError, match=rf"\[threshold_transfer\] expected {message}|{message}"):
        m.threshold_transfer(*pair(), **given)


def test_a_pure_temperature_is_all_temperature_part():
    a, _, gold = pair(400)
    found = m.threshold_transfer(a, a / 1.7, gold, coverage=0.5, resampling=FEW)
    assert found.temperature == pytest.approx(1 / 1.7, rel=1e-9)
    for name, part in found.shift_part.items():
        assert float(part) == pytest.approx(0.0, abs=1e-12), name
    assert float(found.change["coverage"]) < -0.1


def test_logistic_fits_without_a_solution_have_a_reason():
    x = np.array([0.0, 1.0, 2.0, 3.0])
    for r, reason in (([0, 0, 1, 1], "do not overlap"), ([1, 1, 1, 1], "all items are right")):
        assert reason in fit_logistic(x, np.array(r, dtype=float)).reason
    assert "same value" in fit_logistic(np.ones(4), np.array([0.0, 1, 0, 1])).reason


# Recalibration ---------------------------------------------------------------------------------


def test_a_temperature_at_the_end_of_the_range_is_clipped():
    z = np.array([[5.0, 0.0], [4.0, 0.0]])
    right, wrong = np.array([0, 0]), np.array([1, 1])
    assert m.fit_temperature(z, right) == m.Temperature(0.01, clipped=True)
    assert m.fit_temperature(z, wrong) == m.Temperature(100.0, clipped=True)
    assert m.fit_temperature(np.zeros((3, 2)), np.zeros(3, dtype=int)) == m.Temperature(1.0)


def test_probability_zero_for_the_truth_has_no_temperature():
    p = m.Distributions.from_probabilities([[1.0, 0.0], [0.5, 0.5]])
    with pytest.raises(ValueError, match="a probability above 0, got 0 in item 0"):
        m.fit_temperature(p, np.array([1, 0]))
    q = m.Distributions.from_probabilities([[0.9, 0.1], [0.5, 0.5]])
    with pytest.raises(ValueError, match="what the reference does, got 0 in item 0"):
        m.label_free_temperature(q, p)
    with pytest.raises(ValueError, match=r"\[fit_platt\] expected confidences below 1, got 1 in"):
        m.fit_platt(p, np.array([1.0, 0.0]))


def test_slice_temperatures_are_shrunk_towards_the_whole():
    a, _, gold = pair(600)
    z = a.copy()
    labels = np.where(np.arange(600) < 100, "small", "large")
    z[:100] *= 3.0
    fit = m.fit_slice_temperatures(z, labels.tolist(), gold)
    own = {
        s: m.fit_temperature(z[labels == s], gold[labels == s]).value for s in ("small", "large")
    }
    for name, n in (("small", 100), ("large", 500)):
        w = n / (n + 200)
        wanted = math.exp(w * math.log(own[name]) + (1 - w) * math.log(fit.overall.value))
        assert fit.slices[name] == pytest.approx(wanted, rel=1e-12)
    rescaled = fit.apply(m.Distributions.from_scores(z[:2]), ["small", "unknown"])
    wanted = golden.softmax(z[:2] / np.array([[fit.slices["small"]], [fit.overall.value]]))
    assert rescaled.p.reshape(2, 4) == pytest.approx(wanted)


def test_platt_exists_for_separable_and_for_one_class():
    a, _, _ = pair(40)
    base = m.Distributions.from_scores(a)
    separable = (base.confidence > np.median(base.confidence)).astype(float)
    fit = m.fit_platt(base, separable)
    assert fit.alpha > 0 and np.isfinite(fit.beta)
    one = m.fit_platt(base, np.ones(40))
    assert one.apply(base) == pytest.approx(np.full(40, 41 / 42), abs=1e-9)


def test_isotonic_pools_equal_confidences_and_reaches_below_the_first_knot():
    fit = m.fit_isotonic([0.5, 0.5, 0.7, 0.9], [1, 0, 0, 1])
    assert fit == m.Isotonic((0.5, 0.9), (pytest.approx(1 / 3), 1.0))
    p = m.Distributions.from_probabilities([[0.4, 0.3, 0.3], [0.6, 0.4, 0.0], [0.95, 0.05, 0.0]])
    assert fit.apply(p).tolist() == pytest.approx([1 / 3, 1 / 3, 1.0])


def test_gain_is_shown_for_an_overconfident_model_only():
    a, _, gold = pair(800)
    hot = m.calibration_gain(a * 2.5, gold, resampling=FEW)
    assert (
        hot.shown and hot.change["nll"].upper < 0 and hot.map.value == pytest.approx(2.5, abs=0.5)
    )
    assert hot.after["ece"] < hot.before["ece"] and hot.change["acc"].value == 0
    fair = m.calibration_gain(a, gold, resampling=FEW)
    assert not fair.shown and "not shown" in fair.reason


@pytest.mark.parametrize("method", m.gain.METHODS)
def test_every_item_is_rescaled_by_a_map_of_the_other_folds(method):
    a, b, gold = pair(120)
    labels = np.where(np.arange(120) % 3, "x", "y")
    base, d = (m.Distributions.from_scores(z) for z in (a, b))
    right = (d.predicted == gold).astype(float)
    fold = m.folds_of([str(index) for index in range(120)])
    confidence = np.empty(120)
    for f in range(5):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        some, rest = d.take(train), d.take(test)
        fits = {
            "temperature": m.fit_temperature(some, gold[train]).apply(rest).confidence,
            "label_free": m.label_free_temperature(base.take(train), some).apply(rest).confidence,
            "slice_temperature": m.fit_slice_temperatures(some, labels[train], gold[train])
            .apply(rest, labels[test])
            .confidence,
            "platt": m.fit_platt(some, right[train]).apply(rest),
            "isotonic": m.fit_isotonic(some.confidence, right[train]).apply(rest),
        }
        confidence[test] = fits[method]
    given = {"reference": a, "slices": labels.tolist(), "method": method, "resampling": FEW}
    found = m.calibration_gain(b, gold, **given)
    assert found.after["brier_top1"] == pytest.approx(np.mean((confidence - right) ** 2), abs=1e-14)
    assert found.after["ece"] == pytest.approx(float(m.ece(confidence, right)), abs=1e-14)
    assert found.before["ece"] == float(m.ece(d.confidence, right))
    assert (found.n, found.folds) == (120, 5)


def test_bad_methods_of_recalibration_are_refused():
    a, b, gold = pair()
    with pytest.raises(ValueError, match=r"\[calibration_gain\] expected a method of temperature"):
        m.calibration_gain(b, gold, method="spline")
    with pytest.raises(ValueError, match="expected reference for method 'label_free', got none"):
        m.calibration_gain(b, gold, method="label_free")
    with pytest.raises(ValueError, match="expected slices for method 'slice_temperature'"):
        m.calibration_gain(b, gold, method="slice_temperature")
    with pytest.raises(ValueError, match="expected 60 slices, got 2"):
        m.calibration_gain(b, gold, method="slice_temperature", slices=["x", "y"])
    alone = m.calibration_gain(b[:1], gold[:1], reference=a[:1])
    assert alone.map is None and "one fold" in alone.reason


# Flips -----------------------------------------------------------------------------------------


def test_perturbation_size_is_recovered():
    rng = np.random.default_rng(0)
    margin = rng.exponential(1.0, 4000)
    flipped = rng.normal(0.0, 0.5, 4000) > margin
    found = perturbation(margin, flipped)
    assert found.sigma.lower < 0.5 < found.sigma.upper
    assert float(found.sigma) == pytest.approx(0.5, abs=0.05)
    # Fit check: observed and expected flips of every bin agree within four standard deviations.
    for row in found.curve:
        assert abs(row.flips - row.expected) < 4 * math.sqrt(max(row.expected, 1.0))


def test_the_interval_of_the_size_is_that_of_refitting():
    """The grid and its parabola against a fit by a general optimiser on every resample."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_ndtr

    rng = np.random.default_rng(1)
    margin = rng.exponential(1.0, 150)
    flipped = rng.normal(0.0, 0.6, 150) > margin
    draw = m.Resampling(resamples=100)
    sizes = []
    for index in np.random.default_rng(0).integers(0, 150, (100, 150)):
        x, f = margin[index], flipped[index]

        def loss(s, x=x, f=f):
            return -float(log_ndtr(np.where(f, -x, x) / math.exp(s)).sum())

        found = minimize_scalar(loss, bounds=(-4, 3), method="bounded", options={"xatol": 1e-9})
        sizes.append(math.exp(found.x))
    sigma = perturbation(margin, flipped, resampling=draw).sigma
    assert (sigma.lower, sigma.upper) == pytest.approx(
        tuple(np.quantile(sizes, [0.025, 0.975])), rel=2e-3
    )


def test_no_flip_and_flips_that_are_no_near_ties_have_no_size():
    margin = np.linspace(0.1, 3.0, 30)
    none = perturbation(margin, np.zeros(30, dtype=bool)).sigma
    assert none.value is None and "below what these items resolve" in none.reason
    wild = perturbation(margin, margin > 1.0).sigma
    assert wild.value is None and "no size fits" in wild.reason
    assert perturbation(np.zeros(4), np.array([True, False, True, False])).sigma.value is None


def test_theta_is_checked():
    with pytest.raises(ValueError, match=r"\[flip_anatomy\] expected theta in \[0, 1\), got 1"):
        m.flip_anatomy(*pair(), theta=1)


# Scoring rules ---------------------------------------------------------------------------------


def _under(shift: float, rule: str, *, n: int = 400) -> tuple[m.Scores, m.Scores]:
    a, _, gold = pair(n)
    b = a + np.random.default_rng(1).normal(0, 0.2, a.shape)
    b[np.arange(n), gold] += shift
    return m.Scores.from_arrays(a, gold, rule=rule), m.Scores.from_arrays(b, gold, rule=rule)


@pytest.mark.parametrize(
    ("shifts", "state"), [((-0.5, -0.3), "robust"), ((-0.5, 0.5), "scoring_dependent")]
)
def test_claims_that_hold_and_that_turn_round(shifts, state):
    rules = dict(zip(("sum", "char"), shifts, strict=True))
    found = m.rule_sensitivity({rule: _under(shift, rule) for rule, shift in rules.items()})
    assert found["conf_true"].state == found["nll"].state == state
    json.dumps({k: v.to_dict() for k, v in found.items()}, allow_nan=False)


@pytest.mark.parametrize(
    ("ends", "p", "state"),
    [
        (((0.1, 0.3), (0.2, 0.4)), (0.01, 0.01), "robust"),
        (((0.1, 0.3), (-0.3, -0.1)), (0.01, 0.01), "scoring_dependent"),
        (((0.1, 0.3), (-0.3, -0.1)), (0.01, 0.06), "mixed_sign"),
        (((0.1, 0.3), (-0.3, 0.1)), (0.01, 0.3), "mixed_sign"),
        (((0.1, 0.3), (-0.1, 0.3)), (0.01, 0.3), "undecided"),
        (((None, None), (0.1, 0.3)), (1.0, 0.01), "undecided"),
    ],
)
def test_states_of_a_claim(ends, p, state):
    changes = {
        name: m.Estimate("acc", 0.2 if low is None else (low + high) / 2, lower=low, upper=high)
        for name, (low, high) in zip(("sum", "char"), ends, strict=True)
    }
    assert _state(changes, dict(zip(("sum", "char"), p, strict=True)), 0.05) == state


def test_one_rule_says_nothing_about_rules():
    with pytest.raises(ValueError, match=r"\[rule_sensitivity\] expected at least 2 rules, got 1"):
        m.rule_sensitivity({"sum": _under(0.1, "sum")})


def test_p_values_are_where_intervals_touch_zero():
    from calibit.measures.intervals import bca, bca_p, percentile, percentile_p
    from calibit.measures.resampling import resampled_means

    skewed = np.random.default_rng(0).exponential(1.0, 200)
    error = np.std(skewed) / math.sqrt(200)
    for z in (0.8, 1.7, -2.2):
        d = skewed - skewed.mean() + z * error
        draws = resampled_means(d[:, None], m.Resampling())[:, 0]
        for p, interval in (
            (bca_p(d, draws, m.Resampling()), bca),
            (percentile_p(draws), percentile),
        ):
            given = (d, draws) if interval is bca else (draws,)
            level = m.Resampling(level=1.0 - p)
            ends = interval(*given, level)
            # At |z| = 2.2 the draws have density 0.035 per error: 9,999 lie 0.003 errors apart.
            assert min(abs(ends.lower), abs(ends.upper)) < 0.02 * error


# Conformal sets --------------------------------------------------------------------------------


def test_too_few_calibration_items_give_full_sets():
    a, b, gold = pair(20)
    found = m.conformal_transfer(a, b, gold, calibration=np.arange(20) < 5, resampling=FEW)
    assert found.q_a is None and found.a.coverage == 1 and found.a.size == 4
    assert found.band.lower is None and "too few items" in found.band.reason


def test_conformal_split_is_checked():
    a, b, gold = pair(20)
    for split in (np.ones(20, dtype=bool), np.zeros(20, dtype=bool), np.ones(3, dtype=bool)):
        with pytest.raises(ValueError, match="expected calibration and test items among 20"):
            m.conformal_transfer(a, b, gold, calibration=split)
    with pytest.raises(ValueError, match="expected alpha between 0 and 1, got 1"):
        m.conformal_transfer(a, b, gold, alpha=1)


def test_coverage_falls_into_its_band():
    """Shares of 400 simulated calibrations inside the 95 % band: 4 standard errors are 4.4 %."""
    rng = np.random.default_rng(0)
    band, hits = m.coverage_band(100, 0.1), 0
    for _ in range(400):
        q = np.sort(rng.random(100))[90]  # the 91st smallest score: the coverage of new items
        hits += band.lower <= q <= band.upper
    assert hits / 400 == pytest.approx(0.95, abs=0.044)


def test_the_step_of_a_ladder_that_loses_coverage_is_found():
    rng = np.random.default_rng(0)
    reference = rng.random(500) < 0.9
    same = np.where(rng.random(500) < 0.01, ~reference, reference)
    worse = np.where(rng.random(500) < 0.15, False, same)
    found = m.threshold_jump(np.stack([reference, same, worse]), resampling=FEW)
    assert found.worst == 1 and found.p[1] < 0.02 < found.p[0]
    assert found.steps[1] == pytest.approx(np.mean(same) - np.mean(worse))
    with pytest.raises(ValueError, match=r"\[threshold_jump\] expected covered of shape"):
        m.threshold_jump(np.ones((1, 5)))


def test_a_ladder_holds_the_transferred_sets_of_every_step():
    rng = np.random.default_rng(0)
    z, gold = 2.0 * rng.normal(size=(300, 4)), rng.integers(0, 4, 300)
    z[np.arange(300), gold] += 2.0
    gold[::50] = -1  # unlabelled items enter neither
    reference, mild, harsh = (
        m.Scores.from_arrays(z + rng.normal(0.0, noise, z.shape), gold) for noise in (0, 0.1, 3.0)
    )
    found = m.conformal_ladder(reference, [mild, harsh], resampling=FEW)
    pairs = [m.conformal_transfer(reference, one, resampling=FEW) for one in (mild, harsh)]
    assert found.sets == (pairs[0].a, pairs[0].transfer, pairs[1].transfer)
    assert found.quantile == pairs[0].q_a and found.n_test == pairs[0].n_test
    coverage = [one.coverage for one in found.sets]
    assert found.jump.steps == pytest.approx(-np.diff(coverage), abs=1e-12)
    assert found.jump.worst == 1 and found.jump.p[1] < 0.02
    with pytest.raises(ValueError, match=r"\[conformal_ladder\] expected at least one step"):
        m.conformal_ladder(reference, [])
    one = m.Scores.from_arrays(z[1:2], gold[1:2])
    with pytest.raises(ValueError, match="expected items on both sides of the split"):
        m.conformal_ladder(one, [one])


# Direction -------------------------------------------------------------------------------------


def test_silent_zone_is_change_without_direction():
    a, _, gold = pair(600)
    noise = np.random.default_rng(6).normal(0, 0.1, (300, 4))
    a[300:], gold[300:] = a[:300], gold[:300]
    b = a + np.concatenate([noise, -noise])  # every push comes with its opposite
    quiet = m.direction(a, b, gold, above_floor=True, resampling=FEW)
    assert quiet.silent_zone is True and quiet.kl > 0
    b[np.arange(600), gold] -= 0.5
    loud = m.direction(a, b, gold, above_floor=True, resampling=FEW)
    assert loud.silent_zone is False
    assert m.direction(a, b, gold, above_floor=False, resampling=FEW).silent_zone is False


def test_documents_are_resampled_whole():
    a, b, gold = pair(40)
    ten = [np.repeat(z, 10, axis=0) for z in (a, b, gold)]
    documents = np.repeat(np.arange(40), 10)
    single = m.direction(a, b, gold, resampling=FEW)
    whole = m.direction(*ten, documents=documents.tolist(), resampling=FEW)
    naive = m.direction(*ten, resampling=FEW)

    def width(one: m.Estimate) -> float:
        return one.upper - one.lower

    assert width(naive.d_conf_true) < 0.5 * width(whole.d_conf_true)
    assert width(whole.d_conf_true) == pytest.approx(width(single.d_conf_true), rel=0.15)
    assert width(whole.unsure_share) == pytest.approx(width(single.unsure_share), rel=1e-9)
    with pytest.raises(ValueError, match=r"\[direction\] expected 400 documents, got 40"):
        m.direction(*ten, documents=range(40))


def test_equal_models_have_no_share_of_nothing():
    a, _, gold = pair()
    found = m.direction(a, a, gold, above_floor=False, resampling=FEW)
    assert float(found.kl) == 0 and found.unsure_share.value is None
    assert "agree everywhere" in found.unsure_share.reason


# Draws and layers ------------------------------------------------------------------------------


def test_draws_without_effect_and_bad_builds():
    y = np.random.default_rng(0).normal(0.5, 1.0, (200, 4))
    found = m.draw_variance(y, permutation=FEW)
    assert found.p > 0.01 and found.p_permutation > 0.01 and not found.effect_below_draw
    shifted = m.draw_variance(y + np.array([0, 0.5, 1, 1.5]), permutation=FEW)
    assert shifted.p < 1e-3 and shifted.p_permutation == 1 / 201
    with pytest.raises(ValueError, match=r"\[draw_variance\] expected values of shape"):
        m.draw_variance(y[:, :2])
    y[3, 1] = np.nan
    with pytest.raises(ValueError, match="expected finite values, got nan in item 3 of build 1"):
        m.draw_variance(y)


def test_spread_of_the_ece_that_items_alone_cause():
    rng = np.random.default_rng(0)
    c = np.clip(rng.random(400), 0.3, 0.99)
    same = m.ece_draw_spread(np.tile(c, (3, 1)), np.tile(rng.random(400) < c, (3, 1)))
    assert same.sd == 0 and same.sd_items < 1e-15
    own = np.stack([rng.random(400) < c for _ in range(3)])
    independent = m.ece_draw_spread(np.tile(c, (3, 1)), own)
    assert 0.005 < independent.sd_items < 0.05
    with pytest.raises(ValueError, match="at least 3 builds, got 2"):
        m.ece_draw_spread([c, c], own[:2])


def test_attribution_finds_the_layer_and_bounds_all():
    rng = np.random.default_rng(0)
    solo = rng.normal(0.0, 0.02, (5, 300))
    solo[2] += 0.02
    found = attribute(solo, solo, solo.sum(axis=0), names=list("abcde"), resampling=FEW)
    best = max(found.units, key=lambda unit: unit.share)
    assert best.name == "c" and best.lower > 0 and best.p == 1 / 201
    assert all(unit.lower < unit.share < unit.upper for unit in found.units)
    assert found.residual == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match=r"\[attribute\] expected solo and restored \[L, N\]"):
        attribute(solo, solo[:2], solo.sum(axis=0))
    solo[1, 7] = np.nan
    with pytest.raises(ValueError, match="expected finite solo, got infinity or NaN in item 7"):
        attribute(solo, np.zeros_like(solo), np.zeros(300))
    with pytest.raises(ValueError, match=r"\[shares\] expected finite solo and restored"):
        m.shares([1.0], [1.0, 2.0], 3.0)


def test_prediction_sets_of_answers_far_below_the_smallest_probability_of_one_less_p():
    """Of half the items p_y is exp(-40) or less and 1 - p_y is 1: sets were full."""
    n = np.arange(200)
    score = np.where(n % 2, 40.0 + n, 1.0)
    z = np.stack([-score, np.zeros(200), np.full(200, -300.0)], axis=1)
    split = n < 100
    found = m.conformal_transfer(z, z, np.zeros(200, int), calibration=split, resampling=FEW)
    # rank 91 of 100: 50 items with score 1, then 41, 43, ...: the 41st of these has 40 + 81
    expected = score[~split] <= 40.0 + 81.0 + 1e-9
    assert found.rank == 91 and found.q_a == 1.0
    assert found.a.coverage == expected.mean() == 0.5
    assert found.a.size == pytest.approx(1.0 + expected.mean())
