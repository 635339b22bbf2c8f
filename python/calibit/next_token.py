"""Confidence of a language model in its next token, from logits or from hidden states.

One pass over the vocabulary gives everything the measures need of a distribution; with hidden
states the logits exist one vocabulary tile at a time and are never stored as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibit import _C, ops

Tensor = torch.Tensor
Array = np.ndarray[Any, Any]
State = tuple[Tensor, Tensor, Tensor, Tensor]

TILE = 4096
"""Columns of a vocabulary tile: a multiple of the kernels' run of 1,024, so that tiles do not
change a bit of the result."""
_ROWS = 512  # rows of hidden states at a time: 512 x 4,096 logits are 8 MiB
_INFINITE = 1e30  # what a logit of -infinity under a positive probability makes of a divergence


@dataclass(frozen=True, eq=False)
class TokenConfidence:
    """Statistics of softmax(logits) at M positions; logarithms in nats.

    Attributes:
        log_sum_exp: float64 ``[M]``.
        argmax: int64 ``[M]``, the first of equal logits.
        log_top: float64 ``[M]``, log-probability of the argmax: -log sum exp(logit - maximum).
        entropy: float64 ``[M]``.
        log_true: float64 ``[M]``, log-probability of the label; NaN where the label is negative;
            None without labels.
        kl: float64 ``[M]``, KL(logits || other); infinite where `other` excludes a token that
            `logits` does not; None without `other`.
        top_indices: int64 ``[M, top_k]``, the most probable tokens; -1 where the vocabulary is
            smaller.
        top_log_probs: float64 ``[M, top_k]``, falling.
    """

    log_sum_exp: Array
    argmax: Array
    log_top: Array
    entropy: Array
    log_true: Array | None
    kl: Array | None
    top_indices: Array
    top_log_probs: Array


def token_confidence(
    logits: Tensor | Array,
    labels: Tensor | Array | None = None,
    *,
    other: Tensor | Array | None = None,
    top_k: int = 0,
) -> TokenConfidence:
    """Everything the measures need of next-token distributions, in one pass over stored logits.

    Exponentials are float32 with a relative error of about 2e-7, sums float64 over runs of 1,024
    columns. A row depends neither on the other rows nor on the number of threads.

    Args:
        logits: ``[M, V]``, float32, float16 or (torch) bfloat16; -infinity excludes a token.
        labels: int64 ``[M]``, the true tokens; negative where there is none.
        other: ``[M, V]`` of the same dtype: the distribution to measure the divergence from.
        top_k: number of most probable tokens to return.

    Raises:
        ValueError: wrong shape or dtype; a row with NaN, +infinity or no finite logit; a label
            outside the vocabulary.

    Example:
        >>> found = token_confidence(np.log(np.float32([[0.5, 0.25, 0.25]])), np.array([1]))
        >>> bits, p_true = found.entropy[0] / np.log(2), np.exp(found.log_true[0])
        >>> round(float(bits), 6), round(float(p_true), 6)
        (1.5, 0.25)
    """
    if isinstance(logits, torch.Tensor):
        state = ops.confidence_state(logits.shape[0], top_k)
        ops.confidence_update(*state, logits.detach(), _tensor(labels), _tensor(other))
        arrays = tuple(t.numpy() for t in state)
    else:
        second = None if other is None else np.asarray(other)
        true = None if labels is None else np.asarray(labels)
        arrays = _C.confidence(logits, labels=true, other=second, top_k=top_k)
    return _finish(arrays, labels, other is not None, logits.shape[-1])


def head_confidence(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor | None = None,
    *,
    other: tuple[Tensor, Tensor] | None = None,
    top_k: int = 0,
) -> TokenConfidence:
    """The same from final hidden states: ``hidden @ head.T`` exists one tile at a time.

    Args:
        hidden: ``[M, D]``, after the final norm, float32, bfloat16 or float16.
        head: ``[V, D]``, the output head's weight in the same dtype.
        labels: int64 ``[M]``; negative where there is none.
        other: hidden states ``[M, D']`` and head ``[V, D']`` of the distribution to measure the
            divergence from, in the same dtype.
        top_k: number of most probable tokens to return.

    Raises:
        ValueError: as `token_confidence`; shapes that do not fit.
    """
    for name, (h, w) in {"head": (hidden, head), "other": other or (hidden, head)}.items():
        if h.dim() != 2 or w.dim() != 2 or h.shape[1] != w.shape[1] or h.shape[0] != len(hidden):
            raise ValueError(
                f"[head_confidence] expected hidden [M, D] and {name} [V, D], got "
                f"{list(h.shape)} and {list(w.shape)}"
            )
    if other is not None and len(other[1]) != len(head):
        raise ValueError(
            f"[head_confidence] expected heads of one vocabulary, got {len(head)} and "
            f"{len(other[1])} tokens"
        )
    state = ops.confidence_state(len(hidden), top_k)
    with torch.no_grad():
        for start in range(0, len(hidden), _ROWS):
            rows = slice(start, start + _ROWS)
            _stream(
                (state[0][rows], state[1][rows], state[2][rows], state[3][rows]),
                (hidden[rows], head),
                None if labels is None else labels[rows],
                None if other is None else (other[0][rows], other[1]),
            )
    return _finish(tuple(t.numpy() for t in state), labels, other is not None, len(head))


def normalizers(logits: Tensor) -> tuple[Array, Array]:
    """Log-sum-exp and first largest of each row, as `token_confidence`, with no row refused.

    Args:
        logits: ``[M, V]``, float32, bfloat16 or float16, on the CPU.

    Returns:
        Log-sum-exp, float64 ``[M]``, NaN for a row with NaN, +infinity or no finite logit; column
        of the first largest, int64 ``[M]``, -1 for a row with no finite logit.
    """
    state = ops.confidence_state(logits.shape[0], 0)
    ops.confidence_update(*state, logits.detach(), None, None)
    sums, argmax = state[0].numpy(), state[1].numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.where(np.isfinite(sums[:, 1]) & (sums[:, 1] > 0), sums[:, 1], np.nan)
        return sums[:, 0] + np.log(total), argmax


def _stream(
    state: State,
    model: tuple[Tensor, Tensor],
    labels: Tensor | None,
    other: tuple[Tensor, Tensor] | None,
) -> None:
    """Feed the tiles of a vocabulary into the state, in order."""
    for first in range(0, len(model[1]), TILE):
        tile, second = (
            None if pair is None else pair[0] @ pair[1][first : first + TILE].T
            for pair in (model, other)
        )
        assert tile is not None
        ops.confidence_update(*state, tile, labels, second, first=first)


def _tensor(values: Tensor | Array | None) -> Tensor | None:
    return torch.as_tensor(values) if values is not None else None


def _finish(
    state: tuple[Array, ...], labels: Tensor | Array | None, compared: bool, vocabulary: int
) -> TokenConfidence:
    """Statistics from the sums of csrc/core/confidence.h."""
    sums, argmax, top_values, top_indices = state
    shift, total, weighted, gap, largest, label, other_shift, other_total = sums.T
    _check(total, label, None if labels is None else np.asarray(labels), vocabulary)
    log_sum_exp = shift + np.log(total)
    kl = None
    if compared:
        _check(other_total, label, None, vocabulary)
        mean_gap = gap / total
        kl = mean_gap - (log_sum_exp - (other_shift + np.log(other_total)))
        kl = np.where(mean_gap > _INFINITE, np.inf, np.maximum(kl, 0.0))
    return TokenConfidence(
        log_sum_exp=log_sum_exp,
        argmax=argmax,
        log_top=largest - log_sum_exp,
        entropy=np.maximum(np.log(total) - weighted / total, 0.0),
        log_true=None if labels is None else label - log_sum_exp,
        kl=kl,
        top_indices=top_indices,
        top_log_probs=top_values.astype(np.float64) - log_sum_exp[:, None],
    )


def _check(total: Array, label: Array, labels: Array | None, vocabulary: int) -> None:
    bad = ~(np.isfinite(total) & (total > 0))
    if bad.any():
        raise ValueError(
            f"[confidence] expected finite logits (or -infinity for some), got NaN, +infinity or "
            f"no finite logit in row {int(np.argmax(bad))}"
        )
    outside = np.isnan(label) & (labels >= 0) if labels is not None else bad
    if labels is not None and outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"[confidence] expected labels below {vocabulary}, got {int(labels[row])} in row {row}"
        )
