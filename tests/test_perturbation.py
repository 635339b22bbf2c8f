"""Weight noise of the size of a candidate's rounding errors."""

from __future__ import annotations

import copy

import pytest
import torch

import tiny_models
from calibit import structure
from calibit.modules import QuantizedLinear
from calibit.quantization import quantize_model
from calibit.quantization.perturbation import noise_scales, perturbed


def sequences() -> list[torch.Tensor]:
    return list(tiny_models.tokens(6, 24))


def output_errors(model: torch.nn.Module, other: torch.nn.Module, names: list[str]) -> dict:
    """Sum of squared differences of each layer's output, both layers fed as in `model`."""
    errors = dict.fromkeys(names, 0.0)

    def observe(name: str):
        def hook(module, inputs, output):
            errors[name] += float((other.get_submodule(name)(inputs[0]) - output).square().sum())

        return hook

    handles = [model.get_submodule(name).register_forward_hook(observe(name)) for name in names]
    with torch.no_grad():
        model(input_ids=torch.stack(sequences()), use_cache=False)
    for handle in handles:
        handle.remove()
    return errors


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon"])
def test_noise_has_the_output_error_of_the_candidate(name: str) -> None:
    model = tiny_models.build(name)
    candidate = copy.deepcopy(model)
    quantize_model(candidate, "int4-g32")
    scales = noise_scales(model, candidate, sequences())
    layers = [n for n, m in candidate.named_modules() if isinstance(m, QuantizedLinear)]
    assert list(scales) == layers
    wanted = output_errors(model, candidate, layers)
    reference, draws = copy.deepcopy(model), 12
    found = dict.fromkeys(layers, 0.0)
    for seed in range(draws):
        with perturbed(reference, scales, seed=seed):
            for layer, error in output_errors(model, reference, layers).items():
                found[layer] += error / draws
    # 12 draws of a sum of at least 16 x (a few) squares: a standard deviation of about 12 %.
    for layer in layers:
        assert found[layer] == pytest.approx(wanted[layer], rel=0.5), layer


def test_model_is_as_it_was_even_after_an_error() -> None:
    model = tiny_models.build("llama", dtype=torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    scales = dict.fromkeys(structure.linear_layers(model), 0.1)
    with pytest.raises(RuntimeError), perturbed(model, scales, seed=0):
        assert not torch.equal(next(iter(model.state_dict().values())), torch.zeros(1))
        changed = [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])]
        assert changed
        raise RuntimeError
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_seed_decides_the_noise() -> None:
    model = tiny_models.build("llama")
    scales = dict.fromkeys(structure.linear_layers(model), 0.1)

    def weights(seed: int) -> torch.Tensor:
        with perturbed(model, scales, seed=seed):
            return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_another_architecture_is_refused() -> None:
    candidate = tiny_models.build("gpt2")
    quantize_model(candidate, "nf4")
    with pytest.raises(ValueError, match=r"\[noise_scales\] expected a candidate of the same arch"):
        noise_scales(tiny_models.build("llama"), candidate, sequences())
