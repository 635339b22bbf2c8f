"""bitsandbytes checkpoints: built bit by bit, written by its own code, and read by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import calibit
import foreign_files
import tiny_models
from calibit.io import checkpoints, export, native
from calibit.modules import QuantizedLinear
from foreign_files import check_same, rewritten

LAYER = "model.layers.0.mlp.up_proj"
STATE = "weight.quant_state.bitsandbytes__nf4"
WITHOUT = "bitsandbytes is not installed (extra 'dev')"


def section(**changes: Any) -> dict[str, Any]:
    return {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["lm_head"], **changes,
    }  # fmt: skip


def bytes_of(content: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def layer4(
    n: int, k: int, seed: int, *, block: int = 32, nested: int = 0
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A 4-bit layer with a random table: the flattened weight, block by block, element by element.

    `nested`: scales that share one of the second level; 0 for plain scales.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, n * k)
    table = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
    blocks = -(-n * k // block)
    absmax = (rng.uniform(0.5, 1.5, blocks) * 0.3).astype(np.float32)
    state: dict[str, Any] = {
        "quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": [n, k],
    }  # fmt: skip
    made = {"weight.absmax": torch.from_numpy(absmax)}
    if nested:
        stored = rng.integers(0, 256, blocks).astype(np.uint8)
        second = rng.uniform(0.1, 0.2, -(-blocks // nested)).astype(np.float32)
        values = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        offset = np.float32(0.3)
        absmax = np.array(
            [values[stored[i]] * second[i // nested] + offset for i in range(blocks)], np.float32
        )
        made = {
            "weight.absmax": torch.from_numpy(stored),
            "weight.nested_absmax": torch.from_numpy(second),
            "weight.nested_quant_map": torch.from_numpy(values),
        }
        state |= {
            "nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": float(offset),
        }  # fmt: skip
    flat = np.array([absmax[i // block] * table[codes[i]] for i in range(n * k)], np.float32)
    packed = [int(codes[i]) << 4 | int(codes[i + 1]) for i in range(0, n * k, 2)]
    made |= {
        "weight": torch.tensor(packed, dtype=torch.uint8).reshape(-1, 1),
        "weight.quant_map": torch.from_numpy(table),
        STATE: bytes_of(state),
    }
    return made, torch.from_numpy(flat.reshape(n, k))


def built(folder: Path, config: dict[str, Any] | None = None, **layer: Any) -> tuple[Any, Any]:
    model = foreign_files.small_llama()
    weights = foreign_files.write_checkpoint(
        folder, model, config or section(), lambda name, n, k, seed: layer4(n, k, seed, **layer)
    )
    return model, weights


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [16, 32])
def test_files_built_byte_by_byte_are_read(tmp_path: Path, block: int) -> None:
    read = check_same(tmp_path / "model", *built(tmp_path / "model", block=block))
    assert str(read.get_submodule(LAYER).scheme) == f"nf4-g{block}"
    assert not read.get_submodule(LAYER).notes


@pytest.mark.parametrize("block", [64, 128, 40])
def test_blocks_that_cross_rows_keep_their_values(tmp_path: Path, block: int) -> None:
    """K is 64 and 96. Blocks of 64 cross rows of 96 at multiples of 32, blocks of 40 at those of
    8."""
    read = check_same(tmp_path / "model", *built(tmp_path / "model", block=block))
    layer = read.get_submodule("model.layers.0.mlp.down_proj")
    assert layer.scheme.group == {64: 32, 128: 32, 40: 8}[block]
    assert any("cross its rows" in note for note in layer.notes)


def test_blocks_that_no_group_follows_are_refused(tmp_path: Path) -> None:
    built(tmp_path / "model", block=36)
    with pytest.raises(ValueError, match="blocks of 36 cross rows of 96 at places"):
        calibit.load_model(tmp_path / "model")


@pytest.mark.parametrize(("block", "nested"), [(32, 256), (32, 64), (64, 256)])
def test_double_quantization(tmp_path: Path, block: int, nested: int) -> None:
    _, weights = built(tmp_path / "model", block=block, nested=nested)
    read = calibit.load_model(tmp_path / "model")
    for name, weight in weights.items():
        layer = read.get_submodule(name)
        kept = nested == 256 and weight.shape[1] % block == 0
        assert ("dq" in layer.scheme.options) == kept
        assert any("double quantization is undone" in note for note in layer.notes) != kept
        # A scale is a product and a sum in float32, rounded once or twice: two units of the last
        # place of the sum's largest term, 0.5, times a value of the table up to 1.
        assert float((layer.dequantize() - weight).abs().max()) <= 2 * 2**-24


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bytes_stored_as_another_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    model, weights = built(tmp_path / "model")

    def view(tensors: dict[str, torch.Tensor]) -> None:
        for name in weights:
            packed = tensors[f"{name}.weight"].reshape(-1)
            tensors[f"{name}.weight"] = packed.view(dtype).reshape(-1, 1)

    rewritten(tmp_path / "model", view)
    check_same(tmp_path / "model", model, weights)


def test_eight_bits(tmp_path: Path) -> None:
    def layer(name: str, n: int, k: int, seed: int) -> Any:
        rng = torch.Generator().manual_seed(seed)
        weight = torch.randint(-127, 128, (n, k), generator=rng, dtype=torch.int8)
        largest = torch.rand(n, generator=rng) + 0.1
        stored = {"weight": weight, "SCB": largest, "weight_format": torch.tensor(0).byte()}
        return stored, weight.float() * (largest[:, None] / 127)

    model = foreign_files.small_llama()
    config = section(load_in_4bit=False, load_in_8bit=True)
    weights = foreign_files.write_checkpoint(tmp_path / "model", model, config, layer)
    alone = check_same(tmp_path / "model", model, weights, float_activations=True)
    assert str(alone.get_submodule(LAYER).scheme) == "int8-row"
    assert any("outlier columns apart" in note for note in alone.get_submodule(LAYER).notes)
    with pytest.raises(ValueError, match="rounds the inputs of 8-bit layers too"):
        export.save(alone, tmp_path / "no", "bitsandbytes")
    read = calibit.load_model(tmp_path / "model")
    assert str(read.get_submodule(LAYER).scheme) == "llm-int8"
    assert export.save(read, tmp_path / "again", "bitsandbytes").difference == 0.0
    check_same(tmp_path / "again", model, weights, float_activations=True)
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("model", "again"))
    assert torch.equal(first[f"{LAYER}.weight"], second[f"{LAYER}.weight"])
    # Another SCB may stand for the same scale, one unit of its last place away.
    torch.testing.assert_close(first[f"{LAYER}.SCB"], second[f"{LAYER}.SCB"], rtol=2**-23, atol=0)


# --- refusing -----------------------------------------------------------------------------------


def put(part: str, change: Any) -> Any:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}.{part}"] = change(tensors[f"{LAYER}.{part}"]).contiguous()

    return edit


def state(**changes: Any) -> Any:
    def edit(stored: torch.Tensor) -> torch.Tensor:
        return bytes_of({**json.loads(bytes(stored.tolist())), **changes})

    return put(STATE, edit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("weight", lambda t: t[:-1]), r"weight of 3072 bytes, got torch.uint8 \[3071, 1\]"),
        (put("weight.absmax", lambda t: t[:-1]), r"absmax torch.float32 \[192\], got .* \[191\]"),
        (put("weight.absmax", lambda t: t.byte()), "got torch.uint8"),
        (put("weight.absmax", lambda t: t * torch.nan), "finite scales, got NaN or Inf"),
        (put("weight.quant_map", lambda t: t[:8]), r"quant_map torch.float32 \[16\]"),
        (put("weight.quant_map", lambda t: t / 0), "finite codebook"),
        (lambda t: t.pop(f"{LAYER}.weight.quant_map"), r"missing \['weight.quant_map'\]"),
        (
            lambda t: t.update({f"{LAYER}.weight.nested_absmax": torch.zeros(1)}),
            "weight.nested_quant_map",
        ),
        (put(STATE, lambda t: t[:-1]), "expected JSON in quant_state"),
        (put(STATE, lambda t: torch.full((9,), 255).byte()), "expected JSON in quant_state"),
        (put(STATE, lambda t: bytes_of([1])), "JSON object in quant_state"),
        (put(STATE, lambda t: t.float()), "quant_state as uint8 bytes"),
        (put(STATE, lambda t: torch.zeros(5000).byte()), "quant_state as uint8 bytes"),
        (state(quant_type="int4"), "quant_type of nf4, fp4, got 'int4'"),
        (state(quant_type="fp4"), "quant_type 'nf4', got 'fp4'"),
        (state(blocksize=0), "blocksize above 0"),
        (state(blocksize="64"), "blocksize above 0"),
        (state(blocksize=64), r"absmax torch.float32 \[96\], got"),
        (state(shape=[64, 96]), r"shape \[96, 64\] in quant_state, got \[64, 96\]"),
        (state(nested_offset="0"), "a finite nested_offset"),
    ],
)  # fmt: skip
def test_wrong_tensor_is_named_with_its_file(tmp_path: Path, change: Any, message: str) -> None:
    built(tmp_path / "model")
    rewritten(tmp_path / "model", change)
    with pytest.raises(ValueError, match=rf"'{LAYER}' from model\.safetensors: .*{message}"):
        calibit.load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"load_in_4bit": False}, "one of load_in_4bit and load_in_8bit to be true"),
        ({"load_in_8bit": True}, "one of load_in_4bit and load_in_8bit to be true"),
        ({"load_in_4bit": 1}, "one of load_in_4bit"),
        ({"load_in_4bit": False, "load_in_8bit": True}, "tensors of 8 bits"),
        ({"bnb_4bit_quant_type": "fp4"}, "quant_type 'fp4', got 'nf4'"),
        ({"bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type of nf4, fp4, got 'int4'"),
    ],
)
def test_wrong_configuration_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    built(tmp_path / "model", section(**change))
    with pytest.raises(ValueError, match=message):
        calibit.load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("int4-g32", "holds nf4, fp4, llm-int8 and w8a8, got int4-g32"),
        ("int8-g32", "holds nf4, fp4, llm-int8 and w8a8"),
        ("int8-row-asym", "holds nf4, fp4, llm-int8 and w8a8"),
        ("mxfp4", "holds nf4, fp4, llm-int8 and w8a8"),
        ("nf4-g32-a8", "computes 4-bit layers on inputs in floating point"),
        ("nf4-g64", "no multiple of its group of 64"),
        ("nf4-g16", "got groups of 16"),
        ({"mlp": "nf4-g32", "self_attn": "fp4-g32"}, "one type, nesting and threshold for all"),
        ({"mlp": "llm-int8", "self_attn": "w8a8"}, "one type, nesting and threshold for all"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path, scheme: Any, message: str) -> None:
    model = foreign_files.small_llama()
    calibit.quantize_model(model, scheme)
    with pytest.raises(ValueError, match=message):
        export.save(model, tmp_path / "no", "bitsandbytes")
    assert not list(tmp_path.iterdir())


def test_another_table_is_refused_when_written(tmp_path: Path) -> None:
    """Its kernels have tables of their own; the one in the file counts for nothing there."""
    built(tmp_path / "model")
    with pytest.raises(ValueError, match="codebook is not that of nf4"):
        checkpoints.convert(tmp_path / "model", tmp_path / "no", "bitsandbytes")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    checkpoints.convert(tmp_path / "model", tmp_path / "own", "calibit")


# --- its own code -------------------------------------------------------------------------------


def settings4(name: str, nested: bool) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=name, bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip


def written_by_transformers(folder: Path, config: Any) -> Any:
    """A model of rows that are multiples of 64, quantized and saved by transformers."""
    from transformers import AutoModelForCausalLM

    model = foreign_files.small_llama(intermediate_size=128)
    model.save_pretrained(folder / "float")
    made = AutoModelForCausalLM.from_pretrained(
        folder / "float", quantization_config=config, dtype=torch.float32
    )
    made.save_pretrained(folder / "model")  # before a forward pass, which may repack the weights
    return made


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "dq"])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_four_bits_that_transformers_writes(tmp_path: Path, name: str, nested: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason=WITHOUT)
    made = written_by_transformers(tmp_path, settings4(name, nested))
    read = calibit.load_model(tmp_path / "model")
    layers = {n: m for n, m in read.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(layers) == 14
    for layer_name, layer in layers.items():
        stored = made.get_submodule(layer_name).weight
        theirs = functional.dequantize_4bit(stored.data, stored.quant_state).float()
        if nested:  # its sum of a product may be fused: one unit in the last place
            torch.testing.assert_close(layer.dequantize(torch.float32), theirs, rtol=3e-7, atol=0)
        else:
            assert torch.equal(layer.dequantize(torch.float32), theirs)
    wrote = export.save(read, tmp_path / "again", "bitsandbytes")
    assert wrote.difference == 0.0
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("model", "again"))
    assert first.keys() == second.keys()
    for key, value in first.items():
        if "quant_state" not in key:  # JSON, in whatever order
            assert torch.equal(value.reshape(-1), second[key].reshape(-1)), key
        else:
            one, two = (json.loads(bytes(t[key].tolist())) for t in (first, second))
            assert one == two


def test_eight_bits_that_transformers_writes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason=WITHOUT)
    from transformers import BitsAndBytesConfig

    made = written_by_transformers(tmp_path, BitsAndBytesConfig(load_in_8bit=True))
    read = calibit.load_model(tmp_path / "model")
    for name, layer in read.named_modules():
        if isinstance(layer, QuantizedLinear):
            weight = made.get_submodule(name).weight
            theirs = weight.CB.float() * weight.SCB.float()[:, None] / 127
            torch.testing.assert_close(layer.dequantize(torch.float32), theirs, rtol=3e-7, atol=0)
    assert export.save(read, tmp_path / "again", "bitsandbytes").difference == 0.0


def test_eight_bit_layers_compute_what_its_own_do(tmp_path: Path) -> None:
    """Linear8bitLt on the CPU, inputs with outliers, against the layers read from its files."""
    pytest.importorskip("bitsandbytes", reason=WITHOUT)
    from transformers import BitsAndBytesConfig

    for threshold, scheme in ((6.0, "llm-int8"), (0.0, "int8-row-a8")):
        folder = tmp_path / scheme
        folder.mkdir()
        settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)
        made = written_by_transformers(folder, settings)
        read = calibit.load_model(folder / "model")
        alone = calibit.load_model(folder / "model", float_activations=True)
        theirs, ours = made.get_submodule(LAYER), read.get_submodule(LAYER)
        assert str(ours.scheme) == scheme
        x = torch.randn(2, 9, theirs.in_features, generator=torch.Generator().manual_seed(3))
        x[0, 3, 5], x[1, 7, 40] = 47.0, -8.5
        with torch.no_grad():
            want = theirs(x.half()).float()
            found, plain = ours(x.half().float()), alone.get_submodule(LAYER)(x.half().float())
        # Its answer is float16, 2^-11 of each number; without the grid of 8 bits every input moves
        # by up to 1/254 of the largest of its token.
        spread = float((plain - want).square().mean().sqrt())
        assert float((found - want).square().mean().sqrt()) < 0.2 * spread


def test_other_thresholds_are_refused(tmp_path: Path) -> None:
    for threshold in (3.5, "6", True, None):
        config = section(load_in_4bit=False, load_in_8bit=True, llm_int8_threshold=threshold)
        built(tmp_path / str(threshold), config)
        with pytest.raises(ValueError, match=r"llm_int8_threshold of 6.0, 0.0, got llm_int8_thr"):
            calibit.load_model(tmp_path / str(threshold))


@pytest.mark.parametrize("scheme", ["nf4", "fp4-dq", "nf4-g32-dq", "llm-int8", "w8a8"])
def test_transformers_reads_what_is_written(tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("bitsandbytes", reason=WITHOUT)
    from transformers import AutoModelForCausalLM

    model = foreign_files.small_llama(intermediate_size=128)
    calibit.quantize_model(model, scheme)
    export.save(model, tmp_path / "model", "bitsandbytes")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = tiny_models.tokens()
    ours, other = tiny_models.logits(model, ids), tiny_models.logits(theirs, ids)
    # Its CPU code computes in bfloat16 where the processor has it (2^-8 a value), and its 8-bit
    # layers round activations to 1/254 of a token's largest.
    assert float((ours - other).abs().max()) <= 0.05 * float(ours.abs().max())


def test_conversion_there_and_back_is_the_same_checkpoint(tmp_path: Path) -> None:
    model = foreign_files.small_llama()
    calibit.quantize_model(model, "nf4-g32-dq")
    native.save(model, tmp_path / "own")
    checkpoints.convert(tmp_path / "own", tmp_path / "foreign", "bitsandbytes")
    checkpoints.convert(tmp_path / "foreign", tmp_path / "back", "calibit")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("own", "back"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
