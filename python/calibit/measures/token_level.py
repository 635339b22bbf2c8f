"""Token-level fidelity of a candidate to its base model, in the order llama.cpp prints it.

Standard errors are population sd / sqrt(n - 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.distributions import Distributions
from calibit.measures.estimate import Estimate, undefined
from calibit.measures.fidelity import kl_values
from calibit.measures.paired import cluster_index
from calibit.measures.perplexity import window_interval
from calibit.measures.resampling import Resampling

_KL_PERCENTILES = (99.9, 99, 95, 90, 50, 10, 5, 1, 0.1)
_DELTA_PERCENTILES = (99.9, 99, 95, 90, 75, 50, 25, 10, 5, 1, 0.1)
TOP_PROBABILITY_EDGES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, eq=False)
class TokenFidelity:
    """Per-position quantities of n scored positions.

    Attributes:
        nll_base, nll: float64 [n], nats, of the true token.
        kl: float64 [n], KL(base || candidate), nats.
        delta_p: float64 [n], change of the true token's probability (not percent).
        same_top: bool [n], whether the two most probable tokens agree.
        top_p: float64 [n], the base's largest probability.
        entropy: float64 [n], of the base, nats.
    """

    nll_base: np.ndarray
    nll: np.ndarray
    kl: np.ndarray
    delta_p: np.ndarray
    same_top: np.ndarray
    top_p: np.ndarray
    entropy: np.ndarray

    @property
    def n(self) -> int:
        """Number of scored positions."""
        return len(self.nll)

    def perplexity(self) -> dict[str, float | None]:
        """Perplexities, their log ratio (error with covariance), difference, correlation."""
        base, mine = float(np.exp(self.nll_base.mean())), float(np.exp(self.nll.mean()))
        d = self.nll - self.nll_base
        se, base_se, ratio_se = (_standard_error(x) for x in (self.nll, self.nll_base, d))
        ratio = mine / base
        spread = self.nll.std() * self.nll_base.std()
        covariance = float(
            np.mean((self.nll - self.nll.mean()) * (self.nll_base - self.nll_base.mean()))
        )
        return {
            "ppl": mine,
            "ppl_se": _times(mine, se),
            "ppl_base": base,
            "ppl_base_se": _times(base, base_se),
            "correlation": covariance / float(spread) if spread > 0 else None,
            "log_ratio": float(d.mean()),
            "log_ratio_se": ratio_se,
            "ratio": ratio,
            "ratio_se": _times(ratio, ratio_se),
            "difference": mine - base,
        }

    def divergence(self) -> dict[str, float | None]:
        """Mean KL with error, maximum, percentiles, minimum; nats."""
        return _distribution(self.kl, _KL_PERCENTILES)

    def delta(self) -> dict[str, float | None]:
        """Change of the true token's probability: mean, percentiles, root mean square."""
        square = self.delta_p**2
        rms = math.sqrt(float(square.mean()))
        error = _standard_error(square)
        out = _distribution(self.delta_p, _DELTA_PERCENTILES)
        return {
            **out,
            "rms": rms,
            "rms_se": None if error is None or rms == 0 else error / (2.0 * rms),
        }

    def same_top_share(self) -> dict[str, float | None]:
        """Share of positions where both models put the same token first, with its error."""
        share = float(self.same_top.mean())
        error = math.sqrt(share * (1.0 - share) / (self.n - 1)) if self.n > 1 else None
        return {"share": share, "se": error}

    def kl_by_top_probability(self) -> list[dict[str, Any]]:
        """Mean KL in buckets of the base's largest probability."""
        edges = np.array(TOP_PROBABILITY_EDGES[1:-1])
        bucket = np.searchsorted(edges, self.top_p, side="left")
        return [
            {
                "lo": TOP_PROBABILITY_EDGES[index],
                "hi": TOP_PROBABILITY_EDGES[index + 1],
                "n": int(np.sum(bucket == index)),
                "kl": float(self.kl[bucket == index].mean()) if (bucket == index).any() else None,
            }
            for index in range(len(TOP_PROBABILITY_EDGES) - 1)
        ]


def token_fidelity(base_logits: ArrayLike, logits: ArrayLike, tokens: ArrayLike) -> TokenFidelity:
    """Compare two models' next-token distributions position by position.

    Args:
        base_logits: float [n, V], logits of the base model.
        logits: float [n, V], logits of the candidate.
        tokens: int [n], the true next tokens.

    Raises:
        ValueError: for unequal shapes, no positions, or a token outside the vocabulary.
    """
    base, mine = np.asarray(base_logits, dtype=np.float64), np.asarray(logits, dtype=np.float64)
    truth = np.asarray(tokens)
    if base.ndim != 2 or base.shape != mine.shape or truth.shape != base.shape[:1] or not len(base):
        raise ValueError(
            "[token_fidelity] expected logits [n, V] twice and tokens [n], "
            f"got {base.shape}, {mine.shape}, {truth.shape}"
        )
    if truth.min() < 0 or truth.max() >= base.shape[1]:
        raise ValueError(
            f"[token_fidelity] expected tokens below {base.shape[1]}, "
            f"got {truth.min()}..{truth.max()}"
        )
    p, q = (Distributions.from_scores(x, op="token_fidelity") for x in (base, mine))
    p_true, log_p = p.of(truth)
    q_true, log_q = q.of(truth)
    same = p.predicted == q.predicted
    return TokenFidelity(
        -log_p, -log_q, kl_values(p, q), q_true - p_true, same, p.confidence, p.entropy
    )


def token_mean(
    metric: str,
    values: ArrayLike,
    clusters: Sequence[object] | np.ndarray,
    *,
    resampling: Resampling | None = None,
    unit: str = "",
) -> Estimate:
    """Mean over tokens; the units of its interval are whole texts (prompts, documents).

    Args:
        metric: metric id.
        values: float [n], one per token; one that is not finite leaves the mean undefined.
        clusters: [n] text of each token.
        resampling: asks for an interval, see `calibit.measures.perplexity.window_interval`.
        unit: unit of the values.
    """
    given = np.asarray(values, dtype=np.float64)
    if not len(given):
        return undefined(metric, "no tokens", unit=unit)
    bad = int(np.count_nonzero(~np.isfinite(given)))
    if bad:
        return undefined(metric, f"{bad} tokens have no finite value", n=len(given), unit=unit)
    units = token_units(given, clusters)
    out = Estimate(
        metric, float(given.mean()), n=len(given), unit=unit, extra={"clusters": len(units)}
    )
    return out if resampling is None else out.with_interval(window_interval(units, resampling))


def token_units(values: np.ndarray, clusters: Sequence[object] | np.ndarray) -> np.ndarray:
    """Sum and number of the tokens of each text, float64 [texts, 2]."""
    labels = cluster_index(clusters, len(values))
    return np.stack([np.bincount(labels, values), np.bincount(labels)], axis=1)


def kl_top_k(base: Distributions, other: Distributions, k: int, *, tail: str = "bin") -> np.ndarray:
    """KL(base || other) from the base's k most probable tokens only, float64 [n].

    Args:
        base, other: distributions over one vocabulary.
        k: number of tokens kept.
        tail: "bin" (the rest as one bin: a true lower bound), "none" (the rest dropped: may be
            negative), or "renormalised" (both cut to k tokens).

    Raises:
        ValueError: for an unknown tail or distributions of different size.
    """
    p, q = base.matrix(), other.matrix()
    if p is None or q is None or p.shape != q.shape:
        raise ValueError(
            "[kl_top_k] expected two distributions over one vocabulary, got different sizes"
        )
    if tail not in ("bin", "none", "renormalised"):
        raise ValueError(f"[kl_top_k] expected tail bin, none or renormalised, got {tail!r}")
    top = np.argsort(-p, axis=1, kind="stable")[:, :k]
    kept_p, kept_q = np.take_along_axis(p, top, 1), np.take_along_axis(q, top, 1)
    if tail == "renormalised":
        kept_p, kept_q = (x / x.sum(axis=1, keepdims=True) for x in (kept_p, kept_q))
    if tail == "bin" and k < p.shape[1]:
        rest = [np.maximum(0.0, 1.0 - x.sum(axis=1, keepdims=True)) for x in (kept_p, kept_q)]
        kept_p, kept_q = np.append(kept_p, rest[0], axis=1), np.append(kept_q, rest[1], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(kept_p > 0, kept_p * (np.log(kept_p) - np.log(kept_q)), 0.0)
    return terms.sum(axis=1)


def _distribution(values: np.ndarray, percentiles: tuple[float, ...]) -> dict[str, float | None]:
    points = np.percentile(values, percentiles)
    out: dict[str, float | None] = {
        "mean": float(values.mean()),
        "mean_se": _standard_error(values),
    }
    out["max"] = float(values.max())
    for share, point in zip(percentiles, points, strict=True):
        out["median" if share == 50 else f"p{share:g}"] = float(point)
    out["min"] = float(values.min())
    return out


def _standard_error(values: np.ndarray) -> float | None:
    return float(values.std() / math.sqrt(len(values) - 1)) if len(values) > 1 else None


def _times(value: float, error: float | None) -> float | None:
    return None if error is None else value * error
