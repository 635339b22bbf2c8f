"""The words of a report: verdicts, gates, explanations, for readers new to all of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calibit import numbers
from calibit.measures.intervals import FEW_CLUSTERS, few_clusters
from calibit.numbers import Style
from calibit.verdict.sentences import DIVERGENCES

Gate = Mapping[str, Any]


@dataclass(frozen=True)
class VerdictWords:
    """How a verdict is shown: never by colour alone.

    Attributes:
        sign: a character of its own shape.
        word: one or two words.
        meaning: a sentence for the legend.
    """

    sign: str
    word: str
    meaning: str


VERDICTS = {
    "ship": VerdictWords("\u2713", "Ship", "every damage is shown to stay below its margin"),
    "hold": VerdictWords("\u2715", "Hold", "some damage is shown to exceed its margin"),
    "inconclusive": VerdictWords("?", "Inconclusive", "these items show neither"),
    "failed": VerdictWords("!", "Failed", "could not be measured"),
}

ALARM = "the measurement failed its own checks; no verdict and no number below can be relied on."
AT_CHANCE = "Its accuracy is not shown to be above chance: nothing is claimed about its confidence."
SELF_AUDIT = (
    "Before any verdict the instrument checks itself: on data with a known answer, on the items "
    "it was given, and by comparing each model with itself. A line that fails makes every verdict "
    "inconclusive."
)

_GATE_WORDS = {
    "acc": ("accuracy", "points", 100.0, 1),
    "conf_true": ("confidence in the right answer", "points", 100.0, 2),
    "nll": ("NLL of the right answer", "nats", 1.0, 3),
    "brier": ("Brier score", "", 1.0, 3),
    "brier_top1": ("Brier score of the top answer", "", 1.0, 3),
    "coverage": ("coverage at the original's threshold", "points", 100.0, 1),
    "false_accepts": ("false accepts at the original's threshold", "points", 100.0, 1),
    "all_flips": ("changed answers, excess over re-runs", "points", 100.0, 1),
    "kl": ("KL, excess over re-runs", "nats", 1.0, 4),
    "text_nll": ("NLL of the text", "nats", 1.0, 3),
    "gen_acc": ("accuracy of free-text answers", "points", 100.0, 1),
    "repetition": ("repeated 4-grams of free text", "points", 100.0, 1),
    "token_kl": ("token KL on the workload", "nats", 1.0, 4),
}
_WORST = "worst_slice."

GATE_STATES = {
    "pass": "passes",
    "fail": "exceeds the margin",
    "open": "open",
    "unjudged": "not judged: every slice is too small to pass",
}


def gate_words(gate: Gate) -> tuple[str, str, float, int]:
    """(name, unit, factor, decimals) of a gate's damage."""
    metric = str(gate["metric"])
    name, unit, factor, digits = _GATE_WORDS.get(
        metric.removeprefix(_WORST),
        (metric.removeprefix(_WORST), str(gate.get("unit", "")), 1.0, 3),
    )
    return (f"{name}, worst slice" if metric.startswith(_WORST) else name), unit, factor, digits


def amount(metric: str, value: float, *, bare: bool = False) -> str:
    """A damage with name and unit, "accuracy 3.1 points"; `bare` leaves off the name."""
    name, unit, factor, digits = gate_words({"metric": metric})
    shown = f"{numbers.fixed(value, digits=digits, scale=factor)} {unit}".rstrip()
    return shown if bare else f"{name} {shown}"


def gate_style(gate: Gate) -> Style:
    """How a gate's damage and bounds are printed."""
    _, _, factor, digits = gate_words(gate)
    return Style(digits, factor, signed=True, small=gate["metric"] in DIVERGENCES)


def gate_margin(gate: Gate) -> str:
    """The margin with its unit, "3 points"."""
    _, unit, factor, _ = gate_words(gate)
    return f"{factor * gate['margin']:g} {unit}".strip()


def gate_need(gate: Gate) -> str:
    """What an open gate would need, in a few words; empty for a settled one."""
    if gate["state"] != "open":
        return ""
    strict = gate.get("strict_lower")
    if strict is not None and gate["lower"] is not None and gate["lower"] > gate["margin"]:
        begins = gate_style(gate).value(strict)
        level = numbers.percent(gate["strict_level"])
        return f"at {level}, which hold takes, it begins at {begins}"
    if gate["n_needed"] is None:
        return "more items would hardly make it pass"
    effective = gate.get("effective_clusters")
    if effective is not None and few_clusters(effective):
        has = numbers.count(round(effective))
        has += "" if round(effective) == gate["clusters"] else " effective ones"
        return f"needs {numbers.plural(FEW_CLUSTERS, 'cluster')}, has {has}"
    place = " in it" if gate.get("slice") else ""
    units = str(gate["units"])
    wanted = numbers.plural(gate["n_needed"], units.removesuffix("s"))
    return f"needs about {wanted}{place}, has {numbers.count(gate['n'])}"


def gate_bounds(gate: Gate) -> tuple[str, str]:
    """The interval that decides a gate, "[−0.2, +8.0]", and what is special about it."""
    bounds = gate_style(gate).interval(gate["lower"], gate["upper"])
    level = numbers.percent(gate["level"]).replace(" ", numbers.NO_BREAK)
    special = f"{level} interval" if gate["state"] == "fail" else ""
    if gate.get("all_at_once"):
        special = f"{special or 'interval'} for all slices at once"
    return bounds, special if bounds else ""


def gate_slice(gate: Gate) -> str:
    """Which slice a gate is about and its size, "arithmetic, 43 items"; empty without one."""
    if not gate.get("slice"):
        return ""
    return f"{slice_words(gate['slice'])}, {numbers.plural(gate['n'], 'item')}"


def gate_line(gate: Gate) -> str:
    """A gate in one line: what, how much, against what, what is missing."""
    name, unit, *_ = gate_words(gate)
    where = f" ({slice_words(gate['slice'])})" if gate.get("slice") else ""
    damage = gate_style(gate).value(gate["damage"])
    bounds, special = gate_bounds(gate)
    seen = " ".join(filter(None, (damage, unit, bounds, f"({special})" if special else "")))
    need = gate_need(gate)
    text = f"{name}{where}: damage {seen}, margin {gate_margin(gate)}"
    return text + (f"; {need}" if need else "")


def slice_words(name: str) -> str:
    """A slice name without its keys: "domain=capitals, lang=en" becomes "capitals, en"."""
    return ", ".join(part.partition("=")[2] or part for part in name.split(", "))


def rule(gates: Sequence[Gate], level: float) -> str:
    """How intervals and margins make a verdict.

    Args:
        gates: the gates of one candidate.
        level: level of the intervals.
    """
    strict = next((gate["strict_level"] for gate in gates if gate.get("strict_level")), None)
    plain = numbers.percent(level)
    held = f"at {numbers.percent(strict)}" if strict else "at a higher level"
    worst = any(gate.get("slice") for gate in gates)
    text = (
        f"Each line is an interval for how much worse the quantized model is; right is worse. The "
        "dashed line is the margin, the damage the policy allows. A measure passes if its "
        f"{plain} interval ends left of the margin; ship needs all to pass. It exceeds the margin "
        f"if even its interval {held} ({plain} corrected for {len(gates)} measures) begins right "
        "of it; one such measure means hold. Anything else is open."
    )
    return text + (f" {WORST_SLICE_RULE}" if worst else "")


WORST_SLICE_RULE = (
    "For a worst slice all slices must pass, so the one with the largest upper bound is shown; one "
    "slice that exceeds the margin means hold, with bounds that allow for having looked at all."
)


def too_small(gates: Sequence[Gate]) -> str:
    """Which slices were too small to rest `ship` on; empty where there are none."""
    found = [gate for gate in gates if gate.get("too_small")]
    if not found:
        return ""
    gate = found[0]
    names = numbers.join([slice_words(name) for name in gate["too_small"]])
    return (
        f"Too small to judge by {gate_words(gate)[0].partition(',')[0]} (fewer than "
        f"{gate['n_least']} items, which cannot stay within {gate_margin(gate)} even where no "
        f"answer changes): {names}. They could cause a hold; ship does not rest on them."
    )


def decisive(verdict: Mapping[str, Any]) -> list[str]:
    """Why a verdict is what it is, in short: deciding gates, and what could not be judged."""
    gates = verdict["gates"]
    wanted = {"hold": "fail", "inconclusive": "open"}.get(verdict["verdict"])
    lines = [gate_line(gate) for gate in gates if gate["state"] == wanted]
    about_gates = {one for gate in gates for one in _sentences_of(gate)}
    if verdict["verdict"] == "ship":
        judged = [gate for gate in gates if gate["state"] != "unjudged"]
        stay = "the only measure stays below its margin"
        if len(judged) != 1:
            stay = f"all {len(judged)} measures stay below their margins"
        lines = [stay]
        about_gates = {_sentences_of(gate)[0] for gate in gates}
    reasons = verdict["reasons"]
    place = next((i for i, one in enumerate(reasons) if one in about_gates), len(reasons))
    before, after = (
        [typeset(one) for one in part if one not in about_gates]
        for part in (reasons[:place], reasons[place:])
    )
    return (
        [*before, *lines, *after]
        if verdict["verdict"] == "inconclusive"
        else lines + before + after
    )


def deciding_sentences(verdict: Mapping[str, Any]) -> list[str]:
    """The verdict's own sentences, without those about gates that do not decide it and about slices
    too small to judge, of which the page says more once."""
    wanted = {"hold": "fail", "inconclusive": "open"}.get(verdict["verdict"])
    beside = set()
    for gate in verdict["gates"]:
        own, *about_slices = _sentences_of(gate)
        beside |= {*about_slices, *([own] if gate["state"] != wanted else [])}
    return [typeset(reason) for reason in verdict["reasons"] if reason not in beside]


def _sentences_of(gate: Gate) -> list[str]:
    """The sentences that `calibit.verdict` puts among the reasons for this gate."""
    from calibit.verdict import Gate as GateValue
    from calibit.verdict.sentences import gate_sentence, small_sentence

    known: dict[str, Any] = dict(gate)
    for key, open_end in (("lower", -math.inf), ("upper", math.inf)):
        known[key] = open_end if known[key] is None else known[key]
    value = GateValue(**known)
    return [gate_sentence(value), *([small_sentence(value)] if value.too_small else [])]


def text_words(text: Mapping[str, Any]) -> str:
    """How a text was cut for its perplexity, "9 disjoint windows of 512 tokens".

    Args:
        text: name, protocol, tokens and windows; the protocol is an id as `calibit.evaluation`
            gives it.
    """
    kind, _, rest = str(text["protocol"]).partition("@")
    size = next((part[1:] for part in rest.split("@") if part.startswith("w")), "")
    if kind == "gptq":
        size = f" of {numbers.count(int(size or _GPTQ_WINDOW))} tokens"
        return f"{numbers.plural(text['windows'], 'disjoint window')}{size}"
    if kind == "documents":
        most = f", at most {numbers.count(int(size))} tokens of each" if size else ""
        return f"{numbers.plural(text['windows'], 'document')}, each read alone{most}"
    told = _PROTOCOL_WORDS.get(kind, f"protocol {text['protocol']}")
    size = f" of at most {numbers.count(int(size))} tokens" if size else ""
    return f"{numbers.plural(text['windows'], 'window')}{size}, {told}"


_PROTOCOL_WORDS = {
    "llama_cpp": "second half scored as llama.cpp does",
    "lm_eval": "rolling as in lm-evaluation-harness; perplexity per word of the raw page",
    "hf_stride": "sliding as in the guide of Hugging Face transformers",
}


def calibration_words(names: Sequence[str], calibration: Mapping[str, Any]) -> str:
    """What candidates were calibrated on, "gptq-int4-g128 was calibrated on …"."""
    sequences = numbers.plural(calibration["sequences"], "sequence")
    were = "was" if len(names) == 1 else "were"
    return (
        f"{numbers.join(list(names))} {were} calibrated on {numbers.count(calibration['tokens'])} "
        f"tokens of {calibration['source']}, {sequences}."
    )


_GPTQ_WINDOW = 2048


def sentence(text: str) -> str:
    """A phrase as a sentence: a capital at the start, a full stop at the end."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def typeset(text: str) -> str:
    """Text of other parts in the report's typography: true minus signs, a space before percent."""
    return re.sub(
        r"(?<=\d)%", f"{numbers.NO_BREAK}%", re.sub(r"(?<![\w.\-])-(?=\d)", numbers.MINUS, text)
    )


def intervals(level: float) -> str:
    """What an interval of this level says and does not say."""
    return (
        f"A {numbers.percent(level)} interval, printed as [low, high], holds the values that the "
        f"data do not contradict: repeated with other items of the same kind, {100 * level:g} of "
        "100 such intervals would hold the true value. Both models answer the same items, so a "
        "difference and its interval are computed item by item, which is far more precise than "
        "comparing two averages. An interval that includes 0 does not show that nothing changed; "
        "only an interval that ends below a margin shows that the damage is smaller than that "
        "margin."
    )


def trade_off(level: float) -> str:
    """How to read the figure of memory against damage."""
    return (
        "Each mark is a model: how much memory its weights take, and how much worse it predicts. "
        "Lower and further left is better. Vertical lines are "
        f"{numbers.percent(level)} intervals; colours are those of the verdicts above."
    )


SPEED = (
    "The interval (Welch's t of the logarithms) holds for repeats one after another; models were "
    "measured minutes apart, and on a machine that others use too speeds move by tens of percent "
    "in between. Speed belongs to the kernels and this machine, not to the scheme alone. Kernels "
    "named torch are those of PyTorch."
)

PEAK_MEMORY = (
    "Peak memory is that of the whole process while it scored the items and the text: Python and "
    "its libraries, the weights, and the activations and log-probabilities of the largest batch; "
    "for a quantized model also what the C library has not handed back of the float model that it "
    "was made from. Batches are planned for throughput, so it is not what serving takes: compare "
    "the weight memory."
)

KEPT = (
    "Every number of this page, with its estimator, sample size, interval method and seed, is in "
    "audit.json beside it; the answers of every model to every item are under runs/."
)

MCNEMAR = (
    "The interval of the accuracy (Tango's score interval) and McNemar's exact p value put nearly "
    "the same question, but the exact test is conservative where few answers changed: near the "
    "border one may show a change and the other not. Colours and the verdict follow the interval."
)

_LIMITS = (
    "The margins are conventions. What damage is acceptable depends on what the model is for: set "
    "your own with --policy.",
    "Multiple choice and perplexity do not test long answers, tool use, safety or long contexts. "
    "Evaluate the quantized model on its intended workload too.",
    "ECE is biased upwards on few items, and its interval covers the truth too rarely; it is shown "
    "and never decides.",
)

_PROBE = (
    "The probe set is a smoke test made for calibit, not a benchmark: simple facts in a few "
    "languages. It shows whether something broke, not how good the model is."
)


_ONCE = "The original was evaluated once, so changes by numerical noise alone are not subtracted."


def caveats(audit: Mapping[str, Any]) -> list[str]:
    """What the reader must not conclude."""
    probe = any(task["name"] == "probe" for task in audit["protocol"]["tasks"])
    compared = [one["comparison"] for one in audit["candidates"] if one.get("comparison")]
    again = any((one.get("controls") or {}).get("noise") for one in compared)
    return [*([_PROBE] if probe else []), *_LIMITS, *([] if again else [_ONCE])]


GLOSSARY = (
    ("Accuracy", "Share of questions whose right answer gets the highest probability."),
    (
        "Bits per weight",
        "Stored bits divided by the number of weights, scales and other metadata included. The "
        "whole model counts embeddings and output head too, which usually stay in floating point.",
    ),
    (
        "Brier score",
        "Squared distance between the probabilities and the truth, summed over the choices; 0 is "
        "best, 2 worst.",
    ),
    ("Candidate", "A quantized version of the original."),
    (
        "Confidence",
        "The probability a model gives to the answer it picks, among the choices offered.",
    ),
    (
        "Confidence in the right answer",
        "The probability it gives to the true answer, whether it picks it or not (conf_true).",
    ),
    ("Damage", "A change with the sign chosen so that positive is worse."),
    (
        "Decode, prefill",
        "Tokens per second while writing one token after another, and while reading the prompt.",
    ),
    (
        "ECE",
        "Expected calibration error: items are put into 15 groups of similar confidence; the mean "
        "distance between confidence and accuracy over the groups. Even a calibrated model does "
        "not reach 0 on finite data, so it does not decide the verdict.",
    ),
    ("Flips", "Items answered rightly by one model and wrongly by the other, either way."),
    (
        "Greedy prefix",
        "The part of the original's answer that a candidate would have written too, before its "
        "first other token; both always take the most probable one.",
    ),
    (
        "KL",
        "Kullback\u2013Leibler divergence from the original's probabilities over the choices to "
        "the candidate's; 0 means unchanged. It says how much changed, not whether for better or "
        "worse.",
    ),
    (
        "Log margin",
        "How far ahead a model's answer is: the logarithm of its probability minus that of the "
        "second best, in nats.",
    ),
    (
        "Margin",
        "The damage the policy tolerates: a convention of whoever ships, not a finding.",
    ),
    (
        "NLL",
        "Negative log-likelihood: minus the logarithm of the probability of what is right. It "
        "punishes confident errors.",
    ),
    (
        "Perplexity",
        "How surprised a model is by a text, per token: the exponential of its mean NLL. Lower is "
        "better; values are comparable only under the same protocol and tokenizer.",
    ),
    (
        "Scheme",
        "How weights are quantized, for example gptq-int4-g128: solver, number format, weights "
        "per group.",
    ),
    ("Slice", "A group of items that belong together, such as a domain or a language."),
    (
        "Token KL",
        "The KL over the whole vocabulary at each token of the original's own answers, averaged.",
    ),
    (
        "Temperature",
        "A number that a model's scores are divided by. Above 1 it makes the model less sure, "
        "below 1 surer; the best answer stays the same.",
    ),
    (
        "Worst slice",
        "Of the verdict: the slice that may be damaged most, by the upper end of its interval, or "
        "the one that is shown to exceed the margin. The largest loss shown in a slice is another "
        "question: the slice whose damage is largest even at the lower end.",
    ),
)
