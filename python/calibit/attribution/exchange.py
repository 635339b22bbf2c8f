"""One float model whose layers are exchanged for quantized ones and back: each layer is quantized
once under each scheme, however many mixtures are evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calibit import structure
from calibit.attribution.planning import Levels, Unit
from calibit.modules import QuantizedLinear
from calibit.quantization import plans
from calibit.quantization.model import Progress, quantize_weights, survey
from calibit.quantization.residency import Weights

BLOCKS, LINEARS = "blocks", "linears"
UNITS = (BLOCKS, LINEARS)

_ELSEWHERE = frozenset({"head", "kv8", "kv4"})  # options that change more than single layers


class Exchange:
    """A float model and its layers under every option.

    Args:
        model: the model, its weights in memory; changed by `quantize_` and `set_`, and as it was
            before after `restore_`, but for fused experts, which stay open (`calibit.experts`).
        units: `blocks` or `linears`.
    """

    def __init__(self, model: Any, units: str) -> None:
        self.model = model
        self.options: list[str] = []
        self._units = units
        self._floats: dict[str, nn.Module] = {}
        self._layers: dict[str, structure.LinearLayer] = {}
        self._members: dict[str, list[str]] = {}
        self._built: list[dict[str, QuantizedLinear]] = []
        self._errors: list[dict[str, float]] = []

    def quantize_(
        self, scheme: str, progress: Progress | None = None, work: Path | None = None, **text: Any
    ) -> None:
        """Add the next option: quantize the float model once, keep the layers, restore the model.

        A scheme with a solver is solved on the model in which all layers before have been
        quantized under it; a mixture takes layers of that one build.

        Args:
            scheme: a scheme string, or `keep` for full precision.
            progress, work, text: as for `calibit.quantization.model.quantize_weights`.
        """
        if scheme == plans.KEEP:
            self.options.append(scheme)
            self._built.append({})
            self._errors.append(dict.fromkeys(self._floats, 0.0))
            return
        plan = check_option(scheme)
        structure.open_experts_(self.model, survey(self.model, plan).opened)
        layers = structure.linear_layers(self.model)
        before = {name: self.model.get_submodule(name) for name in layers}
        report = quantize_weights(Weights(self.model), plan, progress=progress, work=work, **text)
        built = {row.name: self.model.get_submodule(row.name) for row in report.modules}
        for name in built:
            structure.replace_(self.model, layers[name].names, before[name])
        self.model.config.__dict__.pop("quantization_config", None)
        if not self.options:
            self._floats = {name: before[name] for name in built}
            self._layers = {name: layers[name] for name in built}
            self._members = _group(self.model, list(built), self._units)
        self.options.append(scheme)
        self._built.append({name: _quantized(name, one) for name, one in built.items()})
        norms = {name: self._norm(name) for name in built}
        self._errors.append(
            {row.name: (row.error * norms[row.name]) ** 2 for row in report.modules}
        )

    def units(self) -> list[Unit]:
        """Every unit with its bytes and errors under the options."""
        return [
            Unit(
                name,
                tuple(self._bytes(option, members) for option in range(len(self.options))),
                tuple(sum(errors[one] for one in members) for errors in self._errors),
            )
            for name, members in self._members.items()
        ]

    @property
    def weights(self) -> int:
        """Number of weights in all units."""
        return sum(layer.shape[0] * layer.shape[1] for layer in self._layers.values())

    def set_(self, levels: Levels) -> None:
        """Put the layers of every unit in place: those of its option, else the float ones."""
        for name, members in self._members.items():
            chosen = self._built[levels[name]] if name in levels else {}
            for one in members:
                wanted = chosen.get(one, self._floats[one])
                if self.model.get_submodule(one) is not wanted:
                    structure.replace_(self.model, self._layers[one].names, wanted)

    def restore_(self) -> None:
        """Full precision everywhere."""
        self.set_({})

    def _bytes(self, option: int, members: Sequence[str]) -> int:
        own: Mapping[str, QuantizedLinear] = self._built[option]
        if not own:
            return sum(self._floats[one].get_parameter("weight").nbytes for one in members)
        return sum(own[one].nbytes_codes + own[one].nbytes_meta for one in members)

    def _norm(self, name: str) -> float:
        weight = self._floats[name].get_parameter("weight")
        return float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float32))


def check_option(scheme: str) -> plans.Plan:
    """A scheme that can be exchanged layer by layer, as a plan.

    Raises:
        ValueError: a plan, a floating-point format, or an option that changes more than single
            layers.
    """
    plan = plans.load(scheme)
    one = plan.schemes[0]
    if len(plan.rules) > 1 or one.is_float or one.options & _ELSEWHERE:
        raise ValueError(
            "[attribute] expected a scheme that quantizes single layers, without "
            f"{', '.join(sorted(_ELSEWHERE))}, got {scheme!r}"
        )
    return plan


def _quantized(name: str, module: nn.Module) -> QuantizedLinear:
    if not isinstance(module, QuantizedLinear):
        raise TypeError(
            f"[attribute] expected a quantized layer {name}, got {type(module).__name__}"
        )
    return module


def _group(model: Any, names: Sequence[str], units: str) -> dict[str, list[str]]:
    """Layers by unit; those outside of the blocks are units of their own."""
    found = structure.blocks(model) if units == BLOCKS else None
    inside = f"{found[0]}." if found is not None else None
    groups: dict[str, list[str]] = {}
    for name in names:
        unit = name
        if inside is not None and name.startswith(inside):
            unit = inside + name.removeprefix(inside).split(".")[0]
        groups.setdefault(unit, []).append(name)
    return groups
