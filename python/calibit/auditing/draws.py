"""Further builds of an audit's GPTQ schemes with other draws of the calibration text: how much of a
candidate's damage is the luck of its draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calibit import numbers
from calibit.auditing.job import Job
from calibit.auditing.models import Entry
from calibit.reporting.progress import Stage

if TYPE_CHECKING:
    from calibit.comparison import Draws
    from calibit.runs import Run

KIND = "calibration draw"
WEIGHT = 2.8
"""Duration of a build with its evaluation, relative to evaluating the baseline."""

LEAST = 3
"""Builds from which a spread can be judged."""


@dataclass(frozen=True)
class Built:
    """The builds of one scheme, the candidate itself first.

    Attributes:
        seeds: of the calibration draws.
        texts: SHA-256 of the calibration tokens of each build.
        runs: folders of their runs, relative to the audit's.
        found: variance components.
    """

    seeds: tuple[int, ...]
    texts: tuple[str | None, ...]
    runs: tuple[str, ...]
    found: Draws

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        rows = zip(self.seeds, self.texts, self.runs, strict=True)
        builds = [{"seed": seed, "text_sha256": sha, "run": run} for seed, sha, run in rows]
        return {**self.found.to_dict(), "draws": builds}


def drawn(job: Job, entries: Sequence[Entry]) -> list[Entry]:
    """The entries that are built several times."""
    return [entry for entry in entries if job.calibration_draws and entry.uses_gptq]


def check(job: Job, entries: Sequence[Entry]) -> None:
    """Refuse draws that would say nothing.

    Raises:
        ValueError: too few of them, or no scheme that calibrates.
    """
    if job.calibration_draws is None:
        return
    if job.calibration_draws < LEAST:
        raise ValueError(
            f"[audit] expected at least {LEAST} calibration draws, got {job.calibration_draws}: "
            "a spread needs as many"
        )
    if not drawn(job, entries):
        raise ValueError(
            "[audit] expected a scheme that calibrates (gptq-...) with calibration draws, got "
            f"{', '.join(job.schemes) or 'none'}: nearest rounding has no draw"
        )


def stages(job: Job, entries: Sequence[Entry]) -> list[Stage]:
    """A step for every build beyond the candidates themselves."""
    return [
        Stage(KIND, f"{entry.name}: calibration draw {number} of {job.calibration_draws}")
        for entry in drawn(job, entries)
        for number in range(2, (job.calibration_draws or 0) + 1)
    ]


def cost(job: Job, entries: Sequence[Entry]) -> str | None:
    """What the draws add to an audit, in a sentence; None without any."""
    found = drawn(job, entries)
    if not found or job.calibration_draws is None:
        return None
    builds = len(found) * (job.calibration_draws - 1)
    schemes = numbers.plural(len(found), "GPTQ scheme")
    more = numbers.plural(builds, "more build")
    return (
        f"{job.calibration_draws} calibration draws of {schemes}: {more}, each evaluated, beside "
        f"{numbers.plural(len(entries), 'model')}"
    )


def folder_name(entry: Entry, seed: int) -> str:
    """Name of the run of one build."""
    return f"draw-{entry.folder}-{seed}"


def warnings(name: str, built: Built) -> list[str]:
    """What the reader of the candidate's numbers must know."""
    if not built.found.below_draw:
        return []
    from calibit.reporting.draws import words

    metrics = numbers.join([words(metric) for metric in built.found.below_draw])
    return [
        f"{name}: effect_below_draw: over {built.found.k} calibration draws the mean change of "
        f"{metrics} is less than twice the spread between draws; another draw of the text may show "
        "the opposite."
    ]


def build_all(
    job: Job,
    entries: Sequence[Entry],
    first: Mapping[str, tuple[Run, Mapping[str, Any], str]],
    build: Callable[[Entry, int, int], tuple[Run, Mapping[str, Any], str]],
    base: Run,
) -> tuple[dict[str, Built], list[str]]:
    """Build and compare every draw.

    Args:
        job: the audit.
        entries: its models.
        first: of every candidate that was measured: its run, the record of its weights, its folder.
        build: the same of a build, made or read, from entry, seed and the number of its stage.
        base: the baseline's run.

    Returns:
        Builds by candidate, and sentences on what could not be built.
    """
    from calibit.comparison import compare_draws

    found, notes, stage = {}, [], 0
    for entry in drawn(job, entries):
        numbers_of = range(stage, stage + len(job.seeds) - 1)
        stage += len(job.seeds) - 1
        if entry.name not in first:
            continue
        try:
            rest = [
                build(entry, seed, at) for seed, at in zip(job.seeds[1:], numbers_of, strict=True)
            ]
            made = [first[entry.name], *rest]
            variance = compare_draws(
                base,
                [one[0] for one in made],
                rule=job.rule,
                level=job.level,
                resamples=job.resamples,
                seed=job.seed,
            )
        except (ValueError, RuntimeError) as error:
            notes.append(f"{entry.name}: its calibration draws were not measured: {error}")
            continue
        texts = tuple((one[1].get("calibration") or {}).get("sha256") for one in made)
        found[entry.name] = Built(job.seeds, texts, tuple(one[2] for one in made), variance)
    return found, notes
