"""Sums of outer products over runs of rows."""

from __future__ import annotations

import pytest
import torch

from calibit.quantization import sums
from calibit.quantization.sums import Gram, ProductSum


@pytest.mark.parametrize("width", [1, 7, 127, 128, 129, 300, 1100])
def test_gram_is_the_symmetric_sum(width: int) -> None:
    random = torch.Generator().manual_seed(width)
    parts = [torch.randn(rows, width, generator=random) for rows in (3, 2500, 1600, 4097, 1)]
    gram = Gram(width)
    for part in parts:
        gram.add(part)
    x = torch.cat(parts).double()
    want, got = x.T @ x, gram.total()
    assert gram.rows == len(x) and got.dtype == torch.float64
    assert torch.equal(got, got.T)
    # A run adds up to 12,288 float32 products: at worst 7e-4 of the diagonal, 1e-5 with margin to
    # what random signs leave (sqrt(12,288) roundings of half a unit, 7e-6).
    assert float((got - want).abs().max()) < 1e-5 * float(want.diagonal().max())


def test_rounding_does_not_grow_with_the_runs() -> None:
    left, right = torch.ones(sums._RUN, 1), torch.full((sums._RUN, 2), 1 / 3)
    exact = sums._RUN * float(right[0, 0])
    once, often = ProductSum(), ProductSum()
    once.add(left, right)
    for _ in range(500):
        often.add(left, right)
    error = float(once.total()[0, 0]) - exact
    assert float(often.total()[0, 0]) - 500 * exact == pytest.approx(500 * error, rel=1e-9)


def test_nothing_added_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"expected rows, got none"):
        ProductSum().total()
