"""Verdicts of an audit, as they stand or under another policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibit.auditing.result import SEVERITY, Audit

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Judged:
    """Verdicts of the candidates of an audit.

    Attributes:
        verdicts: candidate -> the verdict as a mapping (`verdict`, `reasons`, `gates`, `policy`).
        failed: why each candidate that could not be measured failed.
    """

    verdicts: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str]

    @property
    def worst(self) -> str:
        """The worst verdict.

        Raises:
            ValueError: no candidate was measured.
        """
        if not self.verdicts:
            raise ValueError("[gate] expected a measured candidate, got none")
        return max((one["verdict"] for one in self.verdicts.values()), key=SEVERITY.index)

    def table(self) -> RenderableType:
        """Verdicts with their reasons for a terminal."""
        from calibit.reporting.terminal import verdict_list

        return verdict_list(self.verdicts, self.failed)

    def to_dict(self) -> dict[str, Any]:
        """JSON types; `verdict` is the worst one, None where a candidate failed."""
        worst = self.worst if self.verdicts and not self.failed else None
        return {"verdict": worst, "candidates": dict(self.verdicts), "failed": dict(self.failed)}


def judge_audit(
    audit: Audit, *, scheme: str | None = None, policy: Mapping[str, Any] | str | Path | None = None
) -> Judged:
    """Verdicts of an audit's candidates.

    Args:
        audit: the audit.
        scheme: one candidate; all where omitted.
        policy: judge the recorded runs again under this policy; the recorded verdicts where
            omitted.

    Raises:
        ValueError: no such candidate, or a policy that is wrong.
        FileNotFoundError: a policy file or run that does not exist.
    """
    from calibit.auditing.assembly import policy_of

    if scheme is not None and scheme not in audit.candidates:
        known = ", ".join(audit.candidates)
        raise ValueError(f"[gate] expected a candidate of the audit ({known}), got {scheme!r}")
    names = [scheme] if scheme is not None else list(audit.candidates)
    failed = {name: audit.failed[name] for name in names if name in audit.failed}
    measured = [name for name in names if name not in failed]
    if policy is None:
        return Judged({name: audit.candidates[name]["verdict"] for name in measured}, failed)
    chosen = policy_of(policy)
    again = {name: audit.comparison(name).verdict(chosen).to_dict() for name in measured}
    return Judged(again, failed)
