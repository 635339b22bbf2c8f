"""compare(): pair two runs and compute everything a Comparison holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibit.comparison.checks import checks_of, cut_notes, unscored_notes
from calibit.comparison.continuations import compare_continuations
from calibit.comparison.controls import ExtraRuns, control_evidence, controls_of
from calibit.comparison.evidence import (
    Evidence,
    label_evidence,
    slice_searches,
    text_evidence,
)
from calibit.comparison.generated import compare_generated
from calibit.comparison.joining import Key
from calibit.comparison.pairing import Paired, RunLike, as_run, cluster_labels, pair
from calibit.comparison.result import Comparison, Flips
from calibit.comparison.tables import slice_keys, slice_table
from calibit.comparison.testing import difference_tests
from calibit.comparison.texts import TextComparison, compare_texts, text_windows
from calibit.measures import fidelity
from calibit.measures.binning import DEFAULT_BINS, ReliabilityBin, reliability
from calibit.measures.estimate import Estimate, undefined
from calibit.measures.intervals import FEW_CLUSTERS, few_clusters, share_interval
from calibit.measures.paired import McNemar, mcnemar
from calibit.measures.power import mde_mean
from calibit.measures.resampling import Resampling
from calibit.measures.scores import Scores
from calibit.measures.self_audit import at_chance
from calibit.measures.slice_search import SliceSearch, worst_slice
from calibit.measures.slices import (
    N_MIN,
    N_MIN_ACC,
    Slices,
    pairs_of,
    quartile_slices,
    slices_by_key,
)
from calibit.measures.summaries import NO_LABELS, Panel, differences, divergences, panel
from calibit.measures.word_frequency import WordFrequencies, text_frequencies


def compare(
    run_a: RunLike | str | Path,
    run_b: RunLike | str | Path,
    *,
    rule: str = "sum",
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    bins: int = DEFAULT_BINS,
    allow_partial: bool = False,
    clusters: str | None = None,
    extra: ExtraRuns | None = None,
) -> Comparison:
    """Compare a candidate with a reference, item by item.

    Args:
        run_a: reference: a run or the folder of one.
        run_b: candidate.
        rule: scoring rule: sum, token, char, byte or pmi.
        level: two-sided level of the intervals.
        resamples: bootstrap resamples.
        seed: seed of all resampling; the result is a pure function of the runs and these options.
        bins: bins of the calibration errors.
        allow_partial: compare the common items where some are missing in one run.
        clusters: slice key or item field whose values name clusters (passage, document): they are
            then resampled whole. Where omitted, the field `cluster` that some tasks write.
        extra: further runs of the same items, for the controls that need them: re-runs of the
            reference, another form of the items, perturbed copies.

    Returns:
        The comparison; what needs labels is None with a reason where no item has one.

    Raises:
        ValueError: if the runs do not pair (the message names the items), or tokenizer, BOS rule,
            prompts, choices, labels or texts differ; if a further run lacks items; if no item has
            the cluster key.

    Example:
        `compare("runs/base", "runs/nf4").verdict()`
    """
    a, b = as_run(run_a), as_run(run_b)
    paired = pair(a, b, rule=rule, allow_partial=allow_partial)
    draw = Resampling(level, resamples, seed, cluster_labels(paired, clusters))
    first, second = (panel(one, bins=bins, resampling=draw) for one in (paired.a, paired.b))
    texts, warnings = compare_texts(a, b, replace(draw, clusters=None))
    continuations = compare_continuations(a, b, draw)
    generated = compare_generated(a, b, draw, clusters=clusters, allow_partial=allow_partial)
    known = paired.a.labelled
    right_a, right_b, own = paired.a.take(known), paired.b.take(known), draw.take(known)
    searches, search = _searches(first, second, right_a, own, _contexts(a))
    flips = _flips(paired, draw)
    evidence = (
        label_evidence(first, second)
        | _text_evidence(texts, a, b, replace(draw, clusters=None))
        | {**continuations.evidence, **generated.evidence}
        | control_evidence(paired, extra or ExtraRuns(), draw)
    )
    return Comparison(
        models={
            "a": _describe(a.meta, "a") | {"at_chance": at_chance(paired.a)},
            "b": _describe(b.meta, "b") | {"at_chance": at_chance(paired.b)},
        },
        protocol=_protocol(paired, draw, bins),
        a=first.estimates(),
        b=second.estimates(),
        deltas=differences(first, second),
        flips=flips,
        mcnemar=_mcnemar(flips),
        tests=difference_tests(first, second, draw),
        recovery=_recovery(first, second),
        **divergences(paired.a, paired.b, resampling=draw),
        texts=tuple(texts),
        workload=continuations.workload,
        parallel=continuations.parallel,
        generated=generated.tasks,
        slices=tuple(slice_table(right_a, right_b, own)),
        worst_slices=searches,
        search=search,
        reliability_a=_reliability(right_a, bins, level),
        reliability_b=_reliability(right_b, bins, level),
        controls=controls_of(paired, extra or ExtraRuns(), draw),
        points=_points(right_a, right_b),
        checks=checks_of(a, b, paired, texts),
        warnings=(
            *_order(a.meta, b.meta),
            *paired.warnings,
            *unscored_notes(paired),
            *cut_notes(a.meta, b.meta),
            *warnings,
            *continuations.warnings,
            *generated.warnings,
            *_uncompared(a),
            *_notes(paired, draw),
        ),
        evidence=evidence,
        mde={
            name: mde_mean(one.n, one.sd, alpha=1.0 - level)
            for name, one in evidence.items()
            if one.sd > 0.0
        },
    )


def _searches(
    a: Panel, b: Panel, labelled: Scores, draw: Resampling, contexts: Mapping[Key, str]
) -> tuple[dict[str, SliceSearch], SliceSearch | None]:
    declared = slices_by_key(slice_keys(labelled), n_min=N_MIN_ACC)
    searches = slice_searches(a, b, declared, draw)
    first, second = a.statistics["conf_true"].values, b.statistics["conf_true"].values
    if first is None or second is None:
        return searches, None
    family = _exploratory(declared.at_least(N_MIN), labelled, contexts)
    return searches, worst_slice(first - second, family, metric="conf_true", resampling=draw)


def _contexts(run: RunLike) -> dict[Key, str]:
    """What each item asks; empty where it was not stored."""
    read = getattr(run, "docs", None)
    docs = (read() if read else None) or ()
    return {(str(doc["task"]), str(doc["id"])): doc["context"] for doc in docs if "context" in doc}


def _exploratory(declared: Slices, labelled: Scores, contexts: Mapping[Key, str]) -> Slices:
    entropy = quartile_slices("reference entropy", labelled.distributions.entropy)
    choices = slices_by_key([{"choices": str(k)} for k in labelled.distributions.k])
    single = declared + entropy + choices
    if labelled.n and all(key in contexts for key in labelled.keys):
        texts = [contexts[key] for key in labelled.keys]
        length = np.array([len(text) for text in texts], dtype=np.float64)
        single = single + quartile_slices("context length", length)
        mean, _ = text_frequencies(texts, WordFrequencies.of(texts))
        if np.isfinite(mean).all():
            single = single + quartile_slices("word frequency among the items", mean)
    return single + pairs_of(single)


def _flips(paired: Paired, draw: Resampling) -> Flips:
    changed = paired.a.distributions.predicted != paired.b.distributions.predicted
    all_rate = _rate("all_flip_rate", changed, draw, "no items")
    known = paired.a.labelled
    if not known.any():
        none = undefined("flip_rate", NO_LABELS)
        return Flips(None, None, None, None, None, int(changed.sum()), none, all_rate)
    before, after = paired.a.correct[known], paired.b.correct[known]
    rr, rw, wr, ww = (
        int(count(before, after)) for count in (fidelity.rr, fidelity.rw, fidelity.wr, fidelity.ww)
    )
    rate = _rate("flip_rate", before != after, draw.take(known), NO_LABELS)
    return Flips(rr, rw, wr, ww, rw + wr, int(changed.sum()), rate, all_rate)


def _rate(metric: str, hits: np.ndarray, draw: Resampling, empty: str) -> Estimate:
    if not len(hits):
        return undefined(metric, empty)
    found = share_interval(hits.astype(np.float64), draw)
    return Estimate(metric, float(hits.mean()), n=len(hits)).with_interval(found)


def _mcnemar(flips: Flips) -> McNemar | None:
    return None if flips.rw is None or flips.wr is None else mcnemar(flips.rw, flips.wr)


def _recovery(a: Panel, b: Panel) -> Estimate | None:
    """Accuracy of the candidate as a share of the reference's."""
    before, after = (side.statistics["acc"].estimate.value for side in (a, b))
    return None if before is None or after is None else fidelity.recovery(before, after)


def _reliability(labelled: Scores, bins: int, level: float) -> tuple[ReliabilityBin, ...]:
    c, r = labelled.distributions.confidence, labelled.correct
    return reliability(c, r, bins=bins, level=level)


def _points(a: Scores, b: Scores) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {"ids": np.array(a.ids), "tasks": np.array(a.tasks)}
    for side, scores in (("a", a), ("b", b)):
        d = scores.distributions
        out[f"conf_true_{side}"] = d.of(scores.gold)[0]
        out[f"conf_{side}"] = d.confidence
        out[f"correct_{side}"] = scores.correct
    return out


def _notes(paired: Paired, draw: Resampling) -> list[str]:
    notes = []
    clusters, effective = draw.cluster_count, draw.effective_clusters
    if clusters is not None:
        notes.append(
            f"the {paired.a.n} items form {clusters} clusters, which were resampled whole "
            f"(effective number {effective:.1f}); McNemar's test takes items as independent"
        )
    if few_clusters(effective):
        notes.append(
            f"{effective:.1f} effective clusters are few: intervals over fewer than {FEW_CLUSTERS} "
            "may miss the truth more often than they say, and no verdict of ship rests on them"
        )
    if not paired.a.n:
        notes.append("the runs hold no multiple-choice items")
    elif not paired.a.labelled.any():
        notes.append("no item is labelled: accuracy and calibration are undefined")
    for name, scores in (("reference", paired.a), ("candidate", paired.b)):
        if at_chance(scores):
            notes.append(
                f"the accuracy of the {name} is not shown to be above chance: "
                "its confidence should not be interpreted"
            )
    return notes


def _order(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """That the runs seem to be given the wrong way round, or one of them twice."""
    if b.get("scheme") == "none" and a.get("scheme") not in (None, "none"):
        return [
            f"the reference is quantized ({a['scheme']}) and the candidate is not: the verdict is "
            "on the candidate; give the original's run first"
        ]
    facts = [(meta.get("weight_hash"), meta.get("scheme"), meta.get("dtype")) for meta in (a, b)]
    same = facts[0][0] is not None and facts[0] == facts[1]
    return ["both runs are of the same weights: the changes are those of re-runs"] if same else []


def _uncompared(run: RunLike) -> list[str]:
    """Items of a run that a comparison passes over."""
    read = getattr(run, "continuations", None)
    left = len(read()) if read else 0
    return [f"{left} items with a single choice are not compared, only measured"] if left else []


def _text_evidence(
    texts: Sequence[TextComparison], a: RunLike, b: RunLike, draw: Resampling
) -> dict[str, Evidence]:
    """Evidence on the common texts; none where the candidate lost tokens of one of them."""
    if any(text.lost for text in texts):
        return {}
    found = text_evidence(*text_windows(a, b), draw)
    return {} if found is None else {found.metric: found}


def _describe(meta: Mapping[str, Any], side: str) -> dict[str, Any]:
    scheme, model = meta.get("scheme"), meta.get("model")
    model_name = model.get("name") if isinstance(model, Mapping) else model
    named = meta.get("name") or (scheme if scheme not in (None, "none") else model_name)
    return {
        "name": named or side,
        "title": _title(str(meta.get("name") or model_name or named or side), scheme),
        "model": model_name,
        "scheme": scheme,
        "weight_hash": meta.get("weight_hash"),
    }


def _title(name: str, scheme: object) -> str:
    """The last part of a model's name, and its scheme where that is known and not said by it."""
    short = name.rstrip("/").rpartition("/")[2]
    if scheme is None or str(scheme) in short:
        return short
    return f"{short} ({'not quantized' if scheme == 'none' else scheme})"


def _protocol(paired: Paired, draw: Resampling, bins: int) -> dict[str, Any]:
    labelled = Counter(
        task for task, known in zip(paired.a.tasks, paired.a.labelled, strict=True) if known
    )
    return {
        "rule": paired.a.rule,
        "level": draw.level,
        "resamples": draw.resamples,
        "seed": draw.seed,
        "bins": bins,
        "n": paired.a.n,
        "n_labelled": int(paired.a.labelled.sum()),
        "tasks": [
            {"name": name, "n": n, "n_labelled": labelled[name]}
            for name, n in Counter(paired.a.tasks).items()
        ],
        "clusters": draw.cluster_count,
        "effective_clusters": draw.effective_clusters,
        "few_clusters": few_clusters(draw.effective_clusters),
        "unpaired": {"a": paired.unpaired[0], "b": paired.unpaired[1]},
    }
