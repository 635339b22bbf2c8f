"""Sums of outer products over calibration tokens, in float32 for a run of tokens, then in float64.

The rounding of a sum does not grow with the number of runs, and a run is long enough that adding
float64 matrices costs little beside the products. Of a symmetric sum only the panels from the
diagonal on are computed.
"""

from __future__ import annotations

import torch

from calibit._devices import float32_products

Tensor = torch.Tensor

_RUN = 8192  # rows of a run
_PANELS = 8  # of a symmetric sum: 9/16 of the products are needed
_NARROW = 128  # columns that a panel has at least


class ProductSum:
    """The sum of left^T right."""

    def __init__(self) -> None:
        self._run: Tensor | None = None
        self._rows = 0
        self._total: Tensor | None = None

    def add(self, left: Tensor, right: Tensor) -> None:
        """Add rows of two matrices, float32 `[rows, M]` and `[rows, K]`."""
        with float32_products():
            if self._run is None:
                self._run = left.t() @ right
            else:
                self._run.addmm_(left.t(), right)
        self._rows += len(right)
        if self._rows >= _RUN:
            self._flush()

    def total(self) -> Tensor:
        """Float64 `[M, K]`.

        Raises:
            RuntimeError: nothing was added.
        """
        self._flush()
        if self._total is None:
            raise RuntimeError("[sums] expected rows, got none")
        return self._total

    def _flush(self) -> None:
        if self._run is not None:
            total = self._run.double()
            self._total = total if self._total is None else self._total.add_(total)
        self._run, self._rows = None, 0


class Gram:
    """The sum of x^T x.

    Args:
        width: columns of x.
    """

    def __init__(self, width: int) -> None:
        step = max(_NARROW, -(-width // _PANELS))
        self.rows = 0
        self._panels = [
            (start, min(start + step, width), ProductSum()) for start in range(0, width, step)
        ]

    def add(self, x: Tensor) -> None:
        """Add rows, float32 `[rows, K]`."""
        self.rows += len(x)
        for start, end, panel in self._panels:
            panel.add(x[:, start:end], x[:, start:])

    def total(self) -> Tensor:
        """Float64 `[K, K]`, exactly symmetric."""
        parts = [panel.total() for _, _, panel in self._panels]
        whole = parts[0].new_empty(parts[0].shape[1], parts[0].shape[1])
        for (start, end, _), part in zip(self._panels, parts, strict=True):
            square = part[:, : end - start]
            part[:, : end - start] = square.triu() + square.triu(1).t()
            whole[start:end, start:] = part
            whole[start:, start:end] = part.t()
        return whole
