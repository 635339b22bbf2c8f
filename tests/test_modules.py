"""QuantizedLinear: state_dict, moves, copies, autograd, a stand-in for the float weight."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import calibit
from calibit import QuantizedLinear

SCHEMES = ["nf4", "fp4-dq", "int4-g128", "int4-g32-asym", "int3-g64-fzero", "int8-row", "mxfp4"]


def layer_of(scheme: str, bias: bool = True) -> QuantizedLinear:
    return QuantizedLinear.from_linear(nn.Linear(200, 72, bias=bias), scheme)


def assert_same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_a_linear_with_the_dequantized_weight(scheme: str, bias: bool) -> None:
    layer = layer_of(scheme, bias)
    dense = nn.Linear(200, 72, bias=bias)
    with torch.no_grad():
        dense.weight.copy_(layer.dequantize())
        if bias:
            dense.bias.copy_(layer.bias)
    x = torch.randn(2, 5, 200)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_state_dict_is_the_canonical_form_before_and_after_a_forward_pass(scheme: str) -> None:
    linear = nn.Linear(200, 72)
    q = calibit.quantize(linear.weight, scheme)
    layer = QuantizedLinear(q, linear.bias)
    before = layer.state_dict()
    assert_same_state({n: t for n, t in before.items() if n != "bias"}, q.tensors())
    layer(torch.randn(3, 200))
    assert_same_state(layer.state_dict(), before)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.double(),
        lambda m: m.to("cpu"),
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
    ],
    ids=["half", "bfloat16", "double", "cpu", "deepcopy", "pickle"],
)
def test_moves_and_copies_change_no_code_and_no_scale(scheme: str, change) -> None:
    layer = layer_of(scheme)
    before = {n: t.clone() for n, t in layer.state_dict().items() if n != "bias"}
    x = torch.randn(3, 200)
    want = layer(x)
    changed = change(layer)
    after = {n: t for n, t in changed.state_dict().items() if n != "bias"}
    assert_same_state(after, before)
    if changed.bias.dtype == torch.float32:
        assert torch.equal(changed(x), want)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_state_dict_loads_into_another_layer(scheme: str) -> None:
    source, target = layer_of(scheme), layer_of(scheme)
    x = torch.randn(3, 200)
    assert not torch.equal(source(x), target(x))
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(source(x), target(x))


def test_load_state_dict_is_strict_and_names_what_is_wrong() -> None:
    model = nn.Sequential(layer_of("nf4"))
    state = model.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.scales"):
        model.load_state_dict({n: t for n, t in state.items() if n != "0.scales"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0\.weight"):
        model.load_state_dict(state | {"0.weight": torch.zeros(72, 200)})
    with pytest.raises(
        RuntimeError, match=r"0: \[pack_weight\] expected codes of shape \[72, 100\]"
    ):
        model.load_state_dict(state | {"0.codes": torch.zeros(72, 3, dtype=torch.uint8)})
    with pytest.raises(RuntimeError, match=r"expected scales of dtype float32"):
        model.load_state_dict(state | {"0.scales": state["0.scales"].half()})
    assert_same_state(model.state_dict(), state)


def test_weight_is_a_free_stand_in() -> None:
    layer = layer_of("nf4").to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16 and layer.weight.device.type == "cpu"
    assert layer.weight.shape == (72, 200) and layer.weight.size(1) == 200
    x = torch.randn(3, 200, dtype=torch.bfloat16)
    torch.testing.assert_close(nn.functional.linear(x, layer.weight), x @ layer.dequantize().t())
    assert layer.weight.float().dtype == torch.float32
    with pytest.raises(AttributeError):
        layer.weight = torch.zeros(1)


def test_result_does_not_depend_on_training_mode() -> None:
    layer, x = layer_of("nf4"), torch.randn(1, 200)
    assert torch.equal(layer.train()(x), layer.eval()(x))


def test_conv1d_is_transposed() -> None:
    conv = pytest.importorskip("transformers").pytorch_utils.Conv1D(72, 200)
    layer, x = QuantizedLinear.from_linear(conv, "int8"), torch.randn(3, 200)
    assert (layer.in_features, layer.out_features) == (200, 72)
    torch.testing.assert_close(layer(x), conv(x), rtol=0.02, atol=0.02)


def test_refuses_other_modules_and_wrong_bias() -> None:
    with pytest.raises(
        TypeError, match=r"expected torch.nn.Linear or transformers Conv1D, got Conv2d"
    ):
        QuantizedLinear.from_linear(nn.Conv2d(1, 1, 1), "nf4")
    with pytest.raises(ValueError, match=r"expected bias \[72\], got \[71\]"):
        QuantizedLinear(calibit.quantize(torch.randn(72, 200), "nf4"), torch.zeros(71))


def test_repr_says_what_it_is() -> None:
    assert "in_features=200, out_features=72, bias=True, scheme=nf4" in repr(layer_of("nf4"))


def test_trains_what_comes_before_it() -> None:
    model = nn.Sequential(nn.Linear(10, 200), layer_of("nf4"))
    model(torch.randn(4, 10)).pow(2).mean().backward()
    assert model[0].weight.grad.abs().sum() > 0 and model[1].bias.grad is not None


@pytest.fixture
def layer() -> QuantizedLinear:
    torch.manual_seed(0)
    return QuantizedLinear.from_linear(nn.Linear(40, 24), "nf4")


def test_stand_in_takes_part_in_arithmetic_as_a_float_weight(layer: QuantizedLinear) -> None:
    w, dense, x = layer.weight, layer.dequantize(), torch.randn(5, 40)
    pairs = [
        (w + 1, dense + 1), (2 * w, 2 * dense), (w - w, dense - dense), (-w, -dense),
        (x @ w.T, x @ dense.T), (w @ x.T, dense @ x.T), (w[3:5, 0], dense[3:5, 0]),
        (torch.cat([w, w]), torch.cat([dense, dense])), (w == dense, dense == dense),
        (torch.stack(list(w)), dense), (torch.from_numpy(np.asarray(w)), dense),
    ]  # fmt: skip
    for got, want in pairs:
        assert torch.equal(got, want)
    assert len(w) == 24


def test_stand_in_is_read_only(layer: QuantizedLinear) -> None:
    def assign() -> None:
        layer.weight[0] = 0

    for change in (
        assign,
        lambda: layer.weight.zero_(),
        lambda: nn.init.normal_(layer.weight),
        lambda: torch.nn.init.zeros_(layer.weight),
    ):
        with pytest.raises(TypeError, match="read-only"):
            change()


def test_derivatives_of_every_kind_are_those_of_the_dequantized_layer(
    layer: QuantizedLinear,
) -> None:
    x, w = torch.randn(3, 40), layer.dequantize()

    def loss(v: torch.Tensor) -> torch.Tensor:
        return layer(v).pow(2).sum()

    def close(got: torch.Tensor, want: torch.Tensor) -> None:
        torch.testing.assert_close(got.detach(), want.detach(), rtol=1e-5, atol=1e-5)

    close(torch.func.grad(loss)(x), 2 * layer(x) @ w)
    close(torch.func.jvp(layer, (x,), (x,))[1], x @ w.T)
    close(torch.func.jacfwd(layer)(x[0]), w)
    close(torch.func.jacrev(layer)(x[0]), w)
    close(torch.func.vmap(layer)(x), layer(x))
    close(torch.func.hessian(loss)(x[0]), 2 * w.T @ w)
    close(torch.autograd.functional.hessian(loss, x[0]), 2 * w.T @ w)
    with forward_ad.dual_level():
        dual = layer(forward_ad.make_dual(x, x))
        close(forward_ad.unpack_dual(dual).tangent, x @ w.T)


def test_bias_gradient_of_a_single_row(layer: QuantizedLinear) -> None:
    layer(torch.randn(40)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.ones(24))


def test_autocast_decides_the_dtype_as_for_a_float_layer(layer: QuantizedLinear) -> None:
    x = torch.randn(3, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == nn.Linear(40, 24)(x).dtype == torch.bfloat16
        assert torch.compile(layer, fullgraph=True, backend="aot_eager")(x).dtype == torch.bfloat16
