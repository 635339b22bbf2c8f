"""`calibit power`: what a measurement can show, before it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from calibit.auditing import job as jobs
from calibit.commands import options as given
from calibit.commands.options import JUDGE, Code, option
from calibit.commands.output import console


def power(
    tasks: given.Tasks = list(jobs.TASKS),  # noqa: B006
    limit: given.Limit = str(jobs.QUICK_LIMIT),
    include_path: given.IncludePath = None,
    workload: given.Workload = None,
    policy: given.PolicyFile = None,
    level: given.Level = 0.95,
    seed: given.Seed = 0,
    earlier: Annotated[
        Path | None,
        option(
            "Folder of an audit or comparison of a similar candidate: its spreads are taken.",
            JUDGE,
            "--earlier",
            show_default="assumed spreads",
        ),
    ] = None,
    flip_rate: Annotated[
        float,
        option("Assumed share of items whose correctness changes.", JUDGE, "--flip_rate"),
    ] = 0.1,
    as_json: given.Json = False,
    traceback: given.Traceback = False,
) -> Code:
    """What can so many items show? Smallest damage, power at the margins and items needed.

    Reads the tasks, runs no model.

    Examples:

    - `calibit power --tasks probe --limit 800`

    - `calibit power --tasks arc_easy=arc.jsonl --limit all --policy policy.yaml`

    - `calibit power --tasks probe --limit all --earlier audit-model`
    """
    from calibit.auditing.assembly import policy_dict
    from calibit.auditing.inputs import read_inputs
    from calibit.auditing.planning import plan

    job = jobs.Job(
        model="",
        tasks=given.task_words(tasks, include_path),
        include_path=None if include_path is None else jobs.local(include_path),
        text=jobs.NO_TEXT,
        limit=given.limit_of(limit),
        workload=None if workload is None else jobs.local(workload),
        policy=policy_dict(policy),
        level=level,
        seed=seed,
    )
    found = plan(job, read_inputs(job), earlier=earlier, flip_rate=flip_rate)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False, indent=1))
    else:
        console().print(found.table())
    return Code.DONE
