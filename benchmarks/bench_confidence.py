"""Confidence of next-token distributions: one pass over logits, and from hidden states.

    python benchmarks/bench_confidence.py [--rows 4096] [--vocabulary 49152] [--out FILE]

Stored logits: beside a plain read of the same bytes (a float32 sum) and, on an eighth of the rows,
torch's own log-softmax and entropy. The logits must not fit the last cache: 4,096 rows are 805 MB.
Hidden states: beside the matrix product that they contain. Each result is compared with
float64 before it is timed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import workbench

import calibit

Tensor = torch.Tensor

TOLERANCE = {"entropy": 5e-5, "kl": 5e-5}
"""nats; exponentials are float32, sums float64 over runs of 1,024."""


def main() -> None:
    """One row per form and dtype."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--hidden-rows", type=int, default=512)
    parser.add_argument("--width", type=int, default=576, help="of the hidden states")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write JSON lines here")
    options = parser.parse_args()
    rows = workbench.Rows("confidence", options.out)
    torch.manual_seed(0)
    with torch.inference_mode():
        logits = 5 * torch.randn(options.rows, options.vocabulary)
        other = logits + torch.randn_like(logits)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            stored(rows, logits.to(dtype), other.to(dtype), options.turns)
        hidden = torch.randn(options.hidden_rows, options.width)
        head = torch.randn(options.vocabulary, options.width) / options.width**0.5 * 5
        streamed(rows, hidden, head, options.turns)


def stored(rows: workbench.Rows, logits: Tensor, other: Tensor, turns: int) -> None:
    """All statistics of stored logits, with and without a second distribution."""
    check(calibit.token_confidence(logits, other=other), logits, other)
    part = logits[: -(-len(logits) // 8)]
    read = logits.float() if logits.dtype != torch.float32 else logits
    seconds = workbench.time_in_turn(
        {
            "read": lambda: read.sum(),
            "one": lambda: calibit.token_confidence(logits),
            "two": lambda: calibit.token_confidence(logits, other=other),
            "part": lambda: calibit.token_confidence(part),
            "torch": lambda: torch_statistics(part),
        },
        turns=turns,
    )
    per_byte = seconds["read"] / read.nbytes
    one = workbench.Ratio.of(per_byte * logits.nbytes, seconds["one"])
    two = workbench.Ratio.of(per_byte * 2 * logits.nbytes, seconds["two"])
    times = workbench.Ratio.of(seconds["torch"], seconds["part"])
    name = str(logits.dtype).removeprefix("torch.")
    rows.add(
        f"{name:9} share of the read bandwidth: {one}; with a divergence: {two}; torch takes "
        f"{times} times as long",
        {
            "form": "stored", "dtype": name, "shape": list(logits.shape),
            "share_of_read": vars(one), "share_of_read_two": vars(two),
            "times_as_long": {"torch log_softmax and entropy": vars(times)},
        },
    )  # fmt: skip


def streamed(rows: workbench.Rows, hidden: Tensor, head: Tensor, turns: int) -> None:
    """All statistics from hidden states beside the product they contain."""
    check(calibit.head_confidence(hidden, head), hidden @ head.T, None)
    seconds = workbench.time_in_turn(
        {
            "product": lambda: hidden @ head.T,
            "streamed": lambda: calibit.head_confidence(hidden, head),
            "stored": lambda: calibit.token_confidence(hidden @ head.T),
        },
        turns=turns,
    )
    share = workbench.Ratio.of(seconds["product"], seconds["streamed"])
    beside = workbench.Ratio.of(seconds["stored"], seconds["streamed"])
    rows.add(
        f"hidden    share of the product's speed: {share}; storing the logits takes {beside} times "
        "as long",
        {
            "form": "hidden", "dtype": "float32", "shape": [*hidden.shape, len(head)],
            "share_of_product": vars(share), "times_as_long": {"stored logits": vars(beside)},
        },
    )  # fmt: skip


def torch_statistics(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence, entropy and log-sum-exp with torch's own functions."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return log_p.amax(-1), -(log_p.exp() * log_p).sum(-1), log_p.argmax(-1)


def check(found: calibit.next_token.TokenConfidence, logits: Tensor, other: Tensor | None) -> None:
    """End the benchmark where a statistic of the first rows differs from float64."""
    log_p = torch.log_softmax(logits[:8].double(), dim=-1)
    want = {"entropy": -(log_p.exp() * log_p).sum(-1)}
    if other is not None:
        log_q = torch.log_softmax(other[:8].double(), dim=-1)
        want["kl"] = (log_p.exp() * (log_p - log_q)).sum(-1)
    for name, values in want.items():
        error = float(np.abs(getattr(found, name)[:8] - values.numpy()).max())
        if not error <= TOLERANCE[name]:
            workbench.fail(f"{name} is off by {error:.2g} nats")


if __name__ == "__main__":
    main()
