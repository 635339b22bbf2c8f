"""Direction-aware fidelity: KL says how much changed, signed quantities say which way.

Where KL lies above the noise floor but no signed quantity differs from 0, the candidate is in a
silent zone: there KL must not rank candidates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.confidence import means_of
from calibit.measures.estimate import Estimate, plain, undefined
from calibit.measures.fidelity import kl_values
from calibit.measures.intervals import paired_share_interval, percentile, share_interval
from calibit.measures.paired import average_ranks, cluster_index
from calibit.measures.pairs import LabelledPair, labelled_models
from calibit.measures.resampling import Resampling, resampled_prefix_sums

UNSURE_SHARE = 0.2
"""Share of positions, those of highest reference entropy, whose part of the KL is told."""


@dataclass(frozen=True)
class Direction:
    """Signed changes beside the divergence, on n labelled positions.

    Attributes:
        n: number of positions (items or tokens).
        kl: mean KL(a || b), nats.
        d_conf_true, d_log_conf_true: mean change of the probability of the right choice and of its
            logarithm (nats).
        lost_share: share of positions where that probability fell.
        net_flips: (wrong to right - right to wrong) / n.
        unsure_positions: number of positions of highest reference entropy, a fifth of all.
        unsure_share: their share of the total KL; its null, the share of positions, is in
            `extra["null"]`.
        kl_entropy_correlation: Spearman's, between KL and reference entropy.
        silent_zone: KL above the floor and no signed quantity with an interval that excludes 0;
            None where the floor is not known.
    """

    n: int
    kl: Estimate
    d_conf_true: Estimate
    d_log_conf_true: Estimate
    lost_share: Estimate
    net_flips: Estimate
    unsure_positions: int
    unsure_share: Estimate
    kl_entropy_correlation: Estimate
    silent_zone: bool | None

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


def direction(
    a: Any,
    b: Any,
    gold: ArrayLike | None = None,
    *,
    documents: Sequence[object] | None = None,
    above_floor: bool | None = None,
    resampling: Resampling | None = None,
) -> Direction:
    """Signed changes on labelled positions beside the divergence.

    Args:
        a, b: reference and candidate: Scores, Distributions, or log scores [N, K]; at token level
            K is the vocabulary.
        gold: int [N], the right choice or true token, -1 = unlabelled (left out); taken from `a`
            where it is a Scores.
        documents: [N] document of each position; they are then resampled whole.
        above_floor: whether KL is above the noise floor (`noise_floor`); None where unknown.
        resampling: of the intervals; the defaults of the project where omitted.

    Raises:
        ValueError: for items that do not pair, have one choice, or are not labelled.
    """
    pair = labelled_models(a, b, gold, op="direction")
    draw = pair.resampling(resampling)
    if documents is not None:
        draw = replace(draw, clusters=_documents(documents, pair))
    kl, entropy = kl_values(pair.a, pair.b), pair.a.entropy
    means = means_of(
        {"kl_ab": kl, "d_conf_true": pair.d_p_true, "d_log_conf_true": pair.d_log_p_true},
        draw,
        units={"kl_ab": "nats", "d_log_conf_true": "nats"},
    )
    d_conf_true, d_log = means["d_conf_true"], means["d_log_conf_true"]
    net = _net_flips(pair, draw)
    kept = math.ceil(UNSURE_SHARE * pair.n - 1e-9)
    return Direction(
        pair.n,
        means["kl_ab"],
        d_conf_true,
        d_log,
        _lost_share(pair, draw),
        net,
        kept,
        unsure_share(kl, entropy, draw),
        entropy_correlation(kl, entropy),
        _silent((d_conf_true, d_log, net), above_floor),
    )


def silent_zone(signed: Mapping[str, Estimate] | Sequence[Estimate], above_floor: bool) -> bool:
    """KL above the floor, and no signed quantity with an interval that excludes 0."""
    values = signed.values() if isinstance(signed, Mapping) else signed
    return above_floor and not any(_excludes_zero(one) for one in values)


def _silent(signed: Sequence[Estimate], above_floor: bool | None) -> bool | None:
    return None if above_floor is None else silent_zone(signed, above_floor)


def _excludes_zero(one: Estimate) -> bool:
    if one.lower is None or one.upper is None:
        return False
    return one.lower > 0.0 or one.upper < 0.0


def _documents(documents: Sequence[object], pair: LabelledPair) -> np.ndarray:
    if len(documents) != len(pair.known):
        raise ValueError(f"[direction] expected {len(pair.known)} documents, got {len(documents)}")
    kept = [one for one, known in zip(documents, pair.known, strict=True) if known]
    return cluster_index(kept, pair.n)


def _lost_share(pair: LabelledPair, draw: Resampling) -> Estimate:
    lost = (pair.d_p_true < 0).astype(np.float64)
    out = Estimate("lost_share", float(lost.mean()), n=pair.n)
    return out.with_interval(share_interval(lost, draw))


def _net_flips(pair: LabelledPair, draw: Resampling) -> Estimate:
    net = float(np.mean(pair.right_b - pair.right_a))
    out = Estimate("net_flips", net, "difference", pair.n)
    return out.with_interval(paired_share_interval(pair.right_a, pair.right_b, draw))


def unsure_share(kl: np.ndarray, entropy: np.ndarray, draw: Resampling) -> Estimate:
    """Share of the total KL at the fifth of the positions with the highest reference entropy.

    Args:
        kl: float64 [n], nats.
        entropy: float64 [n], of the reference.
        draw: of the percentile interval; clusters are documents.
    """
    n, total = len(kl), float(kl.sum())
    kept = math.ceil(UNSURE_SHARE * n - 1e-9)
    facts = {"positions": kept, "null": kept / n}
    if not math.isfinite(total) or total <= 0.0:
        reason = "the two models agree everywhere" if total == 0.0 else "KL is infinite"
        return undefined("unsure_share", reason, n=n, extra=facts)
    order = np.argsort(-entropy, kind="stable")
    value = float(kl[order[:kept]].sum()) / total
    out = Estimate("unsure_share", value, "ratio", n, extra=facts)
    if n < 2 or (draw.clusters is not None and draw.clusters.max() == 0):
        return replace(out, reason="an interval needs at least 2 positions or documents")
    first, every = resampled_prefix_sums(kl, order, UNSURE_SHARE, draw).T
    with np.errstate(invalid="ignore"):
        return out.with_interval(percentile(first / every, draw, value=value, floor=0.0))


def entropy_correlation(kl: np.ndarray, entropy: np.ndarray) -> Estimate:
    """Spearman's rank correlation of KL and reference entropy, float64 [n] each."""
    if len(kl) < 3 or np.ptp(kl) == 0.0 or np.ptp(entropy) == 0.0:
        return undefined("kl_entropy_correlation", "KL or entropy does not vary", n=len(kl))
    r = float(np.corrcoef(average_ranks(kl), average_ranks(entropy))[0, 1])
    return Estimate("kl_entropy_correlation", r, "Spearman", len(kl))
