"""GPTQ checkpoints: versions 1, 2 and planar, read and written, against files built bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import calibit
import foreign_files
import tiny_models
from calibit.io import checkpoints, export, native, streams
from calibit.modules import QuantizedLinear
from calibit.weight import QuantizedWeight
from foreign_files import check_same, rewritten

LAYER = "model.layers.0.mlp.up_proj"


def built(folder: Path, section: dict[str, Any] | None = None, **layer: Any) -> tuple[Any, Any]:
    """A foreign folder, the float model that it stands for, and the weights of its layers."""
    section = section or foreign_files.gptq_section()
    options = {
        "bits": section["bits"], "group": section["group_size"],
        "version": section["checkpoint_format"], "symmetric": section["sym"], **layer,
    }  # fmt: skip
    model = foreign_files.small_llama()
    weights = foreign_files.write_checkpoint(
        folder,
        model,
        section,
        lambda name, n, k, seed: foreign_files.gptq_layer(n, k, seed=seed, **options),
    )
    return model, weights


# --- streams ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_streams_are_those_of_python_integers(bits: int, rows: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, count)).astype(np.uint8)
    stream = streams.pack(torch.from_numpy(codes), bits)
    assert stream.shape == (rows, -(-count * bits // 8))
    words = foreign_files.int32([foreign_files.stream_words(row, bits) for row in codes])
    assert torch.equal(streams.to_words(stream), words)
    assert torch.equal(
        streams.unpack(streams.from_words(words), bits, count), torch.from_numpy(codes)
    )


@pytest.mark.parametrize("bits", range(2, 9))
def test_planar_words_are_those_of_python_integers(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 96)).astype(np.uint8)
    words = foreign_files.int32([foreign_files.planar_words(row, bits) for row in codes])
    assert torch.equal(streams.unpack_planar(words, bits, 96), torch.from_numpy(codes))


@pytest.mark.parametrize(
    ("bits", "first", "second"),
    [
        (2, [0x55555555], [0xAAAAAAAA]),
        (3, [0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D], [0x24924924, 0x49249249, 0x92492492]),
        (4, [0x77777777], [0x88888888]),
        (8, [0x7F7F7F7F], [0x80808080]),
    ],
)
def test_zero_points_of_symmetric_files_are_the_known_words(
    tmp_path: Path, bits: int, first: list[int], second: list[int]
) -> None:
    for layout, words in (("gptq", first), ("gptq_v2", second)):
        model = foreign_files.small_llama()
        calibit.quantize_model(model, f"int{bits}-g32")
        export.save(model, tmp_path / layout, layout)
        stored = load_file(tmp_path / layout / "model.safetensors")[f"{LAYER}.qzeros"]
        repeats = stored.shape[1] // len(words)
        expected = [foreign_files.signed(word) for word in words] * repeats
        assert stored.tolist() == [expected] * stored.shape[0]


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2", "gptq_p"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_files_built_bit_by_bit_are_read(
    tmp_path: Path, bits: int, version: str, symmetric: bool
) -> None:
    section = foreign_files.gptq_section(bits=bits, checkpoint_format=version, sym=symmetric)
    read = check_same(tmp_path / "model", *built(tmp_path / "model", section))
    scheme = f"int{bits}-g32" + ("" if symmetric else "-asym")
    assert str(read.get_submodule(LAYER).scheme) == scheme


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_planar_files_of_odd_widths_are_read(tmp_path: Path, bits: int) -> None:
    section = foreign_files.gptq_section(bits=bits, checkpoint_format="gptq_p", sym=False)
    check_same(tmp_path / "model", *built(tmp_path / "model", section))
    with pytest.raises(ValueError, match="2, 3, 4 or 8 bits in format 'gptq_v2'"):
        built(tmp_path / "no", foreign_files.gptq_section(bits=bits, checkpoint_format="gptq_v2"))
        calibit.load_model(tmp_path / "no")


@pytest.mark.parametrize("group", [-1, 16, 64, 96, 128])
def test_groups_of_every_size(tmp_path: Path, group: int) -> None:
    """K is 64 and 96: a group of 64 ends short in 96, one of 128 is the row."""
    section = foreign_files.gptq_section(group_size=group, sym=False)
    read = check_same(tmp_path / "model", *built(tmp_path / "model", section))
    notes = read.get_submodule(LAYER).notes
    assert bool(notes) == (group > 64)
    assert all("one group per row" in note for note in notes)


@pytest.mark.parametrize("label", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("stored", ["gptq", "gptq_v2"])
def test_symmetric_zero_points_say_their_version_whatever_the_label(
    tmp_path: Path, label: str, stored: str
) -> None:
    section = foreign_files.gptq_section(checkpoint_format=label)
    read = check_same(tmp_path / "model", *built(tmp_path / "model", section, version=stored))
    notes = " ".join(read.get_submodule(LAYER).notes)
    assert (f"stored as in {stored}, not {label}" in notes) == (label != stored)


def test_asymmetric_zero_points_follow_the_label(tmp_path: Path) -> None:
    section = foreign_files.gptq_section(sym=False, checkpoint_format="gptq_v2")
    _, weights = built(tmp_path / "model", section, version="gptq_v2", zeros=None)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    read = calibit.load_model(tmp_path / "model").get_submodule(LAYER)
    assert not torch.equal(read.dequantize(torch.float32), weights[LAYER])
    # A stored 15 is read as AutoGPTQ reads it, and said.
    assert int(read.quantized_weight().zeros.min()) == 0
    assert any("exllama" in note for note in read.notes)


def test_activation_order_keeps_its_columns(tmp_path: Path) -> None:
    index = {k: np.random.default_rng(k).permutation(np.arange(k) // 32) for k in (64, 96)}
    section = foreign_files.gptq_section(sym=False, desc_act=True)
    model = foreign_files.small_llama()
    weights = foreign_files.write_checkpoint(
        tmp_path / "model", model, section,
        lambda name, n, k, seed: foreign_files.gptq_layer(
            n, k, bits=4, group=32, version="gptq", symmetric=False, group_index=index[k], seed=seed
        ),
    )  # fmt: skip
    read = check_same(tmp_path / "model", model, weights)
    order = read.get_submodule(LAYER).quantized_weight().input_order
    assert torch.equal(order, torch.from_numpy(np.argsort(index[64], kind="stable")).int())
    export.save(read, tmp_path / "again", "gptq")
    first = load_file(tmp_path / "model" / "model.safetensors")
    second = load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization_config"]["desc_act"] is True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scales_of_other_dtypes_keep_their_values(tmp_path: Path, dtype: torch.dtype) -> None:
    _, weights = built(tmp_path / "model")
    rng = torch.Generator().manual_seed(1)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    for name in weights:
        scales = tensors[f"{name}.scales"]
        noise = torch.rand(scales.shape, generator=rng)
        tensors[f"{name}.scales"] = (scales.float() * (1 + noise / 9)).to(dtype)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    read = calibit.load_model(tmp_path / "model")
    weight = read.get_submodule(LAYER).quantized_weight()
    # bfloat16 has fewer digits than float16, whose range holds these scales.
    assert weight.scales.dtype == (torch.float16 if dtype == torch.bfloat16 else torch.float32)
    assert torch.equal(weight.scales.float(), tensors[f"{LAYER}.scales"].float().t())
    native.save(read, tmp_path / "own")
    again = calibit.load_model(tmp_path / "own").get_submodule(LAYER)
    assert torch.equal(again.dequantize(), read.get_submodule(LAYER).dequantize())
    if dtype == torch.float32:
        with pytest.raises(ValueError, match="float32 numbers that float16 does not hold"):
            export.save(read, tmp_path / "no", "gptq")
        assert not (tmp_path / "no").exists()


def test_group_that_calibit_does_not_have(tmp_path: Path) -> None:
    built(tmp_path / "model", foreign_files.gptq_section(group_size=12))
    with pytest.raises(ValueError, match="groups of a multiple of 8 weights, got 12"):
        calibit.load_model(tmp_path / "model")


def test_dtype_changes_parameters_but_no_code_and_no_scale(tmp_path: Path) -> None:
    built(tmp_path / "model")
    first = calibit.load_model(tmp_path / "model")
    second = calibit.load_model(tmp_path / "model", dtype=torch.bfloat16)
    assert second.model.norm.weight.dtype == torch.bfloat16
    ours, theirs = (m.get_submodule(LAYER).quantized_weight().tensors() for m in (first, second))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_settings_per_layer(tmp_path: Path) -> None:
    dynamic = {r"+:.*\.mlp\..*": {"bits": 8, "group_size": -1}, r"-:.*nothing.*": {}}
    section = foreign_files.gptq_section(dynamic=dynamic)
    model = foreign_files.small_llama()
    weights = foreign_files.write_checkpoint(
        tmp_path / "model", model, section,
        lambda name, n, k, seed: foreign_files.gptq_layer(
            n, k, version="gptq", symmetric=True, seed=seed,
            bits=8 if "mlp" in name else 4, group=-1 if "mlp" in name else 32,
        ),
    )  # fmt: skip
    read = check_same(tmp_path / "model", model, weights)
    assert str(read.get_submodule(LAYER).scheme) == "int8-row"
    export.save(read, tmp_path / "again", "gptq_v2")
    check_same(tmp_path / "again", model, weights)


def test_old_folders_with_quantize_config_and_another_file_name(tmp_path: Path) -> None:
    """AutoGPTQ before 0.6: no section in config.json, one file named after the settings."""
    folder = tmp_path / "model"
    model, weights = built(folder)
    config = json.loads((folder / "config.json").read_text())
    old = config.pop("quantization_config")
    for key in ("quant_method", "checkpoint_format"):
        del old[key]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps({**old, "damp_percent": 0.01}))
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-32g.safetensors")
    check_same(folder, model, weights)


def test_computed_buffers_of_old_files_are_left(tmp_path: Path) -> None:
    model, weights = built(tmp_path / "model")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewritten(tmp_path / "model", lambda t: t.update({name: torch.zeros(8)}))
    check_same(tmp_path / "model", model, weights)


def test_zero_bias_of_a_layer_without_one_is_left(tmp_path: Path) -> None:
    """GPTQ-for-LLaMa and early AutoGPTQ wrote a bias for every layer."""
    model, weights = built(tmp_path / "model")
    rewritten(
        tmp_path / "model",
        lambda t: t.update({f"{n}.bias": torch.zeros(len(w)).half() for n, w in weights.items()}),
    )
    check_same(tmp_path / "model", model, weights)


def test_tied_head_may_be_stored_twice_if_equal(tmp_path: Path) -> None:
    model = foreign_files.small_llama(tied=True)
    weights = foreign_files.write_checkpoint(
        tmp_path / "model", model, foreign_files.gptq_section(),
        lambda name, n, k, seed: foreign_files.gptq_layer(
            n, k, bits=4, group=32, version="gptq", symmetric=True, seed=seed
        ),
    )  # fmt: skip
    check_same(tmp_path / "model", model, weights)
    table = model.model.embed_tokens.weight.detach().clone()
    rewritten(tmp_path / "model", lambda t: t.update({"lm_head.weight": table}))
    read = check_same(tmp_path / "model", model, weights)
    assert read.lm_head.weight is read.model.embed_tokens.weight
    rewritten(tmp_path / "model", lambda t: t.pop("model.embed_tokens.weight"))
    check_same(tmp_path / "model", model, weights)
    other = {"lm_head.weight": table + 1, "model.embed_tokens.weight": table}
    rewritten(tmp_path / "model", lambda t: t.update(other))
    with pytest.raises(ValueError, match=r"'lm_head.weight' in model\.safetensors to equal"):
        calibit.load_model(tmp_path / "model")


# --- refusing -----------------------------------------------------------------------------------


def put(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}.{part}"] = change(tensors[f"{LAYER}.{part}"]).contiguous()

    return edit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("g_idx", lambda t: t + 1), "g_idx from 0 to 1, got 1 to 2"),
        (put("g_idx", lambda t: t - 1), "g_idx from 0 to 1, got -1 to 0"),
        (put("g_idx", lambda t: t * 0), "32 columns in every group"),
        (put("g_idx", lambda t: t[:-1]), r"g_idx int32 \[64\], got torch.int32 \[63\]"),
        (put("g_idx", lambda t: t.float()), "g_idx int32"),
        (put("qweight", lambda t: t[:-1]), r"qweight torch.int32 \[8, 96\], got .* \[7, 96\]"),
        (put("qweight", lambda t: t.t()), r"qweight torch.int32 \[8, 96\], got .* \[96, 8\]"),
        (put("qweight", lambda t: t.long()), "got torch.int64"),
        (put("qzeros", lambda t: t[:1]), r"qzeros torch.int32 \[2, 12\]"),
        (put("qzeros", lambda t: t + 1), "qzeros of 7 .gptq. or 8 .gptq_v2. everywhere"),
        (put("scales", lambda t: t[:, :-1]), r"scales torch.float16 \[2, 96\]"),
        (put("scales", lambda t: t.int()), "floating-point dtype, got torch.int32"),
        (put("scales", lambda t: t * torch.inf), "finite scales, got NaN or Inf"),
        (lambda t: t.pop(f"{LAYER}.scales"), r"missing \['scales'\]"),
        (lambda t: t.pop(f"{LAYER}.qweight"), f"expected tensor '{LAYER}.weight'"),
        (lambda t: t.update({f"{LAYER}.more": torch.zeros(1)}), r"unknown \['more'\]"),
        (lambda t: t.update({f"{LAYER}.bias": torch.ones(96)}), "without bias, got one"),
        (lambda t: t.update({"model.more": torch.zeros(1)}), "got 1 more: 'model.more'"),
        (lambda t: t.update({"model.x.qweight": torch.zeros(1)}), "linear layer 'model.x'"),
        (lambda t: t.pop("model.norm.weight"), "expected tensor 'model.norm.weight'"),
    ],
)  # fmt: skip
def test_wrong_tensor_is_named_with_its_file(tmp_path: Path, change: Any, message: str) -> None:
    built(tmp_path / "model")
    rewritten(tmp_path / "model", change)
    with pytest.raises(ValueError, match=message) as caught:
        calibit.load_model(tmp_path / "model")
    assert "model.safetensors" in str(caught.value) or str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 9}, "bits from 2 to 8, got 9"),
        ({"bits": "4"}, "bits from 2 to 8, got '4'"),
        ({"bits": True}, "bits from 2 to 8, got True"),
        ({"bits": 8}, r"qweight torch.int32 \[24, 64\], got .* \[12, 64\]"),
        ({"group_size": 0}, "group_size to be -1 or above 0"),
        ({"group_size": 64}, r"qzeros torch.int32 \[2, 8\], got .* \[3, 8\]"),
        ({"group_size": 33}, "g_idx with 33 columns in every group"),
        ({"sym": 1}, "sym to be true or false"),
        ({"desc_act": "no"}, "desc_act to be true or false"),
        ({"checkpoint_format": "marlin"}, "got 'marlin'"),
        ({"pack_dtype": "int16"}, "pack_dtype 'int32'"),
        ({"dynamic": []}, None),
        ({"dynamic": [1]}, "dynamic to map patterns"),
        ({"dynamic": {"(": {}}}, "patterns in dynamic"),
        ({"dynamic": {"a": 1}}, "settings for 'a' in dynamic"),
        ({"dynamic": {"-:.*up_proj": {}}}, f"'{LAYER}' .*expected a float layer"),
        ({"dynamic": {".*up_proj": {"bits": 3}}}, f"'{LAYER}' .*qweight"),
        ({"quant_method": "awq"}, "quant_method in config.json to be of calibit, gptq"),
        ({"quant_method": ["gptq"]}, "quant_method"),
    ],
)  # fmt: skip
def test_wrong_configuration_is_refused(tmp_path: Path, change: Any, message: str | None) -> None:
    built(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"].update(change)
    file.write_text(json.dumps(config))
    if message is None:
        calibit.load_model(tmp_path / "model")
        return
    with pytest.raises(ValueError, match=message):
        calibit.load_model(tmp_path / "model")


def test_configuration_of_another_model_is_refused(tmp_path: Path) -> None:
    built(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    for change, message in (
        ({"hidden_size": 128}, r"model\.safetensors"),
        ({"intermediate_size": 128}, r"model\.safetensors"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1"),
        ({"num_hidden_layers": 3}, r"expected tensor 'model\.layers\.2"),
        ({"num_attention_heads": 5}, r"config\.json|model"),
        ({"vocab_size": -3}, r"config\.json"),
        ({"hidden_act": "none"}, r"config\.json"),
    ):
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            calibit.load_model(tmp_path / "model")
        file.write_text(json.dumps(config))


def test_missing_group_index_is_refused_only_where_it_is_needed(tmp_path: Path) -> None:
    model, weights = built(tmp_path / "model")
    rewritten(tmp_path / "model", lambda t: [t.pop(f"{name}.g_idx") for name in weights])
    check_same(tmp_path / "model", model, weights)
    file = tmp_path / "model" / "config.json"
    file.write_text(file.read_text().replace('"desc_act": false', '"desc_act": true'))
    with pytest.raises(ValueError, match="expected g_idx, as desc_act is true"):
        calibit.load_model(tmp_path / "model")


# --- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("scheme", ["int4-g32", "int8-row", "int3-g32", "int2-g16", "int4-tensor"])
def test_written_files_are_those_built_bit_by_bit(tmp_path: Path, scheme: str, layout: str) -> None:
    model = foreign_files.small_llama()
    calibit.quantize_model(model, scheme)
    wrote = export.save(model, tmp_path / "model", layout)
    assert wrote.layers == 14 and wrote.difference == 0.0
    q = model.get_submodule(LAYER).quantized_weight()
    codes = streams.unpack(q.codes, q.scheme.bits, 64).numpy()
    stored = load_file(tmp_path / "model" / "model.safetensors")
    words = [foreign_files.stream_words(row, q.scheme.bits) for row in codes]
    assert torch.equal(stored[f"{LAYER}.qweight"], foreign_files.int32(words).t())
    assert torch.equal(stored[f"{LAYER}.scales"], q.scales.t())
    assert stored[f"{LAYER}.g_idx"].tolist() == [k // q.scheme.group if q.scheme.group > 0 else 0
                                                 for k in range(64)]  # fmt: skip
    copy = json.loads((tmp_path / "model" / "quantize_config.json").read_text())
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert copy == config["quantization_config"]
    assert {key: copy[key] for key in ("sym", "desc_act", "lm_head", "checkpoint_format")} == {
        "sym": True, "desc_act": False, "lm_head": False, "checkpoint_format": layout,
    }  # fmt: skip


def asymmetric(zeros: torch.Tensor) -> Any:
    """A small model whose every layer is int4-g32-asym; `zeros` fills the zero points."""
    model = foreign_files.small_llama()
    calibit.quantize_model(model, "int4-g32-asym")
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            q = module.quantized_weight()
            points = zeros.repeat(q.scales.numel())[: q.scales.numel()].reshape(q.scales.shape)
            changed = {**q.tensors(), "zeros": points.contiguous()}
            q = QuantizedWeight.from_tensors(changed, scheme=q.scheme, shape=q.shape)
            model.set_submodule(name, QuantizedLinear(q))
    return model


def test_asymmetric_round_trip_and_the_zero_that_version_1_cannot_hold(tmp_path: Path) -> None:
    model = asymmetric(torch.arange(1, 16, dtype=torch.uint8))
    for layout in ("gptq", "gptq_v2"):
        assert export.save(model, tmp_path / layout, layout).difference == 0.0
    with_zero = asymmetric(torch.arange(16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"zero point is 0, which version 1 cannot hold"):
        export.save(with_zero, tmp_path / "no", "gptq")
    assert export.save(with_zero, tmp_path / "yes", "gptq_v2").difference == 0.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gptq", "gptq_v2", "yes"]


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("nf4", "nf4 has a codebook"),
        ("int4-g32-fzero", "real numbers"),
        ("int5-g32", "2, 3, 4 or 8 bits, got 5"),
        ({"mlp": "int4-g32", "q_proj": "fp4"}, "1 of 7 layers|2 of 8 layers as gptq, such as"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path, scheme: Any, message: str) -> None:
    model = foreign_files.small_llama()
    calibit.quantize_model(model, scheme)
    with pytest.raises(ValueError, match=rf"\[export\] cannot write .*({message})"):
        export.save(model, tmp_path / "no", "gptq")
    assert not list(tmp_path.iterdir())


def test_rows_that_do_not_fill_words_are_refused(tmp_path: Path) -> None:
    model = tiny_models.build("llama")  # 48 inputs of 3 bits are four words and a half
    calibit.quantize_model(model, "int3-g16")
    with pytest.raises(ValueError, match="do not fill words of 32 bits"):
        export.save(model, tmp_path / "no", "gptq")


def test_mixed_models_describe_every_layer(tmp_path: Path) -> None:
    model = foreign_files.small_llama()
    calibit.quantize_model(model, {"mlp": "int4-g32", "q_proj": "int8-row-head", "v_proj": "keep"})
    export.save(model, tmp_path / "model", "gptq")
    section = json.loads((tmp_path / "model" / "quantize_config.json").read_text())
    assert (section["bits"], section["group_size"]) == (4, 32)
    assert section["dynamic"][r"+:^model\.layers\.0\.self_attn\.q_proj$"]["bits"] == 8
    assert section["dynamic"][r"-:^model\.layers\.1\.self_attn\.v_proj$"] == {}
    assert isinstance(calibit.load_model(tmp_path / "model").model.layers[0].self_attn.v_proj,
                      nn.Linear)  # fmt: skip


def test_settings_of_fused_layers_have_their_engine_name_too(tmp_path: Path) -> None:
    """vLLM and SGLang match patterns with `qkv_proj` and `gate_up_proj`."""
    model = foreign_files.small_llama(num_hidden_layers=1)
    plan = {"re:gate|up": "int8-g32", "re:[qkv]_proj": "keep", "*": "int4-g32"}
    calibit.quantize_model(model, plan)
    export.save(model, tmp_path / "model", "gptq", required=["vllm"])
    section = json.loads((tmp_path / "model" / "quantize_config.json").read_text())
    eight = {"bits": 8, "group_size": 32, "sym": True}
    assert section["bits"] == 4 and section["dynamic"] == {
        **{rf"+:^model\.layers\.0\.mlp\.{name}_proj$": eight for name in ("gate", "up", "gate_up")},
        **{rf"-:^model\.layers\.0\.self_attn\.{name}_proj$": {} for name in ("q", "k", "v", "qkv")},
    }
    half = foreign_files.small_llama(num_hidden_layers=1)
    calibit.quantize_model(half, {"q_proj": "int8-g32", "*": "int4-g32"})
    export.save(half, tmp_path / "half", "gptq")
    assert "qkv" not in (tmp_path / "half" / "quantize_config.json").read_text()


def test_quantized_head_is_stored_apart(tmp_path: Path) -> None:
    model = foreign_files.small_llama(tied=True)
    calibit.quantize_model(model, "int4-g32-head")
    export.save(model, tmp_path / "model", "gptq")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["quantization_config"]["lm_head"] is True
    again = calibit.load_model(tmp_path / "model")
    assert isinstance(again.lm_head, QuantizedLinear)


def test_conversion_there_and_back_is_the_same_checkpoint(tmp_path: Path) -> None:
    model = foreign_files.small_llama()
    calibit.quantize_model(model, "int4-g32-asym")
    native.save(model, tmp_path / "own")
    checkpoints.convert(tmp_path / "own", tmp_path / "foreign", "gptq_v2")
    checkpoints.convert(tmp_path / "foreign", tmp_path / "back", "calibit")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "back"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
