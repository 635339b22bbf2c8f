"""The triangular factor GPTQ works with, computed once per Hessian in float64.

GPTQ (Frantar et al., arXiv 2210.17323, section 3.3) rounds the columns of a weight one after the
other and passes each column's error on through the rows of the upper Cholesky factor U of the
inverse Hessian, inv(H) = U^T U. With J the reversal of order and J H J = L L^T, that factor is
U = J inv(L) J: one Cholesky factorization and one triangular inverse, instead of the usual
factorization, inversion and second factorization.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

DAMPING = 0.01
"""Share of the mean diagonal added to the diagonal before factorizing (the GPTQ paper's value)."""

CROSS_SHARE = 0.4
"""Share of the step towards the unquantized model that `gptaq` takes; a full one fits the noise of
the calibration text as well."""

_ROWS = 128  # of a matrix compared with its transpose at a time
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
            replaced by that of the identity, so that their weights are rounded to nearest: the
            calibration text gives no reason to drop them.
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
            parts.append(
                f"{dead} of {self.dead.numel()} inputs were always zero: rounded to nearest"
            )
        return "; ".join(parts)


class Factored(NamedTuple):
    """What the column solver needs to know of a Hessian.

    Attributes:
        upper: U, float64 `[K, K]`.
        info: how it was found.
        order: None for the natural order, else int64 `[K]`: row and column t of U belong to input
            `order[t]`.
        hessian: the matrix itself, float32 `[K, K]`, undamped, for the proxy loss.
        shift: None, or float32 `[K, K]`: the solver's target is W + W shift.
    """

    upper: torch.Tensor
    info: FactorInfo
    order: torch.Tensor | None
    hessian: torch.Tensor
    shift: torch.Tensor | None = None

    @property
    def importance(self) -> torch.Tensor:
        """What a squared error of each input's weight, at its turn, costs: 1 / U_tt^2, the largest
        set to 1. Float32 `[K]`, inputs in their natural order.

        The proxy loss is sum_t ((w_t - q_t) / U_tt)^2 with w_t as it stands when t is reached:
        later inputs make good what they can, so that this, not the diagonal of H, is what is left
        to lose.
        """
        diagonal = self.upper.diagonal()
        cost = (diagonal.min() / diagonal).square().float()
        if self.order is None:
            return cost
        natural = torch.empty_like(cost)
        natural[self.order] = cost
        return natural

    def step(self, gradient: torch.Tensor) -> torch.Tensor:
        """`CROSS_SHARE` of gradient inv(H): how far the target moves for a pull on the outputs.

        Args:
            gradient: `[N, K]`, the sum of e x^T over tokens, e what the outputs should have more.

        Returns:
            Float32 `[N, K]`.

        Raises:
            ValueError: another shape, NaN or Inf.
        """
        k = len(self.upper)
        if gradient.dim() != 2 or gradient.shape[1] != k or not bool(gradient.isfinite().all()):
            found = "NaN or Inf" if gradient.shape[-1] == k else str(list(gradient.shape))
            raise ValueError(f"[factor] expected a finite sum of e x^T [N, {k}], got {found}")
        return _step(gradient, self.upper, self.order)


def factor(
    hessian: torch.Tensor,
    damping: float = DAMPING,
    *,
    activation_order: bool = False,
    cross: torch.Tensor | None = None,
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
        cross: `[K, K]`, the sum or mean of (y - x) x^T over the same tokens, y the inputs that the
            unquantized model has in the place of x. Li et al., "GPTAQ", arXiv 2504.02692: the
            quantized layer is fitted to the outputs W y. Of all weights, W + W cross inv(H) comes
            closest to them on x; it is the solver's target, with `CROSS_SHARE` of the step.

    Returns:
        U as float64 `[K, K]` on the Hessian's device, with the damping used and the dead inputs.

    Raises:
        ValueError: the matrix is not square, not symmetric, zero, holds NaN or Inf, has a negative
            diagonal entry, or cannot be factorized even with a damping of 1.

    Example:
        >>> upper = factor(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 0.01).upper
        >>> bool(torch.allclose(upper.T @ upper @ torch.tensor([[2.02, 1.0], [1.0, 2.02]]).double(),
        ...                     torch.eye(2).double()))
        True
    """
    damped, dead = _checked(hessian, damping)
    order, diagonal = None, damped.diagonal().clone()
    # Reversing both axes is J H J; the factor of the reversed matrix is lower triangular.
    if activation_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        diagonal, reverse = diagonal[order], order.flip(0)
        damped = damped[reverse][:, reverse]
    else:
        damped = damped.flip(0, 1)
    mean = float(diagonal.mean())
    base = damped.diagonal().clone()
    used = damping
    while True:
        damped.diagonal().copy_(base + used * mean)
        lower, status = torch.linalg.cholesky_ex(damped)
        if int(status) == 0:
            break
        used *= _DAMPING_STEP
        if used > _DAMPING_LIMIT:
            raise ValueError(
                "[factor] expected a positive definite Hessian, got one that a damping of "
                f"{_DAMPING_LIMIT:g} does not mend: check that it is a sum of outer products"
            )
    del damped
    identity = torch.eye(lower.shape[0], dtype=torch.float64, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, identity.T, upper=False, out=identity.T)
    del lower, identity
    upper = inverse.flip(0, 1).contiguous()
    del inverse
    shift = None if cross is None else _shift(cross, upper, order)
    info = FactorInfo(used, damping, dead)
    return Factored(upper, info, order, hessian.detach().float(), shift)


def _shift(cross: torch.Tensor, upper: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """CROSS_SHARE * cross inv(H), inputs in their natural order."""
    if cross.shape != upper.shape or not bool(torch.isfinite(cross).all()):
        raise ValueError(
            f"[factor] expected a finite cross [{upper.shape[0]}, {upper.shape[0]}], got "
            f"{'NaN or Inf' if cross.shape == upper.shape else list(cross.shape)}"
        )
    return _step(cross, upper, order)


def _step(right: torch.Tensor, upper: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """CROSS_SHARE * right inv(H), inputs in their natural order."""
    right = right.to(upper) if order is None else right.to(upper)[:, order]
    solved = CROSS_SHARE * ((right @ upper.T) @ upper)
    if order is not None:
        solved = solved[:, torch.argsort(order)]
    return solved.float()


def _asymmetry(matrix: torch.Tensor) -> float:
    """Largest difference between a square matrix and its transpose."""
    largest = 0.0
    for start in range(0, len(matrix), _ROWS):
        stop = start + _ROWS
        low, high = torch.aminmax(matrix[start:stop, start:] - matrix[start:, start:stop].T)
        largest = max(largest, -float(low), float(high))
    return largest


def _checked(hessian: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A float64 copy with dead inputs replaced by the identity, and the mask of dead inputs."""
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1] or hessian.shape[0] == 0:
        raise ValueError(
            f"[factor] expected a square Hessian [K, K], got shape {tuple(hessian.shape)}"
        )
    if not hessian.is_floating_point():
        raise ValueError(f"[factor] expected a floating-point Hessian, got {hessian.dtype}")
    if not 0 < damping <= _DAMPING_LIMIT:
        raise ValueError(f"[factor] expected a damping in (0, {_DAMPING_LIMIT:g}], got {damping}")
    copy = hessian.detach().to(torch.float64, copy=True)
    if not all(map(math.isfinite, torch.aminmax(copy))):  # either is NaN where any entry is
        raise ValueError(
            "[factor] expected a finite Hessian, got NaN or Inf: check the calibration activations"
        )
    diagonal = copy.diagonal()
    # A float32 sum of outer products is symmetric to about 1e-6 of its largest entry.
    if _asymmetry(copy) > 1e-3 * float(diagonal.abs().max()):
        raise ValueError(
            "[factor] expected a symmetric Hessian, got one that differs from its transpose: check "
            "that it is a sum of outer products"
        )
    if bool((diagonal < 0).any()):
        raise ValueError(
            f"[factor] expected a diagonal >= 0, got {float(diagonal.min()):g}: check that the "
            "Hessian is a sum of outer products"
        )
    dead = diagonal == 0
    if bool(dead.all()):
        raise ValueError(
            "[factor] expected a Hessian other than zero: no calibration token reached this layer, "
            "or all its inputs were zero; give other calibration text or round to nearest"
        )
    if bool(dead.any()):
        copy[dead, :] = 0
        copy[:, dead] = 0
        diagonal[dead] = diagonal[~dead].mean()
    return copy, dead
