"""Hessians of linear layers, H = sum of x x^T over calibration tokens, collected on the fly.

Layers that read the same tensor (query, key and value; gate and up) share one Hessian. "The same"
means the same memory, shape and version in the same forward pass, so that an input changed in place
between two layers counts as two. Products are taken in float32 and added in float64 (`sums`). Rows
are tokens; padding never comes this far (`calibration_text` removes it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn

from calibit._devices import float32_products
from calibit.quantization.sums import Gram


@dataclass
class Hessian:
    """A sum of outer products.

    Attributes:
        total: float64 `[K, K]`, the sum of x x^T.
        rows: how many tokens were added.
    """

    total: torch.Tensor
    rows: int


@dataclass
class _Product:
    """The product of one input tensor in the current forward pass, and the layers that read it."""

    members: list[str]
    product: torch.Tensor
    rows: int


class HessianCapture:
    """Collects the Hessians of named layers from forward passes run inside its `with` block.

    Args:
        layers: the modules by name; each is called with its input as the first positional argument.
        stop: leave a pass as soon as every layer was reached once in it.

    Example:
        with HessianCapture({"fc": model.fc}) as capture:
            for ids in samples:
                capture.run(lambda: model(ids))
        capture.hessians()["fc"].total
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, stop: bool = False) -> None:
        self._layers = dict(layers)
        self._names = tuple(layers)
        self._stop = stop
        self._sums: dict[frozenset[str], Hessian] = {}
        self._products: dict[tuple[Any, ...], _Product] = {}
        self._alive: list[torch.Tensor] = []
        self._reached: set[str] = set()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._sample = -1
        self._alone: Gram | None = None  # of a layer that is watched by itself

    def __enter__(self) -> HessianCapture:
        for name, module in self._layers.items():
            self._handles.append(watch_input(module, partial(self._saw, name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._layers.clear()  # they are about to be replaced: nothing here may keep them alive
        self._begin()

    def run(self, forward: Callable[[], object]) -> None:
        """Run one forward pass and add what it showed.

        Raises:
            ValueError: a layer's input held NaN or Inf; the message names the layer and the sample.
        """
        self._begin()
        self._sample += 1
        try:
            with torch.no_grad():
                forward()
        except StopForward:
            pass
        for seen in self._products.values():
            key = frozenset(seen.members)
            total = self._sums.get(key)
            if total is None:
                self._sums[key] = Hessian(seen.product.double(), seen.rows)
            else:
                total.total += seen.product
                total.rows += seen.rows
        self._begin()

    def hessians(self) -> dict[str, Hessian | None]:
        """Each layer's Hessian, one object where layers share their inputs; None if unreached."""
        whole: dict[frozenset[frozenset[str]], Hessian] = {}
        result: dict[str, Hessian | None] = {}
        if self._alone is not None:
            return {self._names[0]: Hessian(self._alone.total(), self._alone.rows)}
        for name in self._names:
            parts = frozenset(key for key in self._sums if name in key)
            if not parts:
                result[name] = None
                continue
            if parts not in whole:
                whole[parts] = _added([self._sums[key] for key in sorted(parts, key=sorted)])
            result[name] = whole[parts]
        return result

    def _begin(self) -> None:
        self._products.clear()
        self._alive.clear()
        self._reached.clear()

    def _saw(self, name: str, x: torch.Tensor) -> None:
        self._add(name, x.detach())
        self._reached.add(name)
        if self._stop and len(self._reached) == len(self._names):
            raise StopForward

    def _add(self, name: str, x: torch.Tensor) -> None:
        if self._stop and len(self._names) == 1:  # called once in a pass: nothing can be shared
            wide = x.reshape(-1, x.shape[-1]).float()
            self._check(name, torch.linalg.vector_norm(wide))
            self._alone = self._alone or Gram(wide.shape[1])
            self._alone.add(wide)
            return
        self._alive.append(x)  # so that no later input of this pass can take over its memory
        rows = x.reshape(-1, x.shape[-1])
        key = same_memory(x)
        seen = self._products.get(key)
        if seen is None:
            wide = rows.float()
            with float32_products():
                product = wide.t() @ wide
            self._check(name, product.diagonal())
            self._products[key] = _Product([name], product, rows.shape[0])
        elif name not in seen.members:
            seen.members.append(name)

    def _check(self, name: str, squares: torch.Tensor) -> None:
        """Sums of squares are finite unless there is NaN or Inf among the values."""
        if not bool(torch.isfinite(squares).all()):
            raise ValueError(
                f"[hessian] expected finite activations, got NaN or Inf in the input of {name} "
                f"at calibration sample {self._sample}: run the calibration in float32"
            )


class StopForward(Exception):
    """Raised by a hook to leave a forward pass whose rest is not needed."""


def watch_input(
    module: nn.Module, see: Callable[[torch.Tensor], None], *, before_others: bool = False
) -> torch.utils.hooks.RemovableHandle:
    """Show every input of a layer to `see` before the layer runs, until the handle is removed."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(args[0] if args else next(iter(kwargs.values())))

    return module.register_forward_pre_hook(hook, with_kwargs=True, prepend=before_others)


def same_memory(x: torch.Tensor) -> tuple[Any, ...]:
    """A key that two living tensors share exactly when they show the same values of one memory.

    The shape enters as `[tokens, K]`, so that `[1, L, K]` and its flattened view are one input.
    """
    rows = x.numel() // max(1, x.shape[-1])
    strides = () if x.is_contiguous() else (x.shape, x.stride())
    return (x.device, x.data_ptr(), rows, x.shape[-1], strides, x.dtype, x._version)


def _added(parts: list[Hessian]) -> Hessian:
    """The sum of Hessians; the one itself when it is alone."""
    if len(parts) == 1:
        return parts[0]
    return Hessian(torch.stack([p.total for p in parts]).sum(0), sum(p.rows for p in parts))
