"""Checkpoints of GPTQ tools (AutoGPTQ, GPTQModel): `checkpoint_format` gptq, gptq_v2, gptq_p.

For a layer y = x W^T of K inputs and N outputs, codes of b bits in groups of g, G = ceil(K/g):

    qweight  int32 [K*b/32, N]   codes, a bit stream down each column
    qzeros   int32 [G, N*b/32]   zero points, a bit stream along each row
    scales   float [G, N]
    g_idx    int32 [K]           group of each input; i // g unless `desc_act`

W[n, k] = scales[g, n] * (code - zero) with g = g_idx[k]. Version 1 stores zero - 1, version 2 and
the planar words of GPTQModel (`gptq_p`, docs/gptq_planar.md) store zero. The label is not reliable
for symmetric checkpoints, whose zero is 2^(b-1) in every group: there the stored number itself says
which version it is, as vLLM reads it (pull request 38966). AutoGPTQ's own packer subtracts 1
without a mask and so spoils the neighbours of a zero of 0; here version 1 refuses such a weight.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from calibit.io import streams
from calibit.io.engines import FUSED
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
    group_index,
    half_scales,
    integer_scheme,
    natural_codes,
    order_of,
)
from calibit.weight import QuantizedWeight

Tensor = torch.Tensor

_FORMATS = ("gptq", "gptq_v2", "gptq_p")
_STREAM_BITS = (2, 3, 4, 8)
_SETTINGS = ("bits", "group_size", "sym", "desc_act")


def _decoder(section: Section, _: bool) -> Decode:
    """The reader of layers that a `quantization_config` describes; it says nothing of inputs."""
    version = _version(section)
    if section.get("pack_dtype", "int32") != "int32":
        raise ValueError(f"expected pack_dtype 'int32', got {section['pack_dtype']!r}")
    base = {key: section.get(key) for key in _SETTINGS}
    _check_settings(base)
    dynamic = _dynamic(section)

    def decode(name: str, tensors: Tensors, shape: tuple[int, int]) -> QuantizedWeight:
        settings = _settings_of(name, base, dynamic)
        return _read(tensors, shape, settings, version)

    return decode


def _version(section: Section) -> str:
    """Which of the formats the section names; `checkpoint_format` counts before `format`."""
    label = section.get("checkpoint_format") or section.get("format") or "gptq"
    if label not in _FORMATS:
        raise ValueError(
            f"expected checkpoint_format to be one of {', '.join(_FORMATS)}, got {label!r}, whose "
            "weights are laid out for one kind of kernel: convert it with the tool that wrote it"
        )
    return str(label)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings without meaning."""
    bits, group = settings["bits"], settings["group_size"]
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ValueError(f"expected bits from 2 to 8, got {bits!r}")
    if type(group) is not int or (group != -1 and group < 1):
        raise ValueError(f"expected group_size to be -1 or above 0, got {group!r}")
    for key in ("sym", "desc_act"):
        if not isinstance(settings[key], bool | None):
            raise ValueError(f"expected {key} to be true or false, got {settings[key]!r}")


def _dynamic(section: Section) -> dict[str, Mapping[str, Any]]:
    """The overrides by pattern, checked; GPTQModel writes false where there are none."""
    dynamic = section.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise ValueError(f"expected dynamic to map patterns to settings, got {dynamic!r:.80}")
    for pattern, change in dynamic.items():
        try:
            re.compile(_pattern(pattern))
        except re.error as error:
            raise ValueError(f"expected patterns in dynamic, got {pattern!r}: {error}") from error
        if not isinstance(change, dict):
            raise ValueError(f"expected settings for {pattern!r} in dynamic, got {change!r:.80}")
    return dynamic


def _pattern(text: str) -> str:
    return text[2:] if text[:2] in ("+:", "-:") else text


def _settings_of(
    name: str, base: Mapping[str, Any], dynamic: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The settings of one layer: those of the first pattern that matches, over the common ones."""
    for pattern, change in dynamic.items():
        if re.match(_pattern(pattern), name):
            if pattern.startswith("-:"):
                raise ValueError(
                    f"expected a float layer, as {pattern!r} in dynamic says, got qweight"
                )
            settings = {**base, **{k: change[k] for k in _SETTINGS if k in change}}
            _check_settings(settings)
            return settings
    return base


def _read(
    tensors: Tensors, shape: tuple[int, int], settings: Mapping[str, Any], version: str
) -> QuantizedWeight:
    """One layer in canonical form."""
    expect(tensors, {"qweight", "qzeros", "scales"}, frozenset({"g_idx"}))
    (n, k), bits = shape, settings["bits"]
    group = settings["group_size"] if 0 < settings["group_size"] < k else -1
    groups = 1 if group == -1 else -(-k // group)
    if k * bits % streams.WORD or n * bits % streams.WORD:
        raise ValueError(f"expected N and K that fill words of 32 bits, got [{n}, {k}]")
    words = expect_like(tensors, "qweight", torch.int32, (k * bits // streams.WORD, n))
    stored = expect_like(tensors, "qzeros", torch.int32, (groups, n * bits // streams.WORD))
    scales = expect_like(tensors, "scales", tensors["scales"].dtype, (groups, n))
    order = order_of(tensors["g_idx"], group, k) if "g_idx" in tensors else None
    if "g_idx" not in tensors and settings["desc_act"] and groups > 1:
        raise ValueError("expected g_idx, as desc_act is true, got none")
    points, note = _zero_points(_unpack(stored, bits, n, version), bits, settings, version)
    made: dict[str, Tensor] = {
        "codes": _codes(words.t().contiguous(), bits, k, version, order),
        "scales": exact_scales(scales.t()),
    }
    if points is not None:
        made["zeros"] = points.t().contiguous()
    if order is not None:
        made["input_order"] = order
    scheme = integer_scheme(bits, group, k, symmetric=points is None)
    weight = QuantizedWeight.from_tensors(made, scheme=scheme, shape=shape)
    if 0 < k < settings["group_size"]:
        note.append(f"groups of {settings['group_size']} exceed its {k} inputs: one group per row")
    return replace(weight, notes=tuple(note))


def _unpack(words: Tensor, bits: int, count: int, version: str) -> Tensor:
    """int32 ``[R, count*bits/32]`` to uint8 ``[R, count]``."""
    if version == "gptq_p":
        if count % streams.WORD:
            raise ValueError(f"expected planar words of 32 codes, got {count} codes")
        return streams.unpack_planar(words, bits, count)
    if bits not in _STREAM_BITS:
        raise ValueError(f"expected 2, 3, 4 or 8 bits in format {version!r}, got {bits}")
    return streams.unpack(streams.from_words(words), bits, count)


def _codes(words: Tensor, bits: int, k: int, version: str, order: Tensor | None) -> Tensor:
    """Canonical codes from int32 ``[N, K*bits/32]``; a stream in the order of x is one already."""
    if order is None and version != "gptq_p" and bits in _STREAM_BITS:
        return streams.from_words(words)
    codes = _unpack(words, bits, k, version)
    return streams.pack(codes if order is None else codes[:, order.long()], bits)


def _zero_points(
    stored: Tensor, bits: int, settings: Mapping[str, Any], version: str
) -> tuple[Tensor | None, list[str]]:
    """Zero points uint8 ``[G, N]``, None for a symmetric layer, and notes.

    Args:
        stored: uint8 ``[G, N]`` as in the file.
    """
    middle, top = 2 ** (bits - 1), 2**bits - 1
    offset = 1 if version == "gptq" else 0
    if settings["sym"]:
        low, high = int(stored.min()), int(stored.max())
        if low != high or low not in (middle - 1, middle):
            raise ValueError(
                f"expected qzeros of {middle - 1} (gptq) or {middle} (gptq_v2) everywhere, as sym "
                f"is true, got {low} to {high}: engines that trust sym would read other weights"
            )
        found = 1 if low == middle - 1 else 0
        label = f"its zero points are stored as in {'gptq' if found else 'gptq_v2'}, not {version}"
        return None, [] if found == offset else [label]
    note = []
    if offset and bool((stored == top).any()):
        note.append(
            f"zero points stored as {top} in version 1 are read as 0, as AutoGPTQ reads them; "
            f"kernels of the exllama family take them as {top + 1}"
        )
    return (stored + offset) & top, note


def _refusal(offset: int) -> Any:
    """Why a layer cannot be written with codes in streams."""

    def refusal(layer: LayerFacts) -> str | None:
        scheme, (n, k) = layer.scheme, layer.shape
        if not scheme.weight_format.is_integer:
            return f"{scheme.format} has a codebook, GPTQ files hold integers"
        if "fzero" in scheme.options:
            return "its zero points are real numbers, GPTQ files hold integers"
        if scheme.bits not in _STREAM_BITS:
            return f"GPTQ files hold 2, 3, 4 or 8 bits, got {scheme.bits}"
        if n * scheme.bits % streams.WORD or k * scheme.bits % streams.WORD:
            return f"rows and columns of [{n}, {k}] do not fill words of 32 bits"
        return None

    return refusal


def _encode(offset: int) -> Any:
    """The writer of a layer whose stored zero point is `offset` less."""

    def encode(weight: QuantizedWeight, _: torch.dtype) -> dict[str, Tensor]:
        bits = weight.scheme.bits
        zeros = weight.zeros
        if zeros is None:
            zeros = torch.full_like(weight.scales, 2 ** (bits - 1), dtype=torch.uint8)
        elif offset and bool((zeros == 0).any()):
            raise ValueError("a zero point is 0, which version 1 cannot hold: use gptq_v2")
        points = streams.pack((zeros - offset).t().contiguous(), bits)
        return {
            "qweight": streams.to_words(natural_codes(weight)).t().contiguous(),
            "qzeros": streams.to_words(points),
            "scales": half_scales(weight.scales).t().contiguous(),
            "g_idx": group_index(weight),
        }

    return encode


def _section(version: str) -> Any:
    """The writer of a `quantization_config`."""

    def section(exported: Exported) -> dict[str, Any]:
        each = {layer.name: _facts(layer) for layer in exported.layers}
        common = Counter(tuple(facts.items()) for facts in each.values()).most_common(1)[0][0]
        base = dict(common)
        others = {name: facts for name, facts in each.items() if facts != base}
        dynamic: dict[str, dict[str, Any]] = {
            f"+:^{re.escape(name)}$": facts for name, facts in _with_fused(others).items()
        }
        kept: dict[str, dict[str, Any]] = {name: {} for name in exported.kept}
        dynamic.update({f"-:^{re.escape(name)}$": {} for name in _with_fused(kept)})
        return {
            "quant_method": "gptq",
            **base,
            "desc_act": any(layer.ordered for layer in exported.layers),
            "lm_head": exported.quantizes_head,
            "checkpoint_format": version,
            "format": version,
            "pack_dtype": "int32",
            **({"dynamic": dynamic} if dynamic else {}),
            "meta": {"quantizer": [f"calibit:{exported.version}"]},
        }

    return section


def _with_fused(settings: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings of layers, and of those that engines compute as one under its own name.

    vLLM and SGLang look for `qkv_proj`, not `q_proj`, among the patterns of `dynamic`.
    """
    found = dict(settings)
    for name, facts in settings.items():
        stem, dot, last = name.rpartition(".")
        for fused, parts in FUSED.items():
            names = [f"{stem}{dot}{part}" for part in parts]
            if last == parts[0] and all(settings.get(one) == facts for one in names):
                found[f"{stem}{dot}{fused}"] = facts
    return found


def _facts(layer: LayerFacts) -> dict[str, Any]:
    return {"bits": layer.scheme.bits, "group_size": layer.group, "sym": layer.symmetric}


READER = Reader("gptq", "gptqmodel", "GPTQ (versions 1, 2 and planar)", ("qweight",), _decoder)

WRITERS = tuple(
    Writer(
        name=version,
        summary=summary,
        refusal=_refusal(offset),
        encode=_encode(offset),
        section=_section(version),
        config_copy="quantize_config.json",
    )
    for version, offset, summary in (
        ("gptq", 1, "GPTQ version 1 (stored zero point minus one), which most engines read"),
        ("gptq_v2", 0, "GPTQ version 2, for asymmetric weights with zero points of 0"),
    )
)
