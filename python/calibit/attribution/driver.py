"""attribute_model(): quantize each layer once, exchange, evaluate, attribute, plan; resumable."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from calibit.attribution import planning
from calibit.attribution.exchange import UNITS, Exchange, check_option
from calibit.attribution.job import (
    LIMIT,
    OBJECTIVES,
    SCHEMA,
    UPGRADES,
    AttributionJob,
    budget_bytes,
)
from calibit.attribution.planning import Levels, Planned, Unit
from calibit.attribution.result import FILE, PLAN_FILE, Attributed
from calibit.auditing import checking, models
from calibit.auditing import job as jobs
from calibit.auditing.inputs import read_inputs
from calibit.auditing.models import Loaded
from calibit.comparison import compare, per_item
from calibit.comparison.pairing import pair
from calibit.measures import Resampling
from calibit.measures.attribution import Attribution
from calibit.measures.estimate import plain
from calibit.measures.fidelity import kl_values
from calibit.measures.folds import fold_of
from calibit.quantization import plans, quantize_model
from calibit.reporting.progress import JobProgress, Stage
from calibit.runs import MANIFEST, Run

if TYPE_CHECKING:
    from calibit.tasks import Item

LEAST_ITEMS = 10
_FINAL = ("original", "all", "plan")
_LAYERS = "layers-"  # folders of the blocks that a solver has finished


def attribute_model(
    model: str | Path,
    scheme: str,
    *,
    upgrades: str | Sequence[str] = UPGRADES,
    budget: str | float | None = None,
    units: str = UNITS[0],
    objective: str = OBJECTIVES[0],
    tasks: str | Sequence[str] = jobs.TASKS,
    limit: int | None = LIMIT,
    calibration: str | Path = jobs.TEXT,
    calibration_tokens: int | None = None,
    calibration_seed: int | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    seed: int = 0,
    resamples: int = 9999,
    progress: TextIO | None = None,
) -> Attributed:
    """Which blocks or layers a scheme's damage comes from, and a plan of schemes under a budget.

    Every unit is quantized alone and restored alone: 2L + 2 evaluations for L units. With a budget
    the units with the largest share per byte are upgraded one after the other, measured again after
    every 8, and the finished plan is evaluated as a whole on items that were set apart. A scheme
    with a solver is solved once for the whole model and its layers exchanged; the finished plan is
    solved afresh.

    Args:
        model: folder or hub name of the original, which must fit into memory with its quantized
            layers.
        scheme: what the whole model is quantized with.
        upgrades: with a budget, larger schemes, smallest first; `keep` is full precision.
        budget: bits per weight of these layers (4.5) or bytes ("90MB"); None plans nothing.
        units: `blocks` or `linears`.
        objective: `kl` (of the answers' distribution), `conf_true` or `nll`.
        tasks, limit: items, as for `calibit.audit`; with a budget one half of them measures and
            plans, the other one judges.
        calibration, calibration_tokens, calibration_seed: as for `calibit.audit`.
        out: output folder; default `attribution-<model>` here. The same job in it is continued.
        device, dtype, seed, resamples: as for `calibit.audit`.
        progress: stream that shows cost and progress; None is silent.

    Raises:
        ValueError: unknown scheme, unit or objective, a budget below the smallest scheme, too few
            items, or a folder that holds something else.
    """
    audit = jobs.Job(
        model=jobs.local(model),
        schemes=(),
        tasks=jobs.several(tasks),
        text=jobs.NO_TEXT,
        limit=limit,
        speed=jobs.SPEEDS[0],
        calibration=jobs.local(calibration),
        calibration_tokens=calibration_tokens,
        calibration_seed=calibration_seed,
        device=device,
        dtype=dtype,
        seed=seed,
        resamples=resamples,
    )
    asked = None if budget is None else str(budget)
    job = AttributionJob(audit, scheme, jobs.several(upgrades), asked, units, objective)
    return run_job(job, out, progress=progress)


def run_job(
    job: AttributionJob,
    out: str | Path | None,
    *,
    progress: TextIO | None,
    command: str | None = None,
) -> Attributed:
    """Carry out a job in its folder, or return what is finished there."""
    _check(job)
    folder = Path(out or f"attribution-{models.model_name(job.audit.model)}")
    items = read_inputs(job.audit).choices
    with jobs.claim(folder, job):
        if (folder / FILE).is_file():
            return Attributed.load(folder)
        state = _State(job, folder, items, progress, command or shlex.join(sys.argv))
        try:
            return _carry_out(state)
        finally:
            state.bar.close()
            if (folder / FILE).is_file() or not (folder / jobs.RUNS).exists():
                for left in folder.glob(f"{_LAYERS}*"):
                    shutil.rmtree(left)


@dataclass
class _State:
    """An attribution under way.

    Attributes:
        job, folder: what is done, and where.
        items: all of them.
        stream: shows cost and progress.
        command: recorded in every run.
        done: evaluations so far.
    """

    job: AttributionJob
    folder: Path
    items: Sequence[Item]
    stream: TextIO | None
    command: str
    done: int = 0
    expected: int = 1
    halves: tuple[Sequence[Item], Sequence[Item]] = field(init=False)

    def __post_init__(self) -> None:
        if self.job.budget is None:
            self.halves = (self.items, ())
        else:
            first, second = (
                [item for item in self.items if fold_of(item.id, 2) == side] for side in (0, 1)
            )
            self.halves = (first, second)
        least = min(len(half) for half in self.halves[: 1 + (self.job.budget is not None)])
        if least < LEAST_ITEMS:
            raise ValueError(
                f"[attribute] expected at least {LEAST_ITEMS} items to measure on and as many to "
                f"judge a plan, got {least}"
            )

    @cached_property
    def bar(self) -> JobProgress:
        """Stages: quantize under each option, attribute, plan, judge."""
        planned = self.job.budget is not None
        stages = [Stage("quantize", f"quantizing: {one}") for one in self.job.options]
        stages.append(Stage("attribute", "each unit alone, each unit restored"))
        stages += [Stage("plan", "planning"), Stage("judge", "judging the plan")] * planned
        weights = {"quantize": 0.1, "attribute": 2.0, "plan": 1.0, "judge": 0.3}
        return JobProgress(stages, weights, stream=self.stream)

    @cached_property
    def loaded(self) -> Loaded:
        """The float model."""
        audit = self.job.audit
        return models.open_model(
            audit.model,
            device=audit.device,
            dtype=audit.dtype,
            trust_remote_code=audit.trust_remote_code,
        )

    @cached_property
    def exchange(self) -> Exchange:
        """Its layers under every option."""
        audit = self.job.audit
        found = Exchange(self.loaded.model, self.job.units)
        for index, option in enumerate(self.job.options):
            self.bar.enter(index)
            found.quantize_(
                option,
                lambda done, total, _: self.bar.advance(done, total),
                self.folder / f"{_LAYERS}{index}",
                calibration=audit.calibration,
                calibration_tokens=audit.calibration_tokens,
                calibration_seed=audit.calibration_seed,
                tokenizer=self.loaded.tokenizer,
            )
            self.bar.leave()
        return found

    @cached_property
    def resampling(self) -> Resampling:
        """Of all intervals, with the clusters of the items that measure."""
        audit = self.job.audit
        draw = Resampling(level=audit.level, resamples=audit.resamples, seed=audit.seed)
        labelled = self.job.objective != "kl"
        return per_item.clustered(draw, self.base, rule=audit.rule, labelled=labelled)

    def run(self, levels: Levels) -> Run:
        """The run of a mixture on the items that measure, made or read."""
        named = {unit: self.job.options[level] for unit, level in sorted(levels.items())}
        text = json.dumps(named)
        name = hashlib.sha256(text.encode()).hexdigest()[:16] if named else "original"
        if not (self.folder / jobs.RUNS / name / MANIFEST).is_file():
            self.exchange.set_(levels)
        run = self.evaluate(self.halves[0], name, scheme=text if named else "none")
        self.done += 1
        self.bar.advance(self.done, self.expected)
        return run

    def evaluate(self, items: Sequence[Item], name: str, *, scheme: str) -> Run:
        """The run of the model as it stands, made or read."""
        from calibit.evaluation import evaluate

        place, audit = self.folder / jobs.RUNS / name, self.job.audit
        if (place / MANIFEST).is_file():
            return Run.load(place)
        return evaluate(
            self.loaded.model,
            self.loaded.tokenizer,
            items,
            out=place,
            scheme=scheme,
            seed=audit.seed,
            bos=audit.bos,
            store_docs=False,
            unconditional=audit.rule == "pmi",
            apply_chat_template=audit.apply_chat_template,
            command=self.command,
            **jobs.batch_options(audit),
        )

    def damage(self, levels: Levels) -> np.ndarray:
        """Damage of each item of a mixture, float64 [N]."""
        base, run, rule = self.base, self.run(levels), self.job.audit.rule
        metric = self.job.objective
        if metric == "kl":
            both = pair(base, run, rule=rule, allow_partial=False)
            keep = both.a.distributions.k > 1
            a, b = both.a.take(keep), both.b.take(keep)
            return kl_values(a.distributions, b.distributions)
        a, b = per_item.labelled_scores(base, [run], rule=rule)
        return per_item.WORSE[metric] * (per_item.values(b, metric) - per_item.values(a, metric))

    @cached_property
    def base(self) -> Run:
        """The original on the items that measure."""
        return self.run({})


def _check(job: AttributionJob) -> None:
    for name, value, known in (
        ("units", job.units, UNITS),
        ("objective", job.objective, OBJECTIVES),
    ):
        if value not in known:
            raise ValueError(
                f"[attribute] expected {name} to be one of {', '.join(known)}, got {value!r}"
            )
    for option in job.options:
        if option != plans.KEEP or option == job.scheme:
            check_option(option)
    if job.budget is not None:
        budget_bytes(job.budget, 8)
    checking.check_settings(job.audit)


def _carry_out(state: _State) -> Attributed:
    """Attribute, plan, judge, and write the files."""
    job, exchange = state.job, state.exchange
    units = exchange.units()
    names = [unit.name for unit in units]
    budget = None if job.budget is None else budget_bytes(job.budget, exchange.weights)
    if budget is not None:
        planning.check(units, budget)
    _say_cost(state, units, budget)
    stage = len(job.options)
    state.bar.enter(stage)
    state.expected = 2 * len(units) + 2
    state.base  # noqa: B018 (the original comes first)
    first = planning.measure(state.damage, dict.fromkeys(names, 0), names, state.resampling)
    state.bar.leave()
    planned, final = None, None
    if budget is not None:
        state.bar.enter(stage + 1)
        state.done, state.expected = 0, max(1, _more(units, budget))
        planned = planning.plan(state.damage, units, first, budget, state.resampling)
        state.bar.leave()
        state.bar.enter(stage + 2)
        final = _judge(state, planned)
        state.bar.leave()
    content = _content(state, units, first, planned, final)
    if planned is not None:
        jobs.write_json(state.folder / PLAN_FILE, content["plan"]["schemes"])
    jobs.write_json(state.folder / FILE, content)
    return Attributed(state.folder, content)


def _more(units: Sequence[Unit], budget: int) -> int:
    """About how many evaluations a plan takes after the first shares are known."""
    steps = [unit.bytes[1] - unit.bytes[0] for unit in units]
    room = budget - sum(unit.bytes[0] for unit in units)
    upgrades = min(len(units) * (len(units[0].bytes) - 1), room * len(units) // sum(steps))
    rounds = max(0, (upgrades - 1) // planning.REMEASURE)
    return rounds * (len(units) + planning.REMEASURE + 1)


def _say_cost(state: _State, units: Sequence[Unit], budget: int | None) -> None:
    if state.stream is None:
        return
    text = (
        f"{2 * len(units) + 2} evaluations of {len(state.halves[0])} items for {len(units)} "
        f"{state.job.units}"
    )
    if budget is not None:
        text += (
            f", at most about {_more(units, budget)} more while planning, 3 of "
            f"{len(state.halves[1])} items at the end"
        )
    print(text, file=state.stream, flush=True)


def _schemes(job: AttributionJob, planned: Planned) -> dict[str, str]:
    """The plan as `calibit.quantization.plans` reads it."""
    return {unit: job.options[level] for unit, level in planned.levels.items()}


def _judge(state: _State, planned: Planned) -> dict[str, Any]:
    """All small and the plan against the original, on the items set apart."""
    job, exchange, items = state.job, state.exchange, state.halves[1]
    runs: dict[str, Run] = {}
    for at, name in enumerate(_FINAL):
        if not (state.folder / jobs.RUNS / f"final-{name}" / MANIFEST).is_file():
            _put_in_place_(state, name, planned)
        runs[name] = state.evaluate(items, f"final-{name}", scheme=name)
        state.bar.advance(at + 1, len(_FINAL))
    sizes = {"all": sum(unit.bytes[0] for unit in exchange.units()), "plan": planned.bytes}
    labels = {"all": job.scheme, "plan": "plan"}
    return {
        labels[name]: {
            "bits_per_weight": 8 * size / exchange.weights,
            **_summary(state, runs["original"], runs[name]),
        }
        for name, size in sizes.items()
    }


def _put_in_place_(state: _State, name: str, planned: Planned) -> None:
    """Make the model one that is judged; the plan is quantized as a user would, and comes last."""
    audit, exchange = state.job.audit, state.exchange
    if name != "plan":
        exchange.set_(dict.fromkeys(planned.levels, 0) if name == "all" else {})
        return
    exchange.restore_()
    quantize_model(
        state.loaded.model,
        _schemes(state.job, planned),
        calibration=audit.calibration,
        calibration_tokens=audit.calibration_tokens,
        calibration_seed=audit.calibration_seed,
        tokenizer=state.loaded.tokenizer,
    )


def _summary(state: _State, base: Run, run: Run) -> dict[str, Any]:
    audit = state.job.audit
    found = compare(
        base,
        run,
        rule=audit.rule,
        level=audit.level,
        resamples=audit.resamples,
        seed=audit.seed,
    ).to_dict()
    deltas = {name: found["deltas"][name] for name in ("acc", "conf_true", "nll")}
    return {"kl_ab": found["kl_ab"], "deltas": deltas, "flips": found["flips"]["flips"]}


def _content(
    state: _State,
    units: Sequence[Unit],
    first: Attribution,
    planned: Planned | None,
    final: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """`attribution.json`, in JSON types."""
    job, weights = state.job, state.exchange.weights
    totals = [sum(unit.bytes[place] for unit in units) for place in range(len(job.options))]
    content = {
        "schema": SCHEMA,
        "calibit": version("calibit"),
        "command": state.command,
        "model": job.audit.model,
        "scheme": job.scheme,
        "objective": job.objective,
        "units": job.units,
        "n_measured": len(state.halves[0]),
        "n_final": len(state.halves[1]),
        "level": job.audit.level,
        "resamples": job.audit.resamples,
        "seed": job.audit.seed,
        "weights": weights,
        "options": [
            {"scheme": option, "bytes": size, "bits_per_weight": 8 * size / weights}
            for option, size in zip(job.options, totals, strict=True)
        ],
        "bytes": {unit.name: list(unit.bytes) for unit in units},
        "attribution": plain(vars(first)),
        "plan": None
        if planned is None
        else {
            **plain(vars(planned)),
            "schemes": _schemes(job, planned),
            "bits_per_weight": 8 * planned.bytes / weights,
            "budget_bits": 8 * planned.budget / weights,
        },
        "final": final,
    }
    found: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))
    return found
