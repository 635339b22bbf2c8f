"""What vLLM and SGLang read of a checkpoint: rules about layers, before a file is written.

Sources: vLLM's loaders of GPTQ, compressed-tensors and bitsandbytes files, its pull request 26092
(zero points of GPTQ version 2) and issue 11790 (half-quantized fused layers). SGLang takes its GPTQ
layers from there and is kept to the cases that its fast kernels have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from calibit.io.layout import Exported, LayerFacts

ENGINES = ("vllm", "sglang")
"""Engines whose rules are known."""

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that engines compute as one, by their name for it; they must be stored alike."""

_FAST_GROUPS = (-1, 32, 64, 128)
"""Groups that the Marlin kernels have."""

_PACKED = "compressed-tensors"
_INT8 = "int-quantized"
_BNB = "bitsandbytes"


@dataclass(frozen=True)
class Finding:
    """One rule that an export does not meet.

    Attributes:
        engine: of `ENGINES`.
        refused: the engine does not load the checkpoint; else it loads it with a loss.
        reason: a sentence without its full stop.
        layers: names of the layers concerned; empty for the whole checkpoint.
    """

    engine: str
    refused: bool
    reason: str
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = f" ({self.layers[0]}" if self.layers else ""
        if len(self.layers) > 1:
            named += f" and {len(self.layers) - 1} more"
        verb = "will not load it" if self.refused else "loads it with a loss"
        return f"{self.engine} {verb}: {self.reason}{named}{')' if named else ''}"


Rule = tuple[str, bool, Callable[[LayerFacts], bool]]
"""Reason, whether it is refused, and which layers break it."""


def _gptq_rules(engine: str) -> list[Rule]:
    shared: list[Rule] = [
        ("the inputs of a layer are no multiple of its group", True, _has_short_group),
    ]
    if engine == "vllm":  # outputs fill words of 32 bits: the writer itself needs that
        return shared
    return [
        *shared,
        (
            "its kernels take symmetric 4 and 8 bits only",
            True,
            lambda f: not f.symmetric or f.scheme.bits not in (4, 8),
        ),
        (
            f"its kernels take groups of {', '.join(map(str, _FAST_GROUPS))} only",
            True,
            lambda f: f.group not in _FAST_GROUPS,
        ),
        ("activation order (desc_act) is not supported by its kernels", True, _is_ordered),
    ]


def _packed_rules(engine: str) -> list[Rule]:
    return [
        ("its kernels take 4 and 8 bits only", True, lambda f: f.scheme.bits not in (4, 8)),
        ("the inputs of a layer are no multiple of its group", True, _has_short_group),
    ]


def _rules(layout: str, engine: str) -> list[Rule]:
    """The rules about single layers."""
    if layout.startswith("gptq"):
        return _gptq_rules(engine)
    if layout == _INT8:
        reason = "it takes int-quantized layers with 8-bit activations only (scheme w8a8)"
        return [(reason, True, lambda f: "a8" not in f.scheme.options)]
    return _packed_rules(engine) if layout == _PACKED else []


def check(exported: Exported, layout: str) -> list[Finding]:
    """The rules that an export breaks, engine by engine.

    Args:
        exported: what is to be written.
        layout: name of the writer.
    """
    return [finding for engine in ENGINES for finding in _check_engine(exported, layout, engine)]


def _check_engine(exported: Exported, layout: str, engine: str) -> Iterator[Finding]:
    for reason, refused, breaks in _rules(layout, engine):
        broken = tuple(layer.name for layer in exported.layers if breaks(layer))
        if broken:
            yield Finding(engine, refused, reason, broken)
    halves = tuple(_unlike_neighbours(exported))
    if halves:
        reason = "layers that it computes as one (q, k and v; gate and up) are stored differently"
        yield Finding(engine, True, reason, halves)
    if layout in (_BNB, _INT8):
        return
    wide = tuple(f.name for f in exported.layers if f.scale_dtype == torch.float32)
    if exported.dtype == torch.bfloat16:
        reason = (
            "it reads scales in the model's dtype, bfloat16, which rounds them, unless it is "
            "started with --dtype float16"
        )
        yield Finding(engine, False, reason)
    elif wide and layout == _PACKED:
        yield Finding(engine, False, "it reads scales in 16 bits, which rounds float32 ones", wide)


def _unlike_neighbours(exported: Exported) -> Iterator[str]:
    """Layers whose fused neighbours are stored in another way or not quantized."""
    stored = {layer.name: _form(layer) for layer in exported.layers}
    known = {*stored, *exported.kept}
    for names in FUSED.values():
        pattern = re.compile(rf"(.*\.|)({'|'.join(names)})$")
        for name in sorted(stored):
            match = pattern.match(name)
            others = [f"{match[1]}{other}" for other in names] if match else []
            if any(o in known and stored.get(o) != stored[name] for o in others):
                yield name


def _form(layer: LayerFacts) -> tuple[object, ...]:
    options = layer.scheme.options & {"asym", "fzero", "dq", "a8"}
    return (layer.scheme.format, layer.group, options, layer.ordered)


def _has_short_group(layer: LayerFacts) -> bool:
    return layer.group > 0 and layer.shape[1] % layer.group != 0


def _is_ordered(layer: LayerFacts) -> bool:
    return layer.ordered
