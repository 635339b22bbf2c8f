"""The command that attributes a scheme's damage to layers and plans bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibit.attribution.job import LIMIT, UPGRADES, AttributionJob
from calibit.auditing import job as jobs
from calibit.commands import options as given
from calibit.commands.options import MEASURE, OUTPUT, QUANTIZE, Code, option
from calibit.commands.output import command_line, finish, prepare, progress_to


def attribute(
    model: given.Original,
    scheme: Annotated[str, typer.Argument(help="Scheme of the whole model.")],
    budget: Annotated[
        str | None,
        option(
            "Also make a plan of schemes: bits per weight of these layers (4.5) or bytes (90MB).",
            QUANTIZE,
            "--budget",
            show_default="no plan",
        ),
    ] = None,
    upgrade: Annotated[
        list[str],
        option(
            "Larger schemes that the budget may buy, smallest first, separated by commas; keep is "
            "full precision.",
            QUANTIZE,
            "--upgrade",
        ),
    ] = list(UPGRADES),  # noqa: B006
    units: Annotated[
        str, option("What damage is attributed to: blocks or linears.", MEASURE, "--units")
    ] = "blocks",
    objective: Annotated[
        str,
        option(
            "Damage: kl (of the answers' distribution), conf_true, nll.", MEASURE, "--objective"
        ),
    ] = "kl",
    calib: given.Calibration = jobs.TEXT,
    calib_tokens: given.CalibrationTokens = None,
    calib_seed: given.CalibrationSeed = None,
    tasks: given.Tasks = list(jobs.TASKS),  # noqa: B006
    num_fewshot: given.NumFewshot = 0,
    apply_chat_template: given.ChatTemplate = False,
    include_path: given.IncludePath = None,
    limit: given.Limit = str(LIMIT),
    bos: given.Bos = "tokenizer",
    seed: given.Seed = 0,
    rule: given.Rule = "sum",
    level: given.Level = 0.95,
    resamples: given.Resamples = 9999,
    device: given.Device = "cpu",
    dtype: given.Dtype = "auto",
    threads: given.Threads = None,
    batch_size: given.BatchSize = None,
    trust_remote_code: given.TrustRemoteCode = False,
    out: Annotated[
        Path | None,
        option(
            "Output folder: the same job in it is continued, anything else is refused.",
            OUTPUT,
            "--output_path",
            "-o",
            show_default="attribution-MODEL",
        ),
    ] = None,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
    traceback: given.Traceback = False,
) -> Code:
    """Which layers does the damage come from, and what should the bits be spent on?

    Every unit is quantized alone and restored alone, 2 L + 2 evaluations for L units; its share is
    the mean of the two (the Shapley value where units interact in pairs at most), with bounds that
    hold for all units at once. With --budget the units with the largest share per byte are upgraded
    one after the other, measured again after every 8; plan.json goes wherever a scheme does. Half
    of the items measure and plan; the finished plan is judged on the other half.

    Examples:

    - `calibit attribute HuggingFaceTB/SmolLM2-135M int4-g128`

    - `calibit attribute ./model int3-g64 --budget 4.0 --upgrade int4-g64,int8 -o plan-4bit`

    - `calibit quantize ./model plan-4bit/plan.json -o model-4bit`
    """
    from calibit.attribution.driver import run_job

    audit = jobs.Job(
        model=jobs.local(model),
        schemes=(),
        tasks=given.task_words(tasks, include_path),
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        include_path=None if include_path is None else jobs.local(include_path),
        text=jobs.NO_TEXT,
        limit=given.limit_of(limit),
        calibration=jobs.local(calib),
        calibration_tokens=calib_tokens,
        calibration_seed=calib_seed,
        speed=jobs.SPEEDS[0],
        dtype=dtype,
        device=device,
        batch_tokens=given.batch_tokens_of(batch_size),
        bos=bos,
        rule=rule,
        level=level,
        resamples=resamples,
        seed=seed,
        trust_remote_code=trust_remote_code,
    )
    job = AttributionJob(audit, scheme, given.words(upgrade), budget, units, objective)
    prepare(threads, audit.model, quiet=quiet)
    found = run_job(job, out, progress=progress_to(quiet), command=command_line())
    finish(found.to_dict(), found.path, what="Attribution", as_json=as_json, show=found.table)
    return Code.DONE
