"""How a model may be scored, found by trying: which way to its output layer is exact, and whether
its cache may be shared.

No architecture is named. A model that computes something after the output layer, has no module for
it, or whose cache does not continue a prompt as the plain forward pass would, is scored the slower
way, and the run records why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibit.evaluation.batching import Batch, shared_length
from calibit.evaluation.encoding import EncodedChoices
from calibit.evaluation.scoring import ChoiceScores, Scorer, tapped

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Allowed difference of a choice's log-likelihood between shared and separate contexts, nats, by
the dtype of the model. A wrong position or mask moves it by far more; the rounding of two-byte
floats alone by up to a quarter."""

_PROBE_SCALE = 1024.0  # shows the curve of a soft cap even where the logits are tiny
_CHECK_SHARE = 50  # the longest item joins the check where that costs at most 1/50 of the run
_NOISE_FACTOR = 4.0


@dataclass(frozen=True)
class Method:
    """How a run is scored; found once and stored with it.

    Attributes:
        head: one of scoring.HEADS.
        shared_context: whether choices continue from a cached context.
        deviation: largest difference in the check, nats; None where nothing was compared.
        reason: why contexts are not shared; None where they are.
    """

    head: str
    shared_context: bool
    deviation: float | None = None
    reason: str | None = None


def choose_method(model: Any, items: Sequence[EncodedChoices]) -> Method:
    """Try the fast ways on a few tokens and items; fall back where they deviate.

    Args:
        model: causal language model in evaluation mode.
        items: all encoded items of the run.
    """
    head = choose_head(model)
    sample = _sample(items)
    if not sample:
        return Method(head, True)
    scorer = Scorer(model, head=head)
    try:
        shared = _concatenated(scorer.choices(sample, _chained(sample)))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return Method(head, False, reason=f"the model's cache cannot be shared: {error}")
    separate = _separate(scorer, sample)
    deviation = _distance(shared, separate)
    allowed = tolerance(model)
    if deviation > allowed:  # perhaps the model itself is that noisy: other rows, other scores
        allowed = max(allowed, _NOISE_FACTOR * _distance(_together(scorer, sample), separate))
    if deviation <= allowed:
        return Method(head, True, deviation)
    reason = (
        f"scores from a shared context differ by {deviation:.3g} nats; "
        f"rounding would be at most {allowed:.3g}"
    )
    return Method(head, False, deviation if np.isfinite(deviation) else None, reason)


def choose_head(model: Any) -> str:
    """The fastest of scoring.HEADS that gives the logits of the model's plain forward pass."""
    layer = model.get_output_embeddings()
    if layer is None:
        return "full"
    ids = torch.arange(1, 7, device=model.device)[None]
    rows, columns = torch.tensor([0, 0]), torch.tensor([1, 4])
    states: list[torch.Tensor] = []

    def gather(hidden: torch.Tensor) -> torch.Tensor:
        return hidden[rows.to(hidden.device), columns.to(hidden.device)][None]

    def probe(hidden: torch.Tensor) -> torch.Tensor:
        states.extend([hidden[0, columns.to(hidden.device)], hidden[:1, -1:] * _PROBE_SCALE])
        return states[1]

    def run() -> torch.Tensor:
        return model(input_ids=ids, use_cache=False, return_dict=True).logits

    with torch.no_grad():
        full = run()[0, columns]
        with tapped(layer, gather):
            gathered = run()
        with tapped(layer, probe):
            scaled = run()
        if not states or gathered.shape[1] != 2 or not _same(gathered[0], full):
            return "full"
        direct = _same(layer(states[0]), full) and _same(layer(states[1]), scaled)
    return "sliced" if direct else "gathered"


def tolerance(model: Any) -> float:
    """Allowed deviation of a choice's log-likelihood for the model's dtype, nats."""
    return TOLERANCES.get(model.dtype, TOLERANCES[torch.bfloat16])


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to the rounding of a matrix product of another shape."""
    eps = torch.finfo(a.dtype).eps
    allowed = (64 if eps < 1e-6 else 4) * eps
    a, b = a.double().cpu(), b.double().cpu()
    return a.shape == b.shape and bool((a - b).abs().max() <= allowed * b.abs().max())


def _sample(items: Sequence[EncodedChoices]) -> list[EncodedChoices]:
    """The two cheapest items whose choices need a pass of their own, and the longest if it is a
    small part of the run."""
    cost = {i: sum(map(len, item.inputs)) for i, item in enumerate(items) if item.reason is None}
    several = [i for i in cost if len(set(items[i].inputs)) > 1] or list(cost)
    chosen = sorted(several, key=lambda i: (cost[i], i))[:2]
    longest = max(several, key=lambda i: (cost[i], -i), default=None)
    if (
        longest is not None
        and longest not in chosen
        and cost[longest] * _CHECK_SHARE <= sum(cost.values())
    ):
        chosen.append(longest)
    return [items[i] for i in chosen]


def _chained(items: Sequence[EncodedChoices]) -> Batch:
    """All items in one batch that continues twice from a cache, whatever that costs."""
    inputs = [tokens for item in items for tokens in item.inputs]
    begin = min(shared_length(item) for item in items)
    cuts = {max(1, begin // 2), max(1, begin), max(map(len, inputs))}
    return Batch(tuple(range(len(items))), tuple(sorted(cuts)))


def _separate(scorer: Scorer, items: Sequence[EncodedChoices]) -> np.ndarray:
    """Scores with every choice encoded from its first token on, the items one by one."""
    batches = [Batch((index,), (max(map(len, item.inputs)),)) for index, item in enumerate(items)]
    return _concatenated([score for batch in batches for score in scorer.choices(items, batch)])


def _together(scorer: Scorer, items: Sequence[EncodedChoices]) -> np.ndarray:
    """As `_separate`, all items in one padded batch."""
    longest = max(len(tokens) for item in items for tokens in item.inputs)
    batch = Batch(tuple(range(len(items))), (longest,))
    return _concatenated(scorer.choices(items, batch))


def _concatenated(scores: Sequence[ChoiceScores]) -> np.ndarray:
    return np.concatenate([score.ll for score in scores])


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest absolute difference; 0 where both are not finite, infinite where one is."""
    both, one = np.isfinite(a) & np.isfinite(b), np.isfinite(a) ^ np.isfinite(b)
    if one.any():
        return float("inf")
    return float(np.abs(a[both] - b[both]).max(initial=0.0))
