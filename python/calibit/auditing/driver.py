"""audit(): quantize or load, evaluate, compare, judge, report; one model in memory at a time, and
resumable throughout."""

from __future__ import annotations

import gc
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from calibit.auditing import (
    ablating,
    assembly,
    calibrating,
    checking,
    controls,
    draws,
    models,
    planning,
)
from calibit.auditing import job as jobs
from calibit.auditing.inputs import Inputs, read_inputs
from calibit.auditing.job import Job
from calibit.auditing.models import Entry, Loaded
from calibit.auditing.result import AUDIT_FILE, REPORT_FILE, Audit
from calibit.reporting.progress import JobProgress, Stage

if TYPE_CHECKING:
    from calibit.comparison import Comparison
    from calibit.evaluation import Progress
    from calibit.runs import Run

QUANTIZATION_FILE = "quantization.json"

STAGE_WEIGHTS = {
    "load baseline": 0.1,
    "load nearest": 0.2,
    "load gptq": 1.5,
    "load checkpoint": 0.1,
    "evaluate baseline": 1.0,
    "evaluate nearest": 1.3,
    "evaluate gptq": 1.3,
    "evaluate checkpoint": 1.3,
    "compare": 0.1,
    draws.KIND: draws.WEIGHT,
}
"""Durations relative to evaluating the baseline, until a stage of the kind has been timed."""

WRITING_WEIGHT = 1.0
"""The same of a baseline that also writes the calibration text."""


@dataclass
class _State:
    """An audit under way.

    Attributes:
        job, folder, entries: what is done, where, with which models.
        progress: shows how far it is.
        inputs: items, prompts and texts, loaded once.
        command: recorded in every run.
        runs: finished runs by entry name.
        controls: further runs that the rigor asks for.
        records: how each entry's weights came about.
        errors: why an entry could not be measured.
        texts: what the baseline wrote to calibrate on, by the seed of the draw.
        draws: further builds of the schemes that calibrate, by entry name.
    """

    job: Job
    folder: Path
    entries: Sequence[Entry]
    progress: JobProgress
    inputs: Inputs
    command: str
    runs: dict[str, Run] = field(default_factory=dict)
    controls: controls.ControlRuns = field(default_factory=controls.ControlRuns)
    records: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    texts: Mapping[int | None, Any] = field(default_factory=dict)
    draws: Mapping[str, draws.Built] = field(default_factory=dict)


def audit(
    model: str | Path,
    *,
    schemes: str | Sequence[str] | None = None,
    ablation: str | None = None,
    candidates: str | Path | Sequence[str | Path] = (),
    tasks: str | Sequence[str] = jobs.TASKS,
    text: str | Path | None = jobs.TEXT,
    out: str | Path | None = None,
    limit: int | None = jobs.QUICK_LIMIT,
    workload: str | Path | None = None,
    max_new_tokens: int = jobs.NEW_TOKENS,
    parallel_text: str | Path | None = None,
    parallel_segments: int = jobs.SEGMENTS,
    word_frequency: str | Path | None = None,
    rigor: str = jobs.RIGOR[0],
    policy: Mapping[str, Any] | str | Path | None = None,
    calibration: str | Path = jobs.TEXT,
    calibration_tokens: int | None = None,
    calibration_seed: int | None = None,
    calibration_draws: int | None = None,
    speed: str = jobs.SPEEDS[1],
    device: str = "cpu",
    dtype: str = "auto",
    seed: int = 0,
    progress: TextIO | None = None,
) -> Audit:
    """Are quantized models safe to ship? Measure them against the original, and judge.

    Args:
        model: folder or hub name of the original; its weights are loaded afresh for every scheme.
        schemes: scheme strings or plan files; where neither schemes nor candidates are given, `nf4`
            and `gptq-int4-g128`.
        ablation: a group such as `g64`: also uniform int4 and NF4 of that group with equal scales,
            each rounded to nearest and by GPTQ, and what the grid and the rounding did.
        candidates: folders or hub names of checkpoints made elsewhere.
        tasks: task names as for `calibit.tasks.load`.
        text: `pydoc`, a text file, or None for no perplexity.
        out: output folder; default `audit-<model>` here. The same audit in it is continued, another
            is refused.
        limit: items per task; None takes all.
        workload: file of your prompts (`calibit.tasks.read_prompts`): the baseline's greedy
            continuations are put through every model, token by token.
        max_new_tokens: longest continuation.
        parallel_text: folder with the same segments in several languages
            (`calibit.tasks.read_parallel`).
        parallel_segments: segments of each language.
        word_frequency: also slice items by how common their words are, counted in this text (a
            file or `pydoc`), or in the items themselves (`own`).
        rigor: how many controls run; `quick` is none beyond the paired intervals.
        policy: margins of the verdict, a mapping or a YAML file; by default those of
            `calibit.verdict.Policy`.
        calibration: text that GPTQ calibrates on: `pydoc`, a file, or `self`: what the baseline
            writes, kept in the folder as `calibration.jsonl`.
        calibration_tokens: how much of it; None takes the default of `quantize_model`.
        calibration_seed: draws its segments at random; None takes them at equal distances.
        calibration_draws: builds every GPTQ scheme so often, three times or more, with seeds from
            `calibration_seed` (0) on, evaluates each build, and splits the change into effect,
            draw and item; the first build is the candidate.
        speed: how long tokens per second are measured: `none`, `quick` or `full`.
        device, dtype: where and in what the models run; `auto` keeps the stored dtype.
        seed: of samples and intervals.
        progress: stream that shows how far the audit is, for example `sys.stderr`; None is silent.

    Returns:
        The finished audit; its folder holds `audit.json`, `report.html` and `runs/`. A candidate
        that could not be measured is in it with its error.

    Raises:
        ValueError: unknown scheme or task, nothing to compare, a folder that holds something else.
        FileNotFoundError: a model, task, text or policy file that does not exist.
    """
    if schemes is None:
        schemes = () if candidates or ablation else jobs.SCHEMES
    named = ablating.with_ablation([str(one) for one in jobs.several(schemes)], ablation)
    job = Job(
        model=jobs.local(model),
        schemes=tuple(jobs.local(one) if one.endswith(".json") else one for one in named),
        candidates=tuple(jobs.local(one) for one in jobs.several(candidates)),
        tasks=jobs.several(tasks),
        text=jobs.NO_TEXT if text is None else jobs.local(text),
        limit=limit,
        workload=None if workload is None else jobs.local(workload),
        max_new_tokens=max_new_tokens,
        parallel_text=None if parallel_text is None else jobs.local(parallel_text),
        parallel_segments=parallel_segments,
        word_frequency=None if word_frequency is None else jobs.local(word_frequency),
        rigor=rigor,
        speed=speed,
        policy=assembly.policy_dict(policy),
        calibration=jobs.local(calibration),
        calibration_tokens=calibration_tokens,
        calibration_seed=calibration_seed,
        calibration_draws=calibration_draws,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    return run_job(job, out, progress=progress)


def run_job(
    job: Job, out: str | Path | None, *, progress: TextIO | None, command: str | None = None
) -> Audit:
    """Carry out a job in its folder, or return what is finished there.

    Args:
        job: what to measure.
        out: output folder; None takes `audit-<model>`.
        progress: stream that shows how far it is; None is silent.
        command: recorded; the command line of this process where omitted.
    """
    checking.check_settings(job)
    entries = models.entries(job)
    draws.check(job, entries)
    folder = Path(out) if out is not None else Path(f"audit-{models.model_name(job.model)}")
    inputs = read_inputs(job)
    if not (folder / AUDIT_FILE).is_file():
        notes = checking.check_texts(job, inputs.text, entries, inputs.items)
        inputs = replace(inputs, notes=[*inputs.notes, *notes])
    with jobs.claim(folder, job):
        if (folder / AUDIT_FILE).is_file():
            finished = Audit.load(folder)
            if not finished.failed:
                return finished
        if progress is not None:
            for said in (draws.cost(job, entries), planning.sentence(job, inputs, len(entries))):
                if said is not None:
                    print(said, file=progress, flush=True)
        bar = JobProgress(_stages(job, entries), _weights(job, entries), stream=progress)
        state = _State(job, folder, entries, bar, inputs, command or shlex.join(sys.argv))
        try:
            _measure_all(state)
            return _finish(state)
        finally:
            state.progress.close()


_STEPS = 3  # stages of each entry: load, evaluate, controls


def _stages(job: Job, entries: Sequence[Entry]) -> list[Stage]:
    writes = calibrating.is_written(job, entries)
    stages = [
        Stage(f"{step} {entry.kind}", f"{entry.name}: {words}")
        for entry in entries
        for step, words in (
            ("load", _loading(entry, writes=writes)),
            ("evaluate", "scoring items and text"),
            (f"{job.rigor} controls of", "control runs"),
        )
    ]
    stages.append(Stage("eight-bit control", "8-bit build: control run"))
    stages += draws.stages(job, entries)
    return stages + [
        Stage("compare", f"{entry.name}: comparing with the baseline") for entry in entries[1:]
    ]


def _weights(job: Job, entries: Sequence[Entry]) -> dict[str, float]:
    """Durations of all kinds of stages, relative to evaluating the baseline."""
    weights = dict(STAGE_WEIGHTS)
    if calibrating.is_written(job, entries):
        weights["load baseline"] = WRITING_WEIGHT
    for entry in entries:
        runs = controls.runs_of(job, entry)
        weights[f"{job.rigor} controls of {entry.kind}"] = runs
    return {**weights, "eight-bit control": controls.runs_of_eight_bit(job, entries)}


def _loading(entry: Entry, *, writes: bool) -> str:
    if entry.is_baseline and writes:
        return "loading, writing the calibration text"
    return "quantizing" if entry.scheme is not None else "loading"


def _measure_all(state: _State) -> None:
    for index, entry in enumerate(state.entries):
        try:
            _measure(state, entry, first_stage=_STEPS * index)
        except Exception as error:
            if entry.is_baseline:
                raise
            state.errors[entry.name] = f"{error}" or type(error).__name__
        gc.collect()


def _measure(state: _State, entry: Entry, *, first_stage: int) -> None:
    """Evaluate one entry and its controls, or read its finished runs; its model is gone when this
    returns."""
    folder = state.folder / jobs.RUNS / entry.folder
    model = cache(lambda: _load(state, entry))
    done = _finished(folder)
    with _stage(state, first_stage, learn=done is None):
        if done is None:
            model()
        if entry.is_baseline:
            _write_texts(state, model)
    with _stage(state, first_stage + 1, learn=done is None):
        if done is None:
            done = _evaluate_entry(state, entry, model, folder)
        state.runs[entry.name], state.records[entry.name] = done
    with _stage(state, first_stage + 2, learn=False):
        controls.of_entry(
            state.job,
            entry,
            model,
            state.inputs.choices,
            partial(_control, state),
            state.controls,
            calibration=next(iter(state.texts.values()), state.job.calibration),
        )


@contextmanager
def _stage(state: _State, index: int, *, learn: bool) -> Iterator[None]:
    state.progress.enter(index)
    yield
    state.progress.leave(learn=learn)


def _write_texts(state: _State, model: Callable[[], Loaded]) -> None:
    """Have the baseline write what GPTQ calibrates on, where the job asks for that."""
    job, inputs = state.job, state.inputs
    if not calibrating.is_written(job, state.entries):
        return
    state.texts = calibrating.written(job, state.folder, model, state.progress.advance)
    contexts = [item.context for item in inputs.choices]
    notes = calibrating.foreign(job, next(iter(state.texts.values())), contexts)
    state.inputs = replace(inputs, notes=[*inputs.notes, *notes])


def _load(state: _State, entry: Entry, *, seed: int | None = None) -> Loaded:
    """The model of an entry; `seed` of its calibration draw, the first where omitted."""
    seed = next(iter(state.job.seeds), None) if seed is None else seed
    loaded = models.load(
        entry,
        state.job,
        lambda n, total, _: state.progress.advance(n, total),
        calibration=state.texts.get(seed),
        seed=seed,
    )
    if entry.source is not None:
        loaded = models.settle_tokenizer(loaded, state.job, state.inputs.strings())
    return loaded


def _evaluate_entry(
    state: _State, entry: Entry, model: Callable[[], Loaded], folder: Path
) -> tuple[Run, Mapping[str, Any]]:
    """The run that is compared, and the record of its weights."""
    run = _evaluate(
        state,
        model(),
        state.inputs.items,
        folder,
        text=state.inputs.text,
        **_continued(state, entry),
        scheme=entry.scheme or "none",
        speed=jobs.speed_option(state.job),
    )
    jobs.write_json(folder / QUANTIZATION_FILE, json.loads(json.dumps(model().record)))
    return run, model().record


def _control(
    state: _State, model: Callable[[], Loaded], items: Sequence[Any], name: str, **changes: Any
) -> Run:
    """One control run, made or read."""
    from calibit.runs import MANIFEST, Run

    folder = state.folder / controls.FOLDER / name
    if (folder / MANIFEST).is_file():
        return Run.load(folder)
    return _evaluate(state, model(), items, folder, **changes)


def _evaluate(
    state: _State, loaded: Loaded, items: Sequence[Any], folder: Path, **changes: Any
) -> Run:
    from calibit.evaluation import evaluate

    job = state.job
    settings: dict[str, Any] = {
        "out": folder,
        "seed": job.seed,
        "bos": job.bos,
        "store_docs": job.store_docs,
        "command": state.command,
        "progress": _tokens_to(state.progress),
        "unconditional": job.rule == "pmi",
        "apply_chat_template": job.apply_chat_template,
        **jobs.batch_options(job),
        **changes,
    }
    return evaluate(loaded.model, loaded.tokenizer, items, **settings)


def _continued(state: _State, entry: Entry) -> dict[str, Any]:
    """Workload and parallel texts for the baseline; for a candidate the baseline's run of them."""
    own = state.inputs.continued()
    if entry.is_baseline or not own:
        return own
    return {"reference": state.runs[models.BASELINE]}


def _tokens_to(progress: JobProgress) -> Callable[[Progress], None]:
    return lambda now: progress.advance(now.done, now.total)


def _finished(folder: Path) -> tuple[Run, Mapping[str, Any]] | None:
    """A run that ended, with the record of its weights; None where either is missing."""
    from calibit.runs import MANIFEST, Run

    if not (folder / MANIFEST).is_file() or not (folder / QUANTIZATION_FILE).is_file():
        return None
    record = json.loads((folder / QUANTIZATION_FILE).read_text(encoding="utf-8"))
    return Run.load(folder), record


def _build_draws(state: _State) -> list[str]:
    """Builds with other calibration draws, each finished one read where it is there; what could not
    be done."""
    first = {
        entry.name: (
            state.runs[entry.name],
            state.records[entry.name],
            f"{jobs.RUNS}/{entry.folder}",
        )
        for entry in state.entries
        if entry.name in state.runs
    }

    def build(entry: Entry, seed: int, stage: int) -> tuple[Run, Mapping[str, Any], str]:
        name = f"{controls.FOLDER}/{draws.folder_name(entry, seed)}"
        done = _finished(state.folder / name)
        with _stage(state, _STEPS * len(state.entries) + 1 + stage, learn=done is None):
            if done is None:
                done = _evaluate_draw(state, entry, seed, state.folder / name)
        return (*done, name)

    job, base = state.job, state.runs[models.BASELINE]
    state.draws, notes = draws.build_all(job, state.entries, first, build, base)
    return notes


def _ablations(state: _State) -> list[dict[str, Any]]:
    """Effects of grid and rounding, where the schemes allow to tell them apart."""

    def runs(name: str) -> Any:
        if name in state.draws:
            return [state.folder / place for place in state.draws[name].runs]
        return state.runs.get(name)

    if not state.inputs.choices:
        return []
    return ablating.compare_all(state.job, state.entries, runs, state.runs[models.BASELINE])


def _evaluate_draw(
    state: _State, entry: Entry, seed: int, folder: Path
) -> tuple[Run, Mapping[str, Any]]:
    loaded = _load(state, entry, seed=seed)
    items, text = state.inputs.choices, state.inputs.text
    run = _evaluate(state, loaded, items, folder, text=text, scheme=entry.scheme or "none")
    jobs.write_json(folder / QUANTIZATION_FILE, json.loads(json.dumps(loaded.record)))
    return run, loaded.record


def _control_by_eight_bit(state: _State) -> None:
    with _stage(state, _STEPS * len(state.entries), learn=False):
        controls.eight_bit(
            state.job,
            state.entries,
            state.inputs.choices,
            partial(_control, state),
            state.controls,
        )


def _compare(state: _State, entry: Entry) -> Comparison:
    from calibit.comparison import compare

    job, base, run = state.job, state.runs[models.BASELINE], state.runs[entry.name]
    comparison = compare(
        base,
        run,
        rule=job.rule,
        level=job.level,
        resamples=job.resamples,
        seed=job.seed,
        extra=controls.extra_runs(state.controls, entry),
    )
    built = next((one.name for one in state.entries if controls.is_eight_bit(one)), None)
    control = state.controls.eight_bit or state.runs.get(built or "")
    if controls.is_eight_bit(entry) or entry.scheme is None:
        control = None
    doubts = models.lineage(entry, job, base.meta, state.records[entry.name])
    return controls.checked(comparison, state.controls, base, run, control, job, doubts)


def _finish(state: _State) -> Audit:
    """Compare, judge, and write audit.json and report.html, in this order of appearance."""
    from calibit.reporting.html import write_report

    comparisons = {}
    _control_by_eight_bit(state)
    notes = _build_draws(state)
    before = _STEPS * len(state.entries) + 1 + len(draws.stages(state.job, state.entries))
    for index, entry in enumerate(state.entries[1:], start=before):
        state.progress.enter(index)
        if entry.name in state.runs:
            try:
                comparisons[entry.name] = _compare(state, entry)
            except ValueError as error:
                state.errors[entry.name] = str(error)
        state.progress.leave()
    content = assembly.assemble(
        state.job,
        state.entries,
        state.runs,
        state.records,
        comparisons,
        state.errors,
        command=state.command,
        notes=[*state.inputs.notes, *notes],
        draws=state.draws,
        ablations=_ablations(state),
    )
    points = {name: comparison.points for name, comparison in comparisons.items()}
    write_report(content, state.folder / REPORT_FILE, points=points)
    jobs.write_json(state.folder / AUDIT_FILE, content)
    return Audit(state.folder, content)
