"""The built-in weight formats, as data read from the C++ registry; no table is typed twice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from calibit import _C

SCALE_TYPES: dict[str, int] = _C.scale_types
ZERO_TYPES: dict[str, int] = _C.zero_types

NESTED_BLOCK: int = _C.nested_block
"""Scales that share one second-level scale in double quantization."""


@dataclass(frozen=True)
class Format:
    """One weight format.

    Attributes:
        name: token in a scheme string, or the path of a codebook file.
        bits: of one code, 1 to 8.
        group: weights that share a scale by default.
        scale_type: how a scale is stored: ``f32``, ``f16`` or ``e8m0``.
        codebook: the ``2**bits`` values a code stands for, or None for integers, where a code c
            stands for ``c - 2**(bits - 1)`` (symmetric) or ``c - zero``.
    """

    name: str
    bits: int
    group: int
    scale_type: str
    codebook: tuple[float, ...] | None

    @property
    def is_integer(self) -> bool:
        """Whether codes are evenly spaced, so that a zero point makes sense."""
        return self.codebook is None


def active_kernels() -> str:
    """Name of the kernel table in use.

    Raises:
        ValueError: `CALIBIT_ISA` names a table that this build or this CPU lacks.
    """
    return next(str(table["name"]) for table in _C.kernels() if table["active"])


@cache
def formats() -> dict[str, Format]:
    """The built-in formats by name, straight from the C++ registry.

    Returns:
        ``{name: Format}`` in registry order.

    Example:
        >>> formats()["nf4"].bits, formats()["nf4"].group
        (4, 64)
    """
    names = {number: name for name, number in SCALE_TYPES.items()}
    return {
        f["name"]: Format(
            name=f["name"],
            bits=f["bits"],
            group=f["group"],
            scale_type=names[f["scale_type"]],
            codebook=None if f["codebook"] is None else tuple(map(float, f["codebook"])),
        )
        for f in _C.formats()
    }
