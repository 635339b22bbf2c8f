"""The appendix of the page: every measure of both models, the divergences between them, and tests
of their difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calibit import numbers
from calibit.numbers import Style
from calibit.reporting import wording
from calibit.reporting.view import Candidate

Line = tuple[str, ...]

HEADS = ("measure", "original", "quantized", "change", "interval of the change", "how")

_PERCENT, _PLAIN, _SMALL = Style(2, 100), Style(4), Style(4, small=True)

_MEASURES = {
    # metric id: words, unit, style
    "acc": ("accuracy", "%", _PERCENT),
    "conf": ("confidence", "%", _PERCENT),
    "conf_true": ("confidence in the right answer", "%", _PERCENT),
    "conf_err": ("confidence where wrong", "%", _PERCENT),
    "conf_correct": ("confidence where right", "%", _PERCENT),
    "overconfidence": ("confidence minus accuracy", "points", _PERCENT),
    "margin": ("best minus second probability", "points", _PERCENT),
    "entropy": ("entropy", "nats", _PLAIN),
    "entropy_normalised": ("entropy as a share of its largest, ln K", "", _PLAIN),
    "abs_gap": ("distance of confidence from right or wrong", "points", _PERCENT),
    "ece": ("ECE, bins of equal width", "points", _PERCENT),
    "ece_mass": ("ECE, bins of equal count", "points", _PERCENT),
    "mce": ("largest gap of a bin (MCE)", "points", _PERCENT),
    "rmsce": ("root mean square gap (RMSCE)", "points", _PERCENT),
    "sce": ("static calibration error, by class", "points", _PERCENT),
    "ace_nixon": ("adaptive calibration error, by class (Nixon)", "points", _PERCENT),
    "tace": ("the same above probability 0.01 (TACE)", "points", _PERCENT),
    "debiased_l2": ("root mean square gap, debiased", "points", _PERCENT),
    "plugin_l2": ("the same without the correction", "points", _PERCENT),
    "debiased_l2_marginal": ("root mean square gap by class, debiased", "points", _PERCENT),
    "debiased_l1": ("mean gap, debiased", "points", _PERCENT),
    "smece": ("smooth ECE", "points", _PERCENT),
    "ece_null": ("ECE of a calibrated model by chance", "points", _PERCENT),
    "brier": ("Brier score", "", _PLAIN),
    "brier_top1": ("Brier score of the top answer", "", _PLAIN),
    "nll": ("NLL of the right answer", "nats", _PLAIN),
    "auroc": ("AUROC of the confidence", "", _PLAIN),
    "aurc": ("area under the risk-coverage curve", "", _PLAIN),
    "e_aurc": ("the same in excess of the best order", "", _PLAIN),
    "sel_acc@0.5": ("accuracy of the surer half", "%", _PERCENT),
    "ties": ("exact ties at the top", "items", Style(0)),
}
_DIVERGENCES = {
    "kl_ab": ("KL, original to quantized", "nats", _SMALL),
    "kl_ba": ("KL, quantized to original", "nats", _SMALL),
    "jsd": ("Jensen\u2013Shannon divergence", "bits", _SMALL),
    "js_distance": ("Jensen\u2013Shannon distance, base 2", "", _SMALL),
    "tv": ("total variation", "points", Style(2, 100, small=True)),
}
_TESTED = {"conf_true": "confidence in the right answer", "nll": "NLL", "brier": "Brier score"}


def context(measured: Sequence[Candidate]) -> list[dict[str, Any]]:
    """What the template shows: a table a candidate, and sentences of tests below it."""
    return [
        {
            "name": str(one["scheme"]),
            "rows": [*_measures(one["comparison"]), *_divergences(one["comparison"])],
            "tests": _tests(one["comparison"]),
        }
        for one in measured
    ]


def _measures(comparison: Mapping[str, Any]) -> list[Line]:
    rows: list[Line] = []
    for key, before in comparison["a"].items():
        words, unit, style = _MEASURES.get(key, (key, str(before.get("unit") or ""), _PLAIN))
        after, moved = comparison["b"][key], comparison["deltas"].get(key) or {}
        signed = Style(style.digits, style.scale, signed=True)
        change = "" if moved.get("value") is None else signed.value(moved["value"])
        bounds = signed.interval(moved.get("lower"), moved.get("upper"))
        both = style.value(before["value"]), style.value(after["value"])
        rows.append((_named(words, unit), *both, change, bounds, _how(before)))
    return rows


def _divergences(comparison: Mapping[str, Any]) -> list[Line]:
    rows: list[Line] = []
    for key, (words, unit, style) in _DIVERGENCES.items():
        found = comparison[key]
        largest = found["extra"].get("max")
        how = _how(found) if largest is None else f"largest {style.value(largest)}; {_how(found)}"
        bounds = style.interval(found["lower"], found["upper"])
        rows.append((_named(words, unit), "", "", style.value(found["value"]), bounds, how))
    return rows


def _named(words: str, unit: str) -> str:
    return f"{words}, {unit}" if unit else words


def _how(estimate: Mapping[str, Any]) -> str:
    """Estimator, number of items and bins; the reason where there is no value."""
    if estimate["value"] is None:
        return str(estimate["reason"])
    facts, parts = estimate["extra"], [str(estimate["estimator"]), f"n {estimate['n']}"]
    if facts.get("bins"):
        parts.append(
            f"{facts['bins']} bins" + (f" ({facts['binning']})" if "binning" in facts else "")
        )
    if facts.get("n_bin") is not None:
        parts.append(f"a bin of {facts['n_bin']}")
    if facts.get("p95") is not None:
        parts.append(f"1 in 20 above {_PERCENT.value(facts['p95'])}")
    if facts.get("biased_estimator"):
        parts.append("biased")
    return ", ".join(parts)


def _tests(comparison: Mapping[str, Any]) -> list[str]:
    """McNemar, paired t, Wilcoxon and sign flips, in a sentence each."""
    found, said = comparison["mcnemar"], []
    if found:
        exact, mid = (numbers.p_value(found[key]) for key in ("p", "mid_p"))
        moved = f"{found['rw']} right to wrong, {found['wr']} wrong to right"
        said.append(f"McNemar: exact p {exact}, mid-p {mid} ({moved}).")
    for metric, tests in (comparison.get("tests") or {}).items():
        parts = []
        if tests["paired_t"]:
            t, df = tests["paired_t"]["statistic"], tests["paired_t"]["df"]
            p = numbers.p_value(tests["paired_t"]["p"])
            parts.append(f"paired t {numbers.fixed(t, digits=2)} ({df} degrees), p {p}")
        if tests["wilcoxon"]:
            parts.append(f"Wilcoxon p {numbers.p_value(tests['wilcoxon']['p'])}")
        parts.append(f"sign flips p {numbers.p_value(tests['sign_flip'])}")
        said.append(f"Change of {_TESTED.get(metric, metric)}: {'; '.join(parts)}.")
    if comparison.get("mde"):
        said.append(_smallest(comparison["mde"]))
    recovery = comparison.get("recovery")
    if recovery and recovery["value"] is not None:
        share = numbers.fixed(recovery["value"], digits=1, scale=100)
        said.append(f"Recovery of the accuracy (quantized / original): {share} %.")
    return said


def _smallest(mde: Mapping[str, float]) -> str:
    """The damages that the items would have shown, had they been there."""
    parts = [wording.amount(metric, value) for metric, value in mde.items()]
    return (
        "Smallest damage that so many items show with a power of 80 %, at the level of the "
        f"intervals and from the spread seen: {'; '.join(parts)}."
    )
