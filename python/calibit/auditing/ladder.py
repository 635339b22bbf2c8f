"""The candidates of an audit as a ladder of bits: where prediction sets of the original break."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from calibit.auditing.job import Job
from calibit.auditing.models import BASELINE

if TYPE_CHECKING:
    from calibit.comparison import RunLike

TOO_FEW = "fewer than two candidates with different bits per weight were measured"


def ladder(job: Job, runs: Mapping[str, RunLike], measured: Sequence[str]) -> dict[str, Any]:
    """Coverage and size of prediction sets calibrated on the baseline, step by step.

    Args:
        job: the audit.
        runs: finished runs by name, the baseline's among them.
        measured: names of the candidates that were compared.

    Returns:
        `steps` (the baseline, then fewer and fewer bits per weight over the whole model;
        candidates of equal bits stand in the order of the audit), each with its loss of coverage
        against the one before and the p value of that, adjusted for the number of steps; `largest`,
        the step that lost most. Only `reason` where there is no ladder.
    """
    from calibit.comparison import per_item
    from calibit.measures import Resampling, conformal_ladder

    names = [BASELINE, *sorted(measured, key=lambda name: -_bits(runs[name]))]
    if len({_bits(runs[name]) for name in names[1:]}) < 2:
        return {"reason": TOO_FEW}
    draw = Resampling(level=job.level, resamples=job.resamples, seed=job.seed)
    try:
        base, *steps = per_item.labelled_scores(
            runs[BASELINE], [runs[name] for name in names[1:]], rule=job.rule
        )
        draw = per_item.clustered(draw, runs[BASELINE], rule=job.rule)
        found = conformal_ladder(base, steps, resampling=draw)
    except ValueError as error:
        return {"reason": str(error)}
    moves = [(None, None), *zip(found.jump.steps, found.jump.p, strict=True)]
    rows = [
        {"name": name, "bits_per_weight": _bits(runs[name]), **vars(sets), "loss": loss, "p": p}
        for name, sets, (loss, p) in zip(names, found.sets, moves, strict=True)
    ]
    return {
        "alpha": found.alpha,
        "quantile": found.quantile,
        "n_calibration": found.n_calibration,
        "n_test": found.n_test,
        "steps": rows,
        "largest": names[found.jump.worst + 1],
    }


def _bits(run: RunLike) -> float:
    return float(run.meta["footprint"]["bits_per_weight_model"])
