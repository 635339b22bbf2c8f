"""Does a solver do the whole model good? Held-out text goes through three models side by side.

A solver lowers the output error of each layer on the calibration text; the model may still get
worse than under nearest rounding (an uneven Hessian without activation order does it). So a few
held-out segments go block by block through the model as it was, the solved one, and one rounded to
nearest; after the last block their next-token distributions are compared. Layers outside the blocks
are what they were in all three. The cost is three forward passes of these segments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from calibit import next_token, numbers, structure, weight
from calibit.modules import QuantizedLinear
from calibit.quantization.layerwise import Job
from calibit.quantization.replay import Replay
from calibit.schemes import Scheme

Hidden = Sequence[torch.Tensor]

_SURE = 2.0  # standard errors from which a difference is called one


@dataclass(frozen=True)
class HeldOut:
    """The solved model and the one of nearest rounding beside the model as it was, on text that the
    solver has not seen.

    Attributes:
        tokens: next-token distributions that were compared.
        kl: mean KL(before || solved), nats a token.
        kl_nearest: mean KL(before || nearest).
        difference: kl - kl_nearest.
        standard_error: of the difference, over tokens.
        drift: after each block the error of the hidden states relative to their norm, of the solved
            model.
        drift_nearest: the same of nearest rounding.
    """

    tokens: int
    kl: float
    kl_nearest: float
    difference: float
    standard_error: float
    drift: tuple[float, ...]
    drift_nearest: tuple[float, ...]

    @property
    def note(self) -> str | None:
        """A sentence where the solver is not better than nearest rounding."""
        own, nearest = (numbers.ascii_(numbers.small(kl)) for kl in (self.kl, self.kl_nearest))
        seen = f"{own} nats a token from the model before, nearest rounding {nearest}"
        if self.difference > _SURE * self.standard_error:
            return (
                f"WORSE THAN NEAREST ROUNDING on held-out text ({seen}): do not ship it; try "
                "activation order (-actorder), more calibration text, or the format without solver"
            )
        if self.difference > -_SURE * self.standard_error:
            return f"not shown to be better than nearest rounding on held-out text ({seen})"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Guard:
    """Carries held-out segments through the three models; one object per job.

    Args:
        replay: the model's blocks with the calls of every sample.
        samples: token ids `[1, length]` of all samples, in the replay's order.
        first: index of the first held-out sample; those before it calibrate.
    """

    def __init__(self, replay: Replay, samples: Sequence[torch.Tensor], first: int) -> None:
        self._replay = replay
        self._ids = samples[first:]
        self._first = first
        self._before = self._solved = self._nearest = list(replay.hidden[first:])
        self._drift: list[tuple[float, float]] = []

    def before_(self, model: nn.Module, index: int, jobs: Sequence[Job]) -> None:
        """Run a block that is not solved yet, and the same rounded to nearest."""
        self._before = self._run(index, self._before)
        floats = {layer.name: model.get_submodule(layer.name) for layer, _ in jobs}
        try:
            for layer, scheme in jobs:
                structure.replace_(model, layer.names, _rounded(model, layer, scheme))
            self._nearest = self._run(index, self._nearest)
        finally:
            for layer, _ in jobs:
                structure.replace_(model, layer.names, floats[layer.name])

    def after(self, index: int) -> None:
        """Run the solved block."""
        self._solved = self._run(index, self._solved)
        self._drift.append(
            (_drift(self._before, self._solved), _drift(self._before, self._nearest))
        )

    def result(self, forward: Callable[[torch.Tensor], Any]) -> HeldOut | None:
        """The comparison after the last block; None where the model gives no logits.

        Args:
            forward: runs the model on one sample.
        """
        kl: list[np.ndarray] = []
        kl_nearest: list[np.ndarray] = []
        for place, ids in enumerate(self._ids):
            before, solved, nearest = (
                _logits(self._replay.finish(partial(forward, ids), states[place]))
                for states in (self._before, self._solved, self._nearest)
            )
            if before is None or solved is None or nearest is None:
                return None
            kl.append(_divergence(before, solved))
            kl_nearest.append(_divergence(before, nearest))
        return _summary(np.concatenate(kl), np.concatenate(kl_nearest), self._drift)

    def _run(self, index: int, hidden: Hidden) -> list[torch.Tensor]:
        block, calls = self._replay.blocks[index], self._replay.calls[index][self._first :]
        with torch.no_grad():
            return [call.run(block, each) for call, each in zip(calls, hidden, strict=True)]


def _rounded(model: nn.Module, layer: structure.LinearLayer, scheme: Scheme) -> nn.Module:
    dense = layer.weight(model)
    quantized = weight.quantize(dense, scheme.nearest)
    return QuantizedLinear.from_weight(quantized, layer.bias(model), dense.dtype).eval()


def _drift(before: Hidden, after: Hidden) -> float:
    """Norm of the difference over the norm, over all samples."""
    errors = [float((a.float() - b.float()).norm()) for a, b in zip(after, before, strict=True)]
    norms = [float(b.float().norm()) for b in before]
    return math.hypot(*errors) / max(math.hypot(*norms), 1e-30)


def _logits(output: Any) -> torch.Tensor | None:
    """Logits `[length, V]` in a model's output for one sample."""
    found = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if not isinstance(found, torch.Tensor) or found.dim() != 3 or len(found) != 1:
        return None
    return found[0].float().cpu().contiguous()


def _divergence(before: torch.Tensor, after: torch.Tensor) -> np.ndarray[Any, Any]:
    divergence = next_token.token_confidence(before, other=after).kl
    assert divergence is not None
    return divergence


def _summary(
    kl: np.ndarray[Any, Any], nearest: np.ndarray[Any, Any], drift: Sequence[tuple[float, float]]
) -> HeldOut:
    change = kl - nearest
    return HeldOut(
        tokens=len(kl),
        kl=float(kl.mean()),
        kl_nearest=float(nearest.mean()),
        difference=float(change.mean()),
        standard_error=float(change.std(ddof=1) / len(change) ** 0.5) if len(change) > 1 else 0.0,
        drift=tuple(each for each, _ in drift),
        drift_nearest=tuple(each for _, each in drift),
    )
