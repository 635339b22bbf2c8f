"""In which order one pass of a block runs its layers, and inside which of its modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from calibit.quantization.hessian import same_memory, watch_input
from calibit.quantization.layerwise import Job

_HESSIAN_BYTES = 2 * 1024**3
"""Memory for Hessians collected at the same time in whole-model passes."""


@dataclass(frozen=True)
class Tail:
    """The layer whose output a module returns as its own.

    Attributes:
        layer: its name.
        length: entries of the module's output, all but the first None; 0 where it is a tensor.
    """

    layer: str
    length: int


@dataclass(frozen=True)
class Ran:
    """A module of a block that was called once.

    Attributes:
        inside: layers that run inside it.
        before: layers that run before it ends: once they are final, so is its output.
        tail: the layer that ends it, where its output is the module's.
        within: modules of which this is a part.
    """

    inside: frozenset[str]
    before: frozenset[str]
    tail: Tail | None
    within: tuple[str, ...]


@dataclass(frozen=True)
class Order:
    """How the layers of a block run.

    Attributes:
        subsets: layers grouped by the tensor they read, or the list of experts they belong to, in
            the order they run; experts in as many parts as memory asks for.
        unreached: layers that did not run, nor another expert of their list; each is a subset of
            its own, at the end.
        apart: layers that ran more than once, and experts, each of which reads its own rows.
        modules: the other modules of the block, as they ran.
    """

    subsets: list[list[str]]
    unreached: list[str]
    apart: frozenset[str]
    modules: dict[str, Ran]

    def completed_by(self, names: list[str]) -> list[str]:
        """The modules whose output is final as soon as these layers are; without layers, those that
        run before any.

        After the last layer nothing runs twice any more, and of the modules that end then only
        those are named that a layer ends.
        """
        order = [name for subset in self.subsets for name in subset]
        done = set(order[: order.index(names[-1]) + 1]) if names else set()
        last = len(done) == len(order)
        return [
            module
            for module, ran in self.modules.items()
            if ran.before <= done
            and (not ran.before if not names else not ran.before.isdisjoint(names))
            and (ran.tail is not None or not last)
        ]

    def parts(self, module: str) -> frozenset[str]:
        """The layers and modules that only this module runs."""
        inner = (name for name, ran in self.modules.items() if module in ran.within)
        return self.modules[module].inside.union(inner)

    def ended_by(self, names: list[str]) -> dict[str, str]:
        """Those of the layers whose output a module returns as its own, and the module."""
        tails = {ran.tail.layer: module for module, ran in self.modules.items() if ran.tail}
        return {name: tails[name] for name in names if name in tails}

    def once(self, names: list[str]) -> bool:
        """Did these layers run exactly once, and read one tensor?"""
        return self.apart.isdisjoint(names) and set(self.unreached).isdisjoint(names)


def order_of(
    model: nn.Module, jobs: dict[str, Job], block: str, forward: Callable[[], object]
) -> Order:
    """The order in which one pass of a block runs the layers."""
    groups: dict[object, list[str]] = {}
    alive: list[torch.Tensor] = []
    runs = dict.fromkeys(jobs, 0)

    modules = _Modules(model.get_submodule(block), block, jobs)

    def note(name: str, x: torch.Tensor) -> None:
        runs[name] += 1
        modules.enter_layer(name)
        if runs[name] == 1:
            alive.append(x)  # so that no later input can take over its memory
            groups.setdefault(jobs[name][0].experts or same_memory(x), []).append(name)

    handles = [watch_input(model.get_submodule(name), partial(note, name)) for name in jobs]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in [*handles, *modules.handles]:
            handle.remove()
    unreached = []
    for name, (layer, _) in jobs.items():
        if layer.experts in groups and runs[name] == 0:
            groups[layer.experts].append(name)
        elif runs[name] == 0:
            unreached.append(name)
    experts = {name for name, (layer, _) in jobs.items() if layer.experts is not None}
    subsets: list[list[str]] = []
    for names in groups.values():
        ordered = {name: jobs[name] for name in jobs if name in set(names)}
        subsets += batches(ordered) if experts.issuperset(names) else [names]
    repeated = {name for name, count in runs.items() if count > 1}
    subsets += [[name] for name in unreached]
    apart = frozenset(repeated | experts)
    return Order(subsets, unreached, apart, modules.called_once(apart))


class _Modules:
    """How the modules of a block run in one pass.

    Args:
        block: the block.
        name: its dotted name.
        jobs: names of the layers.
    """

    def __init__(self, block: nn.Module, name: str, jobs: Collection[str]) -> None:
        self._calls: dict[str, list[_Call]] = {}
        self._running: list[_Call] = []
        self._layers: list[str] = []
        self._given: tuple[str, torch.Tensor] | None = None  # by the layer that ended last
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        for short, module in block.named_modules():
            full = f"{name}.{short}"
            if full in jobs:
                self.handles.append(module.register_forward_hook(partial(self._gave, full)))
            elif short and not any(full.startswith(f"{job}.") for job in jobs):
                self.handles += [
                    module.register_forward_pre_hook(partial(self._enter, full), with_kwargs=True),
                    module.register_forward_hook(partial(self._leave, full), with_kwargs=True),
                ]

    def enter_layer(self, layer: str) -> None:
        """A layer runs."""
        self._layers.append(layer)
        for call in self._running:
            call.inside.add(layer)

    def called_once(self, apart: frozenset[str]) -> dict[str, Ran]:
        """The modules that were called once, in the order in which they ended.

        Which experts run, and so what runs before a module among them, differs between samples: all
        experts count as inside the module that holds one of them, and a module without layers that
        runs after one is left out.
        """
        found: dict[str, Ran] = {}
        for call in sorted(
            (calls[0] for calls in self._calls.values() if len(calls) == 1),
            key=lambda call: call.ended,
        ):
            before, inside = frozenset(self._layers[: call.layers]), frozenset(call.inside)
            inside |= {name for name in apart if inside and name.startswith(f"{call.name}.")}
            if not call.pure or (not inside and not apart.isdisjoint(before)):
                continue
            within = tuple(each.name for each in call.within)
            found[call.name] = Ran(inside, before | inside, call.tail, within)
        return found

    def _gave(self, layer: str, _module: nn.Module, _args: Any, output: Any) -> None:
        self._given = (layer, output) if isinstance(output, torch.Tensor) else None

    def _enter(
        self, name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        call = _Call(name, tuple(self._running), _tensors((args, kwargs)))
        self._running.append(call)
        self._calls.setdefault(name, []).append(call)

    def _leave(self, name: str, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self._running.pop()
        call.ended = sum(each.ended >= 0 for calls in self._calls.values() for each in calls)
        call.layers = len(self._layers)
        given, first = _tensors(output), output[0] if isinstance(output, tuple) else output
        memory = {x.untyped_storage().data_ptr() for x, _ in call.read}
        call.pure = all(x._version == version for x, version in call.read) and all(
            x.untyped_storage().data_ptr() not in memory for x, _ in given
        )
        call.read = ()
        if self._given is not None and first is self._given[1] and len(given) == 1:
            length = len(output) if isinstance(output, tuple) else 0
            call.tail = Tail(self._given[0], length)


@dataclass(eq=False)
class _Call:
    """One call of a module.

    Attributes:
        name: the module's.
        within: the calls that it is part of.
        read: tensors among its arguments, and how often each had been changed in place.
        inside: layers that ran inside.
        ended, layers: how many modules had ended before it, and layers had run; -1 while it runs.
        pure: whether it changes nothing in place and returns memory of its own.
        tail: the layer whose output it returned.
    """

    name: str
    within: tuple[_Call, ...]
    read: tuple[tuple[torch.Tensor, int], ...]
    inside: set[str] = field(default_factory=set)
    ended: int = -1
    layers: int = -1
    pure: bool = False
    tail: Tail | None = None


def _tensors(value: Any) -> tuple[tuple[torch.Tensor, int], ...]:
    """The tensors in nested sequences and mappings, each with how often it was changed in place."""
    if isinstance(value, torch.Tensor):
        return ((value, value._version),)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, list | tuple):
        return tuple(each for entry in value for each in _tensors(entry))
    return ()


def batches(jobs: dict[str, Job]) -> Iterator[list[str]]:
    """Names whose float64 Hessians fit into memory together; a layer alone always does."""
    batch: list[str] = []
    total = 0
    for name, (layer, _) in jobs.items():
        size = 8 * layer.shape[1] ** 2
        if batch and total + size > _HESSIAN_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(name)
        total += size
    if batch:
        yield batch
