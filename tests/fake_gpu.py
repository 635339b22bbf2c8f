"""A pretended GPU: tensors that say they lie on one, and operations that refuse to mix devices.

Inside `FakeGpu()` a tensor counts as being on the GPU when its memory was made there (by `.to`, by
a factory with `device=`, or by an operation on tensors of the GPU); it is ordinary memory, so that
everything computes. What a real GPU would refuse raises: operations on tensors of two devices,
`numpy()` of one on the GPU. calibit's operators go to the functions that are registered for GPUs.
It does not show what only a GPU can: kernels, streams, memory, the order of its sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

from calibit import _devices

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
# They take tensors of two devices, or only look at one.
_MIXED = {"copy_", "__get__", "__set__", "_has_compatible_shallow_copy_type"}


class FakeGpu(TorchFunctionMode):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._there: dict[int, torch.UntypedStorage] = {}  # kept alive: no address is used twice
        self.operators: list[str] = []

    def holds(self, tensor: torch.Tensor) -> bool:
        """Is the tensor's memory on the GPU?"""
        return not tensor.is_meta and tensor.untyped_storage().data_ptr() in self._there

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return GPU if self.holds(args[0]) else func(*args)
        if func == torch.Tensor.is_cpu.__get__:
            return func(*args) and not self.holds(args[0])
        packet = getattr(func, "overloadpacket", func)
        name = str(getattr(packet, "_qualified_op_name", ""))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        sized = [each for each in given if each.dim() and each.numel() and not each.is_meta]
        places = {self.holds(each) for each in sized}
        if name.startswith("calibit::") and True in places:
            self._check(places, name)
            self.operators.append(name.removeprefix("calibit::"))
            with self:
                return _devices.KERNELS[name.removeprefix("calibit::")](*args, **kwargs)
        if func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], torch.Tensor):
            args = (args[0], GPU if self.holds(args[1]) else CPU, args[1].dtype, *args[2:])
        where, args, kwargs = _destination(func, args, kwargs)
        label = getattr(func, "__name__", "")
        if label in ("numpy", "__array__") and True in places:
            raise TypeError("can't convert a tensor of the GPU to numpy")
        if label not in _MIXED and where is None:
            self._check(places, resolve_name(func) or label)
        result = func(*args, **kwargs)
        if where is not None and given:
            return self._brought(result, where)
        there = where == GPU or (where is None and True in places and label not in _MIXED)
        if label == "__get__" or not there:
            return result
        return tree_map(self._mark, result)

    def _check(self, places: set[bool], name: str) -> None:
        if len(places) > 1:
            raise RuntimeError(f"expected all tensors on one device in {name}, got two")

    def _mark(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.numel() and not value.is_meta:
            storage = value.untyped_storage()
            self._there[storage.data_ptr()] = storage
        return value

    def _brought(self, value: Any, where: torch.device) -> Any:
        """A tensor moved to a device: in new memory where it lay on the other."""
        if not isinstance(value, torch.Tensor) or value.is_meta:
            return value
        if self.holds(value) != (where == GPU):
            value = value.clone()
            return self._mark(value) if where == GPU else value
        return value


def _destination(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.device | None, tuple[Any, ...], dict[str, Any]]:
    """The device that a call names, and the call with the CPU in its place."""
    if func is torch.Tensor.cpu:
        return CPU, args, kwargs
    found = [each for each in _named(args, kwargs) if each.type in ("cpu", "cuda")]
    if not found or not (func is torch.Tensor.to or "device" in kwargs):
        return None, args, kwargs

    def plain(value: Any) -> Any:
        return CPU if value in (GPU, "cuda") else value

    where = GPU if found[0].type == "cuda" else CPU
    return where, tuple(map(plain, args)), {key: plain(value) for key, value in kwargs.items()}


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.device]:
    for value in (*args[1:], kwargs.get("device")):
        if isinstance(value, torch.device):
            yield value
        elif isinstance(value, str):
            yield torch.device(value)
