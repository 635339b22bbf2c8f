"""Stored bytes of a model by role, the bytes of its cache, and the peak memory of the process."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from calibit import kv_cache


@dataclass(frozen=True)
class Memory:
    """Stored bytes of a model; each tensor is counted once, however many modules share it.

    Attributes:
        parameters: weights the model stands for, quantized ones counted as weights, not as bytes.
        quantized: weights in quantized layers.
        bytes_weights: codes of the quantized layers, or the float weights of the linear layers of a
            model without any.
        bytes_meta: scales, zeros, codebooks and orders of the quantized layers.
        bytes_kept: float weights of linear layers left as they were beside quantized ones.
        bytes_embeddings: embedding tables; a head tied to one is part of it.
        bytes_head: an untied head that is not quantized.
        bytes_other: norms, biases, buffers.
        bytes_model: the sum.
        tied: whether the head shares its tensor with the embedding.
        bits_per_weight: of the layers in bytes_weights, metadata included; None without linear
            layers.
        bits_per_weight_model: 8 bytes_model / parameters.
    """

    parameters: int
    quantized: int
    bytes_weights: int
    bytes_meta: int
    bytes_kept: int
    bytes_embeddings: int
    bytes_head: int
    bytes_other: int
    bytes_model: int
    tied: bool
    bits_per_weight: float | None
    bits_per_weight_model: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class PeakMemory:
    """Context manager: the largest resident memory of the process inside the block.

    Attributes:
        bytes: the peak, after the block; None where the platform does not say.
        since: `block` where the system can restart the count (Linux), else `process`: the peak
            since the process began.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self.since = "process"

    def __enter__(self) -> PeakMemory:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.since = "block"
        except OSError:
            self.since = "process"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bytes = _peak_resident()


def release_freed_memory() -> None:
    """Hand freed memory back to the system where the C library would keep it.

    glibc keeps freed blocks of up to 32 MiB in its heap, in pieces that the next tensors may not
    fit: the process would grow while a model is replaced by a smaller one. Nothing happens with
    other C libraries.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def measure_memory(model: nn.Module, *, parameters: int | None = None) -> Memory:
    """Split the stored bytes of a model by role.

    Args:
        model: any causal language model; quantized layers are recognised by `in_features`,
            `out_features` and either `nbytes_codes` and `nbytes_meta`, or a weight that is not the
            plain float matrix.
        parameters: number of weights, where the model cannot tell it itself.
    """
    count = _Count(model)
    for module in model.modules():
        count.add(module)
    total = sum(count.bytes.values())
    layers = count.quantized or count.dense
    stored = count.bytes["weights"] + count.bytes["meta"]
    if not count.quantized:
        count.bytes["weights"], count.bytes["kept"] = count.bytes["kept"], 0
        stored = count.bytes["weights"]
    parameters = parameters or count.parameters
    return Memory(
        parameters=parameters,
        quantized=count.quantized,
        **{f"bytes_{role}": size for role, size in count.bytes.items()},
        bytes_model=total,
        tied=count.tied,
        bits_per_weight=8 * stored / layers if layers else None,
        bits_per_weight_model=8 * total / parameters if parameters else 0.0,
    )


def bytes_kv(model: Any, *, positions: int, batch: int = 1) -> int:
    """Bytes of the key-value cache of a model that attends to every position.

    A rounded cache (`calibit.kv_cache`) counts as it would be stored, its scales included.

    Args:
        model: runs on one token.
        positions: tokens in the cache.
        batch: sequences.
    """
    return kv_cache.measure(model).bytes_per_token * positions * batch


class _Count:
    """Bytes by role, each tensor once."""

    def __init__(self, model: Any) -> None:
        self.bytes = dict.fromkeys(("weights", "meta", "kept", "embeddings", "head", "other"), 0)
        self.parameters = self.quantized = self.dense = 0
        self.head = (
            model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        )
        self.tied = False
        self._seen: dict[tuple[int, int], str] = {}

    def add(self, module: nn.Module) -> None:
        """Count the tensors that a module itself holds."""
        own = dict(_own_tensors(module))
        shape = _linear_shape(module)
        if shape is not None and own and not _is_matrix(own.get("weight"), shape):
            self._add_quantized(module, own, shape[0] * shape[1])
            return
        linear = shape is not None or type(module).__name__ == "Conv1D"
        for name, tensor in own.items():
            role = "other"
            if isinstance(module, nn.Embedding):
                role = "embeddings"
            elif linear and name == "weight":
                role = "head" if module is self.head else "kept"
            self._add_tensor(tensor, role, parameter=isinstance(tensor, nn.Parameter))

    def _add_quantized(
        self, module: nn.Module, own: Mapping[str, torch.Tensor], weights: int
    ) -> None:
        self.quantized += weights
        self.parameters += weights
        bias = own.get("bias")
        if bias is not None:
            self._add_tensor(bias, "other", parameter=True)
        codes, meta = getattr(module, "nbytes_codes", None), getattr(module, "nbytes_meta", None)
        if codes is None or meta is None:
            tensors = {name: tensor for name, tensor in own.items() if name != "bias"}
            main = {name for name in tensors if "weight" in name or name == "codes"}
            codes = sum(tensors[name].nbytes for name in main)
            meta = sum(tensor.nbytes for name, tensor in tensors.items() if name not in main)
            meta += sum(tensor.nbytes for name in main for tensor in _attached(tensors[name]))
        self.bytes["weights"] += int(codes)
        self.bytes["meta"] += int(meta)

    def _add_tensor(self, tensor: torch.Tensor, role: str, *, parameter: bool) -> None:
        key = (tensor.data_ptr(), tensor.nbytes)
        if tensor.numel() and tensor.device.type != "meta" and key in self._seen:
            self.tied |= {self._seen[key], role} == {"embeddings", "head"}
            return
        self._seen[key] = role
        self.bytes[role] += tensor.nbytes
        self.parameters += tensor.numel() if parameter else 0
        self.dense += tensor.numel() if role == "kept" else 0


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(output features, input features) of a module that names them."""
    rows, columns = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None


def _is_matrix(weight: torch.Tensor | None, shape: tuple[int, int]) -> bool:
    """Whether the weight is the plain float matrix (one-byte floats count as codes)."""
    if weight is None or not weight.is_floating_point() or weight.itemsize == 1:
        return False
    return tuple(weight.shape) == shape


def _attached(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """Tensors of the state that bitsandbytes hangs on a weight: absmax, code, and the same of its
    nested state."""
    state = getattr(weight, "quant_state", None)
    while state is not None:
        yield from (value for value in vars(state).values() if isinstance(value, torch.Tensor))
        state = getattr(state, "state2", None)


def _peak_resident() -> int | None:
    """Largest resident set of this process, bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
