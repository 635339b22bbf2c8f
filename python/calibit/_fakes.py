"""Shapes and dtypes of the operators' results for torch.compile."""

from __future__ import annotations

from typing import Any

import torch

from calibit import _C
from calibit.registry import NESTED_BLOCK, SCALE_TYPES, ZERO_TYPES

Tensor = torch.Tensor

_SCALE_DTYPE = {
    SCALE_TYPES["f32"]: torch.float32,
    SCALE_TYPES["f16"]: torch.float16,
    SCALE_TYPES["e8m0"]: torch.uint8,
    SCALE_TYPES["nested"]: torch.uint8,
}
_ZERO_DTYPE = {ZERO_TYPES["u8"]: torch.uint8, ZERO_TYPES["f32"]: torch.float32}


def _groups(k: int, group: int) -> int:
    return 1 if group == 0 or group > k else -(-k // group)


def _canonical(like: Tensor, n: int, k: int, bits: int, group: int, kind: int) -> tuple[Any, ...]:
    g = _groups(k, group)
    codes = like.new_empty((n, -(-k * bits // 8)), dtype=torch.uint8)
    scales = like.new_empty((n, g), dtype=_SCALE_DTYPE[kind % 16])
    zero = _ZERO_DTYPE.get(kind // 16)
    zeros = like.new_empty((n, g), dtype=zero) if zero else like.new_empty(0, dtype=torch.uint8)
    return codes, scales, zeros


@torch.library.register_fake("calibit::quantize")
def _(w, codebook, scales, zeros, importance, bits, group, scale_kind, clip):  # type: ignore[no-untyped-def]
    return _canonical(w, w.shape[0], w.shape[1], bits, group, scale_kind)


@torch.library.register_fake("calibit::gptq_solve")
def _(w, u, codebook, scales, zeros, order, importance, bits, group, scale_kind, clip):  # type: ignore[no-untyped-def]
    clipped = w.new_empty(w.shape[0], dtype=torch.int32)
    return (*_canonical(w, w.shape[0], w.shape[1], bits, group, scale_kind), clipped)


@torch.library.register_fake("calibit::dequantize")
def _(codes, *rest):  # type: ignore[no-untyped-def]
    n, k = rest[6:8]
    return codes.new_empty((n, k), dtype=torch.float32)


@torch.library.register_fake("calibit::double_quantize")
def _(scales):  # type: ignore[no-untyped-def]
    f32 = torch.float32
    return (
        scales.new_empty(scales.shape, dtype=torch.uint8),
        scales.new_empty(-(-scales.numel() // NESTED_BLOCK), dtype=f32),
        scales.new_empty(256, dtype=f32),
        scales.new_empty(1, dtype=f32),
    )


@torch.library.register_fake("calibit::pack_weight")
def _(codes, *rest):  # type: ignore[no-untyped-def]
    return codes.new_empty(_C.packed_bytes(*rest[5:]))


@torch.library.register_fake("calibit::unpack_weight")
def _(packed, n, k, bits, group, scale_kind):  # type: ignore[no-untyped-def]
    nested = scale_kind % 16 == SCALE_TYPES["nested"]
    blocks = -(-n * _groups(k, group) // NESTED_BLOCK) if nested else 0
    f32 = torch.float32
    return (
        *_canonical(packed, n, k, bits, group, scale_kind),
        packed.new_empty(blocks, dtype=f32),
        packed.new_empty(256 if nested else 0, dtype=f32),
        packed.new_empty(1 if nested else 0, dtype=f32),
    )


@torch.library.register_fake("calibit::linear")
def _(x, packed, codebook, bias, n, k, bits, group, scale_kind):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], n))


@torch.library.register_fake("calibit::linear_input_grad")
def _(grad, packed, codebook, n, k, bits, group, scale_kind):  # type: ignore[no-untyped-def]
    return grad.new_empty((*grad.shape[:-1], k))


@torch.library.register_fake("calibit::confidence_update")
def _(sums, argmax, top_values, top_indices, logits, labels, other, first):  # type: ignore[no-untyped-def]
    return None
