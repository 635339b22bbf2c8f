"""Keys and values rounded as they enter the cache: kv8, kv4."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import calibit
import tiny_models
from audit_cases import job_of, prepare
from calibit import kv_cache, schemes
from calibit.auditing import run_job
from calibit.evaluation import checking
from calibit.evaluation.batching import Batch
from calibit.evaluation.encoding import EncodedChoices
from calibit.evaluation.scoring import Scorer
from calibit.fingerprint import weight_hash
from calibit.footprint import bytes_kv
from calibit.io import native
from calibit.quantization import plans, quantize_model
from calibit.quantization.checkpoint import quantize_checkpoint

HALF = np.float32(65504)


def slow_rounded(x: np.ndarray, bits: int) -> np.ndarray:
    """Vector by vector, entry by entry; float32 with minimum and step of float16."""
    out = np.empty(x.shape, dtype=np.float32)
    for place in np.ndindex(x.shape[:-1]):
        row = [np.float32(v) for v in x[place]]
        low = np.float32(np.float16(max(min(row), -HALF)))
        step = np.float32(np.float16(max((max(row) - low) / np.float32(2**bits - 1), 0)))
        for i, v in enumerate(row):
            code = min(max(np.rint((v - low) / step), 0), 2**bits - 1) if step > 0 else 0
            out[(*place, i)] = low + np.float32(code) * step
    return out


def vectors() -> torch.Tensor:
    x = torch.randn(3, 2, 5, 24, generator=torch.Generator().manual_seed(2))
    x[0, 0, 0] = 0
    x[0, 0, 1] = 0.3  # no range
    x[0, 0, 2] *= 1e-9  # a step below float16's smallest
    x[0, 1, 0] += 300  # far from zero: float16 rounds the minimum by up to 0.125
    x[0, 1, 1] *= 1e5  # beyond float16
    return x


@pytest.mark.parametrize("bits", kv_cache.BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_vectors_are_rounded_as_the_slow_reference_does(bits: int, dtype: torch.dtype) -> None:
    x = vectors().clamp(-60000, 60000).to(dtype)
    found = kv_cache.rounded(x, bits)
    want = torch.from_numpy(slow_rounded(x.float().numpy(), bits)).to(dtype)
    assert found.dtype == dtype and torch.equal(found, want)
    assert not found[0, 0, 0].any()


@pytest.mark.parametrize("bits", kv_cache.BITS)
def test_error_is_at_most_half_a_step(bits: int) -> None:
    x = vectors()[1:]
    step = (x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)) / (2**bits - 1)
    # float16 rounds the minimum (2^-11 of it) and the step (2^-11 of the whole range).
    allowed = step / 2 + 2**-11 * (x.abs().amax(-1, keepdim=True) + step * (2**bits - 1))
    error = (kv_cache.rounded(x, bits) - x).abs()
    assert bool((error <= allowed).all()) and float((error / step).max()) > 0.4


def test_values_beyond_float16_stay_finite() -> None:
    assert bool(torch.isfinite(kv_cache.rounded(vectors() * 1e30, 8)).all())


def test_gradient_is_that_of_the_identity() -> None:
    x = vectors().requires_grad_()
    (kv_cache.rounded(x, 4) * 3).sum().backward()
    assert x.grad is not None and bool((x.grad == 3).all())


# Against an attention written out ----------------------------------------------------------------


def turned(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of ``[heads, tokens, width]``, position by position."""
    out, half = torch.empty_like(x), x.shape[-1] // 2
    rates = 1.0 / theta ** (torch.arange(0, 2 * half, 2, dtype=torch.float32) / (2 * half))
    for position in range(x.shape[1]):
        angle = position * rates
        first, second = x[:, position, :half], x[:, position, half:]
        out[:, position, :half] = first * angle.cos() - second * angle.sin()
        out[:, position, half:] = second * angle.cos() + first * angle.sin()
    return out


def slow_attention(layer: Any, x: torch.Tensor, bits: int) -> torch.Tensor:
    """Causal attention of a Llama layer with two query heads for each key head; x ``[T, H]``."""
    width, count = layer.head_dim, x.shape[0]

    def heads(projection: nn.Module) -> torch.Tensor:
        return projection(x).reshape(count, -1, width).transpose(0, 1)

    theta = layer.config.rope_parameters["rope_theta"]
    query, key = turned(heads(layer.q_proj), theta), turned(heads(layer.k_proj), theta)
    value = heads(layer.v_proj)
    key, value = (torch.from_numpy(slow_rounded(t.numpy(), bits)) for t in (key, value))
    out = torch.zeros(count, query.shape[0], width, dtype=torch.float64)
    for head in range(query.shape[0]):
        shared = head // (query.shape[0] // key.shape[0])
        for t in range(count):
            scores = key[shared, : t + 1].double() @ query[head, t].double() / width**0.5
            out[t, head] = torch.softmax(scores, 0) @ value[shared, : t + 1].double()
    return nn.functional.linear(out.reshape(count, -1), layer.o_proj.weight.double())


@pytest.mark.parametrize("bits", kv_cache.BITS)
def test_attention_is_that_over_rounded_keys_and_values(bits: int) -> None:
    model = tiny_models.build("llama")
    seen: list[Any] = []
    for block in model.model.layers:
        block.self_attn.register_forward_hook(
            lambda layer, _, kwargs, output: seen.append(
                (layer, kwargs["hidden_states"][0], output[0][0])
            ),
            with_kwargs=True,
        )
    kv_cache.round_(model, bits)
    with torch.no_grad():
        model(input_ids=tiny_models.tokens(1, 12), use_cache=False)
        assert len(seen) == tiny_models.BLOCKS
        for layer, x, found in list(seen):
            want = slow_attention(layer, x, bits)
            plain = slow_attention(layer, x, 16)
            # Sums of some ten float32 terms; a code that falls on the other side of a tie would
            # move the answer by a hundredth of what rounding does, which no layer here shows.
            assert float((found - want).abs().max()) < 1e-5 * float(want.abs().max())
            assert float((plain - want).abs().max()) > 1e-4 * float(want.abs().max())


# One seam for every way to run a model -----------------------------------------------------------


def in_float64(name: str) -> Any:
    """A model in which the roundings of another order of sums are too small to move a code."""
    return tiny_models.build(name).double()


@pytest.mark.parametrize("name", tiny_models.DENSE)
def test_same_values_without_a_cache_and_token_by_token(name: str) -> None:
    """GQA, multi-query, sliding windows, ALiBi, absolute and partly rotary positions."""
    model, ids = in_float64(name), tiny_models.tokens(2, 24)
    plain = tiny_models.logits(model, ids)
    kv_cache.round_(model, 4)
    want = tiny_models.logits(model, ids)
    # The softmax and the rotary embedding of some architectures are float32 whatever the dtype.
    close = {"rtol": 0, "atol": 1e-5 * float(want.abs().max())}
    assert float((want - plain).abs().max()) > 1e-3 * float(want.abs().max())
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=True)
        torch.testing.assert_close(whole.logits, want, **close)
        output, found = model(input_ids=ids[:, :9], use_cache=True), []
        found.append(output.logits)
        for position in range(9, ids.shape[1]):
            one = ids[:, position : position + 1]
            output = model(input_ids=one, past_key_values=output.past_key_values, use_cache=True)
            found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, 1), want, **close)


def test_hybrid_models_keep_the_states_of_their_other_layers() -> None:
    """Convolutions beside attention write to the same cache, which is not theirs to round."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, block_multiple_of=8,
        layer_types=["conv", "full_attention", "conv"],
    )  # fmt: skip
    torch.manual_seed(0)
    model, ids = Lfm2ForCausalLM(config).eval().double(), tiny_models.tokens(2, 14)
    plain = tiny_models.logits(model, ids)
    kv_cache.round_(model, 4)
    want = tiny_models.logits(model, ids)
    assert not torch.allclose(want, plain, rtol=0, atol=1e-6)
    with torch.no_grad():
        output = model(input_ids=ids[:, :9], use_cache=True)
        found = [output.logits]
        for position in range(9, 14):
            one = ids[:, position : position + 1]
            output = model(input_ids=one, past_key_values=output.past_key_values, use_cache=True)
            found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, 1), want, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_shared_contexts_score_as_separate_ones(name: str) -> None:
    model = in_float64(name)
    kv_cache.round_(model, 4)
    rows = tiny_models.tokens(4, 30).tolist()
    items = [
        EncodedChoices(
            tuple(tuple(rows[0][:20] + row[20:-1]) for row in rows[1:]),
            tuple(tuple(row[18:][2:]) for row in rows[1:]),
        )
    ]
    method = checking.choose_method(model, items)
    assert method.shared_context and method.deviation is not None
    assert method.deviation < 1e-5  # nats; of float32 steps inside, as above
    scorer = Scorer(model, head=method.head)
    (shared,) = scorer.choices(items, Batch((0,), (11, 20, 29)))
    (separate,) = scorer.choices(items, Batch((0,), (29,)))
    assert np.allclose(shared.ll, separate.ll, rtol=0, atol=1e-5)


def test_a_model_generates() -> None:
    model, ids = in_float64("mistral"), tiny_models.tokens(1, 12)
    kv_cache.round_(model, 4)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    for position in range(ids.shape[1], made.shape[1]):
        logits = tiny_models.logits(model, made[:, :position])
        assert int(logits[0, -1].argmax()) == int(made[0, position])


def test_rounding_follows_copies() -> None:
    model, ids = tiny_models.build("llama"), tiny_models.tokens()
    kv_cache.round_(model, 4)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert kv_cache.bits_of(again) == 4
        assert torch.equal(tiny_models.logits(again, ids), tiny_models.logits(model, ids))


def test_training_reaches_the_projections() -> None:
    model, ids = tiny_models.build("llama"), tiny_models.tokens()
    kv_cache.round_(model, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    for projection in (
        model.model.layers[0].self_attn.k_proj,
        model.model.layers[0].self_attn.v_proj,
    ):
        assert bool(projection.weight.grad.any())


def test_models_without_a_cache_are_refused() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4)])

    with pytest.raises(ValueError, match=r"expected decoder blocks with a parameter past_key_val"):
        kv_cache.round_(Encoder(), 8)
    with pytest.raises(ValueError, match=r"expected a model with decoder blocks"):
        kv_cache.round_(nn.Linear(4, 4), 8)
    model = tiny_models.build("llama")
    with pytest.raises(ValueError, match=r"\[kv_cache\] expected bits of \(8, 4\), got 2"):
        kv_cache.round_(model, 2)
    kv_cache.round_(model, 8)
    with pytest.raises(ValueError, match="expected a model with a float cache, got one of 8 bits"):
        kv_cache.round_(model, 4)
    with pytest.raises(ValueError, match="got one whose cache is rounded"):
        quantize_model(model, "nf4")


# Sizes -------------------------------------------------------------------------------------------


def test_size_counts_minimum_and_scale() -> None:
    model = tiny_models.build("llama")  # 2 layers, keys and values of 2 heads of width 12
    vectors = 2 * 2 * 2
    size = kv_cache.measure(model)
    assert size.bits is None and size.bits_per_value == 32
    assert size.bytes_per_token == size.bytes_per_token_float == vectors * 12 * 4
    kv_cache.round_(model, 4)
    size = kv_cache.measure(model)
    assert size.bytes_per_token == vectors * (12 * 4 // 8 + 2 + 2)
    assert size.bytes_per_token_float == vectors * 12 * 4
    assert size.bits_per_value == pytest.approx(4 + 32 / 12, rel=1e-12)
    assert bytes_kv(model, positions=7, batch=2) == 14 * size.bytes_per_token


# Schemes and plans -------------------------------------------------------------------------------


def test_spellings() -> None:
    assert str(schemes.parse("kv8-nf4")) == "nf4-kv8"
    assert str(schemes.parse("head-kv4-a8-int8-row")) == "int8-row-a8-kv4-head"
    assert str(schemes.parse("kv8-llm-int8")) == "llm-int8-kv8"
    assert str(schemes.parse("KV4-bf16")) == "bf16-kv4"
    both = schemes.parse("gptq-int4-g64-kv8")
    assert both.cache_bits == 8 and str(both.of_weight) == "gptq-int4-g64"
    assert schemes.parse("nf4").cache_bits is None
    assert schemes.parse("fp32-kv8").is_float
    with pytest.raises(ValueError, match="expected one of kv8 and kv4, got both"):
        schemes.parse("nf4-kv8-kv4")
    with pytest.raises(ValueError, match="takes no other token but kv8 or kv4"):
        schemes.parse("bf16-g64")


def test_a_plan_has_one_cache() -> None:
    plan = plans.load({"mlp.*": "nf4-kv8", "*": "int8-kv8"})
    assert plan.cache_bits == 8
    with pytest.raises(ValueError, match=r"agree on the cache .* got nf4-kv8, int8-g128"):
        plans.load({"mlp.*": "nf4-kv8", "*": "int8"})


@pytest.mark.parametrize("scheme", ["nf4-kv8", "fp32-kv4"])
def test_one_weight_has_no_cache(scheme: str) -> None:
    with pytest.raises(ValueError, match=r"expected a scheme of one weight, got .* quantize_model"):
        calibit.quantize(torch.ones(8, 16), scheme)


# Models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["nf4-kv8", "fp32-kv4", "bf16-kv8", "gptq-int4-g16-a8-kv4"])
def test_a_model_comes_back_from_its_folder(scheme: str, tmp_path: Path) -> None:
    model, ids = tiny_models.build("llama"), tiny_models.tokens(2, 20)
    alone = copy.deepcopy(model)
    report = quantize_model(model, scheme, calibration=tiny_models.tokens(8, 32))
    bits = schemes.parse(scheme).cache_bits
    assert report.scheme == scheme and report.cache is not None and report.cache["bits"] == bits
    assert f"keys and values have {bits} bits by token and head" in report.notes[-1]
    assert all("kv" not in row.scheme for row in report.modules)
    quantize_model(
        alone, str(schemes.parse(scheme).of_weight), calibration=tiny_models.tokens(8, 32)
    )
    first, without = tiny_models.logits(model, ids), tiny_models.logits(alone, ids)
    assert not torch.equal(first, without)
    assert weight_hash(model) != weight_hash(alone)
    kv_cache.round_(alone, bits)
    assert torch.equal(first, tiny_models.logits(alone, ids))
    native.save(model, tmp_path / "model")
    again = native.load(tmp_path / "model")
    assert torch.equal(first, tiny_models.logits(again, ids))
    assert weight_hash(model) == weight_hash(again)


@pytest.mark.parametrize("scheme", ["int4-g16-kv8", "bf16-kv8"])
def test_a_checkpoint_made_from_files(scheme: str, tmp_path: Path) -> None:
    model = tiny_models.build("llama")
    model.save_pretrained(tmp_path / "model")
    report = quantize_checkpoint(tmp_path / "model", scheme, tmp_path / "out")
    again, ids = native.load(tmp_path / "out"), tiny_models.tokens()
    quantize_model(model, scheme)
    assert report.cache is not None and kv_cache.bits_of(again) == 8
    assert again.dtype == model.dtype
    assert torch.equal(tiny_models.logits(again, ids), tiny_models.logits(model, ids))


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    model = tiny_models.build("llama")
    model.save_pretrained(tmp_path / "model")
    for scheme in ("int4-g16-kv8", "bf16-kv8"):
        with pytest.raises(ValueError, match=r"cannot say that keys and values are rounded"):
            quantize_checkpoint(tmp_path / "model", scheme, tmp_path / "out", layout="gptq")
    quantize_model(model, "int4-g16-kv4")
    with pytest.raises(ValueError, match=r"keys and values are rounded .*option kv4"):
        calibit.export_model(model, tmp_path / "out", "compressed-tensors")
    assert not (tmp_path / "out").exists()


def test_a_damaged_width_is_refused(tmp_path: Path) -> None:
    model = tiny_models.build("llama")
    quantize_model(model, "fp32-kv8")
    file = native.save(model, tmp_path / "model") / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["quantization_config"]["cache_bits"] = "8"
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected 'cache_bits' in .* or null, got '8'"):
        native.load(tmp_path / "model")


def test_audit_of_rounded_caches(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = prepare(tmp_path)
    quantize_checkpoint(folder / "model", "int8-kv4", folder / "made")
    job = job_of(folder, schemes=("fp32-kv4", "int8-kv8"), candidates=(str(folder / "made"),))
    found = run_job(job, folder / "audit", progress=None)
    one, both, made = found.data["candidates"]
    assert one["quantization"]["cache"]["bits_per_value"] == pytest.approx(4 + 32 / 12)
    assert both["quantization"]["cache"]["bits"] == 8
    changes = [candidate["comparison"]["kl_ab"]["value"] for candidate in (one, both, made)]
    assert changes[0] > changes[1] > 0 and changes[2] > changes[1]
    warnings = " ".join(found.data["warnings"])
    assert "fp32-kv4: keys and values have 4 bits by token and head, 6.67 with" in warnings
    assert "made: keys and values have 4 bits" in warnings and "other weights" not in warnings
