"""Checkpoints of compressed-tensors (llm-compressor): formats pack-quantized and int-quantized.

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

`input_activations` of a layer's settings say what happens to its input. 8 bits, symmetric, dynamic
by token is the option `a8`, with the scale max|x| / 127 of vLLM's and SGLang's kernels; the
package's own simulation divides by 127.5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from calibit.io import streams
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
    group_index,
    integer_scheme,
    natural_codes,
    order_of,
)
from calibit.weight import QuantizedWeight

Tensor = torch.Tensor

_METHOD = "compressed-tensors"
_PACKED, _INT = "pack-quantized", "int-quantized"
_PER_TOKEN: Mapping[str, Any] = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "dynamic": True,
}
"""`input_activations` that calibit computes, as the option a8."""

_ACTIVATIONS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")


def _decoder(section: Section, float_activations: bool) -> Decode:
    """The reader of layers that a `quantization_config` describes."""
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        raise ValueError(f"expected config_groups to map names to settings, got {groups!r:.80}")
    if section.get("transform_config"):
        raise ValueError("expected no transform_config, which changes more than weights, got one")
    sparsity = section.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise ValueError(f"expected sparsity_config of format 'dense', got {sparsity!r:.80}")
    for name, group in groups.items():
        _check_group(name, group)
        if not float_activations:
            _check_activations(name, group)
    if section.get("kv_cache_scheme") and not float_activations:
        what = f"kv_cache_scheme {section['kv_cache_scheme']!r:.80}"
        raise ValueError(f"expected a cache in floating point, {float_activations_remedy(what)}")

    def decode(name: str, tensors: Tensors, shape: tuple[int, int]) -> QuantizedWeight:
        group = _group_of(name, groups)
        settings = {
            **group["weights"],
            "a8": group.get("input_activations") and not float_activations,
        }
        label = group.get("format") or section.get("format")
        if "weight_packed" in tensors:
            weight = _read_packed(tensors, shape, settings)
        else:
            weight = _read_int(tensors, shape, settings)
        found = _PACKED if "weight_packed" in tensors else _INT
        if label in (_PACKED, _INT) and label != found:
            raise ValueError(f"expected tensors of format {label!r}, got those of {found!r}")
        if group.get("input_activations") and float_activations:
            note = "its activations are quantized too where it comes from, here they are not"
            weight = replace(weight, notes=(*weight.notes, note))
        return weight

    return decode


def _check_group(name: str, group: Mapping[str, Any]) -> None:
    """Refuse settings without meaning, and those of other kinds of weights."""
    settings, targets = group.get("weights"), group.get("targets")
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        raise ValueError(f"expected targets of {name} to be names, got {targets!r:.80}")
    for target in targets:
        try:
            re.compile(target.removeprefix("re:"))
        except re.error as error:
            raise ValueError(f"expected a pattern in {name}, got {target!r}: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"expected weights of {name} to be settings, got {settings!r:.80}")
    bits, group_size = settings.get("num_bits"), settings.get("group_size")
    if settings.get("type", "int") != "int":
        raise ValueError(f"expected weights of type 'int' in {name}, got {settings['type']!r}")
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ValueError(f"expected num_bits from 2 to 8 in {name}, got {bits!r}")
    if not isinstance(settings.get("symmetric", True), bool):
        raise ValueError(
            f"expected symmetric of {name} to be true or false, got {settings['symmetric']!r}"
        )
    strategy = settings.get("strategy")
    if strategy not in ("group", "channel", "tensor"):
        raise ValueError(f"expected strategy group, channel or tensor in {name}, got {strategy!r}")
    if strategy == "group" and (type(group_size) is not int or group_size < 1):
        raise ValueError(f"expected group_size above 0 in {name}, got {group_size!r}")


def _check_activations(name: str, group: Mapping[str, Any]) -> None:
    """Refuse inputs and outputs that are quantized in another way than a8."""
    if group.get("output_activations"):
        what = f"output_activations {group['output_activations']!r:.80}"
        raise ValueError(f"expected float outputs in {name}, {float_activations_remedy(what)}")
    settings = group.get("input_activations")
    if not settings:
        return
    if not isinstance(settings, dict):
        raise ValueError(f"expected input_activations of {name} as settings, got {settings!r:.80}")
    defaults = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}
    found = {key: settings.get(key, defaults.get(key)) for key in _PER_TOKEN}
    if found != dict(_PER_TOKEN):
        what = ", ".join(f"{key} {value!r}" for key, value in found.items())
        raise ValueError(
            f"expected input_activations of {name} with 8 bits, symmetric, dynamic by token, "
            f"{float_activations_remedy(what)}"
        )


def _group_of(name: str, groups: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The settings of a layer: those that name it count before those that name its class."""
    by_class = None
    for group in groups.values():
        for target in group["targets"]:
            if target == name or (target[:3] == "re:" and re.match(target[3:], name)):
                return group
            if by_class is None and target in ("Linear", "Conv1D"):
                by_class = group
    if by_class is None:
        raise ValueError("expected one of config_groups to have it as a target, got none")
    return by_class


def _read_packed(
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


def _read_int(
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


def _refusal(layer: LayerFacts) -> str | None:
    """Why a layer cannot be written as pack-quantized."""
    scheme = layer.scheme
    if not scheme.weight_format.is_integer:
        return f"{scheme.format} has a codebook, pack-quantized files hold integers"
    if "fzero" in scheme.options:
        return "its zero points are real numbers, pack-quantized files hold integers"
    if layer.group > 0 and layer.shape[1] % layer.group:
        return (
            f"its {layer.shape[1]} inputs are no multiple of its group of {layer.group}, which "
            "compressed-tensors asks for"
        )
    return None


def _int_refusal(layer: LayerFacts) -> str | None:
    """Why a layer cannot be written as int-quantized."""
    scheme = layer.scheme
    if scheme.bits != 8 or not scheme.weight_format.is_integer or layer.group != -1:
        return f"int-quantized files hold 8 bits with one scale per row, got {scheme}"
    if not layer.symmetric:
        return "int-quantized files are symmetric for the engines that read them, got zero points"
    return "int-quantized files have no order of columns" if layer.ordered else None


def _encode(weight: QuantizedWeight, _: torch.dtype) -> dict[str, Tensor]:
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


def _int_encode(weight: QuantizedWeight, _: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a layer as int-quantized; scales as float32, which vLLM wants."""
    return {
        "weight": (weight.codes.to(torch.int16) - 128).to(torch.int8),
        "weight_scale": weight.scales.to(torch.float32),
    }


def _section(form: str) -> Any:
    """The writer of a `quantization_config`."""

    def section(exported: Exported) -> dict[str, Any]:
        forms: dict[tuple[Any, ...], list[str]] = {}
        for layer in exported.layers:
            rounded = "a8" in layer.scheme.options
            key = (rounded, layer.scheme.bits, layer.group, layer.symmetric, layer.ordered)
            forms.setdefault(key, []).append(layer.name)
        head = [] if exported.quantizes_head or exported.head is None else [exported.head]
        return {
            "quant_method": _METHOD,
            "format": form,
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{i}": {
                    # Names of layers count before the name of their class.
                    "targets": ["Linear"] if len(forms) == 1 else names,
                    "weights": _weights(*key[1:]),
                    "input_activations": dict(_PER_TOKEN) if key[0] else None,
                    "output_activations": None,
                    "format": form,
                }
                for i, (key, names) in enumerate(forms.items())
            },
            "ignore": [*head, *exported.kept],
            "kv_cache_scheme": None,
        }

    return section


def _weights(bits: int, group: int, symmetric: bool, ordered: bool) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group == -1 else "group",
        "group_size": None if group == -1 else group,
        "dynamic": False,
        "actorder": "group" if ordered else None,
    }


def _packed_notes(exported: Exported) -> list[str]:
    notes = []
    odd = sorted({str(f.scheme.bits) for f in exported.layers if streams.WORD % f.scheme.bits})
    if odd:
        notes.append(
            f"codes of {', '.join(odd)} bits are dense, as compressed-tensors writes them since "
            "June 2026; older versions read other values"
        )
    if not all(layer.symmetric for layer in exported.layers):
        notes.append(
            "transformers up to 5.23 refuses zero points of compressed-tensors files, also of the "
            "package's own (llm-compressor issue 1618)"
        )
    return notes


READER = Reader(
    _METHOD,
    "compressed_tensors",
    "compressed-tensors (pack-quantized, int-quantized)",
    ("weight_packed", "weight_scale"),
    _decoder,
)

WRITERS = (
    Writer(
        name=_METHOD,
        summary="compressed-tensors, pack-quantized",
        refusal=_refusal,
        encode=_encode,
        section=_section(_PACKED),
        notes=_packed_notes,
    ),
    Writer(
        name=_INT,
        summary="compressed-tensors, int-quantized (8 bits per weight, and per activation with a8)",
        refusal=_int_refusal,
        encode=_int_encode,
        section=_section(_INT),
        rounded_inputs=frozenset({"a8"}),
    ),
)
