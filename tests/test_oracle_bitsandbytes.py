"""NF4, FP4 and double quantization against bitsandbytes' CPU functions, an outside oracle."""

from __future__ import annotations

import pytest
import torch

import calibit
from calibit.weight import QuantizedWeight

functional = pytest.importorskip(
    "bitsandbytes.functional", reason="bitsandbytes is not installed (extra 'dev')"
)

N, K = 256, 512
CASES = [(name, block) for name in ("nf4", "fp4") for block in (32, 64, 128)]


def weight() -> torch.Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("name", "block"), CASES)
def test_values_and_scales_are_equal(name: str, block: int) -> None:
    w = weight()
    packed, state = functional.quantize_4bit(w, blocksize=block, quant_type=name)
    ours = calibit.quantize(w, f"{name}-g{block}")
    assert torch.equal(ours.scales, state.absmax.reshape(N, -1))
    assert torch.equal(ours.dequantize(), functional.dequantize_4bit(packed, state))


def swap_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """bitsandbytes keeps the first element of a byte in the high half, the canonical form low."""
    rows = packed.reshape(N, K // 2)
    return (rows >> 4) | (rows << 4)


@pytest.mark.parametrize(("name", "block"), CASES)
def test_its_double_quantized_tensors_dequantize_here(name: str, block: int) -> None:
    packed, state = functional.quantize_4bit(
        weight(), blocksize=block, quant_type=name, compress_statistics=True
    )
    tensors = {
        "codes": swap_nibbles(packed),
        "scale_codes": state.absmax.reshape(N, -1),
        "nested_scales": state.state2.absmax,
        "nested_codebook": state.state2.code,
        "nested_offset": state.offset.reshape(1),
        "codebook": state.code,
    }
    q = QuantizedWeight.from_tensors(tensors, scheme=f"{name}-g{block}-dq", shape=(N, K))
    want = functional.dequantize_4bit(packed, state)
    ulp = torch.nextafter(want.abs(), torch.tensor(torch.inf)) - want.abs()
    assert ((q.dequantize() - want).abs() <= ulp).all()


@pytest.mark.parametrize(("name", "block"), CASES)
def test_nested_codes_differ_only_within_the_resolution_of_its_table(name: str, block: int) -> None:
    """Its CPU code looks normalised scales up in 65,536 equal steps over [-1, 1]; ours takes the
    nearest entry of the map. A scale within one such step of a midpoint may therefore differ."""
    w = weight()
    _, plain = functional.quantize_4bit(w, blocksize=block, quant_type=name)
    _, state = functional.quantize_4bit(
        w, blocksize=block, quant_type=name, compress_statistics=True
    )
    q = calibit.quantize(w, f"{name}-g{block}-dq")
    assert q.nested_codebook is not None and q.nested_scales is not None
    torch.testing.assert_close(q.nested_codebook, state.state2.code, rtol=1e-6, atol=0)
    torch.testing.assert_close(q.nested_scales, state.state2.absmax, rtol=1e-6, atol=0)
    nested = q.nested_scales.repeat_interleave(256)[: plain.absmax.numel()]
    x = (plain.absmax - state.offset) / nested
    ours = (q.nested_codebook[q.scales.flatten().int()] - x).abs()
    theirs = (state.state2.code[state.absmax.flatten().int()] - x).abs()
    assert (ours <= theirs + 1e-6).all()
    assert (theirs - ours).max() <= 2 * 2 / 65536
    assert (state.absmax.flatten() != q.scales.flatten()).float().mean() <= 1e-2
