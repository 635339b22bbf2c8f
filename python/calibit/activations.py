"""What a scheme does to the input of a linear layer before the product.

The product itself stays float32 on the rounded values: these are the numbers that an integer kernel
would multiply, so that their effect on a model can be measured before there is such a kernel.
"""

from __future__ import annotations

import torch

from calibit.schemes import Scheme

Tensor = torch.Tensor

OPTIONS = frozenset({"a8", "llm"})
"""Options of a scheme that round the input."""

LARGEST = 127
"""Largest code of an activation; symmetric, so that -128 is not used."""

OUTLIER = 6.0
"""Magnitude from which LLM.int8() keeps a column apart. Dettmers et al., arXiv 2208.07339, section
3.2."""


def prepare(x: Tensor, scheme: Scheme) -> Tensor:
    """The input as the product sees it.

    Args:
        x: ``[..., K]``, any floating dtype.
        scheme: option ``a8`` rounds each token to 8 bits; ``llm`` does so too but for columns with
            an outlier in any token of `x`. Anything else returns `x` itself.

    Returns:
        ``[..., K]`` in x's dtype; its gradient towards `x` is that of the identity
        (straight-through).
    """
    if "llm" in scheme.options:
        return straight_through(x, _outliers_apart(x))
    if "a8" in scheme.options:
        return straight_through(x, rounded(x.float()))
    return x


def rounded(x: Tensor) -> Tensor:
    """Each token (last axis) on the grid max|x| / 127 times -127..127; float32, ties to even."""
    scale = x.abs().amax(dim=-1, keepdim=True) / LARGEST
    return (x / scale.clamp(min=torch.finfo(torch.float32).tiny)).round() * scale


def _outliers_apart(x: Tensor) -> Tensor:
    """LLM.int8(): columns with an entry of `OUTLIER` and more as float16, the others rounded with
    the scale of the entries below it."""
    values = x.float()
    large = values.abs() >= OUTLIER
    columns = large.reshape(-1, x.shape[-1]).any(dim=0)
    scale = values.abs().masked_fill(large, 0).amax(dim=-1, keepdim=True) / LARGEST
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(columns, values.half().float(), (values / scale).round() * scale)


def straight_through(x: Tensor, values: Tensor) -> Tensor:
    """`values` in x's dtype, with the gradient of the identity towards x where x has one (Bengio et
    al., arXiv 1308.3432)."""
    values = values.to(x.dtype)
    return x + (values - x).detach() if x.requires_grad else values
