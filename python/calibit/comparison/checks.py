"""Self-audit of a comparison: each side alone, storage, and whether both were asked the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from calibit.comparison.pairing import SAME_META, Paired, RunLike, by_key
from calibit.comparison.texts import TextComparison
from calibit.measures.gain import TOP_LABEL_METHODS
from calibit.measures.scores import Scores
from calibit.measures.self_audit import MOST_CUT, Check, self_audit, self_comparison
from calibit.recalibration import IDENTITY, items_hash
from calibit.runs import RECALIBRATION, Run

MOST_UNSCORED = 0.01
"""Largest share of a task's items without a score beside which anything ships."""


def checks_of(
    run_a: RunLike, run_b: RunLike, paired: Paired, texts: Sequence[TextComparison] = ()
) -> tuple[Check, ...]:
    """Every check that two paired runs allow.

    Args:
        run_a, run_b: reference and candidate.
        paired: their items.
        texts: their texts.
    """
    found: list[Check] = []
    for name, run, scores, lines in (
        ("a", run_a, paired.a, paired.lines_a),
        ("b", run_b, paired.b, paired.lines_b),
    ):
        found += self_audit(scores, name=name, lines=lines)
        prompts, cut = _count(run.meta, "prompts"), _count(run.meta, "prompts_truncated")
        if prompts:
            detail = f"{name}: {cut} of {prompts} prompts cut to fit (limit {MOST_CUT:.0%})"
            found.append(Check("cut prompts", cut <= MOST_CUT * prompts, cut, None, detail))
        found += _in_sample(run, scores.rule, name)
        stored = _stored(run, scores.rule)
        if stored is not None:
            found.append(self_comparison(run.scores(scores.rule), stored, name=name))
    found += _unscored_items(paired) + _lost_items(paired) + _lost_tokens(texts)
    return (*found, _pair_identity(run_a.meta, run_b.meta, paired))


def cut_notes(*metas: Mapping[str, Any]) -> list[str]:
    """How many items, prompts and segments of the runs were cut to fit; each sentence once.

    Args:
        metas: the `run.json` of each run.
    """
    found = []
    for meta in metas:
        if items := _count(meta, "truncated"):
            found.append(
                f"{items} of {_count(meta, 'items')} items have a context that was cut on the left "
                "to fit the model"
            )
        if prompts := _count(meta, "prompts_truncated"):
            found.append(
                f"{prompts} of {_count(meta, 'prompts')} prompts were cut on the left to fit the "
                "model with what they may generate"
            )
        if segments := _count(meta, "segments_truncated"):
            found.append(
                f"{segments} of {_count(meta, 'segments')} segments of parallel texts were cut on "
                "the right to fit the model: what follows was not scored"
            )
    return list(dict.fromkeys(found))


def _count(meta: Mapping[str, Any], key: str) -> int:
    return int((meta.get("scoring") or {}).get(key) or 0)


def _stored(run: RunLike, rule: str) -> Scores | None:
    """Scores of a recorded run after the whole way through storage: of its folder, read anew, or
    of its lines as JSON. None for a run of another kind."""
    if not isinstance(run, Run):
        return None
    if run.path is not None:
        return Run.load(run.path).scores(rule)
    return Run.of(run.meta, [json.loads(json.dumps(line)) for line in run.items()]).scores(rule)


def _in_sample(run: RunLike, rule: str, name: str) -> list[Check]:
    """Fails where a run is judged on the items that its recalibration map was fitted on: they show
    the map better than it is. A map of the top answer's confidence leaves the scores alone."""
    applied = run.meta.get(RECALIBRATION)
    if applied is None or applied["method"] in (IDENTITY, *TOP_LABEL_METHODS):
        return []
    same = applied["items_hash"] == items_hash(run.scores(rule))
    where = "these very items: fit it on others" if same else "other items"
    detail = f"{name}: the {applied['method']} map was fitted on {where}"
    return [Check("calibration map", not same, applied["n"] * same, None, detail)]


def unscored_notes(paired: Paired) -> list[str]:
    """How many items the reference could not score, so that nothing is said of them."""
    bad = _unscored(paired)
    if not bad:
        return []
    reason = bad[0].get("reason") or "without reason"
    return [
        f"{len(bad)} of {len(paired.lines_a)} items were not scored in a and say nothing, the "
        f"first {bad[0]['task']}/{bad[0]['id']}: {reason}"
    ]


def _unscored(paired: Paired) -> list[Mapping[str, Any]]:
    return [line for line in paired.lines_a if line.get("ll", ()) is None]


def _unscored_items(paired: Paired) -> list[Check]:
    """Fails where a task lost more than MOST_UNSCORED of its items before anything was compared:
    what became of them nobody saw."""
    bad = _unscored(paired)
    lost, size = (Counter(str(one["task"]) for one in part) for part in (bad, paired.lines_a))
    over = [task for task, count in lost.items() if count > MOST_UNSCORED * size[task]]
    if not bad:
        return []
    first = next((str(one["id"]) for one in bad if not over or str(one["task"]) == over[0]), None)
    detail = (
        f"a: {len(bad)} of {len(paired.lines_a)} items not scored (limit {MOST_UNSCORED:.0%} of "
        f"each task){': ' * bool(over)}{', '.join(over)}"
    )
    return [Check("unscored items", not over, len(bad), first, detail)]


def _lost_items(paired: Paired) -> list[Check]:
    """Fails: what the candidate could not score is damage. It must not leave with its items."""
    if not paired.lost:
        return []
    first = paired.lost[0]
    reason = by_key(paired.lines_b)[first].get("reason") or "without reason"
    detail = (
        f"b: {len(paired.lost)} items that a scored were evaluated and not scored, the first "
        f"{'/'.join(first)}: {reason}"
    )
    return [Check("item accounting", False, len(paired.lost), first[1], detail)]


def _lost_tokens(texts: Sequence[TextComparison]) -> list[Check]:
    """Fails: a text on which the candidate alone has tokens without a finite log-likelihood."""
    lost = [text for text in texts if text.lost]
    if not lost:
        return []
    count, first = sum(text.lost for text in lost), lost[0].name
    detail = "b: " + "; ".join(text.lost_reason for text in lost)
    return [Check("log-probabilities", False, count, first, detail)]


def _pair_identity(a: Mapping[str, Any], b: Mapping[str, Any], paired: Paired) -> Check:
    """What pairing made sure of, and what differs all the same: contexts cut to other lengths, a
    chat template in one run only, weights that were fine-tuned before they were quantized."""
    first, second = by_key(paired.lines_a), by_key(paired.lines_b)
    both = [key for key in paired.a.keys if key in first and key in second]
    hashed = sum("context_hash" in first[key] and "context_hash" in second[key] for key in both)
    cut = [key[1] for key in both if _cut(first[key]) != _cut(second[key])]
    same = [words for key, words in SAME_META.items() if None not in (a.get(key), b.get(key))]
    detail = (
        f"{paired.a.n} items with equal ids, labels and numbers of choices under rule "
        f"{paired.a.rule}; equal prompts and choices by hash: {hashed}; equal in both runs: "
        f"{', '.join(same) or 'no setting that both record'}"
    )
    if any(paired.unpaired):
        detail += f"; {sum(paired.unpaired)} items of one run only, left out as allowed"
    if cut:
        detail += f"; {len(cut)} items whose context was cut in one run only"
    if template := a.get("chat_template_hash") != b.get("chat_template_hash"):
        detail += "; another chat template"
    if tuned := _finetuning(a) != _finetuning(b):
        detail += "; weights that were fine-tuned in one run and not, or otherwise, in the other"
    count = len(cut) + template + tuned
    return Check("pair identity", not count, count, cut[0] if cut else None, detail)


def _finetuning(meta: Mapping[str, Any]) -> Any:
    model = meta.get("model")
    return model.get("finetuning") if isinstance(model, Mapping) else None


def _cut(line: Mapping[str, Any]) -> bool:
    return bool(line.get("truncated"))
