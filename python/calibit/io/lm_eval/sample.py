"""Sample: one scored document of an output, whatever the layout it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One document with the log-likelihoods of its choices.

    Attributes:
        task: name of the task.
        doc_id: number of the document in its set.
        prompts: per choice context and continuation together.
        ll: per choice its log-likelihood, nats; may be non-finite.
        gold: index of the right choice; None where it is not known.
        contexts: per choice its context; None where an output holds the two together and nothing
            says where one ends.
        choices: per choice its text without delimiter; None where the contexts are.
        delimiter: what stands between the two.
        greedy: per choice whether every token was the model's first choice, where stored.
        unconditional: per choice its log-likelihood after an empty context, where stored.
        doc_hash: SHA-256 of the document, where it is stored.
    """

    task: str
    doc_id: int
    prompts: tuple[str, ...]
    ll: tuple[float, ...]
    gold: int | None
    contexts: tuple[str, ...] | None = None
    choices: tuple[str, ...] | None = None
    delimiter: str = " "
    greedy: tuple[bool, ...] | None = None
    unconditional: tuple[float, ...] | None = None
    doc_hash: str | None = None


def in_order(samples: Sequence[Sample], file: Path) -> list[Sample]:
    """Samples by document number: gathered ranks are concatenated, not ordered.

    Raises:
        ValueError: if a document comes twice (a file appended to by two evaluations, or two nodes
            that took the same share).
    """
    repeated = [doc for doc, n in Counter(one.doc_id for one in samples).items() if n > 1]
    if repeated:
        raise ValueError(
            f"[lm_eval] {file}: expected every doc_id once, got {len(repeated)} of them several "
            f"times (first {sorted(repeated)[0]}); two evaluations wrote into one file, or two "
            "nodes the same documents: evaluate again into a new folder"
        )
    return sorted(samples, key=lambda one: one.doc_id)


def check_recorded(
    file: Path, doc_id: int, ll: Sequence[float], gold: int | None, acc: float | None
) -> None:
    """Compare the accuracy an output states for a document with its log-likelihoods.

    Raises:
        ValueError: if they contradict each other: then `gold` or the order of the choices was
            misread, and no number from it could be trusted.
    """
    if gold is None or acc not in (0.0, 1.0) or any(one != one for one in ll):
        return
    if (max(range(len(ll)), key=ll.__getitem__) == gold) != (acc == 1.0):
        raise ValueError(
            f"[lm_eval] {file}: expected acc {acc:g} of document {doc_id} to follow from its "
            f"log-likelihoods, got {list(ll)} with right answer {gold}; this task does not choose "
            "the likeliest choice, or its order of choices is not known here: leave its file out"
        )
