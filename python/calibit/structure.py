"""How a causal language model is built, found from its modules alone: no list of architectures.

A *linear layer* is any module that computes x W^T + b with a plain two-dimensional weight:
`nn.Linear`, its subclasses that keep that function (Falcon's adds the bias apart), and GPT-2's
`Conv1D`, which stores W transposed. The *head* is the layer the model itself names as its output
embedding. *Blocks* are the list of modules that holds the most parameters. *Experts* of a mixture
that are slices of fused parameters become linear layers when their module is opened
(`calibit.experts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from calibit import experts
from calibit.experts import OpenExperts
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
        experts: name of the list of experts that it is one of: they read different rows of one
            input, each its own. None where every token passes.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    transposed: bool
    experts: str | None = None

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    def weight(self, model: nn.Module) -> torch.Tensor:
        """The weight as `[N, K]`, contiguous, detached; a copy only where the module stores it
        transposed."""
        stored = model.get_submodule(self.name).get_parameter("weight").detach()
        return stored.t().contiguous() if self.transposed else stored.contiguous()

    def nbytes(self, model: nn.Module) -> int:
        """Bytes of the float weight, also where it is still a slice of a fused parameter."""
        module = _submodule(model, self.name)
        if module is None and self.experts is not None:
            return model.get_parameter(self.experts)[0].nbytes
        return model.get_submodule(self.name).get_parameter("weight").nbytes

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
        module: name of its module.
        layers: the linear layers that it becomes when its module is opened; none where it cannot.
        refusal: why it cannot; None where it can.
    """

    name: str
    shape: tuple[int, ...]
    nbytes: int
    module: str
    layers: tuple[LinearLayer, ...]
    refusal: str | None


def linear_layers(model: nn.Module) -> dict[str, LinearLayer]:
    """Every linear layer of a model by its first name, in the order of registration; a shared
    module comes once."""
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    lists: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module
        if isinstance(module, OpenExperts):
            for part, layers_of in module.lists().items():
                lists |= dict.fromkeys(map(id, layers_of), f"{name}.{part}")
    layers = {}
    for key, module in modules.items():
        transposed = _stores_transposed(module)
        if transposed is not None:
            rows, columns = module.get_parameter("weight").shape
            shape = (columns, rows) if transposed else (rows, columns)
            found = LinearLayer(tuple(names[key]), shape, transposed, lists.get(key))
            layers[names[key][0]] = found
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
        own = [] if isinstance(module, nn.modules.conv._ConvNd) else _of_many_matrices(module)
        if not own:
            continue
        refusal = experts.refusal(module) if prefix else "fused, and no part of a model"
        for name in own:
            parameter = module.get_parameter(name)
            full = f"{prefix}.{name}" if prefix else name
            layers = () if refusal else tuple(_slices(full, module, name))
            found.append(
                FusedParameter(
                    full, tuple(parameter.shape), parameter.nbytes, prefix, layers, refusal
                )
            )
    return tuple(found)


def layers_to_be(model: nn.Module, fused: Iterable[FusedParameter]) -> dict[str, LinearLayer]:
    """`linear_layers` of the model as it will be when the modules of these parameters are open."""
    place = {name: index for index, (name, _) in enumerate(model.named_modules())}
    found = [(place[name], layer) for name, layer in linear_layers(model).items()]
    found += [(place[each.module], layer) for each in fused for layer in each.layers]
    return {layer.name: layer for _, layer in sorted(found, key=lambda entry: entry[0])}


def open_experts_(model: nn.Module, names: Iterable[str]) -> dict[tuple[str, ...], nn.Module]:
    """Open the experts modules of these names: their slices become linear layers, on the memory of
    the fused parameters.

    Returns:
        What was replaced, by its names, for `replace_`; it keeps the fused parameters in memory.
    """
    wanted = set(names)
    replaced = {}
    for name in wanted:
        fused = model.get_submodule(name)
        known = model.named_modules(remove_duplicate=False)
        replaced[tuple(other for other, module in known if module is fused)] = fused
    for all_names, fused in replaced.items():
        replace_(model, all_names, OpenExperts(fused))
    return replaced


@contextmanager
def opened_experts(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """The experts modules of these names, where the model has them, are open inside the block."""
    known = {each.module for each in fused_parameters(model) if each.layers}
    replaced = open_experts_(model, known.intersection(names))
    try:
        yield
    finally:
        for all_names, fused in replaced.items():
            replace_(model, all_names, fused)


def experts_of(model: nn.Module, layers: Iterable[str]) -> set[str]:
    """The closed experts modules whose slices are called so."""
    wanted = set(layers)
    return {
        each.module
        for each in fused_parameters(model)
        if any(layer.name in wanted for layer in each.layers)
    }


@dataclass(frozen=True)
class Slice:
    """Where the parameter of an opened expert lies in a fused one.

    Attributes:
        name: the fused parameter.
        expert: index of the slice.
        transposed: the slice is stored as `[K, N]`.
    """

    name: str
    expert: int
    transposed: bool


def slice_of(model: nn.Module, parameter: str) -> Slice | None:
    """The place of an opened expert's weight or bias in the fused parameters; None for others."""
    layer, _, kind = parameter.rpartition(".")
    if not is_expert(model, layer):
        return None
    path, _, expert = layer.rpartition(".")
    if kind == "bias":
        return Slice(f"{path}_bias", int(expert), transposed=False)
    module = model.get_submodule(path.rpartition(".")[0])
    return Slice(path, int(expert), bool(module.is_transposed))


def is_expert(model: nn.Module, name: str) -> bool:
    """Whether the module of this name is an expert's layer of an opened mixture."""
    module, _, part = name.rpartition(".")[0].rpartition(".")
    found = _submodule(model, module)
    return isinstance(found, OpenExperts) and part in found.lists()


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


def _of_many_matrices(module: nn.Module) -> list[str]:
    """Names of a module's own floating parameters of three or more dimensions."""
    return [
        name
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 3 and parameter.is_floating_point() and min(parameter.shape) > 1
    ]


def _slices(full: str, module: nn.Module, name: str) -> Iterator[LinearLayer]:
    """The layers that a fused parameter becomes."""
    count, rows, columns = module.get_parameter(name).shape
    shape = (columns, rows) if module.is_transposed else (rows, columns)
    for expert in range(count):
        yield LinearLayer((f"{full}.{expert}",), shape, False, full)


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


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
