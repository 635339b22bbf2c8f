"""The GPTQ driver: calibrates and solves a model block by block, in place.

True sequential order (the GPTQ paper's released code, option `--true-sequential`): inside a block,
layers are solved in the order in which they run, and those that come later are calibrated on the
outputs of those already quantized. Layers that read the same tensor are solved together, and so are
the experts of a mixture, each on the tokens that were routed to it. The next block is fed by the
quantized block. Deterministic for a given model, calibration, device and number
of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from calibit import solver, structure
from calibit.quantization.calibration_text import Calibration
from calibit.quantization.finished import FinishedBlocks
from calibit.quantization.guard import Guard, HeldOut
from calibit.quantization.hessian import Hessian, HessianCapture
from calibit.quantization.layerwise import Curvature, Job, Reached, quantize_layer_
from calibit.quantization.memory import Memory
from calibit.quantization.order import batches, order_of
from calibit.quantization.replay import Call, NotReplayable, Replay, record
from calibit.quantization.report import ModuleReport
from calibit.quantization.residency import Weights
from calibit.quantization.standing import StandIns, noted_input
from calibit.quantization.unquantized import Block, Pull, Unquantized

_SHORT = 32
"""Mean length of sequences in tokens under which a note is made."""

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
    unquantized = Unquantized(hidden, MEMORY_BYTES) if pulled else None
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
                    with torch.no_grad(), StandIns(model, Memory(0)) as standing:
                        standing.replace(layers)
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
    order = order_of(model, jobs, name, partial(calls[0].run, block, hidden[0]))
    # A layer that the first sample does not reach may come before others in another sample.
    memory = Memory(0 if order.unreached else MEMORY_BYTES)
    inputs = zip(calls, hidden, strict=True)
    passes = [partial(_pass, memory, sample, *each, block) for sample, each in enumerate(inputs)]
    with StandIns(model, memory) as standing:
        standing.take_over(order, [])
        tokens = sum(each.numel() // each.shape[-1] for each in hidden)
        for names in order.subsets:
            part = {name: jobs[name] for name in names}
            once = order.once(names)
            pulled = None if beside is None or not once else partial(beside.pull, memory=memory)
            with noted_input(model, order, names if once else [], memory):
                moments = _moments(model, part, passes, once=once, pull=pulled)
            yield from _solve_(model, part, moments, tokens)
            standing.replace([jobs[name][0] for name in names])
            standing.take_over(order, names)
        with torch.no_grad():
            return [run() for run in passes]


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
    for names in batches(jobs):
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
