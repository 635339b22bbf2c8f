"""Quantizing one layer of a model in place, with its row of the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import nn

from calibit import structure, weight
from calibit.modules import QuantizedLinear
from calibit.quantization.hessian import Hessian
from calibit.quantization.report import ModuleReport
from calibit.schemes import Scheme
from calibit.solver import Factored
from calibit.weight import QuantizedWeight

Job = tuple[structure.LinearLayer, Scheme]
"""A layer and what to do to it."""

# Weights handled at a time where torch would first copy a whole bfloat16 weight to float32.
_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class Curvature:
    """What GPTQ knows about a layer's inputs.

    Attributes:
        hessian: the sum of x x^T over the calibration tokens.
        factored: its factor, shared by the layers that share the Hessian.
        residual: for `gptaq`, what the layer is to make good (`calibit.weight.solve`).
    """

    hessian: Hessian
    factored: Factored
    residual: torch.Tensor | None = None


@dataclass(frozen=True)
class Reached:
    """The calibration tokens that a layer saw.

    Attributes:
        tokens: how many.
        reason: why it cannot be solved on them; empty where it can.
    """

    tokens: int
    reason: str = ""


def quantize_layer_(
    model: nn.Module,
    layer: structure.LinearLayer,
    scheme: Scheme,
    curvature: Curvature | None = None,
    reached: Reached | None = None,
) -> ModuleReport:
    """Replace one linear layer by its quantized form; the float weight is freed with it.

    GPTQ keeps the codes of nearest rounding where those have the smaller output error on the
    calibration tokens, and rounds to nearest where no calibration token reached the layer, or too
    few; all of it is said in the row.

    Args:
        model: the model.
        layer: the layer.
        scheme: what to do; a solver uses `curvature`. `gptaq` becomes `gptq`, and the row says so,
            where the factor knows nothing of the unquantized model.
        curvature: the layer's Hessian and factor; None where `reached` says why there is none.
        reached: for a solver: the calibration tokens that the layer saw.
    """
    started = perf_counter()
    dense = layer.weight(model)
    quantized, facts = _choose(dense, scheme, curvature, reached)
    error = _relative_error(dense, quantized)
    old = model.get_submodule(layer.name)
    new = QuantizedLinear.from_weight(quantized, layer.bias(model), dense.dtype)
    new.train(old.training)
    structure.replace_(model, layer.names, new)
    return ModuleReport(
        name=layer.name,
        shape=layer.shape,
        scheme=str(quantized.scheme),
        error=error,
        bits_per_weight=new.bits_per_weight,
        nbytes_codes=new.nbytes_codes,
        nbytes_meta=new.nbytes_meta,
        seconds=perf_counter() - started,
        **facts,
    )


def _choose(
    dense: torch.Tensor, scheme: Scheme, curvature: Curvature | None, reached: Reached | None
) -> tuple[QuantizedWeight, dict[str, Any]]:
    """The weight to keep, and what its row says about how it was chosen."""
    if not scheme.is_solved or reached is None:
        return weight.quantize(dense, scheme), {"solver": scheme.solver}
    if curvature is None:
        reason = f"{reached.reason}: nearest rounding"
        facts = {"solver": "nearest", "tokens": reached.tokens, "notes": (reason,)}
        return weight.quantize(dense, scheme.nearest), facts
    notes: tuple[str, ...] = ()
    if scheme.solver == "gptaq" and curvature.factored.shift is None:
        scheme = replace(scheme, solver="gptq")
        notes = ("gptq: its tokens cannot be paired with the unquantized model's",)
    solution = weight.solve(dense, scheme, curvature.factored, residual=curvature.residual)
    return solution.weight, {
        "solver": solution.weight.scheme.solver,
        "tokens": reached.tokens,
        "loss": solution.loss / curvature.hessian.rows,
        "loss_nearest": solution.loss_nearest / curvature.hessian.rows,
        "damping": curvature.factored.info.damping,
        "clipped": solution.clipped,
        "notes": (*notes, *solution.weight.notes),
    }


def _relative_error(dense: torch.Tensor, quantized: QuantizedWeight) -> float:
    """Norm of the difference over norm of the weight."""
    difference = quantized.dequantize()  # the only float32 copy of that size
    norms = []
    for part, original in zip(_parts(difference), _parts(dense), strict=True):
        part.sub_(original)
        norms.append(torch.linalg.vector_norm(original, dtype=torch.float32))
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    error = float(torch.linalg.vector_norm(difference))
    return error / norm if norm > 0 else error


def _parts(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The matrix as runs of rows of about `_AT_A_TIME` values."""
    return matrix.split(max(1, _AT_A_TIME // matrix.shape[1]))
