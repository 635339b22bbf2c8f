"""Estimate: one reported number with everything a reader needs to judge it.

A number without its estimator, sample size and interval cannot be compared with another, so every
measure returns an `Estimate`. It acts as a float; an undefined measure has `value=None` and a
reason, never 0 or NaN.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Estimate:
    """One value of one metric, with estimator, sample size and (where asked for) an interval.

    Attributes:
        metric: metric id, the name of the function that computed it.
        value: the number in `unit`; None where the metric is undefined (see `reason`).
        estimator: how the value came about, for example "mean" or "plug-in".
        n: number of items (or tokens, texts) that entered.
        unit: "" for a plain number, else "nats", "bits", "items", ...
        lower: lower end of the interval, None without one.
        upper: upper end of the interval, None without one.
        level: two-sided confidence level of the interval.
        interval: method id of the interval ("bca", "percentile", "tango", ...).
        resamples: number of bootstrap resamples behind the interval.
        seed: seed of the resampling.
        reason: why the value or the interval is missing.
        extra: further facts (bins, binning rule, scoring rule, flags).
    """

    metric: str
    value: float | None
    estimator: str = "mean"
    n: int = 0
    unit: str = ""
    lower: float | None = None
    upper: float | None = None
    level: float | None = None
    interval: str | None = None
    resamples: int | None = None
    seed: int | None = None
    reason: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def with_interval(self, interval: Interval) -> Estimate:
        """This estimate with the bounds and the method of `interval`."""
        return replace(
            self,
            lower=interval.lower,
            upper=interval.upper,
            level=interval.level,
            interval=interval.method,
            resamples=interval.resamples,
            seed=interval.seed,
            reason=self.reason or interval.reason,
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types; a value that is not finite becomes null with a reason."""
        out: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("value", "lower", "upper"):
            if out[name] is not None:
                out[name] = float(out[name]) if math.isfinite(out[name]) else None
        if self.value is not None and out["value"] is None:
            out["reason"] = self.reason or "infinite: an outcome that occurred had probability 0"
        out["extra"] = {key: plain(value) for key, value in self.extra.items()}
        return out

    def __float__(self) -> float:
        if self.value is None:
            raise ValueError(f"[{self.metric}] expected a value, got none: {self.reason}")
        return float(self.value)

    def __int__(self) -> int:
        return int(float(self))

    def __bool__(self) -> bool:
        return float(self) != 0.0

    def __format__(self, spec: str) -> str:
        return "n/a" if self.value is None else format(float(self.value), spec)

    def __str__(self) -> str:
        if self.value is None:
            return f"n/a ({self.reason})"
        bounds = "" if self.lower is None else f" [{self.lower:.6g}, {self.upper:.6g}]"
        return f"{self.value:.6g}{bounds}"

    def __repr__(self) -> str:
        return f"<{self.metric} {self} n={self.n}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Estimate) and (self.value is None or other.value is None):
            return self.value is other.value and self.metric == other.metric
        if not isinstance(other, numbers.Real):
            return NotImplemented
        return self.value is not None and float(self.value) == float(other)

    def __hash__(self) -> int:
        return hash(self.value)

    def __lt__(self, other: Any) -> bool:
        return float(self) < float(other)

    def __le__(self, other: Any) -> bool:
        return float(self) <= float(other)

    def __gt__(self, other: Any) -> bool:
        return float(self) > float(other)

    def __ge__(self, other: Any) -> bool:
        return float(self) >= float(other)

    def __add__(self, other: Any) -> float:
        return float(self) + float(other)

    def __radd__(self, other: Any) -> float:
        return float(other) + float(self)

    def __sub__(self, other: Any) -> float:
        return float(self) - float(other)

    def __rsub__(self, other: Any) -> float:
        return float(other) - float(self)

    def __mul__(self, other: Any) -> float:
        return float(self) * float(other)

    def __rmul__(self, other: Any) -> float:
        return float(other) * float(self)

    def __truediv__(self, other: Any) -> float:
        return float(self) / float(other)

    def __rtruediv__(self, other: Any) -> float:
        return float(other) / float(self)

    def __neg__(self) -> float:
        return -float(self)

    def __abs__(self) -> float:
        return abs(float(self))

    def __round__(self, digits: int | None = None) -> float:
        return round(float(self), digits)


numbers.Real.register(Estimate)


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval and the method that made it.

    Attributes:
        lower, upper: bounds; None where the method is undefined for the data (see `reason`).
        level: two-sided level, for example 0.95.
        method: id of the method ("bca", "percentile", "tango", "clopper_pearson", "wilson", ...).
        resamples, seed: of a bootstrap, else None.
        reason: why there are no bounds, or which fallback was used.
    """

    lower: float | None
    upper: float | None
    level: float
    method: str
    resamples: int | None = None
    seed: int | None = None
    reason: str | None = None


def undefined(metric: str, reason: str, **facts: Any) -> Estimate:
    """The estimate of a metric that has no value on these data.

    Args:
        metric: metric id.
        reason: one sentence; it is printed where the number would stand.
        facts: further fields of `Estimate`.
    """
    return Estimate(metric=metric, value=None, reason=reason, **facts)


def plain(value: Any) -> Any:
    """`value` as JSON types: NumPy scalars, arrays, tuples, mappings and dataclasses are converted.

    Numbers that are not finite become None.
    """
    if isinstance(value, Estimate):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return [plain(inner) for inner in value.tolist()]
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
