"""Schemes that round the input of a layer: a8, w8a8, LLM.int8()."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import calibit
import tiny_models
from calibit import activations, schemes
from calibit.io import native
from calibit.quantization import quantize_model


def slow_rounded(x: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """Token by token, entry by entry. `columns` are left out of scale and rounding."""
    out = np.array(x, dtype=np.float64)
    for row in range(x.shape[0]):
        below = [abs(float(v)) for v in x[row] if columns is None or abs(v) < activations.OUTLIER]
        scale = np.float64(np.float32(max(below, default=0.0)) / np.float32(127))
        for k in range(x.shape[1]):
            if columns is not None and columns[k]:
                out[row, k] = np.float64(np.float16(x[row, k]))
            elif scale > 0:
                out[row, k] = np.rint(np.float64(x[row, k]) / scale) * scale
    return out


def inputs(rows: int = 6, columns: int = 96) -> torch.Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))
    x[1] = 0
    x[2] *= 1e-20
    return x


def test_tokens_are_rounded_by_their_largest_entry() -> None:
    x = inputs()
    found = activations.prepare(x, schemes.parse("nf4-a8"))
    # A float32 quotient may fall on the other side of a tie: at most one step, at few entries.
    want, step = slow_rounded(x.numpy()), x.abs().amax(1, keepdim=True).numpy() / 127
    assert (np.abs(found.numpy() - want) <= 1.01 * step).all()
    assert (np.abs(found.numpy() - want) > 1e-6 * np.abs(want)).mean() < 0.01
    assert not found[1].any() and bool((found[2] != 0).any())


def test_columns_with_an_outlier_stay() -> None:
    x = inputs()
    x[3, 7], x[4, 50], x[5, 7] = 20.3, -6.0, 0.1234567
    found = activations.prepare(x, schemes.parse("llm-int8"))
    columns = (x.abs() >= 6).any(0).numpy()
    assert columns.nonzero()[0].tolist() == [7, 50]
    want = slow_rounded(x.numpy(), columns)
    step = np.where(np.abs(x.numpy()) < 6, np.abs(x.numpy()), 0).max(1, keepdims=True) / 127
    assert (np.abs(found.numpy() - want) <= 1.01 * step).all()
    assert (np.abs(found.numpy() - want) > 1e-6 * np.abs(want)).mean() < 0.01
    assert found[5, 7] == float(np.float16(0.1234567))
    whole = activations.prepare(x, schemes.parse("w8a8"))  # one outlier spoils its token
    assert (whole[3] - x[3]).abs().max() > 5 * (found[3] - x[3]).abs().max()


@pytest.mark.parametrize("scheme", ["nf4-a8", "llm-int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layer_multiplies_the_rounded_input(scheme: str, dtype: torch.dtype) -> None:
    w = torch.randn(40, 96, generator=torch.Generator().manual_seed(1))
    q = calibit.quantize(w, scheme)
    layer = calibit.QuantizedLinear.from_weight(q)
    x = inputs().reshape(2, 3, 96).to(dtype)
    want = activations.prepare(x, q.scheme).double() @ q.dequantize().double().T
    for found in (layer(x), calibit.linear(x, q)):
        assert found.dtype == dtype and found.shape == (2, 3, 40)
        limit = 4 * torch.finfo(dtype).eps * want.abs().max() + 1e-5 * want.abs().max()
        assert float((found.double() - want).abs().max()) <= float(limit)


def test_gradient_is_that_of_the_identity() -> None:
    q = calibit.quantize(torch.randn(40, 96), "nf4-a8")
    x = inputs().requires_grad_()
    calibit.linear(x, q).sum().backward()
    want = q.dequantize().sum(0).expand(6, 96)
    assert x.grad is not None and torch.allclose(x.grad, want, atol=1e-4)


def test_spellings() -> None:
    assert str(schemes.parse("w8a8")) == "int8-row-a8" == str(schemes.parse("a8-row-int8"))
    assert str(schemes.parse("INT8-LLM")) == "llm-int8"
    assert schemes.parse("llm-int8") == schemes.parse(str(schemes.parse("llm-int8")))
    assert str(schemes.parse("gptq-int4-g64-a8")) == "gptq-int4-g64-a8"
    for wrong in ("llm-int4", "llm-int8-g64", "gptq-llm-int8", "llm-int8-asym", "llm-nf4"):
        with pytest.raises(ValueError, match=r"write llm-int8, alone or with head"):
            schemes.parse(wrong)
    with pytest.raises(ValueError, match="takes no other token"):
        schemes.parse("bf16-a8")


def test_row_scales_of_llm_int8() -> None:
    """max|w| / 127 in float32, codes -127..127; a row of zeros stays zero."""
    w = torch.randn(20, 64, generator=torch.Generator().manual_seed(5))
    w[3] = 0
    q = calibit.quantize(w, "llm-int8")
    scale = (w.abs().amax(1, keepdim=True) / 127).where(w.any(1, keepdim=True), torch.ones(1))
    assert torch.equal(q.scales, scale)
    want = (w.double() / scale.double()).round() * scale.double()
    assert float((q.dequantize() - want).abs().max()) < 1e-6
    assert not q.dequantize()[3].any() and q.bits_per_weight == 8 + 32 / 64


def test_weights_are_those_of_bitsandbytes() -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(5)).half().float()
    q = calibit.quantize(w, "llm-int8")
    codes, statistics, _ = bnb.functional.int8_vectorwise_quant(w.half())
    assert torch.equal(statistics.float() / 127, q.scales[:, 0])
    own = (q.dequantize() / q.scales).round()
    different = own != codes.float()
    assert float((own - codes.float()).abs().max()) <= 1
    assert float(different.float().mean()) < 0.01  # it divides in float16


@pytest.mark.parametrize("scheme", ["llm-int8", "w8a8", "gptq-int4-g16-a8"])
def test_a_model_comes_back_from_its_folder(scheme: str, tmp_path: Path) -> None:
    model = tiny_models.build("llama").eval()
    plain = copy.deepcopy(model)
    report = quantize_model(model, scheme, calibration=tiny_models.tokens(8, 32))
    native.save(model, tmp_path / "model")
    again = native.load(tmp_path / "model")
    ids = tiny_models.tokens(2, 20)
    first, second = tiny_models.logits(model, ids), tiny_models.logits(again, ids)
    assert torch.equal(first, second) and report.scheme == str(schemes.parse(scheme))
    assert not torch.equal(first, tiny_models.logits(plain, ids))


@pytest.mark.parametrize(
    ("scheme", "layout"),
    [("int4-g16-a8", "gptq"), ("llm-int8", "int-quantized"), ("w8a8", "compressed-tensors")],
)
def test_layouts_that_cannot_say_it_are_refused(scheme: str, layout: str, tmp_path: Path) -> None:
    model = tiny_models.build("llama").eval()
    quantize_model(model, scheme)
    with pytest.raises(ValueError, match=r"cannot say that the input is rounded"):
        calibit.export_model(model, tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()
