"""Typed Python functions over ``torch.ops.calibit``: tensors first, the rest by keyword.

They add no check: the operators check once and raise ValueError ``[op] expected ..., got ...``.
"""

from __future__ import annotations

import torch

from calibit import _devices, _fakes  # noqa: F401  (register kernels)
from calibit._derivatives import is_transformed, linear_function
from calibit.registry import SCALE_TYPES, ZERO_TYPES

Tensor = torch.Tensor

_ops = torch.ops.calibit


def scale_kind(scale: str, zero: str = "none") -> int:
    """The operators' code for how scales and zero points are stored.

    Args:
        scale: ``f32``, ``f16``, ``e8m0`` or ``nested``.
        zero: ``none``, ``u8`` or ``f32``.
    """
    return SCALE_TYPES[scale] + 16 * ZERO_TYPES[zero]


def quantize(
    w: Tensor,
    codebook: Tensor | None = None,
    scales: Tensor | None = None,
    zeros: Tensor | None = None,
    *,
    bits: int,
    group: int,
    kind: int,
    clip: bool = False,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round W to the nearest codes.

    Args:
        w: float32 ``[N, K]``, finite.
        codebook: float32 ``[2**bits]``; None for integers.
        scales: use these scales ``[N, ceil(K/group)]`` instead of choosing them.
        zeros: zero points that belong to `scales`.
        bits: of one code, 1 to 8.
        group: weights of a row that share a scale; 0 or more than K = the row.
        kind: see `scale_kind`.
        clip: of a group's range shrunk to 100 %, 99 %, ... 21 %, take the one with the smallest
            sum of ``|error|**2.4`` (the search of GPTQ's code), instead of the whole range.
        importance: float32 ``[K]``, finite, >= 0, with `clip`: the search takes the smallest sum of
            ``importance * error**2`` instead.

    Returns:
        codes uint8 ``[N, ceil(K*bits/8)]``, scales and zeros ``[N, ceil(K/group)]`` (zeros None
        for symmetric and codebook formats). Deterministic.

    Raises:
        ValueError: NaN or infinity in `w`, a scale that overflows float16, wrong shape or dtype.
    """
    codes, out_scales, out_zeros = _ops.quantize(
        w, codebook, scales, zeros, importance, bits, group, kind, clip
    )
    return codes, out_scales, out_zeros if out_zeros.numel() else None


def gptq_solve(
    w: Tensor,
    u: Tensor,
    codebook: Tensor | None = None,
    scales: Tensor | None = None,
    zeros: Tensor | None = None,
    order: Tensor | None = None,
    *,
    bits: int,
    group: int,
    kind: int,
    clip: bool = False,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Round W column by column, each error passed on to the columns not yet rounded.

    Frantar et al., arXiv 2210.17323, algorithm 1. Rows are independent: same codes for any number
    of threads.

    Args:
        w: float32 ``[N, K]``.
        u: float32 ``[K, K]``, upper factor with inv(H) = U^T U, in processing order.
        codebook, scales, zeros, bits, group, kind, clip, importance: as in `quantize`. Without
            `scales` a group's scale is chosen from the already updated weights when its first
            column is reached.
        order: int32 ``[K]``, the column processed at each step; needs `scales`.

    Returns:
        As `quantize`, columns in their natural order; and int32 ``[N]``, how many weights of a row
        were cut off: at their turn they lay beyond the outermost value of their group by more than
        half the distance from there to the next.

    Raises:
        ValueError: as `quantize`; a factor that is not finite or has no positive diagonal, an order
            that is no permutation or comes without scales, updated weights that overflow.
    """
    codes, out_scales, out_zeros, clipped = _ops.gptq_solve(
        w, u, codebook, scales, zeros, order, importance, bits, group, kind, clip
    )
    return codes, out_scales, out_zeros if out_zeros.numel() else None, clipped


def dequantize(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    codebook: Tensor | None = None,
    nested_scales: Tensor | None = None,
    nested_codebook: Tensor | None = None,
    nested_offset: Tensor | None = None,
    *,
    n: int,
    k: int,
    bits: int,
    group: int,
    kind: int,
) -> Tensor:
    """Canonical tensors to float32 ``[N, K]``: scale * codebook[code] or scale * (code - zero)."""
    return _ops.dequantize(
        codes, scales, zeros, codebook, nested_scales, nested_codebook, nested_offset,
        n, k, bits, group, kind,
    )  # fmt: skip


def double_quantize(scales: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float32 scales ``[N, G]`` to 8-bit codes with a second level of scales.

    Dettmers et al., arXiv 2305.14314, section 3, in bitsandbytes' form.

    Returns:
        scale_codes uint8 ``[N, G]``, nested_scales float32 ``[ceil(N*G/256)]``, nested_codebook
        float32 ``[256]``, nested_offset float32 ``[1]``.
    """
    return _ops.double_quantize(scales)


def pack_weight(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    nested_scales: Tensor | None = None,
    nested_codebook: Tensor | None = None,
    nested_offset: Tensor | None = None,
    *,
    n: int,
    k: int,
    bits: int,
    group: int,
    kind: int,
) -> Tensor:
    """Canonical tensors to the kernels' buffer, one uint8 tensor: a lossless permutation."""
    return _ops.pack_weight(
        codes, scales, zeros, nested_scales, nested_codebook, nested_offset,
        n, k, bits, group, kind,
    )  # fmt: skip


def unpack_weight(
    packed: Tensor, *, n: int, k: int, bits: int, group: int, kind: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The inverse of `pack_weight`; tensors that the kind does not have come back empty.

    Returns:
        codes, scales, zeros, nested_scales, nested_codebook, nested_offset.
    """
    return _ops.unpack_weight(packed, n, k, bits, group, kind)


def linear(
    x: Tensor,
    packed: Tensor,
    codebook: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    n: int,
    k: int,
    bits: int,
    group: int,
    kind: int,
) -> Tensor:
    """``x W^T + bias`` on a packed weight, without a dequantized copy of W.

    Computed in float32 whatever the dtype of `x` (float32, bfloat16, float16); a row's result
    depends neither on the other rows of `x` nor on the number of threads. Differentiable in `x`
    and `bias`.

    Args:
        x: ``[..., K]``.
        packed: from `pack_weight`.
        codebook: float32 ``[2**bits]`` or None.
        bias: ``[N]`` or None.

    Returns:
        ``[..., N]`` in x's dtype.
    """
    return apply_linear(x, packed, codebook, bias, n, k, bits, group, kind)


def apply_linear(
    x: Tensor, packed: Tensor, codebook: Tensor | None, bias: Tensor | None, *numbers: int
) -> Tensor:
    """`linear` as layers call it: n, k, bits, group, kind by position; follows autocast."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype == torch.float32:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if not torch.compiler.is_compiling() and is_transformed():
        return linear_function(x, packed, codebook, bias, *numbers)
    return _ops.linear(x, packed, codebook, bias, *numbers)


def confidence_state(rows: int, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tensors for `confidence_update`, uninitialised: the first tile starts them.

    Returns:
        sums float64 ``[M, 8]`` (csrc/core/confidence.h), argmax int64 ``[M]``, top values float32
        and top indices int64 ``[M, top_k]``.
    """
    return (
        torch.empty(rows, 8, dtype=torch.float64),
        torch.empty(rows, dtype=torch.int64),
        torch.empty(rows, top_k, dtype=torch.float32),
        torch.empty(rows, top_k, dtype=torch.int64),
    )


def confidence_update(
    sums: Tensor,
    argmax: Tensor,
    top_values: Tensor,
    top_indices: Tensor,
    logits: Tensor,
    labels: Tensor | None = None,
    other: Tensor | None = None,
    *,
    first: int = 0,
) -> None:
    """Add a vocabulary tile to the statistics of softmax(logits), in place.

    Args:
        sums, argmax, top_values, top_indices: from `confidence_state`; started anew when `first`
            is 0.
        logits: ``[M, columns]``, float32, bfloat16 or float16; tiles come in the order of their
            columns.
        labels: int64 ``[M]``, columns of the whole vocabulary; negative: none.
        other: ``[M, columns]`` of the same dtype, for the divergence from a second distribution.
        first: column of the whole vocabulary at which the tile begins. Tiles whose width is a
            multiple of 1,024 give the same bits as the whole vocabulary at once.

    Raises:
        ValueError: wrong shape or dtype.
    """
    _ops.confidence_update(sums, argmax, top_values, top_indices, logits, labels, other, first)
