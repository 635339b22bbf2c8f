"""The unquantized model beside the one that is being quantized: what `gptaq` fits layers to.

The errors of the layers before reach a layer twice. It reads x where the unquantized model has y
(Li et al., "GPTAQ", arXiv 2504.02692), and where its output is added to a residual stream, that
stream lacks e already. Both models go block by block through the calibration tokens; the sums of
(y - x) x^T and e x^T move the target that the layer is fitted to. Which layers add to the stream is
not read from names: their outputs are replaced, and the block's output must follow one to one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from calibit import structure
from calibit.quantization.hessian import StopForward, watch_input
from calibit.quantization.memory import Memory
from calibit.quantization.replay import Call
from calibit.quantization.sums import ProductSum

_FOLLOWS = {torch.float32: 1e-3, torch.float64: 1e-3}
_FOLLOWS_COARSELY = 0.05  # bfloat16 rounds the sum to 8 bits


@dataclass(frozen=True)
class Pull:
    """Where the unquantized model pulls the layers that read one tensor.

    Attributes:
        cross: float64 `[K, K]`, the sum of (y - x) x^T.
        residuals: float64 `[N, K]` by layer, the sum of e x^T, for a layer that adds to the stream.
    """

    cross: torch.Tensor
    residuals: Mapping[str, torch.Tensor]


class Unquantized:
    """Carries the calibration samples through the unquantized blocks; one object per job.

    Args:
        hidden: the first block's input, one tensor per sample.
        limit: bytes for what the layers of a block read and give in the unquantized model; what
            does not fit is computed again.
    """

    def __init__(self, hidden: Sequence[torch.Tensor], limit: int) -> None:
        self._hidden = list(hidden)
        self._limit = limit

    @contextmanager
    def beside(
        self,
        model: nn.Module,
        block: nn.Module,
        calls: Sequence[Call],
        hidden: Sequence[torch.Tensor],
        layers: Sequence[structure.LinearLayer],
    ) -> Iterator[Block]:
        """A block while its layers are replaced; afterwards the samples are through it.

        Args:
            model: the model.
            block: the block, none of its layers solved yet.
            calls: of each sample.
            hidden: the inputs that the quantized blocks before give, one per sample.
            layers: those of the block that will be replaced.
        """
        found = Block(model, block, calls, (self._hidden, hidden), layers, self._limit)
        yield found
        for sample in range(len(calls)):
            self._hidden[sample] = found.output(sample)


class Block:
    """One block in both forms.

    Args:
        model, block, calls, layers: as for `Unquantized.beside`.
        hidden: inputs of the samples in the unquantized and in the quantized model.
        limit: as for `Unquantized`.
    """

    def __init__(
        self,
        model: nn.Module,
        block: nn.Module,
        calls: Sequence[Call],
        hidden: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
        layers: Sequence[structure.LinearLayer],
        limit: int,
    ) -> None:
        self._model = model
        self._block = block
        self._calls = calls
        self._hidden = hidden
        self._layers = {layer.name: layer for layer in layers}
        self._floats = {name: model.get_submodule(name) for name in self._layers}
        candidates = [
            layer.name
            for layer in layers
            if layer.shape[0] == hidden[0][0].shape[-1] and layer.experts is None
        ]
        run = partial(calls[0].run, block)
        self._adding = added_to_stream(model, candidates, run, hidden[0][0])
        self._added: dict[tuple[str, int], torch.Tensor] = {}  # by solved layer and sample
        self._true = self._recorded(limit)

    def output(self, sample: int) -> torch.Tensor:
        """What the unquantized block makes of a sample."""
        if self._true:
            return self._true[sample].output
        with torch.no_grad(), self.unquantized():
            return self._calls[sample].run(self._block, self._hidden[0][sample])

    def _recorded(self, limit: int) -> list[_Recorded]:
        """One pass of every sample through the block while it is unquantized; none where what is
        kept of them takes more bytes than the limit, or was changed in place."""
        found: list[_Recorded] = []
        for call, hidden in zip(self._calls, self._hidden[0], strict=True):
            seen = _Recorded()
            with ExitStack() as stack, torch.no_grad():
                for name, module in self._floats.items():
                    stack.callback(watch_input(module, partial(seen.read, name)).remove)
                    if name in self._adding:
                        hook = partial(seen.gave, name)
                        stack.callback(module.register_forward_hook(hook).remove)
                seen.output = call.run(self._block, hidden)
            found.append(seen)
            if not seen.unchanged or seen.nbytes * len(self._calls) > limit:
                return []
        return found

    @contextmanager
    def unquantized(self) -> Iterator[None]:
        """The block's layers are those of the unquantized model."""
        now = {name: self._model.get_submodule(name) for name in self._layers}
        try:
            for name, layer in self._layers.items():
                structure.replace_(self._model, layer.names, self._floats[name])
            yield
        finally:
            for name, layer in self._layers.items():
                structure.replace_(self._model, layer.names, now[name])

    def pull(
        self, names: Sequence[str], passes: Sequence[Callable[[], object]], memory: Memory
    ) -> Pull:
        """What the next layers to be solved, which read one tensor, are to make good.

        Args:
            names: the layers.
            passes: run the block with what is solved already, at least up to these layers, one per
                sample.
            memory: what the stand-ins of the block answer from.
        """
        first, adding = names[0], [name for name in names if name in self._adding]
        floats, get = self._floats, self._model.get_submodule
        solved = [name for name in self._adding if get(name) is not floats[name]]
        cross, residual = ProductSum(), ProductSum()
        for sample, run in enumerate(passes):
            x, mine = self._seen(first, run, solved, stop=False)
            if any((name, sample) not in self._added for name in solved if name not in mine):
                again = partial(self._calls[sample].run, self._block, self._hidden[1][sample])
                with memory.paused():  # it ran inside a module that answers from memory
                    mine = self._seen(first, again, solved, stop=True)[1]
            self._added |= {(name, sample): output for name, output in mine.items()}
            y, theirs = self._true_of(first, sample, solved, memory)
            cross.add(y - x, x)
            if adding:
                ahead = _rows(self._hidden[0][sample]) - _rows(self._hidden[1][sample])
                for name in solved:
                    ahead += theirs[name] - self._added[name, sample]
                residual.add(ahead, x)
        for seen in self._true:
            seen.forget(names)
        one = {adding[0]: residual.total()} if adding else {}  # it makes all of it good
        return Pull(cross.total(), one)

    def _true_of(
        self, name: str, sample: int, solved: Sequence[str], memory: Memory
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """As `_seen`, of the unquantized block."""
        if self._true:
            seen = self._true[sample]
            return _rows(seen.inputs[name][0]), {key: _rows(seen.outputs[key][0]) for key in solved}
        run = partial(self._calls[sample].run, self._block, self._hidden[0][sample])
        with memory.paused(), self.unquantized():
            return self._seen(name, run, solved, stop=True)

    def _seen(
        self, name: str, run: Callable[[], object], solved: Sequence[str], *, stop: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Rows of a layer's input in a pass, and the outputs of solved layers that ran in it."""
        inputs: list[torch.Tensor] = []
        outputs: dict[str, torch.Tensor] = {}

        def see(x: torch.Tensor) -> None:
            inputs.append(_rows(x))
            if stop:
                raise StopForward

        def keep(name: str, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            outputs[name] = _rows(output).clone()  # the model may add to it in place

        with ExitStack() as stack:
            for before in solved:
                module = self._model.get_submodule(before)
                hook = partial(keep, before)
                stack.callback(module.register_forward_hook(hook).remove)
            module = self._model.get_submodule(name)
            stack.callback(watch_input(module, see, before_others=True).remove)
            with torch.no_grad(), suppress(StopForward):
                run()
        return inputs[0], outputs


class _Recorded:
    """One pass of a sample through an unquantized block.

    Attributes:
        inputs: what each layer read first, and how often it had been changed in place.
        outputs: what the layers that add to the stream gave, likewise.
        output: the block's.
    """

    output: torch.Tensor

    def __init__(self) -> None:
        self.inputs: dict[str, tuple[torch.Tensor, int]] = {}
        self.outputs: dict[str, tuple[torch.Tensor, int]] = {}

    def read(self, name: str, x: torch.Tensor) -> None:
        """A layer reads its input."""
        self.inputs.setdefault(name, (x, x._version))

    def gave(self, name: str, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        """A layer gives its output."""
        self.outputs[name] = (output, output._version)

    @property
    def unchanged(self) -> bool:
        """Are all of them still what the layers read and gave?"""
        kept = (*self.inputs.values(), *self.outputs.values())
        return all(x._version == version for x, version in kept)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it, a tensor that several layers read once."""
        kept = (*self.inputs.values(), *self.outputs.values())
        tensors = [self.output, *(x for x, _ in kept)]
        return sum({x.data_ptr(): x.nbytes for x in tensors}.values())

    def forget(self, names: Sequence[str]) -> None:
        """Drop the inputs of layers that are done."""
        for name in names:
            self.inputs.pop(name, None)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Float32 `[tokens, features]`."""
    return x.reshape(-1, x.shape[-1]).float()


def added_to_stream(
    model: nn.Module,
    names: Sequence[str],
    run: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
) -> tuple[str, ...]:
    """The layers whose output a block adds to its hidden states, unchanged.

    With the outputs of all layers in question replaced by noise, a change of one of them, or of the
    block's input, must come out of the block as it is.

    Args:
        model: the model.
        names: layers with as many outputs as the hidden states have features.
        run: the block, from its input to its output.
        hidden: an input.
    """
    noise = torch.Generator(device="cpu").manual_seed(0)
    size = float(hidden.float().std()) or 1.0

    def like(x: torch.Tensor) -> torch.Tensor:
        return (torch.randn(x.shape, generator=noise) * size).to(x)

    forced = {name: like(hidden) for name in names}
    limit = _FOLLOWS.get(hidden.dtype, _FOLLOWS_COARSELY)
    base = _forced(model, forced, run, hidden)
    change = like(hidden)

    def follows(changed: torch.Tensor) -> bool:
        away = (changed - base - change).float().norm()
        return bool(away <= limit * change.float().norm())

    if base.shape != hidden.shape or not follows(_forced(model, forced, run, hidden + change)):
        return ()
    return tuple(
        name
        for name in names
        if follows(_forced(model, forced | {name: forced[name] + change}, run, hidden))
    )


def _forced(
    model: nn.Module,
    outputs: Mapping[str, torch.Tensor],
    run: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
) -> torch.Tensor:
    """The block's output where layers give these outputs."""

    def give(value: torch.Tensor, _module: nn.Module, _inputs: Any, output: Any) -> torch.Tensor:
        return value.reshape(output.shape)

    with ExitStack() as stack, torch.no_grad():
        for name, value in outputs.items():
            module = model.get_submodule(name)
            stack.callback(module.register_forward_hook(partial(give, value)).remove)
        return run(hidden)
