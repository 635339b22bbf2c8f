"""The operators on tensors of a GPU, where the package has no kernel of its own for them.

Right, not fast: what is stored (codes, scales, packed buffers) is made by the kernels of the CPU,
so that a weight has the same bits on every device, and a linear layer dequantizes its weight on the
CPU and multiplies on the GPU, in float32. A kernel of the GPU replaces the entry of its operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

Tensor = torch.Tensor

_DEVICE = "cuda"
_STORED = (
    "quantize",
    "gptq_solve",
    "dequantize",
    "double_quantize",
    "pack_weight",
    "unpack_weight",
)


@contextmanager
def float32_products() -> Iterator[None]:
    """Products of float32 matrices on a GPU keep float32 inside the block, whatever precision the
    process has chosen for them (TF32 has 10 bits)."""
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = before


def through_cpu(name: str, *args: Any) -> Any:
    """An operator's result, computed on the CPU and brought to the device of its tensors."""
    device = next(each.device for each in tree_leaves(args) if isinstance(each, Tensor))
    result = getattr(torch.ops.calibit, name)(*_moved(args, torch.device("cpu")))
    return _moved(result, device)


def linear(
    x: Tensor, packed: Tensor, codebook: Tensor | None, bias: Tensor | None, *numbers: int
) -> Tensor:
    """``x W^T + bias`` in float32, in x's dtype."""
    weight = _weight(packed, codebook, numbers, x.device)
    with float32_products():
        y = torch.nn.functional.linear(x.float(), weight, None if bias is None else bias.float())
    return y.to(x.dtype)


def linear_input_grad(
    grad: Tensor, packed: Tensor, codebook: Tensor | None, *numbers: int
) -> Tensor:
    """``grad W`` in float32, in grad's dtype."""
    weight = _weight(packed, codebook, numbers, grad.device)
    with float32_products():
        return (grad.float() @ weight).to(grad.dtype)


def _weight(
    packed: Tensor, codebook: Tensor | None, numbers: tuple[int, ...], device: torch.device
) -> Tensor:
    """The float32 weight ``[N, K]`` of a packed buffer, dequantized on the CPU."""
    stored = torch.ops.calibit.unpack_weight(packed.cpu(), *numbers)
    codes, scales, *rest = (part if part.numel() else None for part in stored)
    book = None if codebook is None else codebook.cpu()
    zeros, *nested = rest
    return torch.ops.calibit.dequantize(codes, scales, zeros, book, *nested, *numbers).to(device)


def _moved(values: Any, device: torch.device) -> Any:
    return tree_map(lambda each: each.to(device) if isinstance(each, Tensor) else each, values)


KERNELS: dict[str, Callable[..., Any]] = {
    **{name: partial(through_cpu, name) for name in _STORED},
    "linear": linear,
    "linear_input_grad": linear_input_grad,
}
"""By the name of the operator, positional arguments as in its schema."""

for _name, _kernel in KERNELS.items():
    torch.library.register_kernel(f"calibit::{_name}", _DEVICE, _kernel)
