"""The quantization-aware fine-tune: rounding in training and after it, lineage in the audit."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import calibit
import tiny_models
from audit_cases import job_of, prepare
from calibit import kv_cache, schemes, structure
from calibit.auditing import run_job
from calibit.comparison import compare
from calibit.fingerprint import weight_hash
from calibit.io import native
from calibit.modules import QuantizedLinear
from calibit.quantization import finetuning, quantize_model
from calibit.quantization.finetuning import FakeQuantized, finetune_model

SETTINGS: dict[str, Any] = {"steps": 12, "batch": 2, "learning_rate": 3e-3}


def text() -> torch.Tensor:
    """Sequences in which a token decides its successor: there is something to learn."""
    start = tiny_models.tokens(6, 1)
    steps = torch.arange(24)[None]
    return 3 + (start + 7 * steps) % (tiny_models.VOCABULARY - 3)


def nll(model: nn.Module) -> float:
    ids = text()
    logits = tiny_models.logits(model, ids)[:, :-1]
    return float(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


@pytest.mark.parametrize("transposed", [False, True])
def test_rounded_forward_straight_backward(transposed: bool) -> None:
    layer = nn.Linear(32, 8)
    w = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    part = FakeQuantized(
        layer, (8, 32), schemes.parse("int3-g16"), transposed=transposed, rank=0,
        generator=torch.Generator(),
    )  # fmt: skip
    stored = (w.t().contiguous() if transposed else w).requires_grad_()
    values = part(stored)
    want = calibit.quantize(w, "int3-g16").dequantize()
    torch.testing.assert_close(values.t() if transposed else values, want)
    factor = torch.randn(values.shape, generator=torch.Generator().manual_seed(2))
    (values * factor).sum().backward()
    assert stored.grad is not None and torch.equal(stored.grad, factor)


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_loss_falls_and_is_below_that_of_rounding_alone(name: str, rank: int | None) -> None:
    model = tiny_models.build(name)
    before, alone = copy.deepcopy(model), copy.deepcopy(model)
    quantize_model(alone, "int3-g16")
    report = finetune_model(model, "int3-g16", text(), rank=rank, **SETTINGS)
    made = report.finetuning
    assert made is not None and made["loss_last"] < made["loss_first"] - 0.1
    # What was trained with rounding in place is what the packed layers compute.
    assert nll(alone) == pytest.approx(made["loss_first"], rel=1e-4)
    assert nll(model) == pytest.approx(made["loss_last"], rel=1e-4)
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == len(
        report.modules
    )
    assert made["base_hash"] == report.source_hash == weight_hash(before)
    assert made["rank"] == rank and made["text"]["tokens"] == text().numel()
    assert "fine-tuned with rounded weights: 12 steps of 2 sequences on 144" in report.notes[-1]
    floats = dict(before.named_parameters())
    for key, parameter in model.named_parameters():  # nothing else has moved
        assert torch.equal(parameter, floats[key]) and parameter.requires_grad
    assert model.training == before.training


@pytest.mark.parametrize("scheme", ["int4-g16-a8-kv4", "nf4-g16-head", "llm-int8"])
def test_inputs_cache_and_head_are_rounded_in_training(scheme: str) -> None:
    model = tiny_models.build("llama")
    made = finetune_model(model, scheme, text(), **SETTINGS).finetuning
    assert made is not None and made["loss_last"] < made["loss_first"]
    # One code on the other side of a tie moves an input by 1/127 and a key by 1/15 of its range.
    assert nll(model) == pytest.approx(made["loss_last"], rel=5e-3)
    assert kv_cache.bits_of(model) == schemes.parse(scheme).cache_bits


def test_the_same_seed_gives_the_same_model() -> None:
    torch.set_num_threads(1)
    hashes = []
    for seed in (0, 0, 1):
        model = tiny_models.build("llama")
        finetune_model(model, "int4-g16", text(), seed=seed, rank=2, **SETTINGS)
        hashes.append(weight_hash(model))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_plan_trains_what_it_quantizes() -> None:
    model = tiny_models.build("llama")
    kept = model.model.layers[0].self_attn.q_proj.weight.clone()
    report = finetune_model(model, {"mlp": "int4-g16"}, text(), **SETTINGS)
    assert {row.name.split(".")[-2] for row in report.modules} == {"mlp"}
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, kept)


@pytest.mark.parametrize(
    ("scheme", "changes", "message"),
    [
        ("gptq-int4-g16", {}, "expected nearest rounding, .* use 'int4-g16'"),
        ("bf16", {}, "expected a scheme that quantizes, got 'bf16'"),
        ("int4", {"steps": 0}, "expected steps of 1 or more, got 0"),
        ("int4", {"rank": 0}, "expected rank of 1 or more, got 0"),
        ("int4", {"learning_rate": -1.0}, "expected a learning rate above 0"),
    ],
)
def test_wrong_arguments_change_nothing(scheme: str, changes: Any, message: str) -> None:
    model = tiny_models.build("llama")
    before = weight_hash(model)
    with pytest.raises(ValueError, match=message):
        finetune_model(model, scheme, text(), **{**SETTINGS, **changes})
    assert weight_hash(model) == before


def test_other_dtypes_and_fused_experts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected float32 weights, .* got torch.bfloat16"):
        finetune_model(tiny_models.build("llama", dtype=torch.bfloat16), "int4", text())
    with pytest.raises(ValueError, match=r"got fused experts in model.layers.0.mlp.experts"):
        finetune_model(tiny_models.build("mixtral"), "int4", text())


@pytest.mark.parametrize(
    ("scheme", "rate", "reason"),
    [("int8", 1e30, "weights whose scale fits float16"), ("nf4-g16", 1e25, "a loss of nan|finite")],
)
def test_training_that_diverges_is_named(scheme: str, rate: float, reason: str) -> None:
    model = tiny_models.build("llama")
    with pytest.raises(RuntimeError, match=r"training to converge, got: .*load it again") as found:
        finetune_model(model, scheme, text(), steps=9, batch=1, learning_rate=rate)
    assert re.search(reason, str(found.value))
    assert all(type(m).__name__ != "ParametrizedLinear" for m in model.modules())
    assert structure.linear_layers(model)


def test_audit_states_the_lineage(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = prepare(tmp_path)
    report = finetuning.finetune_checkpoint(
        folder / "model", "int4-g16", folder / "qat", folder / "text.txt", tokens=256, **SETTINGS
    )
    section = native.load(folder / "qat").config.quantization_config
    assert section["finetuning"] == report.finetuning
    native.save(native.load(folder / "qat"), folder / "again")
    again = native.load(folder / "again").config.quantization_config
    assert again["finetuning"] == report.finetuning
    wrote = calibit.export_model(native.load(folder / "qat"), folder / "gptq", "gptq")
    assert "gptq files do not say that the weights were fine-tuned first" in wrote.notes
    job = job_of(folder, schemes=("int4-g16",), candidates=(str(folder / "qat"),))
    found = run_job(job, folder / "audit", progress=None)
    plain, trained = found.data["candidates"]
    (warning,) = [line for line in found.data["warnings"] if "fine-tuned" in line]
    assert warning.startswith("qat was fine-tuned with rounded weights: 12 steps of 2 sequences")
    assert warning.endswith("its changes are not those of precision alone.")
    checks = [
        next(check for check in one["comparison"]["checks"] if check["check"] == "pair identity")
        for one in (plain, trained)
    ]
    assert checks[0]["passed"] and not checks[1]["passed"]
    assert "fine-tuned" in checks[1]["detail"] and "other weights" not in checks[1]["detail"]
    again = compare(folder / "audit" / "runs" / "baseline", folder / "audit" / "runs" / "qat")
    (identity,) = [check for check in again.checks if check.check == "pair identity"]
    assert not identity.passed and "weights that were fine-tuned in one run" in identity.detail
    with pytest.raises(FileExistsError, match="expected a new folder"):
        finetuning.finetune_checkpoint(folder / "model", "int4", folder / "qat", "pydoc")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from calibit import cli

    folder = prepare(tmp_path)
    words = ["finetune", str(folder / "model"), "int4-g16", "--text", str(folder / "text.txt")]
    words += ["--tokens", "256", "--steps", "2", "--rank", "2", "-o", str(folder / "qat"), "-q"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "fine-tuned with rounded weights: 2 steps of 4 sequences" in " ".join(said.split())
    assert native.load(folder / "qat").config.quantization_config["finetuning"]["rank"] == 2
