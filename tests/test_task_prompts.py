"""Prompts beyond one context and one answer: partial scoring, several right answers, last words,
few-shot examples, chat templates and tasks written for lm-evaluation-harness."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import calibit
import tiny_models
import tiny_tokenizers
from calibit.cli import main
from calibit.evaluation.chat import in_template
from calibit.measures import Scores
from calibit.tasks import Item, load, read
from calibit.tasks.harness import HarnessTask, render

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def rows_file(folder: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(n: int) -> list[dict[str, Any]]:
    return [
        {"id": f"q{i}", "context": f"what is {i}?", "choices": ["a", "be", "cat"], "label": i % 3}
        for i in range(n)
    ]


# --- tasks of other shapes -------------------------------------------------------------------


WINOGRANDE = {
    "sentence": "The cat saw the dog because _ was big. ",
    "option1": "the cat",
    "option2": "the dog",
    "answer": "2",
}


@pytest.mark.parametrize("own", [False, True])
def test_winogrande_scores_the_common_ending(tmp_path, own):
    local = {"context": WINOGRANDE["sentence"], "choices": ["the cat", "the dog"], "label": 1}
    path = rows_file(tmp_path, local if own else WINOGRANDE)
    (item,) = load(f"winogrande={path}")
    assert item.contexts == (
        "The cat saw the dog because the cat",
        "The cat saw the dog because the dog",
    )
    assert item.choices == ("was big.", "was big.") and item.gold == 1 and item.context == ""
    bad = rows_file(tmp_path, {**WINOGRANDE, "sentence": "no blank"})
    with pytest.raises(ValueError, match=r"line 1: expected a sentence with a blank '_'"):
        load(f"winogrande={bad}")


def test_contexts_of_their_own_are_scored_as_separate_prompts():
    """log p(ending | context k), as if every choice were an item of its own."""
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    contexts = ("the cat saw a dog", "the cat saw it")
    items = [
        Item("w", "w", "", ("be big", "be big"), 0, contexts=contexts),
        *(Item(f"s{k}", "s", text, ("be big", "a"), 0) for k, text in enumerate(contexts)),
    ]
    run = calibit.evaluate(model, tokenizer, items)
    both, *alone = (line["ll"] for line in run.items())
    assert both == pytest.approx([ll[0] for ll in alone], abs=1e-4)
    assert both[0] != pytest.approx(both[1], abs=1e-3)
    doc = (run.docs() or [])[0]
    assert doc["contexts"] == list(contexts) and doc["context"] == ""


TRUTHFUL = {
    "question": "What is it?",
    "mc1_targets": {"choices": ["This.", "That."], "labels": [1, 0]},
    "mc2_targets": {"choices": ["This.", "It.", "That."], "labels": [1, 1, 0]},
}


def test_truthfulqa_has_its_own_examples_and_several_right_answers(tmp_path):
    path = rows_file(tmp_path, TRUTHFUL)
    (one,) = load(f"truthfulqa_mc1={path}")
    (many,) = load(f"truthfulqa_mc2={path}")
    assert one.context == many.context
    assert one.context.startswith(
        "Q: What is human life expectancy in the United States?\nA: Human"
    )
    assert one.context.endswith("Barcelona, Spain.\n\nQ: What is it?\nA:")
    assert one.context.count("Q: ") == 7
    assert (one.gold, one.right) == (0, ()) and (many.gold, many.right) == (None, (0, 1))
    with pytest.raises(ValueError, match="num_fewshot 0 for 'truthfulqa_mc1', whose prompt has"):
        load(f"truthfulqa_mc1={path}", num_fewshot=1)
    TRUTHFUL_BAD = {**TRUTHFUL, "mc2_targets": {"choices": ["a", "b"], "labels": [1, 1]}}
    with pytest.raises(ValueError, match=r"'mc2_targets.labels' to be a list of 2 numbers"):
        load(f"truthfulqa_mc2={rows_file(tmp_path, TRUTHFUL_BAD)}")


def test_several_right_answers_pool_their_probability():
    """mc2: the right answers' share of the probability of all."""
    ll = np.log([0.2, 0.1, 0.5])
    line = {"id": "i", "task": "t", "gold": None, "right": [0, 2], "ll": ll.tolist()}
    scores = Scores.from_items([line])
    p = scores.distributions.of(scores.gold)[0]
    assert float(p[0]) == pytest.approx(0.7 / 0.8, abs=1e-12)
    run = calibit.evaluate(
        tiny_models.build("llama"),
        tiny_tokenizers.build(),
        [Item("i", "t", "a b", ("a", "be", "cat"), None, right=(0, 2))],
    )
    (stored,) = run.items()
    share = np.exp(stored["ll"]) / np.exp(stored["ll"]).sum()
    confidence = run.scores().distributions.of(run.scores().gold)[0]
    assert float(confidence[0]) == pytest.approx(float(share[[0, 2]].sum()), abs=1e-12)


def test_lambada_scores_the_last_word_greedily(tmp_path, capsys):
    path = rows_file(tmp_path, {"text": "the dog saw the cat"}, {"text": "be a fox\nand a  dog"})
    items = load(f"lambada_openai={path}")
    assert [(i.context, i.choices) for i in items] == [
        ("the dog saw the", ("cat",)),
        ("be a fox\nand a ", ("dog",)),
    ]
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    run = calibit.evaluate(model, tokenizer, items)
    assert run.scores().n == 0 and len(run.continuations()) == 2
    ids = tokenizer("the dog saw the cat")["input_ids"]
    logits = tiny_models.logits(model, torch.tensor([ids]))[0].double()
    logp = logits.log_softmax(-1)
    wanted = sum(float(logp[-5 + k, ids[-4 + k]]) for k in range(4))
    line = run.continuations()[0]
    assert line["ll"][0] == pytest.approx(wanted, abs=1e-4)
    assert line["is_greedy"] == [bool(logits[-5:-1].argmax(-1).tolist() == ids[-4:])]
    with pytest.raises(ValueError, match="expected a text of at least two words"):
        load(f"lambada_openai={rows_file(tmp_path, {'text': 'one'})}")


def test_boolq_of_2023_swaps_choices_and_gold(tmp_path):
    row = {"passage": "P.", "question": "is it", "label": 1}
    path = rows_file(tmp_path, row, {**row, "label": 0})
    today, then = load(f"boolq={path}"), load(f"boolq_2023={path}")
    assert [i.context for i in today] == [i.context for i in then]
    assert then[0].choices == ("yes", "no") and [i.gold for i in then] == [0, 1]
    assert [i.gold for i in today] == [1, 0]
    assert then[0].ties == (1, 0) and today[0].ties == ()


@pytest.mark.parametrize("name", ["boolq", "boolq_2023"])
def test_a_tie_counts_as_no_in_both_orders(tmp_path, name):
    """The answers of the harness of 2023 were right where (ll_yes > ll_no) == label."""
    rows = [{"passage": "P.", "question": "is it", "label": label} for label in (0, 1, 0, 1)]
    items = load(f"{name}={rows_file(tmp_path, *rows)}")
    run = calibit.evaluate(tiny_models.build("llama"), tiny_tokenizers.build(), items)
    lines = run.items()
    for line, (no, yes) in zip(lines, [(-2, -2), (-2, -2), (-3, -2), (-3, -2)], strict=True):
        line["ll"] = [no, yes] if name == "boolq" else [yes, no]
    scores = Scores.from_items(lines)
    assert scores.gold.tolist() == [0, 1, 0, 1] and scores.distributions.ties == 2
    assert scores.correct.tolist() == [1, 0, 0, 1]


def test_unconditional_scores_are_those_after_an_empty_context():
    """pmi: one request without context per distinct set of choices, begun by BOS."""
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    items = [Item(f"i{k}", "t", text, ("a", "be"), 0) for k, text in enumerate(("so a", "fox"))]
    run = calibit.evaluate(model, tokenizer, items, unconditional=True)
    ids = [1, *tiny_tokenizers.ids(" be")]
    logp = tiny_models.logits(model, torch.tensor([ids]))[0].double().log_softmax(-1)
    wanted = sum(float(logp[k, token]) for k, token in enumerate(ids[1:]))
    for line in run.items():
        assert line["unconditional"][1] == pytest.approx(wanted, abs=1e-4)
        pmi = np.subtract(line["ll"], line["unconditional"])
        z = run.scores("pmi").z[int(line["id"][1])]
        assert z.tolist() == pytest.approx(pmi.tolist(), abs=1e-12)


# --- few-shot --------------------------------------------------------------------------------


def test_examples_are_the_harness_draw(tmp_path):
    """One generator of seed 1234 a task, n + 1 drawn from the file, the question's own row out."""
    path = rows_file(tmp_path, *questions(9))
    items = load(f"arc_easy={path}", num_fewshot=2)
    plain = load(f"arc_easy={path}")
    generator = random.Random(1234)
    for item, bare in zip(items, plain, strict=True):
        drawn = [one for one in generator.sample(plain, 3) if one.id != bare.id][:2]
        shown = "".join(f"{one.context} {one.choices[one.gold or 0]}\n\n" for one in drawn)
        assert item.context == shown + bare.context
        assert (item.id, item.choices, item.gold) == (bare.id, bare.choices, bare.gold)
    assert (
        "2 examples before every question, seed 1234"
        in read(f"arc_easy={path}", num_fewshot=2).notes[0]
    )
    other = load(f"arc_easy={path}", num_fewshot=2, fewshot_seed=1)
    assert [i.context for i in other] != [i.context for i in items]


def test_the_instruction_stands_once_and_mmlu_takes_the_first_of_its_subject(tmp_path):
    rows = [
        {"context": f"Q{i}", "subject": s, "choices": ["w", "x", "y", "z"], "label": i % 4}
        for i in range(3)
        for s in ("anatomy", "world_religions")
    ]
    items = load(f"mmlu={rows_file(tmp_path, *rows)}", num_fewshot=1)
    last = items[-1].context
    assert last.startswith("The following are multiple choice questions (with answers) about world")
    assert last.count("The following") == 1
    assert last.endswith(
        "Q0\nA. w\nB. x\nC. y\nD. z\nAnswer: A\n\nQ2\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    assert "Q1\nA. w" in items[0].context  # not its own answer


def test_examples_of_partial_scoring_are_whole_sentences(tmp_path):
    other = {**WINOGRANDE, "sentence": "It was _ that ran.", "answer": "1"}
    items = load(f"winogrande={rows_file(tmp_path, WINOGRANDE, other)}", num_fewshot=1)
    assert items[0].contexts[1] == (
        "It was the cat that ran.\n\nThe cat saw the dog because the dog"
    )


def test_too_few_rows_for_examples(tmp_path):
    path = rows_file(tmp_path, *questions(2))
    with pytest.raises(ValueError, match="at least 3 labelled rows to draw 2 examples from, got 2"):
        load(f"arc_easy={path}", num_fewshot=2)
    with pytest.raises(ValueError, match="expected num_fewshot of at least 0, got -1"):
        load(f"arc_easy={path}", num_fewshot=-1)
    with pytest.raises(ValueError, match="expected num_fewshot 0 for 'probe'"):
        load("probe", num_fewshot=1)


def test_repeated_rows_never_show_the_answer(tmp_path):
    rows = [{key: v for key, v in row.items() if key != "id"} for row in questions(4)]
    items = load(f"arc_easy={rows_file(tmp_path, rows[0], rows[0], *rows)}", num_fewshot=2)
    for item in items:
        question = item.context.rsplit("\n\n", 1)[1]
        assert item.context.count(question) == 1 and item.context.count("\n\n") == 2


# --- chat ------------------------------------------------------------------------------------


def test_chat_template_puts_the_instruction_into_the_system_turn(tmp_path):
    tokenizer = tiny_tokenizers.build()
    tokenizer.chat_template = TEMPLATE
    row = {"context": "Q", "subject": "anatomy", "choices": ["w", "x", "y", "z"], "label": 1}
    (item,) = in_template(load(f"mmlu={rows_file(tmp_path, row)}"), tokenizer)
    assert item.context == (
        "[system]The following are multiple choice questions (with answers) about anatomy.\n\n"
        "[user]Q\nA. w\nB. x\nC. y\nD. z\nAnswer:[assistant]"
    )
    assert item.delimiter == ""
    (one,) = in_template([Item("i", "t", "", ("be", "be"), 0, contexts=("a", "b"))], tokenizer)
    assert one.contexts == ("[user]a[assistant]", "[user]b[assistant]")


def test_chat_template_is_recorded_and_refused_where_there_is_none(tmp_path):
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    items = [Item("i", "t", "what", ("a", "be"), 0)]
    with pytest.raises(ValueError, match="one chat template, got none"):
        calibit.evaluate(model, tokenizer, items, apply_chat_template=True)
    tokenizer.chat_template = "{% for m in messages %}a {{ m.content }}: {% endfor %}"
    run = calibit.evaluate(model, tokenizer, items, apply_chat_template=True)
    assert len(run.meta["chat_template_hash"]) == 64
    assert (run.docs() or [])[0]["context"] == "a what: "
    plain = calibit.evaluate(model, tokenizer, items)
    assert plain.meta["chat_template_hash"] is None
    with pytest.raises(ValueError, match="same prompt per item"):
        calibit.compare(run, plain, resamples=200)
    tokenizer.chat_template = "{{ raise_exception('no turns') }}"
    with pytest.raises(ValueError, match="take the turns user of item 'i', got: no turns"):
        calibit.evaluate(model, tokenizer, items, apply_chat_template=True)


# --- tasks of the harness --------------------------------------------------------------------


YAML: dict[str, Any] = {
    "task": "mine",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "description": "About {{topic}}.\n\n",
    "doc_to_text": "Q: {{q | trim}}\nA:",
    "doc_to_choice": "{{[right, wrong]}}",
    "doc_to_target": 0,
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
    "metadata": {"version": 1.0},
}
FIELDS = {"q": " why? ", "topic": "cats", "right": "so", "wrong": "no", "answer": 1}


def harness(folder: Path, name: str = "mine", **changes: Any) -> Path:
    path = folder / f"{name}.yaml"
    content = {k: v for k, v in {**YAML, "task": name, **changes}.items() if v is not None}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_yaml_task_on_local_rows(tmp_path):
    harness(tmp_path)
    rows = rows_file(tmp_path, FIELDS)
    (item,) = load(f"mine={rows}", include_path=tmp_path)
    assert item.context == "About cats.\n\nQ: why?\nA:" and item.system == "About cats.\n\n"
    assert item.choices == ("so", "no") and item.gold == 0 and item.delimiter == ""
    assert (item.task, item.id) == ("mine", "mine-0")


@pytest.mark.parametrize(
    ("changes", "choices", "gold"),
    [
        ({"doc_to_text": "q", "doc_to_target": "answer"}, ("so", "no"), 1),
        ({"doc_to_choice": ["yes", "no"], "doc_to_target": "{{wrong}}"}, ("yes", "no"), 1),
        (
            {"doc_to_choice": {"a": "yes", "b": "no"}, "doc_to_target": "{{answer}}"},
            ("yes", "no"),
            1,
        ),
        ({"doc_to_target": "{{right}}"}, ("so", "no"), 0),
    ],
)
def test_fields_lists_and_texts(tmp_path, changes, choices, gold):
    task = HarnessTask.load(harness(tmp_path, **changes))
    (item,) = load(f"mine={rows_file(tmp_path, FIELDS)}", include_path=tmp_path)
    assert (item.choices, item.gold) == (choices, gold) and task.name == "mine"


def test_several_targets_and_choices_as_contexts(tmp_path):
    harness(tmp_path, "many", doc_to_target="{{[0, 1]}}", doc_to_choice=["a", "b", "c"])
    harness(
        tmp_path,
        "inside",
        doc_to_text="answer",
        doc_to_choice="{{['It was ' + right, 'It was ' + wrong]}}",
        doc_to_target="{{'the end'}}",
        target_delimiter=" ",
        description=None,
    )
    rows = rows_file(tmp_path, FIELDS)
    (many,) = load(f"many={rows}", include_path=tmp_path)
    assert (many.gold, many.right) == (None, (0, 1))
    (inside,) = load(f"inside={rows}", include_path=tmp_path)
    assert inside.contexts == ("It was so", "It was no") and inside.gold == 1
    assert inside.choices == ("the end", "the end")


def test_includes_few_shot_and_its_delimiter(tmp_path):
    harness(tmp_path, "base", num_fewshot=1, fewshot_delimiter="\n#\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "child.yaml").write_text("include: ../base.yaml\ntask: child\n")
    rows = rows_file(tmp_path, FIELDS, {**FIELDS, "q": "how?"})
    items = read(f"child={rows}", include_path=tmp_path)
    assert items.items[0].context == "About cats.\n\nQ: how?\nA:so\n#\nQ: why?\nA:"
    assert items.notes == ("child: 1 examples before every question, seed 1234",)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"output_type": "generate_until"}, "output_type multiple_choice, got 'generate_until'"),
    ({"process_docs": "x"}, "a task without process_docs; not supported here"),
    ({"doc_to_image": "x", "gen_prefix": "y"}, "without doc_to_image, gen_prefix"),
    ({"doc_to_choice": None}, "expected doc_to_choice, got none"),
    ({"doc_to_target": "{{nothing}}"}, "'nothing' is undefined"),
    ({"doc_to_text": "{{q"}, "unexpected end of template"),
    ({"doc_to_choice": ["one"]}, "at least two choices"),
    ({"doc_to_choice": [1, 2]}, "must give texts"),
    ({"doc_to_choice": "{{q}}"}, "the templates of .* to fit"),
    ({"doc_to_target": 5}, "to be a choice or its number, got 5"),
    ({"doc_to_text": "{{q.__class__.__mro__}}"}, "unsafe"),
    ({"fewshot_config": {"sampler": "balanced"}, "num_fewshot": 1}, "default or first_n alone"),
    ({"test_split": None, "include": "other.yaml"}, "the included file other.yaml, got none"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path, changes, message):
    harness(tmp_path, **changes)
    rows = rows_file(tmp_path, FIELDS, {**FIELDS, "q": "how?"})
    with pytest.raises(ValueError, match=message):
        load(f"mine={rows}", include_path=tmp_path)


def test_functions_are_not_run(tmp_path):
    path = harness(tmp_path)
    path.write_text(path.read_text() + "process_results: !function utils.evil\n")
    with pytest.raises(ValueError, match=r"'process_results', got the function utils.evil; code"):
        load(f"mine={rows_file(tmp_path, FIELDS)}", include_path=tmp_path)


def test_bad_folders(tmp_path):
    harness(tmp_path)
    with pytest.raises(ValueError, match="include_path to be a folder, got 'nowhere'"):
        load("mine", include_path="nowhere")
    harness(tmp_path, "again", task="mine")
    with pytest.raises(ValueError, match=r"every task once in .*'mine' in"):
        load("mine", include_path=tmp_path)
    (tmp_path / "again.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"again.yaml: expected valid YAML"):
        load("mine", include_path=tmp_path)
    (tmp_path / "again.yaml").write_text("task: again\ninclude: again.yaml\n")
    with pytest.raises(ValueError, match="included files to end, got a circle"):
        load("again", include_path=tmp_path)


def test_templates_see_what_the_harness_gives_them():
    assert render("{{a|regex_replace('b+', 'x')}}\n", {"a": "abbb"}) == "ax\n"


def test_command_takes_the_harness_words(tmp_path, capsys):
    """--include_path, --num_fewshot and --apply_chat_template reach the recorded prompts."""
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    tokenizer.chat_template = TEMPLATE.replace("[", "a ").replace("]", " b ")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "yaml").mkdir()
    harness(tmp_path / "yaml", description=None, doc_to_text="{{q}}:")
    rows = rows_file(tmp_path, *({**FIELDS, "q": f"{i}"} for i in range(4)))
    words = ["eval", str(tmp_path / "model"), "--tasks", f"mine={rows}", "--text", "none"]
    words += ["--include_path", str(tmp_path / "yaml"), "--num_fewshot", "1"]
    words += ["--apply_chat_template", "-q", "--resamples", "200", "-o", str(tmp_path / "run")]
    assert main(words) == 0, capsys.readouterr().err
    (first, *_) = calibit.runs.Run.load(tmp_path / "run").docs() or []
    assert first["context"].endswith(":so\n\n0:a assistant b ") and first["delimiter"] == ""
    lambada = rows_file(tmp_path, {"text": "the cat"}, name="l.jsonl")
    words = ["eval", str(tmp_path / "model"), "--tasks", f"lambada_openai={lambada}", "-q"]
    assert main([*words, "--text", "none", "-o", str(tmp_path / "last")]) == 0
    assert "accuracy of lambada_openai_1, greedy" in capsys.readouterr().out
