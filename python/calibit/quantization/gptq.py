"""The GPTQ driver: calibrates and solves a model block by block, in place.

True sequential order (the GPTQ paper's released code, option `--true-sequential`): inside a block,
layers are solved in the order in which they run, and those that come later are calibrated on the
outputs of those already quantized. Layers that read the same tensor are solved together, and so are
the experts of a mixture, each on the tokens that were routed to it. The next block is fed by the
quantized block. Deterministic for a given model, calibration, device and number
of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from calibit import solver, structure
from calibit.quantization.calibration_text import Calibration
from calibit.quantization.finished import FinishedBlocks
from calibit.quantization.guard import Guard, HeldOut
from calibit.quantization.hessian import Hessian, HessianCapture, same_memory, watch_input
from calibit.quantization.layerwise import Curvature, Reached, quantize_layer_
from calibit.quantization.memory import Memory, Remembering, StandIn
from calibit.quantization.replay import Call, NotReplayable, Replay, record
from calibit.quantization.report import ModuleReport
from calibit.quantization.residency import Weights
from calibit.quantization.unquantized import Block, Pull, Unquantized
from calibit.schemes import Scheme

Job = tuple[structure.LinearLayer, Scheme]
"""A layer and what to do to it."""

_SHORT = 32
"""Mean length of sequences in tokens under which a note is made."""

_HESSIAN_BYTES = 2 * 1024**3
"""Memory for Hessians collected at the same time in whole-model passes."""

STARVED = 0.005
"""Share of the calibration tokens below which an expert is rounded to nearest (GPTQModel 7's rule);
every other layer sees all tokens."""

MEMORY_BYTES = 2 * 1024**3
"""Memory for the outputs of finished layers of a block; what does not fit is computed again."""


@dataclass(frozen=True)
class Solved:
    """What is said of a solved model.

    Attributes:
        notes: sentences for the report.
        held_out: the comparison with nearest rounding; None without held-out text, or where the
            blocks cannot be run one at a time.
    """

    notes: tuple[str, ...] = ()
    held_out: HeldOut | None = None


def solve_model_(
    weights: Weights,
    jobs: Sequence[Job],
    calibration: Calibration,
    done: Callable[[ModuleReport], None],
    finished: FinishedBlocks,
) -> Solved:
    """Quantize layers with GPTQ, in place.

    Layers inside the decoder blocks are solved block by block; the others afterwards, calibrated on
    passes of the whole model. When the blocks cannot be run one at a time, all layers are
    calibrated on such passes.

    Args:
        weights: the model, in evaluation mode, its other layers already quantized.
        jobs: the layers and their schemes.
        calibration: the token sequences.
        done: called with the row of each layer as soon as the layer is replaced.
        finished: blocks that an earlier run has solved; takes those of this one.

    Returns:
        Notes for the report, and how the model does on held-out text.

    Raises:
        ValueError: activations are NaN or Inf, or a token id is outside the vocabulary.
    """
    model = weights.model
    device = next(p.device for p in model.parameters() if not p.is_meta)
    samples = [sequence[None].to(device) for sequence in calibration.sequences]
    held_out = [sequence[None].to(device) for sequence in calibration.held_out]
    _check_ids(model, [*samples, *held_out])
    pending = {layer.name: (layer, scheme) for layer, scheme in jobs}
    notes = _few_tokens(jobs, calibration)
    found: HeldOut | None = None
    try:
        replay = record(model, [*samples, *held_out], partial(_forward, model))
    except NotReplayable as reason:
        notes += (f"calibrated on passes of the whole model, not block by block: {reason}",)
    else:
        inside = {name: job for name, job in pending.items() if name.startswith(f"{replay.name}.")}
        guard = Guard(replay, [*samples, *held_out], len(samples)) if held_out else None
        for row in _solve_blocks_(weights, inside, replay, len(samples), finished, guard):
            done(row)
        found = guard.result(partial(_forward, model)) if guard is not None else None
        pending = {name: job for name, job in pending.items() if name not in inside}
    if pending:
        weights.load_all_()
    for row in _solve_whole_(model, pending, samples):
        done(row)
    return Solved(notes, found)


def _solve_blocks_(
    weights: Weights,
    jobs: dict[str, Job],
    replay: Replay,
    samples: int,
    finished: FinishedBlocks,
    guard: Guard | None,
) -> Iterator[ModuleReport]:
    """Solve the layers of one block after the other."""
    model = weights.model
    hidden: Sequence[torch.Tensor] = replay.hidden[:samples]
    pulled = any(scheme.solver == "gptaq" for _, scheme in jobs.values())
    unquantized = Unquantized(hidden) if pulled else None
    for index, block in enumerate(replay.blocks):
        name = f"{replay.name}.{index}"
        inside = {key: job for key, job in jobs.items() if key.startswith(f"{name}.")}
        calls = replay.calls[index][:samples]
        with weights.loaded(name):
            if guard is not None:
                guard.before_(model, index, list(inside.values()))
            layers = [layer for layer, _ in inside.values()]
            with ExitStack() as stack:
                beside = None
                if unquantized is not None:
                    both = unquantized.beside(model, block, calls, hidden, layers)
                    beside = stack.enter_context(both)
                rows = finished.restore_(model, name, layers)
                if rows is None:
                    rows = []
                    solving = _solve_block_(model, inside, name, calls, hidden, beside)
                    hidden = yield from _noting(solving, rows)
                    finished.add(model, name, rows)
                else:
                    yield from rows
                    with torch.no_grad():
                        hidden = [c.run(block, each) for c, each in zip(calls, hidden, strict=True)]
            if guard is not None:
                guard.after(index)


def _noting(
    solving: Generator[ModuleReport, None, Sequence[torch.Tensor]], rows: list[ModuleReport]
) -> Generator[ModuleReport, None, Sequence[torch.Tensor]]:
    """The same, each row also appended to a list."""
    while True:
        try:
            row = next(solving)
        except StopIteration as end:
            hidden: Sequence[torch.Tensor] = end.value
            return hidden
        rows.append(row)
        yield row


def _solve_block_(
    model: nn.Module,
    jobs: dict[str, Job],
    name: str,
    calls: Sequence[Call],
    hidden: Sequence[torch.Tensor],
    beside: Block | None,
) -> Generator[ModuleReport, None, Sequence[torch.Tensor]]:
    """Solve the layers of one block, in the order they run; returns the block's outputs."""
    block = model.get_submodule(name)
    order = _order(model, jobs, name, partial(calls[0].run, block, hidden[0]))
    # A layer that the first sample does not reach may come before others in another sample.
    memory = Memory(0 if order.unreached else MEMORY_BYTES)
    inputs = zip(calls, hidden, strict=True)
    passes = [partial(_pass, memory, sample, *each, block) for sample, each in enumerate(inputs)]
    finished: list[tuple[str, ...]] = []  # names of what has a stand-in
    try:
        tokens = sum(each.numel() // each.shape[-1] for each in hidden)
        for names in order.subsets:
            part = {name: jobs[name] for name in names}
            once = order.once(names)
            pulled = None if beside is None or not once else partial(beside.pull, memory=memory)
            moments = _moments(model, part, passes, once=once, pull=pulled)
            yield from _solve_(model, part, moments, tokens)
            for each in names:
                same = jobs[each][0].names
                stand_in = Remembering(each, model.get_submodule(each), memory)
                structure.replace_(model, same, stand_in)
                finished.append(same)
            for each in order.completed_by(names):
                stand_in = Remembering(each, model.get_submodule(each), memory, order.modules[each])
                structure.replace_(model, (each,), stand_in)
                finished.append((each,))
        with torch.no_grad():
            return [run() for run in passes]
    finally:
        for same in reversed(finished):
            module = model.get_submodule(same[0])
            if isinstance(module, StandIn):
                structure.replace_(model, same, module.stands_for)


@dataclass(frozen=True)
class _Moments:
    """What passes over the calibration tokens tell of layers.

    Attributes:
        hessians: one object where layers share their inputs; None for a layer that none reached.
        pull: what the unquantized model does to layers of `gptaq`, where it can be said.
    """

    hessians: dict[str, Hessian | None]
    pull: Pull | None = None


def _moments(
    model: nn.Module,
    jobs: dict[str, Job],
    passes: Sequence[Callable[[], object]],
    *,
    once: bool,
    pull: Callable[..., Pull] | None,
) -> _Moments:
    """Hessians of layers that read one tensor, and the pull on them.

    Where each runs once in a pass, the first of them speaks for all and the rest of the pass is
    left out.
    """
    names, pulled = list(jobs), None
    watched = names[:1] if once else names
    with HessianCapture(
        {name: model.get_submodule(name) for name in watched}, stop=once
    ) as capture:
        if pull is not None:
            pulled = pull(names, [partial(capture.run, run) for run in passes])
        else:
            for run in passes:
                capture.run(run)
    found = capture.hessians()
    return _Moments({name: found[names[0] if once else name] for name in names}, pulled)


def _pass(
    memory: Memory, sample: int, call: Call, hidden: torch.Tensor, block: nn.Module
) -> torch.Tensor:
    """One pass of a block over one sample."""
    memory.begin(sample)
    return call.run(block, hidden)


def _solve_whole_(
    model: nn.Module, jobs: dict[str, Job], samples: Sequence[torch.Tensor]
) -> Iterator[ModuleReport]:
    """Solve layers on passes of the whole model, as many at a time as memory holds Hessians."""
    for names in _batches(jobs):
        with HessianCapture({name: model.get_submodule(name) for name in names}) as capture:
            for ids in samples:
                capture.run(partial(_forward, model, ids))
        tokens = sum(ids.numel() for ids in samples)
        part = {name: jobs[name] for name in names}
        yield from _solve_(model, part, _Moments(capture.hessians()), tokens)


def _solve_(
    model: nn.Module, jobs: dict[str, Job], moments: _Moments, tokens: int
) -> Iterator[ModuleReport]:
    """Solve layers whose Hessians are known; each distinct Hessian is factorized once.

    An expert that too few of the calibration tokens reached is rounded to nearest.
    """
    factors: dict[tuple[int, bool, bool], solver.Factored] = {}
    for name, (layer, scheme) in jobs.items():
        hessian, curvature = moments.hessians[name], None
        reached = _reached(layer, hessian, tokens)
        pull = moments.pull if scheme.solver == "gptaq" else None
        if hessian is not None and not reached.reason:
            ordered = "actorder" in scheme.options
            key = (id(hessian), ordered, pull is not None)
            if key not in factors:
                if layer.experts is not None:
                    factors.clear()  # an expert shares its factor with no other layer
                cross = None if pull is None else pull.cross
                factors[key] = solver.factor(hessian.total, activation_order=ordered, cross=cross)
            residual = None if pull is None else pull.residuals.get(name)
            curvature = Curvature(hessian, factors[key], residual)
        yield quantize_layer_(model, layer, scheme, curvature, reached)


def _reached(layer: structure.LinearLayer, hessian: Hessian | None, tokens: int) -> Reached:
    """How many of the calibration tokens reached a layer, and whether they are enough."""
    if hessian is None:
        return Reached(0, "no calibration token reached it")
    if layer.experts is not None and hessian.rows < STARVED * tokens:
        reason = (
            f"{hessian.rows} of {tokens} calibration tokens reached it, fewer than {STARVED:.1%}"
        )
        return Reached(hessian.rows, reason)
    if not bool(hessian.total.diagonal().any()):
        return Reached(hessian.rows, "all its inputs were zero in the calibration tokens")
    return Reached(hessian.rows)


@dataclass(frozen=True)
class _Order:
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


def _order(
    model: nn.Module, jobs: dict[str, Job], block: str, forward: Callable[[], object]
) -> _Order:
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
        subsets += _batches(ordered) if experts.issuperset(names) else [names]
    repeated = {name for name, count in runs.items() if count > 1}
    subsets += [[name] for name in unreached]
    return _Order(subsets, unreached, frozenset(repeated | experts), modules.called_once())


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


def _batches(jobs: dict[str, Job]) -> Iterator[list[str]]:
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


def _forward(model: nn.Module, ids: torch.Tensor) -> object:
    """One pass of the model over one sequence, without a cache."""
    if hasattr(model, "config"):
        return model(input_ids=ids, use_cache=False)
    return model(ids)


def _few_tokens(jobs: Sequence[Job], calibration: Calibration) -> tuple[str, ...]:
    """Notes where a Hessian cannot have full rank, or sequences are far from a context's length."""
    notes = []
    widest = max(layer.shape[1] for layer, _ in jobs)
    if calibration.tokens < widest:
        notes.append(
            f"{calibration.tokens} calibration tokens for layers of up to {widest} inputs: the "
            "result rests on the damping; give more text"
        )
    length = calibration.tokens / len(calibration.sequences)
    if length < _SHORT:
        notes.append(
            f"calibration sequences of {length:.0f} tokens on average: short ones calibrate worse; "
            "join texts to sequences of 512 and more"
        )
    return tuple(notes)


def _check_ids(model: nn.Module, samples: Sequence[torch.Tensor]) -> None:
    """Refuse token ids that the model's embedding does not have."""
    getter = getattr(model, "get_input_embeddings", None)
    table = getter() if getter is not None else None
    if not isinstance(table, nn.Embedding):
        return
    largest = max(int(ids.max()) for ids in samples)
    if largest >= table.num_embeddings:
        raise ValueError(
            f"[calibration] expected token ids below {table.num_embeddings}, got {largest}: is "
            "this the model's tokenizer?"
        )
