"""Derivatives of `linear` in x and bias, and of its own derivative: the weight is a constant.

The operators carry reverse-mode derivatives of every order. Forward mode and the transforms of
`torch.func` need an autograd function outside the dispatcher: `linear_function`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

Tensor = torch.Tensor

_ops = torch.ops.calibit


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, codebook, bias, *numbers = inputs
    ctx.save_for_backward(packed, codebook)
    ctx.numbers, ctx.bias_dtype = numbers, None if bias is None else bias.dtype


def _linear_backward(
    ctx: Any, grad: Tensor, input_grad: Callable[..., Tensor] = _ops.linear_input_grad
) -> tuple[Tensor | None, ...]:
    packed, codebook = ctx.saved_tensors
    dx = dbias = None
    if ctx.needs_input_grad[0]:
        dx = input_grad(grad, packed, codebook, *ctx.numbers)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[3]:
        dbias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
    return dx, None, None, dbias, None, None, None, None, None


def _keep_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, codebook, *numbers = inputs
    ctx.save_for_backward(packed, codebook)
    ctx.numbers = numbers


def _input_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, codebook = ctx.saved_tensors
    back = _ops.linear(grad, packed, codebook, None, *ctx.numbers)
    return back, None, None, None, None, None, None, None


torch.library.register_autograd("calibit::linear", _linear_backward, setup_context=_keep)
torch.library.register_autograd(
    "calibit::linear_input_grad", _input_grad_backward, setup_context=_keep_weight
)


class _InputGrad(torch.autograd.Function):
    """`linear_input_grad` for torch.func: itself linear in grad."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _ops.linear_input_grad(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep_weight(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, codebook = ctx.saved_tensors
        back = _Linear.apply(grad, packed, codebook, None, *ctx.numbers)
        return back, None, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        return _InputGrad.apply(grad, *ctx.saved_tensors, *ctx.numbers)

    @staticmethod
    def vmap(info: Any, in_dims: Any, grad: Tensor, *rest: Any) -> tuple[Tensor, int]:
        return _InputGrad.apply(grad.movedim(in_dims[0], 0), *rest), 0


class _Linear(torch.autograd.Function):
    """`linear` for torch.func."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _ops.linear(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:3])
        ctx.shape = output.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _linear_backward(ctx, grad, _InputGrad.apply)

    @staticmethod
    def jvp(
        ctx: Any, x: Tensor | None, packed: Any, codebook: Any, bias: Tensor | None, *_: Any
    ) -> Tensor | None:
        saved, book = ctx.saved_tensors
        parts = [] if x is None else [_Linear.apply(x, saved, book, None, *ctx.numbers)]
        if bias is not None:
            parts.append(bias.expand(ctx.shape))
        return sum(parts) if parts else None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        if in_dims[0] is None or in_dims[3] is not None:
            raise NotImplementedError(
                "[linear] expected torch.func.vmap over x alone, got it over the bias"
            )
        return _Linear.apply(x.movedim(in_dims[0], 0), *rest), 0


def is_transformed() -> bool:
    """Whether forward mode or a transform of torch.func is active, which operators do not see."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def linear_function(*inputs: Any) -> Tensor:
    """`torch.ops.calibit.linear` with derivatives for `is_transformed`."""
    return _Linear.apply(*inputs)
