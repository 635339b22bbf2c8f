"""Operators and their NumPy twins: every table x every format against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import calibit
import reference
from calibit import _C, ops

TABLES = [k["name"] for k in _C.kernels() if k["supported"]]
FORMATS = list(calibit.formats())
SHAPES = [(1, 1), (3, 7), (16, 32), (17, 65), (33, 200), (65, 129)]


def kind(scale: str, zero: str = "none") -> int:
    return ops.scale_kind(scale, zero)


def random_weight(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)


def codebook_of(name: str) -> np.ndarray | None:
    book = calibit.formats()[name].codebook
    return None if book is None else np.array(book, np.float32)


def zero_kinds(name: str) -> list[str]:
    return ["none", "u8", "f32"] if calibit.formats()[name].is_integer else ["none"]


CASES = [(f, z) for f in FORMATS for z in zero_kinds(f)]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("name", "zero"), CASES)
def test_quantize_matches_reference(table: str, name: str, zero: str) -> None:
    f = calibit.formats()[name]
    if f.scale_type == "e8m0":
        pytest.skip("power-of-two scales have a test of their own")
    for (n, k), group in zip(SHAPES, [32, 0, 64, 32, 128, 48], strict=True):
        w = random_weight(n, k)
        book = codebook_of(name)
        codes, scales, zeros = _C.quantize(
            w, f.bits, group, kind(f.scale_type, zero), codebook=book, kernels=table
        )
        want = reference.quantize(w, f.bits, group, zero, book)
        np.testing.assert_allclose(scales.astype(np.float64), want.scales, rtol=1e-7)
        got = reference.unstream(codes, k, f.bits)
        # Values on a rounding boundary may fall either way in float32: their error is then equal.
        differs = got != want.codes
        assert differs.mean() < 0.01
        q = reference.Quantized(got, want.scales, None if zeros is None else zeros)
        here = np.abs(reference.values(q, f.bits, group, book) - w)
        best = np.abs(reference.values(want, f.bits, group, book) - w)
        assert (here[differs] <= best[differs] + 1e-5).all()


@pytest.mark.parametrize("table", TABLES)
def test_power_of_two_scales(table: str) -> None:
    w = random_weight(9, 96)
    codes, scales, _ = _C.quantize(
        w, 4, 32, kind("e8m0"), codebook=codebook_of("mxfp4"), kernels=table
    )
    largest = np.abs(w.reshape(9, 3, 32)).max(-1)
    assert (scales == np.floor(np.log2(largest)) - 2 + 127).all()
    scale = np.repeat(2.0 ** (scales.astype(float) - 127), 32, axis=1)
    clipped = np.clip(w, -6 * scale, 6 * scale)
    got = np.array(reference.E2M1)[reference.unstream(codes, 96, 4)] * scale
    nearest = np.abs(clipped[..., None] / scale[..., None] - reference.E2M1).min(-1) * scale
    np.testing.assert_allclose(np.abs(got - clipped), nearest, atol=1e-6)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("name", "zero"), CASES)
@pytest.mark.parametrize("m", [1, 2, 5, 6, 7, 33])
def test_linear_matches_reference(table: str, name: str, zero: str, m: int) -> None:
    f = calibit.formats()[name]
    group = 32 if f.scale_type == "e8m0" else 64
    for n, k in [(1, 1), (17, 65), (80, 200)]:
        w, x = random_weight(n, k), random_weight(m, k, 1)
        bias = random_weight(1, n, 2)[0]
        book, number = codebook_of(name), kind(f.scale_type, zero)
        codes, scales, zeros = _C.quantize(w, f.bits, group, number, codebook=book)
        packed = _C.pack_weight(codes, scales, n, k, f.bits, group, number, zeros=zeros)
        y = _C.linear(
            x, packed, n, k, f.bits, group, number, codebook=book, bias=bias, kernels=table
        )
        real = (
            scales.astype(np.float64)
            if f.scale_type != "e8m0"
            else 2.0 ** (scales.astype(float) - 127)
        )
        q = reference.Quantized(reference.unstream(codes, k, f.bits), real, zeros)
        wq = reference.values(q, f.bits, group, book)
        # float32 sums of at most 128 terms, then a rounding per group: (128 + G + 8) ulp
        bound = (
            (136 + k / group) * 2.0**-24 * (np.abs(x).astype(float) @ np.abs(wq).T + np.abs(bias))
        )
        assert (np.abs(y - (x.astype(float) @ wq.T + bias)) <= bound + 1e-6).all()


@pytest.mark.parametrize("table", TABLES)
def test_a_row_does_not_depend_on_its_batch(table: str) -> None:
    n, k = 80, 200
    number = kind("f32")
    codes, scales, _ = _C.quantize(random_weight(n, k), 4, 64, number, codebook=codebook_of("nf4"))
    packed = _C.pack_weight(codes, scales, n, k, 4, 64, number)
    x = random_weight(70, k, 3)
    run = lambda rows: _C.linear(  # noqa: E731
        rows, packed, n, k, 4, 64, number, codebook=codebook_of("nf4"), kernels=table
    )
    whole = run(x)
    for count in (1, 2, 3, 6, 13, 64):
        assert (run(x[:count]) == whole[:count]).all()


def test_result_does_not_depend_on_threads() -> None:
    q = calibit.quantize(random_weight(300, 512), "nf4-dq")
    x = torch.from_numpy(random_weight(5, 512, 1))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(
            (calibit.quantize(random_weight(300, 512), "nf4-dq").codes, calibit.linear(x, q))
        )
    torch.set_num_threads(before)
    for codes, y in results[1:]:
        assert torch.equal(codes, results[0][0]) and torch.equal(y, results[0][1])


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 70), k=st.integers(1, 200), bits=st.integers(1, 8),
    group=st.sampled_from([0, 8, 32, 40, 64, 128, 1000]),
    scale=st.sampled_from(["f32", "f16", "e8m0", "nested"]),
    zero=st.sampled_from(["none", "u8", "f32"]),
    seed=st.integers(0, 2**20),
)  # fmt: skip
def test_pack_weight_is_a_permutation(n, k, bits, group, scale, zero, seed) -> None:
    random = torch.Generator().manual_seed(seed)
    number, g = kind(scale, zero), len(reference.column_groups(k, group))

    def byte(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)

    raw = torch.randint(0, 2**bits, (n, k), generator=random).numpy()
    codes = torch.from_numpy(reference.bit_stream(raw, bits))
    scales = {
        "f32": byte(n, g).float() / 3, "f16": byte(n, g).half(),
        "e8m0": byte(n, g), "nested": byte(n, g),
    }[scale]  # fmt: skip
    zeros = {"none": None, "u8": byte(n, g), "f32": torch.rand(n, g, generator=random)}[zero]
    nested = (
        (torch.rand(-(-n * g // 256), generator=random), torch.rand(256, generator=random),
         torch.rand(1, generator=random))
        if scale == "nested" else (None, None, None)
    )  # fmt: skip
    form = {"n": n, "k": k, "bits": bits, "group": group, "kind": number}
    packed = ops.pack_weight(codes, scales, zeros, *nested, **form)
    back = ops.unpack_weight(packed, **form)
    for put, got in zip((codes, scales, zeros, *nested), back, strict=True):
        assert got.numel() == 0 if put is None else torch.equal(put, got)
    assert torch.equal(ops.pack_weight(*[t if t.numel() else None for t in back], **form), packed)


def operator_arguments() -> dict[str, tuple]:
    """One call of every operator."""
    w, h = torch.from_numpy(random_weight(20, 70)), torch.eye(70)
    q = calibit.quantize(w, "nf4-dq")
    numbers = tuple(q.layout.values())
    nested = (q.nested_scales, q.nested_codebook, q.nested_offset)
    x = torch.randn(3, 70, requires_grad=True)
    bias = torch.randn(20, requires_grad=True)
    plain = kind("f16", "u8")
    confidence = tuple(t.zero_() for t in ops.confidence_state(20, 2))
    return {
        "quantize": (w, None, None, None, None, 4, 32, plain, False),
        "gptq_solve": (w, h, q.codebook, None, None, None, None, 4, 64, kind("f32"), False),
        "dequantize": (q.codes, q.scales, None, q.codebook, *nested, *numbers),
        "double_quantize": (torch.rand(20, 3),),
        "pack_weight": (q.codes, q.scales, None, *nested, *numbers),
        "unpack_weight": (q.pack(), *numbers),
        "linear": (x, q.pack(), q.codebook, bias, *numbers),
        "linear_input_grad": (
            torch.randn(3, 20, requires_grad=True),
            q.pack(),
            q.codebook,
            *numbers,
        ),
        "confidence_update": (*confidence, w, torch.arange(20), w + 1, 0),
    }


def test_every_operator_is_covered_by_opcheck() -> None:
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names()
                  if name.startswith("calibit::")}  # fmt: skip
    assert registered == set(operator_arguments())


@pytest.mark.parametrize("name", list(operator_arguments()))
def test_opcheck(name: str) -> None:
    op = getattr(torch.ops.calibit, name).default
    torch.library.opcheck(op, operator_arguments()[name])


def test_no_schema_has_a_list_of_ints() -> None:
    for name in operator_arguments():
        schema = str(getattr(torch.ops.calibit, name).default._schema)
        assert "int[]" not in schema and "SymInt[]" not in schema


@pytest.mark.parametrize("scheme", ["nf4", "int4-g32-asym", "int3-g32-fzero", "fp4-dq", "mxfp4"])
def test_gradients_of_x_and_bias(scheme: str) -> None:
    q = calibit.quantize(random_weight(20, 70), scheme)
    x = torch.randn(2, 3, 70, requires_grad=True)
    bias = torch.randn(20, requires_grad=True)
    grad = torch.randn(2, 3, 20)
    calibit.linear(x, q, bias).backward(grad)
    torch.testing.assert_close(x.grad, grad @ q.dequantize(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias.grad, grad.sum((0, 1)))


def test_compiles_without_graph_break() -> None:
    layer = calibit.QuantizedLinear(calibit.quantize(random_weight(32, 64), "nf4"), torch.randn(32))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 64, requires_grad=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=0)
    compiled(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype: torch.dtype) -> None:
    q = calibit.quantize(random_weight(20, 70), "nf4")
    x = torch.randn(4, 70).to(dtype)
    assert torch.equal(calibit.linear(x, q), calibit.linear(x.float(), q).to(dtype))


def test_strided_and_empty_input() -> None:
    q = calibit.quantize(random_weight(20, 70), "nf4")
    x = torch.randn(70, 6).t()
    assert torch.equal(calibit.linear(x, q), calibit.linear(x.contiguous(), q))
    assert calibit.linear(torch.zeros(0, 70), q).shape == (0, 20)
    assert calibit.linear(torch.zeros(2, 0, 70), q).shape == (2, 0, 20)
    assert calibit.linear(torch.randn(70), q).shape == (20,)


WRONG = [
    ("linear", 0, torch.tensor(1.0), r"\[linear\] expected x with 1 to 8 dimensions, got 0"),
    ("linear", 0, torch.zeros((1,) * 9), r"\[linear\] expected x with 1 to 8 dimensions, got 9"),
    ("linear", 0, torch.randn(3, 71), r"\[linear\] expected x with a last dimension of 70, got 71"),
    ("linear", 0, torch.randint(0, 5, (3, 70)),
     r"\[linear\] expected x of dtype float32, bfloat16"),
    ("linear", 1, torch.zeros(9, dtype=torch.uint8),
     r"\[linear\] expected packed of shape \[\d+\], got \[9\]"),
    ("linear", 1, torch.zeros(9), r"\[linear\] expected packed of dtype uint8, got float32"),
    ("linear", 2, torch.zeros(8), r"\[linear\] expected codebook of shape \[16\], got \[8\]"),
    ("linear", 3, torch.zeros(19), r"\[linear\] expected bias of shape \[20\], got \[19\]"),
    ("linear", 6, 9, r"\[linear\] expected bits from 1 to 8, got 9"),
    ("linear", 7, -1, r"\[linear\] expected group >= 0"),
    ("linear", 8, 99, r"\[linear\] expected a known scale kind"),
    ("linear", 4, 0, r"\[linear\] expected a weight with at least one row"),
    ("linear_input_grad", 0, torch.randn(3, 21),
     r"\[linear_input_grad\] expected grad with a last dimension of 20"),
    ("quantize", 0, torch.randn(70), r"\[quantize\] expected w of shape \[N, K\]"),
    ("quantize", 0, torch.randn(3, 70).double(), r"\[quantize\] expected w of dtype float32"),
    ("quantize", 0, torch.full((2, 70), torch.nan),
     r"\[quantize\] expected finite weights.*row 0 of 2"),
    ("quantize", 0, torch.full((2, 70), 1e9),
     r"\[quantize\] expected weights whose scale fits float16"),
    ("quantize", 3, torch.zeros(20, 3), r"\[quantize\] expected zeros together with scales"),
    ("quantize", 2, torch.zeros(20, 4),
     r"\[quantize\] expected scales of dtype float16, got float32"),
    ("quantize", 4, torch.ones(70), r"\[quantize\] expected importance together with clip"),
    ("gptq_solve", 6, torch.ones(7), r"\[gptq_solve\] expected importance of shape \[70\]"),
    ("gptq_solve", 1, torch.zeros(70, 70),
     r"\[gptq_solve\] expected an upper factor with a positive diagonal"),
    ("gptq_solve", 1, torch.eye(7), r"\[gptq_solve\] expected u of shape \[70, 70\]"),
    ("gptq_solve", 5, torch.arange(70, dtype=torch.int32),
     r"\[gptq_solve\] expected scales together with an order"),
    ("dequantize", 1, torch.zeros(20, 3),
     r"\[dequantize\] expected scales of dtype uint8, got float32"),
    ("dequantize", 4, None, r"\[dequantize\] expected nested_scales float32 \[1\], got none"),
    ("pack_weight", 0, torch.zeros(20, 34, dtype=torch.uint8),
     r"\[pack_weight\] expected codes of shape \[20, 35\]"),
    ("unpack_weight", 0, torch.zeros(3, dtype=torch.uint8),
     r"\[unpack_weight\] expected packed of shape"),
    ("double_quantize", 0, torch.zeros(3), r"\[double_quantize\] expected scales of shape"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "at", "value", "message"), WRONG)
def test_wrong_input_is_named(name: str, at: int, value, message: str) -> None:
    arguments = list(operator_arguments()[name])
    arguments[at] = value
    with pytest.raises(ValueError, match=message):
        getattr(torch.ops.calibit, name)(*arguments)


def test_importance_must_be_finite_and_not_negative() -> None:
    for wrong in (-1.0, np.inf, np.nan):
        importance = np.ones(8, np.float32)
        importance[3] = wrong
        with pytest.raises(ValueError, match=r"\[quantize\] expected importance >= 0 .* at 3"):
            _C.quantize(random_weight(2, 8), 4, 8, kind("f16"), clip=True, importance=importance)


def test_twin_refuses_unknown_and_unsupported_kernels() -> None:
    with pytest.raises(ValueError, match=r"\[kernels\] expected one of .*'nope'"):
        _C.quantize(random_weight(2, 8), 4, 8, kind("f16"), kernels="nope")
    missing = [k["name"] for k in _C.kernels() if not k["supported"]]
    for table in missing:
        with pytest.raises(ValueError, match=r"\[kernels\] expected kernels that this CPU can run"):
            _C.quantize(random_weight(2, 8), 4, 8, kind("f16"), kernels=table)


def test_twins_equal_operators() -> None:
    w = random_weight(20, 70)
    q = calibit.quantize(w, "int4-g32-asym")
    number = kind("f16", "u8")
    codes, scales, zeros = _C.quantize(w, 4, 32, number)
    assert (codes == q.codes.numpy()).all() and (scales == q.scales.numpy()).all()
    assert (zeros == q.zeros.numpy()).all()
    assert (
        _C.dequantize(codes, scales, 20, 70, 4, 32, number, zeros=zeros) == q.dequantize().numpy()
    ).all()


def test_dynamic_map_and_double_quantization() -> None:
    scales = np.abs(random_weight(40, 17)) + 0.1
    codes, nested, book, offset = _C.double_quantize(scales)
    assert (book == reference.dynamic_map()).all()
    assert offset[0] == pytest.approx(scales.astype(float).mean(), rel=1e-6)
    blocks = scales.flatten() - offset[0]
    pad = np.pad(blocks, (0, -len(blocks) % 256)).reshape(-1, 256)
    np.testing.assert_allclose(nested, np.abs(pad).max(1), rtol=1e-6)
    normalised = pad / np.abs(pad).max(1, keepdims=True)
    nearest = np.abs(normalised.flatten()[: len(blocks), None] - book).min(1)
    got = np.abs(book[codes.flatten()] - normalised.flatten()[: len(blocks)])
    np.testing.assert_allclose(got, nearest, atol=2e-7)
