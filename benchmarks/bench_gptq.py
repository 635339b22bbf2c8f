"""The column solver of GPTQ against the same algorithm in plain PyTorch.

    python benchmarks/bench_gptq.py [--n 4096] [--k 4096] [--schemes ...] [--out FILE.jsonl]

The factor of the Hessian is given to both: what is timed is the loop over columns and, in ours, the
packing of the codes. Both work in float32. The plain loop runs twice: on W[N, K] as the paper's
algorithm reads, and on its transpose, where a column is contiguous. Before the times are taken the
proxy losses tr((W-Q) H (W-Q)^T), in float64, must agree to 1e-3: a weight on a boundary that rounds
the other way sends the rest of its row on another, equally good course. Where the plain loop does
not know an option (`mse`), the loss must be below that of nearest rounding.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workbench

import calibit
from calibit import ops, schemes, solver

Tensor = torch.Tensor

SCHEMES = ("int4-g128", "int4-g128-asym", "int3-g64", "nf4", "int4-g128-mse")
BLOCK = 128
OURS, AGAIN, PLAIN, TURNED = "calibit", "again", "plain PyTorch", "plain, transposed"
SAME_LOSS = 1e-3


def main() -> None:
    """One row per scheme."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=4096, help="output features")
    parser.add_argument("--k", type=int, default=4096, help="input features")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write JSON lines here")
    options = parser.parse_args()
    rows = workbench.Rows("gptq_solve", options.out)
    torch.manual_seed(0)
    weight = torch.randn(options.n, options.k) * 0.02
    hessian = correlated_hessian(options.k)
    upper = solver.factor(hessian).upper.float()
    with torch.inference_mode():
        for text in options.schemes.split(","):  # without the solver, as nearest rounding
            case(rows, schemes.parse(text), weight, hessian, upper, options.turns)


def correlated_hessian(k: int) -> Tensor:
    """Sum of x x^T of 2 K tokens whose inputs differ in size and share a direction, float64."""
    x = torch.randn(2 * k, k) * torch.exp(torch.randn(k)) + torch.randn(2 * k, 1)
    return (x.T @ x).double()


def case(
    rows: workbench.Rows,
    scheme: schemes.Scheme,
    weight: Tensor,
    hessian: Tensor,
    upper: Tensor,
    turns: int,
) -> None:
    """Check the losses, then time; print and store one row."""
    ours = Ours(scheme, weight, upper)
    losses = {OURS: loss(weight, ours.rounded(), hessian)}
    work: dict[str, Callable[[], Any]] = {OURS: ours, AGAIN: ours}
    if "mse" in scheme.options:
        losses["nearest"] = loss(weight, calibit.quantize(weight, scheme).dequantize(), hessian)
        right = losses[OURS] < losses["nearest"]
    else:
        work[PLAIN] = partial(plain_loop, scheme, weight, upper)
        work[TURNED] = partial(transposed_loop, scheme, weight, upper)
        losses |= {name: loss(weight, work[name](), hessian) for name in (PLAIN, TURNED)}
        right = max(losses.values()) < min(losses.values()) * (1 + SAME_LOSS)
    if not right:
        workbench.fail(f"{scheme}: proxy losses are {losses}")
    report(rows, scheme, weight, losses, workbench.time_in_turn(work, turns=turns))


def report(
    rows: workbench.Rows,
    scheme: schemes.Scheme,
    weight: Tensor,
    losses: dict[str, float],
    seconds: dict[str, np.ndarray],
) -> None:
    """Print and store how many times as long as ours the plain loop takes."""
    ratios = {
        name: workbench.Ratio.of(spent, seconds[OURS])
        for name, spent in seconds.items()
        if name != OURS
    }
    spent = {name: float(np.median(values)) for name, values in seconds.items()}
    text = "; ".join(f"{name} {ratio}" for name, ratio in ratios.items())
    n, k = weight.shape
    rows.add(
        f"gptq-{scheme!s:16} {n} x {k}  {spent[OURS]:7.3f} s  times as long: {text}",
        {
            "scheme": f"gptq-{scheme}",
            "n": n,
            "k": k,
            "seconds": spent,
            "loss": losses,
            "times_as_long": {name: vars(ratio) for name, ratio in ratios.items()},
        },
    )


class Ours:
    """The operator, called for its packed codes; `rounded` gives the weight they stand for."""

    def __init__(self, scheme: schemes.Scheme, weight: Tensor, upper: Tensor) -> None:
        layout = calibit.quantize(weight, scheme).layout
        self._shape = {"n": layout["n"], "k": layout["k"]}
        self._form = {key: layout[key] for key in ("bits", "group", "kind")}
        self._clip = "mse" in scheme.options
        values = scheme.weight_format.codebook
        self._codebook = None if values is None else torch.tensor(values)
        self._given = (weight, upper)

    def __call__(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        return ops.gptq_solve(*self._given, self._codebook, clip=self._clip, **self._form)

    def rounded(self) -> Tensor:
        codes, scales, zeros, _ = self()
        return ops.dequantize(codes, scales, zeros, self._codebook, **self._shape, **self._form)


def plain_loop(scheme: schemes.Scheme, weight: Tensor, upper: Tensor) -> Tensor:
    """Frantar et al., arXiv 2210.17323, algorithm 1 in blocks of 128. Groups divide the block.

    Returns the rounded weight `[N, K]`.
    """
    work, rounded = weight.clone(), torch.empty_like(weight)
    k, group = work.shape[1], scheme.group
    for start in range(0, k, BLOCK):
        stop = min(start + BLOCK, k)
        errors = torch.empty_like(work[:, start:stop])
        for t in range(start, stop):
            if t % group == 0:
                fit = fitted(scheme, work[:, t : t + group].t())
            rounded[:, t] = fit(work[:, t])
            error = (work[:, t] - rounded[:, t]) / upper[t, t]
            work[:, t + 1 : stop] -= error[:, None] * upper[t, t + 1 : stop]
            errors[:, t - start] = error
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    return rounded


def transposed_loop(scheme: schemes.Scheme, weight: Tensor, upper: Tensor) -> Tensor:
    """`plain_loop` on `[K, N]`, with torch's fused updates."""
    work = weight.t().contiguous()
    rounded = torch.empty_like(work)
    k, group = len(work), scheme.group
    for start in range(0, k, BLOCK):
        stop = min(start + BLOCK, k)
        errors = torch.empty_like(work[start:stop])
        for t in range(start, stop):
            if t % group == 0:
                fit = fitted(scheme, work[t : t + group])
            rounded[t] = fit(work[t])
            error = (work[t] - rounded[t]) / upper[t, t]
            work[t + 1 : stop].addr_(upper[t, t + 1 : stop], error, alpha=-1)
            errors[t - start] = error
        work[stop:].addmm_(upper[start:stop, stop:].t(), errors, alpha=-1)
    return rounded.t()


def fitted(scheme: schemes.Scheme, columns: Tensor) -> Callable[[Tensor], Tensor]:
    """Rounding with the scales of a group, whose columns `[group, N]` these are."""
    steps = 2**scheme.bits - 1
    if scheme.weight_format.codebook is not None:
        book = torch.tensor(scheme.weight_format.codebook)
        middles, largest = (book[1:] + book[:-1]) / 2, columns.abs().amax(0)
        return lambda x: book[torch.bucketize(x / largest, middles)] * largest
    if "asym" in scheme.options:
        low, high = columns.amin(0).clamp(max=0), columns.amax(0).clamp(min=0)
        scale = ((high - low) / steps).half().float()
        zero = (-low / scale).round()
        return lambda x: ((x / scale).round().add(zero).clamp(0, steps) - zero) * scale
    scale, half = (2 * columns.abs().amax(0) / steps).half().float(), 2 ** (scheme.bits - 1)
    return lambda x: (x / scale).round().clamp(-half, half - 1) * scale


def loss(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """tr((W-Q) H (W-Q)^T) in float64."""
    difference = (weight - rounded).double()
    return float(((difference @ hessian) * difference).sum())


if __name__ == "__main__":
    main()
