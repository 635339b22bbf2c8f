"""compressed-tensors checkpoints: against files built bit by bit, and against its own package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import calibit
import calibit.activations
import foreign_files
import tiny_models
from calibit.io import checkpoints, export
from foreign_files import check_same, rewritten

LAYER = "model.layers.0.mlp.up_proj"


def built(folder: Path, *, section: dict[str, Any] | None = None, **layer: Any) -> tuple[Any, Any]:
    """A foreign folder, the float model that it stands for, and the weights of its layers."""
    options = {"bits": 4, "group": 32, "symmetric": True, **layer}
    strategy = "group" if options["group"] > 0 else "channel"
    size = options["group"] if options["group"] > 0 else None
    section = section or foreign_files.packed_section(
        num_bits=options["bits"], group_size=size, strategy=strategy,
        symmetric=options["symmetric"],
    )  # fmt: skip
    model = foreign_files.small_llama()
    weights = foreign_files.write_checkpoint(
        folder, model, section,
        lambda name, n, k, seed: foreign_files.packed_layer(n, k, seed=seed, **options),
    )  # fmt: skip
    return model, weights


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_files_built_bit_by_bit_are_read(tmp_path: Path, bits: int, symmetric: bool) -> None:
    model, weights = built(tmp_path / "model", bits=bits, symmetric=symmetric)
    read = check_same(tmp_path / "model", model, weights)
    scheme = f"int{bits}-g32" + ("" if symmetric else "-asym")
    assert str(read.get_submodule(LAYER).scheme) == scheme


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_padded_words_of_before_2026(tmp_path: Path, bits: int) -> None:
    check_same(tmp_path / "model", *built(tmp_path / "model", bits=bits, padded=True))


@pytest.mark.parametrize("group", [-1, 16, 96, 128])
def test_groups_and_channels(tmp_path: Path, group: int) -> None:
    read = check_same(tmp_path / "model", *built(tmp_path / "model", group=group))
    assert bool(read.get_submodule(LAYER).notes) == (group > 64)


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
def test_files_of_before_2025(tmp_path: Path, symmetric: bool) -> None:
    """Zero points as int8, also where they are all 0; settings of then."""
    section = foreign_files.packed_section(symmetric=symmetric)
    section |= {"quantization_status": "frozen", "sparsity_config": {"format": "dense"}}
    model, weights = built(tmp_path / "model", section=section, symmetric=symmetric)

    def unpacked(tensors: dict[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            n, key = weight.shape[0], f"{name}.weight_zero_point"
            zeros = torch.zeros(n, weight.shape[1] // 32, dtype=torch.int8)
            if not symmetric:
                words = tensors[key].numpy().view(np.uint32)
                nibbles = [
                    [int(words[i // 8, g]) >> 4 * (i % 8) & 15 for g in range(zeros.shape[1])]
                    for i in range(n)
                ]
                zeros = torch.tensor(nibbles).sub(8).to(torch.int8)
            tensors[key] = zeros

    rewritten(tmp_path / "model", unpacked)
    check_same(tmp_path / "model", model, weights)


def test_one_scale_for_a_tensor(tmp_path: Path) -> None:
    section = foreign_files.packed_section(strategy="tensor", group_size=None)
    _, weights = built(tmp_path / "model", section=section, group=-1)
    half = {name: torch.tensor([0.01], dtype=torch.float16) for name in weights}
    rewritten(
        tmp_path / "model", lambda t: t.update({f"{n}.weight_scale": s for n, s in half.items()})
    )
    stored = load_file(tmp_path / "model" / "model.safetensors")
    read = calibit.load_model(tmp_path / "model")
    words = stored[f"{LAYER}.weight_packed"].numpy().view(np.uint32)
    first = (int(words[0, 0]) & 15) - 8
    layer = read.get_submodule(LAYER)
    assert float(layer.dequantize(torch.float32)[0, 0]) == first * float(half[LAYER].float())


def test_activation_order(tmp_path: Path) -> None:
    index = {k: np.random.default_rng(k).permutation(np.arange(k) // 32) for k in (64, 96)}
    section = foreign_files.packed_section(actorder="group")
    model = foreign_files.small_llama()
    weights = foreign_files.write_checkpoint(
        tmp_path / "model", model, section,
        lambda name, n, k, seed: foreign_files.packed_layer(
            n, k, bits=4, group=32, symmetric=True, group_index=index[k], seed=seed
        ),
    )  # fmt: skip
    read = check_same(tmp_path / "model", model, weights)
    wrote = export.save(read, tmp_path / "again", "compressed-tensors")
    assert wrote.difference == 0.0
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("model", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_layers_named_by_pattern_count_before_their_class(tmp_path: Path) -> None:
    section = foreign_files.packed_section()
    eight = json.loads(json.dumps(section["config_groups"]["group_0"]))
    eight["targets"] = ["re:.*mlp.*"]
    eight["weights"].update(num_bits=8, strategy="channel", group_size=None)
    section["config_groups"]["group_1"] = eight
    model = foreign_files.small_llama()
    weights = foreign_files.write_checkpoint(
        tmp_path / "model", model, section,
        lambda name, n, k, seed: foreign_files.packed_layer(
            n, k, symmetric=True, seed=seed,
            bits=8 if "mlp" in name else 4, group=-1 if "mlp" in name else 32,
        ),
    )  # fmt: skip
    read = check_same(tmp_path / "model", model, weights)
    export.save(read, tmp_path / "again", "compressed-tensors")
    check_same(tmp_path / "again", model, weights)


def int_quantized(
    folder: Path, inputs: Any, dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[Any, Any]:
    """As `built`, format int-quantized, with `inputs` as `input_activations`."""
    section = foreign_files.packed_section(num_bits=8, strategy="channel", group_size=None)
    section |= {"format": "int-quantized", **changes}
    section["config_groups"]["group_0"]["input_activations"] = inputs

    def layer(name: str, n: int, k: int, seed: int) -> Any:
        rng = torch.Generator().manual_seed(seed)
        weight = torch.randint(-128, 128, (n, k), generator=rng, dtype=torch.int8)
        scale = ((torch.rand(n, 1, generator=rng) + 0.5) / 1000).to(dtype)
        return {"weight": weight, "weight_scale": scale}, scale.float() * weight.float()

    model = foreign_files.small_llama()
    return model, foreign_files.write_checkpoint(folder, model, section, layer)


PER_TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int_quantized_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    model, weights = int_quantized(tmp_path / "model", None, dtype)
    read = check_same(tmp_path / "model", model, weights)
    assert str(read.get_submodule(LAYER).scheme) == "int8-row"
    wrote = export.save(read, tmp_path / "again", "int-quantized")
    refused = [finding for finding in wrote.findings if finding.refused]
    assert {finding.engine for finding in refused} == {"vllm", "sglang"}
    assert all("with 8-bit activations only (scheme w8a8)" in str(found) for found in refused)
    stored = load_file(tmp_path / "again" / "model.safetensors")
    assert stored[f"{LAYER}.weight_scale"].dtype == torch.float32
    check_same(tmp_path / "again", model, weights)


def test_int_quantized_inputs(tmp_path: Path) -> None:
    """Inputs rounded by token are rounded here too, written again, and left out on demand."""
    model, weights = int_quantized(tmp_path / "model", PER_TOKEN)
    read = calibit.load_model(tmp_path / "model")
    assert str(read.get_submodule(LAYER).scheme) == "int8-row-a8"
    assert not read.get_submodule(LAYER).notes

    def rounded(_: Any, inputs: Any) -> Any:
        x = inputs[0]
        scale = x.abs().amax(-1, keepdim=True) / 127
        return ((x / scale).round() * scale,)

    for name in weights:
        model.get_submodule(name).register_forward_pre_hook(rounded)
    ids = tiny_models.tokens()
    ours, theirs = tiny_models.logits(read, ids), tiny_models.logits(model, ids)
    weights_alone = calibit.load_model(tmp_path / "model", float_activations=True)
    without = tiny_models.logits(weights_alone, ids)
    # Roundings of float32 move few inputs over a tie of the grid; without the grid all move.
    spread = float((without - theirs).square().mean().sqrt())
    assert float((ours - theirs).square().mean().sqrt()) < 0.1 * spread
    wrote = export.save(read, tmp_path / "again", "int-quantized", required=["vllm", "sglang"])
    assert wrote.difference == 0.0 and not wrote.findings
    again = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    group = again["quantization_config"]["config_groups"]["group_0"]
    assert group["input_activations"] == {**PER_TOKEN, "type": "int", "symmetric": True}


def test_inputs_in_floating_point_on_demand(tmp_path: Path) -> None:
    model, weights = int_quantized(tmp_path / "model", PER_TOKEN, torch.float16)
    read = check_same(tmp_path / "model", model, weights, float_activations=True)
    assert any("activations are quantized too" in note for note in read.get_submodule(LAYER).notes)
    wrote = checkpoints.convert(
        tmp_path / "model", tmp_path / "gptq", "gptq", float_activations=True
    )
    assert wrote.difference == 0.0
    with pytest.raises(ValueError, match=r"cannot say that the input is rounded \(option a8\)"):
        checkpoints.convert(tmp_path / "model", tmp_path / "no", "gptq")
    checkpoints.convert(tmp_path / "gptq", tmp_path / "own", "calibit")
    with pytest.raises(ValueError, match="got one of calibit's own"):
        calibit.load_model(tmp_path / "own", float_activations=True)


STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False}


@pytest.mark.parametrize(
    ("inputs", "changes", "message"),
    [
        (STATIC, {}, r"dynamic by token, got .*strategy 'tensor', dynamic False: calibit does not"),
        ({**PER_TOKEN, "symmetric": False}, {}, "symmetric False"),
        ({**PER_TOKEN, "num_bits": 4}, {}, "num_bits 4"),
        ({**PER_TOKEN, "type": "float"}, {}, "type 'float'"),
        ({**PER_TOKEN, "dynamic": "local"}, {}, "dynamic 'local'"),
        (None, {"kv_cache_scheme": STATIC}, "a cache in floating point, got kv_cache_scheme"),
    ],
)
def test_inputs_that_calibit_does_not_compute(
    tmp_path: Path, inputs: Any, changes: Any, message: str
) -> None:
    model, weights = int_quantized(tmp_path / "model", inputs, **changes)
    with pytest.raises(ValueError, match=message) as raised:
        calibit.load_model(tmp_path / "model")
    assert "--float_activations" in str(raised.value)
    check_same(tmp_path / "model", model, weights, float_activations=True)


def test_outputs_that_are_quantized_are_refused(tmp_path: Path) -> None:
    section = foreign_files.packed_section()
    section["config_groups"]["group_0"]["output_activations"] = STATIC
    built(tmp_path / "model", section=section)
    with pytest.raises(ValueError, match="expected float outputs in group_0, got output_activ"):
        calibit.load_model(tmp_path / "model")


def test_packed_weights_with_rounded_inputs(tmp_path: Path) -> None:
    section = foreign_files.packed_section()
    section["config_groups"]["group_0"]["input_activations"] = PER_TOKEN
    built(tmp_path / "model", section=section)
    read = calibit.load_model(tmp_path / "model")
    assert str(read.get_submodule(LAYER).scheme) == "int4-g32-a8"
    with pytest.raises(ValueError, match="cannot say that the input is rounded"):
        export.save(read, tmp_path / "again", "compressed-tensors")


# --- refusing -----------------------------------------------------------------------------------


def put(part: str, change: Any) -> Any:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}.{part}"] = change(tensors[f"{LAYER}.{part}"]).contiguous()

    return edit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("weight_packed", lambda t: t[:-1]), r"weight_packed torch.int32 \[96, 8\], got"),
        (put("weight_packed", lambda t: t[:, :-1]), r"got torch.int32 \[96, 7\]"),
        (put("weight_packed", lambda t: t.long()), "got torch.int64"),
        (put("weight_scale", lambda t: t[:, :1]), r"weight_scale torch.float16 \[96, 2\]"),
        (put("weight_scale", lambda t: t * torch.nan), "finite scales"),
        (put("weight_shape", lambda t: t.flip(0)), r"weight_shape \[96, 64\], got \[64, 96\]"),
        (lambda t: t.pop(f"{LAYER}.weight_shape"), r"missing \['weight_shape'\]"),
        (
            lambda t: t.update({f"{LAYER}.weight_g_idx": torch.full((64,), 2)}),
            "g_idx from 0 to 1, got 2 to 2",
        ),
        (
            lambda t: t.update(
                {f"{LAYER}.weight_zero_point": torch.zeros(12, 2, dtype=torch.int32)}
            ),
            "expected no weight_zero_point, as symmetric is true",
        ),
    ],
)
def test_wrong_tensor_is_named_with_its_file(tmp_path: Path, change: Any, message: str) -> None:
    built(tmp_path / "model")
    rewritten(tmp_path / "model", change)
    with pytest.raises(ValueError, match=rf"'{LAYER}' from model\.safetensors: .*{message}"):
        calibit.load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"num_bits": 9}, "num_bits from 2 to 8"),
        ({"num_bits": 8}, "weight_packed torch.int32"),
        ({"type": "float"}, "weights of type 'int' in group_0, got 'float'"),
        ({"symmetric": False}, "weight_zero_point, as symmetric is false"),
        ({"symmetric": "no"}, "symmetric of group_0"),
        ({"strategy": "block"}, "strategy group, channel or tensor"),
        ({"group_size": 64}, "weight_scale torch.float16"),
        ({"group_size": 0}, "group_size above 0"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, weights: Any, message: str) -> None:
    built(tmp_path / "model", section=foreign_files.packed_section(**weights))
    with pytest.raises(ValueError, match=message):
        calibit.load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config_groups": None}, "config_groups to map"),
        ({"config_groups": {"a": {"targets": "Linear"}}}, "targets of a"),
        ({"config_groups": {"a": {"targets": ["re:("], "weights": {}}}}, "a pattern in a"),
        ({"config_groups": {"a": {"targets": ["Linear"]}}}, "weights of a"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config of format 'dense'"),
        ({"transform_config": {"R1": {}}}, "no transform_config"),
        ({"format": "int-quantized"}, "tensors of format 'int-quantized', got those of 'pack-q"),
    ],
)
def test_wrong_configuration_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    built(tmp_path / "model", section={**foreign_files.packed_section(), **change})
    with pytest.raises(ValueError, match=message):
        calibit.load_model(tmp_path / "model")


def test_layer_that_is_no_target_is_refused(tmp_path: Path) -> None:
    section = foreign_files.packed_section()
    section["config_groups"]["group_0"]["targets"] = ["re:.*attn.*"]
    built(tmp_path / "model", section=section)
    with pytest.raises(ValueError, match="expected one of config_groups to have it as a target"):
        calibit.load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("scheme", "layout", "message"),
    [
        ("nf4", "compressed-tensors", "nf4 has a codebook"),
        ("int4-g32-fzero", "compressed-tensors", "real numbers"),
        ("int4-g64", "compressed-tensors", "no multiple of its group of 64"),
        ("int4-row", "int-quantized", "8 bits with one scale per row, got int4-row"),
        ("int8-g32", "int-quantized", "8 bits with one scale per row, got int8-g32"),
        ("int8-row-asym", "int-quantized", "symmetric for the engines"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(
    tmp_path: Path, scheme: str, layout: str, message: str
) -> None:
    model = foreign_files.small_llama()
    calibit.quantize_model(model, scheme)
    with pytest.raises(ValueError, match=message):
        export.save(model, tmp_path / "no", layout)
    assert not list(tmp_path.iterdir())


# --- GPTQ and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_gptq_there_and_back_is_the_same_file(tmp_path: Path, bits: int) -> None:
    """The stored number is the same in both layouts, so this is a re-arrangement of bits."""
    model = foreign_files.small_llama()
    section = foreign_files.gptq_section(bits=bits)
    weights = foreign_files.write_checkpoint(
        tmp_path / "gptq", model, section,
        lambda name, n, k, seed: foreign_files.gptq_layer(
            n, k, bits=bits, group=32, version="gptq", symmetric=True, seed=seed
        ),
    )  # fmt: skip
    there = checkpoints.convert(tmp_path / "gptq", tmp_path / "packed", "compressed-tensors")
    back = checkpoints.convert(tmp_path / "packed", tmp_path / "back", "gptq")
    assert there.difference == back.difference == 0.0
    check_same(tmp_path / "packed", model, weights)
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("gptq", "back"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- its own package ----------------------------------------------------------------------------

WITHOUT = "compressed-tensors is not installed (extra 'dev')"


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("strategy", ["group", "channel"])
def test_layers_that_the_package_compresses(
    tmp_path: Path, strategy: str, bits: int, symmetric: bool
) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors", reason=WITHOUT)
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    group = 32 if strategy == "group" else None
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = compressors.PackedQuantizationCompressor

    def layer(name: str, n: int, k: int, seed: int) -> Any:
        rng = torch.Generator().manual_seed(seed)
        groups = k // (group or k)
        scale = ((torch.rand(n, groups, generator=rng) + 0.5) / 2**bits).to(torch.float16)
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        zero = torch.randint(low, high + 1, (n, groups), generator=rng, dtype=torch.int8)
        zero = zero * 0 if symmetric else zero
        state = {
            "weight": torch.randn(n, k, generator=rng) / 4,
            "weight_scale": scale, "weight_zero_point": zero,
        }  # fmt: skip
        packed = dict(compressor.compress(state, scheme))
        single = {**packed, "weight_scale": scale.float()}  # its arithmetic is that of the scale
        return packed, compressor.decompress(single, scheme)["weight"].float()

    section = foreign_files.packed_section(
        num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group
    )
    model = foreign_files.small_llama()
    weights = foreign_files.write_checkpoint(tmp_path / "model", model, section, layer)
    read = check_same(tmp_path / "model", model, weights)
    export.save(read, tmp_path / "again", "compressed-tensors")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("model", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("scheme", "layout"),
    [
        ("int4-g32", "compressed-tensors"),
        ({"mlp": "int8-row", "self_attn": "int4-g16"}, "compressed-tensors"),
        ("int8-row", "int-quantized"),
        ("w8a8", "int-quantized"),
    ],
    ids=str,
)
def test_transformers_reads_what_is_written(tmp_path: Path, scheme: Any, layout: str) -> None:
    pytest.importorskip("compressed_tensors", reason=WITHOUT)
    from transformers import AutoModelForCausalLM

    model = foreign_files.small_llama()
    calibit.quantize_model(model, scheme)
    export.save(model, tmp_path / "model", layout)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = tiny_models.tokens()
    ours, other = tiny_models.logits(model, ids), tiny_models.logits(theirs, ids)
    # The package dequantizes to the dtype of the scales, float16: 2^-11 of each weight.
    if scheme != "w8a8":
        assert float((ours - other).abs().max()) <= 0.005 * float(ours.abs().max())
        return
    # It rounds inputs on a grid of 127.5 steps instead of 127: as if rounded twice, independently.
    alone = calibit.load_model(tmp_path / "model", float_activations=True)
    plain = tiny_models.logits(alone, ids)
    first, second = (float((ours - t).square().mean().sqrt()) for t in (other, plain))
    assert 0.5 * second < first < 2 * second  # about sqrt(2)


def test_rounding_of_inputs_is_that_of_the_package_but_for_its_grid() -> None:
    """The package's grid has 127.5 steps, ours and the engines' kernels' 127."""
    pytest.importorskip("compressed_tensors", reason=WITHOUT)
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import helpers

    x = torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(4))
    args = QuantizationArgs(**PER_TOKEN)
    scale, zero = helpers.compute_dynamic_scales_and_zp(x, args, torch.nn.Linear(96, 8))
    theirs = fake_quantize(x, scale, zero, args)
    ours = calibit.activations.rounded(x)
    largest = x.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(scale, largest / 127.5)
    # Each lies at most half a step of its own grid from x.
    assert bool(((ours - theirs).abs() <= (largest / 127 + scale) / 2 * (1 + 1e-5)).all())


def test_model_that_the_package_writes(tmp_path: Path) -> None:
    """A whole model, asymmetric, its section as the package words it."""
    compressors = pytest.importorskip("compressed_tensors.compressors", reason=WITHOUT)
    from compressed_tensors import quantization as package

    model = foreign_files.small_llama()
    arguments = package.QuantizationArgs(
        num_bits=4, symmetric=False, strategy="group", group_size=32
    )
    scheme = package.QuantizationScheme(targets=["Linear"], weights=arguments)
    package.apply_quantization_config(
        model,
        package.QuantizationConfig(
            config_groups={"group_0": scheme}, ignore=["lm_head"], quantization_status="frozen"
        ),
    )
    expected = {}
    for name, layer in foreign_files.block_layers(model).items():
        groups = layer.weight.detach().reshape(layer.weight.shape[0], -1, 32)
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = (high - low) / 15
        zero = (-8 - torch.round(low / scale)).clamp(-8, 7)
        layer.weight_scale.data.copy_(scale)
        layer.weight_zero_point.data.copy_(zero.to(layer.weight_zero_point.dtype))
        codes = torch.round(groups / scale[..., None] + zero[..., None]).clamp(-8, 7)
        expected[name] = (scale[..., None] * (codes - zero[..., None])).reshape(layer.weight.shape)
    compressor = compressors.ModelCompressor.from_pretrained_model(model, "pack-quantized")
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "model")
    compressor.update_config(tmp_path / "model")
    read = calibit.load_model(tmp_path / "model")
    for name, weight in expected.items():
        assert torch.equal(read.get_submodule(name).dequantize(torch.float32), weight), name
    # transformers 5.23 does not load this file of the package's own; calibit says so.
    wrote = export.save(read, tmp_path / "again", "compressed-tensors")
    assert any("transformers" in note for note in wrote.notes)


def test_the_bits_of_a_straddling_code() -> None:
    """Eleven codes of 3 bits, the last over the edge of the first word, against the package."""
    helpers = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers", reason=WITHOUT
    )
    codes = torch.arange(-4, 4, dtype=torch.int8).repeat(2)[None, :11]
    ours = foreign_files.int32([foreign_files.stream_words((codes[0] + 4).tolist(), 3)])
    assert torch.equal(helpers.pack_to_int32(codes, 3), ours)


def test_width_that_cannot_be_told(tmp_path: Path) -> None:
    """33 codes of 3 bits are four words dense and padded."""
    from calibit.io.compressed_tensors_layers import _unpack

    with pytest.raises(ValueError, match="cannot be told"):
        _unpack(torch.zeros(2, 4, dtype=torch.int32), 3, 2, 33)
