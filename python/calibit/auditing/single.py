"""The parts of an audit on their own: evaluate one model, compare two runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from calibit.auditing import checking, models
from calibit.auditing import job as jobs
from calibit.auditing.inputs import read_inputs
from calibit.auditing.job import Job
from calibit.auditing.recalibrating import load_map, top_answer_measures
from calibit.reporting.progress import JobProgress, Stage
from calibit.runs import RECALIBRATION

if TYPE_CHECKING:
    from rich.console import RenderableType

    from calibit.measures.estimate import Estimate
    from calibit.runs import Run


@dataclass(frozen=True)
class Evaluated:
    """A finished run with its measures.

    Attributes:
        run: the run.
        path: its folder.
        metrics: metric id -> Estimate of the items; `ppl` of each text.
        notes: what the readers of the tasks want said.
    """

    run: Run
    path: Path
    metrics: Mapping[str, Estimate]
    notes: tuple[str, ...] = ()

    def table(self) -> RenderableType:
        """The measures for a terminal."""
        from calibit.reporting.terminal import run_table

        return run_table(self.run.meta, self.metrics, self.notes)

    def to_dict(self) -> dict[str, Any]:
        """`run.json`, the measures and the notes."""
        metrics = {name: one.to_dict() for name, one in self.metrics.items()}
        return {"run": dict(self.run.meta), "metrics": metrics, "notes": list(self.notes)}


@dataclass(frozen=True)
class Compared:
    """A comparison with its verdict, laid out like an audit of one candidate.

    Attributes:
        content: comparison and verdict as JSON types.
        document: the same as a report shows it.
    """

    content: Mapping[str, Any]
    document: Mapping[str, Any]

    def table(self) -> RenderableType:
        """The results and the verdict for a terminal."""
        from calibit.reporting.terminal import audit_table

        return audit_table(self.document)

    def to_dict(self) -> dict[str, Any]:
        """Comparison and verdict."""
        return dict(self.content)


def evaluate_model(
    job: Job,
    out: Path | None,
    *,
    recalibrated: bool = False,
    progress: TextIO | None,
    reference: Path | None = None,
    command: str | None = None,
) -> Evaluated:
    """Evaluate the model of a job.

    Args:
        job: model, tasks, text and settings; schemes and candidates are not used.
        out: folder of the run; None takes `run-<model>`.
        recalibrated: put the scores through the map beside the model.
        progress: stream that shows how far it is; None is silent.
        reference: the run of the model to compare with, whose workload and parallel texts are put
            through this one.
        command: recorded; the command line of this process where omitted.

    Raises:
        ValueError: a reference beside a workload or parallel text of the job.
    """
    from calibit.evaluation import evaluate
    from calibit.evaluation.forcing import Reference

    checking.check_settings(job)
    inputs = read_inputs(job)
    checking.check_texts(job, inputs.text)
    if reference is not None:
        Reference(reference)  # what is wrong with it shows before a model is read
        if inputs.continued():
            raise ValueError(
                "[eval] expected --reference or --workload and --parallel_text, got both: the "
                "reference's own are taken"
            )
    applied = load_map(job.model, rule=job.rule) if recalibrated else None
    folder = out if out is not None else Path(f"run-{models.model_name(job.model)}")
    bar = JobProgress(
        [Stage("load", "loading"), Stage("evaluate", "scoring items and text")],
        {"load": 0.1, "evaluate": 1.0},
        stream=progress,
    )
    try:
        bar.enter(0)
        loaded = models.open_model(
            job.model, device=job.device, dtype=job.dtype, trust_remote_code=job.trust_remote_code
        )
        bar.leave()
        bar.enter(1)
        run = evaluate(
            loaded.model,
            loaded.tokenizer,
            inputs.items,
            text=inputs.text,
            reference=reference,
            **inputs.continued(),
            out=folder,
            scheme=str(loaded.record["scheme"] or "none"),
            seed=job.seed,
            bos=job.bos,
            unconditional=job.rule == "pmi",
            apply_chat_template=job.apply_chat_template,
            store_docs=job.store_docs,
            recalibration=applied,
            speed=jobs.speed_option(job),
            command=command,
            progress=lambda now: bar.advance(now.done, now.total),
            **jobs.batch_options(job),
        )
    finally:
        bar.close()
    return Evaluated(run, folder, _measures(run, job), (*inputs.notes, *_about_map(run, job)))


def _about_map(run: Run, job: Job) -> list[str]:
    """What to say about a map that was applied, or lies there unused."""
    from calibit.recalibration import FILE, items_hash

    applied = run.meta.get(RECALIBRATION)
    if applied is None:
        unused = (Path(job.model) / FILE).is_file()
        return [f"{FILE} beside the model was not applied; --recalibrated does."] if unused else []
    what = (
        f"Recalibrated by the model's {FILE}: {applied['method']}, fitted on {applied['n']} items"
    )
    if applied["items_hash"] == items_hash(run.scores(job.rule)):
        return [f"{what}, these very items: the measures are in sample and flatter the map."]
    return [f"{what}."]


def _measures(run: Run, job: Job) -> dict[str, Estimate]:
    from calibit.comparison.texts import text_perplexity
    from calibit.measures import Resampling, summarize

    resampling = Resampling(level=job.level, resamples=job.resamples, seed=job.seed)
    scores = run.scores(job.rule)
    found = summarize(scores, resampling=resampling) if scores.n else {}
    texts = {name: text_perplexity(run, name) for name in run.text_names()}
    found |= top_answer_measures(scores, run.meta.get(RECALIBRATION))
    return {
        **found,
        **_continued(run, job),
        **_written(run, job),
        **{f"ppl:{name}": one for name, one in texts.items()},
    }


def _continued(run: Run, job: Job) -> dict[str, Estimate]:
    """Share of greedy answers and perplexity per answer of tasks with a single choice (LAMBADA)."""
    from calibit.measures import ppl
    from calibit.measures.estimate import Estimate
    from calibit.measures.intervals import clopper_pearson

    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for line in run.continuations():
        if line["ll"] is not None:
            by_task.setdefault(line["task"], []).append(line)
    found: dict[str, Estimate] = {}
    for task, lines in by_task.items():
        n, right = len(lines), sum(line["is_greedy"][0] for line in lines)
        accuracy = Estimate("greedy", right / n, n=n)
        found[f"greedy:{task}"] = accuracy.with_interval(clopper_pearson(right, n, level=job.level))
        found[f"ppl:{task}, per answer"] = ppl([-line["ll"][0] for line in lines])
    return found


def _written(run: Run, job: Job) -> dict[str, Estimate]:
    """Share of right answers in free text, and perplexity of each language of parallel texts."""
    from calibit.measures import Resampling, acc, ppl
    from calibit.runs import WORKLOAD

    resampling = Resampling(level=job.level, resamples=job.resamples, seed=job.seed)
    right: dict[str, list[bool]] = {}
    for line in run.generated():
        right.setdefault(line["task"], []).append(line["correct"])
    found = {f"right:{task}": acc(own, resampling=resampling) for task, own in right.items()}
    forced = run.forced()
    if forced is None:
        return found
    groups: dict[str, list[int]] = {}
    for number, line in enumerate(forced.sequences):
        if line["source"] != WORKLOAD:
            groups.setdefault(f"ppl:{line['source']}, {line['group']}", []).append(number)
    owner, loss = forced.measures["sequence"], -forced.measures["log_true"]
    return {**found, **{name: ppl(loss[np.isin(owner, own)]) for name, own in groups.items()}}


def compare_runs(
    reference: Path,
    candidate: Path,
    out: Path | None,
    *,
    rule: str,
    level: float,
    resamples: int,
    seed: int,
    policy: Path | None,
    allow_partial: bool,
    clusters: str | None,
    command: str,
) -> Compared:
    """Compare two recorded runs, judge, and write comparison.json and report.html where asked to.

    Args:
        reference, candidate: folders of the runs, or outputs of lm-evaluation-harness.
        out: folder to write to, new or empty; None writes nothing.
        rule, level, resamples, seed, allow_partial, clusters: as in `calibit.compare`.
        policy: YAML file with margins; the default policy where omitted.
        command: recorded in the report.

    Raises:
        ValueError: runs that do not pair, or a folder that holds something.
    """
    from calibit.auditing.assembly import policy_of
    from calibit.comparison import compare
    from calibit.comparison.pairing import as_run
    from calibit.reporting.document import of_comparison
    from calibit.reporting.html import write_report

    chosen = policy_of(policy)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"[compare] expected a new or empty folder, got {out}; nothing is overwritten: choose "
            "another -o"
        )
    runs = [as_run(reference), as_run(candidate)]
    comparison = compare(
        *runs,
        rule=rule,
        level=level,
        resamples=resamples,
        seed=seed,
        allow_partial=allow_partial,
        clusters=clusters,
    )
    document = of_comparison(
        comparison, policy=chosen, metas=(runs[0].meta, runs[1].meta), command=command
    )
    content = {**comparison.to_dict(), "verdict": document["candidates"][0]["verdict"]}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        name = document["candidates"][0]["scheme"]
        write_report(document, out / "report.html", points={name: comparison.points})
        jobs.write_json(out / "comparison.json", content)
    return Compared(content, document)
