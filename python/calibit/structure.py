"""How a causal language model is built, found from its modules alone: no list of architectures.

A *linear layer* is any module that computes x W^T + b with a plain two-dimensional weight:
`nn.Linear`, its subclasses that keep that function (Falcon's adds the bias apart), and GPT-2's
`Conv1D`, which stores W transposed. The *head* is the layer the model itself names as its output
embedding. *Blocks* are the list of modules that holds the most parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from calibit.modules import QuantizedLinear

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LinearLayer:
    """One linear layer of a model, with every name it is reachable under.

    Attributes:
        names: dotted module names, the first one first registered; more than one when the module is
        shared.
        shape: `(N, K)`, output and input features.
        transposed: the module stores its weight as `[K, N]` (Conv1D).
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    transposed: bool

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    def weight(self, model: nn.Module) -> torch.Tensor:
        """The weight as `[N, K]`, contiguous, detached; a copy only where the module stores it
        transposed."""
        stored = model.get_submodule(self.name).get_parameter("weight").detach()
        return stored.t().contiguous() if self.transposed else stored.contiguous()

    def bias(self, model: nn.Module) -> torch.Tensor | None:
        """The bias `[N]`, or None."""
        return model.get_submodule(self.name)._parameters.get("bias")


@dataclass(frozen=True)
class FusedParameter:
    """A parameter that holds many matrices (the experts of a mixture) and is no linear layer.

    Attributes:
        name: dotted parameter name.
        shape: its shape, three or more dimensions.
        nbytes: its size in bytes.
    """

    name: str
    shape: tuple[int, ...]
    nbytes: int


def linear_layers(model: nn.Module) -> dict[str, LinearLayer]:
    """Every linear layer of a model by its first name, in the order of registration; a shared
    module comes once."""
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module
    layers = {}
    for key, module in modules.items():
        transposed = _stores_transposed(module)
        if transposed is not None:
            rows, columns = module.get_parameter("weight").shape
            shape = (columns, rows) if transposed else (rows, columns)
            layers[names[key][0]] = LinearLayer(tuple(names[key]), shape, transposed)
    return layers


def head_name(model: nn.Module) -> str | None:
    """Name of the module that the model calls its output embedding (`lm_head`), or None."""
    getter = getattr(model, "get_output_embeddings", None)
    try:
        head = getter() if getter is not None else None
    except NotImplementedError:  # a base model without a head says so this way
        head = None
    if not isinstance(head, nn.Module):
        return None
    return next((name for name, module in model.named_modules() if module is head), None)


def tied_to_embedding(model: nn.Module) -> frozenset[str]:
    """Names of linear layers whose weight is the very tensor of an embedding."""
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    return frozenset(
        name
        for name in linear_layers(model)
        if id(getattr(model.get_submodule(name), "weight", None)) in tables
    )


def fused_parameters(model: nn.Module) -> tuple[FusedParameter, ...]:
    """Floating parameters of three or more dimensions that belong to no convolution: fused
    experts."""
    found = []
    for prefix, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            continue
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.dim() >= 3 and parameter.is_floating_point() and min(parameter.shape) > 1:
                found.append(FusedParameter(name, tuple(parameter.shape), parameter.nbytes))
    return tuple(found)


def blocks(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The decoder blocks: the `nn.ModuleList` that holds the most parameters, with its name."""
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            size = sum(parameter.numel() for parameter in module.parameters())
            if size > 0 and (best is None or size > best[0]):
                best = (size, name, module)
    return None if best is None else (best[1], best[2])


def replace_(model: nn.Module, names: tuple[str, ...], replacement: nn.Module) -> None:
    """Put `replacement` in the place of the modules called `names`."""
    for name in names:
        model.set_submodule(name, replacement)


def cast_(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters and saved buffers; buffers that are computed (rotary frequencies) keep their
    precision.

    Quantized layers compute in the new dtype; their codes and scales stay as they are.
    """
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.to(dtype)
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                setattr(module, name, buffer.to(dtype))
    if hasattr(model, "config"):
        model.config.dtype = dtype


def tensors(
    model: nn.Module, encode: Callable[[str, QuantizedLinear], Tensors] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The entries of `model.state_dict()`, module by module, a tied tensor once under its first
    name.

    A quantized layer makes its canonical tensors when its turn comes, so that only one module's
    copies exist at a time.

    Args:
        model: the model.
        encode: from the name of a quantized layer and the layer to the tensors that stand for its
            weight, by the rest of their names; None makes the canonical ones.
    """
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        own: dict[str, torch.Tensor] = {}
        if encode is not None and isinstance(module, QuantizedLinear):
            own = {f"{prefix}.{key}": value for key, value in encode(prefix, module).items()}
            if module.bias is not None:
                own[f"{prefix}.bias"] = module.bias
        else:
            module._save_to_state_dict(own, f"{prefix}." if prefix else "", keep_vars=True)
        for name, value in own.items():
            # A parameter is one object however many modules hold it.
            if isinstance(value, nn.Parameter):
                if id(value) in seen:
                    continue
                seen.add(id(value))
            if isinstance(value, torch.Tensor):
                yield name, value.detach()


def aliases(model: nn.Module) -> dict[str, str]:
    """Names of tied parameters that `tensors` leaves out: `{name: first name}`."""
    first: dict[int, str] = {}
    found = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            full = f"{prefix}.{name}" if prefix else name
            if first.setdefault(id(parameter), full) != full:
                found[full] = first[id(parameter)]
    return found


def _stores_transposed(module: nn.Module) -> bool | None:
    """False for `[N, K]`, True for `[K, N]`, None when the module is no linear layer."""
    weight = module._parameters.get("weight")
    if type(weight) is not nn.Parameter or weight.dim() != 2 or not weight.is_floating_point():
        return None  # a subclass of Parameter is another tool's packed weight
    if isinstance(module, nn.Linear):
        return False if _is_plain(module) else None
    is_conv1d = type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    return True if is_conv1d else None


def _is_plain(module: nn.Linear) -> bool:
    """Does the module compute x W^T + b? A subclass with its own forward is asked on one random
    input."""
    if set(module._parameters) != {"weight", "bias"} or len(module._modules) > 0:
        return False
    if type(module).forward is nn.Linear.forward:
        return True
    if module.weight.is_meta:
        return True
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, module.weight.shape[1], generator=generator).to(module.weight)
    with torch.no_grad():
        expected = nn.functional.linear(x, module.weight, module.bias)
        try:
            answer = module(x)
        except (TypeError, ValueError, RuntimeError):  # needs other arguments: not this function
            return False
    # Sums of K terms in another order differ by about eps * sqrt(K); another function by far more.
    tolerance = 4 * float(torch.finfo(x.dtype).eps) * module.weight.shape[1] ** 0.5
    scale = float(expected.abs().max()) + 1e-12
    return (
        isinstance(answer, torch.Tensor)
        and answer.shape == expected.shape
        and float((answer - expected).abs().max()) <= tolerance * scale
    )
