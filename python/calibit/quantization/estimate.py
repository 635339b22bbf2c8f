"""What quantizing a model will take, before it begins: memory and time.

Memory is counted: float weights that are loaded at the same time, the quantized layers, the hidden
states and remembered outputs of the calibration, and the matrices that the largest layer's solver
needs at once. Time is operations divided by rates that are measured on this machine in a fraction
of a second; other work on the machine makes it longer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from calibit import structure
from calibit.quantization.calibration_text import Calibration
from calibit.quantization.gptq import MEMORY_BYTES
from calibit.quantization.layerwise import Job
from calibit.quantization.residency import StoredWeights, Weights
from calibit.schemes import Scheme

_PROBE = 1024  # rows of the matrices whose product is timed
_PASSES = 2.2  # a layer runs once per sample; attention, norms and memory take as long again
_BOTH_MODELS = 1.6  # times as many where the unquantized block runs beside it (gptaq)
_SOLVER_SHARE = 0.25  # of the rate of a matrix product: measured 0.2 to 0.35 on 576 to 4096 inputs
_ROUNDING = 40  # operations a weight, as products count them
_CHOSEN = 2  # experts of a token, where the configuration does not say
_PROGRAM = 1_000_000_000  # bytes: Python, torch, transformers, 500 MB of open files
_FACTOR_SHARE = 0.35  # of the float64 rate: Cholesky and the triangular inverse


@dataclass(frozen=True)
class Estimate:
    """What a job will take.

    Attributes:
        bytes: most memory at one time, the model's own included.
        seconds: wall time without loading.
        available: bytes of memory that the machine has left; None where it does not say.
    """

    bytes: int
    seconds: float
    available: int | None

    @property
    def note(self) -> str | None:
        """A sentence where memory will not do."""
        if self.available is None or self.bytes <= self.available:
            return None
        return (
            f"needs about {self.bytes / 1e9:.1f} GB of memory, of which {self.available / 1e9:.1f} "
            "GB are free: use fewer calibration tokens or a larger machine"
        )

    def __str__(self) -> str:
        minutes = self.seconds / 60
        length = f"{self.seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min"
        return f"about {self.bytes / 1e9:.1f} GB of memory and {length}"


def estimate(weights: Weights, jobs: Sequence[Job], calibration: Calibration | None) -> Estimate:
    """Memory and time of quantizing layers.

    Args:
        weights: the model, nothing of it changed.
        jobs: layers and schemes, of `calibit.quantization.model.survey`.
        calibration: the token sequences of a GPTQ job, else None.
    """
    solved = [job for job in jobs if job[1].is_solved]
    total = _model_bytes(weights) + sum(_stored_bytes(layer, scheme) for layer, scheme in jobs)
    largest = max((4 * n * k for n, k in (layer.shape for layer, _ in jobs)), default=0)
    total += _PROGRAM + 4 * largest  # the layer in float32, its target, its roundings
    operations = {
        torch.float32: sum(_ROUNDING * float(n * k) for n, k in (layer.shape for layer, _ in jobs)),
        torch.float64: 0.0,
    }
    if solved and calibration is not None:
        total += _calibration_bytes(weights.model, solved, calibration)
        routed = _routed(weights.model, solved)
        for dtype, count in _operations(solved, calibration.tokens, routed).items():
            operations[dtype] += count
    seconds = sum(count / _rate(dtype) for dtype, count in operations.items() if count)
    return Estimate(int(total), seconds, _available())


def _model_bytes(weights: Weights) -> int:
    """Float weights in memory at the same time."""
    sizes = {name: tensor.nbytes for name, tensor in structure.tensors(weights.model)}
    found = structure.blocks(weights.model)
    if not isinstance(weights, StoredWeights) or found is None:
        return sum(sizes.values())
    of_blocks = [
        sum(size for name, size in sizes.items() if name.startswith(f"{found[0]}.{index}."))
        for index in range(len(found[1]))
    ]
    return sum(sizes.values()) - sum(of_blocks) + max(of_blocks)


def _stored_bytes(layer: structure.LinearLayer, scheme: Scheme) -> float:
    """Codes, and a scale and a zero point of four bytes for each group."""
    n, k = layer.shape
    group = scheme.group if isinstance(scheme.group, int) and scheme.group > 0 else k
    return n * k * scheme.bits / 8 + n * -(-k // group) * (8 if "asym" in scheme.options else 4)


def _calibration_bytes(model: nn.Module, jobs: Sequence[Job], calibration: Calibration) -> float:
    """Hidden states in and out of a block, remembered outputs, Hessian and its factor."""
    widest = max(layer.shape[1] for layer, _ in jobs)
    narrowest = min(layer.shape[1] for layer, _ in jobs)
    outputs = sum(layer.shape[0] for layer, _ in jobs) / max(1, _blocks(model))
    remembered = min(MEMORY_BYTES, 4 * calibration.tokens * outputs)
    matrices = (4 * 8 + 2 * 4) * widest**2
    return 2 * 4 * calibration.tokens * narrowest + remembered + matrices


def _operations(jobs: Sequence[Job], tokens: int, routed: float) -> dict[torch.dtype, float]:
    """Floating-point operations by the dtype they are made in, rates of the solver allowed for."""
    single = double = 0.0
    for layer, scheme in jobs:
        n, k = layer.shape
        seen = tokens * (1 if layer.experts is None else routed)
        passes = _PASSES * (_BOTH_MODELS if scheme.solver == "gptaq" else 1)
        single += 2 * n * k * seen * passes + n * k * k / _SOLVER_SHARE + 4 * n * k * k
    for (k, of_expert), count in _hessians(jobs).items():
        single += 2 * k * k * tokens * (routed if of_expert else 1) * count
        double += 4 / 3 * k**3 / _FACTOR_SHARE * count
    return {torch.float32: single, torch.float64: double}


def _routed(model: nn.Module, jobs: Sequence[Job]) -> float:
    """Share of the tokens that an expert sees on average."""
    lists = Counter(layer.experts for layer, _ in jobs if layer.experts is not None)
    config = getattr(model, "config", None)
    chosen = getattr(config, "num_experts_per_tok", None) or _CHOSEN
    return min(1.0, chosen / max(lists.values(), default=1))


def _hessians(jobs: Sequence[Job]) -> dict[tuple[int, bool], int]:
    """(Width, of an expert) -> Hessians, guessed: every two layers of a width in one module (query
    and key, gate and up) read one tensor; an expert has its own."""
    dense = [layer for layer, _ in jobs if layer.experts is None]
    members = Counter((layer.name.rpartition(".")[0], layer.shape[1]) for layer in dense)
    found = Counter((layer.shape[1], True) for layer, _ in jobs if layer.experts is not None)
    for (_, k), count in members.items():
        found[k, False] += -(-count // 2)
    return found


def _blocks(model: nn.Module) -> int:
    found = structure.blocks(model)
    return len(found[1]) if found is not None else 1


def _rate(dtype: torch.dtype) -> float:
    """Operations per second of a matrix product, the better of three."""
    x = torch.ones(_PROBE, _PROBE, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - begun)
    return 2 * _PROBE**3 / best


def _available() -> int | None:
    """Bytes of memory that programs can still get."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # another system than Linux
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
