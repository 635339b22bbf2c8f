"""Mixture-of-experts layers: from one fused parameter to a linear layer per expert.

transformers keeps the experts of a layer as slices of 3-D parameters (`gate_up_proj [E, 2I, H]`,
`down_proj [E, H, I]`) of a module with an interface of its own ("experts interface",
transformers/integrations/moe.py): attributes say whether there is a gate, a bias, a transposed
weight or a norm after each expert, and every implementation of it computes the same from them.
`OpenExperts` is one more: each slice is a linear layer, which can be quantized as any other.
"""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

Tensor = torch.Tensor

_DOWN = "down_proj"
_FACTS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm")
_TRIAL_ROWS = 4


class OpenExperts(nn.Module):
    """The experts of a mixture as linear layers, in the place of the module that fuses them.

    The layers lie in two `nn.ModuleList`s under the names of the fused parameters, so that slice 3
    of `experts.down_proj` is the module `experts.down_proj.3`. Everything else (activation, gate,
    norm, their settings) is the fused module's own. The layers of a float model are views of the
    fused parameters: opening copies no weight.

    Args:
        fused: a module that `refusal` has nothing against.
    """

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        own = set(vars(nn.Module()))
        vars(self).update({key: value for key, value in vars(fused).items() if key not in own})
        self._kind = type(fused)
        self._buffers.update(fused._buffers)
        self._modules.update(fused._modules)
        for name in projections(fused):
            self._modules[name] = nn.ModuleList(_layers(fused, name))
        self.train(fused.training)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Functions of the fused module's class, such as its own way to apply the gate.
            found = getattr(vars(self)["_kind"], name, None) if "_kind" in vars(self) else None
            if not isinstance(found, FunctionType):
                raise
            return MethodType(found, self)

    def lists(self) -> dict[str, nn.ModuleList]:
        """The layers of the experts by the name of the fused parameter they come from."""
        found = {name: self._modules[name] for name in projections(self)}
        return {name: each for name, each in found.items() if isinstance(each, nn.ModuleList)}

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum of each token's experts, weighted.

        Args:
            hidden_states: ``[T, H]``.
            top_k_index: experts of each token, integers ``[T, k]``; one of E or more is none.
            top_k_weights: their weights ``[T, k]``.

        Returns:
            ``[T, H]`` in the dtype of `hidden_states`.
        """
        tokens, chosen = top_k_index.shape
        experts, weights = top_k_index.reshape(-1), top_k_weights.reshape(-1, 1)
        rows = experts.argsort(stable=True).split(torch.bincount(experts).tolist())
        dtype = torch.promote_types(hidden_states.dtype, weights.dtype)
        weighted = hidden_states.new_zeros((len(experts), hidden_states.shape[-1]), dtype=dtype)
        first, down = self.lists().values()
        for expert, reached in enumerate(rows[: len(down)]):
            if len(reached):
                output = self._expert(first[expert], down[expert], hidden_states[reached // chosen])
                weighted[reached] = (output * weights[reached]).to(dtype)
        # The sum over the experts of a token in their order, in float32 inside torch.
        return weighted.view(tokens, chosen, weighted.shape[1]).sum(1).to(hidden_states.dtype)

    def _expert(self, first: nn.Module, down: nn.Module, x: Tensor) -> Tensor:
        """One expert's output for its tokens."""
        y = down(self._apply_gate(first(x)) if self.has_gate else self.act_fn(first(x)))
        return self.post_expert_norm(y) if self.has_post_expert_norm else y


def projections(module: nn.Module) -> tuple[str, str]:
    """Names of the fused parameters of an experts module, in the order they are applied."""
    return "gate_up_proj" if module.has_gate else "up_proj", _DOWN


def refusal(module: nn.Module) -> str | None:
    """Why the fused parameters of a module cannot become linear layers; None where they can.

    Where the weights are in memory, both forms are compared on a few random tokens.
    """
    if not all(isinstance(getattr(module, name, None), bool) for name in _FACTS):
        return "fused, and its module does not say what it computes"
    names = projections(module)
    biases = tuple(f"{name}_bias" for name in names) if module.has_bias else ()
    found = {name: value for name, value in module._parameters.items() if value is not None}
    if set(found) != {*names, *biases}:
        return f"fused, and its module has the parameters {', '.join(sorted(found)) or 'of none'}"
    first, down = (tuple(_slice(module, name, None).shape) for name in names)
    if len(first) != 3 or len(down) != 3 or first[0] != down[0] or first[2] != down[1]:
        return f"fused, in shapes that are not those of experts: {list(first)} and {list(down)}"
    if any(value.is_meta for value in found.values()):
        return None
    return None if _computes_the_same(module) else "fused, and its module computes something else"


def _computes_the_same(fused: nn.Module) -> bool:
    """Do both forms give the same on random tokens?"""
    generator = torch.Generator().manual_seed(0)
    weight = fused.get_parameter(_DOWN)
    width, count = _slice(fused, _DOWN, None).shape[1], len(weight)
    chosen = min(2, count)
    x = torch.randn(_TRIAL_ROWS, width, generator=generator).to(weight)
    index = torch.randint(count, (_TRIAL_ROWS, 1), generator=generator)
    index = (index + torch.arange(chosen)) % count
    share = torch.rand(_TRIAL_ROWS, chosen, generator=generator).to(weight)
    with torch.no_grad():
        try:
            expected = fused(x, index.to(weight.device), share)
            answer = OpenExperts(fused)(x, index.to(weight.device), share)
        except (
            AttributeError,
            TypeError,
            ValueError,
            RuntimeError,
        ):  # other arguments, other parts
            return False
    if not isinstance(expected, Tensor) or answer.shape != expected.shape:
        return False
    # A handful of roundings to the dtype, and two sums of K terms in another order, which are made
    # in float32; another function differs by far more.
    sums = float(torch.finfo(torch.float32).eps) * max(weight.shape[1:]) ** 0.5
    tolerance = 16 * float(torch.finfo(weight.dtype).eps) + 8 * sums
    scale = float(expected.abs().max()) + 1e-12
    return float((answer - expected).abs().max()) <= tolerance * scale


def _slice(module: nn.Module, name: str, expert: int | None) -> Tensor:
    """A fused parameter as `[E, N, K]`, or one of its slices `[N, K]`: a view."""
    whole = module.get_parameter(name).detach()
    part = whole if expert is None else whole[expert]
    return part.transpose(-1, -2) if module.is_transposed else part


def _layers(fused: nn.Module, name: str) -> list[nn.Module]:
    """A linear layer for each slice of a fused parameter, on its memory."""
    whole, bias = fused.get_parameter(name), fused._parameters.get(f"{name}_bias")
    layers: list[nn.Module] = []
    for expert in range(len(whole)):
        weight = _slice(fused, name, expert)
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=whole.requires_grad)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach()[expert], requires_grad=bias.requires_grad)
        layers.append(layer)
    return layers
