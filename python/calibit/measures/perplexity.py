"""Perplexity arithmetic: normalisers, windows, the ratio of two models with its
error.

Four conventions are in use and never mixed: `gptq` (disjoint windows, mean of window means),
`lm_eval` (per page, per word or byte of the raw page), `llama_cpp` (second half of each window),
`hf_stride` (sliding windows, one label fewer per window in the mean). Every value names its
protocol.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.estimate import Estimate, Interval, undefined
from calibit.measures.intervals import percentile
from calibit.measures.paired import cluster_index, clustered_standard_error
from calibit.measures.resampling import Resampling, resampled_sums

FEW_WINDOWS = 30
"""Windows from which on their mean change is bootstrapped."""

PROTOCOLS = ("gptq", "lm_eval", "llama_cpp", "hf_stride")


def ppl(
    nll: ArrayLike,
    *,
    normaliser: int | None = None,
    protocol: str | None = None,
    windows: ArrayLike | None = None,
) -> Estimate:
    """Perplexity exp(sum of nll / normaliser).

    Args:
        nll: float [n], negative log-likelihoods in nats, per token (or per window).
        normaliser: number of tokens, words or bytes; n where omitted.
        protocol: printed beside the number.
        windows: [n] window of each token; under `gptq` the mean of window means is taken.

    Raises:
        ValueError: for values that are not finite, an unknown protocol, or a normaliser below 1.

    Example:
        >>> round(float(ppl([120.0, 60.0], normaliser=65)), 10)
        15.9463628578
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"[ppl] expected a protocol of {', '.join(PROTOCOLS)}, got {protocol!r}")
    values = _nll(nll, "ppl")
    facts = {"protocol": protocol}
    if not len(values):
        return undefined("ppl", "no tokens", estimator="exp of mean", extra=facts)
    if normaliser is not None and normaliser < 1:
        raise ValueError(f"[ppl] expected a normaliser of at least 1, got {normaliser}")
    if protocol == "gptq" and windows is not None:
        labels = cluster_index(np.asarray(windows).tolist(), len(values))
        mean = float(np.mean(np.bincount(labels, values) / np.bincount(labels)))
    else:
        mean = float(values.sum()) / (normaliser or len(values))
    return Estimate("ppl", math.exp(mean), "exp of mean", len(values), extra=facts)


def bits_per_byte(nll: ArrayLike, n_bytes: int) -> Estimate:
    """Sum of nll / (bytes * ln 2).

    Args:
        nll: float [n], nats.
        n_bytes: UTF-8 bytes of the raw text.
    """
    values = _nll(nll, "bits_per_byte")
    if n_bytes < 1:
        return undefined("bits_per_byte", "no bytes", unit="bits per byte")
    value = float(values.sum()) / (n_bytes * math.log(2.0))
    return Estimate("bits_per_byte", value, "ratio of sums", len(values), "bits per byte")


def hf_stride_ppl(sums: ArrayLike, scored: ArrayLike, new: ArrayLike) -> Estimate:
    """Perplexity of the `hf_stride` protocol: per window the mean over the scored labels, weighted
    by the new tokens.

    Args:
        sums: float [W], summed nll of the scored labels of each window.
        scored: int [W], labels that entered each sum (one fewer than the new tokens where a window
            has no context).
        new: int [W], new tokens of each window.
    """
    total, count, weight = (
        _nll(sums, "ppl"),
        np.asarray(scored, dtype=float),
        np.asarray(new, dtype=float),
    )
    value = math.exp(float((total / count * weight).sum() / weight.sum()))
    return Estimate("ppl", value, "exp of mean", int(weight.sum()), extra={"protocol": "hf_stride"})


def token_weights(
    protocol: str | None,
    windows: ArrayLike,
    *,
    words: int | None = None,
    window: int | None = None,
    stride: int | None = None,
) -> np.ndarray:
    """Weight of each token's loss so that the mean of weighted losses is the log of the protocol's
    perplexity.

    1 for most. `lm_eval`: tokens per word. `hf_stride`: the mean of a window's labels counts for
    all its new tokens, of which a window without context cannot predict the first (perplexity guide
    of Hugging Face transformers).

    Args:
        protocol: id, such as `gptq@w512`; what follows "@" is ignored.
        windows: int [n] window of each token, from 0.
        words: words of the raw pages (`lm_eval`).
        window, stride: tokens (`hf_stride`).

    Returns:
        float64 [n].
    """
    labels = np.asarray(windows, dtype=np.int64)
    kind = str(protocol).partition("@")[0]
    if kind == "lm_eval" and words:
        return np.full(len(labels), len(labels) / words)
    if kind != "hf_stride" or stride is None or window is None or not len(labels):
        return np.ones(len(labels))
    scored = np.bincount(labels)
    alone = (np.arange(len(scored)) == 0) | (stride >= window)
    new = np.where(scored > 0, scored + alone, 0)
    return (new / np.maximum(scored, 1))[labels] * (len(labels) / new.sum())


def d_text_nll(
    nll_a: ArrayLike,
    nll_b: ArrayLike,
    *,
    windows: Sequence[object] | np.ndarray | None = None,
    resampling: Resampling | None = None,
) -> Estimate:
    """Mean change of the token NLL, b minus a: the log of the perplexity ratio.

    Tokens of one window share their context, so windows are the resampled units.

    Args:
        nll_a, nll_b: float [n], nats, the same tokens in the same order.
        windows: [n] window of each token; without it tokens count as independent.
        resampling: asks for an interval, see `window_interval`.

    Returns:
        Estimate in nats per token; `extra` holds `se` (clustered), `ratio`, `ratio_se`,
        `ratio_lower`, `ratio_upper`.

    Raises:
        ValueError: for different lengths or values that are not finite.
    """
    a, b = _nll(nll_a, "d_text_nll"), _nll(nll_b, "d_text_nll")
    if len(a) != len(b):
        raise ValueError(
            f"[d_text_nll] expected the same tokens in a and b, got {len(a)} and {len(b)} tokens"
        )
    if not len(a):
        return undefined("d_text_nll", "no tokens", unit="nats")
    d = b - a
    labels = cluster_index(range(len(d)) if windows is None else list(windows), len(d))
    error, ratio = clustered_standard_error(d, labels), math.exp(float(d.mean()))
    facts = {
        "se": error,
        "ratio": ratio,
        "ratio_se": None if error is None else ratio * error,
        "windows": int(labels.max()) + 1,
    }
    out = Estimate("d_text_nll", float(d.mean()), n=len(d), unit="nats", extra=facts)
    return out if resampling is None else _with_window_interval(out, d, labels, resampling)


def window_interval(units: np.ndarray, resampling: Resampling) -> Interval:
    """Interval of the mean change per token, with windows as the independent units.

    Below FEW_WINDOWS windows it is Student's, with the linearised standard error of a ratio of sums
    (Cochran 1977, Sampling Techniques, section 6.4) and W - 1 degrees of freedom: the percentile
    bootstrap of 9 windows covers the truth in 90 % of samples from a normal distribution and in 85
    to 88 % from skewed ones, Student's in 96 % and 89 to 92 %.

    Args:
        units: float64 [W, 2], summed change and number of tokens of each window.
        resampling: level; resamples and seed of the bootstrap.

    Returns:
        Method "t" or "percentile"; no bounds below two windows.
    """
    count = len(units)
    if count < 2:
        reason = "an interval needs at least 2 windows"
        return Interval(None, None, resampling.level, "t", reason=reason)
    if count >= FEW_WINDOWS:
        draws = resampled_sums(units, resampling)
        value = float(units[:, 0].sum() / units[:, 1].sum())
        return percentile(draws[:, 0] / draws[:, 1], resampling, value=value)
    from scipy.special import stdtrit

    change, tokens = units.sum(axis=0)
    residual = units[:, 0] - change / tokens * units[:, 1]
    error = math.sqrt(float(np.sum(residual**2)) * count / (count - 1)) / float(tokens)
    half = float(stdtrit(count - 1, 0.5 + resampling.level / 2)) * error
    return Interval(change / tokens - half, change / tokens + half, resampling.level, "t")


def _with_window_interval(
    out: Estimate, d: np.ndarray, labels: np.ndarray, resampling: Resampling
) -> Estimate:
    band = window_interval(
        np.stack([np.bincount(labels, d), np.bincount(labels)], axis=1), resampling
    )
    if band.lower is None:
        return replace(out, reason=band.reason)
    ends = {"ratio_lower": band.lower, "ratio_upper": band.upper}
    ratios = {name: None if end is None else math.exp(end) for name, end in ends.items()}
    return replace(out, extra={**out.extra, **ratios}).with_interval(band)


def rolling_windows(n_tokens: int, max_length: int) -> list[tuple[range, range]]:
    """Windows of the `lm_eval` protocol: every token is a target once, with as much context as
    fits.

    Args:
        n_tokens: tokens of the page.
        max_length: tokens the model sees at once (context and targets, less the one that is only
            predicted).

    Returns:
        (context, targets) as ranges of token positions; position -1 is the prefix token.

    Raises:
        ValueError: for max_length below 1.

    Example:
        >>> [(list(context), list(targets)) for context, targets in rolling_windows(10, 4)]
        [([-1], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    """
    if max_length < 1:
        raise ValueError(f"[rolling_windows] expected max_length of at least 1, got {max_length}")
    windows = []
    for start in range(0, n_tokens, max_length):
        end = min(start + max_length, n_tokens)
        # The model reads context + targets - 1 tokens: the last target is only predicted.
        windows.append(
            (range(-1 if start == 0 else end - max_length - 1, start), range(start, end))
        )
    return windows


_DETOKENIZE = (
    ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
    (" : ", ": "), (" ; ", "; "), (" . ", ". "), (" ! ", "! "), (" ? ", "? "), (" , ", ", "),
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" \u00b0 ", "\u00b0"),
    (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip


def detokenize_wikitext(page: str) -> str:
    """Undo WikiText's tokenisation in the order of lm-evaluation-harness.

    Words and bytes are counted on the page before this.
    """
    for pattern, replacement in _DETOKENIZE:
        page = (
            page.replace(pattern, replacement)
            if isinstance(pattern, str)
            else pattern.sub(replacement, page)
        )
    return page


def count_words(page: str) -> int:
    """Number of words of a raw page, as lm-evaluation-harness splits it.

    Empty strings at the ends are counted.
    """
    return len(re.split(r"\s+", page))


def _nll(values: ArrayLike, op: str) -> np.ndarray:
    out = np.asarray(values, dtype=np.float64)
    if out.ndim != 1:
        raise ValueError(f"[{op}] expected values of shape [n], got {list(out.shape)}")
    if not np.isfinite(out).all():
        raise ValueError(f"[{op}] expected finite values, got {out[~np.isfinite(out)][0]}")
    return out
