"""Shares of a damage by solo and restoration runs, and the bit plan they lead to; knows no model.

The damage is a function of which units are quantized how: `Levels` maps a unit to the number of its
option (0 the smallest); a unit that is not in it stays in full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibit.measures.attribution import Attribution, attribute
from calibit.measures.resampling import Resampling

Levels = Mapping[str, int]
Damage = Callable[[Levels], np.ndarray]
"""Damage of each item, float64 [N], of the model with these units quantized; 0 with none."""

REMEASURE = 8
"""Upgrades after which the shares are measured again, for they interact."""


@dataclass(frozen=True)
class Unit:
    """A block or a linear layer.

    Attributes:
        name: dotted module name.
        bytes: stored bytes under each option, rising.
        errors: squared error of the weights under each option.
    """

    name: str
    bytes: tuple[int, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Upgrade:
    """One step of a plan: a unit moved to its next option.

    Attributes:
        unit: its name.
        option: number of the option it moved to.
        share: of the damage, as last measured or, after an upgrade since, scaled by the squared
            error of the weights.
        bytes: what the step costs.
        round: number of the measurement it rests on, from 0.
    """

    unit: str
    option: int
    share: float
    bytes: int
    round: int


@dataclass(frozen=True)
class Planned:
    """A bit plan.

    Attributes:
        levels: option of every unit.
        steps: the upgrades in order.
        bytes: stored bytes of all units under the plan.
        budget: what they may be.
        rounds: measurements of the shares.
        reason: why it ended.
    """

    levels: Mapping[str, int]
    steps: tuple[Upgrade, ...]
    bytes: int
    budget: int
    rounds: int
    reason: str


@dataclass
class _Plan:
    """A plan while it is made."""

    units: Mapping[str, Unit]
    levels: dict[str, int]
    shares: dict[str, float]
    room: int
    round: int = 0
    steps: list[Upgrade] = field(default_factory=list)


def measure(
    damage: Damage, levels: Levels, names: Sequence[str], resampling: Resampling
) -> Attribution:
    """Shares of units in the damage of a quantized model (`calibit.measures.attribute`).

    Args:
        damage: evaluates a model; 2 len(names) + 1 times.
        levels: how the whole model is quantized.
        names: the units to attribute to.
        resampling: level, resamples and seed.
    """
    total = damage(levels)
    solo = [damage({name: levels[name]}) for name in names]
    rest = [{unit: level for unit, level in levels.items() if unit != name} for name in names]
    restored = [total - damage(one) for one in rest]
    return attribute(
        np.stack(solo), np.stack(restored), total, names=list(names), resampling=resampling
    )


def plan(
    damage: Damage,
    units: Sequence[Unit],
    first: Attribution,
    budget: int,
    resampling: Resampling,
    *,
    every: int = REMEASURE,
) -> Planned:
    """Upgrade the unit with the largest share per byte until the budget is spent.

    All units start at their smallest option. After every `every` upgrades the shares of the units
    that can still be upgraded are measured again.

    Args:
        damage: evaluates a model.
        units: every unit with the same number of options.
        first: shares at the smallest options.
        budget: bytes that all units may take.
        resampling: as for `measure`.
        every: upgrades between measurements.

    Raises:
        ValueError: the smallest options are larger than the budget, or bytes that do not rise.
    """
    check(units, budget)
    spent = sum(unit.bytes[0] for unit in units)
    state = _Plan(
        {unit.name: unit for unit in units},
        {unit.name: 0 for unit in units},
        {one.name: one.share for one in first.units},
        budget - spent,
    )
    while True:
        reason = _upgrade_(state, every)
        if reason is not None:
            break
        state.round += 1
        names = [name for name in state.levels if _next(state, name) is not None]
        again = measure(damage, state.levels, names, resampling)
        state.shares = {one.name: one.share for one in again.units}
    total = sum(unit.bytes[state.levels[unit.name]] for unit in units)
    return Planned(dict(state.levels), tuple(state.steps), total, budget, state.round + 1, reason)


def _upgrade_(state: _Plan, most: int) -> str | None:
    """Up to `most` upgrades; why the plan ends, or None where it should measure again."""
    for _ in range(most):
        able = [(name, cost) for name in state.levels if (cost := _next(state, name)) is not None]
        if not able:
            return "every unit has its largest option, or the next one does not fit"
        name, cost = max(able, key=lambda one: state.shares[one[0]] / one[1])
        if state.shares[name] <= 0.0:
            return "no unit left to upgrade has a share above 0"
        level, unit = state.levels[name], state.units[name]
        state.steps.append(Upgrade(name, level + 1, state.shares[name], cost, state.round))
        state.levels[name], state.room = level + 1, state.room - cost
        before, after = unit.errors[level], unit.errors[level + 1]
        state.shares[name] *= after / before if before > 0.0 else 0.0
    if all(_next(state, name) is None for name in state.levels):
        return "every unit has its largest option, or the next one does not fit"
    return None


def _next(state: _Plan, name: str) -> int | None:
    """What the next option of a unit costs; None where there is none, or no room for it."""
    unit, level = state.units[name], state.levels[name]
    if level + 1 == len(unit.bytes):
        return None
    cost = unit.bytes[level + 1] - unit.bytes[level]
    return cost if cost <= state.room else None


def check(units: Sequence[Unit], budget: int) -> None:
    """Refuse a budget below the smallest options, and options whose bytes do not rise.

    Raises:
        ValueError: either.
    """
    for unit in units:
        if any(after <= before for before, after in zip(unit.bytes, unit.bytes[1:], strict=False)):
            raise ValueError(
                f"[plan] expected schemes of rising size, smallest first, got {list(unit.bytes)} "
                f"bytes in {unit.name}"
            )
    least = sum(unit.bytes[0] for unit in units)
    if budget < least:
        raise ValueError(
            f"[plan] expected a budget of at least {least} bytes, which the smallest scheme takes, "
            f"got {budget}"
        )
