"""Checkpoints of other tools, written bit by bit from their description with NumPy and Python
integers; nothing of calibit is used but to read them.

Each builder takes a float model and a layout, draws random codes, zero points and scales for every
linear layer of its blocks, and returns the float weights they stand for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tiny_models

Layer = dict[str, torch.Tensor]
WORD = 32


def small_llama(*, seed: int = 0, tied: bool = False, **changes: Any) -> Any:
    """A random llama whose layers have inputs and outputs that are multiples of 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 96}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        max_position_embeddings=64,
        tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2, **{**sizes, **changes},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.15)
    return model.eval()


def block_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks; the head is none of them."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }


def stream_words(codes: Sequence[int], bits: int) -> list[int]:
    """Codes one after the other, lowest bit first, cut into words of 32 bits, signed as int32."""
    whole = 0
    for i, code in enumerate(codes):
        assert 0 <= int(code) < 2**bits
        whole |= int(code) << (i * bits)
    count = -(-len(codes) * bits // WORD)
    return [signed((whole >> (WORD * i)) & 0xFFFFFFFF) for i in range(count)]


def planar_words(codes: Sequence[int], bits: int) -> list[int]:
    """Each 32 codes as planes of bits: 3 = 2+1, 5 = 4+1, 6 = 4+2, 7 = 4+2+1, low planes first."""
    widths = {2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1], 8: [8]}[bits]
    words: list[int] = []
    for start in range(0, len(codes), WORD):
        low = 0
        for width in widths:
            plane = [(int(c) >> low) & (2**width - 1) for c in codes[start : start + WORD]]
            words += stream_words(plane, width)
            low += width
    return words


def signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def int32(rows: Iterable[Sequence[int]]) -> torch.Tensor:
    return torch.tensor([list(row) for row in rows], dtype=torch.int32)


def random_scales(rng: np.random.Generator, n: int, groups: int, bits: int) -> np.ndarray[Any, Any]:
    """Positive float16 scales of weights of about 0.1, whatever the bits."""
    return (rng.uniform(0.5, 1.5, (n, groups)) * 0.3 / 2**bits).astype(np.float16)


def gptq_layer(
    n: int, k: int, *, bits: int, group: int, version: str, symmetric: bool,
    group_index: np.ndarray[Any, Any] | None = None, seed: int = 0,
    zeros: np.ndarray[Any, Any] | None = None,
) -> tuple[Layer, torch.Tensor]:  # fmt: skip
    """One layer of a GPTQ checkpoint, and the float32 weight it stands for.

    Version 1 stores each zero point less one, the others as it is. `zeros` is [N, G].
    """
    rng = np.random.default_rng(seed)
    size = group if 0 < group < k else k
    groups = -(-k // size)
    codes = rng.integers(0, 2**bits, (n, k))
    scales = random_scales(rng, n, groups, bits)
    if zeros is None:
        low = 1 if version == "gptq" else 0
        zeros = rng.integers(low, 2**bits, (n, groups))
    if symmetric:
        zeros = np.full((n, groups), 2 ** (bits - 1))
    index = np.arange(k) // size if group_index is None else group_index
    weight = scales.astype(np.float32)[:, index] * (codes - zeros[:, index]).astype(np.float32)
    words = planar_words if version == "gptq_p" else stream_words
    stored = zeros - 1 if version == "gptq" else zeros
    layer = {
        "qweight": int32([words(codes[row], bits) for row in range(n)]).t().contiguous(),
        "qzeros": int32([words(stored[:, g], bits) for g in range(groups)]),
        "scales": torch.from_numpy(np.ascontiguousarray(scales.T)),
        "g_idx": torch.from_numpy(index.astype(np.int32)),
    }
    return layer, torch.from_numpy(weight)


def gptq_section(**changes: Any) -> dict[str, Any]:
    """The `quantization_config` of such a checkpoint."""
    section = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    return {**section, "lm_head": False, "checkpoint_format": "gptq", **changes}


def packed_layer(
    n: int, k: int, *, bits: int, group: int, symmetric: bool, seed: int = 0,
    group_index: np.ndarray[Any, Any] | None = None, padded: bool = False,
) -> tuple[Layer, torch.Tensor]:  # fmt: skip
    """One pack-quantized layer of compressed-tensors, and the float32 weight it stands for.

    `padded`: words of floor(32/b) codes, as before 2026.
    """
    rng = np.random.default_rng(seed)
    size = group if 0 < group < k else k
    groups = -(-k // size)
    middle = 2 ** (bits - 1)
    signed_codes = rng.integers(-middle, middle, (n, k))
    scales = random_scales(rng, n, groups, bits)
    zeros = np.zeros((n, groups), int) if symmetric else rng.integers(-middle, middle, (n, groups))
    index = np.arange(k) // size if group_index is None else group_index
    weight = scales.astype(np.float32)[:, index] * (signed_codes - zeros[:, index])
    words = padded_words if padded else stream_words
    layer = {
        "weight_packed": int32([words(row + middle, bits) for row in signed_codes]),
        "weight_scale": torch.from_numpy(scales),
        "weight_shape": torch.tensor([n, k]),
    }
    if not symmetric:
        columns = [stream_words(zeros[:, g] + middle, bits) for g in range(groups)]
        layer["weight_zero_point"] = int32(columns).t().contiguous()
    if group_index is not None:
        layer["weight_g_idx"] = torch.from_numpy(index.astype(np.int32))
    return layer, torch.from_numpy(weight.astype(np.float32))


def padded_words(codes: Sequence[int], bits: int) -> list[int]:
    """Words of floor(32/b) codes each, lowest bits first, their last bits zero."""
    each = WORD // bits
    return [stream_words(codes[i : i + each], bits)[0] for i in range(0, len(codes), each)]


def packed_section(**changes: Any) -> dict[str, Any]:
    """The `quantization_config` of such a checkpoint; `changes` are those of its weights."""
    weights = {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32,
        "dynamic": False, "actorder": None, "observer": "minmax",
    }  # fmt: skip
    group = {"targets": ["Linear"], "weights": {**weights, **changes}, "input_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "quantization_status": "compressed", "config_groups": {"group_0": group},
    }  # fmt: skip


def write_checkpoint(
    folder: Path,
    model: Any,
    section: dict[str, Any] | None,
    make: Callable[[str, int, int, int], tuple[Layer, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Write a folder whose block layers are foreign; put the values they stand for into the model.

    Args:
        folder: to be created.
        model: a float model, changed in place.
        section: `quantization_config`, or None to leave it out.
        make: from name, N, K and a seed to a layer's tensors and its float weight.

    Returns:
        The float weights by layer.
    """
    folder.mkdir()
    expected, tensors = {}, {}
    for seed, (name, module) in enumerate(block_layers(model).items()):
        n, k = module.weight.shape
        layer, weight = make(name, n, k, seed)
        expected[name] = weight
        module.weight.data = weight.to(module.weight.dtype)
        tensors.update({f"{name}.{part}": value for part, value in layer.items()})
    for name, value in model.state_dict().items():
        is_weight = name.removesuffix(".weight") in expected
        is_tied = name == "lm_head.weight" and model.config.tie_word_embeddings
        if not is_weight and not is_tied:
            tensors[name] = value.clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    if section is not None:
        config["quantization_config"] = section
    (folder / "config.json").write_text(json.dumps(config))
    return expected


def check_same(folder: Path, model: Any, weights: dict[str, torch.Tensor], **options: Any) -> Any:
    """Read a folder with calibit: every weight bit for bit, logits those of the float model.

    Args:
        folder, model, weights: as of `write_checkpoint`.
        options: of `calibit.load_model`.

    Returns:
        The model read.
    """
    import calibit

    read = calibit.load_model(folder, **options)
    for name, weight in weights.items():
        layer = read.get_submodule(name)
        assert isinstance(layer, calibit.QuantizedLinear)
        assert torch.equal(layer.dequantize(torch.float32), weight), name
    ids = tiny_models.tokens()
    ours, theirs = tiny_models.logits(read, ids), tiny_models.logits(model, ids)
    # Float32 sums of at most 96 terms in another order, through two blocks: about a hundred
    # roundings of the largest logit.
    assert float((ours - theirs).abs().max()) <= 100 * 1.2e-7 * float(theirs.abs().max())
    return read


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
