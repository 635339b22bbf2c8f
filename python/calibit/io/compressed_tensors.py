"""Checkpoints of compressed-tensors (llm-compressor): formats pack-quantized and int-quantized.

The tensors of a layer are described in `compressed_tensors_layers`.

`input_activations` of a layer's settings say what happens to its input. 8 bits, symmetric, dynamic
by token is the option `a8`, with the scale max|x| / 127 of vLLM's and SGLang's kernels; the
package's own simulation divides by 127.5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from calibit.io import compressed_tensors_layers as layers
from calibit.io import streams
from calibit.io.layout import (
    Decode,
    Exported,
    LayerFacts,
    Reader,
    Section,
    Tensors,
    Writer,
    float_activations_remedy,
)
from calibit.weight import QuantizedWeight

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
            weight = layers.read_packed(tensors, shape, settings)
        else:
            weight = layers.read_int(tensors, shape, settings)
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
        encode=layers.pack_encode,
        section=_section(_PACKED),
        notes=_packed_notes,
    ),
    Writer(
        name=_INT,
        summary="compressed-tensors, int-quantized (8 bits per weight, and per activation with a8)",
        refusal=_int_refusal,
        encode=layers.int_encode,
        section=_section(_INT),
        rounded_inputs=frozenset({"a8"}),
    ),
)
