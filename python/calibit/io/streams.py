"""Codes in bit streams: element i of a row lies at bits ``bits*i`` and up, lowest bit first.

The canonical codes are such streams, and so are the 32-bit words of GPTQ and compressed-tensors
files on a little-endian machine. The planar words of GPTQModel are another order of the same bits.
"""

from __future__ import annotations

import numpy as np
import torch

Tensor = torch.Tensor

WORD = 32
"""Bits of the words that foreign files pack codes into."""

PLANES: dict[int, tuple[int, ...]] = {
    2: (2,),
    3: (2, 1),
    4: (4,),
    5: (4, 1),
    6: (4, 2),
    7: (4, 2, 1),
    8: (8,),
}
"""Widths of the bit planes of a code in GPTQModel's planar words, lowest bits first."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes to streams.

    Args:
        codes: uint8 ``[R, C]``, each below ``2**bits``.
        bits: 1 to 8.

    Returns:
        uint8 ``[R, ceil(C*bits/8)]``; the bits after the last code are zero.
    """
    rows, count = codes.shape
    blocks = -(-count // 8)
    padded = np.zeros((rows, blocks * 8), np.uint8)
    padded[:, :count] = codes.numpy()
    eights = padded.reshape(rows, blocks, 8)
    words = np.zeros((rows, blocks), "<u8")  # eight codes fill `bits` bytes
    for i in range(8):
        words |= eights[..., i].astype("<u8") << np.uint64(i * bits)
    stream = words.view(np.uint8).reshape(rows, blocks, 8)[..., :bits].reshape(rows, blocks * bits)
    return torch.from_numpy(np.ascontiguousarray(stream[:, : -(-count * bits // 8)]))


def unpack(stream: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`.

    Args:
        stream: uint8 ``[R, B]`` with ``8 * B >= count * bits``.
        bits: 1 to 8.
        count: codes in a row.

    Returns:
        uint8 ``[R, count]``.
    """
    rows, blocks = stream.shape[0], -(-count // 8)
    used = min(stream.shape[1], blocks * bits)
    padded = np.zeros((rows, blocks * bits), np.uint8)
    padded[:, :used] = stream[:, :used].numpy()
    words = np.zeros((rows, blocks, 8), np.uint8)
    words[..., :bits] = padded.reshape(rows, blocks, bits)
    whole = words.view("<u8")[..., 0]
    codes = np.empty((rows, blocks, 8), np.uint8)
    for i in range(8):
        codes[..., i] = (whole >> np.uint64(i * bits)) & np.uint64(2**bits - 1)
    return torch.from_numpy(np.ascontiguousarray(codes.reshape(rows, -1)[:, :count]))


def to_words(stream: Tensor) -> Tensor:
    """Streams uint8 ``[R, B]`` as int32 ``[R, ceil(B/4)]``, filled up with zeros."""
    rows, used = stream.shape
    filled = torch.zeros(rows, used + -used % 4, dtype=torch.uint8)
    filled[:, :used] = stream
    return filled.view(torch.int32)


def from_words(words: Tensor) -> Tensor:
    """int32 ``[R, W]`` as streams uint8 ``[R, 4*W]``."""
    return words.contiguous().view(torch.uint8)


def unpack_planar(words: Tensor, bits: int, count: int) -> Tensor:
    """Codes of GPTQModel's planar words (its docs/gptq_planar.md).

    32 codes lie in `bits` words: one plane of low bits after another (`PLANES`), each plane a
    stream of its own.

    Args:
        words: int32 ``[R, count*bits/32]``.
        bits: 2 to 8.
        count: codes in a row, a multiple of 32.

    Returns:
        uint8 ``[R, count]``.
    """
    rows, blocks = words.shape[0], count // WORD
    grouped = words.reshape(rows * blocks, bits)
    codes = torch.zeros(rows * blocks, WORD, dtype=torch.uint8)
    low = 0
    for width in PLANES[bits]:
        plane = from_words(grouped[:, low : low + width])
        codes |= unpack(plane, width, WORD) << low
        low += width
    return codes.reshape(rows, count)
