"""gptaq over whole models: layers are fitted to what the unquantized model has in their place."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny_models
from calibit import solver, structure
from calibit.modules import QuantizedLinear
from calibit.quantization import calibration_text, quantize_model
from calibit.quantization.memory import StandIn
from calibit.quantization.replay import record
from calibit.quantization.unquantized import added_to_stream
from calibit.weight import quantize

SCHEME = "gptaq-int3-g16-actorder"

# name -> the layers that add to the stream of block 1, in the order in which they run
ADDING = {
    "llama": ("model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"),
    "gpt2": ("transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_proj"),
    "opt": (),  # a norm behind each sum
    "bloom": (
        "transformer.h.1.self_attention.dense",
        "transformer.h.1.mlp.dense_4h_to_h",
    ),
    "gpt_neox": ("gpt_neox.layers.1.attention.dense", "gpt_neox.layers.1.mlp.dense_4h_to_h"),
    "phi": ("model.layers.1.self_attn.dense", "model.layers.1.mlp.fc2"),
    "mixtral": (),  # the experts answer to a change before them
    "gemma3": (),  # a norm before each sum
}


def forward(model: nn.Module, ids: torch.Tensor) -> object:
    return model(input_ids=ids, use_cache=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ADDING)
def test_layers_that_add_to_the_stream_are_found(name: str, dtype: torch.dtype) -> None:
    model = tiny_models.build(name, dtype=dtype)
    replay = record(model, [tiny_models.tokens(1)], partial(forward, model))
    names = [
        layer.name
        for layer in structure.linear_layers(model).values()
        if layer.name.startswith(f"{replay.name}.1.")
        and layer.shape[0] == tiny_models.HIDDEN
        and layer.experts is None
    ]
    assert set(names) >= set(ADDING[name])
    run = partial(replay.calls[1][0].run, replay.blocks[1])
    assert added_to_stream(model, names, run, replay.hidden[0]) == ADDING[name]


class Seen:
    """Inputs and outputs of layers, and inputs of block 1, in passes of a whole model."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], block: str, ids) -> None:
        self.x: dict[str, list[torch.Tensor]] = {name: [] for name in (*names, block)}
        self.out: dict[str, list[torch.Tensor]] = {name: [] for name in (*names, block)}
        for name in self.x:
            model.get_submodule(name).register_forward_hook(partial(self._note, name))
        with torch.no_grad():
            for row in ids:
                forward(model, row[None])

    def _note(self, name: str, _module, inputs, output) -> None:
        found = output[0] if isinstance(output, tuple) else output
        for kept, value in ((self.x, inputs[0]), (self.out, found)):
            kept[name].append(value.reshape(-1, value.shape[-1]).double())

    def stack(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat(self.x[name]), torch.cat(self.out[name])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_layers_are_those_of_the_definition(name: str) -> None:
    """Whole passes of the unquantized and the finished model give every sum anew."""
    ids = tiny_models.tokens(6, 24)
    before = tiny_models.build(name)
    after = copy.deepcopy(before)
    quantize_model(after, SCHEME, calibration=ids)
    names = ADDING[name]
    block = names[0].rpartition(".1.")[0] + ".1"
    floats, solved = Seen(before, names, block, ids), Seen(after, names, block, ids)
    layers = structure.linear_layers(before)
    for position, each in enumerate(names):
        (y, _), (x, _) = floats.stack(each), solved.stack(each)
        ahead = floats.stack(block)[0] - solved.stack(block)[0]
        for earlier in names[:position]:
            ahead = ahead + floats.stack(earlier)[1] - solved.stack(earlier)[1]
        w = layers[each].weight(before)
        sums = {"hessian": x.T @ x, "cross": (y - x).T @ x}
        want = quantize(w, SCHEME, **sums, residual=ahead.T @ x)
        module = after.get_submodule(each)
        assert isinstance(module, QuantizedLinear)
        same = (module.quantized_weight().dequantize() == want.dequantize()).double().mean()
        assert same > 0.99  # float32 sums in the driver, float64 here: a code may turn over
        without = quantize(w, SCHEME, **sums)
        assert (without.dequantize() == want.dequantize()).double().mean() < 0.9


@pytest.mark.parametrize("solver_name", ["gptq", "gptaq"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2", "mixtral", "falcon"])
def test_memory_changes_nothing(name: str, solver_name: str, monkeypatch) -> None:
    """Not even a bit: without memory every pass computes the whole block."""
    from calibit.quantization import gptq

    found = []
    for limit in (gptq.MEMORY_BYTES, 40_000, 0):
        monkeypatch.setattr(gptq, "MEMORY_BYTES", limit)
        model = tiny_models.build(name)
        quantize_model(model, f"{solver_name}-int4-g16", calibration=tiny_models.tokens(6, 24))
        found.append(tiny_models.logits(model, tiny_models.tokens()))
        assert not any(isinstance(module, StandIn) for module in model.modules())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_module_that_a_finished_layer_ends_runs_no_more() -> None:
    """Attention: for the order, for q/k/v and for its output layer, whose output is its own."""
    model = tiny_models.build("llama")
    calls = []
    attention = model.model.layers[1].self_attn
    attention.register_forward_pre_hook(lambda *_: calls.append(1))
    ids = tiny_models.tokens(6, 24)
    quantize_model(model, "gptq-int4-g16", calibration=ids)
    first = 2  # the true pass of the first sample, and the order
    assert len(calls) == first + 2 * len(ids)


def test_residual_moves_the_target_by_its_share() -> None:
    """Eight bits are nearly exact: the weight is W + share (W C + R) inv(H)."""
    random = torch.Generator().manual_seed(3)
    x = torch.randn(500, 24, generator=random, dtype=torch.float64)
    w, c, r = (torch.randn(n, 24, generator=random).double() for n in (10, 24, 10))
    h = x.T @ x
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(24)
    got = quantize(w, "gptaq-int8-row", hessian=h, cross=c, residual=r).dequantize()
    want = w + solver.CROSS_SHARE * (w @ c + r) @ torch.linalg.inv(damped)
    assert float((got - want).abs().max()) < 0.02 * float(want.abs().max())


@pytest.mark.parametrize(
    ("scheme", "shape", "message"),
    [
        ("gptq-int4-g8", (10, 24), r"expected no residual= for 'gptq-int4-g8'"),
        ("gptaq-int4-g8", (24, 10), r"expected residual= \[10, 24\] .* got one of \[24, 10\]"),
    ],
)
def test_wrong_residual_is_refused(scheme: str, shape: tuple[int, int], message: str) -> None:
    cross = {"cross": torch.eye(24)} if scheme.startswith("gptaq") else {}
    with pytest.raises(ValueError, match=message):
        quantize(
            torch.randn(10, 24), scheme, hessian=torch.eye(24), residual=torch.ones(shape), **cross
        )
    if cross:
        with pytest.raises(ValueError, match=r"finite sum of e x\^T"):
            quantize(
                torch.randn(10, 24),
                scheme,
                hessian=torch.eye(24),
                residual=torch.full((10, 24), torch.nan),
                **cross,
            )


def test_experts_are_solved_by_gptq_and_say_so() -> None:
    model = tiny_models.build("mixtral")
    report = quantize_model(model, "gptaq-int4-g16", calibration=tiny_models.tokens(8, 24))
    for row in report.modules:
        plain = any("cannot be paired" in note for note in row.notes)
        assert plain == (".experts." in row.name)
        assert row.solver in ({"gptq", "nearest"} if plain else {"gptaq", "nearest"})


def test_layers_outside_the_blocks_are_solved_by_gptq_and_say_so() -> None:
    model = tiny_models.build("opt")
    report = quantize_model(model, "gptaq-int4-g16", calibration=tiny_models.tokens(8, 24))
    rows = {row.name: row for row in report.modules if ".layers." not in row.name}
    assert rows and all("cannot be paired" in row.notes[0] for row in rows.values())


def test_it_wins_on_a_real_model(shared_data: Path) -> None:
    """stories260K, int3 in groups of 32: held-out loss, beside the solver without it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "models" / "stories260K" / "hf"
    stories = (shared_data / "calib" / "tiny.txt").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = torch.tensor(tokenizer(stories[-40_000:])["input_ids"][: 12 * 256]).reshape(12, 256)
    data = calibration_text.load([stories[-300_000:-60_000]], tokenizer, segments=32, length=256)

    def nll(scheme: str | None) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if scheme is not None:
            quantize_model(model, scheme, calibration=data)
        with torch.no_grad():
            return float(model(held_out, labels=held_out).loss)

    exact, plain, fitted = nll(None), nll("gptq-int3-g32"), nll("gptaq-int3-g32")
    print(exact, plain, fitted)
    assert fitted - exact < 0.8 * (plain - exact)
