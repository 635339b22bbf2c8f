"""Comparison: everything two runs on the same items say about their difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibit.comparison.continuations import ParallelComparison, WorkloadComparison
from calibit.comparison.controls import Controls
from calibit.comparison.evidence import Evidence
from calibit.comparison.generated import GeneratedTask
from calibit.comparison.tables import shrunken
from calibit.comparison.texts import TextComparison
from calibit.measures.binning import ReliabilityBin
from calibit.measures.estimate import Estimate, plain
from calibit.measures.paired import McNemar
from calibit.measures.self_audit import Check
from calibit.measures.slice_search import SliceSearch

if TYPE_CHECKING:
    from rich.table import Table

    from calibit.verdict import Policy, Verdict

SCHEMA = "calibit.comparison/1"


@dataclass(frozen=True)
class Flips:
    """How answers changed: counts of the four cells, flips, and their share with an exact interval.

    `all_flips` also counts a wrong answer that became another wrong answer. The counts of cells are
    None without labelled items.
    """

    rr: int | None
    rw: int | None
    wr: int | None
    ww: int | None
    flips: int | None
    all_flips: int | None
    flip_rate: Estimate
    all_flip_rate: Estimate

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        rates = {"flip_rate": self.flip_rate, "all_flip_rate": self.all_flip_rate}
        return {**vars(self), **{name: rate.to_dict() for name, rate in rates.items()}}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Candidate b against reference a on the same items.

    Attributes:
        models: name, title (with the scheme), scheme and weight hash of "a" and "b".
        protocol: rule, level, resamples, seed, bins, item counts: what every number depends on.
        a, b: metric id -> Estimate of each model.
        deltas: metric id -> change, candidate minus reference, with the interval that fits it.
        flips: changed answers.
        mcnemar: exact and mid-p test of the changed answers; None without labels.
        tests: paired t, Wilcoxon and sign flips of the change of conf_true, NLL and Brier score.
        recovery: accuracy of the candidate divided by the reference's; None without labels.
        kl_ab, kl_ba, jsd, js_distance, tv: divergences of the distributions over choices.
        texts: perplexity on every text of both runs.
        workload: the reference's continuations of the user's prompts, token by token; None without.
        parallel: parallel texts, language by language.
        generated: tasks answered in free text.
        slices: per slice key and value: n, d_acc, d_conf_true with intervals of their own.
        worst_slices: damage -> worst-slice search over the declared slices (simultaneous bounds).
        search: exploratory search for conf_true, also over quartiles of entropy and pairs of
            slices.
        reliability_a, reliability_b: bins of the reliability diagrams.
        controls: noise floor, change by initial confidence, thresholds, recalibration, flips,
            scoring rules, prediction sets, direction.
        points: per labelled item, arrays by name; not part of `to_dict`.
        checks: self-audit of the measurement.
        warnings: what the reader should know.
        evidence: damages with bounds at any level, for the verdict.
        mde: damage -> the smallest that these items would show with a power of 0.8 at the level of
            the intervals, from the spread seen; for shares the share of changed items stands for
            the variance, an upper bound. Without spread nothing can be said, and it is left out.
    """

    models: Mapping[str, Mapping[str, Any]]
    protocol: Mapping[str, Any]
    a: Mapping[str, Estimate]
    b: Mapping[str, Estimate]
    deltas: Mapping[str, Estimate]
    flips: Flips
    mcnemar: McNemar | None
    kl_ab: Estimate
    kl_ba: Estimate
    jsd: Estimate
    js_distance: Estimate
    tv: Estimate
    tests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recovery: Estimate | None = None
    texts: tuple[TextComparison, ...] = ()
    workload: WorkloadComparison | None = None
    parallel: tuple[ParallelComparison, ...] = ()
    generated: tuple[GeneratedTask, ...] = ()
    slices: tuple[Mapping[str, Any], ...] = ()
    worst_slices: Mapping[str, SliceSearch] = field(default_factory=dict)
    search: SliceSearch | None = None
    reliability_a: tuple[ReliabilityBin, ...] = ()
    reliability_b: tuple[ReliabilityBin, ...] = ()
    controls: Controls = field(default_factory=Controls)
    points: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()
    evidence: Mapping[str, Evidence] = field(default_factory=dict, repr=False)
    mde: Mapping[str, float] = field(default_factory=dict)

    @property
    def ppl(self) -> TextComparison | None:
        """Perplexity on the first text; None where the runs share none."""
        return self.texts[0] if self.texts else None

    @property
    def worst_slice(self) -> Mapping[str, Any] | None:
        """Worst declared slice by damage of conf_true; None without labels."""
        search = self.worst_slices.get("conf_true")
        return None if search is None else describe_search(search)

    def to_dict(self) -> dict[str, Any]:
        """Everything but `points` as JSON types."""
        kept = ("models", "protocol", "a", "b", "deltas")
        out: dict[str, Any] = {"schema": SCHEMA}
        out |= {name: plain(getattr(self, name)) for name in kept}
        out["flips"] = self.flips.to_dict()
        out["mcnemar"] = None if self.mcnemar is None else asdict(self.mcnemar)
        out["mde"] = plain(self.mde)
        out |= {"tests": plain(self.tests), "recovery": plain(self.recovery)}
        for name in ("kl_ab", "kl_ba", "jsd", "js_distance", "tv"):
            out[name] = getattr(self, name).to_dict()
        out["texts"] = [text.to_dict() for text in self.texts]
        out["workload"] = None if self.workload is None else self.workload.to_dict()
        out["parallel"] = [one.to_dict() for one in self.parallel]
        out["generated"] = [one.to_dict() for one in self.generated]
        out["ppl"] = out["texts"][0] if self.texts else None
        out["slices"] = plain(self.slices)
        out["worst_slice"] = plain(self.worst_slice)
        searches = self.worst_slices.items()
        out["worst_slices"] = {name: plain(describe_search(one)) for name, one in searches}
        out["search"] = None if self.search is None else plain(describe_search(self.search))
        out["reliability_a"] = [asdict(row) for row in self.reliability_a]
        out["reliability_b"] = [asdict(row) for row in self.reliability_b]
        out["controls"] = self.controls.to_dict()
        out["checks"] = [asdict(check) for check in self.checks]
        out["warnings"] = list(self.warnings)
        return out

    def verdict(self, policy: Policy | None = None) -> Verdict:
        """Ship, hold or inconclusive under a policy (the default one where omitted)."""
        from calibit.verdict import judge

        return judge(self, policy)

    def __str__(self) -> str:
        """The main numbers as text, 100 columns wide."""
        from rich.console import Console

        console = Console(width=100, color_system=None)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get().rstrip()

    def table(self) -> Table:
        """The main numbers as a rich table."""
        from calibit.comparison.terminal import comparison_table

        return comparison_table(self)

    def to_html(self, path: str | Path) -> Path:
        """Write the comparison as one self-contained page.

        Returns:
            The path written.
        """
        from calibit.reporting import write_comparison

        return write_comparison(self, path)


def describe_search(search: SliceSearch) -> dict[str, Any]:
    """Headline of a worst-slice search: the slice with the largest lower bound of the damage.

    All bounds but `largest_upper` hold for all slices at once; that one is what a verdict waits
    for. `shrunken` holds by slice key what each slice may be expected to show on new items.
    """
    worst = search.worst
    out: dict[str, Any] = {
        "metric": search.metric,
        "slice": None,
        "n": 0,
        "level": search.level,
        "searched": len(search.slices),
        "reason": search.reason,
        "slices": [],
        "left_out": [{"name": one.name, "n": one.n} for one in search.left_out],
    }
    if worst is None:
        return out
    one_sided = (1.0 + search.level) / 2.0  # of each end, so that both hold at the level
    bounds = zip(*search.intervals(one_sided, all_at_once=True), strict=True)
    rows = [
        {
            "name": one.name,
            "also": [label.name for label in one.labels if label.name != one.name],
            "n": one.n,
            "damage": one.damage,
            "lower": low,
            "upper": high,
        }
        for one, (low, high) in zip(search.slices, bounds, strict=True)
    ]
    headline = next(row for row in rows if row["name"] == worst.name)
    out |= {key: headline[key] for key in ("n", "damage", "lower", "upper")}
    out |= {"slice": worst.name, "slices": rows, "shrunken": shrunken(search)}
    out |= {name: getattr(worst, name) for name in ("se", "p_damage", "p_contrast")}
    waited_for = search.intervals(search.level, all_at_once=False)[1]
    at = int(waited_for.argmax())
    return out | {"largest_upper": float(waited_for[at]), "riskiest": search.slices[at].name}
