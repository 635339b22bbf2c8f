"""Remembering what finished layers computed, so that GPTQ's later passes over a block cost less."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn


class StandIn(nn.Module):
    """Takes a module's place for a while, and answers for it when the model asks it for facts."""

    stands_for: nn.Module

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # Not as a submodule: the stand-in must not show up in the model's own walks.
        object.__setattr__(self, "stands_for", module)

    def __getattr__(self, name: str) -> Any:
        # Such as `layer.attention_type`, or `linear.weight.dtype`.
        return getattr(object.__getattribute__(self, "stands_for"), name)


class Memory:
    """Outputs of finished layers of one block, by sample, which later passes need not recompute.

    A layer's input is final once all layers before it are: its first output in a pass is the same
    in every later one. A layer that is called again in the same pass is computed again, and so is
    an output that the model has changed in place.

    Args:
        limit: bytes to keep at most.
    """

    def __init__(self, limit: int) -> None:
        self._sample = 0
        self._left = limit
        self._called: set[str] = set()
        self._outputs: dict[tuple[str, int], tuple[torch.Tensor, int]] = {}

    def begin(self, sample: int) -> None:
        """Say that a pass over this sample begins."""
        self._sample = sample
        self._called.clear()

    def recall(self, name: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A layer's output for the current sample, remembered or computed."""
        first = name not in self._called
        self._called.add(name)
        known, version = self._outputs.get((name, self._sample), (None, 0))
        if first and known is not None and known._version == version:
            return known
        output = compute()
        if first and known is None and output.nbytes <= self._left:
            self._left -= output.nbytes
            self._outputs[name, self._sample] = (output, output._version)
        return output


class Remembering(StandIn):
    """Stands in for a finished layer: answers from memory where it can."""

    def __init__(self, name: str, layer: nn.Module, memory: Memory) -> None:
        super().__init__(layer)
        self._name = name
        self._memory = memory

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._memory.recall(self._name, partial(self.stands_for, *args, **kwargs))
