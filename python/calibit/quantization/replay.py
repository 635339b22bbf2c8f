"""Running the decoder blocks of a model one at a time, exactly as the model runs them.

Block after block is what keeps GPTQ affordable: the inputs of one block are enough to calibrate it.
What a block needs beside its hidden states (masks, position embeddings, per-layer arguments)
differs between architectures, between layers and between samples, so nothing is assumed: each block
is replaced by a recorder for one cheap pass per sample, which notes the arguments and hands the
hidden states on. A true pass of the first sample checks that the notes are right: the same
arguments, blocks called once and in order, each fed with the output of the one before. Where that
does not hold the caller is told why, and calibrates on whole-model passes instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from calibit import structure
from calibit.quantization.hessian import StopForward
from calibit.quantization.memory import StandIn

_ROUNDINGS = 64  # by which two runs of the same computation may differ
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))


class NotReplayable(Exception):
    """The blocks of this model cannot be run one at a time; the message says why."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call of one block, without its hidden states.

    Attributes:
        args: positional arguments; the hidden states' place holds None.
        kwargs: keyword arguments; likewise.
        place: where the hidden states go: a position, or a keyword.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | str

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """The block's output hidden states for other input hidden states."""
        args, kwargs = list(self.args), dict(self.kwargs)
        if isinstance(self.place, int):
            args[self.place] = hidden
        else:
            kwargs[self.place] = hidden
        return hidden_of(block(*args, **kwargs))


@dataclass
class Replay:
    """Everything that is needed to run the blocks one after the other.

    Attributes:
        name: dotted name of the list of blocks.
        blocks: the blocks.
        hidden: the first block's input, one tensor per sample.
        calls: `calls[block][sample]`.
        lengths: number of entries of each block's output; 0 where it is the hidden states alone.
    """

    name: str
    blocks: nn.ModuleList
    hidden: list[torch.Tensor]
    calls: list[list[Call]]
    lengths: list[int]

    def finish(self, forward: Callable[[], Any], hidden: torch.Tensor) -> Any:
        """What the model makes of hidden states that its last block gives.

        Args:
            forward: runs the model on the sample that the hidden states belong to.
            hidden: the last block's output.
        """
        originals = list(self.blocks)
        try:
            for place, block in enumerate(originals):
                self.blocks[place] = _Handing(block, self.lengths[place], hidden)
            with torch.no_grad():
                return forward()
        finally:
            for place, block in enumerate(originals):
                self.blocks[place] = block


def record(
    model: nn.Module,
    samples: Sequence[torch.Tensor],
    forward: Callable[[torch.Tensor], object],
) -> Replay:
    """Note how the model calls its blocks on each sample.

    Args:
        model: the model, in evaluation mode.
        samples: token ids, one sequence each.
        forward: runs the model on one sample.

    Raises:
        NotReplayable: the model has no list of like blocks, or does not run them as a chain.
    """
    found = structure.blocks(model)
    if found is None:
        raise NotReplayable("the model has no list of blocks")
    name, blocks = found
    truth = _true_calls(blocks, partial(forward, samples[0]))
    lengths = [len(seen.output) if isinstance(seen.output, list | tuple) else 0 for seen in truth]
    replay = Replay(name, blocks, [], [[] for _ in blocks], lengths)
    pool: list[torch.Tensor] = []
    for index, sample in enumerate(samples):
        noted = _noted_calls(blocks, partial(forward, sample), lengths)
        if index == 0:
            _check(truth, noted, blocks[0])
        if len(noted) != len(blocks):
            raise NotReplayable("the blocks are not called once each in every pass")
        replay.hidden.append(noted[0][0])
        for calls, (_, call) in zip(replay.calls, noted, strict=True):
            calls.append(_interned(call, pool))
    return replay


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states in a block's output: itself, or the first entry of a sequence."""
    first = output[0] if isinstance(output, list | tuple) and output else output
    if not isinstance(first, torch.Tensor):
        raise NotReplayable(f"a block returns {type(first).__name__}, not hidden states")
    return first


@dataclass(frozen=True)
class _Seen:
    """One call of a block in a true pass."""

    block: nn.Module
    hidden: torch.Tensor
    call: Call
    output: Any


class _Recorder(StandIn):
    """Stands in for a block: notes its arguments and returns the hidden states unchanged."""

    def __init__(
        self, block: nn.Module, noted: list[tuple[torch.Tensor, Call]], length: int, last: bool
    ) -> None:
        super().__init__(block)
        self._noted = noted
        self._length = length  # of the block's output; 0 when it is the hidden states alone
        self._last = last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden, call = _split(args, kwargs)
        self._noted.append((hidden, call))
        if self._last:
            raise StopForward
        return (hidden, *[None] * (self._length - 1)) if self._length else hidden


class _Handing(StandIn):
    """Stands in for a block: returns given hidden states."""

    def __init__(self, block: nn.Module, length: int, hidden: torch.Tensor) -> None:
        super().__init__(block)
        self._length = length
        self._hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self._hidden, *[None] * (self._length - 1)) if self._length else self._hidden


def _true_calls(blocks: nn.ModuleList, forward: Callable[[], object]) -> list[_Seen]:
    """The calls of all blocks in one real pass, in the order they were made."""
    seen: list[_Seen] = []

    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.append(_Seen(block, *_split(args, kwargs), output))

    handles = [block.register_forward_hook(hook, with_kwargs=True) for block in blocks]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    if [id(call.block) for call in seen] != [id(block) for block in blocks]:
        raise NotReplayable("the blocks are not called once each, in their order")
    for before, after in pairwise(seen):
        if not torch.equal(hidden_of(before.output), after.hidden):
            raise NotReplayable("something happens to the hidden states between two blocks")
    return seen


def _noted_calls(
    blocks: nn.ModuleList, forward: Callable[[], object], lengths: Sequence[int]
) -> list[tuple[torch.Tensor, Call]]:
    """The arguments of all blocks in a pass with recorders in their place."""
    noted: list[tuple[torch.Tensor, Call]] = []
    originals = list(blocks)
    try:
        for place, block in enumerate(originals):
            last = place == len(originals) - 1
            blocks[place] = _Recorder(block, noted, lengths[place], last)
        with torch.no_grad():
            forward()
    except StopForward:
        pass
    except NotReplayable:
        raise
    except Exception as error:  # whatever a model may do without its blocks' real outputs
        raise NotReplayable(f"the model does not run without its blocks ({error})") from error
    finally:
        for place, block in enumerate(originals):
            blocks[place] = block
    return noted


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, Call]:
    """The hidden states among a block's arguments, and the rest."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0], Call((None, *args[1:]), dict(kwargs), 0)
    hidden = kwargs.get("hidden_states")
    if isinstance(hidden, torch.Tensor):
        return hidden, Call(args, {**kwargs, "hidden_states": None}, "hidden_states")
    raise NotReplayable("a block is called without hidden states as its first argument")


def _check(
    truth: list[_Seen], noted: list[tuple[torch.Tensor, Call]], first_block: nn.Module
) -> None:
    """Compare the recorders' notes with the true pass of the same sample, and replay the first
    block."""
    if len(noted) != len(truth):
        raise NotReplayable("the model changes course with its hidden states")
    for seen, (_, call) in zip(truth, noted, strict=True):
        if not _equal((seen.call.args, seen.call.kwargs), (call.args, call.kwargs), _alike):
            raise NotReplayable("arguments of a block depend on the blocks before it")
    with torch.no_grad():
        again = noted[0][1].run(first_block, noted[0][0])
    if not _alike(again, hidden_of(truth[0].output)):
        raise NotReplayable("a block gives another result when it is run by itself")


def _alike(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Were two tensors computed from the same values? Libraries do not promise that the same
    product, or cosine, has the same last bits twice; other values would lie far apart."""
    if not left.is_floating_point() or torch.equal(left, right):
        return torch.equal(left, right)
    slack = _ROUNDINGS * torch.finfo(left.dtype).eps
    largest = float(left.abs().max())
    return torch.allclose(left, right, rtol=slack, atol=slack * largest, equal_nan=True)


def _equal(
    left: Any, right: Any, same: Callable[[torch.Tensor, torch.Tensor], bool] = torch.equal
) -> bool:
    """Do two argument structures hold equal values? An unknown kind of object, such as a cache,
    never does."""
    if isinstance(left, torch.Tensor):
        return (
            isinstance(right, torch.Tensor)
            and left.device == right.device
            and left.shape == right.shape
            and left.dtype == right.dtype
            and same(left, right)
        )
    if isinstance(left, list | tuple):
        return (
            type(left) is type(right)
            and len(left) == len(right)
            and all(_equal(a, b, same) for a, b in zip(left, right, strict=True))
        )
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(_equal(left[key], right[key], same) for key in left)
        )
    return isinstance(left, _PLAIN) and left == right


def _interned(call: Call, pool: list[torch.Tensor]) -> Call:
    """The same call, with tensors that equal an earlier sample's replaced by that one: masks are
    kept once."""

    def visit(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            for known in pool:
                if known is value or _equal(known, value):
                    return known
            pool.append(value)
            return value
        if type(value) in (list, tuple):
            return type(value)(map(visit, value))
        if isinstance(value, dict):
            return {key: visit(entry) for key, entry in value.items()}
        return value

    return Call(visit(call.args), visit(call.kwargs), call.place)
