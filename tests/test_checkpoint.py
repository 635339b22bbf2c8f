"""The calibit checkpoint: bit-exact round trips, and a sentence for every damaged folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import audit_cases
import calibit
import tiny_models
from calibit.io import native
from calibit.modules import QuantizedLinear
from calibit.quantization import quantize_checkpoint, quantize_model, weight_hash

SCHEMES = ("nf4", "nf4-dq", "int4-g32-asym", "int8-row-head")
LAYER = "model.layers.0.mlp.up_proj"


def saved(folder: Path, name: str = "llama", scheme: Any = "nf4", **options: Any) -> Any:
    """A quantized tiny model, written to `folder`."""
    model = tiny_models.build(name)
    quantize_model(model, scheme)
    native.save(model, folder, **options)
    return model


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


# --- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_models.CONFIGURATIONS)
def test_round_trip_keeps_every_bit(tmp_path: Path, name: str) -> None:
    scheme = SCHEMES[list(tiny_models.CONFIGURATIONS).index(name) % len(SCHEMES)]
    model = saved(tmp_path / "model", name, scheme)
    again = native.load(tmp_path / "model")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype, key
        assert torch.equal(tensor, after[key]), key
    ids = tiny_models.tokens()
    assert torch.equal(tiny_models.logits(model, ids), tiny_models.logits(again, ids))
    assert type(again) is type(model)
    assert weight_hash(again) == weight_hash(model)


def test_many_files_hold_the_same_as_one(tmp_path: Path) -> None:
    model = saved(tmp_path / "one", max_shard_bytes=10**9)
    native.save(model, tmp_path / "many", max_shard_bytes=8000)
    names = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(names) > 3
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    sizes = [(tmp_path / "many" / name).stat().st_size for name in names]
    assert max(sizes) < 8000 + 96 * 48 * 4  # one tensor alone may be larger than a file should be
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    assert weight_hash(native.load(tmp_path / "many")) == weight_hash(model)


def test_tied_tensor_is_stored_once_and_tied_again(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    again = native.load(tmp_path / "model")
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_quantized_head_stays_apart_from_the_embedding(tmp_path: Path) -> None:
    saved(tmp_path / "model", scheme="nf4-head")
    again = native.load(tmp_path / "model")
    assert isinstance(again.lm_head, QuantizedLinear)
    assert isinstance(again.model.embed_tokens.weight, nn.Parameter)
    again.tie_weights()
    assert isinstance(again.lm_head, QuantizedLinear)


def test_bfloat16_model_comes_back_as_bfloat16(tmp_path: Path) -> None:
    model = tiny_models.build("qwen2", dtype=torch.bfloat16)
    quantize_model(model, "int4")
    native.save(model, tmp_path / "model")
    again = native.load(tmp_path / "model")
    assert again.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    ids = tiny_models.tokens()
    assert torch.equal(tiny_models.logits(model, ids), tiny_models.logits(again, ids))


def test_dtype_changes_parameters_but_no_code_and_no_scale(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "gpt2")
    again = calibit.load_model(tmp_path / "model", dtype=torch.bfloat16)
    before, after = model.state_dict(), again.state_dict()
    for key in (k for k in before if k.endswith((".codes", ".scales", ".codebook"))):
        assert torch.equal(before[key], after[key])
        assert before[key].dtype == after[key].dtype
    assert after["transformer.wte.weight"].dtype == torch.bfloat16
    assert tiny_models.logits(again, tiny_models.tokens()).dtype == torch.bfloat16


def test_loaded_model_needs_the_files_no_longer(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    again = native.load(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    ids = tiny_models.tokens()
    assert torch.equal(tiny_models.logits(model, ids), tiny_models.logits(again, ids))


def test_plan_and_source_are_recorded(tmp_path: Path) -> None:
    model = tiny_models.build("llama")
    source = weight_hash(model)
    quantize_model(model, {"mlp": "nf4", "q_proj": "int8-row"})
    native.save(model, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]
    assert (record["quant_method"], record["source_hash"]) == ("calibit", source)
    assert record["modules"][LAYER] == "nf4"
    assert record["modules"]["model.layers.1.self_attn.q_proj"] == "int8-row"
    assert len(record["modules"]) == 8
    assert json.loads(record["scheme"]) == {"mlp": "nf4", "q_proj": "int8-row"}


def test_generation_settings_survive(tmp_path: Path) -> None:
    model = tiny_models.build("llama")
    model.generation_config.max_new_tokens = 7
    model.generation_config.temperature = 0.5  # without sampling: transformers would refuse to save
    quantize_model(model, "nf4")
    native.save(model, tmp_path / "model")
    assert native.load(tmp_path / "model").generation_config.max_new_tokens == 7


def test_a_codebook_file_is_not_needed_again(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("-1 -0.4 0.1 1")
    model = tiny_models.build("llama")
    quantize_model(model, f"{book}-g16")
    native.save(model, tmp_path / "model")
    book.unlink()
    again = calibit.load_model(tmp_path / "model")
    ids = tiny_models.tokens()
    assert torch.equal(tiny_models.logits(again, ids), tiny_models.logits(model, ids))


def test_is_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path / "quantized")
    tiny_models.build("llama").save_pretrained(tmp_path / "float")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    found = {n: native.is_checkpoint(tmp_path / n) for n in ("quantized", "float", "broken", "no")}
    assert found == {"quantized": True, "float": False, "broken": False, "no": False}


# --- writing never harms ------------------------------------------------------------------------


class FailingTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        raise OSError("no space left on device")


def test_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space left"):
        saved(tmp_path / "model", tokenizer=FailingTokenizer())
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match=r"\[save\] expected a new folder"):
        saved(tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_permissions_are_those_of_any_new_folder(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    (tmp_path / "plain").mkdir()
    assert os.stat(tmp_path / "model").st_mode == os.stat(tmp_path / "plain").st_mode  # noqa: PTH116


def test_float_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[save\] expected a model with quantized layers"):
        native.save(tiny_models.build("llama"), tmp_path / "model")
    with pytest.raises(ValueError, match=r"\[save\] expected a Hugging Face model"):
        native.save(nn.Linear(2, 2), tmp_path / "model")


# --- reading refuses with file and tensor -------------------------------------------------------


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def put(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(f"{LAYER}.codes"), r"missing \['codes'\]"),
        (drop(f"{LAYER}.scales"), rf"{LAYER}.* as nf4 from model.safetensors: .*missing"),
        (drop("model.norm.weight"), r"expected tensor 'model.norm.weight'"),
        (put("model.extra", torch.zeros(2)), r"got 1 more: 'model.extra' in model.safetensors"),
        (put(f"{LAYER}.zeros", torch.zeros(2)), rf"{LAYER}.*unknown \['zeros'\]"),
        (put("model.norm.weight", torch.zeros(3)), r"'model.norm.weight' as .*\[48\], got .*\[3\]"),
        (put("model.norm.weight", torch.zeros(48, dtype=torch.int32)), r"got torch.int32 \[48\]"),
        (put(f"{LAYER}.codes", torch.zeros(80, 23, dtype=torch.uint8)), rf"{LAYER}.*codes.*23"),
        (put(f"{LAYER}.codes", torch.zeros(80, 24)), rf"{LAYER}.*codes.*[fF]loat"),
        (put(f"{LAYER}.scales", torch.zeros(80, 2)), rf"{LAYER}.*scales.*2"),
        (put(f"{LAYER}.scales", torch.full((80, 1), torch.nan)), f"Inf in '{LAYER}.scales'"),
        (put(f"{LAYER}.bias", torch.zeros(80)), rf"expected '{LAYER}' without bias"),
    ],
)  # fmt: skip
def test_wrong_tensor_is_named_with_its_file(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    saved(tmp_path / "model")
    edit_tensors(tmp_path / "model", change)
    with pytest.raises(ValueError, match=message) as caught:
        native.load(tmp_path / "model")
    # A tensor that is nowhere has no file; the folder is named then.
    assert "model.safetensors" in str(caught.value) or str(tmp_path) in str(caught.value)


def test_parameter_that_is_not_finite_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    edit_tensors(tmp_path / "model", lambda t: t["model.norm.weight"][3:4].fill_(torch.nan))
    with pytest.raises(ValueError, match=r"NaN or Inf in 'model\.norm\.weight' in model\.saf"):
        native.load(tmp_path / "model")


def test_missing_bias_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "model", "qwen2")
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(tmp_path / "model", drop(name))
    with pytest.raises(ValueError, match=f"expected tensor '{name}' in model.safetensors"):
        native.load(tmp_path / "model")


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def huge_header(file: Path) -> None:
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])


def header(file: Path, entry: dict[str, Any]) -> None:
    text = json.dumps({"x": entry}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))


def beyond_the_end(file: Path) -> None:
    header(file, {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]})


def no_such_dtype(file: Path) -> None:
    header(file, {"dtype": "F7", "shape": [4], "data_offsets": [0, 16]})


def empty(file: Path) -> None:
    file.write_bytes(b"")


def pickled(file: Path) -> None:
    torch.save({"x": torch.zeros(2)}, file)


@pytest.mark.parametrize(
    "damage", [truncated, huge_header, beyond_the_end, no_such_dtype, empty, pickled]
)
def test_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    saved(tmp_path / "model")
    damage(tmp_path / "model" / "model.safetensors")
    with pytest.raises(ValueError, match=r"a whole safetensors file, got model\.safetensors"):
        native.load(tmp_path / "model")


def test_missing_file_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "model", max_shard_bytes=20_000)
    (tmp_path / "model" / "model-00002-of-00005.safetensors").unlink(missing_ok=True)
    for file in (tmp_path / "model").glob("model-00002*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="expected model-00002-of-"):
        native.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"x": "../secret.safetensors"}}, "plain file names"),
        ({"weight_map": {"x": 3}}, "plain file names|weight_map"),
        ({"weight_map": []}, "weight_map"),
        ({}, "weight_map"),
    ],
)
def test_index_that_points_elsewhere_is_refused(tmp_path: Path, index: Any, message: str) -> None:
    saved(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        native.load(tmp_path / "model")


def test_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    folder = tmp_path / "model"
    (folder / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    index = {"weight_map": {"a": "model.safetensors", "b": "other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="expected each tensor once"):
        native.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("quantization_config"), "expected quant_method 'calibit'"),
        (lambda c: c["quantization_config"].update(quant_method="gptq"), "got 'gptq'"),
        (lambda c: c["quantization_config"].update(format=2), "expected format 1"),
        (lambda c: c["quantization_config"].update(modules=[LAYER]), "expected 'modules'"),
        (lambda c: c["quantization_config"]["modules"].update({LAYER: "nf9"}), "unknown token"),
        (lambda c: c["quantization_config"]["modules"].update({LAYER: "int4"}), f"{LAYER}.*int4"),
        (lambda c: c["quantization_config"]["modules"].update({LAYER: "fp32"}), f"{LAYER}.*fp32"),
        (lambda c: c["quantization_config"]["modules"].update({"model.no": "nf4"}), "'model.no'"),
        (lambda c: c["quantization_config"]["modules"].pop(LAYER), f"'{LAYER}.weight'"),
        (lambda c: c["quantization_config"]["tied"].update({"a.b": "c.d"}), "'a.b' and 'c.d'"),
        (lambda c: c.update(dtype="x"), r"\[model\] expected a model .* got '.*model'"),
        (lambda c: c.update(num_attention_heads=0), r"\[model\] expected a model .* got '.*model'"),
        (lambda c: c.update(hidden_act="x"), r"\[load\] cannot build the model .*config\.json'"),
        (lambda c: c.update(vocab_size=0), r"\[load\] cannot build the model .*config\.json'"),
    ],
)  # fmt: skip
def test_wrong_configuration_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    saved(tmp_path / "model")
    edit_config(tmp_path / "model", change)
    with pytest.raises(ValueError, match=message):
        native.load(tmp_path / "model")


def test_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        native.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"expected config\.json"):
        native.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        native.load(tmp_path)


# --- from checkpoint to checkpoint --------------------------------------------------------------


def test_quantize_checkpoint_writes_what_quantize_model_makes(tmp_path: Path) -> None:
    tiny_models.build("llama").save_pretrained(tmp_path / "float")
    seen: list[str] = []
    report = quantize_checkpoint(
        tmp_path / "float",
        "nf4",
        tmp_path / "out" / "nf4",
        skip=["down_proj"],
        progress=lambda done, total, name: seen.append(name),
    )
    model = tiny_models.build("llama")
    quantize_model(model, "nf4", skip=["down_proj"])
    assert weight_hash(native.load(tmp_path / "out" / "nf4")) == weight_hash(model)
    assert len(report.modules) == len(seen) == 12


def test_quantize_checkpoint_with_gptq_keeps_the_tokenizer(
    tmp_path: Path, shared_data: Path
) -> None:
    from transformers import AutoTokenizer

    source = shared_data / "models" / "stories260K" / "hf"
    text = tmp_path / "text.txt"
    text.write_text((shared_data / "calib" / "tiny.txt").read_text(encoding="utf-8")[:60_000])
    report = quantize_checkpoint(source, "gptq-int4-g32", tmp_path / "out", calibration=text)
    assert report.calibration is not None and report.calibration["source"] == "text.txt"
    assert {row.solver for row in report.modules} <= {"gptq", "nearest"}
    words = "Once upon a time"
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "out")]
    assert tokenizers[0](words)["input_ids"] == tokenizers[1](words)["input_ids"]
    assert native.is_checkpoint(tmp_path / "out")


def test_model_without_tokenizer_is_noted(tmp_path: Path) -> None:
    tiny_models.build("llama").save_pretrained(tmp_path / "float")
    report = quantize_checkpoint(tmp_path / "float", "nf4-g16", tmp_path / "out")
    assert len(report.notes) == 1 and "no tokenizer, so none was written" in report.notes[0]
    with pytest.raises(ValueError, match=r"expected tokenizer files in .*float"):
        quantize_checkpoint(tmp_path / "float", "gptq-int4", tmp_path / "other")


def test_number_of_calibration_tokens_is_chosen(tmp_path: Path) -> None:
    source = audit_cases.prepare(tmp_path)
    text = source / "text.txt"
    for tokens, sequences in ((64, 1), (65, 2), (20, 1)):
        report = quantize_checkpoint(
            source / "model",
            "gptq-int4-g32",
            tmp_path / f"out{tokens}",
            calibration=text,
            calibration_tokens=tokens,
        )
        assert report.calibration is not None
        assert report.calibration["sequences"] == sequences
        assert report.calibration["tokens"] == sequences * min(tokens, tiny_models.POSITIONS)
    with pytest.raises(ValueError, match=r"expected at least one token, got 0"):
        quantize_checkpoint(source / "model", "gptq-int4", tmp_path / "none", calibration_tokens=0)


def test_quantize_checkpoint_refuses_early(tmp_path: Path) -> None:
    tiny_models.build("llama").save_pretrained(tmp_path / "float")
    saved(tmp_path / "quantized")
    out = tmp_path / "out"
    cases: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (tmp_path / "float", "nf4", tmp_path / "quantized", FileExistsError, "new folder"),
        (tmp_path / "nowhere", "nf4", out, FileNotFoundError, "which does not exist"),
        (tmp_path / "float", "nf5", out, ValueError, "unknown token 'nf5'"),
        (tmp_path / "float", "bf16", out, ValueError, "expected a scheme that quantizes"),
        (tmp_path / "quantized", "nf4", out, ValueError, "which is quantized"),
        (tmp_path / "float", {"nope": "nf4"}, out, ValueError, "matches none of 15"),
    ]
    for source, scheme, target, error, message in cases:
        with pytest.raises(error, match=message):
            quantize_checkpoint(source, scheme, target)
        assert not out.exists()
