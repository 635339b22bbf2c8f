"""Checks on scores before any verdict: does the measuring itself hold together?

A failed check forces "inconclusive", whatever the numbers say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibit.measures.calibration import ece, ece_null
from calibit.measures.distributions import item_of, segment_sum
from calibit.measures.fidelity import kl_values
from calibit.measures.scores import UNLABELLED, Scores
from calibit.measures.summaries import panel

NOT_FINITE = "the log-likelihood of choice"
"""How the reason of an item begins that was left out for a log-likelihood that is not finite."""
SPECIAL_START = "special_start"
"""Field of an item line: whether a choice starts with a special token."""

ORACLE = 0.99
ORACLE_DRAWS = 100
MOST_OUTSIDE = 18
EXACT = 1e-12
CHANCE_LEVEL = 0.95

MOST_TIES = 0.01
MOST_REPEATED = 0.01
MOST_CUT = 0.1
MOST_CONSTANT = 0.05
LEAST_SPREAD = 1e-6

_BY_CLASS = ("sce", "ace_nixon", "tace", "debiased_l2_marginal")

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One line of the self-audit.

    Attributes:
        check: name.
        passed: whether it holds.
        count: how many items offend.
        first: id of the first offending item.
        detail: what was looked at, with numbers.
    """

    check: str
    passed: bool
    count: int
    first: str | None
    detail: str


def self_audit(scores: Scores, *, name: str, lines: Sequence[Line] = ()) -> list[Check]:
    """All checks that one model's scores allow.

    Args:
        scores: the items.
        name: the model, printed in front of each detail.
        lines: the run's item lines, for what scores do not hold (log-likelihoods, greedy flags).
    """
    if not scores.n:
        return []
    found = [
        _label_shuffle(scores),
        perfect_oracle(scores),
        calibrated_oracle(scores),
        _constant_confidence(scores),
        _ties(scores),
        _chance(scores),
    ]
    if (scores.distributions.k == 1).any():
        found.append(_single(scores))
    if lines:
        found += [_log_probabilities(lines), _accounting(lines), _greedy(lines)]
        found += [_repeated(lines), _cut_contexts(lines)]
    if any(SPECIAL_START in line for line in lines):
        found.append(_boundaries(lines))
    return [replace(check, detail=f"{name}: {check.detail}") for check in found]


def perfect_oracle(scores: Scores) -> Check:
    """Whether a model that gives every right answer 0.99 has accuracy 1, ECE 0.01 and NLL -ln 0.99.

    Args:
        scores: items with two choices or more; their numbers of choices and labels are used, choice
            0 where a label is unknown.
    """
    gold = np.maximum(scores.gold, 0)
    several = scores.distributions.k > 1
    z = []
    for label, choices in zip(gold, scores.distributions.k, strict=True):
        row = np.full(choices, math.log((1.0 - ORACLE) / max(1, choices - 1)))
        row[label] = math.log(ORACLE)
        z.append(row)
    oracle = replace(scores, gold=gold, z=tuple(z)).take(several)
    if not oracle.n:
        return Check("perfect oracle", True, 0, None, "no item has two choices")
    found = panel(oracle, simulate=False).estimates()
    expected = {"acc": 1.0, "ece": 1.0 - ORACLE, "nll": -math.log(ORACLE)}
    wrong = [key for key, value in expected.items() if abs(float(found[key]) - value) > EXACT]
    shown = ", ".join(f"{key} {float(found[key]):.6g}" for key in expected)
    detail = f"a model that gives every right answer {ORACLE}: {shown}"
    return Check("perfect oracle", not wrong, len(wrong), wrong[0] if wrong else None, detail)


def calibrated_oracle(scores: Scores) -> Check:
    """Whether labels drawn from the model's own probabilities make it look calibrated.

    Of ORACLE_DRAWS sets of labels about 5 % have an ECE above the 95 % point of `ece_null`; it
    fails where more than MOST_OUTSIDE have, which chance does in fewer than one of 10,000 audits.

    Args:
        scores: the items.
    """
    known, rng = scores.distributions, np.random.default_rng(0)
    owner, ends = item_of(known.offsets), np.cumsum(known.p)
    before = np.concatenate([[0.0], ends])[known.offsets[:-1]]
    limit = float(ece_null(known.confidence).extra["p95"]) + EXACT
    drawn = []
    for _ in range(ORACLE_DRAWS):
        passed = ends - before[owner] < rng.random(scores.n)[owner]
        label = np.minimum(segment_sum(1.0 * passed, known.offsets), known.k - 1)
        drawn.append(float(ece(known.confidence, known.predicted == label)))
    outside = int(np.sum(np.array(drawn) > limit))
    detail = (
        f"labels drawn from the model's own probabilities: ECE {np.median(drawn):.4f} (median), "
        f"{outside} of {ORACLE_DRAWS} draws above {limit:.4f}, the 95 % point of a calibrated model"
    )
    return Check("calibrated oracle", outside <= MOST_OUTSIDE, outside, None, detail)


def self_comparison(scores: Scores, stored: Scores, *, name: str) -> Check:
    """Whether a run read again from where it is stored is the run itself: KL 0 and no flip.

    Args:
        scores: of the run as it is compared.
        stored: of the same run after writing and reading.
        name: the model, printed in front of the detail.
    """
    if scores.keys != stored.keys:
        detail = f"{name}: {stored.n} items read again, {scores.n} compared"
        return Check("self-comparison", False, abs(stored.n - scores.n), None, detail)
    kl = kl_values(scores.distributions, stored.distributions)
    flipped = scores.distributions.predicted != stored.distributions.predicted
    moved = np.flatnonzero((kl != 0.0) | flipped | (scores.gold != stored.gold))
    detail = (
        f"{name}: stored and read again, compared with itself: largest KL {kl.max(initial=0.0):.3g}"
        f", {int(flipped.sum())} flips"
    )
    return Check("self-comparison", not len(moved), len(moved), _first(scores, moved), detail)


def at_chance(scores: Scores) -> bool:
    """Whether the accuracy is not shown to be above chance, by its interval of CHANCE_LEVEL: then
    no claim on confidence should be made. An accuracy below chance is no better."""
    from calibit.measures.intervals import clopper_pearson

    known = scores.labelled
    if not known.any():
        return False
    right, n = int(scores.correct[known].sum()), int(known.sum())
    lower = clopper_pearson(right, n, level=CHANCE_LEVEL).lower
    return lower is not None and lower <= _chance_level(scores)


def _single(scores: Scores) -> Check:
    """Fails: there is nothing to choose, so such items are right with confidence 1 whatever the
    model does, and flatter every measure."""
    single = np.flatnonzero(scores.distributions.k == 1)
    detail = f"{len(single)} of {scores.n} items have one choice: right with confidence 1 always"
    return Check("single choice", False, len(single), _first(scores, single), detail)


def _chance_level(scores: Scores) -> float:
    return float(np.mean(1.0 / scores.distributions.k[scores.labelled]))


def _chance(scores: Scores) -> Check:
    """Passes either way: an accuracy at chance or below is no fault of measuring, but marked."""
    known = scores.labelled
    if not known.any():
        return Check("chance", True, 0, None, "no item is labelled")
    marked = "at_chance, no claim on confidence" if at_chance(scores) else "above chance"
    detail = (
        f"accuracy {100 * scores.correct[known].mean():.1f} % of {int(known.sum())} items, chance "
        f"{100 * _chance_level(scores):.1f} %: {marked}"
    )
    return Check("chance", True, 0, None, detail)


def _label_shuffle(scores: Scores) -> Check:
    rng = np.random.default_rng(0)
    z, gold = [], []
    for row, label in zip(scores.z, scores.gold, strict=True):
        order = rng.permutation(len(row))
        z.append(row[order])
        gold.append(UNLABELLED if label < 0 else int(np.flatnonzero(order == label)[0]))
    shuffled = Scores(
        scores.ids, scores.tasks, np.array(gold), tuple(z), scores.slices, scores.rule
    )
    # With a tie at the top the prediction is the first of the equal choices: left to its own check.
    clear = _clear(scores)
    before, after = (
        panel(side.take(clear), simulate=False).estimates() for side in (scores, shuffled)
    )
    moved = [
        key
        for key in before
        if key not in _BY_CLASS and before[key].value is not None
        if abs(before[key] - after[key]) > 1e-12
    ]
    detail = "choices shuffled with their labels; " + (
        f"changed: {', '.join(moved)}" if moved else "every metric unchanged to 1e-12"
    )
    return Check("label shuffle", not moved, len(moved), moved[0] if moved else None, detail)


def _constant_confidence(scores: Scores) -> Check:
    flat = np.flatnonzero([len(row) > 1 and np.ptp(row) == 0.0 for row in scores.z])
    spread = float(np.std(scores.distributions.confidence))
    share = len(flat) / scores.n
    passed = (spread > LEAST_SPREAD or scores.n == 1) and share < MOST_CONSTANT
    detail = f"confidence has sd {spread:.2g}; {len(flat)} items with all scores equal"
    return Check("constant confidence", passed, len(flat), _first(scores, flat), detail)


def _ties(scores: Scores) -> Check:
    tied = np.flatnonzero(~_clear(scores))
    share = len(tied) / scores.n
    detail = f"{len(tied)} of {scores.n} items with an exact tie at the top (limit {MOST_TIES:.0%})"
    return Check("exact ties", share <= MOST_TIES, len(tied), _first(scores, tied), detail)


def _log_probabilities(lines: Sequence[Line]) -> Check:
    bad = [str(line["id"]) for line in lines if _improbable(line)]
    detail = f"{len(bad)} items with a log-likelihood that is positive or not finite"
    return Check("log-probabilities", not bad, len(bad), bad[0] if bad else None, detail)


def _improbable(line: Line) -> bool:
    """Whether a log-likelihood is positive beyond rounding or was not finite."""
    if line.get("ll") is None:
        return str(line.get("reason") or "").startswith(NOT_FINITE)
    return not all(np.isfinite(value) and value <= 1e-6 for value in line["ll"])


def _accounting(lines: Sequence[Line]) -> Check:
    left_out = [line for line in lines if line.get("ll") is None and line.get("kind") == "choice"]
    silent = [str(line["id"]) for line in left_out if not line.get("reason")]
    known = Counter((str(line.get("task")), str(line["id"])) for line in lines)
    bad = silent + [item for (_, item), count in known.items() if count > 1]
    detail = (
        f"{len(lines)} items, each once; {len(left_out)} not scored, {len(silent)} of them without "
        "reason"
    )
    if len(bad) > len(silent):
        detail = detail.replace("each once", f"{len(bad) - len(silent)} more than once")
    return Check("item accounting", not bad, len(bad), bad[0] if bad else None, detail)


def _repeated(lines: Sequence[Line]) -> Check:
    """Items that repeat an earlier one of their task word for word: counted as independent, they
    make every interval too narrow. Lines without hashes are passed over."""
    seen: set[tuple[str, ...]] = set()
    sizes, repeats = Counter[str](), Counter[str]()
    bad: list[tuple[str, str]] = []
    for line in lines:
        task, hashes = str(line.get("task")), (line.get("context_hash"), line.get("choices_hash"))
        sizes[task] += 1
        content = (task, *map(str, (*hashes, line.get("gold"))))
        if None not in hashes and content in seen:
            repeats[task] += 1
            bad.append((task, str(line["id"])))
        seen.add(content)
    over = {task for task, count in repeats.items() if count > MOST_REPEATED * sizes[task]}
    first = next((item for task, item in bad if task in over or not over), None)
    detail = (
        f"{len(bad)} of {len(lines)} items repeat context, choices and label of another of their "
        f"task (limit {MOST_REPEATED:.0%} of each)"
    )
    return Check("repeated items", not over, len(bad), first, detail)


def _cut_contexts(lines: Sequence[Line]) -> Check:
    """Items whose context was cut on the left: the model did not see what was asked."""
    cut = [str(line["id"]) for line in lines if line.get("truncated")]
    detail = f"{len(cut)} of {len(lines)} items with a context cut to fit (limit {MOST_CUT:.0%})"
    passed = len(cut) <= MOST_CUT * len(lines)
    return Check("cut contexts", passed, len(cut), cut[0] if cut else None, detail)


def _boundaries(lines: Sequence[Line]) -> Check:
    special = [str(line["id"]) for line in lines if line.get(SPECIAL_START)]
    merged = sum(bool(line.get("boundary_merge")) for line in lines)
    detail = (
        f"{len(special)} items with a choice that starts with a special token; "
        f"{merged} where the tokenizer joined the end of the context with a choice"
    )
    return Check(
        "BOS and leading space", not special, len(special), special[0] if special else None, detail
    )


def _greedy(lines: Sequence[Line]) -> Check:
    looked, bad = 0, []
    for line in lines:
        ll, greedy = line.get("ll"), line.get("is_greedy")
        if ll is None or greedy is None or any(tokens != 1 for tokens in line.get("tokens", (0,))):
            continue
        looked += 1
        if any(flag and value < max(ll) for flag, value in zip(greedy, ll, strict=True)):
            bad.append(str(line["id"]))
    detail = f"{len(bad)} of {looked} items with one-token choices: a greedy choice scores lower"
    return Check("greedy consistency", not bad, len(bad), bad[0] if bad else None, detail)


def _clear(scores: Scores) -> np.ndarray:
    return np.array([np.count_nonzero(row == row.max()) == 1 for row in scores.z], dtype=bool)


def _first(scores: Scores, index: np.ndarray) -> str | None:
    return scores.ids[int(index[0])] if len(index) else None
