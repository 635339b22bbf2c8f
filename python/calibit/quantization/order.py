"""In which order one pass of a block runs its layers, and inside which of its modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from calibit.quantization.hessian import same_memory, watch_input
from calibit.quantization.layerwise import Job

_HESSIAN_BYTES = 2 * 1024**3
"""Memory for Hessians collected at the same time in whole-model passes."""


@dataclass(frozen=True)
class Order:
    """How the layers of a block run.

    Attributes:
        subsets: layers grouped by the tensor they read, or the list of experts they belong to, in
            the order they run; experts in as many parts as memory asks for.
        unreached: layers that did not run, nor another expert of their list; each is a subset of
            its own, at the end.
        apart: layers that ran more than once, and experts, each of which reads its own rows.
        modules: the layers that ran inside each module of the block that was called once.
    """

    subsets: list[list[str]]
    unreached: list[str]
    apart: frozenset[str]
    modules: dict[str, frozenset[str]]

    def completed_by(self, names: list[str]) -> list[str]:
        """The modules whose last layers are these."""
        order = [name for subset in self.subsets for name in subset]
        done = set(order[: order.index(names[-1]) + 1])
        if len(done) == len(order):
            return []  # nothing runs twice any more
        return [
            module
            for module, inside in self.modules.items()
            if inside <= done and not inside.isdisjoint(names)
        ]

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

    modules = _Inside(model.get_submodule(block), block, jobs)

    def note(name: str, x: torch.Tensor) -> None:
        runs[name] += 1
        modules.note(name)
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
    return Order(subsets, unreached, frozenset(repeated | experts), modules.called_once())


class _Inside:
    """Which layers run inside which modules of a block.

    Args:
        block: the block.
        name: its dotted name.
        jobs: names of the layers.
    """

    def __init__(self, block: nn.Module, name: str, jobs: Collection[str]) -> None:
        self._running: list[str] = []
        self._found: dict[str, list[set[str]]] = {}
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        for short, module in block.named_modules():
            full = f"{name}.{short}"
            if short and full not in jobs and any(job.startswith(f"{full}.") for job in jobs):
                self.handles += [
                    module.register_forward_pre_hook(partial(self._enter, full)),
                    module.register_forward_hook(partial(self._leave, full)),
                ]

    def note(self, layer: str) -> None:
        """A layer runs."""
        for module in self._running:
            self._found[module][-1].add(layer)

    def called_once(self) -> dict[str, frozenset[str]]:
        """The layers inside each module that was called once."""
        return {name: frozenset(seen[0]) for name, seen in self._found.items() if len(seen) == 1}

    def _enter(self, name: str, *_: object) -> None:
        self._running.append(name)
        self._found.setdefault(name, []).append(set())

    def _leave(self, name: str, *_: object) -> None:
        self._running.remove(name)


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
