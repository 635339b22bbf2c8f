"""Comparison of two runs: pairing, changes with their intervals, slices, texts, serialisation."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import golden
import tiny_models
import tiny_tokenizers
import toy_tasks
from calibit import measures as m
from calibit.comparison import Comparison, compare, speed_changes
from calibit.comparison.tables import shrunken, slice_keys
from calibit.evaluation import Text, evaluate
from calibit.measures.self_audit import self_audit
from calibit.measures.slices import slices_by_key
from calibit.runs import Run
from comparison_runs import MemoryRun, simulated, v1_runs

QUICK = {"resamples": 300}


@pytest.fixture(scope="module")
def v1() -> Comparison:
    return compare(*v1_runs())


def test_flips_and_tests_of_v1(v1):
    flips = v1.flips
    assert (flips.rr, flips.rw, flips.wr, flips.ww) == (258, 24, 20, 198)
    assert (flips.flips, flips.all_flips) == (44, 50)
    assert float(flips.flip_rate) == 44 / 500 and flips.flip_rate.interval == "clopper_pearson"
    # Clopper-Pearson of 50 in 500
    rate = flips.all_flip_rate
    assert (rate.lower, rate.upper) == pytest.approx((0.0751358151, 0.1297090857), abs=1e-10)
    assert v1.mcnemar.p == pytest.approx(0.6515878272, abs=1e-10)
    assert v1.mcnemar.mid_p == pytest.approx(0.5514843298, abs=1e-10)


def test_changes_of_v1_have_the_interval_that_fits(v1):
    acc, true, ece = (v1.deltas[name] for name in ("acc", "conf_true", "ece"))
    assert float(acc) == pytest.approx(-0.008)
    assert (acc.lower, acc.upper) == pytest.approx((-0.0351227475, 0.0186627052), abs=1e-10)
    assert acc.interval == "tango"
    assert float(true) == pytest.approx(-0.0166214007, abs=1e-10)
    assert (true.lower, true.upper) == pytest.approx((-0.0240540290, -0.0095060167), abs=2e-10)
    assert true.interval == "bca"
    assert float(ece) == pytest.approx(-0.0201426408, abs=1e-10)
    assert (ece.lower, ece.upper) == pytest.approx((-0.05659158, 0.0172418), abs=6e-8)
    assert ece.interval == "percentile" and ece.extra["biased_estimator"] is True
    assert float(v1.deltas["nll"]) == pytest.approx(0.0076356156, abs=1e-10)
    assert v1.deltas["nll"].unit == "nats"


def test_metrics_of_both_models(v1):
    for side, column in ((v1.a, "V1 a"), (v1.b, "V1 b")):
        for metric in ("acc", "conf", "conf_true", "margin", "nll", "brier", "auroc", "aurc"):
            wanted = golden.ONE_MODEL[metric][column]
            assert float(side[metric]) == pytest.approx(wanted, abs=1e-10)
            assert side[metric].lower < wanted < side[metric].upper
    change = v1.deltas["auroc"]
    assert float(change) == pytest.approx(0.5454663296 - 0.5651473746, abs=1e-9)
    assert change.lower < change < change.upper


def test_every_difference_is_candidate_minus_reference(v1):
    for name, change in v1.deltas.items():
        if change.value is not None:
            assert float(change) == pytest.approx(v1.b[name] - v1.a[name], abs=1e-12), name


def test_divergences_of_v1(v1):
    assert float(v1.kl_ab) == pytest.approx(0.0302810887, abs=1e-10)
    assert float(v1.kl_ba) == pytest.approx(0.0317767101, abs=1e-10)
    assert float(v1.jsd) == pytest.approx(0.0110395436, abs=1e-10) and v1.jsd.unit == "bits"
    assert float(v1.js_distance) == pytest.approx(0.0937404686, abs=1e-10)
    assert float(v1.tv) == pytest.approx(0.0858384440, abs=1e-10)
    assert v1.kl_ab.lower < v1.kl_ab < v1.kl_ab.upper


def test_worst_slice_of_v1(v1):
    worst = v1.worst_slice
    assert worst["slice"] == "part=3" and worst["n"] == 100 and worst["searched"] == 5
    assert worst["damage"] == pytest.approx(0.02958236, abs=5e-9)
    # Both ends of a 95 % interval: each holds at 97.5 %, the one-sided bound 0.01136 at 95 %.
    found = next(s for s in worst["slices"] if s["name"] == "part=3")
    assert 0.0 < found["lower"] < 0.01136 < found["damage"] < found["upper"]
    assert worst["p_damage"] == pytest.approx(0.0016, abs=1e-12)
    assert set(v1.worst_slices) == {"acc", "conf_true", "nll"}
    rows = {row["name"]: row for row in worst["slices"]}
    assert len(rows) == 5 and rows["part=3"]["lower"] == pytest.approx(worst["lower"])


def test_slices_of_v1_are_shrunken_within_their_key(v1):
    """Q of the specification's oracle is below its degrees, so nothing but the mean is left."""
    found = v1.to_dict()["worst_slices"]["conf_true"]["shrunken"]
    assert found["part"]["q"] == pytest.approx(3.5786173727, abs=5e-9)
    assert found["part"]["tau2"] == 0.0
    wanted = {f"part={i}": pytest.approx(0.0167539559, abs=5e-9) for i in range(5)}
    assert found["part"]["slices"] == wanted


def test_slices_are_shrunken_only_with_standard_errors():
    """Two keys by hand: damages 0.4 and 0 with errors 0.1 each, of which the second has none."""
    rng = np.random.default_rng(0)
    noise = rng.permutation(np.repeat([-1.0, 1.0], 50))
    key = [{"lang": "en" if i < 100 else "de", "all": "x"} for i in range(200)]
    damage = np.concatenate([0.4 + noise, noise])
    family, few = slices_by_key(key), m.Resampling(resamples=200)
    (own,) = shrunken(m.worst_slice(damage, family, resampling=few)).values()
    se2 = 1 / 99  # variance 100/99 of the noise over 100 items, for both slices
    tau2 = 0.08 - se2  # Q = 0.08 / se2, one degree, and the divisor is 1 / se2
    left = tau2 / (tau2 + se2) * 0.2
    assert own["tau2"] == pytest.approx(tau2) and own["mean"] == pytest.approx(0.2)
    wanted = {"lang=en": pytest.approx(0.2 + left), "lang=de": pytest.approx(0.2 - left)}
    assert own["slices"] == wanted
    still = shrunken(m.worst_slice(np.zeros(200), family, resampling=few))
    assert "no standard error" in still["lang"]["reason"]
    passages = m.Resampling(resamples=200, clusters=np.arange(200) // 4)
    grouped = shrunken(m.worst_slice(damage, family, resampling=passages))
    assert "clusters" in grouped["lang"]["reason"]


def test_bounds_of_a_search_are_of_one_kind(v1):
    """Accuracy: both ends at Bonferroni's level over the five slices."""
    found = v1.to_dict()["worst_slices"]["acc"]
    before, after = v1.points["correct_a"], v1.points["correct_b"]
    for index, row in enumerate(found["slices"]):
        own = slice(index, None, 5)
        lost = int(np.sum(before[own] > after[own]))
        won = int(np.sum(before[own] < after[own]))
        own_interval = m.tango(won, lost, 100, level=1 - 0.05 / 5)
        assert (row["lower"], row["upper"]) == pytest.approx(
            (own_interval.lower, own_interval.upper)
        )
    # The exploratory search adds quartiles of the reference's entropy (pairs would be too small).
    names = [entry.name for entry in v1.search.slices]
    assert "reference entropy=quartile 1" in names and names[:5] == [f"part={i}" for i in range(5)]


def test_slice_table_of_v1(v1):
    assert [row["name"] for row in v1.slices] == [f"part={index}" for index in range(5)]
    row = v1.slices[3]
    assert (row["key"], row["value"], row["n"]) == ("part", "3", 100)
    assert float(row["d_conf_true"]) == pytest.approx(-0.02958236, abs=5e-9)
    wanted = m.tango(row["d_acc"].extra["rw"], row["d_acc"].extra["wr"], 100)
    assert (row["d_acc"].lower, row["d_acc"].upper) == (wanted.lower, wanted.upper)
    assert row["d_conf_true"].lower < row["d_conf_true"] < row["d_conf_true"].upper


def test_points_and_reliability_are_those_of_the_items(v1):
    points = v1.points
    assert {len(values) for values in points.values()} == {500}
    assert points["conf_true_b"].mean() == pytest.approx(float(v1.b["conf_true"]))
    assert points["correct_a"].sum() == 282
    assert sum(row.n for row in v1.reliability_a) == 500 and len(v1.reliability_b) == 15


def test_the_dictionary_describes_itself(v1):
    content = json.loads(json.dumps(v1.to_dict(), allow_nan=False))
    assert content["schema"] == "calibit.comparison/1"
    assert content["protocol"] == {
        "rule": "sum",
        "level": 0.95,
        "resamples": 9999,
        "seed": 0,
        "bins": 15,
        "n": 500,
        "n_labelled": 500,
        "tasks": [{"name": "t", "n": 500, "n_labelled": 500}],
        "clusters": None,
        "effective_clusters": None,
        "few_clusters": False,
        "unpaired": {"a": 0, "b": 0},
    }
    assert content["models"]["b"]["name"] == "nf4" and content["models"]["a"]["name"] == "toy"
    estimates = [*content["a"].values(), *content["deltas"].values(), content["kl_ab"]]
    for estimate in estimates:
        assert {"metric", "value", "estimator", "n", "unit", "lower", "upper"} <= set(estimate)
        assert estimate["extra"]["rule"] == "sum"
        assert estimate["value"] is not None or estimate["reason"]
    assert content["flips"]["flip_rate"]["n"] == 500
    assert content["worst_slice"]["slice"] == "part=3"
    assert content["reliability_a"][3].keys() >= {"lo", "hi", "n", "conf", "acc"}
    assert content["ppl"] is None and content["warnings"] == []
    assert {check["check"] for check in content["checks"]} == {
        "label shuffle",
        "perfect oracle",
        "calibrated oracle",
        "chance",
        "pair identity",
        "constant confidence",
        "exact ties",
    }
    assert all(check["passed"] for check in content["checks"])


def test_the_table_says_what_ece_chance_shows(v1):
    line = next(one for one in str(v1).splitlines() if "by chance alone, up to" in one)
    # 95 % points over 1,000 draws 0.0695 and 0.0708 (metrics of V1), other generators +- 0.002
    shown = [float(part) for part in line.replace("%", " ").split() if part[:1].isdigit()]
    assert shown == pytest.approx([6.95, 7.08], abs=0.2)


def test_the_table_prints_every_main_number(v1):
    from rich.console import Console

    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(v1.table())
    text = console.export_text()
    for part in (
        "toy (nf4) against toy (not quantized), 500 items",
        "56.4 %",
        "-0.8",
        "[-3.5, +1.9]",
        "0.6516",
        "part=3",
    ):
        assert part in text


def test_tests_of_v1(v1):
    """Golden values of the change of the right answer's probability; 9,999 sign flips."""
    found = v1.to_dict()["tests"]
    assert set(found) == {"conf_true", "nll", "brier"}
    one = found["conf_true"]
    assert one["paired_t"]["statistic"] == pytest.approx(-4.4481802604, abs=1e-9)
    assert one["paired_t"]["p"] == pytest.approx(1.0685830896e-05, rel=1e-8)
    assert one["wilcoxon"]["p"] == pytest.approx(1.6939913494e-04, rel=1e-8)
    assert one["sign_flip"] == 0.0001
    assert float(v1.recovery) == pytest.approx(0.556 / 0.564, rel=1e-12)
    assert v1.a["sel_acc@0.5"].n == 250
    assert v1.mde["acc"] == pytest.approx(0.0371672279, abs=1e-9)
    assert v1.mde["conf_true"] == pytest.approx(0.0104686114, abs=1e-9)


def test_without_labels_nothing_is_tested():
    a, b = simulated(60)
    for run in (a, b):
        run.scores().gold[:] = -1
    found = compare(a, b, **QUICK)
    assert found.tests == {} and found.recovery is None


@pytest.mark.parametrize(
    ("meta", "title"),
    [
        ({"model": {"name": "/models/SmolLM2"}, "scheme": "none"}, "SmolLM2 (not quantized)"),
        ({"model": {"name": "org/SmolLM2"}, "scheme": "nf4-dq"}, "SmolLM2 (nf4-dq)"),
        ({"model": {"name": "org/SmolLM2-nf4-dq"}, "scheme": "nf4-dq"}, "SmolLM2-nf4-dq"),
        ({"model": {"name": "org/SmolLM2"}, "scheme": None}, "SmolLM2"),
        ({"scheme": "nf4"}, "nf4"),
        ({}, "b"),
    ],
)
def test_the_title_says_the_scheme_where_it_is_known(meta, title):
    a, b = simulated(60)
    b.meta.pop("model", None), b.meta.pop("scheme", None)
    b.meta.update(meta)
    found = compare(a, b, **QUICK)
    assert found.models["b"]["title"] == title
    assert f"{title} against" in " ".join(str(found).split())


def test_same_options_same_numbers_and_other_seed_other_draws():
    a, b = simulated(120)
    first, again = (compare(a, b, **QUICK).to_dict() for _ in range(2))
    assert first == again
    other = compare(a, b, seed=1, **QUICK).to_dict()
    assert other["deltas"]["conf_true"]["value"] == first["deltas"]["conf_true"]["value"]
    assert other["deltas"]["conf_true"]["lower"] != first["deltas"]["conf_true"]["lower"]


def test_a_run_against_itself_changes_nothing():
    a, _ = simulated(200, parts=2)
    same = compare(a, a, **QUICK)
    assert float(same.kl_ab) == float(same.kl_ba) == float(same.js_distance) == 0.0
    assert same.flips.all_flips == 0 and same.mcnemar.p == 1.0
    assert all(float(change) == 0.0 for change in same.deltas.values() if change.value is not None)
    assert same.deltas["acc"].upper > 0 > same.deltas["acc"].lower


def test_items_are_paired_by_task_and_id_whatever_their_order():
    a, b = simulated(90)
    scores = b.scores()
    order = np.random.default_rng(0).permutation(90)
    ids = [scores.ids[i] for i in order]
    moved = MemoryRun([scores.z[i] for i in order], scores.gold[order], ids=ids)
    straight, mixed = compare(a, b, **QUICK), compare(a, moved, **QUICK)
    assert mixed.to_dict()["deltas"] == straight.to_dict()["deltas"]
    assert mixed.points["ids"].tolist() == straight.points["ids"].tolist()


def _part(run, keep):
    scores = run.scores()
    return MemoryRun(
        [scores.z[i] for i in keep], scores.gold[keep], ids=[scores.ids[i] for i in keep]
    )


def test_missing_items_are_refused_by_name_unless_allowed():
    a, b = simulated(40)
    with pytest.raises(
        ValueError, match=r"\[compare\] expected the same items in both runs, got "
    ) as e:
        compare(_part(a, np.arange(37)), _part(b, np.arange(1, 40)), **QUICK)
    assert "1 only in a (t/0)" in str(e.value) and "3 only in b (t/37, t/38, t/39)" in str(e.value)
    partial = compare(
        _part(a, np.arange(37)), _part(b, np.arange(1, 40)), allow_partial=True, **QUICK
    )
    assert partial.protocol["n"] == 36 and partial.protocol["unpaired"] == {"a": 1, "b": 3}
    assert "only 36 items are in both runs" in partial.warnings[0]
    with pytest.raises(ValueError, match=r"\[compare\] expected common items"):
        compare(_part(a, np.arange(5)), _part(b, np.arange(5, 9)), allow_partial=True)


def _lines(n, **changed):
    lines = [
        {"kind": "choice", "id": str(i), "task": "t", "ll": [-1.0, -2.0], "context_hash": f"c{i}",
         "choices_hash": "h", "tokens": [1, 1], "is_greedy": [False, False], "reason": None}
        for i in range(n)
    ]  # fmt: skip
    return [line | changed.get(f"item{i}", {}) for i, line in enumerate(lines)]


def _with_lines(lines, **meta):
    return MemoryRun(
        np.array([line["ll"] for line in lines]), [0] * len(lines), lines=lines, **meta
    )


@pytest.mark.parametrize(
    ("changed", "meta", "message"),
    [
        ({"item3": {"context_hash": "x"}}, {}, r"the same prompt per item .* 1 items .* \(t/3\)"),
        ({"item0": {"choices_hash": "x"}}, {}, r"the same choices per item .* \(t/0\)"),
        ({}, {"tokenizer_hash": "q"}, r"the same tokenizer in both runs, got 'p' and 'q'"),
        ({}, {"bos": "never"}, r"the same BOS rule in both runs, got 'always' and 'never'"),
    ],
)  # fmt: skip
def test_different_prompts_choices_tokenizers_or_bos_rules_are_refused(changed, meta, message):
    base = {"tokenizer_hash": "p", "bos": "always"}
    a, b = _with_lines(_lines(6), **base), _with_lines(_lines(6, **changed), **{**base, **meta})
    with pytest.raises(ValueError, match=r"\[compare\] expected " + message):
        compare(a, b, **QUICK)
    assert compare(a, a, **QUICK).protocol["n"] == 6


def test_different_labels_or_choice_counts_are_refused():
    a = MemoryRun([[0.0, -1.0], [0.0, -1.0]], [0, 1])
    with pytest.raises(ValueError, match=r"the same right answer per item .* \(t/1\)"):
        compare(a, MemoryRun([[0.0, -1.0], [0.0, -1.0]], [0, 0]), **QUICK)
    with pytest.raises(ValueError, match=r"the same number of choices per item .* \(t/0\)"):
        compare(a, MemoryRun([[0.0, -1.0, -2.0], [0.0, -1.0]], [0, 1]), **QUICK)


def test_unlabelled_items_leave_label_metrics_undefined_with_a_reason():
    z = np.random.default_rng(0).normal(size=(30, 3))
    result = compare(MemoryRun(z), MemoryRun(z + 0.1 * z**2), **QUICK)
    for metric in ("acc", "conf_true", "nll", "ece", "auroc", "aurc", "smece"):
        assert result.a[metric].value is None and result.a[metric].reason == "no labelled items"
        assert result.deltas[metric].value is None and result.deltas[metric].reason
    assert result.deltas["conf"].lower < float(result.deltas["conf"]) < result.deltas["conf"].upper
    assert float(result.kl_ab) > 0 and result.flips.flips is None and result.mcnemar is None
    assert result.flips.flip_rate.reason == "no labelled items" and result.slices == ()
    assert result.worst_slice is None and result.controls.initial is None
    assert result.controls.reasons["initial"] == "no labelled item has at least two choices"
    assert "no item is labelled" in result.warnings[0]
    json.dumps(result.to_dict(), allow_nan=False)


def test_some_unlabelled_items_enter_only_what_needs_no_label():
    z = np.random.default_rng(0).normal(size=(50, 3))
    gold = np.where(np.arange(50) < 20, 0, -1)
    result = compare(MemoryRun(z, gold), MemoryRun(z * 0.9, gold), **QUICK)
    assert (result.a["acc"].n, result.a["conf"].n, result.kl_ab.n) == (20, 50, 50)
    assert result.protocol["n_labelled"] == 20 and len(result.points["ids"]) == 20


def test_mixed_choice_counts_keep_top_label_metrics():
    rng = np.random.default_rng(1)
    z = [rng.normal(size=3 + index % 3) for index in range(60)]
    gold = np.array([index % 3 for index in range(60)])
    result = compare(MemoryRun(z, gold), MemoryRun([row * 0.8 for row in z], gold), **QUICK)
    assert result.deltas["ece"].value is not None and result.deltas["brier"].value is not None
    assert "(3, 4, 5)" in result.deltas["sce"].reason
    json.dumps(result.to_dict(), allow_nan=False)


def test_texts_are_compared_over_windows():
    rng = np.random.default_rng(0)
    nll = rng.gamma(2.0, 1.5, 640)
    worse = nll + 0.03 + rng.normal(0, 0.1, 20)[np.arange(640) // 32]
    a, b = simulated(40)
    first = MemoryRun(a.scores().z, a.scores().gold, text=nll)
    second = MemoryRun(b.scores().z, b.scores().gold, text=worse)
    result = compare(first, second, **QUICK)
    ppl = result.ppl
    assert (ppl.name, ppl.protocol, ppl.tokens, ppl.windows) == ("novel", "gptq", 640, 20)
    assert float(ppl.a) == pytest.approx(np.exp(nll.mean()))
    assert float(ppl.delta) == pytest.approx((worse - nll).mean())
    assert float(ppl.ratio) == pytest.approx(float(ppl.b) / float(ppl.a))
    assert (ppl.ratio.lower, ppl.ratio.upper) == pytest.approx(
        (np.exp(ppl.delta.lower), np.exp(ppl.delta.upper))
    )
    assert ppl.delta.lower < ppl.delta < ppl.delta.upper and ppl.correlation > 0.9
    assert result.evidence["text_nll"].n == 20
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["ppl"] == content["texts"][0] and content["ppl"]["ratio"]["unit"] == ""
    alone = compare(first, b, **QUICK)
    assert alone.ppl is None and "'novel' is in one run only" in alone.warnings[0]


def test_texts_that_differ_are_refused_and_lost_tokens_give_no_value():
    nll = np.ones(64)
    with pytest.raises(ValueError, match=r"the same tokens of text 'novel' .* 64 and 32"):
        compare(MemoryRun([], text=nll), MemoryRun([], text=nll[:32]), **QUICK)
    a, b = MemoryRun([], text=nll), MemoryRun([], text=nll)
    b.meta["text"][0]["protocol"] = "documents"
    with pytest.raises(ValueError, match=r"with the same protocol in both runs"):
        compare(a, b, **QUICK)
    lost = np.where(np.arange(64) == 3, np.nan, 1.0)
    result = compare(a, MemoryRun([], text=lost), **QUICK)
    assert result.ppl.b.value is None and "1 tokens have no finite" in result.ppl.b.reason
    assert result.protocol["n"] == 0 and "no multiple-choice items" in result.warnings[0]


def test_tasks_are_slices_where_there_are_several():
    a, b = simulated(80)
    scores = {"a": a.scores(), "b": b.scores()}

    class TwoTasks(MemoryRun):
        def scores(self, rule="sum"):
            s = super().scores(rule)
            tasks = tuple("x" if index < 40 else "y" for index in range(s.n))
            return m.Scores(s.ids, tasks, s.gold, s.z, s.slices, rule)

    runs = [TwoTasks(s.z, s.gold) for s in scores.values()]
    result = compare(*runs, **QUICK)
    assert [row["name"] for row in result.slices] == ["task=x", "task=y"]
    assert [(task["name"], task["n"]) for task in result.protocol["tasks"]] == [
        ("x", 40),
        ("y", 40),
    ]


def test_small_data_has_no_slope_and_few_groups():
    a, b = (MemoryRun([[0.0, -1.0]] * 2, [0, 1]) for _ in range(2))
    found = compare(a, b, **QUICK).controls.initial
    assert found.oldham is None and found.naive["conf"].value is None
    assert [row.n for row in found.bins] == [2]


def test_a_folder_is_loaded_as_a_run(monkeypatch, tmp_path):
    import calibit.runs

    a, b = simulated(30)
    monkeypatch.setattr(
        calibit.runs.Run, "load", staticmethod(lambda path: {"a": a, "b": b}[path.name])
    )
    by_path = compare(tmp_path / "a", tmp_path / "b", **QUICK)
    assert by_path.to_dict() == compare(a, b, **QUICK).to_dict()


def test_evaluated_models_are_compared(tmp_path):
    items, tokenizer = toy_tasks.toy_items(40), tiny_tokenizers.build()
    text = Text("novel", ("the cat and the dogs see an eagle. " * 8,), window=32)
    for name in ("a", "b"):
        model = tiny_models.build("llama")
        if name == "b":
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(0.9)
        evaluate(model, tokenizer, items, text=text, out=tmp_path / name, scheme=name)
    result = compare(tmp_path / "a", tmp_path / "b", **QUICK)
    assert result.protocol["n"] == 40 and float(result.kl_ab) > 0
    assert {row["name"] for row in result.slices} == {"parity=0", "parity=1"}
    assert result.ppl.windows > 2 and result.ppl.protocol.startswith("gptq")
    assert all(check.passed for check in result.checks if check.check != "exact ties")
    assert {c.check for c in result.checks} >= {
        "greedy consistency",
        "item accounting",
        "self-comparison",
        "BOS and leading space",
    }
    assert result.verdict().verdict in ("ship", "hold", "inconclusive")
    json.dumps(result.to_dict(), allow_nan=False)
    same = compare(tmp_path / "a", tmp_path / "a", **QUICK)
    assert float(same.kl_ab) == 0.0 and float(same.ppl.delta) == 0.0


def test_failed_checks_are_named():
    tied = [[0.0, 0.0], *([[0.0, -1.0]] * 20)]
    greedy = _lines(
        21, item2={"ll": [-2.0, -1.0], "is_greedy": [True, False]}, item4={"ll": [-1.0, 0.5]}
    )
    run = MemoryRun(tied, [0] * 21, lines=greedy)
    failed = {c.check: c for c in compare(run, run, **QUICK).checks if not c.passed}
    assert set(failed) == {"exact ties", "log-probabilities", "greedy consistency"}
    assert failed["exact ties"].first == "0" and failed["exact ties"].count == 1
    assert failed["log-probabilities"].first == "4"
    assert failed["greedy consistency"].first == "2"


def test_constant_confidence_and_lost_items_fail_their_checks():
    flat = MemoryRun(np.zeros((10, 3)), [0] * 10)
    failed = {c.check for c in compare(flat, flat, **QUICK).checks if not c.passed}
    assert failed == {"constant confidence", "exact ties"}
    lines = _lines(4, item1={"ll": None, "reason": None}, item2={"ll": None, "reason": "too long"})
    run = MemoryRun([[0.0, -1.0], [0.0, -2.0]], [0, 1], ids=["0", "3"], lines=lines)
    failed = [c for c in compare(run, run, **QUICK).checks if not c.passed]
    assert [(c.check, c.count, c.first) for c in failed] == [
        *[("item accounting", 1, "1")] * 2,
        ("unscored items", 2, "1"),
    ]


def _failed_lines(lines):
    z = [[0.0, -1.0 - 0.01 * i] for i in range(len(lines))]
    scores = m.Scores.from_arrays(z, np.zeros(len(lines), dtype=int))
    found = [check for check in self_audit(scores, name="a", lines=lines) if not check.passed]
    return [(check.check, check.count, check.first) for check in found]


def test_items_that_repeat_others_fail_above_one_percent():
    def repeated(times, **changed):
        return _lines(
            200, **{f"item{100 + i}": {"context_hash": "c7"} | changed for i in range(times)}
        )

    assert _failed_lines(repeated(2)) == []
    assert _failed_lines(repeated(3)) == [("repeated items", 3, "100")]
    assert (
        _failed_lines(_lines(200, item7={"choices_hash": "other"}, item9={"context_hash": "c7"}))
        == []
    )
    assert _failed_lines([line | {"gold": i % 2} for i, line in enumerate(repeated(3))]) == []
    small = [line | {"task": "u"} if i in (7, 100) else line for i, line in enumerate(repeated(1))]
    assert _failed_lines(small) == [("repeated items", 1, "100")]
    bare = [{k: v for k, v in line.items() if not k.endswith("_hash")} for line in _lines(200)]
    assert _failed_lines(bare) == []


def test_cut_contexts_are_counted_and_fail_above_a_tenth():
    for times, found in ((4, []), (5, [("cut contexts", 5, "0")])):
        lines = _lines(40, **{f"item{i}": {"truncated": True} for i in range(times)})
        assert _failed_lines(lines) == found
    meta = {"scoring": {"items": 40, "truncated": 4, "prompts": 20, "prompts_truncated": 3}}
    run = MemoryRun([[0.0, -1.0]], [0], **meta)
    result = compare(run, run, **QUICK)
    assert [text for text in result.warnings if "cut" in text] == [
        "4 of 40 items have a context that was cut on the left to fit the model",
        "3 of 20 prompts were cut on the left to fit the model with what they may generate",
    ]
    failed = [c for c in result.checks if c.check == "cut prompts" and not c.passed]
    assert [c.count for c in failed] == [3, 3]


def test_choices_that_start_with_a_special_token_fail():
    lines = _lines(3, item0={"special_start": False}, item1={"special_start": True})
    lines[2] |= {"special_start": False, "boundary_merge": True}
    run = MemoryRun([[0.0, -1.0]] * 2 + [[0.0, -2.0]], [0, 1, 0], lines=lines)
    found = [c for c in compare(run, run, **QUICK).checks if c.check == "BOS and leading space"]
    assert [(c.passed, c.count, c.first) for c in found] == [(False, 1, "1")] * 2
    assert "1 where the tokenizer joined" in found[0].detail


def test_log_likelihoods_that_were_not_finite_fail():
    reason = "the log-likelihood of choice 1 is nan"
    lines = _lines(3, item1={"ll": None, "reason": reason}, item2={"ll": None, "reason": "long"})
    run = MemoryRun([[0.0, -1.0]], [0], ids=["0"], lines=lines)
    failed = [c for c in compare(run, run, **QUICK).checks if not c.passed]
    assert [(c.check, c.count, c.first) for c in failed if c.first] == [
        *[("log-probabilities", 1, "1")] * 2,
        ("unscored items", 2, "1"),
    ]


def test_contexts_cut_in_one_run_only_are_no_pair():
    lines = [_lines(12), _lines(12, item1={"truncated": True})]
    z, gold = [[0.0, -1.0], [0.0, -2.0], [-3.0, 0.0]] * 4, [0, 1, 0] * 4
    a, b = (MemoryRun(z, gold, lines=one) for one in lines)
    failed = [c for c in compare(a, b, **QUICK).checks if not c.passed]
    assert [(c.check, c.count, c.first) for c in failed] == [("pair identity", 1, "1")]
    assert all(c.passed for c in compare(a, a, **QUICK).checks)


def test_accuracy_at_chance_is_a_warning():
    z = np.random.default_rng(5).normal(size=(60, 2))
    gold = np.random.default_rng(6).integers(0, 2, 60)
    result = compare(MemoryRun(z, gold), MemoryRun(z, gold), **QUICK)
    assert sum("is not shown to be above chance" in text for text in result.warnings) == 2
    assert result.models["a"]["at_chance"] and result.models["b"]["at_chance"]
    marks = [c for c in result.checks if c.check == "chance"]
    assert all(c.passed and "at_chance, no claim on confidence" in c.detail for c in marks)
    sure = compare(*v1_runs(), **QUICK)
    assert not any("chance" in text for text in sure.warnings)
    assert not sure.models["a"]["at_chance"]


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("right", "marked"), [(20, True), (60, True), (61, False)])
def test_accuracy_below_chance_is_a_warning_whatever_the_level(right, marked, level):
    """Of 100 items with two choices: the exact 95 % interval starts at 0.4972 for 60 right answers,
    at 0.5073 for 61."""
    towards = np.linspace(0.5, 1.0, 100) * np.where(np.arange(100) < right, 1.0, -1.0)
    z = np.stack([towards, -towards], axis=1)
    run = MemoryRun(z, np.zeros(100, dtype=int))
    result = compare(run, run, resamples=100, level=level)
    assert result.models["b"]["at_chance"] is marked
    assert sum("is not shown to be above chance" in text for text in result.warnings) == 2 * marked


def test_ratio_of_speeds_is_welchs():
    """Against SciPy's Welch interval of the logarithms."""
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    first, second = rng.lognormal(3.0, 0.05, 5), rng.lognormal(3.3, 0.1, 7)
    rates = {"decode_tok_s": {"values": list(first)}}, {"decode_tok_s": {"values": list(second)}}
    found = speed_changes(*rates, level=0.9)
    test = ttest_ind(np.log(second), np.log(first), equal_var=False).confidence_interval(0.9)
    one = found["decode_tok_s"]
    assert list(found) == ["decode_tok_s"] and one.interval == "welch"
    assert float(one) == pytest.approx(np.exp(np.log(second).mean() - np.log(first).mean()))
    assert (one.lower, one.upper) == pytest.approx((np.exp(test.low), np.exp(test.high)))
    assert speed_changes(None, rates[1]) == {}
    bare = speed_changes({"decode_tok_s": {"value": 1.0}}, rates[1])["decode_tok_s"]
    assert bare.value is None and "2 repeats" in bare.reason
    same = speed_changes(*[{"prefill_tok_s": {"values": [2.0, 2.0]}}] * 2)["prefill_tok_s"]
    assert (same.lower, same.value, same.upper) == (1.0, 1.0, 1.0)


def test_clusters_that_the_candidate_alone_records_count():
    runs = [MemoryRun(side.scores().z, side.scores().gold, lines=[]) for side in v1_runs()]
    for run, group in zip(runs, (None, 100), strict=True):
        run._lines = [
            {"id": str(i), "task": "t", "ll": [-1.0, -2.0], "cluster": group and i // group}
            for i in range(500)
        ]
    assert compare(*runs, **QUICK).protocol["clusters"] == 5
    assert compare(*reversed(runs), **QUICK).protocol["clusters"] == 5


def test_slices_that_the_candidate_declares_otherwise_are_told_and_those_of_the_reference_count():
    a, b = v1_runs()
    b._scores["slices"] = [{"part": "x"}] * 500
    found = compare(a, b, **QUICK)
    assert found.warnings[0].startswith("500 items have other slices in b than in a (t/0, t/1")
    assert len(found.slices) == 5
    b._scores["slices"] = [{}] * 500
    assert not compare(a, b, **QUICK).warnings


def test_the_task_is_a_slice_also_beside_a_slice_key_of_that_name():
    scores = m.Scores.from_arrays(np.zeros((2, 2)), [0, 1], slices=[{"task": "z"}] * 2)
    keys = slice_keys(replace(scores, tasks=("x", "y")))
    assert [one["task"] for one in keys] == ["x", "y"]


def test_runs_in_the_wrong_order_and_one_run_twice_are_told():
    a, b = v1_runs()
    a.meta["weight_hash"], b.meta["weight_hash"] = "1", "2"
    assert not compare(a, b, **QUICK).warnings
    assert compare(b, a, **QUICK).warnings[0].startswith("the reference is quantized (nf4) and the")
    assert compare(b, b, **QUICK).warnings == (
        "both runs are of the same weights: the changes are those of re-runs",
    )


@pytest.mark.parametrize(("unscored", "passed"), [(5, True), (6, False)])
def test_items_that_no_run_scored_are_told_and_many_of_them_fail(unscored, passed):
    z = np.random.default_rng(0).normal(-8.0, 1.0, (500, 3)).tolist()
    facts = {"task": "t", "kind": "choice", "slices": {}, "gold": 0}
    lines = [{**facts, "id": str(i), "ll": row} for i, row in enumerate(z)]
    for line in lines[:unscored]:
        line |= {"ll": None, "reason": "too long for the model"}
    run = Run.of({"model": {"name": "toy"}, "text": []}, lines)
    found = compare(run, run, **QUICK)
    (check,) = [one for one in found.checks if one.check == "unscored items"]
    assert (check.passed, check.count, check.first) == (passed, unscored, "0")
    told = f"{unscored} of 500 items were not scored in a and say nothing, the first t/0: too long"
    assert found.warnings[0].startswith(told)
    assert found.protocol["n"] == 500 - unscored
