"""Tasks answered in free text: the packaged ones, a user's file, and their comparison."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import calibit
import tiny_models
import tiny_tokenizers
from audit_cases import job_of, prepare
from calibit.auditing import run_job
from calibit.measures import holm, mcnemar, tango
from calibit.runs import Run
from calibit.tasks import Prompt, limit, load, read
from calibit.tasks.answers import Answer
from calibit.verdict import Policy

META = {"text": [], "tokenizer_hash": "t", "bos": "tokenizer", "scheme": "none", "model": "toy"}


def solved(text: str) -> tuple[int, int]:
    """(result, steps) of a word problem, read sentence by sentence."""
    first, *steps, _ = text.split(". ")
    have = int(re.findall(r"\d+", first)[0])
    for step in steps:
        number = [int(found) for found in re.findall(r"\d+", step)]
        if "buys" in step or "finds" in step:
            have += number[0]
        elif "gives" in step or "loses" in step:
            assert number[0] < have
            have -= number[0]
        elif "doubles" in step:
            have *= 2
        else:
            assert "half" in step and have % 2 == 0
            have //= 2
    return have, len(steps)


@pytest.mark.parametrize("form", ["main", "alt"])
def test_word_problems_have_the_stated_steps_and_results(form: str) -> None:
    items = load("arithmetic_steps", form=form)
    assert len(items) == len({item.prompt for item in items}) == 400
    for item in items:
        asked = item.prompt.rsplit("\n\n", 1)[-1].split(": ", 1)[1].splitlines()[0]
        result, steps = solved(asked)
        assert item.slices == {"steps": str(steps)} and item.answer.value == str(result)
        assert 0 < result < 100
        assert item.answer.judge(f" 1 + 1 = 2. The answer is {result}.\n")[0]
        assert not item.answer.judge(f" The answer is {result + 1}.")[0]
    assert Counter(item.slices["steps"] for item in items) == dict.fromkeys("1234", 100)


def test_examples_in_the_prompt_are_right_themselves() -> None:
    prompt = load("arithmetic_steps")[0].prompt
    for block in prompt.split("\n\n")[:-1]:
        ask, reply = block.split("\n")
        result, steps = solved(ask.removeprefix("Question: "))
        assert reply.endswith(f"The answer is {result}.") and reply.count("=") == steps


def test_a_call_is_right_with_the_function_and_the_arguments_asked_for() -> None:
    items = load("tool_call")
    assert len(items) == len({item.prompt for item in items}) == 300
    assert Counter(item.slices["arguments"] for item in items) == dict.fromkeys("1234", 75)
    for item in items:
        call = item.answer.value
        request = item.prompt.splitlines()[-2]
        assert all(str(value) in request for value in call["arguments"].values())
        assert item.answer.judge(f" {json.dumps(call)}\n\nFunction:")[0]
        argument, value = next(iter(call["arguments"].items()))
        for wrong in (
            {**call, "name": "other"},
            {**call, "arguments": {}},
            {**call, "arguments": {**call["arguments"], argument: f"{value}x"}},
            {**call, "more": 1},
            call["arguments"],
        ):
            assert not item.answer.judge(json.dumps(wrong))[0]


@pytest.mark.parametrize("name", ["arithmetic_steps", "tool_call"])
def test_both_wordings_ask_for_the_same(name: str) -> None:
    main, other = load(name), load(name, form="alt")
    for one, two in zip(main, other, strict=True):
        assert (one.id, one.answer, one.slices) == (two.id, two.answer, two.slices)
        assert one.prompt != two.prompt
    with pytest.raises(ValueError, match=r"num_fewshot 0 for '.*', whose prompt has examples"):
        read(name, num_fewshot=1)


def test_slices_are_chosen_and_sampled_like_those_of_other_tasks() -> None:
    assert {item.slices["steps"] for item in load("arithmetic_steps:2,3")} == {"2", "3"}
    drawn = limit(load("tool_call"), 40)
    assert Counter(item.slices["arguments"] for item in drawn) == dict.fromkeys("1234", 10)


def test_users_prompts_with_answers_are_a_task(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": "a", "answer": "b", "stop": ["\n"], "max_new_tokens": 3, "topic": "x"},
        {"prompt": "c", "answer": {"regex": "d"}},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = load(str(file))
    assert (first.stop, first.max_new_tokens, first.slices) == (("\n",), 3, {"topic": "x"})
    assert second.max_new_tokens == 64 and second.stop == ()
    for row, message in (
        ({"prompt": "e"}, "expected an 'answer' for every prompt"),
        ({"prompt": "e", "answer": "f", "stop": "x"}, "expected 'stop' to be a list of texts"),
        ({"prompt": "e", "answer": "f", "max_new_tokens": 0}, "a number of at least 1"),
    ):
        file.write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=message):
            load(str(file))


@pytest.mark.parametrize("reference", ["http://x.invalid/y.json", "#/$defs/other", "y.json"])
def test_schema_that_leads_nowhere_is_refused_with_its_row(reference: str) -> None:
    schema = {"$ref": reference, "$defs": {"own": {"type": "object"}}}
    with pytest.raises(ValueError, match=re.escape(f"got '{reference}'")):
        Answer.of({"json_schema": schema})
    assert Answer.of({"json_schema": {**schema, "$ref": "#/$defs/own"}}).judge('{"a": 1}')[0]


def run_of(correct: Sequence[bool], **changes: Any) -> Run:
    """A run of one task with the given right answers."""
    lines = [
        {
            "kind": "generate", "id": f"t-{i}", "task": "t", "slices": {"half": str(i % 2)},
            "correct": right, "text_hash": f"{right}", "tokens": 3 + right, "ended": right,
            "context_hash": "c", "choices_hash": "a", **changes,
        }
        for i, right in enumerate(correct)
    ]  # fmt: skip
    return Run.of(META, lines)


def paired(rr: int, rw: int, wr: int, ww: int) -> calibit.Comparison:
    before = [True] * (rr + rw) + [False] * (wr + ww)
    after = [True] * rr + [False] * rw + [True] * wr + [False] * ww
    return calibit.compare(run_of(before), run_of(after), resamples=200)


def test_right_and_wrong_are_paired() -> None:
    found = paired(60, 12, 5, 23)
    [task] = found.generated
    assert (task.rr, task.rw, task.wr, task.ww, task.n) == (60, 12, 5, 23, 100)
    assert (task.a, task.b, task.d_acc) == (0.72, 0.65, pytest.approx(-0.07))
    bounds = tango(12, 5, 100)
    assert (task.d_acc.lower, task.d_acc.upper) == (bounds.lower, bounds.upper)
    assert task.mcnemar == mcnemar(12, 5)
    assert task.same_text == 0.83 and task.d_tokens == pytest.approx(-0.07)
    assert (task.limit_a, task.limit_b) == pytest.approx((0.28, 0.35))
    assert [row["n"] for row in task.slices] == [50, 50] and task.judged
    assert found.to_dict()["generated"][0]["mcnemar"]["rw"] == 12


def test_p_values_of_several_tasks_are_adjusted_by_holm() -> None:
    def both(correct: Sequence[bool]) -> Run:
        lines = [
            {**line, "task": f"t{place % 2}"}
            for place, line in enumerate(run_of(correct).generated())
        ]
        return Run.of(META, lines)

    before, after = [True] * 40, [i % 2 == 0 or i > 20 for i in range(40)]
    tasks = calibit.compare(both(before), both(after), resamples=200).generated
    p = [one.mcnemar.p for one in tasks]
    assert p == pytest.approx([1.0, 2 / 2**10])  # 0 and 10 answers lost, none won
    assert [one.p_holm for one in tasks] == holm(p) == pytest.approx([1.0, 4 / 2**10])


@pytest.mark.parametrize(
    ("cells", "verdict"),
    [((300, 0, 0, 300), "ship"), ((100, 90, 0, 10), "hold"), ((60, 4, 3, 33), "inconclusive")],
)
def test_answers_in_free_text_enter_the_verdict(cells: Any, verdict: str) -> None:
    judged = paired(*cells).verdict(Policy({"gen_acc": 0.03}))
    assert judged.verdict == verdict
    assert "free-text answers" in judged.reasons[0]
    [gate] = judged.gates
    assert gate.lower == pytest.approx(-tango(cells[1], cells[2], sum(cells)).upper)


def test_too_few_right_answers_are_not_judged() -> None:
    found = paired(29, 0, 0, 500)
    assert not found.generated[0].judged and "gen_acc" not in found.evidence
    assert any("only 29 of 529 prompts of t right" in warning for warning in found.warnings)
    verdict = found.verdict(Policy.from_dict({"margins": {"gen_acc": 0.03}}))
    assert verdict.verdict == "inconclusive"
    said = "Not judged: accuracy of free-text answers (original right on 29 of 529, needs 30)."
    assert verdict.reasons[0] == said
    assert paired(30, 0, 0, 500).generated[0].judged


def test_default_policy_does_not_miss_what_was_not_asked() -> None:
    from comparison_runs import simulated

    found = calibit.compare(*simulated(200), resamples=200).verdict()
    assert "gen_acc" not in {gate.metric for gate in found.gates}
    assert not any("free-text" in reason for reason in found.reasons)


def test_prompts_that_do_not_pair_are_refused() -> None:
    whole = run_of([True] * 4)
    with pytest.raises(ValueError, match=r"same prompts answered in free text .* got 1 in one run"):
        calibit.compare(whole, run_of([True] * 3), resamples=200)
    part = calibit.compare(whole, run_of([True] * 3), resamples=200, allow_partial=True)
    assert part.generated[0].n == 3
    assert any("1 prompts were answered in free text in one run only" in w for w in part.warnings)
    with pytest.raises(ValueError, match="expected the same prompt per item"):
        calibit.compare(whole, run_of([True] * 4, context_hash="other"), resamples=200)


def test_prompts_of_a_passage_are_drawn_together() -> None:
    """Every loss in one passage of 20: a fiftieth of a loss, but 1 of 20 clusters."""
    before = [True] * 1000
    after = [not 100 <= i < 120 for i in range(1000)]
    runs = []
    for correct in (before, after):
        lines = [dict(line) for line in run_of(correct).generated()]
        for i, line in enumerate(lines):
            line["slices"] = {"passage": str(i // 50)}
        runs.append(Run.of(META, lines))
    policy = Policy({"gen_acc": 0.035})
    alone = calibit.compare(*runs, resamples=200)
    whole = calibit.compare(*runs, resamples=200, clusters="passage")
    assert alone.verdict(policy).verdict == "ship"
    assert whole.verdict(policy).verdict == "inconclusive"
    assert whole.generated[0].d_acc.upper - whole.generated[0].d_acc.lower > 2 * (
        alone.generated[0].d_acc.upper - alone.generated[0].d_acc.lower
    )
    with pytest.raises(ValueError, match=r"key or item field for clusters of prompts, got 'no'"):
        calibit.compare(*runs, resamples=200, clusters="no")


def test_a_run_stores_what_was_written(tmp_path: Path) -> None:
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    asked = [Prompt(f"i{n}", "t", f"say {n}", max_new_tokens=4) for n in range(3)]
    from calibit.tasks.answers import Answer

    asked = [Prompt(**{**vars(one), "answer": Answer("regex", pattern=".")}) for one in asked]
    run = calibit.evaluate(model, tokenizer, asked, out=tmp_path / "run")
    assert [line["correct"] for line in run.generated()] == [True] * 3
    assert run.docs()[1] == {
        "id": "i1", "task": "t", "prompt": "say 1", "answer": {"regex": ".", "value": None},
    }  # fmt: skip
    assert run.scores().n == 0 and run.forced() is None
    assert not (tmp_path / "run" / "generated").exists()
    bare = calibit.evaluate(model, tokenizer, asked, store_docs=False)
    assert bare.docs() is None and not any("text" in line for line in bare.generated())
    assert calibit.compare(run, bare, resamples=200).generated[0].same_text == 1.0


def test_audit_of_prompts_alone(tmp_path: Path) -> None:
    """Control runs repeat multiple-choice items only; a random model answers nothing."""
    folder = prepare(tmp_path)
    answer = {"answer": {"regex": "[a-m]"}, "max_new_tokens": 4}
    rows = [{"prompt": f"the cat {n}", **answer} for n in range(40)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = job_of(folder, tasks=(str(folder / "mine.jsonl"),), schemes=("int4-g32",), text="none")
    found = run_job(job, folder / "audit", progress=None)
    [one] = found.data["candidates"]
    assert one["comparison"]["generated"][0]["n"] == 40
    page = (folder / "audit" / "report.html").read_text(encoding="utf-8")
    assert 'id="written"' in page and "mine" in str(found.table())
