"""What identifies an attribution, and what its budget means."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from calibit.auditing.job import Job, codebook_files, fingerprint

SCHEMA = "calibit.attribution/1"
OBJECTIVES = ("kl", "conf_true", "nll")
UPGRADES = ("int8",)
LIMIT = 200
"""Items of each task, one half for measuring: 2L + 2 evaluations of a small model in minutes."""

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True)
class AttributionJob:
    """Everything that decides the numbers of an attribution.

    Attributes:
        audit: model, items, calibration and statistics.
        scheme: what the whole model is quantized with.
        upgrades: larger options of the plan, smallest first.
        budget: bits per weight or bytes; None plans nothing.
        units: `blocks` or `linears`.
        objective: the damage that is attributed.
    """

    what: ClassVar[str] = "attribution"
    audit: Job
    scheme: str
    upgrades: tuple[str, ...] = UPGRADES
    budget: str | None = None
    units: str = "blocks"
    objective: str = OBJECTIVES[0]

    @property
    def options(self) -> tuple[str, ...]:
        """Schemes of a unit, smallest first."""
        return (self.scheme, *self.upgrades) if self.budget is not None else (self.scheme,)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types, with a fingerprint of every local input."""
        from calibit.quantization.plans import KEEP

        own = {key: value for key, value in asdict(self).items() if key != "audit"}
        own["upgrades"] = list(self.upgrades)
        audit = self.audit.to_dict()
        schemes = (self.scheme, *self.upgrades)
        for file in codebook_files(scheme for scheme in schemes if scheme != KEEP):
            audit["inputs"][file] = fingerprint(Path(file))
        return {**audit, **own, "schema": SCHEMA}


def budget_bytes(text: str, weights: int) -> int:
    """Bytes of a budget.

    Args:
        text: bits per weight (`4.5`) or bytes (`90MB`, `1.2 GB`, `90000000B`).
        weights: how many weights it is for.

    Raises:
        ValueError: neither.

    Example:
        >>> budget_bytes("4.5", 1000), budget_bytes("90MB", 1000)
        (562, 90000000)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)(b?)\s*", text.lower())
    if found is None or float(found[1]) <= 0.0 or (found[2] and not found[3]):
        raise ValueError(
            "[attribute] expected a budget in bits per weight (4.5) or bytes (90MB, 1.2GB), got "
            f"{text!r}"
        )
    if found[3]:
        return int(float(found[1]) * _BYTES[found[2]])
    return int(float(found[1]) * weights / 8)
