"""Two models on the same continuations, token by token: a user's workload, parallel texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from calibit.comparison.evidence import Evidence, per_token_evidence
from calibit.comparison.pairing import RunLike
from calibit.measures.confidence import mean_of
from calibit.measures.estimate import Estimate, plain, undefined
from calibit.measures.intervals import bounded_mean, share_interval, within
from calibit.measures.paired import cluster_index
from calibit.measures.perplexity import d_text_nll, ppl
from calibit.measures.repetition import greedy_prefix, prefix_shares
from calibit.measures.resampling import Resampling
from calibit.measures.signed import entropy_correlation, unsure_share
from calibit.measures.slices import N_MIN
from calibit.measures.token_level import TokenFidelity, token_mean
from calibit.runs import WORKLOAD

NO_KL = "the candidate was evaluated without the reference's distributions"


@dataclass(frozen=True)
class WorkloadComparison:
    """The reference's greedy continuations of a user's prompts, put through both models.

    Attributes:
        prompts, tokens: how many.
        kl: mean KL(a || b) per token, nats; prompts are resampled whole, here and below.
        d_p_true: mean change of the probability of the reference's token.
        lost_share: share of tokens whose probability fell.
        same_top: share of positions where both models put the same token first.
        d_nll: change of the token NLL, nats.
        greedy_prefix: share of a continuation that the candidate's own greedy decoding would
            repeat before its first other token, mean over prompts; `extra` holds the mean in
            `tokens`, the share of `identical` continuations, and `own`, the same of the reference
            (below 1 only by the rounding of another batch).
        length: mean length of the continuations, tokens; `extra["ended"]` is the share that the
            reference ended by itself.
        fidelity: the distributions of KL and of the change of probability over tokens.
        slices: per slice key and value: n (prompts), kl, greedy_prefix.
    """

    prompts: int
    tokens: int
    kl: Estimate
    d_p_true: Estimate
    lost_share: Estimate
    same_top: Estimate
    d_nll: Estimate
    greedy_prefix: Estimate
    length: Estimate
    fidelity: Mapping[str, Any]
    slices: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


@dataclass(frozen=True)
class ParallelComparison:
    """The same content in several languages under both models.

    Attributes:
        name: the parallel text.
        segments: segments of each language.
        languages: per language lang, n (segments), cut (those too long for the model, scored in
            part), documents, tokens, tokens per byte, ppl_a, ppl_b, ratio (perplexity b / a), d_nll
            and kl per token; documents are resampled whole.
        worst: the language with the largest loss shown: lang, d_nll and ratio with bounds that
            allow for having looked at all languages (Bonferroni), and whether a loss is `shown`.
    """

    name: str
    segments: int
    languages: tuple[Mapping[str, Any], ...]
    worst: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return plain(vars(self))


@dataclass(frozen=True)
class Continuations:
    """What two runs say about continuations.

    Attributes:
        workload: None where the runs share none.
        parallel: parallel texts in both runs.
        evidence: for the verdict.
        warnings: what could not be compared.
    """

    workload: WorkloadComparison | None = None
    parallel: tuple[ParallelComparison, ...] = ()
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Pair:
    """One source in both runs: its lines, and the measures of its positions by line number."""

    lines: list[Mapping[str, Any]]
    number: np.ndarray
    a: Mapping[str, np.ndarray]
    b: Mapping[str, np.ndarray]

    def take(self, keep: Callable[[Mapping[str, Any]], bool]) -> _Pair:
        """Some of the lines, numbered anew."""
        chosen = [index for index, line in enumerate(self.lines) if keep(line)]
        place = np.full(len(self.lines), -1)
        place[chosen] = np.arange(len(chosen))
        rows = place[self.number] >= 0
        first, second = ({k: v[rows] for k, v in side.items()} for side in (self.a, self.b))
        return _Pair([self.lines[i] for i in chosen], place[self.number[rows]], first, second)

    @property
    def clusters(self) -> np.ndarray:
        """Cluster of each position."""
        labels = cluster_index([line["cluster"] for line in self.lines], len(self.lines))
        return labels[self.number]

    def per_line(self, column: np.ndarray) -> list[list[int]]:
        """A column as one list for each line."""
        ends = np.cumsum(np.bincount(self.number, minlength=len(self.lines)))[:-1]
        return [part.tolist() for part in np.split(column, ends)]

    def mean(self, metric: str, values: np.ndarray, draw: Resampling, unit: str = "") -> Estimate:
        """Mean per token, clusters resampled whole."""
        return token_mean(metric, values, self.clusters, resampling=draw, unit=unit)

    def share(self, metric: str, hits: np.ndarray, draw: Resampling) -> Estimate:
        """Share of tokens, with Clopper and Pearson's interval over clusters."""
        found = Estimate(metric, float(hits.mean()), n=len(hits))
        own = replace(draw, clusters=self.clusters)
        return found.with_interval(share_interval(hits.astype(np.float64), own))

    @property
    def kl(self) -> np.ndarray | None:
        """KL(a || b) of each position, nats; None where it was not recorded."""
        return self.b.get("kl")


def compare_continuations(a: RunLike, b: RunLike, resampling: Resampling) -> Continuations:
    """Compare every workload and parallel text that both runs hold.

    Args:
        a: reference run.
        b: candidate run, evaluated with `reference=` a.
        resampling: level, resamples and seed; its clusters are not used.
    """
    draw = replace(resampling, clusters=None)
    sides = [_forced(run) for run in (a, b)]
    if None in sides:
        one = [side for side in sides if side is not None]
        return Continuations(warnings=tuple(_alone(source) for s in one for source in s.sources))
    first, second = sides
    warnings = [_alone(s) for s in sorted({*first.sources} ^ {*second.sources})]
    workload: WorkloadComparison | None = None
    parallel: list[ParallelComparison] = []
    evidence: dict[str, Evidence] = {}
    for source in [one for one in first.sources if one in second.sources]:
        pair = _paired(first, second, source)
        if pair is None:
            warnings.append(
                f"the continuations of the {_words(source)} differ between the runs and were not "
                "compared: evaluate the candidate with the reference's run (--reference)"
            )
        elif source == WORKLOAD:
            workload = _workload(pair, draw)
            if pair.kl is not None:
                evidence["token_kl"] = per_token_evidence("token_kl", pair.kl, pair.clusters, draw)
        else:
            parallel.append(_parallel(source, pair, draw))
    return Continuations(workload, tuple(parallel), evidence, tuple(warnings))


def _forced(run: RunLike) -> Any:
    read = getattr(run, "forced", None)
    return read() if read else None


def _alone(source: str) -> str:
    return (
        f"the {_words(source)} is in one run only and was not compared: evaluate both with "
        "--reference"
    )


def _words(source: str) -> str:
    return "workload" if source == WORKLOAD else f"parallel text {source!r}"


def _paired(a: Any, b: Any, source: str) -> _Pair | None:
    """One source in both runs; None where contexts or continuations differ."""
    first, second = (_part(side, source) for side in (a, b))
    keys = ("id", "context", "target")
    if [[line[k] for k in keys] for line in first[0]] != [
        [line[k] for k in keys] for line in second[0]
    ]:
        return None
    return _Pair(first[0], first[1], first[2], second[2])


def _part(side: Any, source: str) -> tuple[list[Any], np.ndarray, dict[str, np.ndarray]]:
    numbers = [i for i, line in enumerate(side.sequences) if line["source"] == source]
    place = np.full(len(side.sequences), -1)
    place[numbers] = np.arange(len(numbers))
    own = place[side.measures["sequence"]]
    measures = {name: column[own >= 0] for name, column in side.measures.items()}
    return [side.sequences[i] for i in numbers], own[own >= 0], measures


def _workload(pair: _Pair, draw: Resampling) -> WorkloadComparison:
    before, after = pair.a["log_true"], pair.b["log_true"]
    change, same = np.exp(after) - np.exp(before), pair.a["argmax"] == pair.b["argmax"]
    lengths = np.array([len(line["target"]) for line in pair.lines], dtype=np.float64)
    ended = float(np.mean([bool(line.get("ended")) for line in pair.lines]))
    return WorkloadComparison(
        prompts=len(pair.lines),
        tokens=len(pair.number),
        kl=_kl(pair, draw),
        d_p_true=pair.mean("d_p_true", change, draw),
        lost_share=pair.share("lost_share", change < 0, draw),
        same_top=pair.share("same_top", same, draw),
        d_nll=pair.mean("d_nll", before - after, draw, "nats"),
        greedy_prefix=_prefix(pair, draw),
        length=mean_of("len_tokens", lengths, draw, unit="tokens", ended=ended),
        fidelity=_fidelity(pair, change, same, draw),
        slices=tuple(_slices(pair, draw)),
    )


def _kl(pair: _Pair, draw: Resampling) -> Estimate:
    if pair.kl is None:
        return undefined("token_kl", NO_KL, unit="nats")
    return within(pair.mean("token_kl", pair.kl, draw, "nats"), 0.0)


def _prefix(pair: _Pair, draw: Resampling) -> Estimate:
    """Up to the first other token both models have seen the same text, so the candidate's choices
    there are those of its own greedy decoding."""
    given, own, other = (
        pair.per_line(column) for column in (pair.a["token"], pair.a["argmax"], pair.b["argmax"])
    )
    shares = np.array(prefix_shares(given, other), dtype=np.float64)
    lengths = np.array([len(one) for one in given])
    found = mean_of(
        "greedy_prefix",
        shares,
        draw,
        tokens=float(np.mean(shares * lengths)),
        identical=float(np.mean(shares == 1.0)),
        own=float(greedy_prefix(given, own)),
    )
    return bounded_mean(found, shares)


def _fidelity(
    pair: _Pair, change: np.ndarray, same: np.ndarray, draw: Resampling
) -> dict[str, Any]:
    if pair.kl is None:
        return {}
    entropy = pair.a["entropy"]
    found = TokenFidelity(
        -pair.a["log_true"],
        -pair.b["log_true"],
        pair.kl,
        change,
        same,
        np.exp(pair.a["log_top"]),
        entropy,
    )
    return {
        "perplexity": found.perplexity(),
        "kl": found.divergence(),
        "delta_p": found.delta(),
        "same_top": found.same_top_share(),
        "kl_by_top_probability": found.kl_by_top_probability(),
        "kl_by_entropy": {
            "share": unsure_share(pair.kl, entropy, replace(draw, clusters=pair.clusters)),
            "spearman": entropy_correlation(pair.kl, entropy),
        },
    }


def _slices(pair: _Pair, draw: Resampling) -> list[dict[str, Any]]:
    """Token KL and greedy prefix in every slice of at least 30 prompts and fewer than all."""
    named: dict[tuple[str, str], int] = {}
    for line in pair.lines:
        for key in line["slices"].items():
            named[key] = named.get(key, 0) + 1
    rows = []
    for (key, value), n in sorted(named.items()):
        if N_MIN <= n < len(pair.lines):
            own = pair.take(lambda line, k=key, v=value: line["slices"].get(k) == v)  # type: ignore[misc]
            row = {"key": key, "value": value, "n": n, "kl": _kl(own, draw)}
            rows.append({**row, "greedy_prefix": _prefix(own, draw)})
    return rows


def _parallel(name: str, pair: _Pair, draw: Resampling) -> ParallelComparison:
    langs = list(dict.fromkeys(str(line["group"]) for line in pair.lines))
    parts = {lang: pair.take(lambda line, g=lang: line["group"] == g) for lang in langs}  # type: ignore[misc]
    rows = tuple(_language(lang, part, draw) for lang, part in parts.items())
    strict = replace(draw, level=1.0 - (1.0 - draw.level) / len(langs))
    changes = {lang: _change(part, strict) for lang, part in parts.items()}
    return ParallelComparison(name, max(row["n"] for row in rows), rows, _worst(changes))


def _language(lang: str, pair: _Pair, draw: Resampling) -> dict[str, Any]:
    change = _change(pair, draw)
    size = sum(int(line.get("bytes", 0)) for line in pair.lines)
    whole = sum(int(line.get("uncut", len(line["target"]))) for line in pair.lines)
    return {
        "lang": lang,
        "n": len(pair.lines),
        "cut": sum("uncut" in line for line in pair.lines),
        "documents": int(pair.clusters.max()) + 1,
        "tokens": len(pair.number),
        "tokens_per_byte": whole / size if size else None,
        "ppl_a": ppl(-pair.a["log_true"]),
        "ppl_b": ppl(-pair.b["log_true"]),
        "d_nll": change,
        "ratio": _ratio(change),
        "kl": _kl(pair, draw),
    }


def _change(pair: _Pair, draw: Resampling) -> Estimate:
    return d_text_nll(
        -pair.a["log_true"], -pair.b["log_true"], windows=pair.clusters, resampling=draw
    )


def _ratio(change: Estimate) -> dict[str, float | None]:
    """Perplexity ratio with its bounds."""
    ends = {"value": "ratio", "lower": "ratio_lower", "upper": "ratio_upper"}
    return {name: change.extra.get(key) for name, key in ends.items()}


def _worst(changes: Mapping[str, Estimate]) -> dict[str, Any]:
    bounded = {lang: one for lang, one in changes.items() if one.lower is not None}
    pool: Sequence[str] = list(bounded or changes)

    def least(lang: str) -> float:
        one = changes[lang]
        return float(one if one.lower is None else one.lower)

    lang = max(pool, key=least)
    return {
        "lang": lang,
        "d_nll": changes[lang],
        "ratio": _ratio(changes[lang]),
        "searched": len(changes),
        "shown": changes[lang].lower is not None and least(lang) > 0.0,
    }
