"""Remembering what finished modules computed, so that later passes over a block cost less."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

    def __setattr__(self, name: str, value: Any) -> None:
        # A part that is exchanged is the module's.
        if isinstance(value, nn.Module):
            setattr(self.stands_for, name, value)
        else:
            super().__setattr__(name, value)


class Memory:
    """Outputs of finished modules of one block, by sample, which later passes need not recompute.

    A layer's input is final once all layers before it are: its first output in a pass is the same
    in every later one; so is that of a module before whose end only finished layers run. A module
    that is called again in the same pass is computed again, and so is an output that the model has
    changed in place.

    Args:
        limit: bytes to keep at most.
    """

    def __init__(self, limit: int) -> None:
        self._sample = 0
        self._limit = self._left = limit
        self._called: set[str] = set()
        self._outputs: dict[tuple[str, int], _Output] = {}
        self._inputs: dict[tuple[str, int], _Output] = {}
        self._passing: frozenset[str] = frozenset()
        self._paused = False

    def begin(self, sample: int) -> None:
        """Say that a pass over this sample begins."""
        self._sample = sample
        self._called.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, everything is computed and nothing kept."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @contextmanager
    def noting(
        self, layer: str, parts: Collection[str]
    ) -> Iterator[Callable[[torch.Tensor], None]]:
        """Inside, what a layer reads is kept: yields what takes it in each pass.

        Args:
            layer: its output is that of the module around it.
            parts: what runs inside that module; none of it runs again, so nothing of it is kept.
        """

        def note(x: torch.Tensor) -> None:
            kept = _Output.of(x)
            if kept is not None and kept.nbytes <= self._left and not self._paused:
                self._left -= kept.nbytes
                self._inputs[layer, self._sample] = kept
                for part in parts:
                    self._forget(part)

        before = self._passing
        self._passing = before.union(parts)
        try:
            yield note
        finally:
            self._passing = before

    def input_of(self, layer: str) -> torch.Tensor | None:
        """What a layer reads in the current sample; None where it was not kept, or has changed."""
        kept = self._inputs.get((layer, self._sample))
        if self._paused or kept is None or not kept.unchanged:
            return None
        found: torch.Tensor = kept.value
        return found

    def recall(
        self,
        name: str,
        compute: Callable[[], Any],
        inside: Iterable[str] = (),
        *,
        cheap: bool = False,
    ) -> Any:
        """A module's output for the current sample, remembered or computed.

        Args:
            name: of the module.
            compute: runs it.
            inside: modules that only it runs: what is kept of them makes room for its output.
            cheap: it costs little to compute: the second half of the memory is for others.
        """
        if self._paused:
            return compute()
        first = name not in self._called
        self._called.add(name)
        known = self._outputs.get((name, self._sample))
        if first and known is not None and known.unchanged:
            return known.value
        output = compute()
        if first and known is None and name not in self._passing:
            kept = _Output.of(output)
            free = self._left - self._limit // 2 if cheap else self._left
            if kept is not None and kept.nbytes <= free:
                self._left -= kept.nbytes
                self._outputs[name, self._sample] = kept
                for part in inside:
                    self._forget(part)
                    gone = self._inputs.pop((part, self._sample), None)
                    self._left += 0 if gone is None else gone.nbytes
        return output

    def _forget(self, name: str) -> None:
        gone = self._outputs.pop((name, self._sample), None)
        self._left += 0 if gone is None else gone.nbytes


@dataclass(frozen=True)
class _Output:
    """An output and the state it was in: a tensor, or a sequence of tensors and None.

    Attributes:
        value: what the module returned.
        versions: how often each tensor had been changed in place.
    """

    value: Any
    versions: tuple[int, ...]

    @classmethod
    def of(cls, value: Any) -> _Output | None:
        """None for any other kind of output."""
        parts = value if isinstance(value, tuple | list) else (value,)
        if any(part is not None and not isinstance(part, torch.Tensor) for part in parts):
            return None
        return cls(value, tuple(part._version for part in _tensors(value)))

    @property
    def unchanged(self) -> bool:
        """Has no tensor been changed in place since?"""
        return self.versions == tuple(part._version for part in _tensors(self.value))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for part in _tensors(self.value))


def _tensors(value: Any) -> list[torch.Tensor]:
    parts = value if isinstance(value, tuple | list) else (value,)
    return [part for part in parts if part is not None]


class Remembering(StandIn):
    """Stands in for a finished module: answers from memory where it can.

    Args:
        name: of the module.
        module: the module.
        memory: where its outputs are kept.
        inside: modules that only it runs.
        cheap: it costs little to compute.
        compute: what gives its output, where not the module itself.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        memory: Memory,
        *,
        inside: Collection[str] = (),
        cheap: bool = False,
        compute: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(module)
        self._name = name
        self._memory = memory
        self._inside = inside
        self._cheap = cheap
        self._compute = compute or module.__call__

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        compute = partial(self._compute, *args, **kwargs)
        return self._memory.recall(self._name, compute, self._inside, cheap=self._cheap)
