"""Controls of a comparison: what the plain differences do not say, from the same items.

Is the change larger than noise, who is hit, what happens to thresholds and prediction sets that
were set on the reference, what recalibration would give back, and whether a claim survives another
way of scoring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibit.comparison.evidence import Evidence, excess_evidence, threshold_evidence
from calibit.comparison.pairing import Paired, RunLike, aligned, as_run
from calibit.measures.anatomy import FlipAnatomy, flip_anatomy
from calibit.measures.conformal import ConformalTransfer, conformal_transfer
from calibit.measures.estimate import plain
from calibit.measures.folds import folds_of
from calibit.measures.gain import CalibrationGain, calibration_gain
from calibit.measures.initial import InitialConfidence, initial_confidence
from calibit.measures.length_rules import RuleSensitivity, rule_sensitivity
from calibit.measures.noise import ABOVE, NoiseFloor, noise_floor
from calibit.measures.resampling import Resampling
from calibit.measures.scores import Scores, available_rules
from calibit.measures.signed import Direction, direction
from calibit.measures.thresholds import ThresholdTransfer, threshold_transfer

COVERAGE = 0.8
"""Share of the questions that the threshold of a report lets the reference answer."""

NO_ITEMS = "no labelled item has at least two choices"
NO_RERUNS = "the reference was not run again"
NO_LENGTHS = "the runs do not record the lengths of the choices"


@dataclass(frozen=True)
class ExtraRuns:
    """Further runs of the same items, for the controls that need them.

    Attributes:
        reruns: nuisance changed (batch size, order, dtype, ...) -> the reference run again.
        repeat: the reference run again with nothing changed.
        other_form: reference and candidate on another form (wording) of the items, or of some.
        perturbed: the reference with weight noise as large as the candidate's error, several times.
    """

    reruns: Mapping[str, RunLike | str | Path] = field(default_factory=dict)
    repeat: RunLike | str | Path | None = None
    other_form: tuple[RunLike | str | Path, RunLike | str | Path] | None = None
    perturbed: Sequence[RunLike | str | Path] = ()


@dataclass(frozen=True)
class Controls:
    """The controls of one comparison; each is None where it could not be made (see `reasons`).

    Attributes:
        noise: the change against re-runs of the reference.
        initial: change by initial confidence, and whether it may be claimed.
        threshold: an abstain threshold of the reference, used on the candidate.
        recalibration: what a temperature fitted to the candidate would gain.
        flips: changed answers taken apart.
        rules: metric -> sensitivity to the scoring rule.
        conformal: prediction sets of the reference, used on the candidate.
        direction: signed changes beside the divergence.
        left_out: labelled items with one choice, which enter none of these.
        reasons: control -> why it is None.
    """

    noise: NoiseFloor | None = None
    initial: InitialConfidence | None = None
    threshold: ThresholdTransfer | None = None
    recalibration: CalibrationGain | None = None
    flips: FlipAnatomy | None = None
    rules: Mapping[str, RuleSensitivity] | None = None
    conformal: ConformalTransfer | None = None
    direction: Direction | None = None
    left_out: int = 0
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


def controls_of(paired: Paired, extra: ExtraRuns, draw: Resampling) -> Controls:
    """Every control that the runs allow.

    Args:
        paired: the items of both runs.
        extra: further runs.
        draw: resampling of all paired items.

    Raises:
        ValueError: for a further run that lacks an item or has another right answer or number of
            choices.
    """
    keep = paired.a.labelled & (paired.a.distributions.k > 1)
    left_out = int(paired.a.labelled.sum() - keep.sum())
    noise = _noise(paired, extra, draw)
    reasons = {} if noise is not None else {"noise": NO_RERUNS}
    if not keep.any():
        missing = ("initial", "threshold", "recalibration", "flips", "rules")
        names = (*missing, "conformal", "direction")
        return Controls(noise, left_out=left_out, reasons=reasons | dict.fromkeys(names, NO_ITEMS))
    a, b, draw = paired.a.take(keep), paired.b.take(keep), draw.take(keep)
    rules = _rules(paired, keep, draw)
    if rules is None:
        reasons["rules"] = NO_LENGTHS
    split = len(set(folds_of(a.ids, 2).tolist())) == 2
    if not split:
        reasons["conformal"] = "all items are on one side of the split"
    reruns = _aligned(extra.reruns, paired.a, keep)
    above = None if noise is None else noise.magnitudes["kl_ab"].state == ABOVE
    return Controls(
        noise=noise,
        initial=_initial(a, b, extra, paired.a, keep, draw),
        threshold=threshold_transfer(a, b, coverage=COVERAGE, resampling=draw),
        recalibration=calibration_gain(b, resampling=draw),
        flips=flip_anatomy(a, b, reruns=reruns, resampling=draw),
        rules=rules,
        conformal=conformal_transfer(a, b, resampling=draw) if split else None,
        direction=direction(a, b, above_floor=above, resampling=draw),
        left_out=left_out,
        reasons=reasons,
    )


def control_evidence(paired: Paired, extra: ExtraRuns, draw: Resampling) -> dict[str, Evidence]:
    """Damages that a policy may judge and that come from controls: coverage and false accepts at
    the threshold of a report, changed answers and KL in excess over re-runs of the reference.

    Args:
        paired, extra, draw: as in `controls_of`.
    """
    keep = paired.a.labelled & (paired.a.distributions.k > 1)
    a, b = paired.a.take(keep), paired.b.take(keep)
    everyone = np.ones(paired.a.n, dtype=bool)
    reruns = list(_aligned(extra.reruns, paired.a, everyone).values())
    return {
        **threshold_evidence(a, b, COVERAGE, draw.take(keep)),
        **excess_evidence(paired.a, paired.b, reruns, draw),
    }


def _aligned(
    runs: Mapping[str, RunLike | str | Path], like: Scores, keep: np.ndarray
) -> dict[str, Scores]:
    return {
        name: aligned(as_run(run).scores(like.rule), like, name=name).take(keep)
        for name, run in runs.items()
    }


def _noise(paired: Paired, extra: ExtraRuns, draw: Resampling) -> NoiseFloor | None:
    if not paired.a.n or not (extra.reruns or extra.repeat is not None):
        return None
    everyone = np.ones(paired.a.n, dtype=bool)
    reruns = _aligned(extra.reruns, paired.a, everyone)
    repeat = None
    if extra.repeat is not None:
        repeat = _aligned({"repeat": extra.repeat}, paired.a, everyone)["repeat"]
        if not reruns and all(map(np.array_equal, paired.a.z, repeat.z)):
            reruns = {"repeat": repeat}  # all there is: a floor of 0
    return noise_floor(
        paired.a,
        paired.b,
        reruns,
        repeat=repeat,
        batches=None if draw.clusters is None else draw.clusters.tolist(),
        resampling=draw,
    )


def _initial(
    a: Scores, b: Scores, extra: ExtraRuns, like: Scores, keep: np.ndarray, draw: Resampling
) -> InitialConfidence:
    names = [f"perturbed copy {index}" for index in range(1, len(extra.perturbed) + 1)]
    copies = _aligned(dict(zip(names, extra.perturbed, strict=True)), like, keep)
    asked = _asked_again(a, b, extra)
    return initial_confidence(
        a,
        b,
        forms=None if asked is None else asked[:2],
        perturbed=list(copies.values()),
        resampling=draw,
        form_resampling=None if asked is None else draw.take(asked[2]),
    )


def _asked_again(
    a: Scores, b: Scores, extra: ExtraRuns
) -> tuple[tuple[Scores, Scores], tuple[Scores, Scores], np.ndarray] | None:
    """Both forms of the items that were asked in two, and which items those are."""
    if extra.other_form is None:
        return None
    first, second = (as_run(run).scores(a.rule) for run in extra.other_form)
    keys = set(first.keys) & set(second.keys)  # a task may have one wording only
    both = np.array([key in keys for key in a.keys])
    if not both.any():
        return None
    main = (a.take(both), b.take(both))
    other = (
        aligned(first, main[0], name="reference, other form"),
        aligned(second, main[0], name="candidate, other form"),
    )
    return main, other, both


def _rules(paired: Paired, keep: np.ndarray, draw: Resampling) -> dict[str, RuleSensitivity] | None:
    known = available_rules(paired.lines_a) & available_rules(paired.lines_b)
    own = paired.a.rule
    if len(known) < 2 or own not in known or paired.recalibrated:  # a map is of one rule
        return None
    models = {own: (paired.a.take(keep), paired.b.take(keep))}
    for rule in sorted(known - {own}):
        first, second = (
            _under(rule, lines, paired.a) for lines in (paired.lines_a, paired.lines_b)
        )
        models[rule] = (first.take(keep), second.take(keep))
    return rule_sensitivity(models, resampling=draw)


def _under(rule: str, lines: Sequence[Mapping[str, Any]], like: Scores) -> Scores:
    """The items of `like` scored under another rule, from a run's item lines."""
    found = Scores.from_items(lines, rule=rule)
    z = dict(zip(found.keys, found.z, strict=True))
    return replace(like, z=tuple(z[key] for key in like.keys), rule=rule)
