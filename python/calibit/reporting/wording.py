"""The words of a report: verdicts, gates, explanations, for readers new to all of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calibit.reporting import numbers

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
    "inconclusive": VerdictWords("?", "Inconclusive", "too few items to tell; more are needed"),
    "failed": VerdictWords("!", "Failed", "could not be measured"),
}

_GATE_WORDS = {
    "acc": ("accuracy", "points", 100.0, 1),
    "conf_true": ("confidence in the right answer", "points", 100.0, 2),
    "nll": ("NLL of the right answer", "nats", 1.0, 3),
    "brier": ("Brier score", "", 1.0, 3),
    "brier_top1": ("Brier score of the top answer", "", 1.0, 3),
    "text_nll": ("NLL of the text", "nats", 1.0, 3),
}
_WORST = "worst_slice."

GATE_STATES = {"pass": "passes", "fail": "exceeds the margin", "open": "open"}


def gate_words(gate: Gate) -> tuple[str, str, float, int]:
    """(name, unit, factor, decimals) of a gate's damage."""
    metric = str(gate["metric"])
    name, unit, factor, digits = _GATE_WORDS.get(
        metric.removeprefix(_WORST),
        (metric.removeprefix(_WORST), str(gate.get("unit", "")), 1.0, 3),
    )
    return (f"{name}, worst slice" if metric.startswith(_WORST) else name), unit, factor, digits


def gate_margin(gate: Gate) -> str:
    """The margin with its unit, "3 points"."""
    _, unit, factor, _ = gate_words(gate)
    return f"{factor * gate['margin']:g} {unit}".strip()


def gate_need(gate: Gate) -> str:
    """What an open gate would need, in a few words; empty for a settled one."""
    if gate["state"] != "open":
        return ""
    if gate["n_needed"] is None:
        return "more items would hardly help"
    place = " in it" if gate.get("slice") else ""
    wanted, used = numbers.count(gate["n_needed"]), numbers.count(gate["n"])
    return f"needs about {wanted} {gate['units']}{place}, has {used}"


def gate_line(gate: Gate) -> str:
    """A gate in one line: what, how much, against what, what is missing."""
    name, unit, factor, digits = gate_words(gate)
    where = f" ({gate['slice']})" if gate.get("slice") else ""
    damage = numbers.fixed(gate["damage"], digits=digits, scale=factor, signed=True)
    bounds = numbers.interval(gate["lower"], gate["upper"], digits=digits, scale=factor)
    need = gate_need(gate)
    text = (
        f"{name}{where}: damage {damage} {bounds} {unit}".rstrip() + f", margin {gate_margin(gate)}"
    )
    return text + (f"; {need}" if need else "")


def decisive(verdict: Mapping[str, Any]) -> list[str]:
    """Why a verdict is what it is, in short: deciding gates, and what could not be judged."""
    gates = verdict["gates"]
    wanted = {"hold": "fail", "inconclusive": "open"}.get(verdict["verdict"])
    lines = [gate_line(gate) for gate in gates if gate["state"] == wanted]
    if verdict["verdict"] == "ship":
        lines = [f"all {len(gates)} measures stay below their margins"]
    about_gates = {_sentence_of(gate) for gate in gates}
    other = [typeset(reason) for reason in verdict["reasons"] if reason not in about_gates]
    return other + lines if verdict["verdict"] == "inconclusive" else lines + other


def deciding_sentences(verdict: Mapping[str, Any]) -> list[str]:
    """The verdict's own sentences, without those about gates that do not decide it."""
    wanted = {"hold": "fail", "inconclusive": "open"}.get(verdict["verdict"])
    beside = {_sentence_of(gate) for gate in verdict["gates"] if gate["state"] != wanted}
    return [typeset(reason) for reason in verdict["reasons"] if reason not in beside]


def _sentence_of(gate: Gate) -> str:
    """The sentence that `calibit.verdict` puts among the reasons for this gate."""
    from calibit.verdict import Gate as GateValue
    from calibit.verdict.sentences import gate_sentence

    known: dict[str, Any] = dict(gate)
    for key, open_end in (("lower", -math.inf), ("upper", math.inf)):
        known[key] = open_end if known[key] is None else known[key]
    return gate_sentence(GateValue(**known))


def sentence(text: str) -> str:
    """A phrase as a sentence: a capital at the start, a full stop at the end."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def typeset(text: str) -> str:
    """Text of other parts in the report's typography: true minus signs, a space before percent."""
    return re.sub(
        r"(?<=\d)%", f"{numbers.NO_BREAK}%", re.sub(r"(?<![\w.\-])-(?=\d)", numbers.MINUS, text)
    )


INTERVALS = (
    "A 95 % interval, printed as [low, high], holds the values that the data do not contradict: "
    "repeated with other items of the same kind, 95 of 100 such intervals would hold the true "
    "value. Both models answer the same items, so a difference and its interval are computed item "
    "by item, which is far more precise than comparing two averages. An interval that includes 0 "
    "does not show that nothing changed; only an interval that ends below a margin shows that the "
    "damage is smaller than that margin."
)

TRADE_OFF = (
    "Each mark is a model: how much memory its weights take, and how much worse it predicts. Lower "
    "and further left is better. Vertical lines are 95 % intervals; colours are those of the "
    "verdicts above."
)

SPEED = (
    "Speed belongs to the kernels and this machine, not to the scheme alone; on a machine that "
    "others use too it moves by tens of percent. Kernels named torch are those of PyTorch."
)

KEPT = (
    "Every number of this page, with its estimator, sample size, interval method and seed, is in "
    "audit.json beside it; the answers of every model to every item are under runs/."
)

_LIMITS = (
    "The margins are conventions. What damage is acceptable depends on what the model is for: set "
    "your own with --policy.",
    "Multiple choice and perplexity do not test long answers, tool use, safety or long contexts. "
    "Evaluate the quantized model on its intended workload too.",
    "The baseline was evaluated once, so changes by numerical noise alone are not subtracted.",
    "ECE is biased upwards on few items, and its interval covers the truth too rarely; it is shown "
    "and never decides.",
)

_PROBE = (
    "The probe set is a smoke test made for calibit, not a benchmark: simple facts in a few "
    "languages. It shows whether something broke, not how good the model is."
)


def caveats(audit: Mapping[str, Any]) -> list[str]:
    """What the reader must not conclude."""
    probe = any(task["name"] == "probe" for task in audit["protocol"]["tasks"])
    return [*([_PROBE] if probe else []), *_LIMITS]


GLOSSARY = (
    ("Accuracy", "Share of questions whose right answer gets the highest probability."),
    ("Baseline", "The original model that every candidate is compared with."),
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
    ("Candidate", "A quantized version of the baseline."),
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
        "KL",
        "Kullback\u2013Leibler divergence from the baseline's probabilities over the choices to "
        "the candidate's; 0 means unchanged. It says how much changed, not whether for better or "
        "worse.",
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
        "Worst slice",
        "The slice with the largest damage that the data support, with bounds that allow for "
        "having searched all slices.",
    ),
)
