"""Checkpoints of bitsandbytes: 4 bits (NF4, FP4; double quantization) and 8 bits (LLM.int8()).

4 bits; the weight [N, K] is flattened row by row and cut into blocks:

    weight                  uint8 [N*K/2, 1]   two codes a byte, the first in the high half; the
                                               bytes may be stored as another dtype
    weight.absmax           float32 [blocks]; uint8 with double quantization
    weight.quant_map        float32 [16]       the codebook
    weight.nested_absmax    float32 [ceil(blocks/256)]  double quantization only, as the next
    weight.nested_quant_map float32 [256]
    weight.quant_state.bitsandbytes__nf4       uint8, JSON: quant_type, blocksize, dtype, shape,
                                               nested_blocksize, nested_dtype, nested_offset

8 bits: `weight` int8 [N, K], `SCB` float32 [N], the largest magnitude of each row, which 127 stands
for, and `weight_format` uint8, 0. Inputs are rounded by token as well: with `llm_int8_threshold` 6
but for their outlier columns (`llm-int8`; Dettmers et al., arXiv 2208.07339), with 0 whole (`a8`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from calibit import activations
from calibit.io.layout import (
    Decode,
    Exported,
    LayerFacts,
    Reader,
    Section,
    Tensors,
    Writer,
    exact_scales,
    expect,
    expect_like,
    float_activations_remedy,
)
from calibit.registry import NESTED_BLOCK, formats
from calibit.weight import QuantizedWeight

Tensor = torch.Tensor

_METHOD = "bitsandbytes"
_TYPES = ("nf4", "fp4")
_STATE = "weight.quant_state.bitsandbytes__"
_NESTED = frozenset({"weight.nested_absmax", "weight.nested_quant_map"})
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_SCHEMES8 = {activations.OUTLIER: "llm-int8", 0.0: "int8-row-a8"}
"""Schemes of 8-bit layers by `llm_int8_threshold`."""

_WHOLE_MODEL = frozenset({"dq", *activations.OPTIONS})
"""Options that its configuration states once for all layers."""

_LARGEST_STATE = 4096
"""Bytes of a layer's JSON, which has some hundred."""


@dataclass(frozen=True)
class _State:
    """The JSON of a 4-bit layer, checked."""

    quant_type: str
    blocksize: int
    nested_blocksize: int
    nested_offset: float


def _decoder(section: Section, float_activations: bool) -> Decode:
    """The reader of layers that a `quantization_config` describes."""
    four, eight = (
        section.get(key, section.get(f"_{key}", False)) for key in ("load_in_4bit", "load_in_8bit")
    )
    if not (isinstance(four, bool) and isinstance(eight, bool)) or four == eight:
        raise ValueError(
            f"expected one of load_in_4bit and load_in_8bit to be true, got {four!r} and {eight!r}"
        )
    wanted = section.get("bnb_4bit_quant_type") if four else None
    if wanted not in (None, *_TYPES):
        raise ValueError(f"expected bnb_4bit_quant_type of {', '.join(_TYPES)}, got {wanted!r}")
    scheme = _scheme8(section, float_activations) if eight else ""

    def decode(name: str, tensors: Tensors, shape: tuple[int, int]) -> QuantizedWeight:
        if ("SCB" in tensors) == four:
            raise ValueError(f"expected tensors of {4 if four else 8} bits, as load_in_*bit says")
        return _read4(tensors, shape, wanted) if four else _read8(tensors, shape, scheme)

    return decode


def _scheme8(section: Section, float_activations: bool) -> str:
    """The scheme of 8-bit layers."""
    if float_activations:
        return "int8-row"
    threshold = section.get("llm_int8_threshold", activations.OUTLIER)
    if type(threshold) not in (int, float) or threshold not in _SCHEMES8:
        what = f"llm_int8_threshold {threshold!r:.80}"
        raise ValueError(
            f"expected llm_int8_threshold of {', '.join(map(str, _SCHEMES8))}, "
            f"{float_activations_remedy(what)}"
        )
    return _SCHEMES8[threshold]


def _read4(tensors: Tensors, shape: tuple[int, int], wanted: str | None) -> QuantizedWeight:
    """A 4-bit layer in canonical form."""
    keys = [key for key in tensors if key.startswith(_STATE)]
    needed = {"weight", "weight.absmax", "weight.quant_map", *keys[:1]}
    expect(tensors, needed, _NESTED)
    state = _state(tensors[keys[0]], shape)
    if keys[0] != _STATE + state.quant_type or (wanted or state.quant_type) != state.quant_type:
        raise ValueError(
            f"expected quant_type {wanted or keys[0].removeprefix(_STATE)!r}, got "
            f"{state.quant_type!r}"
        )
    (n, k), blocks = shape, -(-shape[0] * shape[1] // state.blocksize)
    codebook = expect_like(tensors, "weight.quant_map", torch.float32, (16,))
    group = math.gcd(k, state.blocksize)
    if group % 8:
        raise ValueError(
            f"its blocks of {state.blocksize} cross rows of {k} at places that are no multiple of "
            "8 weights, which groups of a row cannot follow"
        )
    made, note = _scales4(tensors, state, blocks, n, k)
    made |= {"codes": _codes4(tensors["weight"], n, k), "codebook": codebook}
    scheme = f"{state.quant_type}-g{group}" + ("-dq" if "scale_codes" in made else "")
    _check_finite(made)
    weight = QuantizedWeight.from_tensors(made, scheme=scheme, shape=shape)
    return replace(weight, notes=note)


def _state(stored: Tensor, shape: tuple[int, int]) -> _State:
    """The JSON of a layer."""
    if stored.dtype != torch.uint8 or stored.dim() != 1 or stored.numel() > _LARGEST_STATE:
        raise ValueError(
            f"expected quant_state as uint8 bytes, got {stored.dtype} {list(stored.shape)}"
        )
    try:
        content = json.loads(bytes(stored.tolist()).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in quant_state, got {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in quant_state, got {content!r:.80}")
    kind, block = content.get("quant_type"), content.get("blocksize")
    if kind not in _TYPES:
        raise ValueError(f"expected quant_type of {', '.join(_TYPES)}, got {kind!r}")
    if type(block) is not int or block < 1:
        raise ValueError(f"expected blocksize above 0 in quant_state, got {block!r}")
    if content.get("shape") != list(shape):
        raise ValueError(f"expected shape {list(shape)} in quant_state, got {content.get('shape')}")
    offset, nested = content.get("nested_offset", 0.0), content.get("nested_blocksize", 0)
    if type(nested) is not int or not isinstance(offset, float | int) or not math.isfinite(offset):
        raise ValueError(
            f"expected nested_blocksize and a finite nested_offset, got {nested!r} and {offset!r}"
        )
    return _State(str(kind), block, nested, float(offset))


def _scales4(
    tensors: Tensors, state: _State, blocks: int, n: int, k: int
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Scales by row and group, still doubly quantized where the blocks allow it; notes."""
    aligned = k % state.blocksize == 0
    nested = _NESTED & set(tensors)
    if not nested:
        absmax = expect_like(tensors, "weight.absmax", torch.float32, (blocks,))
        return {"scales": _by_group(absmax, state.blocksize, n, k)}, _crossing(aligned, state)
    if nested != _NESTED:
        raise ValueError(f"expected {sorted(_NESTED)}, got {sorted(nested)}")
    codes = expect_like(tensors, "weight.absmax", torch.uint8, (blocks,))
    if state.nested_blocksize < 1:
        raise ValueError(f"expected nested_blocksize above 0, got {state.nested_blocksize}")
    counts = (-(-blocks // state.nested_blocksize),)
    second = expect_like(tensors, "weight.nested_absmax", torch.float32, counts)
    table = expect_like(tensors, "weight.nested_quant_map", torch.float32, (256,))
    if aligned and state.nested_blocksize == NESTED_BLOCK:
        offset = torch.tensor([state.nested_offset], dtype=torch.float32)
        return {
            "scale_codes": codes.reshape(n, -1),
            "nested_scales": second,
            "nested_codebook": table,
            "nested_offset": offset,
        }, ()
    block = torch.arange(blocks) // state.nested_blocksize
    absmax = table[codes.long()] * second[block] + state.nested_offset
    scales = _by_group(absmax.to(torch.float32), state.blocksize, n, k)
    note = "its double quantization is undone: its blocks cross rows, so scales are stored plainly"
    return {"scales": scales}, (note,)


def _by_group(absmax: Tensor, blocksize: int, n: int, k: int) -> Tensor:
    """The scale of each (row, group) ``[N, K/g]`` from those of blocks of the flattened weight."""
    group = math.gcd(k, blocksize)
    first = torch.arange(n)[:, None] * k + torch.arange(k // group) * group
    return absmax[first // blocksize].contiguous()


def _crossing(aligned: bool, state: _State) -> tuple[str, ...]:
    if aligned:
        return ()
    return (f"blocks of {state.blocksize} cross its rows: stored as smaller groups, same values",)


def _codes4(stored: Tensor, n: int, k: int) -> Tensor:
    """Canonical codes from bytes with the first element in the high half."""
    packed = stored.contiguous().reshape(-1).view(torch.uint8)
    if packed.numel() != n * k // 2:  # K is a multiple of 8
        raise ValueError(
            f"expected weight of {n * k // 2} bytes, got {stored.dtype} {list(stored.shape)}"
        )
    return _swapped(packed).reshape(n, k // 2)


def _swapped(packed: Tensor) -> Tensor:
    """Bytes with their halves exchanged."""
    return (packed >> 4) | (packed << 4)


def _check_finite(made: Mapping[str, Tensor]) -> None:
    for key, tensor in made.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"expected finite {key}, got NaN or Inf")


def _read8(tensors: Tensors, shape: tuple[int, int], scheme: str) -> QuantizedWeight:
    """An 8-bit layer in canonical form: one scale per row."""
    expect(tensors, {"weight", "SCB"}, frozenset({"weight_format"}))
    if "weight_format" in tensors and tensors["weight_format"].reshape(-1).tolist() != [0]:
        raise ValueError(
            f"expected weight_format 0 (rows), got {tensors['weight_format'].tolist()!r:.80}"
        )
    signed = expect_like(tensors, "weight", torch.int8, shape)
    largest = tensors["SCB"]
    if not largest.is_floating_point() or largest.numel() != shape[0]:
        raise ValueError(
            f"expected SCB torch.float32 [{shape[0]}], got {largest.dtype} {list(largest.shape)}"
        )
    scales = exact_scales(largest.reshape(-1, 1).to(torch.float32) / activations.LARGEST)
    made = {"codes": (signed.to(torch.int16) + 128).to(torch.uint8), "scales": scales}
    weight = QuantizedWeight.from_tensors(made, scheme=scheme, shape=shape)
    if scheme in _SCHEMES8.values():
        return weight
    note = (
        "its activations are rounded by LLM.int8() where it comes from, outlier columns apart; "
        "here only weights have 8 bits"
    )
    return replace(weight, notes=(note,))


def _refusal(layer: LayerFacts) -> str | None:
    """Why a layer cannot be written."""
    scheme, group = layer.scheme, layer.group
    if scheme.format == "int8" and layer.symmetric and group == -1 and not layer.ordered:
        if scheme.options & activations.OPTIONS:
            return None
        return (
            "bitsandbytes rounds the inputs of 8-bit layers too, which this one does not: quantize "
            "with llm-int8 or w8a8"
        )
    if scheme.format not in _TYPES:
        return f"bitsandbytes holds nf4, fp4, llm-int8 and w8a8, got {scheme}"
    if scheme.options & activations.OPTIONS:
        return "bitsandbytes computes 4-bit layers on inputs in floating point"
    block = layer.shape[1] if group == -1 else group
    if block not in _BLOCKS:
        known = ", ".join(map(str, _BLOCKS))
        return f"bitsandbytes has blocks of {known}, got groups of {block}"
    if layer.shape[1] % block:
        return (
            f"its {layer.shape[1]} inputs are no multiple of its group of {block}: blocks of the "
            "flattened weight would cross rows"
        )
    return None


def _encode(weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a layer."""
    if weight.scheme.format == "int8":
        return _encode8(weight)
    kind, (n, k) = weight.scheme.format, weight.shape
    table = weight.codebook
    built_in = torch.tensor(formats()[kind].codebook, dtype=torch.float32)
    if table is None or not torch.equal(table, built_in):
        raise ValueError(f"its codebook is not that of {kind}, which bitsandbytes' kernels have")
    state: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": weight.scheme.group if 0 < weight.scheme.group < k else k,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": [n, k],
    }
    made = {
        "weight": _swapped(weight.codes).reshape(-1, 1),
        "weight.absmax": weight.scales.reshape(-1),
        "weight.quant_map": table,
    }
    nested = weight.tensors()
    if "nested_scales" in nested:
        made["weight.nested_absmax"] = nested["nested_scales"]
        made["weight.nested_quant_map"] = nested["nested_codebook"]
        state |= {
            "nested_blocksize": NESTED_BLOCK,
            "nested_dtype": "float32",
            "nested_offset": float(nested["nested_offset"]),
        }
    content = json.dumps(state).encode("utf-8")
    made[_STATE + kind] = torch.tensor(list(content), dtype=torch.uint8)
    return made


def _encode8(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The tensors of an 8-bit layer; ValueError where no SCB gives a scale back."""
    scales = weight.scales.to(torch.float32).reshape(-1)
    near = scales * 127
    infinity = torch.tensor(torch.inf)
    largest = torch.full_like(near, torch.nan)
    for guess in (near, torch.nextafter(near, infinity), torch.nextafter(near, -infinity)):
        largest = torch.where(torch.isnan(largest) & (guess / 127 == scales), guess, largest)
    if bool(torch.isnan(largest).any()):
        raise ValueError("a scale is no float32 number divided by 127, as SCB has it")
    return {
        "weight": (weight.codes.to(torch.int16) - 128).to(torch.int8),
        "SCB": largest,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def _section(exported: Exported) -> dict[str, Any]:
    """The `quantization_config`, which is one for all layers."""
    kinds = {(f.scheme.format, f.scheme.options & _WHOLE_MODEL) for f in exported.layers}
    if len(kinds) > 1:
        found = ", ".join(sorted({str(f.scheme) for f in exported.layers}))
        raise ValueError(
            f"bitsandbytes has one type, nesting and threshold for all layers, got {found}"
        )
    kind, options = next(iter(kinds))
    eight = kind == "int8"
    head = [] if exported.quantizes_head or exported.head is None else [exported.head]
    return {
        "quant_method": _METHOD,
        "load_in_4bit": not eight,
        "load_in_8bit": eight,
        "bnb_4bit_quant_type": "fp4" if eight else kind,
        "bnb_4bit_use_double_quant": "dq" in options,
        "bnb_4bit_compute_dtype": str(exported.dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": 0.0 if "a8" in options else activations.OUTLIER,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_skip_modules": [*head, *exported.kept],
    }


READER = Reader(
    _METHOD,
    "bitsandbytes",
    "bitsandbytes (4 and 8 bits)",
    (*(_STATE + kind for kind in _TYPES), "SCB"),
    _decoder,
)

WRITERS = (
    Writer(
        name=_METHOD,
        summary="bitsandbytes (nf4, fp4, llm-int8, w8a8)",
        refusal=_refusal,
        encode=_encode,
        section=_section,
        rounded_inputs=activations.OPTIONS,
    ),
)
