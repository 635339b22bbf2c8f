"""Tokens per second, with a reference workload measured in turn.

Speeds on a shared machine move by tens of percent from minute to minute. So each speed is stored
with a fixed reference workload measured in turn with it (a dense product and a memory read): when
two speeds differ and their references differ as much, it was the machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

_QUICK = (128, 16)  # some 7 s for a 135M float32 model on two AVX2 cores
_MATMUL = 1024  # a float32 product of three 4 MiB matrices
_READ = 1 << 25  # floats: 128 MiB, more than common caches hold


@dataclass(frozen=True)
class Rate:
    """Median and quartiles of a rate over n runs, and the rate of each."""

    value: float
    lower: float
    upper: float
    n: int
    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, amount: float, seconds: Any) -> Rate:
        """`amount` per second from the seconds of each run."""
        rates = amount / np.asarray(seconds, dtype=np.float64)
        lower, value, upper = (float(part) for part in np.percentile(rates, [25, 50, 75]))
        return cls(value, lower, upper, len(rates), tuple(rates.tolist()))


@dataclass(frozen=True)
class Speed:
    """Tokens per second of greedy generation with the cache, batch 1.

    Attributes:
        prefill_tok_s: prompt tokens / time to the first generated token.
        decode_tok_s: (generated - 1) / time from the first generated token to the last.
        prompt_tokens, generated_tokens: lengths.
        batch: 1.
        device, dtype, threads, kernels, versions: what ran.
        reference: rates of the reference workload, measured in turn: `matmul_gflop_s` (float32
            product), `read_gb_s`.
    """

    prefill_tok_s: Rate
    decode_tok_s: Rate
    prompt_tokens: int
    generated_tokens: int
    batch: int
    device: str
    dtype: str
    threads: int
    kernels: str
    versions: Mapping[str, str]
    reference: Mapping[str, Rate]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def measure_speed(
    model: Any,
    *,
    prompt_tokens: int = 512,
    generated_tokens: int = 128,
    repeats: int = 5,
    warmups: int = 2,
    quick: bool = False,
) -> Speed:
    """Time prefill and decoding apart: a fixed prompt, batch 1, greedy, with the cache.

    Args:
        model: causal language model; put into evaluation mode by the caller.
        prompt_tokens: length of the prompt; both lengths shrink to what the model's context holds.
        generated_tokens: tokens to generate, at least 2.
        repeats: timed runs, in turn with the reference workload.
        warmups: untimed runs before.
        quick: a prompt of 128 and 16 generated tokens.
    """
    if quick:
        prompt_tokens, generated_tokens = _QUICK
    prompt, generated_tokens = _prompt(model, prompt_tokens, generated_tokens)
    prefill: list[float] = []
    decode: list[float] = []

    def generate(steps: int = generated_tokens) -> None:
        times = _generate(model, prompt, steps)
        prefill.append(times[0])
        decode.append(times[1])

    for _ in range(warmups):
        generate(min(4, generated_tokens))
    prefill.clear()
    decode.clear()
    matmul, read = _reference(model.device)
    seconds = interleaved({"model": generate, "matmul": matmul, "read": read}, repeats=repeats)
    return Speed(
        prefill_tok_s=Rate.of(prompt.shape[1], prefill),
        decode_tok_s=Rate.of(generated_tokens - 1, decode),
        prompt_tokens=prompt.shape[1],
        generated_tokens=generated_tokens,
        batch=1,
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        kernels=kernels_of(model),
        versions=versions(),
        reference={
            "matmul_gflop_s": Rate.of(2e-9 * _MATMUL**3, seconds["matmul"]),
            "read_gb_s": Rate.of(4e-9 * _READ, seconds["read"]),
        },
    )


def interleaved(
    work: Mapping[str, Callable[[], object]], *, repeats: int, warmups: int = 0
) -> dict[str, np.ndarray]:
    """Time several pieces of work in turn, so that a slow moment of the machine hits all of them.

    Args:
        work: functions by name; each must wait for its own result.
        repeats: timed rounds.
        warmups: untimed rounds before.

    Returns:
        Seconds of each, float64 `[repeats]`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(warmups + repeats):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            if turn >= warmups:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def kernels_of(model: nn.Module) -> str:
    """Name of the kernel table that the model's quantized layers use; `torch` where it has none of
    ours."""
    from calibit.modules import QuantizedLinear

    if not any(isinstance(module, QuantizedLinear) for module in model.modules()):
        return "torch"
    from calibit.registry import active_kernels

    return active_kernels()


def versions() -> dict[str, str]:
    """Versions of what computes: python, torch, transformers, numpy, calibit."""
    import transformers

    import calibit

    return {
        "calibit": calibit.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of the accelerator."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _reference(device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
    """The two reference workloads: a dense float32 product, and the sum of a large array."""
    square = torch.full((_MATMUL, _MATMUL), 0.5, device=device)
    array = torch.ones(_READ, device=device)
    return (lambda: float((square @ square)[0, 0])), (lambda: float(array.sum()))


def _prompt(model: Any, prompt_tokens: int, generated_tokens: int) -> tuple[torch.Tensor, int]:
    """(ids `[1, prompt]`, generated tokens), shortened to the model's context in proportion."""
    from calibit.evaluation.encoding import context_length

    room = context_length(model.config, None)
    if prompt_tokens + generated_tokens > room:
        generated_tokens = max(2, room * generated_tokens // (prompt_tokens + generated_tokens))
        prompt_tokens = max(1, room - generated_tokens)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(prompt_tokens) * 7 + 3) % min(int(vocabulary), 1000)
    return ids[None].to(model.device), generated_tokens


def _generate(model: Any, prompt: torch.Tensor, steps: int) -> tuple[float, float]:
    """Seconds to the first token, and from there to the last."""
    from calibit.evaluation.scoring import tapped

    with torch.no_grad(), tapped(model.get_output_embeddings(), lambda hidden: hidden[:, -1:]):
        start = time.perf_counter()
        output = model(input_ids=prompt, use_cache=True)
        token = output.logits[:, -1:].argmax(dim=-1)
        token.cpu()  # waits for the device
        first = time.perf_counter()
        for _ in range(steps - 1):
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(dim=-1)
        token.cpu()
        return first - start, time.perf_counter() - first
