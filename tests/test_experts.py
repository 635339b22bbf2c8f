"""Experts of a mixture: fused parameters opened into linear layers, quantized, solved, stored."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import calibit
import tiny_models
from audit_cases import job_of, prepare, save_model
from calibit import experts, structure
from calibit.auditing import job as jobs
from calibit.auditing import run_job
from calibit.experts import OpenExperts
from calibit.footprint import measure_memory
from calibit.io import export, native
from calibit.modules import QuantizedLinear
from calibit.quantization import gptq, order, quantize_checkpoint, quantize_model, weight_hash
from calibit.quantization.calibration_text import Calibration
from calibit.quantization.checkpoint import unfinished
from calibit.quantization.hessian import HessianCapture
from calibit.quantization.perturbation import noise_scales, perturbed
from calibit.solver import factor

SCHEME = "gptq-int4-g16"


def closed(model: nn.Module) -> dict[str, nn.Module]:
    """The fused experts modules of a model."""
    found = {each.module for each in structure.fused_parameters(model)}
    return {name: model.get_submodule(name) for name in sorted(found)}


def routed(model: nn.Module, name: str, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the experts module of this name is called with, sample by sample: tokens, experts,
    weights."""
    seen: list[tuple[torch.Tensor, ...]] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args))
    for row in ids:
        tiny_models.logits(model, row[None])
    handle.remove()
    return tuple(torch.cat(parts) for parts in zip(*seen, strict=True))


def plain_loop(
    fused: nn.Module, weights: dict[str, list[torch.Tensor]], *args: Any
) -> torch.Tensor:
    """Token by token and expert by expert, on given slices `[N, K]`."""
    x, index, share = args
    rows = []
    for token in range(len(x)):
        total = torch.zeros(x.shape[1])
        for expert, weight in zip(index[token].tolist(), share[token], strict=True):
            first = weights["gate_up_proj"][expert] @ x[token]
            if fused.has_bias:
                first = first + fused.gate_up_proj_bias[expert]
            y = weights["down_proj"][expert] @ fused._apply_gate(first)
            if fused.has_bias:
                y = y + fused.down_proj_bias[expert]
            total = total + weight * y
        rows.append(total)
    return torch.stack(rows).detach()


# --- opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", tiny_models.MIXTURE)
def test_opened_model_computes_as_before_and_closes_again(name: str, dtype: torch.dtype) -> None:
    model = tiny_models.build(name, dtype=dtype)
    ids, modules = tiny_models.tokens(), closed(model)
    before, hashed = tiny_models.logits(model, ids), weight_hash(model)
    with structure.opened_experts(model, modules):
        assert all(isinstance(model.get_submodule(n), OpenExperts) for n in modules)
        inside = tiny_models.logits(model, ids)
    # Sums of up to 80 terms in another order, through two blocks; logits are about 4.
    eps = torch.finfo(dtype).eps
    assert torch.allclose(inside, before, rtol=0, atol=20 * eps * float(before.abs().max()))
    assert all(model.get_submodule(n) is module for n, module in modules.items())
    assert torch.equal(tiny_models.logits(model, ids), before)
    assert weight_hash(model) == hashed


def test_opening_copies_no_weight() -> None:
    model = tiny_models.build("gpt_oss")
    fused = {n: p.untyped_storage().data_ptr() for n, p in model.named_parameters() if p.dim() == 3}
    with structure.opened_experts(model, closed(model)):
        layers = structure.linear_layers(model).values()
        opened = {
            layer.experts: model.get_submodule(layer.name).weight.untyped_storage().data_ptr()
            for layer in layers
            if layer.experts is not None
        }
    assert opened == fused


def test_gradients_reach_the_tokens_and_the_slices() -> None:
    fused = next(iter(closed(tiny_models.build("mixtral")).values()))
    x = torch.randn(6, tiny_models.HIDDEN)
    index, share = torch.randint(3, (6, 2)), torch.rand(6, 2)
    gradients = []
    for module in (fused, OpenExperts(fused)):
        given = x.clone().requires_grad_()
        module(given, index, share).square().sum().backward()
        gradients.append(given.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4)  # sums of 80 terms, squared


def test_tokens_for_no_expert_and_no_tokens() -> None:
    fused = next(iter(closed(tiny_models.build("mixtral")).values()))
    opened, x = OpenExperts(fused), torch.randn(3, tiny_models.HIDDEN)
    share = torch.rand(3, 2)
    none = torch.full((3, 2), 3)  # expert 3 of 3: what expert parallelism writes for "elsewhere"
    assert torch.equal(opened(x, none, share), torch.zeros_like(x))
    mixed = torch.tensor([[0, 3], [1, 3], [2, 3]])
    alone = opened(x, mixed[:, :1], share[:, :1])
    assert torch.allclose(opened(x, mixed, share), alone)
    assert opened(x[:0], none[:0], share[:0]).shape == (0, tiny_models.HIDDEN)


def test_copy_and_pickle(tmp_path: Path) -> None:
    model = tiny_models.build("gpt_oss")
    quantize_model(model, "nf4")
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    ids = tiny_models.tokens()
    expected = tiny_models.logits(model, ids)
    for other in (again, copy.deepcopy(model)):
        assert torch.equal(tiny_models.logits(other, ids), expected)


class Doubled(nn.Module):
    """Says that it is an experts module, and computes twice what one does."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.inner = [fused]
        vars(self).update(
            {k: v for k, v in vars(fused).items() if k.startswith(("has", "is", "n"))}
        )
        self._parameters.update(fused._parameters)
        self.act_fn = fused.act_fn

    def _apply_gate(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[0]._apply_gate(x)

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner[0](*args)


def test_module_that_computes_something_else_stays_closed() -> None:
    model = tiny_models.build("mixtral")
    for name, module in closed(model).items():
        model.set_submodule(name, Doubled(module))
    report = quantize_model(model, "nf4")
    reasons = {kept.reason for kept in report.kept if "experts" in kept.name}
    assert reasons == {"fused, and its module computes something else"}
    assert not any("experts" in row.name for row in report.modules)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: delattr(m, "has_gate"), "does not say what it computes"),
        (
            lambda m: setattr(m, "scale", nn.Parameter(torch.ones(3))),
            "down_proj, gate_up_proj, scal",
        ),
        (lambda m: setattr(m, "is_transposed", True), "shapes that are not those of experts"),
        (lambda m: setattr(m, "has_bias", True), "has the parameters down_proj, gate_up_proj"),
    ],
)
def test_layout_that_is_not_understood_is_refused(change: Any, reason: str) -> None:
    module = next(iter(closed(tiny_models.build("mixtral")).values()))
    assert experts.refusal(module) is None
    change(module)
    assert reason in str(experts.refusal(module))


# --- nearest rounding -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_models.MIXTURE)
def test_quantized_experts_are_a_plain_loop_over_dequantized_slices(name: str) -> None:
    model = tiny_models.build(name)
    fused = copy.deepcopy(closed(model))
    report = quantize_model(model, {"experts": "int4-g16-asym"})
    assert report.kept and not any("experts" in kept.name for kept in report.kept)
    for path, module in fused.items():
        given = routed(model, path, tiny_models.tokens())
        opened = model.get_submodule(path)
        slices = {
            part: [layer.dequantize() for layer in layers]
            for part, layers in opened.lists().items()
        }
        with torch.no_grad():
            # Sums of at most 80 float32 terms in another order; outputs are about 1.
            expected = plain_loop(module, slices, *given)
            assert torch.allclose(opened(*given), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", tiny_models.MIXTURE)
def test_each_slice_is_quantized_as_a_weight_of_its_own(name: str) -> None:
    model = tiny_models.build(name)
    original = copy.deepcopy(model)
    report = quantize_model(model, "nf4-dq")
    rows = {row.name: row for row in report.modules}
    for path, module in closed(original).items():
        for part, layers in model.get_submodule(path).lists().items():
            whole = module.get_parameter(part).detach()
            for expert, layer in enumerate(layers):
                dense = whole[expert].t() if module.is_transposed else whole[expert]
                expected = calibit.quantize(dense, "nf4-dq")
                assert torch.equal(layer.quantized_weight().codes, expected.codes)
                row = rows[f"{path}.{part}.{expert}"]
                assert row.shape == tuple(dense.shape) and row.nbytes == expected.nbytes
    assert report.parameters == sum(p.numel() for p in original.parameters())
    assert report.source_hash == weight_hash(original)


def test_memory_of_experts_is_counted() -> None:
    model = tiny_models.build("mixtral")
    weights = sum(p.numel() for p in model.parameters() if p.dim() >= 2)
    report = quantize_model(model, "int8-row")
    memory = measure_memory(model)
    assert memory.quantized == sum(row.shape[0] * row.shape[1] for row in report.modules)
    assert memory.quantized > 0.7 * weights  # the rest: embedding, head, router
    assert memory.bytes_weights + memory.bytes_meta == sum(row.nbytes for row in report.modules)


def test_plan_names_experts_and_keeps_others() -> None:
    model = tiny_models.build("mixtral")
    report = quantize_model(model, {"layers.0.*.down_proj.1": "nf4", "self_attn": "int8-row"})
    assert [row.name for row in report.modules if "experts" in row.name] == [
        "model.layers.0.mlp.experts.down_proj.1"
    ]
    kept = {each.name: each for each in report.kept if "experts" in each.name}
    assert len(kept) == 3 + 2 + 2  # three slices and two of the opened block, two fused parameters
    assert kept["model.layers.1.mlp.experts.down_proj"].shape == (3, 48, 80)
    assert kept["model.layers.0.mlp.experts.down_proj.0"].nbytes == 48 * 80 * 4
    assert {each.reason for each in kept.values()} == {"kept by the plan"}


def test_skip_keeps_the_parameters_fused() -> None:
    model = tiny_models.build("olmoe")
    report = quantize_model(model, "nf4", skip="experts")
    assert {k.name: k.reason for k in report.kept if "experts" in k.name} == {
        f"model.layers.{block}.mlp.experts.{part}": "skipped"
        for block in range(tiny_models.BLOCKS)
        for part in ("gate_up_proj", "down_proj")
    }
    assert len(closed(model)) == tiny_models.BLOCKS


# --- GPTQ -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny_models.MIXTURE)
def test_hessian_of_an_expert_is_the_sum_over_its_tokens(name: str) -> None:
    model, ids = tiny_models.build(name), tiny_models.tokens(4, 32)
    path = sorted(closed(model))[-1]
    x, index, _ = (part.double().numpy() for part in routed(model, path, ids))
    structure.open_experts_(model, [path])
    layers = model.get_submodule(path).lists()["gate_up_proj"]
    with HessianCapture({str(i): layer for i, layer in enumerate(layers)}) as capture:
        for row in ids:
            capture.run(lambda row=row: tiny_models.logits(model, row[None]))  # type: ignore[misc]
    for expert in range(len(layers)):
        rows = x[(index == expert).any(1)]
        found = capture.hessians()[str(expert)]
        assert found is not None and found.rows == len(rows)
        # float32 products of at most 32 terms a pass
        np.testing.assert_allclose(found.total.numpy(), rows.T @ rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", [SCHEME, "gptq-nf4-g16-actorder"])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_slices_are_solved_on_their_own_tokens(name: str, scheme: str) -> None:
    """The last block's first projections: everything before them is as the driver leaves it."""
    model, ids = tiny_models.build(name), tiny_models.tokens(6, 40)
    original = copy.deepcopy(model)
    report = quantize_model(model, scheme, calibration=ids)
    path = sorted(closed(original))[-1]
    x, index, _ = routed(model, path, ids)
    fused = original.get_submodule(path)
    rows = {row.name: row for row in report.modules}
    for expert, layer in enumerate(model.get_submodule(path).lists()["gate_up_proj"]):
        own = x[(index == expert).any(1)].double()
        whole = fused.gate_up_proj.detach()[expert]
        dense = whole.t() if fused.is_transposed else whole
        factored = factor(own.T @ own, activation_order="actorder" in scheme)
        expected = calibit.quantize(dense, scheme, hessian=factored)
        row = rows[f"{path}.gate_up_proj.{expert}"]
        assert (row.solver, row.tokens) == ("gptq", len(own))
        # The Hessians differ in their last float32 digits: a weight on a boundary may fall the
        # other way and send the rest of its row elsewhere.
        found = layer.quantized_weight().dequantize()
        same = (found == expected.dequantize()).all(1)
        assert float(same.float().mean()) > 0.9


def test_parts_that_memory_asks_for_give_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tiny_models.tokens(5, 40)
    models = [tiny_models.build("olmoe") for _ in range(2)]
    quantize_model(models[0], SCHEME, calibration=ids)
    monkeypatch.setattr(order, "_HESSIAN_BYTES", 1)
    quantize_model(models[1], SCHEME, calibration=ids)
    assert weight_hash(models[0]) == weight_hash(models[1])


def lonely(model: Any, block: int, router: str) -> None:
    """Send no token to expert 0 of a block."""
    gate = model.get_submodule(router.format(block))
    with torch.no_grad():
        gate.bias[0] = -1e4


def test_expert_that_no_token_reaches_is_rounded_to_nearest_and_says_so() -> None:
    model, ids = tiny_models.build("gpt_oss"), tiny_models.tokens(5, 40)
    lonely(model, 1, "model.layers.{}.mlp.router")
    original = copy.deepcopy(model)
    report = quantize_model(model, SCHEME, calibration=ids)
    starved = [row for row in report.modules if row.notes]
    assert [row.name for row in starved] == [
        f"model.layers.1.mlp.experts.{part}.0" for part in ("gate_up_proj", "down_proj")
    ]
    for row in starved:
        assert (row.solver, row.scheme, row.tokens, row.loss) == ("nearest", "int4-g16", 0, None)
        assert row.notes == ("no calibration token reached it: nearest rounding",)
    dense = original.model.layers[1].mlp.experts.down_proj.detach()[0].t()
    expected = calibit.quantize(dense, "int4-g16")
    layer = model.model.layers[1].mlp.experts.lists()["down_proj"][0]
    assert torch.equal(layer.quantized_weight().codes, expected.codes)
    assert any("2 of 12 weights of experts are rounded to nearest" in n for n in report.notes)
    assert "no calibration token reached it" in "".join(n for r in report.modules for n in r.notes)


def test_expert_with_too_small_a_share_is_rounded_to_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids = tiny_models.build("olmoe"), tiny_models.tokens(5, 40)
    counts = torch.bincount(routed(model, "model.layers.0.mlp.experts", ids)[1].flatten())
    fewest = int(counts.argmin())
    share = (float(counts[fewest]) + 0.5) / 200
    monkeypatch.setattr(gptq, "STARVED", share)
    report = quantize_model(model, SCHEME, calibration=ids)
    rows = {row.name: row for row in report.modules}
    row = rows[f"model.layers.0.mlp.experts.gate_up_proj.{fewest}"]
    assert row.solver == "nearest" and row.tokens is not None
    note = f"{row.tokens} of 200 calibration tokens reached it, fewer than {share:.1%}"
    assert row.notes == (f"{note}: nearest rounding",)
    assert all(row.solver == "gptq" for row in report.modules if "self_attn" in row.name)


def test_fewer_tokens_than_inputs_is_said_of_experts() -> None:
    report = quantize_model(
        tiny_models.build("mixtral"), SCHEME, calibration=tiny_models.tokens(2, 48)
    )
    note = next(note for note in report.notes if "weights of experts" in note)
    assert "reached by fewer calibration tokens than they have inputs" in note


def test_guard_compares_with_nearest_rounding() -> None:
    ids = tiny_models.tokens(12, 24)
    text = Calibration(tuple(ids[:-3]), "test", held_out=tuple(ids[-3:]))
    before = tiny_models.build("qwen3_moe")
    solved, nearest = copy.deepcopy(before), copy.deepcopy(before)
    found = quantize_model(solved, "gptq-int3-g16", calibration=text).held_out
    quantize_model(nearest, "int3-g16")
    assert found is not None
    divergences = []
    for row in text.held_out:
        p, q = (
            tiny_models.logits(m, row[None])[0].double().log_softmax(-1) for m in (before, nearest)
        )
        divergences.append((p.exp() * (p - q)).sum(-1))
    # Sums of float32 logits in another order; the divergences are about 0.1.
    assert found.kl_nearest == pytest.approx(float(torch.cat(divergences).mean()), rel=1e-3)


def test_job_that_is_refused_leaves_the_experts_closed() -> None:
    model = tiny_models.build("mixtral")
    before = weight_hash(model)
    with pytest.raises(ValueError, match="token ids below"):
        quantize_model(model, SCHEME, calibration=torch.full((1, 8), 10_000))
    assert len(closed(model)) == tiny_models.BLOCKS and weight_hash(model) == before


# --- on disk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss"])
def test_run_that_was_cut_off_goes_on(tmp_path: Path, name: str) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int, name: str) -> None:
        if done == total // 2 + 2:  # two layers into the second of two like blocks
            raise Stopped

    ids = tiny_models.tokens(8, 24)
    tiny_models.build(name).save_pretrained(tmp_path / "source")
    whole = quantize_checkpoint(tmp_path / "source", SCHEME, tmp_path / "whole", calibration=ids)
    again = partial(quantize_checkpoint, tmp_path / "source", SCHEME, tmp_path / "out")
    with pytest.raises(Stopped):
        again(calibration=ids, progress=stop)
    assert len(list(unfinished(tmp_path / "out").glob("block-*"))) == 1
    report = again(calibration=ids)
    models = [native.load(tmp_path / folder) for folder in ("whole", "out")]
    assert weight_hash(models[0]) == weight_hash(models[1])
    assert [row.tokens for row in report.modules] == [row.tokens for row in whole.modules]


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_kept_slices_survive_a_checkpoint(tmp_path: Path, name: str) -> None:
    model = tiny_models.build(name)
    quantize_model(model, {"layers.0.*.down_proj.1": "nf4"})
    native.save(model, tmp_path / "model")
    again = native.load(tmp_path / "model")
    assert weight_hash(again) == weight_hash(model)
    ids = tiny_models.tokens()
    assert torch.equal(tiny_models.logits(again, ids), tiny_models.logits(model, ids))


def test_checkpoint_without_an_expert_is_refused(tmp_path: Path) -> None:
    model = tiny_models.build("mixtral")
    quantize_model(model, "nf4")
    native.save(model, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    del config["quantization_config"]["modules"]["model.layers.1.mlp.experts.down_proj.2"]
    file.write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"expected tensor 'model.layers.1.mlp.experts.down_proj.2"
    ):
        native.load(tmp_path / "model")


@pytest.mark.parametrize("layout", ["gptq", "compressed-tensors", "bitsandbytes"])
def test_foreign_layouts_refuse_experts_before_work_begins(layout: str, tmp_path: Path) -> None:
    scheme = {"experts": "nf4" if layout == "bitsandbytes" else "int4-g16"}
    tiny_models.build("mixtral").save_pretrained(tmp_path / "source")
    with pytest.raises(
        ValueError, match=r"cannot write .* of .* layers as .*experts.*: its readers"
    ):
        quantize_checkpoint(tmp_path / "source", scheme, tmp_path / "out", layout=layout)
    model = tiny_models.build("mixtral")
    quantize_model(model, scheme)
    with pytest.raises(ValueError, match=r"keep the experts in floating point \(skip='experts'\)"):
        export.save(model, tmp_path / "out", layout)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- measured -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss"])
def test_noise_copies_reach_the_fused_parameters(name: str) -> None:
    model = tiny_models.build(name)
    candidate = copy.deepcopy(model)
    quantize_model(candidate, "int4-g16")
    before, ids = weight_hash(model), tiny_models.tokens()
    truth = tiny_models.logits(model, ids)
    scales = noise_scales(model, candidate, list(tiny_models.tokens(4, 24)))
    assert set(scales) == {
        n for n, m in candidate.named_modules() if isinstance(m, QuantizedLinear)
    }
    only = {key: scale for key, scale in scales.items() if "experts" in key}
    with perturbed(model, only, seed=0):
        assert len(closed(model)) == tiny_models.BLOCKS
        assert float((tiny_models.logits(model, ids) - truth).abs().max()) > 0.01
    assert weight_hash(model) == before


@pytest.mark.slow
def test_audit_of_a_mixture_end_to_end(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    source = save_model(folder / "mixture", architecture="mixtral")
    quantize_checkpoint(source, "nf4-g16", folder / "stored")
    job = job_of(
        folder,
        model=jobs.local(source),
        schemes=("int8-row", SCHEME),
        candidates=(jobs.local(folder / "stored"),),
        limit=20,
    )
    audit = run_job(job, folder / "out", progress=None)
    assert set(audit.verdicts) == {"int8-row", SCHEME, "stored"} and not audit.failed
    bits = {n: one["footprint"]["bits_per_weight"] for n, one in audit.candidates.items()}
    # Scales of 16 bits for 48 or 80 weights, of 16 and of 32 bits for 16; all layers but the head.
    assert bits["int8-row"] < 8.4 and bits[SCHEME] == 5.0
    assert bits["stored"] == pytest.approx(6 + 20 * 64 * 8 / 82944)  # a codebook for each of 20
