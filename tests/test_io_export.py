"""Exports: what engines need, what is checked after writing, and that failures leave nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import calibit
import foreign_files
import tiny_models
from calibit.commands import interchange
from calibit.io import engines, export, foreign
from calibit.modules import QuantizedLinear


def quantized(scheme: Any, **options: Any) -> Any:
    model = foreign_files.small_llama(**options)
    calibit.quantize_model(model, scheme)
    return model


def found(wrote: export.Export, engine: str) -> list[str]:
    return [f"{finding}" for finding in wrote.findings if finding.engine == engine]


def test_help_lists_every_layout() -> None:
    assert ", ".join(export.NAMES) == interchange.LAYOUTS


@pytest.mark.parametrize(
    ("scheme", "vllm", "sglang"),
    [
        ("int4-g32", "", ""),
        ("int8-row", "", ""),
        ("int4-g32-asym", "", "symmetric 4 and 8 bits"),
        ("int3-g32", "", "symmetric 4 and 8 bits"),
        ("int4-g16", "", "groups of -1, 32, 64, 128"),
        ("int4-g64", "no multiple of its group", "no multiple of its group"),
        ({"mlp": "int4-g32"}, "", ""),
        ({"up_proj": "int4-g32", "down_proj": "int4-g32"}, "stored differently", "differently"),
        ({"q_proj": "int4-g32", "k_proj": "int4-g32", "v_proj": "int8-g32"}, "stored", "stored"),
    ],
)
def test_rules_of_the_engines(tmp_path: Path, scheme: Any, vllm: str, sglang: str) -> None:
    wrote = export.save(quantized(scheme), tmp_path / "model", "gptq_v2")
    for engine, reason in (("vllm", vllm), ("sglang", sglang)):
        said = found(wrote, engine)
        assert len(said) == bool(reason) and all(reason in line for line in said), said
        if reason:
            with pytest.raises(ValueError, match=rf"\[export\] {engine} will not load it"):
                export.save(quantized(scheme), tmp_path / "no", "gptq_v2", required=[engine])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_outputs_that_fill_words_are_enough_for_vllm(tmp_path: Path) -> None:
    """Its loader wants whole words, of eight codes of 4 bits, not 32 outputs."""
    model = quantized("int4-row", hidden_size=40, num_attention_heads=4, num_key_value_heads=4)
    wrote = export.save(model, tmp_path / "model", "gptq", required=["vllm"])
    assert found(wrote, "vllm") == []


def test_bfloat16_models_lose_digits_of_their_scales(tmp_path: Path) -> None:
    model = quantized("int4-g32").to(torch.bfloat16)  # which rounds the rotary frequencies too
    wrote = export.save(model, tmp_path / "model", "gptq", required=engines.ENGINES)
    assert all("loads it with a loss" in str(finding) for finding in wrote.findings)
    assert "inv_freq is not what the configuration gives" in "".join(wrote.notes)
    assert len(wrote.findings) == 2 and "--dtype float16" in str(wrote)
    assert foreign.load(tmp_path / "model").model.norm.weight.dtype == torch.bfloat16


def test_float32_scales_lose_digits_too(tmp_path: Path) -> None:
    wrote = export.save(quantized("int4-g32-s32"), tmp_path / "model", "compressed-tensors")
    assert all("rounds float32 ones (model" in str(finding) for finding in wrote.findings)
    assert len(wrote.findings) == 2


def test_what_comes_back_changed_is_never_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that loses one bit: the check after writing sees it, and the folder is gone."""
    load = foreign.load

    def spoiled(*given: Any, **more: Any) -> Any:
        model = load(*given, **more)
        layer = model.model.layers[0].mlp.up_proj
        q = layer.quantized_weight()
        q.codes[0, 0] ^= 1
        model.model.layers[0].mlp.up_proj = QuantizedLinear(q)
        return model

    monkeypatch.setattr(foreign, "load", spoiled)
    with pytest.raises(RuntimeError, match="up_proj' does not come back with the same values"):
        export.save(quantized("int4-g32"), tmp_path / "model", "gptq")

    def unnormed(*given: Any, **more: Any) -> Any:
        model = load(*given, **more)
        model.model.norm.weight.data[0] += 1
        return model

    monkeypatch.setattr(foreign, "load", unnormed)
    with pytest.raises(RuntimeError, match=r"'model\.norm\.weight' does not come back"):
        export.save(quantized("int4-g32"), tmp_path / "model", "gptq")
    assert not list(tmp_path.iterdir())


def test_logits_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights are equal and a hook changes what the model computes."""
    load = foreign.load

    def hooked(*given: Any, **more: Any) -> Any:
        model = load(*given, **more)
        model.lm_head.register_forward_hook(lambda _m, _x, y: y + 1e-3)
        return model

    monkeypatch.setattr(foreign, "load", hooked)
    with pytest.raises(RuntimeError, match=r"logits of the model read back differ by 0\.001"):
        export.save(quantized("int4-g32"), tmp_path / "model", "gptq")
    assert not list(tmp_path.iterdir())


def test_arguments_are_checked(tmp_path: Path) -> None:
    model = quantized("int4-g32")
    with pytest.raises(ValueError, match=r"\[export\] expected a layout of gptq, .*, got 'awq'"):
        export.save(model, tmp_path / "no", "awq")
    with pytest.raises(ValueError, match=r"\[export\] expected an engine of vllm, sglang"):
        export.save(model, tmp_path / "no", "gptq", required=["tgi"])
    with pytest.raises(ValueError, match=r"\[export\] expected a model with quantized layers"):
        export.save(tiny_models.build("llama"), tmp_path / "no", "gptq")
    with pytest.raises(ValueError, match=r"\[export\] expected a Hugging Face model"):
        export.save(torch.nn.Linear(2, 2), tmp_path / "no", "gptq")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="expected a new folder"):
        export.save(model, tmp_path / "there", "gptq")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


SCHEMES = {
    "gptq": "int4-g16", "gptq_v2": "int8-g16-asym", "compressed-tensors": "int4-g16-asym",
    "int-quantized": "w8a8", "bitsandbytes": "llm-int8", "calibit": "nf4-dq",
}  # fmt: skip


def test_every_layout_has_a_scheme_below() -> None:
    assert set(SCHEMES) == set(export.NAMES)


# Conv1D, biases, a bias apart from its layer: every layout; the others once.
UNLIKE = ("gpt2", "qwen2", "falcon")


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (layout, name)
        for layout in SCHEMES
        for name in (tiny_models.DENSE if layout == "gptq" else UNLIKE)
    ],
)
def test_every_architecture_comes_back(tmp_path: Path, name: str, layout: str) -> None:
    model = tiny_models.build(name)
    calibit.quantize_model(model, SCHEMES[layout])
    assert export.save(model, tmp_path / "model", layout).difference == 0.0


@pytest.mark.parametrize("layout", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_sixteen_bits_come_back(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    model = tiny_models.build("qwen2", dtype=dtype)
    calibit.quantize_model(model, SCHEMES[layout])
    assert calibit.export_model(model, tmp_path / "model", layout).difference == 0.0
    again = calibit.load_model(tmp_path / "model")
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}


@pytest.mark.slow
def test_a_real_model_goes_through_every_layout(tmp_path: Path) -> None:
    """Codes of 4 bits: ours, GPTQ, compressed-tensors and back, weights bit for bit."""
    from calibit.quantization import quantize_checkpoint, weight_hash

    prepared = Path.home() / ".cache" / "calibit" / "SmolLM2-135M-Instruct"
    if not prepared.is_dir():
        pytest.skip("SmolLM2-135M-Instruct is not prepared (make demo)")
    quantize_checkpoint(prepared, "int4-g64", tmp_path / "calibit")
    source = "calibit"
    for layout in ("gptq", "compressed-tensors"):
        wrote = calibit.convert_checkpoint(tmp_path / source, tmp_path / layout, layout)
        assert wrote.difference == 0.0 and wrote.layers == 210
        source = layout
    calibit.convert_checkpoint(tmp_path / source, tmp_path / "back", "calibit")
    first, second = (calibit.load_model(tmp_path / name) for name in ("calibit", "back"))
    assert weight_hash(first) == weight_hash(second)
    quantize_checkpoint(prepared, "nf4-dq", tmp_path / "nf4", layout="bitsandbytes")
    assert calibit.load_model(tmp_path / "nf4").config.num_hidden_layers == 30


def test_many_files(tmp_path: Path) -> None:
    model = quantized("int4-g32")
    export.save(model, tmp_path / "model", "gptq", max_shard_bytes=20_000)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    again = calibit.load_model(tmp_path / "model")
    ids = tiny_models.tokens()
    assert torch.equal(tiny_models.logits(model, ids), tiny_models.logits(again, ids))
