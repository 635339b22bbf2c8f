"""From a float matrix and a scheme to the canonical tensors of its quantized form.

The steps that `calibit.weight.quantize` puts together: scales that must be fixed before the codes
(one per tensor, double-quantized, or for activation order), nearest rounding, the column solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from calibit import activations, ops
from calibit.registry import NESTED_BLOCK
from calibit.schemes import TENSOR, Scheme
from calibit.solver import Factored

Tensor = torch.Tensor

_NAMES = ("codes", "scales", "zeros")


def nearest(w: Tensor, scheme: Scheme) -> dict[str, Any]:
    """Canonical tensors by nearest rounding.

    Args:
        w: float32 ``[N, K]`` on the CPU.
        scheme: format, granularity and options; its solver is not looked at.
    """
    fixed = _fixed_scales(w, scheme)
    form = _form(scheme)
    if fixed is None:
        rounded = ops.quantize(w, form.codebook, clip=form.clip, **form.numbers)
    else:
        rounded = ops.quantize(w, form.codebook, *fixed.plain, **form.numbers)
    return _tensors(rounded, form.codebook, fixed)


def solved(
    target: Tensor, w: Tensor, scheme: Scheme, factored: Factored
) -> tuple[dict[str, Any], Tensor]:
    """Canonical tensors by the column solver, and how many weights of each row were cut off.

    With the option `mse` the scale of a group is the one whose squared errors cost least by
    `Factored.importance`: outputs suffer from some inputs' errors a thousand times as much as from
    others'.

    Args:
        target: float32 ``[N, K]``, what is rounded.
        w: float32 ``[N, K]``, what scales are chosen from where they are fixed first.
        scheme: as in `nearest`.
        factored: the Hessian's factor.
    """
    form = _form(scheme)
    importance = factored.importance.cpu() if form.clip else None
    fixed = _fixed_scales(w, scheme, importance)
    scales, zeros = (None, None) if fixed is None else fixed.plain
    upper = factored.upper.to("cpu", torch.float32)
    order = None if factored.order is None else factored.order.to("cpu", torch.int32)
    if fixed is not None:
        importance = None
    *rounded, cut_off = ops.gptq_solve(
        target, upper, form.codebook, scales, zeros, order,
        clip=importance is not None, importance=importance, **form.numbers,
    )  # fmt: skip
    return _tensors(rounded, form.codebook, fixed), cut_off


@dataclass(frozen=True)
class _Form:
    """A scheme as the operators want it."""

    codebook: Tensor | None
    clip: bool
    numbers: Any  # bits, group, kind


def _form(scheme: Scheme) -> _Form:
    weight_format = scheme.weight_format
    zero = "u8" if "asym" in scheme.options else "f32" if "fzero" in scheme.options else "none"
    kind = ops.scale_kind(scheme.scale_type, zero)
    values = weight_format.codebook
    codebook = None if values is None else torch.tensor(values, dtype=torch.float32)
    numbers = {"bits": scheme.bits, "group": max(scheme.group, 0), "kind": kind}
    return _Form(codebook, "mse" in scheme.options, numbers)


@dataclass(frozen=True)
class _FixedScales:
    """Scales chosen before the codes: as the rounding sees them, and as they are stored."""

    plain: tuple[Tensor, Tensor | None]
    stored: dict[str, Tensor]


def _tensors(rounded: Any, codebook: Tensor | None, fixed: _FixedScales | None) -> dict[str, Any]:
    tensors = {**dict(zip(_NAMES, rounded, strict=True)), "codebook": codebook}
    return tensors if fixed is None else tensors | fixed.stored


def _fixed_scales(
    w: Tensor, scheme: Scheme, importance: Tensor | None = None
) -> _FixedScales | None:
    """Scales for the schemes that fix them first: one per tensor, nested ones, activation order."""
    if "llm" in scheme.options:
        return _FixedScales((_llm_scales(w), None), {})
    if not (scheme.group == TENSOR or scheme.options & {"dq", "actorder"}):
        return None
    form = _form(scheme)
    rows = w.reshape(1, -1) if scheme.group == TENSOR else w
    if importance is not None:
        importance = importance.repeat(w.shape[0] // rows.shape[0])
    _, scales, zeros = ops.quantize(
        rows, form.codebook, clip=form.clip, importance=importance, **form.numbers
    )
    if scheme.group == TENSOR:
        scales = scales.expand(w.shape[0], 1).contiguous()
        zeros = None if zeros is None else zeros.expand(w.shape[0], 1).contiguous()
    if "dq" not in scheme.options:
        return _FixedScales((scales, zeros), {})
    codes, nested, nested_codebook, offset = ops.double_quantize(scales)
    stored = {
        "scales": codes,
        "nested_scales": nested,
        "nested_codebook": nested_codebook,
        "nested_offset": offset,
    }
    block = torch.arange(scales.numel()) // NESTED_BLOCK
    values = nested_codebook[codes.flatten().long()] * nested[block] + offset
    return _FixedScales((values.reshape(scales.shape), None), stored)


def _llm_scales(w: Tensor) -> Tensor:
    """Row scales of LLM.int8(): max|w| / 127, float32 ``[N, 1]``; 1 for a row of zeros."""
    scales = w.abs().amax(dim=1, keepdim=True) / activations.LARGEST
    return torch.where(scales > 0, scales, torch.ones_like(scales))
