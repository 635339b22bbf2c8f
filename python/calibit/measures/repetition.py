"""Repetition and length of generated text.

Text = the generated part only, without the prompt.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from calibit.measures.estimate import Estimate, undefined

_STOP_TEXT = """
a about after again all also am an and any are as at be because been before being between both but
by can could did do does doing down during each few for from further had has have having he her here
hers herself him himself his how i if in into is it its itself just me more most my myself no nor
not now of off on once only or other our ours ourselves out over own same she should so some such
than that the their theirs them themselves then there these they this those through to too under
until up very was we were what when where which while who whom why will with would you your yours
yourself yourselves
"""
STOP_WORDS = frozenset(_STOP_TEXT.split())
"""English function words that `dup_words` leaves out."""

STOP_WORDS_HASH = hashlib.sha256("\n".join(sorted(STOP_WORDS)).encode()).hexdigest()

_LONGEST_BLOCK = 64
_LEAST_REPEATS = 3
_LEAST_LOOP = 24
_SHORTEST_CONTENT_WORD = 3


def words(text: str) -> list[str]:
    r"""Lower-case `\w+` words of the NFKC-normalised text."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())


def seq_rep_n(texts: Iterable[Sequence[Hashable]], n: int, *, unit: str = "tokens") -> Estimate:
    """Mean over texts of 1 - unique n-grams / n-grams; texts with fewer than n units are left out.

    Args:
        texts: one sequence of token ids or words per text.
        n: length of the n-grams.
        unit: what the sequences hold, "tokens" or "words"; printed beside the number.
    """
    return _mean_over_texts(
        "seq_rep_n", [_repeated_share(text, n) for text in texts], {"n_gram": n, "unit": unit}
    )


def distinct_n(texts: Iterable[Sequence[Hashable]], n: int, *, unit: str = "tokens") -> Estimate:
    """Mean over texts of unique n-grams / n-grams (1 - seq_rep_n)."""
    shares = [
        None if share is None else 1.0 - share
        for share in (_repeated_share(text, n) for text in texts)
    ]
    return _mean_over_texts("distinct_n", shares, {"n_gram": n, "unit": unit})


def distinct_n_tok(
    texts: Iterable[Sequence[Hashable]], n: int, *, unit: str = "tokens"
) -> Estimate:
    """Mean over texts of unique n-grams / tokens (Li et al. 2016)."""
    shares = [len(set(_n_grams(text, n))) / len(text) if len(text) >= n else None for text in texts]
    return _mean_over_texts("distinct_n_tok", shares, {"n_gram": n, "unit": unit})


def dup_words(texts: Iterable[str], *, stop_words: Iterable[str] = STOP_WORDS) -> Estimate:
    """Mean over texts of the number of duplicate content words, sum over words of max(0, count -
    1).

    Args:
        texts: generated texts.
        stop_words: words left out, besides those under 3 letters.
    """
    stop = frozenset(stop_words)
    return _mean_over_texts(
        "dup_words", [float(_duplicates(text, stop)[0]) for text in texts], _stop_facts(stop)
    )


def dup_rate(texts: Iterable[str], *, stop_words: Iterable[str] = STOP_WORDS) -> Estimate:
    """Mean over texts of duplicate content words / content words.

    A text without content words does not enter.
    """
    stop = frozenset(stop_words)
    counts = [_duplicates(text, stop) for text in texts]
    return _mean_over_texts(
        "dup_rate", [dup / total if total else None for dup, total in counts], _stop_facts(stop)
    )


def loop_rate(texts: Iterable[Sequence[Hashable]]) -> Estimate:
    """Share of texts that end in a loop.

    A loop is a block of 1..64 tokens repeated at least 3 times over at least 24 tokens: short
    enough to catch phrases, long enough to spare lists.

    Args:
        texts: one sequence of token ids per text.
    """
    facts = {"longest_block": _LONGEST_BLOCK, "repeats": _LEAST_REPEATS, "tokens": _LEAST_LOOP}
    return _mean_over_texts(
        "loop_rate", [float(_ends_in_loop(list(text))) for text in texts], facts
    )


def len_tokens(texts: Iterable[Sequence[Hashable]]) -> Estimate:
    """Mean number of generated tokens."""
    return _mean_over_texts("len_tokens", [float(len(text)) for text in texts], {}, unit="tokens")


def nonterm_rate(reached_limit: Iterable[bool]) -> Estimate:
    """Share of texts that reach the length limit without an end token.

    Args:
        reached_limit: one flag per text.
    """
    return _mean_over_texts("nonterm_rate", [float(flag) for flag in reached_limit], {})


def greedy_prefix(
    texts_a: Sequence[Sequence[Hashable]], texts_b: Sequence[Sequence[Hashable]]
) -> Estimate:
    """Mean length of the common token prefix of two models' greedy outputs, divided by the length
    of a's.

    Returns:
        Estimate; `extra["identical"]` is the share of identical texts. Empty outputs of a are left
        out of the mean.

    Raises:
        ValueError: for different numbers of texts.
    """
    if len(texts_a) != len(texts_b):
        raise ValueError(
            f"[greedy_prefix] expected the same prompts in a and b, "
            f"got {len(texts_a)} and {len(texts_b)}"
        )
    shares = prefix_shares(texts_a, texts_b)
    same = [list(a) == list(b) for a, b in zip(texts_a, texts_b, strict=True)]
    return _mean_over_texts(
        "greedy_prefix", shares, {"identical": float(np.mean(same)) if same else None}
    )


def prefix_shares(
    texts_a: Sequence[Sequence[Hashable]], texts_b: Sequence[Sequence[Hashable]]
) -> list[float | None]:
    """Per prompt the length of the common token prefix, divided by the length of a's text; None
    where that is empty."""
    return [
        _common(a, b) / len(a) if len(a) else None for a, b in zip(texts_a, texts_b, strict=True)
    ]


LONGEST_N_GRAM = 4


def repetition_of(ids: Sequence[Hashable], text: str) -> dict[str, float | None]:
    """Every measure of repetition of one text.

    Args:
        ids: token ids of the generated part.
        text: the same as text.

    Returns:
        `seq_rep_1` to `seq_rep_4` (token ids), `distinct_tok_1` to `distinct_tok_4`, `dup_words`,
        `dup_rate`, `loop`; None where a text is too short to say.
    """
    found: dict[str, float | None] = {}
    for n in range(1, LONGEST_N_GRAM + 1):
        unique = len(set(_n_grams(ids, n)))
        found[f"seq_rep_{n}"] = _repeated_share(ids, n)
        found[f"distinct_tok_{n}"] = unique / len(ids) if len(ids) >= n else None
    repeated, content = _duplicates(text, STOP_WORDS)
    found["dup_words"] = float(repeated)
    found["dup_rate"] = repeated / content if content else None
    found["loop"] = float(_ends_in_loop(list(ids)))
    return found


def _n_grams(text: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    if n < 1:
        raise ValueError(f"[repetition] expected n of at least 1, got {n}")
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]


def _repeated_share(text: Sequence[Hashable], n: int) -> float | None:
    grams = _n_grams(text, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else None


def _duplicates(text: str, stop: frozenset[str]) -> tuple[int, int]:
    content = [
        word for word in words(text) if word not in stop and len(word) >= _SHORTEST_CONTENT_WORD
    ]
    return len(content) - len(Counter(content)), len(content)


def _stop_facts(stop: frozenset[str]) -> dict[str, object]:
    return {"stop_words_sha256": hashlib.sha256("\n".join(sorted(stop)).encode()).hexdigest()}


def _ends_in_loop(text: list[Hashable]) -> bool:
    for q in range(1, min(_LONGEST_BLOCK, len(text) // _LEAST_REPEATS) + 1):
        repeats = max(_LEAST_REPEATS, -(-_LEAST_LOOP // q))
        span = q * repeats
        if span <= len(text) and text[-span:] == text[-q:] * repeats:
            return True
    return False


def _common(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))


def _mean_over_texts(
    metric: str, values: list[float | None], facts: Mapping[str, object], unit: str = ""
) -> Estimate:
    kept = [value for value in values if value is not None]
    if not kept:
        reason = "no text is long enough" if values else "no texts"
        return undefined(metric, reason, unit=unit, extra=facts)
    return Estimate(
        metric,
        float(np.mean(kept)),
        n=len(kept),
        unit=unit,
        extra={**facts, "left_out": len(values) - len(kept)},
    )
