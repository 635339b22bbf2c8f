"""Where a model's float weights are while it is quantized: in memory, or still in its files.

A model whose files hold the tensors of its modules one to one, or renamed, or with the experts of a
mixture one by one, is quantized from a skeleton: the decoder blocks have their weights only while
they run or are solved, so that memory holds one float block beside the quantized model. What any
other layout needs is left to transformers, which loads the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calibit import loading, structure
from calibit.io import filling, renaming, shards
from calibit.modules import QuantizedLinear


class Weights:
    """A model whose weights are all in memory."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As `structure.tensors`, each with its values."""
        return structure.tensors(self.model)

    @contextmanager
    def loaded(self, module: str) -> Iterator[None]:
        """Everything below a module has its values inside the block."""
        yield

    def load_all_(self) -> None:
        """Give every parameter its values."""

    def detach_(self) -> None:
        """Leave the model as any other, all its values in memory."""


class StoredWeights(Weights):
    """A skeleton and the files that hold its weights; use `stored`.

    Args:
        model: parameters on the meta device, tied ones one object.
        files: an open reader, under the model's names.
    """

    def __init__(self, model: Any, files: renaming.Files) -> None:
        super().__init__(model)
        self._files = files
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._inside: dict[str, ExitStack] = {}
        self._tied = structure.aliases(model)
        found = structure.blocks(model)
        self._blocks = found[0] if found is not None else None
        for name, module in model.named_modules():
            self._fill_buffers_(name, module)
            if not self._in_block(name):
                self._fill_(name, module)
        if found is not None:
            for index, block in enumerate(found[1]):
                self._follow_(f"{found[0]}.{index}", block)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in structure.tensors(self.model):
            yield name, self._files.read(name) if tensor.is_meta else tensor

    @contextmanager
    def loaded(self, module: str) -> Iterator[None]:
        filled = []
        for prefix, part in self.model.get_submodule(module).named_modules():
            filled += self._fill_(f"{module}.{prefix}" if prefix else module, part)
        try:
            yield
        finally:
            for part, key, parameter in filled:
                if part._parameters.get(key) is parameter:
                    setattr(part, key, nn.Parameter(parameter.to("meta"), requires_grad=False))

    def load_all_(self) -> None:
        for name, module in self.model.named_modules():
            self._fill_(name, module)

    def detach_(self) -> None:
        for handle in self._handles:
            handle.remove()
        self.load_all_()

    def _in_block(self, name: str) -> bool:
        return self._blocks is not None and name.startswith(f"{self._blocks}.")

    def _fill_(self, prefix: str, module: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
        """Give the parameters of one module their values; those that had none before."""
        filled = []
        if isinstance(module, QuantizedLinear):
            return []
        for key, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                value = self._value(f"{prefix}.{key}" if prefix else key, parameter)
                setattr(module, key, value)
                filled.append((module, key, value))
        return filled

    def _fill_buffers_(self, prefix: str, module: nn.Module) -> None:
        """Give the saved buffers of a module, which are small, their values."""
        for key, buffer in list(module.named_buffers(recurse=False)):
            if key not in module._non_persistent_buffers_set:
                name = f"{prefix}.{key}" if prefix else key
                setattr(module, key, filling.read_like(name, buffer, self._files))

    def _value(self, name: str, empty: nn.Parameter) -> nn.Parameter:
        """The stored parameter, the one it is tied to, or its slice of a fused one."""
        if name in self._tied:
            return self.model.get_parameter(self._tied[name])
        part = structure.slice_of(self.model, name)
        if part is None:
            value = filling.read_like(name, empty, self._files)
        else:
            value = self._files.read(part.name, part.expert)
            value = value.t().contiguous() if part.transposed else value
        return nn.Parameter(value, requires_grad=empty.requires_grad)

    def _follow_(self, name: str, block: nn.Module) -> None:
        """Load a block whenever the model runs it."""

        def before(*_: object) -> None:
            stack = ExitStack()
            stack.enter_context(self.loaded(name))
            self._inside[name] = stack

        def after(*_: object) -> None:
            self._inside.pop(name).close()

        self._handles.append(block.register_forward_pre_hook(before))
        self._handles.append(block.register_forward_hook(after, always_call=True))


@contextmanager
def opened(place: str, *, trust_remote_code: bool = False) -> Iterator[Weights]:
    """The model of a folder or hub name, with its weights in its files where that is possible.

    Args:
        place: what `calibit.loading.locate` gives.
        trust_remote_code: let the model bring code of its own.

    Raises:
        ValueError: nothing that transformers can load, or a damaged file.
    """
    with ExitStack() as stack:
        weights = _stored(Path(place), stack, trust_remote_code)
        if weights is None:  # says what is wrong with the files, too
            weights = Weights(loading.read_model(place, trust_remote_code=trust_remote_code))
        yield weights


def _stored(folder: Path, stack: ExitStack, trust_remote_code: bool) -> Weights | None:
    """The skeleton of a folder's model with an open reader, or None where it cannot be one."""
    if not any(folder.glob("*.safetensors")):
        return None
    config = loading.read_config(folder, trust_remote_code=trust_remote_code)
    with loading.reading(folder):
        model = filling.skeleton(config, trust_remote_code)
    try:
        files = stack.enter_context(shards.Reader(folder))
    except (ValueError, FileNotFoundError):
        return None
    named = renaming.under_names_of(model, files)
    if named is None or not _one_to_one(model, named):
        return None
    filling.read_generation_config_(model, folder)
    return StoredWeights(model.eval(), named)


def _one_to_one(model: Any, files: renaming.Files) -> bool:
    """Whether the files hold each tensor of the model under its name, in its shape and dtype, and
    nothing else."""
    tied = structure.aliases(model)
    found = structure.blocks(model)
    inside = f"{found[0]}." if found is not None else ""
    if any(name.startswith(inside) for name in tied) or not inside:
        return False
    names = {name for name, _ in structure.tensors(model)}
    if names != set(files.names()):
        return False
    return all(
        files.kind(name) == (tuple(tensor.shape), tensor.dtype)
        for name, tensor in structure.tensors(model)
    )
