"""What a foreign layout is, to those who read and write files: a reader, or a writer, as data.

A module of this folder describes the files of one other tool with `Reader` and `Writer` values;
`calibit.io.layouts` lists them. Nothing outside `calibit.io` sees a tensor that is not canonical.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from calibit.io import streams
from calibit.schemes import ROW, Scheme
from calibit.weight import QuantizedWeight

Tensor = torch.Tensor
Tensors = Mapping[str, Tensor]
Section = Mapping[str, Any]
"""A `quantization_config`."""

Decode = Callable[[str, Tensors, tuple[int, int]], QuantizedWeight]
"""From a layer's name, its tensors by the rest of their names, and (N, K) to the canonical weight;
ValueError says what does not fit."""


@dataclass(frozen=True)
class Reader:
    """How to read the files of one tool.

    Attributes:
        method: its `quant_method`.
        package: what transformers needs to load such files.
        summary: what it reads, for help and messages.
        markers: last parts of tensor names of which a quantized layer has exactly one.
        decoder: checks a `quantization_config` and gives the function that reads a layer with it;
            ValueError names the key. The second argument says that inputs of layers stay in
            floating point, whatever the configuration asks for.
    """

    method: str
    package: str
    summary: str
    markers: tuple[str, ...]
    decoder: Callable[[Section, bool], Decode]


@dataclass(frozen=True)
class LayerFacts:
    """What is known of a quantized layer without its tensors.

    Attributes:
        name: dotted module name.
        shape: (N, K).
        scheme: how the weight is stored.
        ordered: the columns have an order of their own (`input_order`).
        scale_dtype: dtype of the stored scales.
        expert: the layer is an expert of a mixture, a slice of a fused parameter.
    """

    name: str
    shape: tuple[int, int]
    scheme: Scheme
    ordered: bool
    scale_dtype: torch.dtype
    expert: bool = False

    @property
    def group(self) -> int:
        """Weights that share a scale; -1 where a row has one scale, as other tools write it."""
        return self.scheme.group if ROW < self.scheme.group < self.shape[1] else -1

    @property
    def symmetric(self) -> bool:
        """Whether there are no zero points."""
        return not self.scheme.options & {"asym", "fzero"}


@dataclass(frozen=True)
class Exported:
    """A model about to be written, as its configuration describes it.

    Attributes:
        layers: the quantized layers, at least one.
        kept: names of linear layers that stay in floating point, the head not among them.
        head: name of the output head, or None.
        dtype: dtype of the floating-point parameters.
        version: of calibit.
        cache_bits: of rounded keys and values, or None.
    """

    layers: tuple[LayerFacts, ...]
    kept: tuple[str, ...]
    head: str | None
    dtype: torch.dtype
    version: str
    cache_bits: int | None = None

    @property
    def quantizes_head(self) -> bool:
        """Whether the output head is among the quantized layers."""
        return any(layer.name == self.head for layer in self.layers)


@dataclass(frozen=True)
class Writer:
    """How to write files as one tool does.

    Attributes:
        name: as ``--to`` takes it.
        summary: what it holds, for help and messages.
        refusal: why a layer cannot be represented, or None.
        encode: from a weight and the model's dtype to the tensors of a layer by the rest of their
            names; ValueError for values that only a look at the tensors shows.
        section: the `quantization_config`; ValueError where the layers do not go together.
        notes: what the user should know about this export.
        config_copy: name of a file that holds the `quantization_config` once more, or None.
        rounded_inputs: options of `calibit.activations.OPTIONS` that its files can state.
    """

    name: str
    summary: str
    refusal: Callable[[LayerFacts], str | None]
    encode: Callable[[QuantizedWeight, torch.dtype], dict[str, Tensor]]
    section: Callable[[Exported], dict[str, Any]]
    notes: Callable[[Exported], list[str]] = lambda _: []
    config_copy: str | None = None
    rounded_inputs: frozenset[str] = frozenset()


def integer_scheme(bits: int, group: int, k: int, *, symmetric: bool) -> str:
    """Scheme string of integers; groups of a row or more are one group per row.

    Raises:
        ValueError: codes or groups that calibit does not have.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"expected codes of 2 to 8 bits, got {bits}")
    granularity = "row" if group < 1 or group >= k else f"g{group}"
    if granularity != "row" and group % 8:
        raise ValueError(f"expected groups of a multiple of 8 weights, got {group}")
    return f"int{bits}-{granularity}" + ("" if symmetric else "-asym")


def float_activations_remedy(what: str) -> str:
    """The end of a message that refuses `what`, which calibit does not compute."""
    return (
        f"got {what}: calibit does not compute that; float_activations=True "
        "(--float_activations) reads the weights and leaves the rest in floating point"
    )


def exact_scales(scales: Tensor) -> Tensor:
    """Scales as float16 where it holds every one of them exactly, else as float32.

    Args:
        scales: floating point, finite.

    Raises:
        ValueError: another dtype, or NaN or infinity.
    """
    if scales.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"expected scales of a floating-point dtype, got {scales.dtype}")
    if not bool(torch.isfinite(scales).all()):
        raise ValueError("expected finite scales, got NaN or Inf")
    half = scales.to(torch.float16)
    exact = torch.equal(half.to(torch.float32), scales.to(torch.float32))
    return half.contiguous() if exact else scales.to(torch.float32).contiguous()


def half_scales(scales: Tensor) -> Tensor:
    """Scales as float16.

    Raises:
        ValueError: float16 does not hold them exactly.
    """
    half = scales.to(torch.float16)
    if not torch.equal(half.to(torch.float32), scales.to(torch.float32)):
        raise ValueError("its scales are float32 numbers that float16 does not hold")
    return half


def order_of(group_index: Tensor, group: int, k: int) -> Tensor | None:
    """The order of columns that a group index stands for.

    Args:
        group_index: integers ``[K]``, the group of each column of x.
        group: columns of a group; below 1 or above K: all.
        k: K.

    Returns:
        int32 ``[K]``, columns sorted by group and within a group as in x; None where that is the
        order of x.

    Raises:
        ValueError: an index out of range, or groups of other sizes.
    """
    if group_index.dtype not in (torch.int32, torch.int64) or group_index.shape != (k,):
        raise ValueError(
            f"expected g_idx int32 [{k}], got {group_index.dtype} {list(group_index.shape)}"
        )
    size = group if 0 < group < k else k
    regular = torch.arange(k) // size
    index = group_index.long()
    low, high = int(index.min()), int(index.max())
    if low < 0 or high > int(regular[-1]):
        raise ValueError(f"expected g_idx from 0 to {int(regular[-1])}, got {low} to {high}")
    if torch.equal(index, regular):
        return None
    order = torch.argsort(index, stable=True)
    if not torch.equal(index[order], regular):
        raise ValueError(f"expected g_idx with {size} columns in every group, got other counts")
    return order.to(torch.int32)


def group_index(weight: QuantizedWeight) -> Tensor:
    """The inverse of `order_of`: int32 ``[K]``, the group of each column of x."""
    k, group = weight.shape[1], weight.scheme.group
    regular = (torch.arange(k) // (group if ROW < group < k else k)).to(torch.int32)
    if weight.input_order is None:
        return regular
    index = torch.empty_like(regular)
    index[weight.input_order.long()] = regular
    return index


def natural_codes(weight: QuantizedWeight) -> Tensor:
    """The codes of integers as canonical streams with the columns in the order of x."""
    if weight.input_order is None:
        return weight.codes
    ordered = streams.unpack(weight.codes, weight.scheme.bits, weight.shape[1])
    natural = torch.empty_like(ordered)
    natural[:, weight.input_order.long()] = ordered
    return streams.pack(natural, weight.scheme.bits)


def expect(tensors: Tensors, needed: set[str], optional: frozenset[str] = frozenset()) -> None:
    """Refuse missing and unknown tensors of a layer."""
    missing, unknown = needed - set(tensors), set(tensors) - needed - optional
    if missing or unknown:
        raise ValueError(
            f"expected tensors {sorted(needed)}, missing {sorted(missing)}, unknown "
            f"{sorted(unknown)}"
        )


def expect_like(tensors: Tensors, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this dtype and shape, or ValueError."""
    value = tensors[name]
    if value.dtype != dtype or tuple(value.shape) != shape:
        raise ValueError(
            f"expected {name} {dtype} {list(shape)}, got {value.dtype} {list(value.shape)}"
        )
    return value
