"""Perplexity of two models on the same text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibit.comparison.pairing import RunLike
from calibit.measures.estimate import Estimate, undefined
from calibit.measures.perplexity import bits_per_byte, d_text_nll, ppl, token_weights
from calibit.measures.resampling import Resampling

_BLOCK = 256
"""Tokens resampled together where a run does not say which window a token belongs to."""


@dataclass(frozen=True)
class TextComparison:
    """Perplexity of a text under both models.

    Attributes:
        name: the text.
        protocol: how it was cut into windows.
        tokens, windows: scored tokens, and the windows that are resampled whole.
        a, b: perplexities, normalised as the protocol says; `extra` as in `text_perplexity`.
        ratio: b / a with an interval.
        delta: change of the NLL, nats per token, with the same interval in logs.
        correlation: Pearson correlation of the token NLLs.
        lost: tokens whose log-likelihood is finite in a and not in b: damage without a number.
    """

    name: str
    protocol: str | None
    tokens: int
    windows: int
    a: Estimate
    b: Estimate
    ratio: Estimate
    delta: Estimate
    correlation: float | None
    lost: int = 0

    @property
    def lost_reason(self) -> str:
        """That the candidate has no finite log-likelihood where the reference has one."""
        return (
            f"text {self.name!r}: {self.lost} of {self.tokens} tokens have a finite log-likelihood "
            "in the reference and none in the candidate"
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        out: dict[str, Any] = dict(vars(self))
        return out | {key: out[key].to_dict() for key in ("a", "b", "ratio", "delta")}


def compare_texts(
    a: RunLike, b: RunLike, resampling: Resampling
) -> tuple[list[TextComparison], list[str]]:
    """Compare every text that both runs hold.

    Returns:
        The comparisons, and warnings about texts in one run only.

    Raises:
        ValueError: if a text has another protocol, content or token count in the two runs.
    """
    first, second = _texts(a), _texts(b)
    warnings = [
        f"text {name!r} is in one run only and was not compared"
        for name in sorted(first.keys() ^ second.keys())
    ]
    common = [name for name in first if name in second]
    for name in common:
        for key in ("protocol", "sha256", "tokens", "window", "words", "stride"):
            left, right = first[name].get(key), second[name].get(key)
            if left is not None and right is not None and left != right:
                raise ValueError(
                    f"[compare] expected text {name!r} with the same {key} in both runs, "
                    f"got {left!r} and {right!r}"
                )
    return [_compare_text(name, a, b, first[name], resampling) for name in common], warnings


def text_perplexity(run: RunLike, name: str) -> Estimate:
    """Perplexity of a text in a run, as its protocol normalises it.

    Returns:
        `extra` has the protocol; under `lm_eval` also what a perplexity per word goes with:
        `byte_ppl` and `bits_per_byte`.

    Raises:
        ValueError: for losses that are not finite.
    """
    described = _texts(run)[name]
    nll = run.text_nll(name)
    found = ppl(nll * _weights(described, _windows(run, name, len(nll))))
    facts: dict[str, Any] = {"text": name, "protocol": described.get("protocol")}
    if described.get("words") and described.get("bytes") and len(nll):
        facts["normaliser"] = "words"
        facts["byte_ppl"] = ppl(nll, normaliser=described["bytes"]).value
        facts["bits_per_byte"] = bits_per_byte(nll, described["bytes"]).value
    return replace(found, extra={**found.extra, **facts})


def _weights(described: Mapping[str, Any], windows: np.ndarray) -> np.ndarray:
    return token_weights(
        described.get("protocol"),
        windows,
        **{key: described.get(key) for key in ("words", "window", "stride")},
    )


def text_windows(a: RunLike, b: RunLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token NLLs of both models and window numbers over all common texts, float64 [n] and int64
    [n].

    A text with a token that has no finite log-likelihood is left out: where the reference has one,
    `TextComparison.lost` says so, and nothing is judged by the other texts.
    """
    first, second = _texts(a), _texts(b)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    used = 0
    for name in (name for name in first if name in second):
        nll_a, nll_b = a.text_nll(name), b.text_nll(name)
        if not (np.isfinite(nll_a).all() and np.isfinite(nll_b).all()):
            continue
        _, windows = np.unique(_windows(a, name, len(nll_a)), return_inverse=True)
        parts.append((nll_a, nll_b, windows + used))
        used += int(windows.max(initial=-1)) + 1
    if not parts:
        return np.empty(0), np.empty(0), np.empty(0, dtype=np.int64)
    nll_a, nll_b, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return nll_a, nll_b, labels


def _texts(run: RunLike) -> dict[str, Mapping[str, Any]]:
    return {str(text["name"]): text for text in run.meta.get("text") or ()}


def _compare_text(
    name: str, a: RunLike, b: RunLike, described: Mapping[str, Any], resampling: Resampling
) -> TextComparison:
    nll_a, nll_b = a.text_nll(name), b.text_nll(name)
    if len(nll_a) != len(nll_b):
        raise ValueError(
            f"[compare] expected the same tokens of text {name!r} in both runs, "
            f"got {len(nll_a)} and {len(nll_b)}"
        )
    protocol, windows = described.get("protocol"), _windows(a, name, len(nll_a))
    facts = (name, protocol, len(nll_a), len(np.unique(windows)))
    bad = int(np.count_nonzero(~np.isfinite(nll_a) | ~np.isfinite(nll_b)))
    if bad:
        reason = f"{bad} tokens have no finite log-likelihood"
        none = [undefined(key, reason) for key in ("ppl", "ppl", "ppl_ratio", "d_text_nll")]
        lost = int(np.count_nonzero(np.isfinite(nll_a) & ~np.isfinite(nll_b)))
        return TextComparison(*facts, none[0], none[1], none[2], none[3], None, lost)
    delta = d_text_nll(nll_a, nll_b, windows=windows, resampling=resampling)
    weights = _weights(described, np.asarray(windows))
    normalised = (
        delta
        if (weights == 1).all()
        else d_text_nll(nll_a * weights, nll_b * weights, windows=windows, resampling=resampling)
    )
    spread = float(np.std(nll_a) * np.std(nll_b)) if len(nll_a) else 0.0
    return TextComparison(
        *facts,
        text_perplexity(a, name),
        text_perplexity(b, name),
        _ratio(normalised),
        _named(delta, name, protocol),
        float(np.cov(nll_a, nll_b, ddof=0)[0, 1]) / spread if spread > 0 else None,
    )


def _windows(run: RunLike, name: str, n: int) -> np.ndarray:
    read = getattr(run, "tokens", None)
    return np.asarray(read(name).window) if read else np.arange(n) // _BLOCK


def _named(estimate: Estimate, name: str, protocol: str | None) -> Estimate:
    return replace(estimate, extra={**estimate.extra, "text": name, "protocol": protocol})


def _ratio(delta: Estimate) -> Estimate:
    def power(value: float | None) -> float | None:
        return None if value is None else math.exp(value)

    return replace(
        delta,
        metric="ppl_ratio",
        value=power(delta.value),
        lower=power(delta.lower),
        upper=power(delta.upper),
        unit="",
        estimator="exp of mean difference",
        extra={"se": delta.extra.get("ratio_se")},
    )
