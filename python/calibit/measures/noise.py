"""Noise floor: is a change larger than what re-running the reference does?

Re-runs of the reference, each with one declared nuisance changed (batch size, order, padding,
accumulation dtype, device), say how far two runs of one model are apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibit.measures.binning import DEFAULT_BINS, bin_sums
from calibit.measures.calibration import ece_of_sums
from calibit.measures.distributions import Distributions
from calibit.measures.estimate import Estimate, plain
from calibit.measures.fidelity import jsd_values, kl_values, tv_values
from calibit.measures.paired import cluster_index, mean_difference
from calibit.measures.pairs import same_items
from calibit.measures.resampling import CHUNK_ENTRIES, Resampling
from calibit.measures.scores import UNLABELLED, Scores

ABOVE, WITHIN = "above_floor", "not_distinguishable"

_UNITS = {"kl_ab": "nats", "jsd": "nats"}


@dataclass(frozen=True)
class Excess:
    """One magnitude of change against its floor.

    Attributes:
        metric: "all_flips" (rate), "kl_ab", "jsd", "tv" or "abs_d_conf_true".
        candidate: mean over items of the candidate's magnitude.
        runs: re-run -> its mean.
        floor, largest: mean and maximum of those means.
        excess: candidate minus floor, with an interval.
        p: one-sided p value of "the candidate is one more re-run".
        state: "above_floor" if the lower bound of the excess lies above 0, else
            "not_distinguishable".
    """

    metric: str
    candidate: float
    runs: Mapping[str, float]
    floor: float
    largest: float
    excess: Estimate
    p: float
    state: str


@dataclass(frozen=True)
class SignedFloor:
    """One signed change beside those of the re-runs; nothing is subtracted.

    Attributes:
        metric: "acc", "conf_true", "nll" or "ece".
        candidate: change from the reference.
        runs: re-run -> its change.
        sigma0: root mean square of the re-runs' changes.
        ratio: |candidate| / sigma0; None where no re-run changed anything.
    """

    metric: str
    candidate: float
    runs: Mapping[str, float]
    sigma0: float
    ratio: float | None


@dataclass(frozen=True)
class NoiseFloor:
    """A candidate against the noise of its reference.

    Attributes:
        n: number of items.
        runs: names of the re-runs, which tell the nuisance changed.
        magnitudes: metric -> Excess.
        signed: metric -> SignedFloor, of the labelled items.
        deterministic: whether a re-run with nothing changed was bit-identical; None without one.
            If it was not, it counts among the re-runs.
        clusters: number of batches that were relabelled and resampled whole; None for items.
    """

    n: int
    runs: tuple[str, ...]
    magnitudes: Mapping[str, Excess]
    signed: Mapping[str, SignedFloor]
    deterministic: bool | None
    clusters: int | None

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


def noise_floor(
    a: Any,
    b: Any,
    reruns: Mapping[str, Any],
    gold: ArrayLike | None = None,
    *,
    repeat: Any = None,
    batches: Sequence[object] | None = None,
    resampling: Resampling | None = None,
) -> NoiseFloor:
    """Compare a candidate with re-runs of its reference.

    Args:
        a, b: reference and candidate: Scores, Distributions, or log scores [N, K].
        reruns: nuisance changed -> the reference run again, on the same items.
        gold: int [N], -1 = unlabelled; taken from `a` where it is a Scores. Without labels only
            magnitudes that need none are computed.
        repeat: the reference run again with nothing changed.
        batches: [N] batch of each item, where items share batches: they are then the clusters.
        resampling: of intervals and relabelling; the defaults of the project where omitted.

    Raises:
        ValueError: without items or re-runs, or for runs that do not pair.
    """
    first, second = same_items(a, b, op="noise_floor")
    if not first.n:
        raise ValueError("[noise_floor] expected at least one item, got none")
    others = {
        name: same_items(a, run, op=f"noise_floor, {name}")[1] for name, run in reruns.items()
    }
    deterministic = None
    if repeat is not None:
        again = same_items(a, repeat, op="noise_floor, repeat")[1]
        deterministic = _same_bits(a, repeat)
        others |= {} if deterministic else {"repeat": again}
    if not others:
        raise ValueError("[noise_floor] expected at least one re-run of the reference, got none")
    labels = getattr(a, "gold", None) if gold is None else gold
    right = np.full(first.n, UNLABELLED) if labels is None else np.asarray(labels)
    if right.shape != (first.n,):
        raise ValueError(f"[noise_floor] expected {first.n} labels, got {list(right.shape)}")
    draw = resampling or Resampling()
    models = {**others, "": second}
    tables = _magnitudes(first, models, right)
    clusters = None if batches is None else cluster_index(batches, first.n)
    known = right != UNLABELLED
    found = {}
    for metric, table in tables.items():
        inside = clusters[known] if clusters is not None and len(table) < first.n else clusters
        found[metric] = _excess(metric, table, tuple(others), inside, draw)
    signed = _signed(first.take(known), {k: x.take(known) for k, x in models.items()}, right[known])
    return NoiseFloor(
        first.n,
        tuple(others),
        found,
        signed,
        deterministic,
        None if clusters is None else int(clusters.max()) + 1,
    )


def excess_values(a: Any, b: Any, reruns: Sequence[Any]) -> dict[str, np.ndarray]:
    """Magnitude of the candidate's change minus the mean of the re-runs', per item.

    Args:
        a, b: reference and candidate: Scores, Distributions, or log scores [N, K].
        reruns: the reference run again, at least once, on the same items.

    Returns:
        "all_flips" and "kl_ab" -> float64 [N].
    """
    first, second = same_items(a, b, op="noise_floor")
    others = [same_items(a, run, op="noise_floor")[1] for run in reruns]
    models = dict(enumerate([*others, second]))
    tables = _magnitudes(first, models, np.full(first.n, UNLABELLED))
    return {
        metric: tables[metric][:, -1] - tables[metric][:, :-1].mean(axis=1)
        for metric in ("all_flips", "kl_ab")
    }


def _same_bits(a: Any, b: Any) -> bool:
    if isinstance(a, Scores) and isinstance(b, Scores):
        return all(np.array_equal(x, y) for x, y in zip(a.z, b.z, strict=True))
    first, second = same_items(a, b, op="noise_floor")
    return np.array_equal(first.log_p, second.log_p)


def _magnitudes(
    a: Distributions, models: Mapping[Any, Distributions], gold: np.ndarray
) -> dict[str, np.ndarray]:
    """Magnitudes of change per item and model, metric -> float64 [n, R + 1], candidate last."""

    def table(of: Any) -> np.ndarray:
        return np.stack([of(x) for x in models.values()], axis=1)

    out = {
        "all_flips": table(lambda x: (a.predicted != x.predicted).astype(np.float64)),
        "kl_ab": table(lambda x: kl_values(a, x)),
        "jsd": table(lambda x: jsd_values(a, x)),
        "tv": table(lambda x: tv_values(a, x)),
    }
    known = gold != UNLABELLED
    if known.any():
        at = a.offsets[:-1][known] + gold[known]
        out["abs_d_conf_true"] = table(lambda x: np.abs(x.p[at] - a.p[at]))
    return out


def _excess(
    metric: str,
    table: np.ndarray,
    names: Sequence[str],
    clusters: np.ndarray | None,
    draw: Resampling,
) -> Excess:
    if not np.isfinite(table).all():
        item = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise ValueError(f"[noise_floor] expected a finite {metric}, got infinity in item {item}")
    means = table.mean(axis=0)
    e = table[:, -1] - table[:, :-1].mean(axis=1)
    excess = mean_difference(e, metric=f"excess_{metric}", clusters=clusters, resampling=draw)
    above = excess.lower is not None and excess.lower > 0.0
    return Excess(
        metric,
        float(means[-1]),
        dict(zip(names, means[:-1].tolist(), strict=True)),
        float(means[:-1].mean()),
        float(means[:-1].max()),
        replace(excess, unit=_UNITS.get(metric, "")),
        _relabelling_p(table, clusters, draw),
        ABOVE if above else WITHIN,
    )


def _relabelling_p(table: np.ndarray, clusters: np.ndarray | None, draw: Resampling) -> float:
    """One-sided p value: which of the R + 1 values belongs to the candidate is drawn anew per item
    (or batch)."""
    if clusters is not None:
        table = np.stack([np.bincount(clusters, column) for column in table.T], axis=1)
    n, models = table.shape
    # The excess grows with the sum of the candidate's values: the total of all models is fixed.
    observed = float(table[:, -1].sum())
    slack = 1e-12 * float(np.abs(table).sum())
    flat, starts = table.ravel(), np.arange(n) * models
    rng, reached = np.random.default_rng(draw.seed), 0
    rows = max(1, CHUNK_ENTRIES // n)
    for start in range(0, draw.resamples, rows):
        chosen = rng.integers(0, models, (min(rows, draw.resamples - start), n)) + starts
        reached += int(np.sum(flat[chosen].sum(axis=1) >= observed - slack))
    return (1 + reached) / (1 + draw.resamples)


def _signed(
    a: Distributions, models: Mapping[str, Distributions], gold: np.ndarray
) -> dict[str, SignedFloor]:
    if not a.n:
        return {}
    base = _levels(a, gold)
    changes = {name: _levels(x, gold) for name, x in models.items()}
    out = {}
    for metric, level in base.items():
        moved = {name: levels[metric] - level for name, levels in changes.items()}
        candidate = moved.pop("")
        sigma0 = math.sqrt(float(np.mean(np.square(list(moved.values())))))
        ratio = abs(candidate) / sigma0 if sigma0 > 0 else None
        out[metric] = SignedFloor(metric, candidate, moved, sigma0, ratio)
    return out


def _levels(d: Distributions, gold: np.ndarray) -> dict[str, float]:
    p, log_p = d.of(gold)
    correct = (d.predicted == gold).astype(np.float64)
    sums = bin_sums(d.confidence, correct, bins=DEFAULT_BINS, rule="width")
    return {
        "acc": float(correct.mean()),
        "conf_true": float(p.mean()),
        "nll": float(-log_p.mean()),
        "ece": float(ece_of_sums(sums)),
    }
