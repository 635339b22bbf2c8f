"""
Core of calibit: NumPy twins of the operators, formats, kernels, build facts.
"""

from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing

__all__: list[str] = [
    "Pcg64",
    "build_info",
    "confidence",
    "dequantize",
    "double_quantize",
    "formats",
    "gptq_solve",
    "kernels",
    "linear",
    "nested_block",
    "pack_weight",
    "packed_bytes",
    "permuted_group_sums",
    "quantize",
    "resampled_bin_sums",
    "resampled_group_sums",
    "resampled_prefix_sums",
    "resampled_ranking",
    "resampled_sums",
    "scale_types",
    "signed_group_sums",
    "zero_types",
]

class Pcg64:
    """
    NumPy's default generator, for draws in bulk.
    """
    def __init__(
        self,
        seed: typing.Annotated[
            collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"
        ],
    ) -> None: ...
    def counts(
        self,
        units: typing.SupportsInt | typing.SupportsIndex,
        rows: typing.SupportsInt | typing.SupportsIndex,
    ) -> numpy.ndarray:
        """
        How often each unit occurs in the next resamples, float64 [rows, units].
        """

def build_info() -> dict:
    """
    Facts about this build.
    """

def confidence(
    logits: numpy.ndarray,
    *,
    labels: numpy.ndarray | None = None,
    other: numpy.ndarray | None = None,
    top_k: typing.SupportsInt | typing.SupportsIndex = 0,
    kernels: str = "",
) -> tuple:
    """
    Softmax statistics of rows [M, V]: (sums float64 [M, 8], argmax, top values, indices).
    """

def dequantize(
    codes: numpy.ndarray,
    scales: numpy.ndarray,
    n: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex,
    bits: typing.SupportsInt | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
    scale_kind: typing.SupportsInt | typing.SupportsIndex,
    *,
    zeros: numpy.ndarray | None = None,
    codebook: numpy.ndarray | None = None,
    nested_scales: numpy.ndarray | None = None,
    nested_codebook: numpy.ndarray | None = None,
    nested_offset: numpy.ndarray | None = None,
    kernels: str = "",
) -> numpy.ndarray:
    """
    Canonical arrays to float32 [N, K].
    """

def double_quantize(scales: numpy.ndarray) -> tuple:
    """
    float32 scales [N, G] to (codes, nested_scales, nested_codebook, nested_offset).
    """

def formats() -> list:
    """
    The built-in formats.
    """

def gptq_solve(
    w: numpy.ndarray,
    u: numpy.ndarray,
    bits: typing.SupportsInt | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
    scale_kind: typing.SupportsInt | typing.SupportsIndex,
    *,
    codebook: numpy.ndarray | None = None,
    scales: numpy.ndarray | None = None,
    zeros: numpy.ndarray | None = None,
    order: numpy.ndarray | None = None,
    clip: bool = False,
    importance: numpy.ndarray | None = None,
    kernels: str = "",
) -> tuple:
    """
    GPTQ column solver: (codes, scales, zeros or None, weights cut off per row).
    """

def kernels() -> list:
    """
    The kernel tables of this build, best first.
    """

def linear(
    x: numpy.ndarray,
    packed: numpy.ndarray,
    n: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex,
    bits: typing.SupportsInt | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
    scale_kind: typing.SupportsInt | typing.SupportsIndex,
    *,
    codebook: numpy.ndarray | None = None,
    bias: numpy.ndarray | None = None,
    kernels: str = "",
) -> numpy.ndarray:
    """
    Fused x W^T + bias on a packed weight, float32 [M, K] to [M, N].
    """

def pack_weight(
    codes: numpy.ndarray,
    scales: numpy.ndarray,
    n: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex,
    bits: typing.SupportsInt | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
    scale_kind: typing.SupportsInt | typing.SupportsIndex,
    *,
    zeros: numpy.ndarray | None = None,
    nested_scales: numpy.ndarray | None = None,
    nested_codebook: numpy.ndarray | None = None,
    nested_offset: numpy.ndarray | None = None,
) -> numpy.ndarray:
    """
    Canonical arrays to the kernels' buffer.
    """

def packed_bytes(
    n: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex,
    bits: typing.SupportsInt | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
    scale_kind: typing.SupportsInt | typing.SupportsIndex,
) -> int:
    """
    Size of the kernels' buffer.
    """

def permuted_group_sums(
    offsets: typing.Annotated[numpy.typing.ArrayLike, numpy.int64],
    unit: typing.Annotated[numpy.typing.ArrayLike, numpy.int32],
    values: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
    rows: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.Annotated[
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"
    ],
) -> numpy.ndarray:
    """
    Sum and squares per group after random permutations, float64 [rows, S, 2].
    """

def quantize(
    w: numpy.ndarray,
    bits: typing.SupportsInt | typing.SupportsIndex,
    group: typing.SupportsInt | typing.SupportsIndex,
    scale_kind: typing.SupportsInt | typing.SupportsIndex,
    *,
    codebook: numpy.ndarray | None = None,
    scales: numpy.ndarray | None = None,
    zeros: numpy.ndarray | None = None,
    clip: bool = False,
    importance: numpy.ndarray | None = None,
    kernels: str = "",
) -> tuple:
    """
    Nearest rounding: (codes, scales, zeros or None).
    """

def resampled_bin_sums(
    unit: typing.Annotated[numpy.typing.ArrayLike, numpy.int32],
    first: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
    second: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
    bins: typing.SupportsInt | typing.SupportsIndex,
    units: typing.SupportsInt | typing.SupportsIndex,
    resamples: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.Annotated[
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"
    ],
    *,
    end: typing.Annotated[numpy.typing.ArrayLike, numpy.int32] | None = None,
    last: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8] | None = None,
) -> numpy.ndarray:
    """
    Count and sums per bin over bootstrap resamples, float64 [M, resamples, bins, 3].
    """

def resampled_group_sums(
    offsets: typing.Annotated[numpy.typing.ArrayLike, numpy.int64],
    unit: typing.Annotated[numpy.typing.ArrayLike, numpy.int32],
    value: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
    units: typing.SupportsInt | typing.SupportsIndex,
    resamples: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.Annotated[
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"
    ],
) -> numpy.ndarray:
    """
    Count, sum and squares per group over bootstrap resamples, float64 [resamples, S, 3].
    """

def resampled_prefix_sums(
    unit: typing.Annotated[numpy.typing.ArrayLike, numpy.int32],
    values: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
    share: typing.SupportsFloat | typing.SupportsIndex,
    units: typing.SupportsInt | typing.SupportsIndex,
    resamples: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.Annotated[
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"
    ],
) -> numpy.ndarray:
    """
    Sum over the first share of the copies and over all, float64 [resamples, 2].
    """

def resampled_ranking(
    unit: typing.Annotated[numpy.typing.ArrayLike, numpy.int32],
    correct: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
    last: typing.Annotated[numpy.typing.ArrayLike, numpy.uint8],
    units: typing.SupportsInt | typing.SupportsIndex,
    resamples: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.Annotated[
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"
    ],
) -> numpy.ndarray:
    """
    AUROC, AURC and excess AURC over bootstrap resamples, float64 [resamples, 3].
    """

def resampled_sums(
    units: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
    resamples: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.Annotated[
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"
    ],
) -> numpy.ndarray:
    """
    Sums of columns [N, m] over bootstrap resamples, float64 [resamples, m].
    """

def signed_group_sums(
    offsets: typing.Annotated[numpy.typing.ArrayLike, numpy.int64],
    unit: typing.Annotated[numpy.typing.ArrayLike, numpy.int32],
    value: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
    units: typing.SupportsInt | typing.SupportsIndex,
    rows: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.Annotated[
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"
    ],
) -> numpy.ndarray:
    """
    Sums per group under random signs of the units, float64 [rows, S].
    """

nested_block: int = 256
scale_types: dict = {"f32": 0, "f16": 1, "e8m0": 2, "nested": 3}
zero_types: dict = {"none": 0, "u8": 1, "f32": 2}
