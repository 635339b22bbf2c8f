"""The triangular factor GPTQ works with, computed once per Hessian in float64.

GPTQ (Frantar et al., arXiv 2210.17323, section 3.3) rounds the columns of a weight one after the
other and passes each column's error on through the rows of the upper Cholesky factor U of the
inverse Hessian, inv(H) = U^T U. With J the reversal of order and J H J = L L^T, that factor is
U = J inv(L) J: one Cholesky factorization and one triangular inverse, instead of the usual
factorization, inversion and second factorization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

DAMPING = 0.01
"""Share of the mean diagonal added to the diagonal before factorizing (the GPTQ paper's value)."""

_DAMPING_STEP = 10.0
_DAMPING_LIMIT = 1.0


@dataclass(frozen=True)
class FactorInfo:
    """How a factorization came about.

    Attributes:
        damping: the relative damping that was used.
        requested: the relative damping that was asked for; smaller than `damping` when the
            matrix needed more.
        dead: bool `[K]`, inputs that were zero in every calibration token. Their Hessian column was
            replaced by that of the identity; the solver must set the weights of these columns to
            zero.
    """

    damping: float
    requested: float
    dead: torch.Tensor

    @property
    def note(self) -> str:
        """One sentence when something differs from a plain factorization, else an empty string."""
        parts = []
        if self.damping != self.requested:
            parts.append(f"damping raised from {self.requested:g} to {self.damping:g}")
        if dead := int(self.dead.sum()):
            parts.append(f"{dead} of {self.dead.numel()} inputs were always zero")
        return "; ".join(parts)


class Factored(NamedTuple):
    """The upper factor U, float64 `[K, K]`, how it was found, and the order of its columns.

    `order` is None for the natural order, else int64 `[K]`: row and column t of U belong to input
    `order[t]`.
    """

    upper: torch.Tensor
    info: FactorInfo
    order: torch.Tensor | None = None


def factor(
    hessian: torch.Tensor, damping: float = DAMPING, *, activation_order: bool = False
) -> Factored:
    """Upper triangular U with inv(H + damping) = U^T U.

    When the damped matrix is not positive definite the damping is multiplied by ten until it is, at
    most to 1; the value used is in the result. Deterministic for a given matrix, device and number
    of threads.

    Args:
        hessian: `[K, K]`, symmetric, any positive scale: the sum or mean of x x^T over calibration
        tokens.
        damping: share of the mean diagonal that is added to the diagonal, > 0.
        activation_order: take the inputs by falling diagonal of H (those with the largest
        activations first).

    Returns:
        U as float64 `[K, K]` on the Hessian's device, with the damping used and the dead inputs.

    Raises:
        ValueError: the matrix is not square, holds NaN or Inf, has a negative diagonal entry, or
            cannot be factorized even with a damping of 1.

    Example:
        >>> upper = factor(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 0.01).upper
        >>> bool(torch.allclose(upper.T @ upper @ torch.tensor([[2.02, 1.0], [1.0, 2.02]]).double(),
        ...                     torch.eye(2).double()))
        True
    """
    damped, dead = _checked(hessian, damping)
    order = None
    if activation_order:
        order = torch.argsort(damped.diagonal(), descending=True, stable=True)
        damped = damped[order][:, order]
    base = damped.diagonal().clone()
    mean = float(base.mean())
    used = damping
    while True:
        damped.diagonal().copy_(base + used * mean)
        # Reversing both axes is J H J; the factor of the reversed matrix is lower triangular.
        lower, status = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if int(status) == 0:
            break
        used *= _DAMPING_STEP
        if used > _DAMPING_LIMIT:
            raise ValueError(
                "[factor] expected a positive definite Hessian, got one that a damping of "
                f"{_DAMPING_LIMIT:g} does not mend: check that it is a sum of outer products"
            )
    identity = torch.eye(lower.shape[0], dtype=torch.float64, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    return Factored(inverse.flip(0, 1).contiguous(), FactorInfo(used, damping, dead), order)


def _checked(hessian: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A float64 copy with dead inputs replaced by the identity, and the mask of dead inputs."""
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1] or hessian.shape[0] == 0:
        raise ValueError(
            f"[factor] expected a square Hessian [K, K], got shape {tuple(hessian.shape)}"
        )
    if not 0 < damping <= _DAMPING_LIMIT:
        raise ValueError(f"[factor] expected a damping in (0, {_DAMPING_LIMIT:g}], got {damping}")
    copy = hessian.detach().to(torch.float64, copy=True)
    if not bool(torch.isfinite(copy).all()):
        raise ValueError(
            "[factor] expected a finite Hessian, got NaN or Inf: check the calibration activations"
        )
    diagonal = copy.diagonal()
    if bool((diagonal < 0).any()):
        raise ValueError(
            f"[factor] expected a diagonal >= 0, got {float(diagonal.min()):g}: check that the "
            "Hessian is a sum of outer products"
        )
    dead = diagonal == 0
    copy[dead, :] = 0
    copy[:, dead] = 0
    mean = diagonal[~dead].mean() if bool((~dead).any()) else torch.ones((), dtype=copy.dtype)
    diagonal[dead] = mean.to(copy.device)
    return copy, dead
