"""Repetition of two models' own answers: recorded, paired, gated, shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import calibit
import tiny_models
import tiny_tokenizers
from calibit.comparison.repeating import METRICS
from calibit.evaluation import evaluate
from calibit.measures import repetition
from calibit.measures.repetition import repetition_of
from calibit.reporting.document import of_comparison
from calibit.reporting.html import write_report
from calibit.runs import Run
from calibit.tasks import Prompt
from calibit.tasks.answers import Answer
from calibit.verdict import Policy

META = {"bos": "tokenizer", "tokenizer_hash": "t", "model": {"name": "m"}, "text": []}
CAT = "the cat sat on the cat mat"
LOOP = [1, 2, 3] * 10


def run_of(texts: Sequence[tuple[Sequence[int], str]], *, recorded: bool = True) -> Run:
    """A run of one task with these answers."""
    lines = [
        {
            "kind": "generate", "id": f"t-{i}", "task": "t", "slices": {}, "correct": True,
            "text_hash": text, "tokens": len(ids), "ended": True, "context_hash": "c",
            "choices_hash": "a",
            **({"repetition": repetition_of(ids, text)} if recorded else {}),
        }
        for i, (ids, text) in enumerate(texts)
    ]  # fmt: skip
    return Run.of(META, lines)


def several(n: int, looping: int) -> list[tuple[list[int], str]]:
    """Answers of 30 tokens, the first `looping` of which repeat three."""
    rng = np.random.default_rng(n)
    plain = [rng.permutation(100)[:30].tolist() for _ in range(n)]
    return [(LOOP if i < looping else ids, CAT) for i, ids in enumerate(plain)]


def test_one_text_equals_the_measures_over_texts() -> None:
    for ids, text in ((LOOP, CAT), ([5, 6, 5, 6, 5], "no no no number number"), ([1, 2], "")):
        found = repetition_of(ids, text)
        for n in range(1, 5):
            assert found[f"seq_rep_{n}"] == repetition.seq_rep_n([ids], n).value
            assert found[f"distinct_tok_{n}"] == repetition.distinct_n_tok([ids], n).value
        assert found["dup_words"] == repetition.dup_words([text]).value
        assert found["dup_rate"] == repetition.dup_rate([text]).value
        assert found["loop"] == repetition.loop_rate([ids]).value


def test_means_of_both_models_equal_the_measures() -> None:
    texts = [several(40, 3), several(40, 13)]
    [task] = calibit.compare(*(run_of(one) for one in texts), resamples=200).generated
    assert set(task.repetition) == set(METRICS)
    ids = [[answer for answer, _ in side] for side in texts]
    for n in range(1, 5):
        for key, measure in (
            (f"seq_rep_{n}", repetition.seq_rep_n),
            (f"distinct_{n}", repetition.distinct_n),
            (f"distinct_tok_{n}", repetition.distinct_n_tok),
        ):
            row = task.repetition[key]
            expected = [float(measure(side, n)) for side in ids]
            assert (row["a"], row["b"]) == pytest.approx(expected, rel=1e-12)
            assert float(row["change"]) == pytest.approx(expected[1] - expected[0], abs=1e-12)
    loops = task.repetition["loop_rate"]
    assert (loops["a"], loops["b"], loops["n"]) == (pytest.approx(3 / 40), 13 / 40, 40)
    assert loops["change"].lower < 0.25 < loops["change"].upper


def test_short_answers_are_left_out_in_pairs() -> None:
    before = [([1, 2, 3, 4, 5], CAT), ([1], CAT), ([1, 2, 3, 4, 1], CAT)]
    after = [([1, 2, 3, 4, 5], CAT), ([1, 2, 3, 4, 5], CAT), ([1, 1, 1, 1, 1], CAT)]
    [task] = calibit.compare(run_of(before), run_of(after), resamples=200).generated
    row = task.repetition["seq_rep_4"]
    assert row["n"] == 2 and row["a"] == 0.0 and row["b"] == pytest.approx(0.25)


def test_runs_without_it_compare_as_before() -> None:
    old, new = (run_of(several(40, 0), recorded=kept) for kept in (False, True))
    found = calibit.compare(old, new, resamples=200)
    assert found.generated[0].repetition == {} and "repetition" not in found.evidence
    verdict = found.verdict(Policy({"repetition": 0.05}))
    assert verdict.verdict == "inconclusive" and "repeated 4-grams" in verdict.reasons[0]


@pytest.mark.parametrize(("looping", "verdict"), [(0, "ship"), (60, "hold"), (5, "inconclusive")])
def test_a_policy_gates_repetition(looping: int, verdict: str) -> None:
    runs = [run_of(several(100, n)) for n in (0, looping)]
    judged = calibit.compare(*runs, resamples=400).verdict(Policy({"repetition": 0.05}))
    assert judged.verdict == verdict
    [gate] = judged.gates
    # 30 tokens of a loop of three have 27 4-grams, 3 of them distinct
    assert gate.damage == pytest.approx(looping / 100 * (1 - 3 / 27), abs=1e-12)
    assert "repeated 4-grams" in judged.reasons[0]


@pytest.mark.parametrize(("n", "verdict"), [(71, "inconclusive"), (72, "ship")])
def test_no_repetition_in_few_answers_shows_no_small_share(n: int, verdict: str) -> None:
    """The upper end of Clopper and Pearson's interval of 0 in 72 is 0.0499."""
    judged = calibit.compare(*[run_of(several(n, 0))] * 2, resamples=200)
    [gate] = judged.verdict(Policy({"repetition": 0.05})).gates
    assert gate.upper == pytest.approx(1 - 0.025 ** (1 / n)) == -gate.lower
    assert judged.verdict(Policy({"repetition": 0.05})).verdict == verdict


def test_terminal_page_and_json_show_it(tmp_path: Path) -> None:
    found = calibit.compare(run_of(several(40, 3)), run_of(several(40, 13)), resamples=200)
    assert "repeated 4-grams, t" in str(found) and "end in a loop" in str(found)
    stored = found.to_dict()["generated"][0]["repetition"]
    assert stored["loop_rate"]["change"]["value"] == pytest.approx(0.25)
    metas: Any = (META, META)
    document = of_comparison(found, policy=Policy(), metas=metas, command="c")
    write_report(document, tmp_path / "report.html", points={})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (
        "repeated 4-grams of tokens",
        "distinct-2: unique per token",
        "duplicate content",
    ):
        assert words in page


def test_an_evaluation_records_it() -> None:
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    asked = [
        Prompt(f"i{n}", "t", f"say {n}", answer=Answer("regex", pattern="."), max_new_tokens=6)
        for n in range(2)
    ]
    run = evaluate(model, tokenizer, asked)
    for line in run.generated():
        assert set(line["repetition"]) == set(repetition_of([1], ""))
        assert 0 <= line["repetition"]["seq_rep_1"] <= 1
