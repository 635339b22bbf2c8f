"""LoRA adapters of PEFT on quantized layers."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import calibit
import tiny_models
from calibit.io import native
from calibit.modules import QuantizedLinear
from calibit.quantization import quantize_model

peft = pytest.importorskip("peft", reason="peft is not installed (extra 'peft')")

TARGETS = ["q_proj", "v_proj", "down_proj"]


def configuration(**changes: Any) -> Any:
    return calibit.register_lora(
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, **changes)
    )


def adapted(model: Any, **changes: Any) -> Any:
    """The model with adapters whose factors are drawn from a fixed seed, none of them zero."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unsupported layer type")
        model = peft.get_peft_model(model, configuration(**changes))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) / 10
    return model.eval()


def dequantized(model: nn.Module) -> nn.Module:
    """A copy with float layers in the place of the quantized ones."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            plain.weight.data = layer.dequantize(torch.float32)
            if layer.bias is not None:
                plain.bias.data = layer.bias.detach().clone()
            model.set_submodule(name, plain)
    return model


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("scheme", ["nf4-g16", "int4-g16-asym"])
def test_same_logits_and_gradients_as_adapters_on_float_layers(name: str, scheme: str) -> None:
    """Through quantized layers to adapters below them, against PEFT's own layers."""
    model, ids = tiny_models.build(name), tiny_models.tokens()
    quantize_model(model, scheme)
    plain = adapted(dequantized(model))
    model = adapted(model)
    assert sum(isinstance(m, QuantizedLinear) for m in model.modules()) == 14
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in plain.named_parameters() if p.requires_grad
    }
    first, second = (m(input_ids=ids, labels=ids) for m in (model, plain))
    torch.testing.assert_close(first.logits, second.logits, rtol=1e-4, atol=1e-4)
    first.loss.backward()
    second.loss.backward()
    wanted = dict(plain.named_parameters())
    compared = 0
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            want = wanted[key].grad
            assert want is not None and parameter.grad is not None and bool(want.any())
            # Float32 sums in another order, through two blocks.
            close = 1e-4 * float(want.abs().max())
            torch.testing.assert_close(parameter.grad, want, rtol=1e-4, atol=close)
            compared += 1
    assert compared == 2 * len(TARGETS) * tiny_models.BLOCKS


def test_training_lowers_the_loss_and_leaves_the_weights() -> None:
    model, ids = tiny_models.build("llama"), tiny_models.tokens(4, 16)
    quantize_model(model, "nf4-g16")
    layer = model.model.layers[0].self_attn.q_proj
    before = layer.packed.clone()
    model = adapted(model, lora_dropout=0.0).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    assert torch.equal(layer.packed, before)


def test_adapters_come_back_from_their_folder(tmp_path: Path) -> None:
    model, ids = tiny_models.build("llama"), tiny_models.tokens()
    quantize_model(model, "nf4-g16")
    native.save(model, tmp_path / "quantized")
    model = adapted(model)
    model.save_pretrained(tmp_path / "adapters")
    assert (tmp_path / "adapters" / "adapter_model.safetensors").stat().st_size < 40_000
    config = calibit.register_lora(peft.LoraConfig.from_pretrained(tmp_path / "adapters"))
    base = calibit.load_model(tmp_path / "quantized")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapters", config=config).eval()
    assert torch.equal(tiny_models.logits(model, ids), tiny_models.logits(again, ids))
    with again.disable_adapter():
        without = tiny_models.logits(again, ids)
    assert torch.equal(without, tiny_models.logits(calibit.load_model(tmp_path / "quantized"), ids))


def test_merging_is_refused() -> None:
    model = tiny_models.build("llama")
    quantize_model(model, "nf4-g16")
    with pytest.raises(ValueError, match=r"\[lora\] cannot merge adapters into a quantized weight"):
        adapted(model).merge_and_unload()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a peft.LoraConfig, got dict"):
        calibit.register_lora({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'pissa', which decomposes the float weight"):
        configuration(init_lora_weights="pissa")
    with pytest.raises(ValueError, match="got use_dora=True"):
        configuration(use_dora=True)
