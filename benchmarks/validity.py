"""Are calibit's intervals and verdicts as good as they say? Simulated experiments with known truth.

    python benchmarks/validity.py [--experiments 1000] [--write docs/validity.md]

Each setting is a population of item pairs (reference and candidate) whose true changes are known;
an experiment draws N items from it and asks calibit for intervals or a verdict. Printed are the
shares of experiments in which an interval holds the truth, `ship` is said although the damage lies
at a margin, `hold` although there is none, and a damage below the margin is recognised as such.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import workbench

from calibit import measures as m
from calibit.comparison.evidence import accuracy_evidence, mean_evidence
from calibit.measures.calibration import binned_change
from calibit.measures.confidence import means_of
from calibit.measures.fidelity import kl_values
from calibit.measures.intervals import WORST_CLUSTERS, paired_share_interval
from calibit.measures.power import detection_z
from calibit.measures.proper import brier_values
from calibit.measures.resampling import resampled_means
from calibit.measures.slice_search import worst_slice
from calibit.measures.slices import slices_by_key
from calibit.verdict import Policy, judge
from calibit.verdict.gates import PASS, gate_of

ITEMS = 120_000
"""Items of a population: enough that its ECE has no visible bias."""

SIZES = (200, 500, 1000)
FEW = (5, 10, 30, 50)
RARE_SHARE, RARE_MEAN, COMMON_SD = 0.01, 3.0, 0.05
"""Rare heavy damage: share of the items, mean of its exponential, sd of the normal noise (nats)."""

SLICES = 4
DESIGNS = {
    "60 of 5": [5] * 60,
    "30 of 20": [20] * 30,
    "30 of 20, 400 single": [20] * 30 + [1] * 400,
    "60 of 20, 400 single": [20] * 60 + [1] * 400,
}
"""Passages of equal and unequal size, by the items of each."""

LOST, TOGETHER = (0.03, 0.1), 0.9
"""Share of the answers that are lost, and of the items that follow their passage in this."""

MEANS = ("conf_true", "nll", "brier", "kl")
SEED = 20261121
POWER = 0.8


@dataclass(frozen=True)
class Setting:
    """How a population is made.

    Attributes:
        name: row of the table.
        about: what it stands for.
        sharpness: scores of the reference over those its answers were drawn from; above 1 it is too
            sure.
        scale, noise: candidate's scores = scale * reference's + normal noise (nats).
        cluster: items that share most of their difficulty and of their noise.
    """

    name: str
    about: str
    sharpness: float
    scale: float
    noise: float
    cluster: int = 1


SETTINGS = (
    Setting("8 bits", "almost the reference: few answers change", 1.3, 1.0, 0.03),
    Setting("4 bits", "some noise, slightly less sure", 1.3, 0.97, 0.35),
    Setting("2 bits", "much noise, much less sure", 1.3, 0.7, 1.2),
    Setting("sharper", "a calibrated reference, a surer candidate", 1.0, 1.25, 0.2),
    Setting("passages", "4 bits, five questions to a passage", 1.3, 0.97, 0.35, cluster=5),
)


@dataclass(frozen=True)
class Population:
    """Item pairs with what every metric needs of them, float64 `[ITEMS]` each.

    Attributes:
        setting: how it was made.
        change: metric -> candidate minus reference per item (`kl`: the divergence).
        right, confidence: correctness and confidence of reference and candidate.
    """

    setting: Setting
    change: dict[str, np.ndarray]
    right: tuple[np.ndarray, np.ndarray]
    confidence: tuple[np.ndarray, np.ndarray]

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Indices of n items, whole clusters at a time."""
        size = self.setting.cluster
        first = rng.integers(0, ITEMS // size, math.ceil(n / size)) * size
        return (first[:, None] + np.arange(size)).ravel()[:n]

    def ece_change(self, items: np.ndarray | slice) -> float:
        """Change of the ECE on some items."""
        before, after = (
            float(m.ece(c[items], r[items]))
            for c, r in zip(self.confidence, self.right, strict=True)
        )
        return after - before


def main() -> None:
    """Every table; ends with an error where a share misses its target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1_999)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="write the tables into this document")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started, facts = time.perf_counter(), workbench.machine()  # the commit that runs
    bench = Bench(options.experiments, options.resamples)
    tables = [
        bench.coverage([population(setting) for setting in SETTINGS]),
        bench.simple_means(),
        bench.verdicts(population(SETTINGS[1])),
        bench.passages(),
        bench.powers(population(SETTINGS[1])),
    ]
    seconds = time.perf_counter() - started
    text = "\n\n".join(tables)
    print(text, f"\n{seconds:.0f} s")
    if options.write:
        options.write.write_text(document(text, options, facts, seconds), encoding="utf-8")
    if bench.missed:
        workbench.fail("outside its target: " + "; ".join(bench.missed))


def population(setting: Setting) -> Population:
    """The items of a setting: four choices, the truth drawn from the reference's own belief."""
    rng = np.random.default_rng(SEED)
    size = setting.cluster

    def scores(spread: float) -> np.ndarray:
        own = rng.normal(0.0, spread, (ITEMS, 4))
        if size == 1:
            return own
        shared = np.repeat(rng.normal(0.0, spread, (ITEMS // size, 4)), size, axis=0)
        return math.sqrt(0.7) * shared + math.sqrt(0.3) * own

    belief = scores(1.5)
    gold = np.argmax(belief + rng.gumbel(size=belief.shape), axis=1)
    if size > 1:  # the questions of a passage are right or wrong together more often than not
        copied = np.repeat(gold[::size], size)
        gold = np.where(rng.random(ITEMS) < 0.5, copied, gold)
    a = setting.sharpness * belief
    b = setting.scale * a + scores(setting.noise)
    return measured(setting, a, b, gold)


def measured(setting: Setting, a: np.ndarray, b: np.ndarray, gold: np.ndarray) -> Population:
    """A population from log scores `[ITEMS, 4]` and right answers."""
    first, second = (m.Distributions.from_scores(z) for z in (a, b))
    (p_a, log_a), (p_b, log_b) = first.of(gold), second.of(gold)
    change = {
        "conf_true": p_b - p_a,
        "nll": log_a - log_b,
        "brier": brier_values(second, gold) - brier_values(first, gold),
        "kl": kl_values(first, second),
    }
    right = tuple((d.predicted == gold).astype(float) for d in (first, second))
    return Population(setting, change, right, (first.confidence, second.confidence))


class Bench:
    """The experiments of every table, and the targets that were missed."""

    def __init__(self, experiments: int, resamples: int) -> None:
        self.experiments, self.resamples = experiments, resamples
        self.missed: list[str] = []

    def coverage(self, populations: Sequence[Population]) -> str:
        """Share of 95 % intervals that hold the true change."""
        head = ("setting", "items", *MEANS, "accuracy", "ECE")
        rows = []
        for one in populations:
            for n in SIZES:
                shares = self._covered(one, n)
                name = one.setting.name
                for metric in MEANS:
                    self._check(f"{name}, {n}: {metric}", shares[metric], 0.93, 0.97)
                self._check(f"{name}, {n}: accuracy", shares["acc"], 0.94, 1.0)
                cells = [_percent(shares[key]) for key in (*MEANS, "acc", "ece")]
                rows.append((name, f"{n:,}", *cells))
                print(*rows[-1], flush=True)
        return "### Share of 95 % intervals that hold the truth, %\n\n" + _table(head, rows)

    def _covered(self, one: Population, n: int) -> dict[str, float]:
        truth = {metric: float(values.mean()) for metric, values in one.change.items()}
        truth["acc"] = float(np.mean(one.right[1] - one.right[0]))
        truth["ece"] = one.ece_change(slice(None))
        rng, hits = np.random.default_rng([SEED, n]), dict.fromkeys(truth, 0)
        for index in range(self.experiments):
            items = one.draw(rng, n)
            draw = self._resampling(one, n, index)
            found = dict(means_of({k: v[items] for k, v in one.change.items()}, draw))
            before, after = (right[items] for right in one.right)
            found["acc"] = paired_share_interval(before, after, draw)
            sides = [(c[items], r[items]) for c, r in zip(one.confidence, one.right, strict=True)]
            found["ece"] = binned_change("ece", *sides, resampling=draw).estimate
            for metric, interval in found.items():
                hits[metric] += interval.lower <= truth[metric] <= interval.upper
        return {metric: count / self.experiments for metric, count in hits.items()}

    def simple_means(self) -> str:
        """Intervals of a mean of few normal values, and of rare heavy damage (without a target)."""
        rows = []
        for n in FEW:
            held, missed = self._mean_held(lambda rng, n=n: rng.normal(size=n), 0.0)
            # Two intervals are joined, each of which holds the truth in about 95 %.
            self._check(f"few items, {n}", held, 0.93, 0.985)
            rows.append(("normal values", f"{n}", _percent(held), _percent(missed)))
            print(*rows[-1], flush=True)
        for n in SIZES:
            truth = RARE_SHARE * RARE_MEAN
            held, missed = self._mean_held(lambda rng, n=n: rare_damage(rng, n), truth)
            rows.append(("rare heavy damage", f"{n:,}", _percent(held), _percent(missed)))
            print(*rows[-1], flush=True)
        head = ("values", "items", "holds the truth, %", "upper end below the truth, %")
        return "### Few items, and rare heavy damage\n\n" + _table(head, rows)

    def _mean_held(
        self, values: Callable[[np.random.Generator], np.ndarray], truth: float
    ) -> tuple[float, float]:
        """Shares of intervals that hold the true mean, and that lie below it."""
        rng, above, below = np.random.default_rng([SEED, 5]), 0, 0
        for index in range(self.experiments):
            draw = m.Resampling(resamples=self.resamples, seed=index)
            found = m.mean_difference(values(rng), resampling=draw)
            above += found.lower > truth
            below += found.upper < truth
        return 1.0 - (above + below) / self.experiments, below / self.experiments

    def _resampling(self, one: Population, n: int, seed: int) -> m.Resampling:
        size = one.setting.cluster
        clusters = np.arange(n) // size if size > 1 else None
        return m.Resampling(resamples=self.resamples, seed=seed, clusters=clusters)

    def verdicts(self, one: Population) -> str:
        """How often a verdict is wrong: `ship` at the margin, `hold` without damage."""
        rows, n = [], 500
        truth = damages(one, np.arange(ITEMS))
        true = {metric: float(np.mean(after - before)) for metric, (before, after) in truth.items()}
        for metric in true:
            # The damage lies exactly at this margin, far below the others.
            policy = Policy({k: v + 0.9 * (k != metric) for k, v in true.items()})
            share = self._said(one, n, policy, "ship")
            limit = 0.025 + 2.0 * math.sqrt(0.025 * 0.975 / self.experiments)
            self._check(f"ship, damage of {metric} at the margin", share, 0.0, limit)
            rows.append(
                (f"`ship`, true damage of {metric} at its margin", f"{n}", _percent(share), "2.5")
            )
            print(*rows[-1], flush=True)
        for metric, slices in product(("acc", "nll"), (1, SLICES)):
            share = self._slice_said(one, n, metric, slices)
            limit = 0.025 + 2.0 * math.sqrt(0.025 * 0.975 / self.experiments)
            where = "the only slice" if slices == 1 else f"the worst of {slices} slices"
            what = f"`ship`, damage of {metric} in {where} at its margin"
            self._check(what, share, 0.0, limit)
            rows.append((what, f"{n}", _percent(share), "2.5"))
            print(*rows[-1], flush=True)
        share = self._said(one, n, Policy(true), "hold")
        limit = 0.05 + 2.0 * math.sqrt(0.05 * 0.95 / self.experiments)
        self._check("hold, every damage at its margin", share, 0.0, limit)
        rows.append(("`hold`, every true damage at its margin", f"{n}", _percent(share), "5"))
        print(*rows[-1], flush=True)
        same = without_damage(one)
        share = self._said(same, n, Policy(dict.fromkeys(true, 1e-9)), "hold")
        self._check("hold without damage", share, 0.0, limit)
        rows.append(("`hold`, no damage, margins of 0", f"{n}", _percent(share), "5"))
        print(*rows[-1], flush=True)
        head = ("said, and what is true", "items", "share, %", "at most, %")
        return "### Wrong verdicts\n\n" + _table(head, rows)

    def passages(self) -> str:
        """`pass` of a gate whose damage lies at its margin, where whole passages are lost."""
        rows = []
        for (name, sizes), lost in product(DESIGNS.items(), LOST):
            acc, nll = self._lost_together(np.repeat(np.arange(len(sizes)), sizes), lost)
            limit = 0.025 + 2.0 * math.sqrt(0.025 * 0.975 / self.experiments)
            self._check(f"passages, {name}: pass of acc", acc, 0.0, limit)
            rows.append((name, f"{100 * lost:g}", _percent(acc), _percent(nll)))
            print(*rows[-1], flush=True)
        head = ("passages", "answers lost, %", "`pass` of acc, %", "`pass` of nll, %")
        return "### Wrong passes where whole passages are lost\n\n" + _table(head, rows)

    def _lost_together(self, passage: np.ndarray, lost: float) -> tuple[float, float]:
        """Shares of experiments in which accuracy, and NLL, pass at margins of the true damage."""
        rng, n = np.random.default_rng([SEED, len(passage), 6]), len(passage)
        before, passed = np.ones(n), np.zeros(2)
        for index in range(self.experiments):
            draw = m.Resampling(resamples=self.resamples, seed=index, clusters=passage)
            whole = (rng.random(passage.max() + 1) < lost)[passage]
            gone = np.where(rng.random(n) < TOGETHER, whole, rng.random(n) < lost)
            damage = gone * rng.exponential(1.0, n) + rng.normal(0.0, COMMON_SD, n)
            drawn = resampled_means(damage[:, None], draw)[:, 0]
            evidence = (
                accuracy_evidence(before, 1.0 - gone, draw),
                mean_evidence("nll", damage, drawn, draw),
            )
            passed += [gate_of(e, lost, level=0.95, gates=1).state == PASS for e in evidence]
        acc, nll = passed / self.experiments
        return float(acc), float(nll)

    def _said(self, one: Population, n: int, policy: Policy, verdict: str) -> float:
        rng, count = np.random.default_rng([SEED, n, 1]), 0
        for index in range(self.experiments):
            items = one.draw(rng, n)
            draw = self._resampling(one, n, index)
            count += judge(comparison(one, items, draw), policy).verdict == verdict
        return count / self.experiments

    def _slice_said(self, one: Population, n: int, metric: str, slices: int) -> float:
        """Share of `ship` where a metric's margin is its true damage in the worst slice."""
        before, after = damages(one, np.arange(ITEMS))[metric]
        slice_of = np.arange(ITEMS) % max(slices, 2)  # the only slice holds half of the items
        worst = (np.bincount(slice_of, after - before) / np.bincount(slice_of))[:slices].max()
        policy = Policy({f"worst_slice.{metric}": float(worst)})
        rng, count = np.random.default_rng([SEED, n, 4]), 0
        for index in range(self.experiments):
            items = one.draw(rng, n)
            draw = self._resampling(one, n, index)
            family = slices_by_key(
                [{"slice": str(k)} if k < slices else {} for k in slice_of[items]]
            )
            first, second = damages(one, items)[metric]
            found = worst_slice(
                second - first, family, metric=metric, accuracy=metric == "acc", resampling=draw
            )
            made = comparison(one, items, draw, only=metric)
            made.worst_slices[metric] = found
            count += judge(made, policy).verdict == "ship"
        return count / self.experiments

    def powers(self, one: Population) -> str:
        """Measured against predicted power: recognising a damage below its margin, and a change."""
        rows = []
        everyone = damages(one, np.arange(ITEMS))
        for metric, (before, after) in everyone.items():
            d = after - before
            damage = float(d.mean())
            # The planning rule takes the flip rate as the variance of an accuracy difference.
            sd = math.sqrt(float(np.mean(d != 0))) if metric == "acc" else float(d.std())
            margin = damage + detection_z() * sd / math.sqrt(1000)
            n = m.n_needed(sd, margin, damage) or 0
            share = self._passed(one, metric, n, margin)
            self._power(rows, f"{metric}: damage shown to be below a margin", n, share, metric)
            n = math.ceil((detection_z() * sd / damage) ** 2)
            if n <= 20_000:
                share = self._detected(one, metric, n)
                self._power(rows, f"{metric}: change shown", n, share, metric)
        head = ("what", "items", "measured power, %", "predicted, %")
        return "### Power\n\n" + _table(head, rows)

    def _power(
        self, rows: list[tuple[str, ...]], what: str, n: int, share: float, metric: str
    ) -> None:
        upper = 1.0 if metric == "acc" else POWER + 0.03
        self._check(what, share, POWER - 0.03, upper)
        rows.append((what, f"{n:,}", _percent(share), _percent(POWER)))
        print(*rows[-1], flush=True)

    def _passed(self, one: Population, metric: str, n: int, margin: float) -> float:
        rng, count = np.random.default_rng([SEED, n, 2]), 0
        policy = Policy({metric: margin})
        for index in range(self.experiments):
            items = one.draw(rng, n)
            made = comparison(one, items, self._resampling(one, n, index), only=metric)
            count += judge(made, policy).verdict == "ship"
        return count / self.experiments

    def _detected(self, one: Population, metric: str, n: int) -> float:
        rng, count = np.random.default_rng([SEED, n, 3]), 0
        for index in range(self.experiments):
            items = one.draw(rng, n)
            made = comparison(one, items, self._resampling(one, n, index), only=metric)
            lower, upper = made.evidence[metric].at(0.95)
            count += lower > 0.0 or upper < 0.0
        return count / self.experiments

    def _check(self, what: str, share: float, lower: float, upper: float) -> None:
        if not lower <= share <= upper:
            self.missed.append(f"{what} {100 * share:.1f} %")


def rare_damage(rng: np.random.Generator, n: int) -> np.ndarray:
    """Changes of n items, nats: small noise, and an exponential jump in one of a hundred items."""
    jumps = (rng.random(n) < RARE_SHARE) * rng.exponential(RARE_MEAN, n)
    return rng.normal(0.0, COMMON_SD, n) + jumps


def damages(one: Population, items: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values whose difference, second minus first, is the damage of each gated metric."""
    zero = np.zeros(len(items))
    return {
        "acc": (one.right[1][items], one.right[0][items]),
        "conf_true": (one.change["conf_true"][items], zero),
        "nll": (zero, one.change["nll"][items]),
    }


def comparison(
    one: Population, items: np.ndarray, draw: m.Resampling, *, only: str | None = None
) -> SimpleNamespace:
    """What `judge` reads of a comparison: evidence on the items, no slices, checks passed."""
    values = {k: v for k, v in damages(one, items).items() if only in (None, k)}
    means = {
        metric: after - before for metric, (before, after) in values.items() if metric != "acc"
    }
    evidence = {}
    if "acc" in values:
        evidence["acc"] = accuracy_evidence(one.right[0][items], one.right[1][items], draw)
    if means:
        drawn = resampled_means(np.stack(list(means.values()), axis=1), draw)
        for column, (metric, damage) in zip(drawn.T, means.items(), strict=True):
            evidence[metric] = mean_evidence(metric, damage, column, draw)
    return SimpleNamespace(
        models={"a": {}},
        evidence=evidence,
        worst_slices={},
        checks=(),
        protocol={"level": 0.95, "n_labelled": len(items), "tasks": ()},
    )


def without_damage(one: Population) -> Population:
    """Half of the items with the two models exchanged: no metric changes on average."""
    half = ITEMS // 2
    sign = np.where(np.arange(ITEMS) < half, 1.0, -1.0)
    items = np.concatenate([np.arange(half), np.arange(half)])
    swap = sign < 0
    right = [
        np.where(swap, other[items], own[items]) for own, other in (one.right, one.right[::-1])
    ]
    change = {metric: sign * values[items] for metric, values in one.change.items()}
    return Population(one.setting, change, (right[0], right[1]), one.confidence)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def document(
    tables: str, options: argparse.Namespace, facts: Mapping[str, str], seconds: float
) -> str:
    """The document: what was simulated, how, and the tables."""
    settings = _table(
        ("setting", "stands for", "scores of the candidate"),
        [(s.name, s.about, _made(s)) for s in SETTINGS],
    )
    return DOCUMENT.format(
        experiments=f"{options.experiments:,}",
        resamples=f"{options.resamples:,}",
        settings=settings,
        tables=tables,
        date=facts["date"],
        seed=SEED,
        cpu=facts["cpu"],
        commit=facts["commit"],
        version=facts["calibit"],
        worst=WORST_CLUSTERS,
        error=_percent(math.sqrt(0.95 * 0.05 / options.experiments)),
        power_error=_percent(math.sqrt(POWER * (1.0 - POWER) / options.experiments)),
        minutes=f"{seconds / 60:.0f}",
        threads=options.threads,
    )


def _made(setting: Setting) -> str:
    return f"{setting.scale:g} x reference's + normal noise of sd {setting.noise:g} nats"


DOCUMENT = """# How valid the intervals and verdicts are

A 95 % interval promises to hold the truth in 95 of 100 experiments; a verdict promises to be wrong
rarely. Here both are measured: `benchmarks/validity.py` makes populations of items whose true
changes are known, draws {experiments} experiments from each, and counts.

{settings}

Items have four choices. The right answer is drawn from the belief behind the reference's scores; in
"sharper" the reference is calibrated, elsewhere it is too sure by a factor of 1.3. In "passages"
the five questions of a passage share most of their difficulty and noise, and whole passages are
resampled: 200 items are 40 passages, BCa is joined with Student's t over passages, and Tango's
counts are divided by the design effect at the level of Student's t.

Where sizes of passages differ, the clusters' effective number (sum n^2)^2 / sum n^4 (Carter,
Schnepel and Steigerwald 2017, in their worst case) takes the place of their number: it gives the
degrees of freedom of Student's t, and below 30 no verdict passes. One passage of 500 items with 30
single ones counts as 1.0. How alike the items of a passage are can be seen only in passages that
hold a changed answer. Tango's design effect therefore counts {worst} passages beside those, which
are as alike inside as can be: where few passages changed, it is near this worst case. The price
is intervals of accuracy that are too wide over few passages (rows "passages").

Targets: means (confidence in the right answer, NLL, Brier score, KL) 93 to 97 %, accuracy (Tango)
at least 94 %. The change of the ECE has no target: it is a biased statistic, its interval misses
the truth too often where a calibrated reference meets a surer candidate, and therefore it never
decides a verdict.

{tables}

`ship` needs every damage below its margin with confidence, so its worst case is a damage that lies
exactly at one margin and far below the others: the first rows. In the rows of slices, the margin is
the true damage in the worst slice; for accuracy it is so small that a slice of this size cannot
pass even where no answer changes, so only the rows of NLL measure a rate. `hold` is triggered by
any one damage: its worst case is all of them at their margins. The planning rule for accuracy takes
the share of changed answers as variance, an upper bound: its power may exceed the prediction. A
power of 80 % has a Monte Carlo standard error of {power_error} points; targets are 3 points either
way, for accuracy at most 3 below.

In the table of passages, nine in ten items of a passage are lost together or not at all, and lost
answers cost an exponential of mean 1 nat. Accuracy keeps the promise, since the worst that unseen
passages can do to it is known. The mean loss in nats does not where only one or two passages in the
whole sample are lost: like rare heavy damage of single items, what was not drawn cannot be seen.

What this does not show: populations are simulated, with shared noise and four choices; a real task
may have heavier tails. Rare heavy damage is one: where 1 % of the items jump by an exponential of
mean 3 nats and all have normal noise of sd 0.05, the upper end of the interval lies below the true
mean far more often than the promised 2.5 % (last rows of the table of few items). A sample without
the rare items cannot show them: `ship` on 200 items does not exclude such damage. Slices are random
here, not those of a task. The targets of the intervals are compared with the shares as they are,
those of the verdicts with an allowance of two Monte Carlo standard errors; a share of 95 % has a
standard error of {error} points.

Made on {date} with calibit {version}, commit {commit}, by `python benchmarks/validity.py`:
{experiments} experiments per row, seed {seed}, {resamples} resamples in each (the default outside
this document is 9,999), {minutes} minutes on {threads} threads of {cpu}.
"""


if __name__ == "__main__":
    main()
