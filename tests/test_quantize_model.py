"""Quantizing whole models: the same function as with dequantized weights, on every architecture."""

from __future__ import annotations

import copy
import itertools
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity
from transformers import LlamaConfig, LlamaForCausalLM

import tiny_models
from calibit import structure
from calibit.modules import QuantizedLinear
from calibit.quantization import plans, quantize_model, weight_hash


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}


def with_dequantized_weights(model: nn.Module, original: nn.Module) -> nn.Module:
    """The float model whose weights are those the quantized model's codes stand for."""
    twin = copy.deepcopy(original)
    layers = structure.linear_layers(original)
    for name, module in quantized_layers(model).items():
        dense = module.dequantize(torch.float32)
        stored = dense.t().clone() if layers[name].transposed else dense
        twin.get_submodule(name).weight = nn.Parameter(stored)  # a new tensor: unties
    return twin


def assert_same_logits(left: torch.Tensor, right: torch.Tensor) -> None:
    # A layer sums at most 96 products, with an error of at most 96 * 2^-24 = 6e-6 of the sum of
    # their magnitudes; rounding errors of the few layers on a path do not line up.
    assert float((left - right).abs().max()) <= 1e-5 * float(right.abs().max())


@pytest.mark.parametrize("scheme", ["nf4", "int4-g32-asym-head"])
@pytest.mark.parametrize("name", tiny_models.CONFIGURATIONS)
def test_logits_equal_those_of_the_dequantized_weights(name: str, scheme: str) -> None:
    model, ids = tiny_models.build(name), tiny_models.tokens()
    original = copy.deepcopy(model)
    report = quantize_model(model, scheme)
    structure.open_experts_(original, {e.module for e in structure.fused_parameters(original)})
    layers = structure.linear_layers(original)
    expected = set(layers) if "head" in scheme else set(layers) - {structure.head_name(original)}
    assert {row.name for row in report.modules} == set(quantized_layers(model)) == expected
    twin = with_dequantized_weights(model, original)
    logits = tiny_models.logits(model, ids)
    assert_same_logits(logits, tiny_models.logits(twin, ids))
    assert not torch.allclose(logits, tiny_models.logits(original, ids), atol=1e-3)


@pytest.mark.parametrize("name", tiny_models.CONFIGURATIONS)
def test_state_dict_is_the_same_before_and_after_a_forward_pass(name: str) -> None:
    model = tiny_models.build(name)
    quantize_model(model, "nf4")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tiny_models.logits(model, tiny_models.tokens())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert any(key.endswith(".codes") for key in before)


def test_conv1d_becomes_a_quantized_linear_with_its_bias() -> None:
    model = tiny_models.build("gpt2")
    bias = model.transformer.h[0].attn.c_attn.bias.detach().clone()
    quantize_model(model, "int8")
    layer = model.transformer.h[0].attn.c_attn
    assert isinstance(layer, QuantizedLinear)
    assert (layer.out_features, layer.in_features) == (3 * tiny_models.HIDDEN, tiny_models.HIDDEN)
    assert torch.equal(layer.bias, bias)


def test_tied_head_is_kept_and_stays_tied() -> None:
    model = tiny_models.build("llama")
    report = quantize_model(model, "nf4")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert [kept.name for kept in report.kept] == ["lm_head"]
    assert report.kept[0].reason.startswith("output head")


def test_head_option_unties_the_head_and_leaves_the_embedding_alone() -> None:
    model = tiny_models.build("llama")
    table = model.model.embed_tokens.weight.detach().clone()
    quantize_model(model, "int8-head")
    assert isinstance(model.lm_head, QuantizedLinear)
    assert model.config.tie_word_embeddings is False
    model.tie_weights()  # transformers calls this on many occasions
    assert isinstance(model.lm_head, QuantizedLinear)
    assert torch.equal(model.model.embed_tokens.weight, table)


def test_plan_gives_each_layer_its_first_match() -> None:
    model = tiny_models.build("llama")
    plan = {
        "layers.0.mlp": "keep",
        "re:[qk]_proj$": "int8-row",
        "self_attn.*": "nf4",
        "mlp": "int4",
    }
    quantize_model(model, plan)
    schemes = {name: str(module.scheme) for name, module in quantized_layers(model).items()}
    assert schemes["model.layers.0.self_attn.q_proj"] == "int8-row"
    assert schemes["model.layers.1.self_attn.o_proj"] == "nf4"
    assert schemes["model.layers.1.mlp.up_proj"] == "int4-g128"
    assert not any(name.startswith("model.layers.0.mlp") for name in schemes)
    assert "lm_head" not in schemes
    assert model.config.quantization_config["modules"] == schemes


@pytest.mark.parametrize(
    "plan", [{"*": "int8", "mlp": "nf4"}, {"mlp": "keep", "up_proj": "nf4", "*": "int8"}]
)
def test_pattern_that_never_decides_is_refused(plan: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"special cases first, got '\w+' which never decides"):
        quantize_model(tiny_models.build("llama"), plan)


def test_pattern_that_repeats_what_is_decided_is_not_refused() -> None:
    plan = {"*": "int8", "mlp": "int8", "lm_head": "keep"}
    assert len(quantize_model(tiny_models.build("llama"), plan).modules) == 14


def test_skip_that_is_no_regular_expression_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[skip\] expected a regular expression .* 're:\('"):
        quantize_model(tiny_models.build("llama"), "nf4", skip="re:(")


def test_plan_may_be_a_json_file(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"lm_head": "int8-row", "layers.0": "nf4"}))
    model = tiny_models.build("llama")
    report = quantize_model(model, file)
    schemes = {row.name: row.scheme for row in report.modules}
    assert schemes["lm_head"] == "int8-row"  # a pattern that names only the head means it
    assert len(schemes) == 8
    assert {kept.reason for kept in report.kept} == {"kept by the plan"}


def test_pattern_without_a_match_lists_near_names() -> None:
    model = tiny_models.build("llama")
    with pytest.raises(
        ValueError, match=r"\[plan\] expected patterns.*'down_prj'.*near: .*down_proj"
    ):
        quantize_model(model, {"*": "nf4", "down_prj": "int8"})
    with pytest.raises(ValueError, match=r"\[skip\] expected patterns.*'lm_heat'.*lm_head"):
        quantize_model(model, "nf4", skip=["lm_heat"])
    assert not quantized_layers(model)


def test_skip_keeps_layers_and_says_so() -> None:
    model = tiny_models.build("llama")
    report = quantize_model(model, "nf4", skip=["down_proj", "layers.1"])
    assert not any("down_proj" in n or "layers.1" in n for n in quantized_layers(model))
    assert {kept.name for kept in report.kept if kept.reason == "skipped"} == {
        "model.layers.0.mlp.down_proj",
        *(n for n in structure.linear_layers(tiny_models.build("llama")) if "layers.1" in n),
    }


def test_one_skip_pattern_may_be_a_string() -> None:
    model = tiny_models.build("llama")
    report = quantize_model(model, "nf4", skip="down_proj")
    assert len(quantized_layers(model)) == 12
    assert sum(kept.reason == "skipped" for kept in report.kept) == 2


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Linear(8, 8, bias=False)])
def test_single_layer_is_refused(layer: nn.Linear) -> None:
    before = layer.weight.clone()
    with pytest.raises(ValueError, match="got a Linear: for one layer use QuantizedLinear"):
        quantize_model(layer, "nf4")
    assert torch.equal(layer.weight, before)


def test_plan_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(b'{"*": "nf4\xff"}')
    with pytest.raises(ValueError, match=r"\[plan plan\.json\] expected UTF-8 text, got byte 0xff"):
        plans.load(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"*": "nf4"', "error in line 1"),
        ("[]", "JSON object"),
        ("{}", "at least one pattern"),
        ('{"*": 4}', "expected"),
        ('{"*": "nf5"}', "unknown token 'nf5'"),
        ('{"*": "nf4", "*": "int8"}', "twice"),
        ('{"re:(": "nf4"}', "regular expression"),
        ('{"lm_head": "bf16"}', "casts a whole model"),
    ],
)
def test_bad_plan_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "plan.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        plans.load(file)


def test_missing_plan_file_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        plans.load("nowhere.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weight_is_refused_before_anything_changes(value: float) -> None:
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    before = weight_hash(model)
    with pytest.raises(ValueError, match=r"NaN or Inf in the weight of model.layers.1.mlp.up_proj"):
        quantize_model(model, "nf4")
    assert not quantized_layers(model)
    assert weight_hash(model) == before


def test_layer_whose_scales_do_not_fit_is_named() -> None:
    model = tiny_models.build("llama")
    model.model.layers[1].mlp.up_proj.weight.data[5] = 1e7
    with pytest.raises(
        ValueError, match=r"fits float16 .* row 5; .*, in model\.layers\.1\.mlp\.up_"
    ):
        quantize_model(model, "int4")


def test_weights_on_the_meta_device_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"expected weights in memory, got 0.weight on the meta"):
        quantize_model(model, "nf4")


def test_quantized_model_is_refused() -> None:
    model = tiny_models.build("llama")
    quantize_model(model, "nf4")
    with pytest.raises(ValueError, match="expected a floating-point model, got one with 14"):
        quantize_model(model, "int8")


def test_gptq_without_calibration_is_refused_before_anything_changes() -> None:
    model = tiny_models.build("llama")
    with pytest.raises(TypeError, match="expected calibration= for gptq-int4-g128"):
        quantize_model(model, {"mlp": "nf4", "self_attn": "gptq-int4-g128"})
    assert not quantized_layers(model)


class Bank(nn.Module):
    """Fused matrices of a kind of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("th,ehk->tk", self.first(x), self.gate_up_proj)


def test_fused_experts_of_a_layout_that_is_not_known_are_reported_with_their_bytes() -> None:
    model = nn.ModuleDict({"bank": Bank()})
    report = quantize_model(model, "nf4")
    kept = report.kept[0]
    assert (kept.name, kept.shape) == ("bank.gate_up_proj", (3, 8, 8))
    assert kept.nbytes == 3 * 8 * 8 * 4
    assert kept.reason == "fused, and its module does not say what it computes"
    assert [row.name for row in report.modules] == ["bank.first"]


def test_groups_above_the_inputs_are_reported() -> None:
    report = quantize_model(tiny_models.build("llama"), {"down_proj": "int4-g80", "*": "int4-g64"})
    assert report.notes == (
        "groups of 64 exceed the inputs of 12 of 14 layers, such as "
        "model.layers.0.self_attn.q_proj with 48: one group per row there",
    )


def test_report_rows_state_what_was_stored() -> None:
    model = tiny_models.build("llama")
    original = copy.deepcopy(model)
    report = quantize_model(model, "nf4")
    stored = quantized_layers(model)
    for row in report.modules:
        dense = original.get_submodule(row.name).weight.detach().double()
        difference = dense - stored[row.name].dequantize(torch.float32).double()
        assert row.error == pytest.approx(float(difference.norm() / dense.norm()), rel=1e-5)
        tensors = stored[row.name].quantized_weight().tensors()
        assert row.nbytes == sum(tensor.nbytes for tensor in tensors.values())
        assert row.bits_per_weight == pytest.approx(8 * row.nbytes / dense.numel())
    state = model.state_dict()
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in state.values()}
    assert report.nbytes_model == sum(unique.values())
    assert report.parameters == sum(parameter.numel() for parameter in original.parameters())
    assert report.source_hash == weight_hash(original)
    assert json.loads(json.dumps(report.to_dict()))["modules"][0]["scheme"] == "nf4"
    assert "14 layers" in str(report)
    assert report.table().row_count == 15


def test_float_weights_are_freed_one_by_one() -> None:
    model = tiny_models.build("llama")
    weights = {
        name: weakref.ref(model.get_submodule(name).weight)
        for name in structure.linear_layers(model)
        if name != "lm_head"
    }
    seen: list[str] = []

    def progress(done: int, total: int, name: str) -> None:
        seen.append(name)
        assert (done, total) == (len(seen), len(weights))
        assert {n for n, weight in weights.items() if weight() is None} == set(seen)

    quantize_model(model, "nf4", progress=progress)
    assert set(seen) == set(weights)


@pytest.mark.parametrize(("scheme", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_float_scheme_casts_the_model_but_not_its_frequencies(
    scheme: str, dtype: torch.dtype
) -> None:
    model = tiny_models.build("llama", dtype=torch.float32)
    frequencies = model.model.rotary_emb.inv_freq.clone()
    report = quantize_model(model, scheme)
    assert report.modules == ()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    assert report.bits_per_weight_model == pytest.approx(8 * dtype.itemsize)


def test_bfloat16_model_keeps_its_dtype() -> None:
    model = tiny_models.build("qwen2", dtype=torch.bfloat16)
    bias = model.model.layers[0].self_attn.q_proj.bias.detach().clone()
    quantize_model(model, "nf4")
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.bias, bias)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert tiny_models.logits(model, tiny_models.tokens()).dtype == torch.bfloat16


def test_training_mode_is_restored() -> None:
    model = tiny_models.build("llama").train()
    quantize_model(model, "nf4")
    assert model.training
    assert all(module.training for module in model.modules())


class SharedTwice(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def test_shared_module_is_quantized_once() -> None:
    model = SharedTwice()
    report = quantize_model(model, "int8-row")
    assert [row.name for row in report.modules] == ["first"]
    assert isinstance(model.first, QuantizedLinear)
    assert model.first is model.second


class Doubled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Masked(nn.Linear):
    """A subclass with a state of its own."""

    def __init__(self, k: int, n: int) -> None:
        super().__init__(k, n)
        self.mask = nn.Parameter(torch.ones(n, k))


def test_linear_subclasses_with_another_function_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(16, 16), Doubled(16, 16), Masked(16, 16))
    quantize_model(model, "nf4")
    assert [type(module).__name__ for module in model] == ["QuantizedLinear", "Doubled", "Masked"]


@pytest.mark.parametrize(
    ("pattern", "name", "hit"),
    [
        ("*", "a.b", True),
        ("down_proj", "model.layers.0.mlp.down_proj", True),
        ("proj", "model.layers.0.mlp.down_proj", False),
        ("layers.1", "model.layers.1.mlp.up_proj", True),
        ("layers.1", "model.layers.10.mlp.up_proj", False),
        ("model.layers.*.mlp.up_proj", "model.layers.7.mlp.up_proj", True),
        ("layers.[01].*", "model.layers.1.mlp.up_proj", True),
        ("layers.[01].*", "model.layers.2.mlp.up_proj", False),
        ("re:layers\\.1\\.", "model.layers.1.mlp.up_proj", True),
        ("re:^layers", "model.layers.1.mlp.up_proj", False),
    ],
)
def test_patterns(pattern: str, name: str, hit: bool) -> None:
    assert plans.matches(pattern, name) is hit


def test_weight_hash_sees_every_value_and_no_device_detail() -> None:
    model = tiny_models.build("gpt2")
    before = weight_hash(model)
    assert before == weight_hash(copy.deepcopy(model))
    with torch.no_grad():
        model.transformer.h[1].ln_2.bias[0] += 1e-6
    assert weight_hash(model) != before


def test_configuration_records_what_was_done() -> None:
    model: Any = tiny_models.build("llama")
    source = weight_hash(model)
    quantize_model(model, "nf4")
    record = model.config.quantization_config
    assert record["quant_method"] == "calibit"
    assert record["scheme"] == "nf4"
    assert record["source_hash"] == source
    assert record["tied"] == {"lm_head.weight": "model.embed_tokens.weight"}


def allocations(trace: Path, work: Callable[[], None]) -> list[int]:
    """Bytes that torch allocates (positive) and frees (negative) during `work`, in order."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    profile.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event for event in events if event["name"] == "[memory]"]
    return [e["args"]["Bytes"] for e in sorted(memory, key=lambda event: event["ts"])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peak_memory_is_the_float_model_and_one_layer_in_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    config = LlamaConfig(
        hidden_size=256, intermediate_size=2048, num_hidden_layers=2, vocab_size=64
    )
    mark = 12_345  # tells where quantizing begins

    def work() -> None:
        model = LlamaForCausalLM(config).to(dtype)
        torch.empty(mark, dtype=torch.uint8)
        quantize_model(model, "nf4")

    sizes = allocations(tmp_path / "trace.json", work)
    live = list(itertools.accumulate(sizes[sizes.index(mark) :]))
    largest = 256 * 2048 * 4  # of an MLP layer
    # Beside it for a moment its codes, canonical and packed, and a run of rows in float32.
    assert max(live) <= largest * (1 + 2 * 4.5 / 32) + 4 * (1 << 16) + mark
    assert live[-1] < 0, "the float weights were freed"
