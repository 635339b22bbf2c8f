"""The fused linear layer against dequantize-then-matmul, dense layers and bitsandbytes.

    python benchmarks/bench_linear.py [--n 4096] [--k 4096] [--rows 1,4,16,64] [--out FILE.jsonl]

Each layer exists in so many copies that no call finds its weight in a cache; x is float32, except
for the peers that compute in bfloat16. Every result is compared with a float64 product before it is
timed. `again` is the dense float32 layer a second time: the noise of this machine.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workbench
from torch.nn import functional

import calibit

Tensor = torch.Tensor

COLD_BYTES = 600_000_000
SCHEMES = ("nf4", "nf4-dq", "fp4", "int4-g128", "int8-g128")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
"""Largest |error| / sum |x w|: float32 sums; bfloat16 inputs and outputs."""

OURS, DENSE, AGAIN = "calibit", "dense float32", "again"


@dataclass(frozen=True)
class Layer:
    """A way to multiply: the call, the float64 weight `[N, K]` it stands for, the dtype of x."""

    call: Callable[[Tensor], Tensor]
    weight: Tensor
    dtype: torch.dtype = torch.float32

    def check(self, name: str, x: Tensor) -> None:
        """End the benchmark where the result is not the product it should be."""
        x = x.to(self.dtype)
        wide = x.double()
        error = (self.call(x).double() - wide @ self.weight.T).abs()
        worst = float((error / (wide.abs() @ self.weight.abs().T)).max())
        if not worst <= TOLERANCE[self.dtype]:
            workbench.fail(f"{name}: error is {worst:.2g} of sum |x w|")

    def on(self, x: Tensor) -> Callable[[], Tensor]:
        """The call with x bound, in its dtype."""
        x = x.to(self.dtype)
        return lambda: self.call(x)


def main() -> None:
    """One row per scheme and number of rows of x."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=4096, help="output features")
    parser.add_argument("--k", type=int, default=4096, help="input features")
    parser.add_argument("--rows", default="1,4,16,64", help="rows of x, comma separated")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write JSON lines here")
    options = parser.parse_args()
    rows = workbench.Rows("linear", options.out)
    torch.manual_seed(0)
    weight = torch.randn(options.n, options.k) * 0.02
    dense = dense_layers(weight)
    with torch.inference_mode():
        for scheme in options.schemes.split(","):
            layers = {**quantized_layers(weight, scheme), **dense}
            for m in map(int, options.rows.split(",")):
                x = torch.randn(m, options.k)
                for name, layer in layers.items():
                    layer.check(f"{name}, {scheme}", x)
                work = {name: layer.on(x) for name, layer in layers.items()}
                seconds = workbench.time_in_turn(work, turns=options.turns)
                report(rows, {"scheme": scheme, "n": options.n, "k": options.k, "m": m}, seconds)


def report(rows: workbench.Rows, case: dict[str, Any], seconds: dict[str, np.ndarray]) -> None:
    """Print and store how many times as long as ours each peer takes."""
    ratios = {
        name: workbench.Ratio.of(spent, seconds[DENSE if name == AGAIN else OURS])
        for name, spent in seconds.items()
        if name != OURS
    }
    ms = {name: 1e3 * float(np.median(spent)) for name, spent in seconds.items()}
    text = "; ".join(f"{name} {ratio}" for name, ratio in ratios.items())
    rows.add(
        f"{case['scheme']:10} m {case['m']:4}  {ms[OURS]:8.3f} ms  times as long: {text}",
        {**case, "ms": ms, "times_as_long": {name: vars(ratio) for name, ratio in ratios.items()}},
    )


def quantized_layers(weight: Tensor, scheme: str) -> dict[str, Layer]:
    """Ours, the weight dequantized for each product, and bitsandbytes where it has the format."""
    quantized = calibit.quantize(weight, scheme)
    wide = quantized.dequantize().double()
    layers = copies(calibit.QuantizedLinear(quantized), quantized.nbytes)
    weights = copies(quantized, quantized.nbytes)
    result = {
        OURS: Layer(lambda x: next(layers)(x), wide),
        "dequantize, then matmul": Layer(
            lambda x: functional.linear(x, next(weights).dequantize()), wide
        ),
    }
    if scheme in ("nf4", "fp4") and (peer := bitsandbytes_layer(weight, scheme)) is not None:
        peers = copies(peer, quantized.nbytes)
        result["bitsandbytes"] = Layer(lambda x: next(peers)(x), wide, torch.bfloat16)
    return result


def dense_layers(weight: Tensor) -> dict[str, Layer]:
    """Dense products of torch in float32, twice, and in bfloat16."""
    wide = copies(weight, weight.nbytes)
    narrow = copies(weight.bfloat16(), weight.nbytes // 2)
    dense = Layer(lambda x: functional.linear(x, next(wide)), weight.double())
    half = Layer(
        lambda x: functional.linear(x, next(narrow)), weight.bfloat16().double(), torch.bfloat16
    )
    return {DENSE: dense, AGAIN: dense, "dense bfloat16": half}


def bitsandbytes_layer(weight: Tensor, kind: str) -> Any | None:
    """Its 4-bit layer in bfloat16, the dtype of its fused CPU kernel; None where it is missing."""
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        return None
    out_features, in_features = weight.shape
    layer = Linear4bit(
        in_features, out_features, bias=False, quant_type=kind, compute_dtype=torch.bfloat16
    )
    layer.weight = Params4bit(
        weight, requires_grad=False, quant_type=kind, compress_statistics=False
    )
    return layer.to("cpu").eval()


def copies(thing: Any, size: int) -> Iterator[Any]:
    """Endless round of so many copies of a thing of `size` bytes that no cache holds them."""
    count = max(2, -(-COLD_BYTES // size))
    return itertools.cycle([copy.deepcopy(thing) for _ in range(count)])


if __name__ == "__main__":
    main()
