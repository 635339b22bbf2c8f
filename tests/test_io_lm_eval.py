"""Outputs of lm-evaluation-harness as runs: every layout, hostile files, pairing with others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import calibit
import tiny_models
import tiny_tokenizers
from calibit.cli import main
from calibit.io.lm_eval import read_lm_eval
from calibit.runs import Run
from calibit.tasks import Item
from lm_eval_outputs import TIME, VERSIONS, Doc, arc, line, samples, write

QUICK = {"resamples": 200}


def rewrite(folder: Path, task: str, lines: list[Any]) -> None:
    samples(folder, task).write_text("".join(json.dumps(one) + "\n" for one in lines))


def stored(folder: Path, task: str = "arc_easy") -> list[Any]:
    return [json.loads(one) for one in samples(folder, task).read_text().splitlines()]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_layout_gives_the_same_items(tmp_path, version):
    run = read_lm_eval(write(tmp_path / "out", version, {"arc_easy": arc()}))
    assert isinstance(run, Run) and len(run.items()) == 6
    for i, (item, doc, one) in enumerate(zip(run.items(), run.docs(), arc(), strict=True)):
        assert (item["id"], item["task"]) == (f"arc_easy-{i}", "arc_easy")
        assert item["gold"] == one.gold and item["ll"] == list(one.ll)
        assert doc["context"] == one.context and doc["choices"] == list(one.choices)
        assert item["chars"] == [len(choice) for choice in one.choices]
    assert run.scores("char").n == 6 and run.meta["model"]["name"] == "tiny"
    with pytest.raises(ValueError, match=r"\[scores\] expected tokens per choice"):
        run.scores("token")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_layout_pairs_with_itself(tmp_path, version):
    folders = [
        write(tmp_path / name, version, {"arc_easy": arc(shift=shift)})
        for name, shift in (("a", 0.0), ("b", 0.3))
    ]
    found = calibit.compare(*folders, **QUICK)
    assert found.protocol["n"] == 6 and found.protocol["unpaired"] == {"a": 0, "b": 0}
    assert "items joined by document number: 6 of 6 (100 %)" in found.warnings
    assert float(found.kl_ab) > 0


def test_bos_rule_by_version_and_argument(tmp_path):
    rules = {
        version: read_lm_eval(write(tmp_path / version, version, {"arc_easy": arc()})).meta["bos"]
        for version in VERSIONS
    }
    assert rules == {"0.3": "never", "0.4.2": "never", "0.4.4": "never", "0.4.8": "never"} | {
        "0.4.9.2": "tokenizer"
    }
    for given, rule in (("True", "always"), ("False", "never")):
        config = {"model_args": f"pretrained=tiny,add_bos_token={given}"}
        folder = write(tmp_path / given, "0.4.9.2", {"arc_easy": arc()}, config=config)
        assert read_lm_eval(folder).meta["bos"] == rule
    config = {"model_args": {"pretrained": "google/gemma-2b"}}
    folder = write(tmp_path / "gemma", "0.4.8", {"arc_easy": arc()}, config=config)
    assert read_lm_eval(folder).meta["bos"] == "always"
    folder = write(tmp_path / "vllm", "0.4.8", {"arc_easy": arc()}, config={"model": "vllm"})
    meta = read_lm_eval(folder).meta
    assert meta["bos"] is None and "'vllm' is not known" in meta["notes"][0]


def test_versions_on_both_sides_of_the_bos_change_are_refused(tmp_path):
    a = write(tmp_path / "a", "0.4.8", {"arc_easy": arc()})
    b = write(tmp_path / "b", "0.4.9.2", {"arc_easy": arc()})
    with pytest.raises(ValueError, match="expected the same BOS rule in both runs, got 'never'"):
        calibit.compare(a, b, **QUICK)


def test_another_bos_token_is_refused_where_one_is_used(tmp_path):
    def pair(version: str) -> list[Path]:
        return [
            write(
                tmp_path / f"{name}{version}",
                version,
                {"arc_easy": arc()},
                results={"tokenizer_bos_token": [token, "1"]},
            )
            for name, token in (("a", "<s>"), ("b", "<bos>"))
        ]

    with pytest.raises(ValueError, match="expected the same BOS token in both runs"):
        calibit.compare(*pair("0.4.9.2"), **QUICK)
    found = calibit.compare(*pair("0.4.8"), **QUICK)  # no BOS there: only worth a warning
    assert any("tokenizer_bos_token" in one for one in found.warnings)


def test_differing_settings_are_named(tmp_path):
    a = write(tmp_path / "a", "0.4.8", {"arc_easy": arc()})
    b = write(
        tmp_path / "b",
        "0.4.8",
        {"arc_easy": arc()},
        config={"model_args": "pretrained=other,dtype=bfloat16", "limit": 6.0, "use_cache": "db"},
        results={"chat_template_sha": "abc", "versions": {"arc_easy": 2.0}},
    )
    text = "\n".join(calibit.compare(a, b, **QUICK).warnings)
    assert "differ in model_args dtype: float32 and bfloat16" in text
    assert "differ in limit: None and 6.0" in text
    assert "differ in chat_template_sha: None and abc" in text
    assert "differ in version of arc_easy: 1.0 and 2.0" in text
    assert "b: use_cache was set" in text and "pretrained" not in text


def test_joined_by_document_hash_where_numbers_moved(tmp_path):
    a = write(tmp_path / "a", "0.4.8", {"arc_easy": arc()})
    b = write(tmp_path / "b", "0.4.8", {"arc_easy": arc(shift=0.2)[::-1]})
    found = calibit.compare(a, b, **QUICK)
    assert found.protocol["n"] == 6
    assert "items joined by document hash: 6 of 6 (100 %)" in found.warnings
    other = calibit.compare(
        a, write(tmp_path / "c", "0.4.8", {"arc_easy": arc(shift=0.2)}), **QUICK
    )
    assert float(found.kl_ab) == pytest.approx(float(other.kl_ab), abs=1e-12)


def test_joined_by_prompts_with_an_output_that_has_no_documents(tmp_path):
    old = write(tmp_path / "old", "0.3", {"arc_easy": arc()[::-1]})
    new = write(tmp_path / "new", "0.4.8", {"arc_easy": arc()})
    found = calibit.compare(old, new, **QUICK)
    assert "items joined by prompts and choices: 6 of 6 (100 %)" in found.warnings
    assert float(found.kl_ab) == pytest.approx(0.0, abs=1e-15)


def test_equal_documents_pair_in_their_order(tmp_path):
    docs = [arc(1)[0], replace(arc(1)[0], ll=[-4.0, -2.0, -3.0]), *arc(3)[1:]]
    a = write(tmp_path / "a", "0.4.8", {"arc_easy": docs})
    b = write(tmp_path / "b", "0.4.8", {"arc_easy": [docs[2], docs[0], docs[1], docs[3]]})
    found = calibit.compare(a, b, **QUICK)
    assert found.protocol["n"] == 4 and float(found.kl_ab) == pytest.approx(0.0, abs=1e-15)


def test_fewer_documents_need_allow_partial(tmp_path):
    a = write(tmp_path / "a", "0.4.8", {"arc_easy": arc(6)})
    b = write(tmp_path / "b", "0.4.8", {"arc_easy": arc(4)})
    with pytest.raises(
        ValueError, match=r"2 only in a \(arc_easy/arc_easy-4, arc_easy/arc_easy-5\)"
    ):
        calibit.compare(a, b, **QUICK)
    found = calibit.compare(a, b, allow_partial=True, **QUICK)
    assert found.protocol["n"] == 4 and "4 of 6 (66.67 %)" in " ".join(found.warnings)


def test_different_prompts_of_one_document_are_refused_or_left_out(tmp_path):
    docs = arc()
    a = write(tmp_path / "a", "0.4.8", {"arc_easy": docs})
    docs[2] = replace(docs[2], context="Q: another\nAnswer:")
    b = write(tmp_path / "b", "0.4.8", {"arc_easy": docs})
    with pytest.raises(ValueError, match=r"same prompt per item.*got 1 items.*arc_easy-2"):
        calibit.compare(a, b, **QUICK)
    found = calibit.compare(a, b, allow_partial=True, **QUICK)
    assert found.protocol["n"] == 5 and "1 for different prompts" in " ".join(found.warnings)


def boolq(n: int = 4) -> list[Doc]:
    return [
        Doc(
            {"idx": i},
            f"Text {i}.\nQuestion: is it {i}?\nAnswer:",
            ["no", "yes"],
            i % 2,
            [-i, -1.5],
        )
        for i in range(n)
    ]


def test_boolq_of_2023_has_yes_first(tmp_path):
    flipped = [
        replace(one, choices=["yes", "no"], ll=one.ll[::-1], gold=1 - one.gold) for one in boolq()
    ]
    truth = {"boolq": lambda one: f" {one.choices[one.gold]}"}
    old = write(tmp_path / "old", "0.3", {"boolq": flipped}, truth=truth)
    run = read_lm_eval(old)
    assert [item["gold"] for item in run.items()] == [0, 1, 0, 1]
    assert run.docs()[0]["choices"] == ["no", "yes"] and run.items()[3]["ll"] == [-3.0, -1.5]
    new = write(tmp_path / "new", "0.4.8", {"boolq": boolq()})
    assert float(calibit.compare(old, new, **QUICK).kl_ab) == pytest.approx(0.0, abs=1e-15)


def test_swapped_order_of_today_is_caught_by_the_recorded_accuracy(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"boolq": boolq()})
    lines = stored(folder, "boolq")
    lines[1]["resps"].reverse()
    rewrite(folder, "boolq", lines)
    with pytest.raises(ValueError, match=r"expected acc 0 of document 1 to follow from its log"):
        read_lm_eval(folder)


def test_story_of_2023_whose_ending_ends_the_other(tmp_path):
    """'He left.' ends both prompts: only the whole ending after the context is the right one."""
    docs = [
        Doc({}, "He came. He ate.", ["And so he left.", "he left."], 1, [-3.0, -2.0]),
        Doc({}, "She came.", ["She sang.", "Later she sang."], 0, [-1.0, -2.0]),
    ]
    truth = {"xstory_cloze_en": lambda one: f" {one.choices[one.gold]}"}
    run = read_lm_eval(write(tmp_path / "out", "0.3", {"xstory_cloze_en": docs}, truth=truth))
    assert [item["gold"] for item in run.items()] == [1, 0]
    assert [item["task"] for item in run.items()] == ["xstorycloze_en"] * 2
    assert [doc["context"] for doc in run.docs()] == ["He came. He ate.", "She came."]
    truth = {"xstory_cloze_en": lambda one: " nobody wrote this"}
    folder = write(tmp_path / "bad", "0.3", {"xstory_cloze_en": docs}, truth=truth)
    with pytest.raises(ValueError, match=r"entry 0: expected truth to be the text of one choice"):
        read_lm_eval(folder)


def test_hellaswag_of_2023_has_no_lengths_but_pairs(tmp_path):
    docs = [Doc({}, f"He number {i} sits", ["and eats", "and runs"], 0, [-1, -2]) for i in range(3)]
    old = write(tmp_path / "old", "0.3", {"hellaswag": docs})
    run = read_lm_eval(old)
    assert run.scores("sum").n == 3 and "chars" not in run.items()[0]
    with pytest.raises(ValueError, match="expected chars per choice for rule 'char', got none"):
        run.scores("char")
    new = write(tmp_path / "new", "0.4.8", {"hellaswag": docs})
    assert calibit.compare(old, new, **QUICK).protocol["n"] == 3


def test_mutual_information_halves_the_requests(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc(2)})
    lines = stored(folder)
    for one in lines:
        k = len(one["arguments"])
        for i in range(k):
            choice = one["arguments"][f"gen_args_{i}"]["arg_1"]
            one["arguments"][f"gen_args_{k + i}"] = {"arg_0": "", "arg_1": choice}
        one["resps"] += [[[str(-9.0 - i), "False"]] for i in range(k)]
        one["metrics"] = ["acc", "acc_mutual_info"]
    rewrite(folder, "arc_easy", lines)
    run = read_lm_eval(folder)
    assert run.items()[0]["unconditional"] == [-9.0, -10.0, -11.0]
    assert run.scores("pmi").z[0].tolist() == [ll + 9 + i for i, ll in enumerate(arc()[0].ll)]
    lines[0]["arguments"]["gen_args_3"]["arg_0"] = "not empty"
    rewrite(folder, "arc_easy", lines)
    with pytest.raises(ValueError, match="line 1: expected the second half of the requests"):
        read_lm_eval(folder)


def test_padding_repeats_and_gathered_order(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()})
    lines = stored(folder)
    lines[5]["resps"][-1].append(["-77.0", "True"])
    rewrite(folder, "arc_easy", lines[1::2] + lines[0::2])
    run = read_lm_eval(folder)
    assert [item["ll"] for item in run.items()] == [list(one.ll) for one in arc()]


def test_more_than_ten_choices_stay_in_order(tmp_path):
    wide = Doc({}, "Q", [f"c{k}" for k in range(12)], 11, [-12.0 + k for k in range(12)])
    for version in ("0.3", "0.4.8"):
        folder = write(tmp_path / version, version, {"mine": [wide]})
        assert read_lm_eval(folder).items()[0]["ll"] == list(wide.ll)


def test_only_unfiltered_lines_count(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc(), "gsm8k": arc(2)})
    lines = stored(folder)
    rewrite(folder, "arc_easy", [{**one, "filter": f} for one in lines for f in ("none", "maj")])
    rewrite(folder, "gsm8k", [{**one, "filter": "strict"} for one in stored(folder, "gsm8k")])
    run = read_lm_eval(folder)
    assert len(run.items()) == 6
    assert run.meta["notes"] == ["gsm8k: left out, its answers were filtered (strict)"]


def test_other_kinds_of_tasks_are_left_out_by_name(tmp_path):
    folder = write(
        tmp_path / "out",
        "0.4.8",
        {"arc_easy": arc(), "gen": arc(1), "roll": arc(1), "many": arc(1), "text": arc(1)},
    )
    generated = {**line(0, arc(1)[0]), "arguments": {"gen_args_0": {"arg_0": "Q", "arg_1": {}}}}
    rewrite(folder, "gen", [{**generated, "resps": [["text"]]}])
    rolling = {"arguments": {"gen_args_0": {"arg_0": "text"}}, "resps": [["-123.4"]]}
    rewrite(folder, "roll", [{**line(0, arc(1)[0]), **rolling}])
    rewrite(folder, "many", [{**line(0, arc(1)[0]), "target": "[0, 2]"}])
    rewrite(folder, "text", [{**line(0, arc(1)[0]), "target": "no choice"}])
    run = read_lm_eval(folder)
    assert {item["task"] for item in run.items()} == {"arc_easy"}
    assert sorted(run.meta["notes"]) == [
        "gen: left out, it is not multiple choice",
        "many: left out, its items have several right answers",
        "roll: left out, it is not multiple choice",
        "text: left out, its right answers are no choices ('no choice')",
    ]
    samples(folder, "arc_easy").unlink()
    with pytest.raises(
        ValueError, match=r"expected a multiple-choice task in .* got none: gen: left"
    ):
        read_lm_eval(folder)


def test_target_as_the_text_of_a_choice(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()})
    lines = stored(folder)
    for one, doc in zip(lines, arc(), strict=True):
        one["target"] = f" {doc.choices[doc.gold]}"
    rewrite(folder, "arc_easy", lines)
    assert [item["gold"] for item in read_lm_eval(folder).items()] == [d.gold for d in arc()]


@pytest.mark.parametrize("bad", ["nan", "-inf", "inf"])
def test_non_finite_answers_leave_a_reason(tmp_path, bad):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()})
    lines = stored(folder)
    lines[3]["resps"][1] = [[bad, "False"]]
    lines[3]["acc"] = 0.0 if bad != "inf" else float(arc()[3].gold == 1)
    if bad == "-inf":
        lines[3]["acc"] = arc()[3].acc
    rewrite(folder, "arc_easy", lines)
    item = read_lm_eval(folder).items()[3]
    assert item["ll"] is None and item["reason"] == f"the log-likelihood of choice 1 is {bad}"
    assert read_lm_eval(folder).scores().n == 5


def test_choices_without_the_delimiter(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc(1)})
    (one,) = stored(folder)
    for request in one["arguments"].values():
        request["arg_1"] = request["arg_1"].strip()
    rewrite(folder, "arc_easy", [one])
    run = read_lm_eval(folder)
    assert run.docs()[0]["delimiter"] == "" and run.items()[0]["chars"] == [12, 12, 12]


def test_choices_inside_the_context_take_the_answer_from_the_document(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"winogrande": arc(1), "mc2": arc(1)})
    (one,) = stored(folder, "winogrande")
    one |= {"doc": {"answer": "2"}, "target": "was small.", "acc": 0.0}
    for k, request in enumerate(one["arguments"].values()):
        request |= {"arg_0": f"It was not there, since {k}", "arg_1": " was small."}
    rewrite(folder, "winogrande", [one])
    rewrite(folder, "mc2", [{**line(0, arc(1)[0]), "acc": 0.61}])
    run = read_lm_eval(folder)
    assert [item["gold"] for item in run.items()] == [1]
    assert run.docs()[0]["contexts"][1] == "It was not there, since 1"
    assert run.meta["notes"] == ["mc2: left out, its accuracy is a share of each item"]


HOSTILE = {
    "cut": (lambda text: text[:-40], "line 6: expected a JSON object, got .*cut or changed"),
    "not an object": (lambda text: text + "[1]\n", "line 7: expected a sample with doc_id"),
    "no doc_id": (lambda text: text.replace('"doc_id": 3', '"id": 3'), "line 4: .*none of doc_id"),
    "doc_id as text": (
        lambda text: text.replace('"doc_id": 3', '"doc_id": "3"'),
        "line 4: expected doc_id as a number, got '3'",
    ),
    "twice": (lambda text: text + text, "expected every doc_id once, got 6 of them several times"),
    "words": (lambda text: text.replace('"-1.25"', '"low"'), "line 1: expected a log-likelihood"),
    "bytes": (lambda text: "\udcff" + text, "line 1: expected a JSON object"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_lines_are_refused_with_file_and_line(tmp_path, case):
    change, message = HOSTILE[case]
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()})
    file = samples(folder, "arc_easy")
    file.write_bytes(change(file.read_text()).encode("utf-8", errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as error:
        read_lm_eval(folder)
    assert str(error.value).startswith("[lm_eval] ") and file.name in str(error.value)


WRONG_VALUES = {
    "resps null": ({"resps": None}, "line 2: expected resps to hold the answers"),
    "arguments null": ({"arguments": None}, "line 2: expected arguments to hold the requests"),
    "request names": ({"arguments": {"x": {"arg_0": "a"}}}, "line 2: expected requests gen_args_0"),
    "doc_id true": ({"doc_id": True}, "line 2: expected doc_id as a number, got True"),
    "one filtered": ({"filter": "maj"}, "line 2: expected filter 'none' for every document"),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_values_of_another_kind_are_refused_with_file_and_line(tmp_path, case):
    change, message = WRONG_VALUES[case]
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()})
    lines = stored(folder)
    rewrite(folder, "arc_easy", [lines[0], {**lines[1], **change}, *lines[2:]])
    with pytest.raises(ValueError, match=message):
        read_lm_eval(folder)


@pytest.mark.parametrize("section", ["config", "configs", "versions", "results", "n-shot"])
def test_results_of_another_kind_are_refused_with_the_file(tmp_path, section):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()}, results={section: "x"})
    with pytest.raises(ValueError, match=rf"results_{TIME}.json: expected {section} to be a JSON"):
        read_lm_eval(folder)


def test_results_that_are_no_object_are_refused(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()})
    (folder / f"results_{TIME}.json").write_text("[]")
    with pytest.raises(ValueError, match="expected its content to be a JSON object"):
        read_lm_eval(folder)


def test_documents_that_the_results_count_and_the_samples_lack_are_told(tmp_path):
    counts = {"n-samples": {"arc_easy": {"original": 9, "effective": 6}}}
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()}, results=counts)
    assert not read_lm_eval(folder).meta["notes"]
    rewrite(folder, "arc_easy", stored(folder)[:-1])
    (note,) = read_lm_eval(folder).meta["notes"]
    assert note.startswith("arc_easy: samples_arc_easy_") and "5 documents, its results" in note


def test_a_choice_named_true_is_no_number(tmp_path):
    one = Doc({}, "Is it?", ["true", "false"], 0, [-1.0, -2.0])
    folder = write(tmp_path / "out", "0.4.8", {"mine": [one]})
    rewrite(folder, "mine", [{**stored(folder, "mine")[0], "target": "true"}])
    assert [item["gold"] for item in read_lm_eval(folder).items()] == [0]


def test_requests_whose_keys_were_sorted_otherwise(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()})
    lines = stored(folder)
    for one in lines:
        named = one["arguments"].items()
        one["arguments"] = {key: dict(reversed(value.items())) for key, value in named}
    rewrite(folder, "arc_easy", lines)
    assert [doc["choices"] for doc in read_lm_eval(folder).docs()] == [
        list(one.choices) for one in arc()
    ]


def test_too_few_answers_are_refused(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc(1)})
    (one,) = stored(folder)
    one["resps"].pop()
    rewrite(folder, "arc_easy", [one])
    with pytest.raises(ValueError, match="line 1: expected one answer per request, got 2 answers"):
        read_lm_eval(folder)


@pytest.mark.parametrize("version", ["0.3", "0.4.2"])
def test_a_cut_array_is_refused_with_its_line(tmp_path, version):
    folder = write(tmp_path / "out", version, {"arc_easy": arc()})
    (file,) = folder.glob("*arc_easy*")
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=rf"{file.name}, line \d+: expected valid JSON"):
        read_lm_eval(folder)


def test_folders_around_an_output(tmp_path):
    write(tmp_path / "all" / "tiny", "0.4.8", {"arc_easy": arc()})
    assert len(read_lm_eval(tmp_path / "all").items()) == 6
    write(tmp_path / "all" / "other", "0.4.8", {"arc_easy": arc()})
    with pytest.raises(ValueError, match=r"one model in .* got several: other, tiny"):
        read_lm_eval(tmp_path / "all")
    with pytest.raises(FileNotFoundError, match="expected an output folder of lm-evaluation"):
        read_lm_eval(tmp_path / "nothing")


def test_two_evaluations_of_a_task_need_a_name(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()})
    later = TIME.replace("10-20", "11-20")
    for file in list(folder.iterdir()):
        (folder / file.name.replace(TIME, later)).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"one evaluation of arc_easy .* name the results file"):
        read_lm_eval(folder)
    assert len(read_lm_eval(folder / f"results_{later}.json").items()) == 6


def test_two_results_files_must_agree(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()})
    write(tmp_path / "more", "0.4.8", {"boolq": boolq()}, config={"batch_size": 1})
    later = TIME.replace("10-20", "11-20")
    for file in (tmp_path / "more").iterdir():
        (folder / file.name.replace(TIME, later)).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="same settings, got different batch_size"):
        read_lm_eval(folder)


def test_totals_alone_are_refused(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()})
    samples(folder, "arc_easy").unlink()
    with pytest.raises(ValueError, match="got totals only; evaluate again with --log_samples"):
        read_lm_eval(folder)


def test_samples_without_results_leave_the_rule_open(tmp_path):
    folder = write(tmp_path / "out", "0.4.8", {"arc_easy": arc()})
    (folder / f"results_{TIME}.json").unlink()
    meta = read_lm_eval(folder).meta
    assert meta["bos"] is None and "no results file" in meta["notes"][0]


def test_pairs_with_a_run_of_our_own(tmp_path):
    words = ["a", "be", "cat"]
    items = [
        Item(f"mine-{i}", "mine", f"Question: what is {i}?\nAnswer:", tuple(words), i % 3)
        for i in range(4)
    ]
    own = calibit.evaluate(
        tiny_models.build("llama"),
        tiny_tokenizers.build(),
        items,
        out=tmp_path / "own",
        bos="never",
    )
    docs = [
        Doc({"i": i}, item.context, item.choices, item.gold, line["ll"])
        for i, (item, line) in enumerate(zip(items, own.items(), strict=True))
    ]
    theirs = write(tmp_path / "theirs", "0.4.8", {"words": docs[::-1]})
    found = calibit.compare(tmp_path / "own", theirs, **QUICK)
    assert found.protocol["n"] == 4 and found.flips.all_flips == 0
    assert "items joined by prompts and choices: 4 of 4 (100 %)" in found.warnings
    assert float(found.kl_ab) == pytest.approx(0.0, abs=1e-15)


def test_compare_command_reads_both(tmp_path, capsys):
    a = write(tmp_path / "a", "0.4.8", {"arc_easy": arc(12)})
    b = write(tmp_path / "b", "0.4.4", {"arc_easy": arc(12, shift=0.1)})
    words = ["compare", str(a), str(b), "--resamples", "200", "-o", str(tmp_path / "report")]
    assert main(words) == 0
    assert (tmp_path / "report" / "report.html").is_file()
    assert "12" in capsys.readouterr().out
    assert main(["compare", str(a), str(tmp_path / "missing")]) == 3
    assert "expected a run folder" in capsys.readouterr().err
