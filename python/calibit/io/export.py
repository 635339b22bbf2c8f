"""Writing a model's quantized layers in the layout of another tool, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calibit import activations, kv_cache, structure
from calibit.io import engines, filling, foreign, native, shards
from calibit.io.engines import Finding
from calibit.io.layout import Exported, LayerFacts, Writer
from calibit.io.layouts import WRITERS
from calibit.modules import QuantizedLinear
from calibit.weight import QuantizedWeight, to_device

NAMES = (*WRITERS, native.METHOD)
"""Layouts that can be written."""

_PROBE = 16
"""Tokens whose logits are compared after writing."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: the folder.
        layout: name of the layout.
        layers: how many quantized layers it holds.
        difference: the largest absolute difference of a logit between the model in memory and the
            one read back.
        findings: rules of vLLM and SGLang that the checkpoint does not meet.
        notes: sentences about anything out of the ordinary.
    """

    path: Path
    layout: str
    layers: int
    difference: float
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "layout": self.layout,
            "layers": self.layers,
            "logit_difference": self.difference,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        logits = f"differ by at most {self.difference:.1g}" if self.difference else "are equal"
        lines = [
            f"{self.layers} layers written as {self.layout}. Read back, their values are those in "
            f"memory; the logits of {_PROBE} tokens {logits}.",
            *(f"Note: {note}." for note in (*self.findings, *self.notes)),
        ]
        return "\n".join(lines)


def save(
    model: Any,
    path: str | Path,
    layout: str,
    *,
    tokenizer: Any | None = None,
    required: Sequence[str] = (),
    max_shard_bytes: int = shards.MAX_BYTES,
) -> Export:
    """Write a quantized model to a new folder in the layout of another tool.

    Codes, scales and zero points are re-arranged, never rounded again: what the layout cannot hold
    is refused. The folder is read back strictly before it gets its name; every weight must come
    back bit for bit, and the logits of a few tokens must agree.

    Args:
        model: a Hugging Face model with quantized layers.
        path: the folder to create.
        layout: one of `NAMES`.
        tokenizer: written beside the model when given.
        required: engines (`calibit.io.engines.ENGINES`) that must be able to load it.
        max_shard_bytes: size at which a new file is begun.

    Returns:
        What was written, with notes.

    Raises:
        FileExistsError: the folder exists.
        ValueError: an unknown layout or engine, a model without quantized layers, layers that the
            layout or a required engine cannot hold; nothing is written.
    """
    path = Path(path)
    check_names(layout, required)
    shards.check_new(path, "export")
    exported = _described(model, _facts(model, layout), kv_cache.bits_of(model))
    findings = check(exported, layout, required)
    writer = WRITERS.get(layout)
    with shards.new_folder(path) as folder:
        if writer is None:
            native.write(model, folder, tokenizer=tokenizer, max_shard_bytes=max_shard_bytes)
        else:
            _write(model, folder, writer, exported, max_shard_bytes)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        difference, notes = _verify(model, folder)
    notes += [] if writer is None else writer.notes(exported)
    notes += _notes(model)
    if writer is not None and native.finetuning_of(model) is not None:
        notes.append(f"{layout} files do not say that the weights were fine-tuned first")
    return Export(path, layout, len(exported.layers), difference, tuple(findings), tuple(notes))


def check_names(layout: str, required: Sequence[str] = ()) -> None:
    """Refuse layouts and engines that are not known.

    Raises:
        ValueError: for a name that is not in `NAMES` or `calibit.io.engines.ENGINES`.
    """
    if layout not in NAMES:
        raise ValueError(f"[export] expected a layout of {', '.join(NAMES)}, got {layout!r}")
    for engine in required:
        if engine not in engines.ENGINES:
            known = ", ".join(engines.ENGINES)
            raise ValueError(f"[export] expected an engine of {known}, got {engine!r}")


def check_planned(
    model: Any,
    layers: Sequence[LayerFacts],
    layout: str,
    required: Sequence[str] = (),
    *,
    cache_bits: int | None = None,
) -> None:
    """Refuse an export before the layers are quantized.

    Args:
        model: the float model; its parameters may be on the meta device.
        layers: the quantized layers as they will be.
        layout: one of `NAMES`.
        required: engines that must be able to load the checkpoint.
        cache_bits: of keys and values as they will be rounded, or None.

    Raises:
        ValueError: layers, or a rounded cache, that the layout or a required engine cannot hold.
    """
    if layers or cache_bits is not None:
        check(_described(model, tuple(layers), cache_bits), layout, required)


def check(exported: Exported, layout: str, required: Sequence[str]) -> list[Finding]:
    """Refuse what a layout or a required engine cannot hold; what engines will say."""
    writer = WRITERS.get(layout)
    if writer is None:
        return []
    if exported.cache_bits is not None:
        raise ValueError(
            f"[export] cannot write this model as {layout}: it cannot say that keys and values are "
            f"rounded by token and head (option kv{exported.cache_bits}): the exported model would "
            "compute other values"
        )
    reasons = {
        layer.name: _expert(layer) or writer.refusal(layer) or _activations(layer, writer)
        for layer in exported.layers
    }
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    if refused:
        name, reason = next(iter(refused.items()))
        raise ValueError(
            f"[export] cannot write {len(refused)} of {len(reasons)} layers as {layout}, such as "
            f"{name!r}: {reason}"
        )
    findings = engines.check(exported, layout)
    for finding in findings:
        if finding.refused and finding.engine in required:
            raise ValueError(f"[export] {finding}")
    return findings


def _expert(layer: LayerFacts) -> str | None:
    """Why foreign layouts do not hold experts; None for other layers."""
    if not layer.expert:
        return None
    return (
        "its readers have names of their own for the gate, up and down weights of each expert, "
        "which are one weight here: keep the experts in floating point (skip='experts'), or write "
        f"the layout {native.METHOD!r}"
    )


def _activations(layer: LayerFacts, writer: Writer) -> str | None:
    """Why a layout cannot say what a layer does to its input; None where it can."""
    found = sorted((activations.OPTIONS & layer.scheme.options) - writer.rounded_inputs)
    if not found:
        return None
    return (
        f"it cannot say that the input is rounded (option {found[0]}): the exported model would "
        "compute other values"
    )


def _described(model: Any, layers: tuple[LayerFacts, ...], cache_bits: int | None) -> Exported:
    """A model as writers and rules see it."""
    from calibit import _C

    quantized = {layer.name for layer in layers}
    head = structure.head_name(model)
    floats = (name for name in structure.linear_layers(model) if name not in quantized)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    version = str(_C.build_info()["version"])
    kept = tuple(name for name in floats if name != head)
    return Exported(layers, kept, head, dtype, version, cache_bits)


def _facts(model: Any, layout: str) -> tuple[LayerFacts, ...]:
    """The quantized layers of a model; ValueError where a layout would have nothing to hold."""
    if not hasattr(model, "config"):
        raise ValueError(
            f"[export] expected a Hugging Face model with a configuration, got "
            f"{type(model).__name__}"
        )
    found = []
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            weight = module.quantized_weight()
            ordered = weight.input_order is not None
            dtype, expert = weight.scales.dtype, structure.is_expert(model, name)
            found.append(LayerFacts(name, weight.shape, weight.scheme, ordered, dtype, expert))
    if not found and (layout != native.METHOD or kv_cache.bits_of(model) is None):
        raise ValueError(
            "[export] expected a model with quantized layers, got none: quantize it first"
        )
    return tuple(found)


def _write(
    model: Any, folder: Path, writer: Writer, exported: Exported, max_shard_bytes: int
) -> None:
    def encode(name: str, module: QuantizedLinear) -> Mapping[str, torch.Tensor]:
        try:
            weight = module.quantized_weight()
            weight = weight if weight.codes.is_cpu else to_device(weight, "cpu")
            return writer.encode(weight, exported.dtype)
        except ValueError as error:
            raise ValueError(f"[export] cannot write {name!r} as {writer.name}: {error}") from error

    try:
        section = writer.section(exported)
    except ValueError as error:
        raise ValueError(f"[export] cannot write this model as {writer.name}: {error}") from error
    shards.write(folder, structure.tensors(model, encode), max_bytes=max_shard_bytes)
    # A quantized head is a tensor of its own, whatever the float model shared.
    changes = {"tie_word_embeddings": False} if exported.quantizes_head else None
    filling.write_config(model, folder, section, changes)
    if writer.config_copy is not None:
        (folder / writer.config_copy).write_text(json.dumps(section, indent=2), encoding="utf-8")


def _verify(model: Any, folder: Path) -> tuple[float, list[str]]:
    """Read a folder back strictly and compare it with the model.

    Weights must be equal bit for bit. Logits then are too, unless columns within a group changed
    places, which changes the order of sums.

    Returns:
        The largest difference of a logit, and notes.
    """
    again = native.load(folder) if native.is_checkpoint(folder) else foreign.load(folder)
    moved = _compare_weights(model, again)
    notes = _copy_computed_(model, again)
    device = next(model.parameters()).device
    ids = torch.arange(3, 3 + _PROBE) % model.config.get_text_config().vocab_size
    with torch.no_grad():
        ours = model(input_ids=ids[None].to(device), use_cache=False).logits.cpu().double()
        theirs = again.to(device)(input_ids=ids[None].to(device), use_cache=False).logits
    difference = float((ours - theirs.cpu().double()).abs().max())
    # Sums in another order: a hundred roundings of the largest logit.
    eps = torch.finfo(theirs.dtype).eps
    allowed = 100 * eps * float(ours.abs().max()) if moved else 0.0
    if not difference <= allowed:
        raise RuntimeError(
            f"[export] logits of the model read back differ by {difference:.3g}, expected at most "
            f"{allowed:.3g}"
        )
    return difference, notes


def _compare_weights(model: nn.Module, again: nn.Module) -> bool:
    """Refuse a weight or parameter that differs; whether columns changed places within a group."""
    moved = False
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            first = module.quantized_weight()
            second = again.get_submodule(name).quantized_weight()  # type: ignore[operator]
            moved |= not _same(first.input_order, second.input_order)
            if not _same_values(first, second):
                raise RuntimeError(f"[export] {name!r} does not come back with the same values")
    floats = dict(again.named_parameters())
    for name, parameter in model.named_parameters():
        if not torch.equal(parameter.detach().cpu(), floats[name].detach()):
            raise RuntimeError(f"[export] {name!r} does not come back with the same values")
    return moved


def _copy_computed_(model: nn.Module, again: nn.Module) -> list[str]:
    """Give the model read back the computed buffers of the one in memory; notes where they differ.

    No file holds them. `model.to(dtype)` rounds them: rotary frequencies, for example.
    """
    notes = []
    for prefix, module in model.named_modules():
        other = again.get_submodule(prefix)
        for key in module._non_persistent_buffers_set:
            ours, theirs = module._buffers.get(key), other._buffers.get(key)
            if ours is not None and theirs is not None and not _same(ours, theirs):
                other._buffers[key] = ours.cpu().clone()
                notes.append(
                    f"{prefix}.{key} is not what the configuration gives, which happens when a "
                    "whole model is cast; the checkpoint will have it as the configuration says"
                )
    return notes


def _same_values(first: QuantizedWeight, second: QuantizedWeight) -> bool:
    """Whether two weights stand for the same numbers: in the same tensors, or once dequantized."""
    ours, theirs = first.tensors(), second.tensors()
    if ours.keys() == theirs.keys() and all(_same(ours[name], theirs[name]) for name in ours):
        return True
    return torch.equal(first.dequantize().cpu(), second.dequantize())


def _same(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.dtype == second.dtype and torch.equal(first.cpu(), second.cpu())


def _notes(model: nn.Module) -> list[str]:
    """Notes of the layers, each text once with the first layer and the number of others."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        for note in module.notes if isinstance(module, QuantizedLinear) else ():
            found.setdefault(note, []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {note}"
        for note, names in found.items()
    ]
