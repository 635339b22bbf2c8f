"""Stand-ins for the finished modules of a block, so that each is run as seldom as can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from calibit import activations, structure
from calibit._devices import float32_products
from calibit.modules import QuantizedLinear
from calibit.quantization.hessian import watch_input
from calibit.quantization.memory import Memory, Remembering, StandIn
from calibit.quantization.order import Order, Tail


class Dense:
    """A finished layer on its dequantized weight: for the many tokens of a calibration faster than
    unpacking the weight for each sample.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: QuantizedLinear) -> None:
        self._layer = layer
        self._weight = layer.dequantize()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != self._weight.dtype or x.device != self._weight.device:
            output: torch.Tensor = self._layer(x)
            return output
        rounded = activations.prepare(x, self._layer.scheme)
        with float32_products():
            return nn.functional.linear(rounded, self._weight, self._layer.bias)


class StandIns:
    """Stand-ins for the finished modules of a block; at the end of its `with` they are gone.

    Args:
        model: the model.
        memory: what stand-ins answer from.
    """

    def __init__(self, model: nn.Module, memory: Memory) -> None:
        self._model = model
        self._memory = memory
        self._standing: list[tuple[str, ...]] = []  # names of what has one

    def __enter__(self) -> StandIns:
        return self

    def __exit__(self, *_: object) -> None:
        for names in reversed(self._standing):
            module = self._model.get_submodule(names[0])
            if isinstance(module, StandIn):
                structure.replace_(self._model, names, module.stands_for)

    def replace(self, layers: Sequence[structure.LinearLayer]) -> None:
        """Stand in for solved layers; all but experts multiply with their dequantized weights."""
        for layer in layers:
            module = self._model.get_submodule(layer.name)
            run = None
            if layer.experts is None and isinstance(module, QuantizedLinear):
                run = Dense(module)
            stand_in = Remembering(layer.name, module, self._memory, compute=run)
            structure.replace_(self._model, layer.names, stand_in)
            self._standing.append(layer.names)

    def take_over(self, order: Order, names: list[str]) -> None:
        """Stand in for the modules that these layers completed."""
        for name in order.completed_by(names):
            module, ran = self._model.get_submodule(name), order.modules[name]
            stand_in = Remembering(
                name,
                module,
                self._memory,
                inside=order.parts(name),
                cheap=not ran.inside,
                compute=None if ran.tail is None else partial(self._ended, module, ran.tail),
            )
            structure.replace_(self._model, (name,), stand_in)
            self._standing.append((name,))

    def _ended(self, module: nn.Module, tail: Tail, *args: Any, **kwargs: Any) -> Any:
        """A module's output by its last layer alone, where memory holds what that layer reads."""
        x = self._memory.input_of(tail.layer)
        if x is None:
            return module(*args, **kwargs)
        output = self._model.get_submodule(tail.layer)(x)
        return (output, *[None] * (tail.length - 1)) if tail.length else output


@contextmanager
def noted_input(model: nn.Module, order: Order, names: list[str], memory: Memory) -> Iterator[None]:
    """Inside, memory keeps what that of these layers reads which ends a module."""
    with ExitStack() as stack:
        for layer, module in order.ended_by(names).items():
            note = stack.enter_context(memory.noting(layer, order.parts(module)))
            # The first of the layers speaks for all: they read one tensor, and then a pass stops.
            handle = watch_input(model.get_submodule(names[0]), note, before_others=True)
            stack.callback(handle.remove)
        yield
