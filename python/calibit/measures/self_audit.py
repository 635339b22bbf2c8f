"""Checks on scores before any verdict: does the measuring itself hold together?

A failed check forces "inconclusive", whatever the numbers say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibit.measures.scores import UNLABELLED, Scores
from calibit.measures.summaries import panel

MOST_TIES = 0.01
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
    found = [_label_shuffle(scores), _constant_confidence(scores), _ties(scores)]
    if lines:
        found += [_log_probabilities(lines), _accounting(lines), _greedy(lines)]
    return [Check(c.check, c.passed, c.count, c.first, f"{name}: {c.detail}") for c in found]


def at_chance(scores: Scores, *, level: float = 0.95) -> bool:
    """Whether the accuracy interval contains chance: then no claim on confidence should be made."""
    from calibit.measures.intervals import clopper_pearson

    known = scores.labelled
    if not known.any():
        return False
    chance = float(np.mean(1.0 / scores.distributions.k[known]))
    band = clopper_pearson(int(scores.correct[known].sum()), int(known.sum()), level=level)
    return band.lower is not None and band.upper is not None and band.lower <= chance <= band.upper


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
    bad = [
        str(line["id"])
        for line in lines
        if line.get("ll") is not None and not all(np.isfinite(v) and v <= 1e-6 for v in line["ll"])
    ]
    detail = f"{len(bad)} items with a log-likelihood that is positive or not finite"
    return Check("log-probabilities", not bad, len(bad), bad[0] if bad else None, detail)


def _accounting(lines: Sequence[Line]) -> Check:
    left_out = [line for line in lines if line.get("ll") is None and line.get("kind") == "choice"]
    silent = [str(line["id"]) for line in left_out if not line.get("reason")]
    detail = f"{len(lines)} items, {len(left_out)} not scored, {len(silent)} of them without reason"
    return Check("item accounting", not silent, len(silent), silent[0] if silent else None, detail)


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
