"""Copies of a float model with Gaussian weight noise of the size of a candidate's rounding errors.

They answer what *any* perturbation of that size does, quantization or not. The noise of a layer is
scaled so that its expected squared output error on the calibration tokens is the candidate's:
E |e x|^2 = s^2 N |x|^2 for a row-wise independent e of variance s^2, so
s^2 = sum |(Q - W) x|^2 / (N sum |x|^2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from calibit import structure
from calibit.experts import OpenExperts
from calibit.modules import QuantizedLinear

_CHUNK = 1 << 22  # noise values drawn at a time


def noise_scales(
    model: nn.Module, candidate: nn.Module, sequences: Sequence[torch.Tensor]
) -> dict[str, float]:
    """Standard deviation of the weight noise of each layer.

    Args:
        model: the float model, in evaluation mode.
        candidate: the same model with quantized layers.
        sequences: calibration tokens, int64 ``[length]`` each; they run through the float model, so
            that both weights of a layer see the same inputs.

    Returns:
        By module name, for the layers that the candidate has quantized. A layer that no token
        reached takes the size of its weight error, |Q - W| / sqrt(N K).

    Raises:
        ValueError: the candidate has a quantized layer that the model lacks.
    """
    with structure.opened_experts(model, _opened(candidate)):
        return _noise_scales(model, _pairs(model, candidate), sequences)


def _noise_scales(
    model: nn.Module, pairs: Mapping[str, QuantizedLinear], sequences: Sequence[torch.Tensor]
) -> dict[str, float]:
    """`noise_scales` of a model whose experts are as open as the candidate's."""
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in pairs}
    handles = [
        model.get_submodule(name).register_forward_hook(_observer(quantized, sums[name]))
        for name, quantized in pairs.items()
    ]
    try:
        with torch.no_grad():
            for sequence in sequences:
                model(input_ids=sequence[None].to(next(model.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    layers = structure.linear_layers(model)
    scales = {}
    for name, quantized in pairs.items():
        errors, inputs = sums[name].tolist()
        n, k = quantized.out_features, quantized.in_features
        if inputs > 0:
            scales[name] = (errors / (n * inputs)) ** 0.5
        else:
            difference = quantized.dequantize(torch.float32) - layers[name].weight(model)
            scales[name] = float(torch.linalg.vector_norm(difference)) / (n * k) ** 0.5
    return scales


@contextmanager
def perturbed(model: nn.Module, scales: Mapping[str, float], *, seed: int) -> Iterator[nn.Module]:
    """The model with noise in its weights inside the block, and bit for bit as it was after it.

    Needs the memory of the perturbed weights once more. The noise is drawn layer by layer in the
    order of `scales`, float32, and rounded to the weight's dtype.

    Args:
        model: the float model, changed in place for the while.
        scales: standard deviations from `noise_scales`.
        seed: of the noise.

    Example:
        >>> layer = nn.Linear(4, 4); before = layer.weight.clone()
        >>> with perturbed(nn.ModuleDict({"a": layer}), {"a": 0.1}, seed=0):
        ...     bool((layer.weight == before).any())
        False
        >>> bool((layer.weight == before).all())
        True
    """
    generator = torch.Generator().manual_seed(seed)
    with structure.opened_experts(model, structure.experts_of(model, scales)):
        # Experts are views of the fused parameters: noise in the one is noise in the other.
        parameters = {name: model.get_submodule(name).get_parameter("weight") for name in scales}
    originals = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                _add_noise_(parameter, scales[name], generator)
        yield model
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(originals[name])


def _opened(candidate: nn.Module) -> list[str]:
    """Names of the experts modules that a candidate has opened."""
    return [name for name, module in candidate.named_modules() if isinstance(module, OpenExperts)]


def _pairs(model: nn.Module, candidate: nn.Module) -> dict[str, QuantizedLinear]:
    """The candidate's quantized layers by the name of the float layer each stands for."""
    layers = structure.linear_layers(model)
    pairs = {
        name: module
        for name, module in candidate.named_modules()
        if isinstance(module, QuantizedLinear)
    }
    for name, module in pairs.items():
        shape = (module.out_features, module.in_features)
        if name not in layers or layers[name].shape != shape:
            raise ValueError(
                f"[noise_scales] expected a candidate of the same architecture, got a quantized "
                f"layer {name} {list(shape)} that the model lacks"
            )
    return pairs


def _observer(quantized: QuantizedLinear, sums: torch.Tensor) -> Any:
    """A hook that adds |(Q - W) x|^2 and |x|^2 of its layer's inputs."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0]
        difference = quantized(x).float() - output.float()
        sums[0] += difference.square().sum(dtype=torch.float64).cpu()
        sums[1] += x.float().square().sum(dtype=torch.float64).cpu()

    return hook


def _add_noise_(weight: torch.Tensor, scale: float, generator: torch.Generator) -> None:
    flat = (weight if weight.is_contiguous() else weight.t()).view(-1)  # as it lies in memory
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        noise = torch.randn(part.numel(), generator=generator).mul_(scale)
        part.copy_(part.float().cpu().add_(noise))
