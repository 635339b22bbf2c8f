"""Bytes by role, peak memory, tokens per second."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

import calibit
import tiny_models
from calibit.footprint import (
    PeakMemory,
    Rate,
    bytes_kv,
    interleaved,
    kernels_of,
    measure_memory,
    measure_speed,
    versions,
)


def stored(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, a shared tensor once."""
    tensors = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    return sum(tensors.values())


@pytest.mark.parametrize("name", tiny_models.CONFIGURATIONS)
def test_roles_add_up_to_the_whole_model(name: str) -> None:
    model = tiny_models.build(name)
    memory = measure_memory(model)
    parts = (
        memory.bytes_weights, memory.bytes_meta, memory.bytes_kept, memory.bytes_embeddings,
        memory.bytes_head, memory.bytes_other,
    )  # fmt: skip
    assert sum(parts) == memory.bytes_model == stored(model)
    assert memory.parameters == sum(p.numel() for p in model.parameters())
    assert memory.quantized == 0
    assert memory.bits_per_weight == 32


def test_tied_head_is_part_of_the_embedding() -> None:
    memory = measure_memory(tiny_models.build("llama"))
    assert memory.tied
    assert memory.bytes_head == 0
    assert memory.bytes_embeddings == 96 * 48 * 4
    linear = 2 * (48 * 48 * 2 + 48 * 24 * 2 + 48 * 80 * 3)
    assert memory.bytes_weights == 4 * linear


def test_untied_head_stands_apart() -> None:
    memory = measure_memory(tiny_models.build("gpt_neox"))
    assert not memory.tied
    assert memory.bytes_head == 96 * 48 * 4


def test_two_byte_model_has_sixteen_bits_per_weight() -> None:
    memory = measure_memory(tiny_models.build("llama", dtype=torch.bfloat16))
    assert memory.bits_per_weight == 16


def with_quantized_layers() -> nn.Module:
    """A tiny Llama whose down projections are quantized."""
    model = tiny_models.build("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj = calibit.QuantizedLinear.from_linear(layer.mlp.down_proj, "nf4")
    return model


def test_quantized_layers_are_counted_by_their_stored_tensors() -> None:
    memory = measure_memory(with_quantized_layers())
    weights = 2 * 48 * 80
    assert memory.quantized == weights
    assert memory.bytes_weights == weights // 2
    codebook = 16 * 4
    assert memory.bytes_meta == 2 * (48 * 2 * 4 + codebook)  # two groups per row, float32 scales
    assert memory.bits_per_weight == 8 * (memory.bytes_weights + memory.bytes_meta) / weights
    plain = measure_memory(tiny_models.build("llama"))
    assert memory.parameters == plain.parameters
    assert memory.bytes_kept == plain.bytes_weights - 4 * weights
    assert memory.bytes_model < plain.bytes_model
    assert memory.bits_per_weight_model == 8 * memory.bytes_model / memory.parameters


class Foreign(nn.Module):
    """A layer quantized by another library."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 64, 32
        self.register_buffer("qweight", torch.zeros(8, 32, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(1, 32, dtype=torch.float16))
        self.register_buffer("bias", torch.zeros(32))


def test_layers_of_other_libraries_are_recognised_by_shape() -> None:
    model = tiny_models.build("llama")
    model.extra = Foreign()
    memory = measure_memory(model)
    assert memory.quantized == 64 * 32
    assert memory.bytes_weights == 8 * 32 * 4
    assert memory.bytes_meta == 32 * 2
    assert memory.bits_per_weight == 4.25


def test_number_of_weights_can_be_given() -> None:
    memory = measure_memory(tiny_models.build("llama"), parameters=10)
    assert memory.bits_per_weight_model == 8 * memory.bytes_model / 10


def test_cache_bytes_are_those_of_the_cache() -> None:
    model = tiny_models.build("llama")
    with torch.no_grad():
        cache = model(tiny_models.tokens(2, 7), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert bytes_kv(model, positions=7, batch=2) == held


def test_peak_memory_sees_an_allocation_in_the_block() -> None:
    with PeakMemory() as quiet:
        pass
    with PeakMemory() as busy:
        np.ones(64 << 20, dtype=np.uint8)
    if quiet.bytes is None or busy.since != "block":
        pytest.skip("this system cannot restart the count of peak memory")
    assert busy.bytes is not None
    assert busy.bytes - quiet.bytes > 48 << 20


def test_rate_is_median_and_quartiles() -> None:
    rate = Rate.of(12.0, [1.0, 2.0, 3.0, 4.0, 6.0])
    assert (rate.lower, rate.value, rate.upper, rate.n) == (3.0, 4.0, 6.0, 5)


def test_interleaved_runs_in_turn() -> None:
    order: list[str] = []
    seconds = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: time.sleep(0.002)}, repeats=3, warmups=1
    )
    assert order == ["a"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert (seconds["b"] >= 0.002).all()


def test_speed_names_what_ran() -> None:
    model = with_quantized_layers()
    speed = measure_speed(model, quick=True).to_dict()
    assert speed["prompt_tokens"] + speed["generated_tokens"] == tiny_models.POSITIONS
    assert speed["batch"] == 1
    assert speed["device"] == "cpu"
    assert speed["dtype"] == "float32"
    assert speed["threads"] == torch.get_num_threads()
    assert speed["kernels"] == kernels_of(model) != "torch"
    assert speed["versions"] == versions()
    for rate in (speed["prefill_tok_s"], speed["decode_tok_s"], *speed["reference"].values()):
        assert rate["n"] == 5
        assert 0 < rate["lower"] <= rate["value"] <= rate["upper"]


def test_speed_of_a_float_model_is_torchs() -> None:
    assert kernels_of(tiny_models.build("llama")) == "torch"


def test_decoding_generates_the_asked_number_of_tokens() -> None:
    model, widths = tiny_models.build("llama"), []
    model.register_forward_pre_hook(
        lambda _, __, options: widths.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    measure_speed(model, prompt_tokens=9, generated_tokens=6, repeats=1, warmups=0)
    assert widths == [9, 1, 1, 1, 1, 1]
