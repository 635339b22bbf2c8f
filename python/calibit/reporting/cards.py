"""The top of the page: the outcome in a sentence, and a card for every candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibit import numbers
from calibit.reporting import view, wording
from calibit.reporting.view import Audit, Candidate

_FACTS = (
    # row, term on the card, unit of the difference
    ("bytes_model", "weights", ""),
    ("decode_tok_s", "decoding", ""),
    ("acc", "accuracy", " points"),
    ("conf_true", "confidence in the right answer", " points"),
    ("flips", "flips", ""),
)

_USUAL_LEVEL = 0.95


def lead(audit: Audit) -> str:
    """Who was compared with whom on what, and the outcome in a sentence."""
    protocol = audit["protocol"]
    items = sum(task["n"] for task in protocol["tasks"])
    on = [f"{numbers.count(items)} questions"] if items else []
    if protocol.get("text"):
        on.append(f"{numbers.count(protocol['text']['tokens'])} tokens of text")
    number = len(audit["candidates"])
    versions = numbers.plural(number, "quantized version")
    were = "was" if number == 1 else "were"
    outcome = "; ".join(
        f"{wording.VERDICTS[key].word.lower()}: {numbers.join(names)}"
        for key, names in by_verdict(audit).items()
    )
    return (
        f"{versions} {were} compared with the original, item by item, on {numbers.join(on)}. "
        f"Outcome: {outcome}."
    )


def by_verdict(audit: Audit) -> dict[str, list[str]]:
    """Names of the candidates by verdict; verdicts that nobody has are left out."""
    found: dict[str, list[str]] = {key: [] for key in wording.VERDICTS}
    for one in audit["candidates"]:
        found[view.verdict(one)].append(str(one["scheme"]))
    return {key: names for key, names in found.items() if names}


def legend(audit: Audit) -> list[str]:
    """The verdicts to explain: all three, and failure where there is one."""
    present = by_verdict(audit)
    return [key for key in wording.VERDICTS if key != "failed" or key in present]


def card(one: Candidate, base: Candidate, *, level: float) -> dict[str, Any]:
    """A candidate at a glance: verdict, main numbers, why in short and in whole sentences, and a
    note where its intervals are of a level below the usual one."""
    name, verdict = str(one["scheme"]), view.verdict(one)
    if verdict == "failed":
        error = str(one["error"])
        facts: list[tuple[str, str]] = []
        return {
            "name": name,
            "verdict": verdict,
            "facts": facts,
            "reason": error,
            "reasons": [error],
        }
    reasons = wording.decisive(one["verdict"])
    more = ""
    if len(reasons) > 1:
        more = f" {numbers.plural(len(reasons) - 1, 'more reason')} below."
    if level < _USUAL_LEVEL:
        more += (
            f" Judged with {numbers.percent(level)} intervals, which claim more than the usual "
            f"{numbers.percent(_USUAL_LEVEL)}."
        )
    return {
        "name": name,
        "verdict": verdict,
        "facts": _facts(one, base),
        "reason": wording.sentence(reasons[0]) + more,
        "reasons": [*wording.deciding_sentences(one["verdict"]), *_other_gates(one["verdict"])],
    }


def _other_gates(verdict: Mapping[str, Any]) -> list[str]:
    """The gates that do not decide, by name: passed ones, and open ones of a candidate on hold."""
    leads = {"pass": "Shown to be within its margin", "open": "Not settled"}
    if verdict["verdict"] == "inconclusive":
        del leads["open"]
    lines = []
    for state, words in leads.items():
        names = [wording.gate_words(g)[0] for g in verdict["gates"] if g["state"] == state]
        lines += [f"{words}: {'; '.join(names)}."] if names else []
    return lines


def _facts(one: Candidate, base: Candidate) -> list[tuple[str, str]]:
    rows = {row.key: row.cells[1] for row in view.rows({"baseline": base, "candidates": [one]})}
    facts = []
    for key, term, unit in _FACTS:
        cell = rows.get(key)
        if cell is None or cell.value == numbers.MISSING:
            continue
        if key == "bytes_model":
            facts.append((term, ", ".join(filter(None, (cell.value, cell.delta)))))
        elif key == "flips" or not cell.delta:
            facts.append((term, cell.value))
        else:
            facts.append((term, cell.delta + unit))
    return facts
