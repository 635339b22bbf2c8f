"""Quantizing one layer of a model in place, with its row of the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import nn

from calibit import structure, weight
from calibit.modules import QuantizedLinear
from calibit.quantization.hessian import Hessian
from calibit.quantization.report import ModuleReport
from calibit.schemes import Scheme
from calibit.solver import Factored
from calibit.weight import QuantizedWeight

# Weights handled at a time where torch would first copy a whole bfloat16 weight to float32.
_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class Curvature:
    """What GPTQ knows about a layer's inputs.

    Attributes:
        hessian: the sum of x x^T over the calibration tokens.
        factored: its factor, shared by the layers that share the Hessian.
    """

    hessian: Hessian
    factored: Factored


@dataclass(frozen=True)
class _Choice:
    """A quantized weight and how it was chosen."""

    weight: QuantizedWeight
    solver: str
    loss: float | None = None
    loss_nearest: float | None = None
    damping: float | None = None
    notes: tuple[str, ...] = ()


def quantize_layer_(
    model: nn.Module,
    layer: structure.LinearLayer,
    scheme: Scheme,
    curvature: Curvature | None = None,
) -> ModuleReport:
    """Replace one linear layer by its quantized form; the float weight is freed with it.

    GPTQ keeps the codes of nearest rounding where those have the smaller output error on the
    calibration tokens, and rounds to nearest where no calibration token reached the layer; both are
    said in the row.

    Args:
        model: the model.
        layer: the layer.
        scheme: what to do; a solver `gptq` uses `curvature`.
        curvature: the layer's Hessian and factor; None when no calibration token reached it.
    """
    started = perf_counter()
    dense = layer.weight(model)
    choice = _choose(dense, scheme, curvature)
    error = _relative_error(dense, choice.weight)
    old = model.get_submodule(layer.name)
    new = QuantizedLinear.from_weight(choice.weight, layer.bias(model), dense.dtype)
    new.train(old.training)
    structure.replace_(model, layer.names, new)
    return ModuleReport(
        name=layer.name,
        shape=layer.shape,
        scheme=str(choice.weight.scheme),
        solver=choice.solver,
        error=error,
        bits_per_weight=new.bits_per_weight,
        nbytes_codes=new.nbytes_codes,
        nbytes_meta=new.nbytes_meta,
        seconds=perf_counter() - started,
        loss=choice.loss,
        loss_nearest=choice.loss_nearest,
        damping=choice.damping,
        notes=choice.notes,
    )


def nearest_of(scheme: Scheme) -> Scheme:
    """The scheme that stores weights in the same form and rounds each to its nearest code."""
    return replace(scheme, solver="nearest", options=scheme.options - {"actorder"})


def output_loss(difference: torch.Tensor, hessian: Hessian) -> float:
    """tr(D H D^T) per token: a layer's mean squared output error, summed over its outputs.

    Args:
        difference: D = W - Q, float32 `[N, K]`.
        hessian: the sum of x x^T, `[K, K]`.
    """
    # A sum of squares: float32 keeps six digits of it, float64 would take twice as long.
    weighted = (difference @ hessian.total.float()).mul_(difference)
    return float(weighted.sum(dtype=torch.float64)) / hessian.rows


def _choose(dense: torch.Tensor, scheme: Scheme, curvature: Curvature | None) -> _Choice:
    """The codes to keep for one weight."""
    if scheme.solver != "gptq":
        return _Choice(weight.quantize(dense, scheme), scheme.solver)
    nearest = weight.quantize(dense, nearest_of(scheme))
    if curvature is None:
        return _Choice(
            nearest, "nearest", notes=("no calibration token reached it: nearest rounding",)
        )
    solved = weight.quantize(dense, scheme, hessian=curvature.factored)
    loss = output_loss(_difference(dense, solved), curvature.hessian)
    loss_nearest = output_loss(_difference(dense, nearest), curvature.hessian)
    info = curvature.factored.info
    notes: tuple[str, ...] = (info.note,) if info.note else ()
    if loss > loss_nearest:
        ratio = loss / loss_nearest if loss_nearest else float("inf")
        notes = (*notes, f"gptq has {ratio:.3f} times the loss of nearest rounding: nearest kept")
        return _Choice(nearest, "nearest", loss_nearest, loss_nearest, info.damping, notes)
    return _Choice(solved, "gptq", loss, loss_nearest, info.damping, notes)


def _difference(dense: torch.Tensor, quantized: QuantizedWeight) -> torch.Tensor:
    """Q - W in float32, the only copy of that size."""
    difference = quantized.dequantize(torch.float32)
    for part, original in zip(_parts(difference), _parts(dense), strict=True):
        part.sub_(original)
    return difference


def _relative_error(dense: torch.Tensor, quantized: QuantizedWeight) -> float:
    """Norm of the difference over norm of the weight."""
    parts = [torch.linalg.vector_norm(part, dtype=torch.float32) for part in _parts(dense)]
    norm = float(torch.linalg.vector_norm(torch.stack(parts)))
    difference = float(torch.linalg.vector_norm(_difference(dense, quantized)))
    return difference / norm if norm > 0 else difference


def _parts(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The matrix as runs of rows of about `_AT_A_TIME` values."""
    return matrix.split(max(1, _AT_A_TIME // matrix.shape[1]))
