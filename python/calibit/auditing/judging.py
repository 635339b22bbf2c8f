"""Verdicts of an audit, as they stand or under another policy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
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
        policy: name of the policy that the runs were judged under again; None where the verdicts
            are the audit's own.
    """

    verdicts: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, str]
    policy: str | None = None

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
        """Verdicts with their reasons for a terminal; under another policy, that it is another."""
        from rich.console import Group
        from rich.text import Text

        from calibit.reporting.terminal import verdict_list

        found = verdict_list(self.verdicts, self.failed)
        if self.policy is None:
            return found
        note = f"Judged under {self.policy}; the report shows the audit's own policy."
        return Group(found, Text(note))

    def to_dict(self) -> dict[str, Any]:
        """JSON types; `verdict` is the worst one, None where a candidate failed; `policy` the name
        of the policy where it is not the audit's own."""
        worst = self.worst if self.verdicts and not self.failed else None
        content = {"candidates": dict(self.verdicts), "failed": dict(self.failed)}
        return {"verdict": worst, "policy": self.policy, **content}


def judge_audit(
    audit: Audit, *, scheme: str | None = None, policy: Mapping[str, Any] | str | Path | None = None
) -> Judged:
    """Verdicts of an audit's candidates.

    Args:
        audit: the audit.
        scheme: one candidate, in any spelling of its scheme; all where omitted.
        policy: judge the recorded runs again under this policy; the recorded verdicts where
            omitted.

    Raises:
        ValueError: no such candidate, or a policy that is wrong.
        FileNotFoundError: a policy file or run that does not exist.
    """
    from calibit.auditing.assembly import policy_of

    names = [_candidate(audit, scheme)] if scheme is not None else list(audit.candidates)
    failed = {name: audit.failed[name] for name in names if name in audit.failed}
    measured = [name for name in names if name not in failed]
    if policy is None:
        return Judged({name: audit.candidates[name]["verdict"] for name in measured}, failed)
    chosen = policy_of(policy)
    again = {name: audit.comparison(name).verdict(chosen).to_dict() for name in measured}
    return Judged(again, failed, chosen.name)


def _candidate(audit: Audit, name: str) -> str:
    """The candidate that is called so, or whose scheme, plan file or checkpoint this is."""
    from calibit.auditing.models import model_name, scheme_name

    names = [name, model_name(name)]
    with suppress(ValueError, OSError):  # no scheme, perhaps a checkpoint
        names.append(scheme_name(name))
    found = [one for one in names if one in audit.candidates]
    if not found:
        known = ", ".join(audit.candidates)
        raise ValueError(f"[gate] expected a candidate of the audit ({known}), got {name!r}")
    return found[0]
