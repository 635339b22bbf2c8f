"""The commands. They import heavy modules when they run: `calibit --help` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calibit.auditing import job as jobs
from calibit.commands import options as given
from calibit.commands.attribution import attribute
from calibit.commands.finetuning import finetune
from calibit.commands.interchange import Engines, ExportTo, convert
from calibit.commands.options import (
    JUDGE,
    MEASURE,
    OUTPUT,
    QUANTIZE,
    VERDICT_CODES,
    Code,
    option,
)
from calibit.commands.output import announce, command_line, finish, prepare, progress_to
from calibit.commands.planning import power

if TYPE_CHECKING:
    from calibit.quantization.estimate import Estimate


def audit(
    model: given.Original,
    schemes: Annotated[
        list[str] | None,
        option(
            "Schemes or plan files (.json), separated by commas: nf4, int8, gptq-int4-g128.",
            QUANTIZE,
            "--schemes",
            show_default="nf4,gptq-int4-g128; none with --candidates",
        ),
    ] = None,
    ablation: Annotated[
        str | None,
        option(
            "A group such as g64: also audit uniform int4 and NF4 of that group with equal scales, "
            "each rounded to nearest and by GPTQ, and report what the grid and what the rounding "
            "did.",
            QUANTIZE,
            "--ablation",
            show_default="none",
        ),
    ] = None,
    candidates: Annotated[
        list[str] | None,
        option(
            "Checkpoints made elsewhere (folders or hub names), separated by commas.",
            QUANTIZE,
            "--candidates",
        ),
    ] = None,
    calib: given.Calibration = jobs.TEXT,
    calib_tokens: given.CalibrationTokens = None,
    calib_seed: given.CalibrationSeed = None,
    calibration_draws: Annotated[
        int | None,
        option(
            "Build every GPTQ scheme K times (3 or more) with other draws of the calibration text, "
            "evaluate each, and tell the effect from the luck of the draw: K - 1 more builds and "
            "evaluations a scheme. The text should be much longer than K draws.",
            QUANTIZE,
            "--calibration_draws",
            show_default="one build",
        ),
    ] = None,
    tasks: given.Tasks = list(jobs.TASKS),  # noqa: B006
    num_fewshot: given.NumFewshot = 0,
    apply_chat_template: given.ChatTemplate = False,
    include_path: given.IncludePath = None,
    limit: given.Limit = str(jobs.QUICK_LIMIT),
    text: given.Text = jobs.TEXT,
    text_tokens: given.TextTokens = jobs.TEXT_TOKENS,
    text_protocol: given.TextProtocol = "gptq",
    text_window: given.TextWindow = jobs.TEXT_WINDOW,
    workload: given.Workload = None,
    max_new_tokens: given.NewTokens = jobs.NEW_TOKENS,
    parallel_text: given.ParallelText = None,
    parallel_segments: given.Segments = jobs.SEGMENTS,
    word_frequency: given.WordFrequency = None,
    bos: given.Bos = "tokenizer",
    seed: given.Seed = 0,
    rule: given.Rule = "sum",
    level: given.Level = 0.95,
    resamples: given.Resamples = 9999,
    policy: given.PolicyFile = None,
    rigor: Annotated[
        str,
        option(
            "How many controls run. quick: one evaluation a model, C + 1 for C candidates, and 64 "
            "items twice. standard: C + 4 more (other batch sizes, second wordings, an 8-bit "
            "build). full: 8 more for each scheme (copies with noise of its size).",
            JUDGE,
            "--rigor",
        ),
    ] = jobs.RIGOR[0],
    speed: given.Speed = jobs.SPEEDS[1],
    gate_: Annotated[
        bool,
        option("Exit with the worst verdict: 0 ship, 1 hold, 2 inconclusive.", JUDGE, "--gate"),
    ] = False,
    device: given.Device = "cpu",
    dtype: given.Dtype = "auto",
    threads: given.Threads = None,
    batch_size: given.BatchSize = None,
    trust_remote_code: given.TrustRemoteCode = False,
    out: Annotated[
        Path | None,
        option(
            "Output folder: the same audit in it is continued, anything else is refused.",
            OUTPUT,
            "--output_path",
            "-o",
            show_default="audit-MODEL",
        ),
    ] = None,
    log_samples: given.LogSamples = True,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
    traceback: given.Traceback = False,
) -> Code:
    """Is a quantized model safe to ship? Measure it against the original, and judge.

    Quantizes or loads each candidate, evaluates it on the same items as the original, compares
    them item by item, and writes audit.json, report.html and runs/ to the output folder. A killed
    audit continues when the same command is given again.

    Examples:

    - `calibit audit HuggingFaceTB/SmolLM2-135M --schemes nf4,gptq-int4-g128`

    - `calibit audit ./model --candidates ./model-gptq,./model-awq --limit all`

    - `calibit audit ./model --schemes int8 --policy policy.yaml --gate -o audits/int8`

    - `calibit audit ./model --ablation g64 --calibration-draws 3`

    - `calibit audit ./model --schemes gptq-nf4 --calib texts.jsonl --calibration-draws 4`

    - `calibit audit ./model --workload prompts.jsonl --max_new_tokens 128`

    - `calibit audit ./model --tasks probe,arithmetic_steps,tool_call --parallel_text ntrex`
    """
    from calibit.auditing import run_job
    from calibit.auditing.assembly import policy_dict

    job = jobs.Job(
        model=jobs.local(model),
        schemes=_schemes(schemes, candidates, ablation),
        candidates=tuple(map(jobs.local, given.words(candidates))),
        tasks=given.task_words(tasks, include_path),
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        include_path=None if include_path is None else jobs.local(include_path),
        text=jobs.local(text),
        limit=given.limit_of(limit),
        text_protocol=text_protocol,
        text_window=text_window,
        text_tokens=text_tokens,
        workload=None if workload is None else jobs.local(workload),
        max_new_tokens=max_new_tokens,
        parallel_text=None if parallel_text is None else jobs.local(parallel_text),
        parallel_segments=parallel_segments,
        word_frequency=None if word_frequency is None else jobs.local(word_frequency),
        calibration=jobs.local(calib),
        calibration_tokens=calib_tokens,
        calibration_seed=calib_seed,
        calibration_draws=calibration_draws,
        rigor=rigor,
        speed=speed,
        dtype=dtype,
        device=device,
        batch_tokens=given.batch_tokens_of(batch_size),
        bos=bos,
        rule=rule,
        level=level,
        resamples=resamples,
        seed=seed,
        policy=policy_dict(policy),
        trust_remote_code=trust_remote_code,
        store_docs=log_samples,
    )
    prepare(threads, job.model, *job.candidates, quiet=quiet)
    found = run_job(job, out, progress=progress_to(quiet), command=command_line())
    report = found.path / "report.html"
    finish(found.to_dict(), report, what="Report", as_json=as_json, show=found.table)
    if found.failed:
        return _incomplete(found.failed)
    return VERDICT_CODES[found.verdict] if gate_ and found.verdict else Code.DONE


def quantize(
    model: given.Original,
    scheme: Annotated[str, typer.Argument(help="Scheme, or a plan file (.json).")],
    out: Annotated[
        Path, option("Folder to create; an existing one is refused.", OUTPUT, "--output_path", "-o")
    ],
    calib: given.Calibration = jobs.TEXT,
    calib_tokens: given.CalibrationTokens = None,
    calib_seed: given.CalibrationSeed = None,
    skip: Annotated[
        list[str] | None,
        option(
            "Patterns of layers that stay in floating point, separated by commas.",
            QUANTIZE,
            "--skip",
        ),
    ] = None,
    export: ExportTo = "calibit",
    engines: Engines = None,
    threads: given.Threads = None,
    trust_remote_code: given.TrustRemoteCode = False,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
    traceback: given.Traceback = False,
) -> Code:
    """Write a quantized checkpoint; it loads again bit for bit.

    Examples:

    - `calibit quantize HuggingFaceTB/SmolLM2-135M nf4-dq -o smollm2-nf4`

    - `calibit quantize ./model gptq-int4-g128 --calib texts.txt -o model-gptq`

    - `calibit quantize ./model gptq-nf4 --calib self --calib_seed 1 -o model-gptq-nf4`

    - `calibit quantize ./model gptq-int4-g128 --export gptq --for vllm -o model-gptq`
    """
    from calibit.quantization import quantize_checkpoint
    from calibit.quantization.self_written import is_source
    from calibit.reporting.progress import JobProgress, Stage

    prepare(threads, model, quiet=quiet)
    stages = [
        Stage("write", "the whole float model writes its calibration text"),
        Stage("quantize", "quantizing"),
    ][not is_source(calib) :]
    bar = JobProgress(stages, {"write": 1.0, "quantize": 1.0}, stream=progress_to(quiet))
    bar.enter(0)

    def begin(estimate: Estimate) -> None:
        if len(stages) > 1:
            bar.enter(1)
        if not quiet:
            announce(estimate)

    try:
        report = quantize_checkpoint(
            model,
            scheme,
            out,
            calibration=calib,
            calibration_tokens=calib_tokens,
            calibration_seed=calib_seed,
            skip=given.words(skip),
            layout=export,
            required=given.words(engines),
            progress=lambda done, total, _: bar.advance(done, total),
            estimated=begin,
            trust_remote_code=trust_remote_code,
        )
    finally:
        bar.close()
    lines = [str(report), *(f"Note: {note}." for note in report.notes)]
    finish(report.to_dict(), out, what="Checkpoint", as_json=as_json, show=lambda: "\n".join(lines))
    return Code.DONE


def evaluate(
    model: given.Model,
    tasks: given.Tasks = list(jobs.TASKS),  # noqa: B006
    num_fewshot: given.NumFewshot = 0,
    apply_chat_template: given.ChatTemplate = False,
    include_path: given.IncludePath = None,
    limit: given.Limit = "all",
    text: given.Text = jobs.TEXT,
    text_tokens: given.TextTokens = jobs.TEXT_TOKENS,
    text_protocol: given.TextProtocol = "gptq",
    text_window: given.TextWindow = jobs.TEXT_WINDOW,
    workload: given.Workload = None,
    reference: Annotated[
        Path | None,
        option(
            "Run of the baseline: its workload and parallel text are put through this model, in "
            "place of --workload and --parallel_text.",
            MEASURE,
            "--reference",
            show_default="none",
        ),
    ] = None,
    max_new_tokens: given.NewTokens = jobs.NEW_TOKENS,
    parallel_text: given.ParallelText = None,
    parallel_segments: given.Segments = jobs.SEGMENTS,
    word_frequency: given.WordFrequency = None,
    bos: given.Bos = "tokenizer",
    seed: given.Seed = 0,
    rule: given.Rule = "sum",
    level: given.Level = 0.95,
    resamples: given.Resamples = 9999,
    recalibrated: Annotated[
        bool,
        option(
            "Put the scores through the model's own calibration.json (calibit recalibrate); it is "
            "recorded in the run.",
            JUDGE,
            "--recalibrated",
        ),
    ] = False,
    speed: given.Speed = jobs.SPEEDS[0],
    device: given.Device = "cpu",
    dtype: given.Dtype = "auto",
    threads: given.Threads = None,
    batch_size: given.BatchSize = None,
    trust_remote_code: given.TrustRemoteCode = False,
    out: Annotated[
        Path | None,
        option(
            "Folder of the run: the same run in it is continued, anything else is refused.",
            OUTPUT,
            "--output_path",
            "-o",
            show_default="run-MODEL",
        ),
    ] = None,
    log_samples: given.LogSamples = True,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
    traceback: given.Traceback = False,
) -> Code:
    """Evaluate one model, quantized or not: a run on disk, resumable, to be compared with others.

    Examples:

    - `calibit eval HuggingFaceTB/SmolLM2-135M --tasks probe -o runs/base`

    - `calibit eval ./smollm2-nf4 --tasks boolq=boolq.jsonl --text wiki.txt -o runs/nf4`

    - `calibit eval ./smollm2 --workload prompts.jsonl --parallel_text ntrex -o runs/base`

    - `calibit eval ./smollm2-nf4 --reference runs/base -o runs/nf4`
    """
    from calibit.auditing.single import evaluate_model

    job = jobs.Job(
        model=jobs.local(model),
        tasks=given.task_words(tasks, include_path),
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        include_path=None if include_path is None else jobs.local(include_path),
        text=jobs.local(text),
        limit=given.limit_of(limit),
        text_protocol=text_protocol,
        text_window=text_window,
        text_tokens=text_tokens,
        workload=None if workload is None else jobs.local(workload),
        max_new_tokens=max_new_tokens,
        parallel_text=None if parallel_text is None else jobs.local(parallel_text),
        parallel_segments=parallel_segments,
        word_frequency=None if word_frequency is None else jobs.local(word_frequency),
        dtype=dtype,
        device=device,
        speed=speed,
        batch_tokens=given.batch_tokens_of(batch_size),
        bos=bos,
        rule=rule,
        level=level,
        resamples=resamples,
        seed=seed,
        trust_remote_code=trust_remote_code,
        store_docs=log_samples,
    )
    prepare(threads, job.model, quiet=quiet)
    found = evaluate_model(
        job,
        out,
        recalibrated=recalibrated,
        progress=progress_to(quiet),
        reference=reference,
        command=command_line(),
    )
    finish(found.to_dict(), found.path, what="Run", as_json=as_json, show=found.table)
    return Code.DONE


def compare(
    reference: Annotated[Path, typer.Argument(help=f"The reference's {given.RUN}.", metavar="A")],
    candidate: Annotated[Path, typer.Argument(help=f"The candidate's {given.RUN}.", metavar="B")],
    rule: given.Rule = "sum",
    level: given.Level = 0.95,
    resamples: given.Resamples = 9999,
    seed: given.Seed = 0,
    policy: given.PolicyFile = None,
    allow_partial: Annotated[
        bool,
        option("Compare the common items where some are missing.", JUDGE, "--allow_partial"),
    ] = False,
    clusters: Annotated[
        str | None,
        option(
            "Slice key or item field whose values name clusters, such as passages: they are "
            "resampled whole.",
            JUDGE,
            "--clusters",
            show_default="the field cluster, where items have it",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            "New folder for comparison.json and report.html.",
            OUTPUT,
            "--output_path",
            "-o",
            show_default="nothing is written",
        ),
    ] = None,
    as_json: given.Json = False,
    traceback: given.Traceback = False,
) -> Code:
    """Compare two runs of the same items, item by item, and judge.

    Examples:

    - `calibit compare runs/base runs/nf4`

    - `calibit compare audit-model/runs/baseline audit-model/runs/nf4 -o compared`

    - `calibit compare lm-eval-output/base lm-eval-output/nf4`
    """
    from calibit.auditing.single import compare_runs

    found = compare_runs(
        reference,
        candidate,
        out,
        rule=rule,
        level=level,
        resamples=resamples,
        seed=seed,
        policy=policy,
        allow_partial=allow_partial,
        clusters=clusters,
        command=command_line(),
    )
    place = None if out is None else out / "report.html"
    finish(found.to_dict(), place, what="Report", as_json=as_json, show=found.table)
    return Code.DONE


def gate(
    audit_folder: Annotated[Path, typer.Argument(help="Folder of an audit.", metavar="AUDIT")],
    scheme: Annotated[
        str | None,
        option(
            "Candidate to judge.", JUDGE, "--scheme", show_default="all; the worst verdict counts"
        ),
    ] = None,
    policy: given.PolicyFile = None,
    as_json: given.Json = False,
    traceback: given.Traceback = False,
) -> Code:
    """Answer with the exit code: 0 ship, 1 hold, 2 inconclusive; 3 where a candidate failed.

    Without --policy the verdicts of the audit count; with it the recorded runs are judged again.

    Examples:

    - `calibit gate audit-model`

    - `calibit gate audit-model --scheme nf4 --policy strict.yaml`
    """
    from calibit.auditing import Audit
    from calibit.auditing.judging import judge_audit

    loaded = Audit.load(audit_folder)
    found = judge_audit(loaded, scheme=scheme, policy=policy)
    report = loaded.path / "report.html"
    finish(found.to_dict(), report, what="Report", as_json=as_json, show=found.table)
    return _incomplete(found.failed) if found.failed else VERDICT_CODES[found.worst]


def recalibrate(
    source: Annotated[
        Path,
        typer.Argument(help="Run of the checkpoint, or an audit that holds it.", metavar="RUN"),
    ],
    checkpoint: Annotated[
        Path, option("Folder of the model; calibration.json goes there.", OUTPUT, "--checkpoint")
    ],
    method: Annotated[
        str,
        option(
            "temperature; label_free (towards the original, without labels); slice_temperature "
            "(one per slice); platt, isotonic (the top answer's confidence only).",
            JUDGE,
            "--method",
        ),
    ] = "temperature",
    reference: Annotated[
        Path | None,
        option(
            "Run of the original, for label_free.",
            JUDGE,
            "--reference",
            show_default="the baseline of an audit",
        ),
    ] = None,
    slice_key: Annotated[
        str | None,
        option("Slice key, for slice_temperature: domain, lang.", JUDGE, "--slice"),
    ] = None,
    rule: given.Rule = "sum",
    level: given.Level = 0.95,
    resamples: given.Resamples = 9999,
    seed: given.Seed = 0,
    overwrite: Annotated[
        bool, option("Replace a map that is there.", OUTPUT, "--overwrite")
    ] = False,
    trust_remote_code: given.TrustRemoteCode = False,
    as_json: given.Json = False,
    traceback: given.Traceback = False,
) -> Code:
    """Fit a map of a model's confidence on a recorded run, and put it beside the model.

    The gain is measured on folds that the map was not fitted on; where it is not shown, the
    identity is written, with the reason. Fit on items that nothing else is judged on. `calibit eval
    DIR --recalibrated` then applies the map, to this model only.

    Examples:

    - `calibit recalibrate runs/nf4 --checkpoint smollm2-nf4`

    - `calibit recalibrate audit-model --checkpoint model-nf4 --method label_free`

    - `calibit recalibrate runs/nf4 --checkpoint model-nf4 --method slice_temperature --slice lang`
    """
    from calibit.auditing.recalibrating import recalibrate as fit

    prepare(None)
    found = fit(
        source,
        checkpoint,
        method=method,
        reference=reference,
        slice_key=slice_key,
        rule=rule,
        level=level,
        resamples=resamples,
        seed=seed,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    finish(found.to_dict(), found.path, what="Map", as_json=as_json, show=found.table)
    return Code.DONE


def doctor(
    selftest: Annotated[
        bool,
        typer.Option(
            "--selftest",
            help="Also try the whole instrument on data with a known answer and a tiny random "
            "model: seconds, no network; exit code 3 where a line fails.",
        ),
    ] = False,
    as_json: given.Json = False,
    traceback: given.Traceback = False,
) -> Code:
    """Say what was built, which kernels run here, what is missing and how to get it.

    Examples:

    - `calibit doctor`

    - `calibit doctor --selftest`

    - `calibit doctor --json`
    """
    from calibit.doctor import diagnose, render

    facts = diagnose()
    folder = Path(facts["calibit"]["folder"])
    if not selftest:
        finish(facts, folder, what="Installed", as_json=as_json, show=lambda: render(facts))
        return Code.DONE
    from calibit import selftest as trial

    prepare(None)
    checks = trial.selftest()
    facts["selftest"] = [asdict(check) for check in checks]
    finish(
        facts,
        folder,
        what="Installed",
        as_json=as_json,
        show=lambda: trial.render(checks, above=render(facts)),
    )
    return Code.DONE if all(check.passed for check in checks) else Code.FAILED


COMMANDS: dict[str, Callable[..., Code]] = {
    "audit": audit,
    "attribute": attribute,
    "quantize": quantize,
    "finetune": finetune,
    "convert": convert,
    "eval": evaluate,
    "compare": compare,
    "power": power,
    "gate": gate,
    "recalibrate": recalibrate,
    "doctor": doctor,
}
"""Commands by name, in the order of the help."""


def _schemes(
    schemes: Sequence[str] | None, candidates: Sequence[str] | None, ablation: str | None = None
) -> tuple[str, ...]:
    from calibit.auditing.ablating import with_ablation

    named = given.words(schemes)
    if not named and not ablation:
        return () if given.words(candidates) else jobs.SCHEMES
    found = tuple(jobs.local(one) if one.endswith(".json") else one for one in named)
    return with_ablation(found, ablation)


def _incomplete(failed: Iterable[str]) -> Code:
    """No verdict on the whole where a candidate could not be measured."""
    print(f"calibit: not measured: {', '.join(failed)}", file=sys.stderr)
    return Code.FAILED
