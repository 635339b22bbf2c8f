"""quantize() and QuantizedWeight: canonical tensors, solvers, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calibit
import reference
from calibit import ops
from calibit.solver import factor
from calibit.weight import QuantizedWeight

SCHEMES = [
    "nf4", "nf4-dq", "fp4-g128", "fp4-dq", "mxfp4", "int2-g32", "int3-g64-asym", "int4-g128",
    "int4-g32-fzero", "int5-row", "int6-tensor", "int8", "int8-tensor-asym", "nf4-row-dq",
]  # fmt: skip


def weight(n: int = 20, k: int = 300, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32))


def hessian(k: int, seed: int = 1) -> torch.Tensor:
    x = np.random.default_rng(seed).normal(size=(4 * k, k)) * np.linspace(0.2, 3, k)
    return torch.from_numpy(x.T @ x)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tensors_rebuild_the_weight(scheme: str) -> None:
    q = calibit.quantize(weight(), scheme)
    again = QuantizedWeight.from_tensors(q.tensors(), scheme=str(q.scheme), shape=q.shape)
    assert torch.equal(again.dequantize(), q.dequantize())
    assert again.bits_per_weight == q.bits_per_weight


@pytest.mark.parametrize("scheme", SCHEMES)
def test_error_is_within_half_a_step(scheme: str) -> None:
    w = weight()
    q = calibit.quantize(w, scheme)
    error, f = (q.dequantize() - w).abs(), q.scheme.weight_format
    largest = w.abs().max()
    if f.codebook is None:
        steps = 2**f.bits - 1
        assert (
            error.max() <= largest / steps * 1.02
        )  # symmetric: the top value is clipped by half a step
    else:
        book = np.sort(np.array(f.codebook)) / np.abs(f.codebook).max()
        slack = (
            1.5 if f.scale_type == "e8m0" else 1.02
        )  # E2M1 clips up to 2 of 8 units; its gap is 2 of 6
        assert error.max() <= largest * np.diff(book).max() / 2 * slack


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [("nf4", 4.5), ("nf4-dq", 4.127), ("int4-g128", 4.125), ("int8", 8.125), ("fp4-dq", 4.127)],
)
def test_bits_per_weight_for_a_large_weight(scheme: str, bits: float) -> None:
    q = calibit.quantize(torch.randn(2048, 4096), scheme)
    assert q.bits_per_weight == pytest.approx(bits, abs=2e-3)


@pytest.mark.parametrize("group", ["g32", "g128", "row"])
def test_a_group_of_one_value_and_zero_rows_round_trip(group: str) -> None:
    w = torch.zeros(4, 100)
    w[1] = 0.75
    w[2] = -3
    # The largest symmetric code is 2^(b-1) - 1 of 2^(b-1) - 1/2 steps; float16 scales lose 2^-11.
    top = {"int4": 1 / 15, "int8": 1 / 255}
    for f in ("int4", "int4-asym", "int4-fzero", "nf4", "fp4", "int8", "int2-asym"):
        out = calibit.quantize(w, f"{f}-{group}").dequantize()
        assert torch.equal(out[0], torch.zeros(100)) and torch.equal(out[3], torch.zeros(100))
        rtol = top.get(f, 0) + 2**-11
        torch.testing.assert_close(out[1:3], w[1:3], rtol=rtol, atol=0)


def test_q4_1_weights_are_reproduced_exactly() -> None:
    """Real zero points recover a weight that lies on an affine grid of 16 values (GGUF's Q4_1)."""
    random = np.random.default_rng(3)
    scale = random.uniform(0.01, 0.1, (6, 4, 1)).astype(np.float16).astype(np.float32)
    low = random.uniform(-1, 0, (6, 4, 1)).astype(np.float16).astype(np.float32)
    codes = random.integers(0, 16, (6, 4, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    w = (codes * scale + low).reshape(6, 128).astype(np.float32)
    out = calibit.quantize(w, "int4-g32-fzero").dequantize().numpy()
    np.testing.assert_allclose(out, w, atol=3e-7)


def test_group_larger_than_the_row_means_one_per_row() -> None:
    w = weight(k=50)
    a, b = calibit.quantize(w, "int4-g128"), calibit.quantize(w, "int4-row")
    assert torch.equal(a.codes, b.codes) and torch.equal(a.scales, b.scales)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_double_quantized_scales_are_used_unchanged_by_the_codes(name: str) -> None:
    w = weight(30, 256)
    q = calibit.quantize(w, f"{name}-dq")
    scales = ops.dequantize(
        torch.full((30, 256 // 64), 255, dtype=torch.uint8), q.scales, None, None,
        q.nested_scales, q.nested_codebook, q.nested_offset,
        n=30, k=4, bits=8, group=1, kind=ops.scale_kind("nested"),
    ) / 127  # fmt: skip
    normalised = w.reshape(30, 4, 64) / scales[..., None]
    book = torch.tensor(q.scheme.weight_format.codebook)
    best = (normalised[..., None] - book).abs().min(-1).values
    got = (q.dequantize().reshape(30, 4, 64) / scales[..., None] - normalised).abs()
    torch.testing.assert_close(got, best, atol=2e-6, rtol=0)


@pytest.mark.parametrize("scheme", ["gptq-int4-g32", "gptq-nf4-g32", "gptq-int3-row-asym"])
def test_gptq_equals_the_definition_by_elimination(scheme: str) -> None:
    w, h = weight(6, 64), hessian(64)
    q = calibit.quantize(w, scheme, hessian=h)
    f, scales, zeros = q.scheme.weight_format, q.scales.double().numpy(), q.zeros
    group = q.scheme.group or 64

    def round_column(values: np.ndarray, c: int) -> np.ndarray:
        s = scales[:, c // group]
        if f.codebook is not None:
            book = np.array(f.codebook, np.float64)
            return book[np.abs(values[:, None] / s[:, None] - book).argmin(1)] * s
        z = 2 ** (f.bits - 1) if zeros is None else zeros.double().numpy()[:, c // group]
        return (np.clip(np.rint(values / s) + z, 0, 2**f.bits - 1) - z) * s

    want = reference.gptq(w.numpy(), h.numpy(), round_column)
    agree = np.isclose(q.dequantize().numpy(), want, atol=1e-5)
    assert agree.mean() > 0.995  # a value on a boundary may round either way in float32

    def proxy(e: np.ndarray) -> float:
        return float(np.einsum("nk,kl,nl->", e, h.numpy(), e))

    gptq_loss = proxy(q.dequantize().double().numpy() - w.double().numpy())
    assert gptq_loss == pytest.approx(proxy(want - w.double().numpy()), rel=1e-2)
    nearest = calibit.quantize(w, scheme.removeprefix("gptq-"))
    assert gptq_loss < proxy(nearest.dequantize().double().numpy() - w.double().numpy())


def test_activation_order_keeps_the_natural_groups() -> None:
    w, h = weight(10, 96), hessian(96)
    q = calibit.quantize(w, "gptq-int4-g32-actorder", hessian=h)
    nearest = calibit.quantize(w, "int4-g32")
    assert q.input_order is None and torch.equal(q.scales, nearest.scales)
    order = factor(h, activation_order=True).order
    assert torch.equal(order, h.diagonal().argsort(descending=True, stable=True))
    first = int(order[0])
    assert torch.equal(q.dequantize()[:, first], nearest.dequantize()[:, first])


def test_weights_of_dead_inputs_are_rounded_to_nearest() -> None:
    h = hessian(64)
    h[5], h[:, 5] = 0, 0
    q = calibit.quantize(weight(6, 64), "gptq-int4-g32-actorder", hessian=h)
    nearest = calibit.quantize(weight(6, 64), "int4-g32")
    assert torch.equal(q.dequantize()[:, 5], nearest.dequantize()[:, 5])
    assert any("always zero: rounded to nearest" in note for note in q.notes)


def test_input_order_permutes_the_columns_of_x() -> None:
    q = calibit.quantize(weight(6, 64), "int4-g32")
    order = torch.randperm(64, dtype=torch.int32)
    permuted = QuantizedWeight.from_tensors(
        q.tensors() | {"input_order": order}, scheme="int4-g32", shape=q.shape
    )
    x = torch.randn(3, 64)
    want = x @ permuted.dequantize().t()
    torch.testing.assert_close(calibit.linear(x, permuted), want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(want, x[:, order] @ q.dequantize().t(), rtol=1e-5, atol=1e-4)


def test_numpy_and_half_precision_weights() -> None:
    w = weight().to(torch.bfloat16)
    a, b = calibit.quantize(w, "nf4"), calibit.quantize(w.float().numpy(), "nf4")
    assert torch.equal(a.codes, b.codes)
    strided = weight(300, 20).t()
    assert torch.equal(
        calibit.quantize(strided, "nf4").codes, calibit.quantize(strided.contiguous(), "nf4").codes
    )


@pytest.mark.parametrize(
    ("value", "scheme", "message"),
    [
        (torch.zeros(3), "nf4", r"\[quantize\] expected a weight \[N, K\]"),
        (torch.zeros(0, 3), "nf4", r"\[quantize\] expected a weight \[N, K\]"),
        (torch.zeros(3, 4, dtype=torch.int32), "nf4", "floating-point weight"),
        (torch.zeros(3, 4, device="meta"), "nf4", "meta device"),
        (torch.full((3, 4), torch.inf), "nf4", "NaN or infinity in row 0"),
        (torch.zeros(3, 4), "bf16", "expected a quantized format"),
        (torch.zeros(3, 4), "gptq-int4", r"expected hessian= \[4, 4\]"),
    ],
)
def test_quantize_refuses(value: torch.Tensor, scheme: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibit.quantize(value, scheme)


def test_from_tensors_refuses_what_does_not_fit() -> None:
    tensors = calibit.quantize(weight(), "nf4").tensors()
    cases = [
        ({"scales": None}, "missing"),
        ({"extra": torch.zeros(1)}, "unknown"),
        ({"codes": torch.zeros(20, 3, dtype=torch.uint8)}, "expected codes of shape"),
        ({"input_order": torch.zeros(300, dtype=torch.int32)}, "permutation"),
        ({"input_order": torch.zeros(3, dtype=torch.int32)}, "input_order int32"),
    ]
    for change, message in cases:
        merged = {n: t for n, t in (tensors | change).items() if t is not None}
        with pytest.raises(ValueError, match=message):
            QuantizedWeight.from_tensors(merged, scheme="nf4", shape=(20, 300))


@pytest.mark.parametrize("value", [[[1.0]], None, 1.5])
def test_weight_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"\[quantize\] expected a torch tensor or a NumPy array"):
        calibit.quantize(value, "nf4")  # type: ignore[arg-type]


def test_arrays_in_any_layout_are_read() -> None:
    w = weight(6, 64).numpy()
    frozen = w.copy()
    frozen.flags.writeable = False
    for same in (w[::-1][::-1], w.astype(">f4"), np.asfortranarray(w), w.astype("f8"), frozen):
        assert torch.equal(calibit.quantize(same, "nf4").codes, calibit.quantize(w, "nf4").codes)
    for wrong in (w.astype(np.int32), w.astype(object), w.astype(complex)):
        with pytest.raises(ValueError, match="expected a floating-point weight"):
            calibit.quantize(wrong, "nf4")
