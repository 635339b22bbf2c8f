"""The plan of a measurement: what its items can show, from tasks that are read but not run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibit import numbers
from calibit.auditing.assembly import policy_of
from calibit.auditing.inputs import Inputs
from calibit.auditing.job import Job

if TYPE_CHECKING:
    from rich.console import RenderableType

    from calibit.verdict.planning import Planned

_FILES = ("comparison.json", "audit.json")


@dataclass(frozen=True)
class Plan:
    """What a measurement can show.

    Attributes:
        rows: per gate and task.
        level: of the intervals that decide.
        source: where the spreads come from; None where all are conventions.
    """

    rows: Sequence[Planned]
    level: float
    source: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Rows and settings as JSON types."""
        from calibit.verdict.planning import to_dict

        return {**to_dict(self.rows), "level": self.level, "source": self.source}

    def table(self) -> RenderableType:
        """The rows for a terminal."""
        from calibit.reporting.planning import plan_table

        return plan_table(self.to_dict())


def plan(
    job: Job,
    inputs: Inputs,
    *,
    earlier: str | Path | None = None,
    flip_rate: float | None = None,
) -> Plan:
    """Plan the gates of a job.

    Args:
        job: policy and level.
        inputs: its items and prompts.
        earlier: folder or file of a comparison or audit that gives the spreads.
        flip_rate: assumed share of items whose correctness changes; None takes
            `calibit.verdict.planning.FLIP_RATE`.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: it holds no judged comparison.
    """
    from calibit.tasks import Prompt
    from calibit.verdict.planning import FLIP_RATE, plan_gates

    spreads = {} if earlier is None else _earlier(Path(earlier))
    written = Counter(
        one.task
        for one in (*inputs.items, *inputs.workload)
        if isinstance(one, Prompt) and one.answer is not None
    )
    choices = Counter(item.task for item in inputs.choices if len(item.choices) > 1)
    rows = plan_gates(
        choices,
        written,
        policy_of(job.policy),
        level=job.level,
        flip_rate=FLIP_RATE if flip_rate is None else flip_rate,
        spreads=spreads,
    )
    return Plan(rows, job.level, None if earlier is None else str(earlier))


def sentence(job: Job, inputs: Inputs, models: int) -> str | None:
    """What an audit costs and can show, in a sentence; None without items."""
    from calibit.reporting.wording import amount
    from calibit.verdict.planning import ALL

    rows = [row for row in plan(job, inputs).rows if row.task == ALL]
    if not rows:
        return None
    told = [
        f"{amount(row.metric, row.mde)} (margin {amount(row.metric, row.margin, bare=True)}, "
        f"{numbers.count(row.needed)} items needed)"
        for row in rows
    ]
    n = max(row.n for row in rows)
    return (
        f"{numbers.plural(models, 'model')}, {numbers.plural(n, 'item')} each; shown with a power "
        f"of 80 %, by the spreads that 'calibit power' assumes: {'; '.join(told)}"
    )


def _earlier(place: Path) -> dict[str, float]:
    from calibit.verdict.planning import spreads_of

    files = [place] if place.is_file() else [place / name for name in _FILES]
    for file in files:
        if file.is_file():
            content = json.loads(file.read_bytes())
            if not isinstance(content, Mapping):
                raise ValueError(f"[power] expected a comparison or an audit in {file}, got a list")
            return spreads_of(content)
    raise FileNotFoundError(
        f"[power] expected comparison.json or audit.json in {place}, got neither; write one with "
        "compare -o or audit"
    )
