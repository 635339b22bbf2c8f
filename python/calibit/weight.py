"""A quantized weight in canonical form: what travels between layers, files and solvers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from calibit import ops, rounding
from calibit.schemes import Scheme, parse
from calibit.solver import DAMPING, Factored, factor

Tensor = torch.Tensor

TENSOR_NAMES = (
    "codes",
    "scales",
    "zeros",
    "scale_codes",
    "nested_scales",
    "nested_codebook",
    "nested_offset",
    "codebook",
    "input_order",
)
"""Names of the canonical tensors, as stored on disk; which of them exist depends on the scheme."""

_ZERO_OF_DTYPE = {None: "none", torch.uint8: "u8", torch.float32: "f32"}


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight ``W[N, K]`` as codes, scales and what else its scheme needs. Made by `quantize`.

    With G = ceil(K / group): codes uint8 ``[N, ceil(K*bits/8)]`` (LSB-first bit stream per row),
    scales ``[N, G]`` (float16 for integers, float32 for codebooks, uint8 for E8M0; float32 for
    integers read from a checkpoint whose scales float16 cannot hold), zeros ``[N, G]`` uint8 or
    float32; with double quantization scale_codes uint8 ``[N, G]``,
    nested_scales, nested_codebook and nested_offset instead of scales; codebook float32
    ``[2**bits]``; input_order int32 ``[K]``: column k of the codes multiplies
    ``x[input_order[k]]``.

    Attributes:
        shape: (N, K), rows are output features.
        scheme: how it was made.
        notes: what a reader of a report should know, e.g. a raised damping.
    """

    shape: tuple[int, int]
    scheme: Scheme
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    codebook: Tensor | None = None
    nested_scales: Tensor | None = None
    nested_codebook: Tensor | None = None
    nested_offset: Tensor | None = None
    input_order: Tensor | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def layout(self) -> dict[str, int]:
        """What the operators need to know of the tensors: n, k, bits, group, kind."""
        nested = self.nested_scales is not None
        scale = "nested" if nested else self._scale_type()
        zero = _ZERO_OF_DTYPE[None if self.zeros is None else self.zeros.dtype]
        return {
            "n": self.shape[0],
            "k": self.shape[1],
            "bits": self.scheme.bits,
            "group": max(self.scheme.group, 0),
            "kind": ops.scale_kind(scale, zero),
        }

    def _scale_type(self) -> str:
        """The format's, but for integers with float32 scales, as other tools write them."""
        scale = self.scheme.weight_format.scale_type
        return "f32" if scale == "f16" and self.scales.dtype == torch.float32 else scale

    def tensors(self) -> dict[str, Tensor]:
        """The canonical tensors by their names on disk (`TENSOR_NAMES`)."""
        named = {name: getattr(self, name, None) for name in TENSOR_NAMES}
        if self.nested_scales is not None:
            named["scale_codes"], named["scales"] = self.scales, None
        return {name: t for name, t in named.items() if t is not None}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], *, scheme: str | Scheme, shape: tuple[int, int]
    ) -> QuantizedWeight:
        """The weight whose `tensors()` these are.

        A codebook file that the scheme names as a string is not read: its values are in `tensors`.

        Raises:
            ValueError: a name that is missing, unknown or does not belong to the scheme, or a
                tensor of the wrong shape or dtype.
        """
        book = tensors.get("codebook")
        scheme = parse(scheme, codebook=None if book is None else book.flatten().tolist())
        _check_names(set(tensors), scheme)
        rest: dict[str, Any] = {
            name: t for name, t in tensors.items() if name not in ("scales", "scale_codes")
        }
        scales = tensors["scale_codes"] if "dq" in scheme.options else tensors["scales"]
        q = cls(shape=(int(shape[0]), int(shape[1])), scheme=scheme, scales=scales, **rest)
        q._check_input_order()
        q.pack()  # the operator checks every shape and dtype
        return q

    def _check_input_order(self) -> None:
        order, k = self.input_order, self.shape[1]
        if order is None:
            return
        if order.dtype != torch.int32 or order.shape != (k,):
            raise ValueError(
                f"[weight] expected input_order int32 [{k}], got {order.dtype} {list(order.shape)}"
            )
        if not torch.equal(order.cpu().sort().values, torch.arange(k, dtype=torch.int32)):
            raise ValueError(f"[weight] expected input_order to be a permutation of 0..{k - 1}")

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The float weight ``[N, K]`` that the codes stand for, columns in the order of x."""
        w = ops.dequantize(
            self.codes,
            self.scales,
            self.zeros,
            self.codebook,
            self.nested_scales,
            self.nested_codebook,
            self.nested_offset,
            **self.layout,
        )
        if self.input_order is not None:
            restored = torch.empty_like(w)
            restored[:, self.input_order.long()] = w
            w = restored
        return w.to(dtype)

    def pack(self) -> Tensor:
        """The kernels' buffer, uint8, one dimension."""
        return ops.pack_weight(
            self.codes,
            self.scales,
            self.zeros,
            self.nested_scales,
            self.nested_codebook,
            self.nested_offset,
            **self.layout,
        )

    @property
    def nbytes_codes(self) -> int:
        """Bytes of the codes."""
        return self.codes.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of all canonical tensors."""
        return sum(t.nbytes for t in self.tensors().values())

    @property
    def nbytes_meta(self) -> int:
        """Bytes of scales, zero points, codebooks and order."""
        return self.nbytes - self.nbytes_codes

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, metadata included."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def __repr__(self) -> str:
        n, k = self.shape
        return (
            f"QuantizedWeight({n} x {k}, {self.scheme}, {self.bits_per_weight:.3f} bits per weight)"
        )


def quantize(
    weight: Tensor | np.ndarray[Any, Any],
    scheme: str | Scheme,
    *,
    hessian: Tensor | Factored | None = None,
    cross: Tensor | None = None,
    residual: Tensor | None = None,
    damping: float = DAMPING,
) -> QuantizedWeight:
    """Quantize one weight: the same call for every solver and format.

    A solver's codes are kept only where their proxy loss tr((W-Q) H (W-Q)^T) is not above that of
    nearest rounding; otherwise the result's scheme is that of nearest rounding and a note says so.

    Args:
        weight: ``[N, K]`` of any floating dtype, rows are output features; torch or NumPy.
        scheme: such as ``"nf4"``, ``"int4-g32-asym"``, ``"gptq-int4-g128"``.
        hessian: for solvers: ``[K, K]``, sum or mean of x x^T over calibration inputs, or its
            factor from `calibit.solver.factor` (shared by weights with the same input).
        cross: for ``gptaq``: ``[K, K]``, sum or mean of (y - x) x^T, y the unquantized model's
            input where x is this layer's; contained in a factor.
        residual: for ``gptaq``: ``[N, K]``, sum or mean of e x^T, e what the sum that the layer's
            output is added to lacks already: the layer is asked to make it good (see `solve`).
        damping: for solvers: share of the mean diagonal that is added to the Hessian's diagonal.

    Returns:
        The quantized weight, on the weight's device. Deterministic.

    Raises:
        ValueError: unknown scheme, NaN or infinity in the weight, wrong shape, a missing or wrong
            Hessian.
        TypeError: a weight or scheme of another type.

    Example:
        >>> q = quantize(np.eye(4, 64, dtype=np.float32), "nf4")
        >>> bool((q.dequantize() == torch.eye(4, 64)).all())
        True
    """
    scheme = _of_one_weight(scheme)
    if not scheme.is_solved:
        w, device = _as_matrix(weight)
        q = _assembled(w, scheme, rounding.nearest(w, scheme))
        return q if device.type == "cpu" else to_device(q, device)
    if hessian is None:
        k = weight.shape[-1]
        raise ValueError(
            f"[quantize] expected hessian= [{k}, {k}] for '{scheme}', got none: collect it from "
            "calibration inputs, or use quantize_model(..., calibration=texts)"
        )
    if not isinstance(hessian, Factored):
        ordered = "actorder" in scheme.options
        hessian = factor(hessian, damping, activation_order=ordered, cross=cross)
    return solve(weight, scheme, hessian, residual=residual).weight


@dataclass(frozen=True)
class Solution:
    """A weight quantized by a solver, compared with nearest rounding.

    Attributes:
        weight: what was kept; its scheme names the solver.
        loss: tr((T-Q) H (T-Q)^T) of what was kept, in the units of the Hessian. T is the weight;
            for ``gptaq`` it is the weight that comes closest to the unquantized model's outputs.
        loss_nearest: the same of nearest rounding.
        clipped: share of weights that were cut off at their turn (`calibit.ops.gptq_solve`); None
            where nearest rounding was kept.
    """

    weight: QuantizedWeight
    loss: float
    loss_nearest: float
    clipped: float | None


def solve(
    weight: Tensor | np.ndarray[Any, Any],
    scheme: str | Scheme,
    factored: Factored,
    *,
    residual: Tensor | None = None,
) -> Solution:
    """Quantize one weight with a solver and keep the better of its codes and nearest rounding.

    Args:
        weight: ``[N, K]``, as for `quantize`.
        scheme: with a solver.
        factored: from `calibit.solver.factor`.
        residual: for ``gptaq``: ``[N, K]``, sum or mean (as the Hessian is) of e x^T over the
            calibration tokens. The output of such a layer is added to a residual stream; e is by
            how much the unquantized model's stream is ahead of the quantized one's before this
            layer. Of all weights, W + (W cross + residual) inv(H) brings the stream behind the
            layer closest to the unquantized one.

    Raises:
        ValueError: as `quantize`.
    """
    scheme = _of_one_weight(scheme)
    w, device = _as_matrix(weight)
    _check_factored(factored, w.shape[1], scheme)
    target = w if factored.shift is None else w + w @ factored.shift.cpu()
    if residual is not None:
        target = target + _towards(residual, factored, w.shape, scheme)
    hessian = factored.hessian.cpu()
    tensors, cut_off = rounding.solved(target, w, scheme, factored)
    notes = (factored.info.note,) if factored.info.note else ()
    q = _assembled(w, scheme, tensors, notes)
    near = _assembled(w, scheme.nearest, rounding.nearest(w, scheme.nearest), notes)
    loss, loss_nearest = (proxy_loss(v.dequantize().sub_(target), hessian) for v in (q, near))
    clipped: float | None = int(cut_off.sum()) / w.numel()
    if loss > loss_nearest:
        ratio = loss / loss_nearest if loss_nearest else float("inf")
        reason = f"{scheme.solver} has {ratio:.3f} times the loss of nearest rounding: nearest kept"
        q, loss, clipped = replace(near, notes=(*notes, reason)), loss_nearest, None
    if device.type != "cpu":
        q = replace(to_device(q, device), notes=q.notes)
    return Solution(q, loss, loss_nearest, clipped)


def _towards(residual: Tensor, factored: Factored, shape: torch.Size, scheme: Scheme) -> Tensor:
    """How far a residual moves the target."""
    if scheme.solver != "gptaq" or residual.shape != shape:
        wanted = f"residual= {list(shape)}" if scheme.solver == "gptaq" else "no residual="
        raise ValueError(
            f"[quantize] expected {wanted} for '{scheme}', got one of {list(residual.shape)}"
        )
    return factored.step(residual).cpu()


def proxy_loss(difference: Tensor, hessian: Tensor) -> float:
    """tr(D H D^T): the squared error of a layer's output, summed over outputs and tokens.

    Args:
        difference: D, float32 ``[N, K]``.
        hessian: the sum of x x^T, float32 ``[K, K]``.
    """
    # A sum of squares: float32 products keep six digits of it, float64 would take twice as long.
    return float((difference @ hessian).mul_(difference).sum(dtype=torch.float64))


def to_device(q: QuantizedWeight, device: torch.device | str) -> QuantizedWeight:
    """The same weight with its tensors on another device."""
    moved = {name: t.to(device) for name, t in q.tensors().items()}
    return QuantizedWeight.from_tensors(moved, scheme=q.scheme, shape=q.shape)


def _of_one_weight(scheme: str | Scheme) -> Scheme:
    """The scheme, or ValueError where it is about more than a weight."""
    parsed = parse(scheme)
    if parsed.cache_bits is not None:
        raise ValueError(
            f"[quantize] expected a scheme of one weight, got '{parsed}', which is also about a "
            "model's cache: use quantize_model"
        )
    return parsed


def _assembled(
    w: Tensor, scheme: Scheme, tensors: dict[str, Any], notes: tuple[str, ...] = ()
) -> QuantizedWeight:
    shape = (w.shape[0], w.shape[1])
    return QuantizedWeight(shape, scheme, notes=notes, **tensors)


def _as_matrix(weight: Tensor | np.ndarray[Any, Any]) -> tuple[Tensor, torch.device]:
    """A float32 copy on the CPU, and the device it came from."""
    if not isinstance(weight, Tensor | np.ndarray):
        raise TypeError(
            f"[quantize] expected a torch tensor or a NumPy array, got {type(weight).__name__}"
        )
    t = _from_numpy(weight) if isinstance(weight, np.ndarray) else weight.detach()
    if t.dim() != 2 or t.numel() == 0:
        raise ValueError(f"[quantize] expected a weight [N, K] with N, K >= 1, got {list(t.shape)}")
    if not t.is_floating_point():
        raise ValueError(f"[quantize] expected a floating-point weight, got {t.dtype}")
    if t.is_meta:
        raise ValueError("[quantize] expected a weight with data, got one on the meta device")
    return t.to("cpu", torch.float32, copy=True).contiguous(), t.device


def _from_numpy(weight: np.ndarray[Any, Any]) -> Tensor:
    """The array as a tensor, without a copy where torch can read its memory."""
    if weight.dtype.kind != "f" or weight.dtype.itemsize > 8:
        raise ValueError(f"[quantize] expected a floating-point weight, got {weight.dtype}")
    array = np.ascontiguousarray(weight, weight.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _check_factored(factored: Factored, k: int, scheme: Scheme) -> None:
    if factored.upper.shape != (k, k):
        raise ValueError(
            f"[quantize] expected a Hessian [{k}, {k}], got {list(factored.upper.shape)}"
        )
    if ("actorder" in scheme.options) != (factored.order is not None):
        wanted = "a factor without" if factored.order is not None else "factor(...) with"
        raise ValueError(f"[quantize] '{scheme}' needs {wanted} activation_order=True")
    if (scheme.solver == "gptaq") != (factored.shift is not None):
        wanted = "no cross=" if factored.shift is not None else f"cross= [{k}, {k}]"
        got = "one" if factored.shift is not None else "none"
        raise ValueError(f"[quantize] expected {wanted} for '{scheme}', got {got}")


def _check_names(names: set[str], scheme: Scheme) -> None:
    needed = {"codes"} | (
        {"scale_codes", "nested_scales", "nested_codebook", "nested_offset"}
        if "dq" in scheme.options
        else {"scales"}
    )
    if scheme.options & {"asym", "fzero"}:
        needed.add("zeros")
    if scheme.weight_format.codebook is not None:
        needed.add("codebook")
    missing, unknown = needed - names, names - needed - {"input_order"}
    if missing or unknown:
        raise ValueError(
            f"[weight] expected tensors {sorted(needed)} for '{scheme}', "
            f"missing {sorted(missing)}, unknown {sorted(unknown)}"
        )
