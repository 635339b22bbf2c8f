"""The tensors of a layer in checkpoints of compressed-tensors, and the canonical weight.

For a layer of N outputs and K inputs, codes q of b bits with a sign, G groups:

    weight_packed      int32 [N, ceil(K*b/32)]   q + 2^(b-1), a bit stream along each row
    weight_scale       float [N, G]
    weight_shape       int64 [2]                 N and K
    weight_zero_point  int32 [ceil(N*b/32), G]   zero + 2^(b-1), a bit stream down each column;
                                                 asymmetric only
    weight_g_idx       int32 [K]                 group of each input; activation order only

W[n, k] = scale * (q - zero). Streams are dense since compressed-tensors' pull request 715 (2026);
before, a word held floor(32/b) codes and the rest of it nothing, which differs for 3, 5, 6 and 7
bits. int-quantized has q itself as `weight` int8 [N, K], and `weight_scale` [N, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from calibit.io import streams
from calibit.io.layout import (
    Tensors,
    exact_scales,
    expect,
    expect_like,
    group_index,
    integer_scheme,
    natural_codes,
    order_of,
)
from calibit.weight import QuantizedWeight

Tensor = torch.Tensor

_ACTIVATIONS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")


def read_packed(
    tensors: Tensors, shape: tuple[int, int], settings: Mapping[str, Any]
) -> QuantizedWeight:
    """A layer of format pack-quantized in canonical form."""
    needed = {"weight_packed", "weight_scale", "weight_shape"}
    optional = {"weight_zero_point", "weight_g_idx", *_ACTIVATIONS}
    expect(tensors, needed, frozenset(optional))
    (n, k), bits = shape, settings["num_bits"]
    if tensors["weight_shape"].tolist() != [n, k]:
        raise ValueError(
            f"expected weight_shape [{n}, {k}], got {tensors['weight_shape'].tolist()!r:.80}"
        )
    packed = tensors["weight_packed"]
    codes = _unpack(packed, bits, n, k)
    scales = _scales(tensors, n, k, settings)
    points = _packed_points(tensors, bits, n, scales)
    return _assemble(codes, scales, points, tensors.get("weight_g_idx"), settings, shape)


def _packed_points(tensors: Tensors, bits: int, n: int, scales: Tensor) -> Tensor | None:
    """Zero points uint8 ``[N, G]`` of a pack-quantized layer; before 2025 they were not packed."""
    if "weight_zero_point" not in tensors:
        return None
    if tensors["weight_zero_point"].dtype == torch.int8:
        return _int_points(tensors, bits, scales)
    shape = (-(-n * bits // streams.WORD), scales.shape[1])
    words = expect_like(tensors, "weight_zero_point", torch.int32, shape)
    return streams.unpack(streams.from_words(words.t()), bits, n).t()


def _int_points(tensors: Tensors, bits: int, scales: Tensor) -> Tensor | None:
    """Zero points uint8 ``[N, G]`` from int8, one for the tensor, each row or each group."""
    if "weight_zero_point" not in tensors:
        return None
    stored, middle = tensors["weight_zero_point"], 2 ** (bits - 1)
    if stored.dtype != torch.int8 or stored.numel() not in (1, scales.numel()):
        raise ValueError(
            f"expected weight_zero_point torch.int8 {list(scales.shape)}, got {stored.dtype} "
            f"{list(stored.shape)}"
        )
    low, high = int(stored.min()), int(stored.max())
    if low < -middle or high >= middle:
        raise ValueError(
            f"expected weight_zero_point from {-middle} to {middle - 1}, got {low} to {high}"
        )
    zeros = (stored.to(torch.int16) + middle).to(torch.uint8)
    return zeros.expand(scales.shape) if zeros.numel() == 1 else zeros.reshape(scales.shape)


def _unpack(packed: Tensor, bits: int, n: int, k: int) -> Tensor:
    """Codes uint8 ``[N, K]`` from dense or, for odd widths, padded words."""
    dense = -(-k * bits // streams.WORD)
    per_word = streams.WORD // bits
    padded = -(-k // per_word)
    if packed.dtype != torch.int32 or packed.dim() != 2 or packed.shape[0] != n:
        raise ValueError(
            f"expected weight_packed torch.int32 [{n}, {dense}], got {packed.dtype} "
            f"{list(packed.shape)}"
        )
    if dense == padded and streams.WORD % bits and dense > 1:
        raise ValueError(
            f"expected rows whose dense and padded words differ in number, got {k} codes of {bits} "
            "bits: which of the two they are cannot be told"
        )
    if packed.shape[1] == dense:
        return streams.unpack(streams.from_words(packed), bits, k)
    if packed.shape[1] == padded:
        each = streams.from_words(packed.reshape(-1, 1))
        return streams.unpack(each, bits, per_word).reshape(n, -1)[:, :k].contiguous()
    raise ValueError(
        f"expected weight_packed torch.int32 [{n}, {dense}], got {packed.dtype} "
        f"{list(packed.shape)}"
    )


def read_int(
    tensors: Tensors, shape: tuple[int, int], settings: Mapping[str, Any]
) -> QuantizedWeight:
    """A layer of format int-quantized in canonical form."""
    optional = {"weight_zero_point", "weight_g_idx", *_ACTIVATIONS}
    expect(tensors, {"weight", "weight_scale"}, frozenset(optional))
    bits = settings["num_bits"]
    middle = 2 ** (bits - 1)
    signed = expect_like(tensors, "weight", torch.int8, shape).to(torch.int16)
    low, high = int(signed.min()), int(signed.max())
    if low < -middle or high >= middle:
        raise ValueError(f"expected weight from {-middle} to {middle - 1}, got {low} to {high}")
    scales = _scales(tensors, *shape, settings)
    points = _int_points(tensors, bits, scales)
    codes = (signed + middle).to(torch.uint8)
    return _assemble(codes, scales, points, tensors.get("weight_g_idx"), settings, shape)


def _scales(tensors: Tensors, n: int, k: int, settings: Mapping[str, Any]) -> Tensor:
    """Scales ``[N, G]``; one for the tensor or for each row is spread."""
    scales = exact_scales(tensors["weight_scale"])
    if settings["strategy"] == "group":
        wanted = (n, -(-k // settings["group_size"]))
        return expect_like({"weight_scale": scales}, "weight_scale", scales.dtype, wanted)
    count = 1 if settings["strategy"] == "tensor" else n
    if scales.numel() != count:
        raise ValueError(f"expected weight_scale [{count}, 1], got {list(scales.shape)}")
    return scales.reshape(count, 1).expand(n, 1).contiguous()


def _assemble(
    codes: Tensor,
    scales: Tensor,
    points: Tensor | None,
    index: Tensor | None,
    settings: Mapping[str, Any],
    shape: tuple[int, int],
) -> QuantizedWeight:
    """The canonical weight from codes uint8 ``[N, K]`` in the order of x."""
    k, bits, symmetric = shape[1], settings["num_bits"], settings.get("symmetric", True)
    if symmetric and points is not None:
        if bool((points != 2 ** (bits - 1)).any()):
            raise ValueError("expected no weight_zero_point, as symmetric is true, got one")
        points = None
    if not symmetric and points is None:
        raise ValueError("expected weight_zero_point, as symmetric is false, got none")
    group = settings["group_size"] if settings["strategy"] == "group" else -1
    unset = index is None or bool((index == -1).all())  # as layers are set up before ordering
    order = None if unset or index is None else order_of(index, group, k)
    made = {"scales": scales, "codes": streams.pack(_ordered(codes, order), bits)}
    if points is not None:
        made["zeros"] = points.contiguous()
    if order is not None:
        made["input_order"] = order
    scheme = integer_scheme(bits, group, k, symmetric=symmetric)
    scheme += "-a8" if settings["a8"] else ""
    weight = QuantizedWeight.from_tensors(made, scheme=scheme, shape=shape)
    if group > k:
        note = f"groups of {group} exceed its {k} inputs: one group per row"
        weight = replace(weight, notes=(note,))
    return weight


def _ordered(codes: Tensor, order: Tensor | None) -> Tensor:
    return codes if order is None else codes[:, order.long()]


def pack_encode(weight: QuantizedWeight, _: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a layer as pack-quantized."""
    (n, k), bits = weight.shape, weight.scheme.bits
    made = {
        "weight_packed": streams.to_words(natural_codes(weight)),
        "weight_scale": weight.scales,
        "weight_shape": torch.tensor([n, k], dtype=torch.int64),
    }
    if weight.zeros is not None:
        points = streams.pack(weight.zeros.t().contiguous(), bits)
        made["weight_zero_point"] = streams.to_words(points).t().contiguous()
    if weight.input_order is not None:
        made["weight_g_idx"] = group_index(weight)
    return made


def int_encode(weight: QuantizedWeight, _: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a layer as int-quantized; scales as float32, which vLLM wants."""
    return {
        "weight": (weight.codes.to(torch.int16) - 128).to(torch.int8),
        "weight_scale": weight.scales.to(torch.float32),
    }
