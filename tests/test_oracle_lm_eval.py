"""Prompts, tokenisation and log-likelihoods against lm-evaluation-harness, an outside oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import calibit
from calibit.io.lm_eval import read_lm_eval
from calibit.runs import Run
from calibit.tasks import load

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'lm-eval')")

import lm_eval_oracle as oracle

pytestmark = pytest.mark.slow

ITEMS = 20
FEW = 10
CACHED = Path.home() / ".cache" / "calibit" / "SmolLM2-135M-Instruct"


def smollm2(_: Path) -> tuple[Any, Any]:
    """The demo's model, where it was prepared before."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not CACHED.is_dir():
        pytest.skip("SmolLM2-135M-Instruct is not prepared (make demo)")
    return AutoModelForCausalLM.from_pretrained(CACHED).eval(), AutoTokenizer.from_pretrained(
        CACHED
    )


@pytest.fixture(scope="module", params=[oracle.tiny, smollm2], ids=["tiny", "smollm2"])
def subject(request: pytest.FixtureRequest, shared_data: Path) -> tuple[Any, Any]:
    """Model and tokenizer."""
    return request.param(shared_data)


def check(run: Run, theirs: dict[tuple[str, ...], list[float]]) -> None:
    """Every item's log-likelihoods within tolerance; the same choice where it is clear."""
    for item in oracle.compared(run, theirs):
        assert all(each.right for each in item), item
        assert oracle.same_choice(item) is not False, item


@pytest.mark.parametrize("task", oracle.SCHEMAS)
def test_same_prompts_and_log_likelihoods(subject, shared_data, tmp_path, task):
    model, tokenizer = subject
    rows = oracle.staged(shared_data / f"{task}.jsonl", ITEMS)
    whole, files = oracle.write_sources(tmp_path, task, rows)
    theirs = oracle.their_answers(
        oracle.hf_model(model, tokenizer), oracle.task_files(tmp_path, files)
    )
    items = load(f"{task}={whole}", repair=False)
    check(calibit.evaluate(model, tokenizer, items), oracle.by_prompt(theirs))
    local = tmp_path / "local.jsonl"
    local.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    again = load(f"{task}={local}", repair=False)
    assert [(i.context, i.choices, i.gold) for i in again] == [
        (i.context, i.choices, i.gold) for i in items
    ]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("task", ["arc_easy", "openbookqa", "piqa", "boolq", "boolq_2023", "mmlu"])
def test_few_shot_and_chat_prompts(shared_data, tmp_path, task, chat):
    """Two examples before each question, drawn from the rows themselves; one user turn."""
    model, tokenizer = oracle.tiny(shared_data)
    tokenizer.chat_template = oracle.CHAT_TEMPLATE
    name = task.removesuffix("_2023")
    rows = oracle.staged(shared_data / f"{name}.jsonl", FEW)
    if name == "mmlu":  # examples are of the same subject
        rows = [row | {"subject": "anatomy"} for row in rows]
    whole, files = oracle.write_sources(tmp_path, name, rows)
    theirs = oracle.their_answers(
        oracle.hf_model(model, tokenizer),
        oracle.task_files(tmp_path, files),
        num_fewshot=2,
        apply_chat_template=chat,
        fewshot_as_multiturn=False,
    )
    items = load(f"{task}={whole}", num_fewshot=2)
    run = calibit.evaluate(model, tokenizer, items, apply_chat_template=chat)
    found = oracle.by_prompt(theirs)
    if task == "boolq_2023":  # today's harness asks in the other order
        found = {key[2:] + key[:2]: answers[::-1] for key, answers in found.items()}
    check(run, found)


def test_hellaswag_strings_through_its_loglikelihood(subject, shared_data):
    """The staged rows are another project's form of HellaSwag: our strings, their arithmetic."""
    model, tokenizer = subject
    items = load(f"hellaswag={shared_data / 'hellaswag.jsonl'}")[:ITEMS]
    theirs = oracle.answers(oracle.hf_model(model, tokenizer), items)
    check(calibit.evaluate(model, tokenizer, items), theirs)


def test_a_complete_output_of_today_is_imported(subject, shared_data, tmp_path):
    from lm_eval.loggers import EvaluationTracker

    model, tokenizer = subject
    rows = oracle.staged(shared_data / "arc_easy.jsonl", ITEMS)
    whole, files = oracle.write_sources(tmp_path, "arc_easy", rows)
    results = oracle.their_answers(
        oracle.hf_model(model, tokenizer), oracle.task_files(tmp_path, files)
    )
    samples = results.pop("samples")
    tracker = EvaluationTracker(output_path=str(tmp_path / "output"))
    tracker.general_config_tracker.model_name_sanitized = "model"
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name="arc_easy", samples=samples["arc_easy"])
    imported = read_lm_eval(tmp_path / "output")
    own = calibit.evaluate(model, tokenizer, [f"arc_easy={whole}"])
    assert imported.meta["bos"] == own.meta["bos"] == "tokenizer"
    found = calibit.compare(imported, own, resamples=200)
    assert found.protocol["n"] == ITEMS and float(found.kl_ab) < 1e-6
    recorded = results["results"]["arc_easy"]
    for rule, metric in (("sum", "acc,none"), ("char", "acc_norm,none")):
        correct = imported.scores(rule).correct
        assert float(correct.mean()) == pytest.approx(recorded[metric], abs=1e-12)
