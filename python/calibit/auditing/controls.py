"""The further evaluations that an audit's rigor asks for, each a run of its own.

quick: the baseline's first items twice. standard: also the baseline with batches of another size,
two times; an 8-bit build of it where no candidate is one; every model in the tasks' second wording.
full: also, for each scheme, copies of the baseline with noise of the size of its errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from calibit.auditing import models
from calibit.auditing.job import FULL, QUICK, Job, task_options
from calibit.auditing.models import Entry, Loaded

if TYPE_CHECKING:
    from calibit.comparison import Comparison, ExtraRuns
    from calibit.measures.self_audit import Check
    from calibit.runs import Run

COPIES = 8
"""Noise copies per scheme: the fewest from which their spread can be judged."""

REPEATED_ITEMS = 64
"""Items of the baseline that are scored twice, without any change."""

EIGHT_BIT = "int8"

FOLDER = "controls"

Model = Callable[[], Loaded]
"""Gives a model, read when it is first asked for."""

Evaluate = Callable[..., "Run"]
"""evaluate(model, items, name, **changes): one run in a folder of controls, or the finished one."""


@dataclass
class ControlRuns:
    """Control runs of an audit.

    Attributes:
        repeat: the two runs of the baseline's first items.
        reruns: the baseline again, by the nuisance that was changed.
        forms: entry name -> its run in the second wording.
        eight_bit: the 8-bit build's run.
        copies: candidate -> runs of the noise copies.
        notes: what could not be done, and why.
    """

    repeat: tuple[Run, Run] | None = None
    reruns: dict[str, Run] = field(default_factory=dict)
    forms: dict[str, Run] = field(default_factory=dict)
    eight_bit: Run | None = None
    copies: dict[str, list[Run]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def runs_of(job: Job, entry: Entry) -> float:
    """Whole evaluations that the controls of one model take."""
    again = REPEATED_ITEMS / 400 * entry.is_baseline  # of a few hundred items
    if job.rigor == QUICK:
        return again
    runs = again + 1 + 2 * entry.is_baseline
    return runs + COPIES * (job.rigor == FULL and entry.scheme is not None)


def runs_of_eight_bit(job: Job, entries: Sequence[Entry]) -> float:
    """Whole evaluations that `eight_bit` takes."""
    return float(job.rigor != QUICK and not any(map(is_eight_bit, entries)))


def is_eight_bit(entry: Entry) -> bool:
    """Whether a candidate is a weight-only 8-bit build, and so its own control."""
    return entry.scheme is not None and entry.scheme.split("-")[0] == EIGHT_BIT


def of_entry(
    job: Job,
    entry: Entry,
    model: Model,
    items: Sequence[Any],
    evaluate: Evaluate,
    found: ControlRuns,
    *,
    calibration: Any,
) -> None:
    """Run the controls that one model takes part in, while it is in memory.

    Args:
        job: the audit.
        entry: the model's entry.
        model: gives the model.
        items: the audit's multiple-choice items; without any there is nothing to do.
        evaluate: makes a run.
        found: where the runs are kept.
        calibration: text whose tokens say how large the noise of a copy must be.
    """
    if not items:
        return
    if entry.is_baseline:
        _baseline_again(job, model, items, evaluate, found)
    if job.rigor == QUICK:
        return
    if other := _second_wording(job, items, found):
        found.forms[entry.name] = evaluate(model, other, f"wording-{entry.folder}")
    if job.rigor == FULL and entry.scheme is not None:
        found.copies[entry.name] = _noise_copies(job, entry, model, items, evaluate, calibration)


def eight_bit(
    job: Job, entries: Sequence[Entry], items: Sequence[Any], evaluate: Evaluate, found: ControlRuns
) -> None:
    """Run an 8-bit build of the baseline where the rigor asks for one and no candidate is one."""
    if items and runs_of_eight_bit(job, entries):
        entry = Entry(EIGHT_BIT, EIGHT_BIT, scheme=EIGHT_BIT)
        found.eight_bit = evaluate(lambda: _read(entry, job), items, EIGHT_BIT)


def extra_runs(found: ControlRuns, entry: Entry) -> ExtraRuns:
    """The control runs that the comparison of one candidate uses."""
    from calibit.comparison import ExtraRuns

    first, second = (found.forms.get(name) for name in (models.BASELINE, entry.name))
    return ExtraRuns(
        reruns=found.reruns,
        other_form=(first, second) if first is not None and second is not None else None,
        perturbed=found.copies.get(entry.name, ()),
    )


def checked(
    comparison: Comparison,
    found: ControlRuns,
    base: Run,
    run: Run,
    control: Run | None,
    job: Job,
    doubts: Sequence[str] = (),
) -> Comparison:
    """The comparison with the checks that control runs allow.

    Args:
        comparison: of `base` and `run`.
        found: the audit's control runs.
        base, run: the reference and the candidate.
        control: the 8-bit build; None where there is none, or the candidate has 8 bits itself.
        job: gives rule and seed.
        doubts: reasons to doubt that the candidate is the reference, only quantized.
    """
    from calibit.measures import Resampling
    from calibit.measures.run_checks import eight_bit_control, identical_run

    checks = [_with_lineage(check, doubts) for check in comparison.checks]
    if found.repeat is not None:
        checks.append(identical_run(*(list(one.items()) for one in found.repeat)))
    if control is not None:
        scores = [one.scores(rule=job.rule) for one in (base, control, run)]
        checks += eight_bit_control(*scores, resampling=Resampling(seed=job.seed))
    return replace(comparison, checks=tuple(checks))


def _with_lineage(check: Check, doubts: Sequence[str]) -> Check:
    """The check of pair identity fails where the candidate comes from another model."""
    if check.check != "pair identity" or not doubts:
        return check
    detail = f"{check.detail}; {' '.join(doubts).rstrip('.')}"
    return replace(check, passed=False, count=check.count + len(doubts), detail=detail)


def _baseline_again(
    job: Job, model: Model, items: Sequence[Any], evaluate: Evaluate, found: ControlRuns
) -> None:
    from calibit.evaluation.driver import BATCH_TOKENS

    first = items[:REPEATED_ITEMS]
    once, again = (evaluate(model, first, f"repeat-{n}") for n in (1, 2))
    found.repeat = (once, again)
    if job.rigor != QUICK:
        half = max(1, (job.batch_tokens or BATCH_TOKENS) // 2)
        for name, size in {"half the batch size": half, "one item a batch": 1}.items():
            found.reruns[name] = evaluate(model, items, f"batches-{size}", batch_tokens=size)


def _noise_copies(
    job: Job,
    entry: Entry,
    model: Model,
    items: Sequence[Any],
    evaluate: Evaluate,
    calibration: Any,
) -> list[Run]:
    from calibit.quantization import calibration_text
    from calibit.quantization.perturbation import noise_scales

    original = cache(lambda: _read(Entry(models.BASELINE, models.BASELINE), job))

    @cache
    def scales() -> Mapping[str, float]:
        text = calibration_text.for_model(
            calibration,
            original().tokenizer,
            original().model.config,
            tokens=job.calibration_tokens,
            seed=next(iter(job.seeds), None),
        )
        return noise_scales(original().model, model().model, text.sequences)

    runs = []
    for seed in range(COPIES):
        with _noise_copy(original, scales, seed) as copy:
            runs.append(evaluate(copy, items, f"copy-{entry.folder}-{seed}"))
    return runs


@contextmanager
def _noise_copy(
    original: Model, scales: Callable[[], Mapping[str, float]], seed: int
) -> Iterator[Model]:
    """Gives the original with noise in its weights; they are restored after the block."""
    from calibit.quantization.perturbation import perturbed

    with ExitStack() as stack:

        @cache
        def get() -> Loaded:
            stack.enter_context(perturbed(original().model, scales(), seed=seed))
            return original()

        yield get


def _second_wording(job: Job, items: Sequence[Any], found: ControlRuns) -> list[Any]:
    """The same items in their second wording; tasks without one are noted and left out."""
    from calibit.tasks import read

    wanted = {(item.task, item.id) for item in items}
    other: list[Any] = []
    for spec in job.tasks:
        try:
            second = read(spec, form="alt", **task_options(job)).items
            other += [item for item in second if (item.task, item.id) in wanted]
        except ValueError as error:
            note = f"No second wording of {spec}: {error}"
            if note not in found.notes:
                found.notes.append(note)
    return other


def _read(entry: Entry, job: Job) -> Loaded:
    return models.load(entry, job, lambda *_: None)
