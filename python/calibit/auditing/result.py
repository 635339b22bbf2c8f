"""Audit: a finished audit, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from calibit.comparison import Comparison

SCHEMA = "calibit.audit/1"
AUDIT_FILE, REPORT_FILE = "audit.json", "report.html"

_PARTS = ("baseline", "candidates", "model", "protocol")

SEVERITY = ("ship", "inconclusive", "hold")
"""Verdicts from best to worst."""


@dataclass(frozen=True, eq=False)
class Audit:
    """A finished audit.

    Attributes:
        path: its folder.
        data: the content of `audit.json`.
    """

    path: Path
    data: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Audit:
        """Read a finished audit from its folder, or from its `audit.json`.

        Raises:
            FileNotFoundError: there is no finished audit.
            ValueError: the file is not a whole audit, or of another version.
        """
        folder = Path(path)
        folder = folder.parent if folder.name == AUDIT_FILE else folder
        file = folder / AUDIT_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"[audit] expected the folder of a finished audit, got {str(folder)!r} without "
                f"{AUDIT_FILE}"
            )
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"[audit] expected valid JSON in {file}, got: {error}") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"[audit] expected schema {SCHEMA!r} in {file}, got {found!r}")
        absent = [name for name in _PARTS if name not in data]
        if absent:
            raise ValueError(
                f"[audit] expected a whole audit in {file}, got one without {', '.join(absent)}; "
                "run the audit again"
            )
        return cls(folder, data)

    @property
    def candidates(self) -> dict[str, Mapping[str, Any]]:
        """Every candidate's part of `audit.json` by name."""
        return {one["scheme"]: one for one in self.data["candidates"]}

    @property
    def verdicts(self) -> dict[str, str]:
        """Verdict of every candidate that was measured: `ship`, `hold` or `inconclusive`."""
        return {
            name: one["verdict"]["verdict"]
            for name, one in self.candidates.items()
            if one.get("verdict")
        }

    @property
    def failed(self) -> dict[str, str]:
        """Why each candidate that could not be measured failed."""
        return {name: one["error"] for name, one in self.candidates.items() if one.get("error")}

    @property
    def verdict(self) -> str | None:
        """The worst verdict of all candidates; None where a candidate failed."""
        if self.failed or not self.verdicts:
            return None
        return max(self.verdicts.values(), key=SEVERITY.index)

    def comparison(self, name: str) -> Comparison:
        """The comparison of a candidate with the baseline, made again from the recorded runs.

        Raises:
            ValueError: no such candidate, or one that failed.
        """
        from calibit.auditing.controls import FOLDER
        from calibit.comparison import ExtraRuns, compare
        from calibit.measures.self_audit import Check

        known = [one for one in self.candidates if one not in self.failed]
        if name not in known:
            raise ValueError(
                f"[audit] expected a measured candidate ({', '.join(known) or 'none'}), got "
                f"{name!r}"
            )
        protocol = self.data["protocol"]
        reruns = {place.name: place for place in sorted((self.path / FOLDER).glob("batches-*"))}
        again = compare(
            self.path / self.data["baseline"]["run"],
            self.path / self.candidates[name]["run"],
            rule=protocol["rule"],
            level=protocol["level"],
            resamples=protocol["resamples"],
            seed=protocol["seed"],
            extra=ExtraRuns(reruns=reruns),
        )
        recorded = self.candidates[name]["comparison"]["checks"]  # those of control runs among them
        return replace(again, checks=tuple(Check(**check) for check in recorded))

    def table(self) -> RenderableType:
        """The results and verdicts for a terminal."""
        from calibit.reporting.terminal import audit_table

        return audit_table(self.data)

    def to_dict(self) -> dict[str, Any]:
        """The content of `audit.json`."""
        return dict(self.data)
