"""How common the words of a text are: rare inputs may lose more than common ones.

Frequencies are relative counts in a text that is named beside every result, with one added to each
count, so that a word that the text lacks is rarer than any that it has. Words are runs of letters
and digits of the lower-cased NFKC text; languages without blanks between words are not served.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibit.measures.binning import named_quarters
from calibit.measures.repetition import words

QUARTERS = ("rarest quarter", "second quarter", "third quarter", "commonest quarter")


@dataclass(frozen=True)
class WordFrequencies:
    """Counts of words.

    Attributes:
        counts: word -> how often it occurs.
        total: words counted.
    """

    counts: Mapping[str, int]
    total: int

    @classmethod
    def of(cls, texts: Iterable[str]) -> WordFrequencies:
        """Count the words of some texts."""
        counts = Counter(word for text in texts for word in words(text))
        return cls(counts, counts.total())

    def log_frequency(self, word: str) -> float:
        """ln of (count + 1) / (all words + distinct words + 1): Laplace's rule, all unseen words
        together counted as one more."""
        return math.log((self.counts.get(word, 0) + 1) / (self.total + len(self.counts) + 1))


def text_frequencies(texts: Sequence[str], known: WordFrequencies) -> tuple[np.ndarray, np.ndarray]:
    """How common the words of each text are.

    Args:
        texts: one per item.
        known: counts.

    Returns:
        mean of the log frequencies of a text's words, and that of its rarest word, float64 [N]
        each; NaN for a text without words.

    Example:
        >>> mean, rarest = text_frequencies(["a a b"], WordFrequencies.of(["a a a b"]))
        >>> [round(float(np.exp(x[0])), 4) for x in (mean, rarest)]
        [0.4535, 0.2857]
    """
    found = [[known.log_frequency(word) for word in words(text)] for text in texts]
    mean = np.array([np.mean(row) if row else np.nan for row in found])
    return mean, np.array([min(row) if row else np.nan for row in found])


def quarters(values: np.ndarray) -> list[str | None]:
    """The quarter of each value among all, equal values together; None for NaN. Where many values
    are equal, a group is named by its share or place, "rarest 60 %"."""
    known = ~np.isnan(values)
    names: list[str | None] = [None] * len(values)
    found = named_quarters(values[known], QUARTERS, ("rarest", "commonest"))
    for index, name in zip(np.flatnonzero(known), found, strict=True):
        names[int(index)] = name
    return names
