"""Models on a GPU: a pretended one here, a real one where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import calibit
import tiny_models
from calibit import _devices, ops, structure
from calibit.io import native
from calibit.modules import QuantizedLinear
from calibit.quantization import plans, quantize_model, weight_hash
from calibit.quantization.calibration_text import Calibration
from calibit.quantization.model import quantize_weights
from calibit.quantization.residency import Weights
from fake_gpu import CPU, GPU, FakeGpu

SCHEMES = ("nf4-dq", "int4-g16-asym", "int8-row", "int3-g32", "fp4")
real = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def data() -> Calibration:
    ids = tiny_models.tokens(8, 24)
    return Calibration(tuple(ids[:-2]), "test", held_out=tuple(ids[-2:]))


def on_gpu(model: nn.Module) -> nn.Module:
    """Move a model, parameter by parameter, as `Module.to` does on a machine with a GPU."""
    return model._apply(lambda tensor: tensor.to(GPU))


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with FakeGpu() as device:
        yield device


# --- the pretended GPU ----------------------------------------------------------------------------


def test_pretended_gpu_refuses_what_a_real_one_does(gpu: FakeGpu) -> None:
    there, here = torch.ones(3).to(GPU), torch.ones(3)
    assert (there.device, here.device, (2 * there)[1:].device) == (GPU, CPU, GPU)
    assert torch.zeros(2, device=there.device).device == GPU
    assert there.cpu().device == CPU and there.device == GPU and not there.is_cpu
    for mixed in (lambda: there + here, lambda: torch.equal(here, there), lambda: there.numpy()):
        with pytest.raises((RuntimeError, TypeError), match=r"one device|numpy"):
            mixed()
    assert float(there.sum()) == 3
    assert nn.Parameter(there).device == GPU


# --- operators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_operators_of_a_gpu_give_the_bits_of_the_cpu(scheme: str) -> None:
    q = calibit.quantize(torch.randn(24, 80), scheme)
    packed, numbers = q.pack(), tuple(q.layout.values())
    x, grad, bias = torch.randn(5, 80), torch.randn(5, 24), torch.randn(24)
    y = _devices.KERNELS["linear"](x, packed, q.codebook, bias, *numbers)
    expected = ops.linear(x, packed, q.codebook, bias, **q.layout)
    # Sums of at most 80 float32 terms in another order: eps * 80 of the sum of their magnitudes.
    assert torch.allclose(y, expected, rtol=0, atol=80 * 2**-23 * float(x.abs().sum(1).max()) * 4)
    dx = _devices.KERNELS["linear_input_grad"](grad, packed, q.codebook, *numbers)
    assert torch.allclose(dx, grad @ q.dequantize(), rtol=0, atol=1e-4)
    unpacked = _devices.KERNELS["unpack_weight"](packed, *numbers)
    again = ops.unpack_weight(packed, **q.layout)
    assert all(torch.equal(a, b) for a, b in zip(unpacked, again, strict=True))


def test_every_operator_on_weights_has_a_function_for_gpus() -> None:
    for name in _devices.KERNELS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"calibit::{name}", "CUDA")


def test_precision_of_products_is_given_back() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    with pytest.raises(KeyError), _devices.float32_products():
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        raise KeyError
    assert torch.backends.cuda.matmul.fp32_precision == before


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["nf4-dq", "gptq-int4-g16", "gptaq-nf4-g16-actorder"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
def test_driver_on_a_gpu(name: str, scheme: str, gpu: FakeGpu) -> None:
    models = [tiny_models.build(name) for _ in range(2)]
    if name in tiny_models.MIXTURE:  # the others ask what kernels the GPU has
        models[1].set_experts_implementation("eager")
    on_gpu(models[1])
    assert {p.device for p in models[1].parameters()} == {GPU}
    reports = [quantize_model(model, scheme, calibration=data()) for model in models]
    layers = [m for m in models[1].modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == len(reports[1].modules) and {m.packed.device for m in layers} == {GPU}
    ids = tiny_models.tokens()
    logits = tiny_models.logits(models[1], ids.to(GPU))
    assert logits.device == GPU and "linear" in gpu.operators
    assert reports[0].source_hash == reports[1].source_hash
    assert [r.solver for r in reports[0].modules] == [r.solver for r in reports[1].modules]
    for first, second in zip(*(r.modules for r in reports), strict=True):
        # The quantized layers' float32 sums are made in another order, so that a weight on a
        # boundary may fall the other way.
        assert first.error == pytest.approx(second.error, rel=0.02)
    assert (reports[0].held_out is None) == (reports[1].held_out is None)


def test_checkpoint_of_a_model_on_a_gpu(gpu: FakeGpu, tmp_path: Path) -> None:
    model = on_gpu(tiny_models.build("llama"))
    quantize_model(model, "nf4-dq")
    native.save(model, tmp_path / "model")
    assert weight_hash(native.load(tmp_path / "model")) == weight_hash(model)


def test_finished_blocks_come_back_on_the_gpu(gpu: FakeGpu, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int, name: str) -> None:
        if done == 8:
            raise Stopped

    models = [on_gpu(tiny_models.build("llama")) for _ in range(2)]
    scheme = plans.load("gptq-int4-g16")
    work: dict[str, Any] = {"calibration": data(), "work": tmp_path / "work"}
    with pytest.raises(Stopped):
        quantize_weights(Weights(models[0]), scheme, progress=stop, **work)
    assert len(list((tmp_path / "work").glob("block-*"))) == 1
    quantize_weights(Weights(models[1]), scheme, **work)
    devices = {m.packed.device for m in models[1].modules() if isinstance(m, QuantizedLinear)}
    assert devices == {GPU}


@real
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_driver_on_a_real_gpu(name: str) -> None:
    models = [tiny_models.build(name), tiny_models.build(name).cuda()]
    reports = [quantize_model(m, "gptq-int4-g16", calibration=data()) for m in models]
    ids = tiny_models.tokens()
    logits = tiny_models.logits(models[1], ids.cuda())
    assert logits.is_cuda and bool(torch.isfinite(logits).all())
    layers = [m for m in models[1].modules() if isinstance(m, QuantizedLinear)]
    assert layers and all(layer.packed.is_cuda for layer in layers)
    assert structure.fused_parameters(models[1]) == ()
    ratios = [sum(row.loss_ratio or 1 for row in r.modules) for r in reports]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.05)  # sums in another order
