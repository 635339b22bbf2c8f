"""Reading tasks: templates to the letter, every bad row named, subsamples that stay balanced."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibit.tasks import Item, known, limit, load, load_text, prepare, read
from calibit.tasks.catalog import TASKS
from calibit.tasks.loading import WRITTEN

GOOD: dict[str, Any] = {"context": "2 + 2 =", "choices": ["3", "4"], "label": 1}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows (objects, or lines as text or bytes) to a file and return its path."""

    def _write(*rows: object, name: str = "rows.jsonl", end: bytes = b"\n") -> Path:
        path = tmp_path / name
        lines = [
            row
            if isinstance(row, bytes)
            else (row if isinstance(row, str) else json.dumps(row)).encode()
            for row in rows
        ]
        path.write_bytes(b"".join(line + end for line in lines))
        return path

    return _write


# --- templates ------------------------------------------------------------------------------


CASES: list[tuple[str, Mapping[str, Any], str, tuple[str, ...]]] = [
    ("arc_easy", {"context": "Why?"}, "Question: Why?\nAnswer:", ("3", "4")),
    ("arc_challenge", {"context": "Why?"}, "Question: Why?\nAnswer:", ("3", "4")),
    ("piqa", {"context": "To sit,"}, "Question: To sit,\nAnswer:", ("3", "4")),
    ("openbookqa", {"context": "A dog is"}, "A dog is", ("3", "4")),
    (
        "boolq",
        {"context": "A b.\nQuestion: is c d?", "choices": ["no", "yes"]},
        "A b.\nQuestion: is c d?\nAnswer:",
        ("no", "yes"),
    ),
    ("hellaswag", {"context": "A man [x] sits  down. he"}, "A man [x] sits  down. he", ("3", "4")),
    (
        "mmlu",
        {"context": " What? ", "subject": "high_school_law", "choices": ["a", "b ", "c", "d"]},
        "The following are multiple choice questions (with answers) about high school law.\n\n"
        "What?\nA. a\nB. b \nC. c\nD. d\nAnswer:",
        ("A", "B", "C", "D"),
    ),
    (
        "xcopa",
        {
            "context": "Lui cadde.",
            "lang": "it",
            "question": "cause",
            "choices": ["Era Buio.", "È lì."],
        },
        "Lui cadde perché",
        ("era Buio.", "è lì."),
    ),
    (
        "xcopa",
        {
            "context": "他累了。",
            "lang": "zh",
            "question": "effect",
            "choices": ["他睡了。", "他跑了。"],
        },
        "他累了 所以",
        ("他睡了。", "他跑了。"),
    ),
    ("xstorycloze_en", {"context": "One. Two."}, "One. Two.", ("3", "4")),
    ("xstorycloze", {"context": "Uno. Dos.", "lang": "es"}, "Uno. Dos.", ("3", "4")),
    ("storycloze_2016", {"context": "One. Two."}, "One. Two.", ("3", "4")),
]


@pytest.mark.parametrize(("task", "row", "context", "choices"), CASES)
def test_template_of_local_rows(
    write: Write, task: str, row: Mapping[str, Any], context: str, choices: tuple[str, ...]
) -> None:
    (item,) = load(f"{task}={write({**GOOD, **row})}")
    assert (item.context, item.choices, item.gold, item.delimiter) == (context, choices, 1, " ")


PUBLISHED: list[tuple[str, Mapping[str, Any], str, tuple[str, ...], int]] = [
    (
        "arc_easy",
        {
            "question": "Why?",
            "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
            "answerKey": "3",
        },
        "Question: Why?\nAnswer:",
        ("x", "y", "z"),
        2,
    ),
    (
        "openbookqa",
        {
            "question_stem": "A dog is",
            "choices": {"text": ["x", "y"], "label": ["A", "B"]},
            "answerKey": "B ",
        },
        "A dog is",
        ("x", "y"),
        1,
    ),
    (
        "boolq",
        {"passage": "A b.", "question": "is c d", "label": 1, "idx": 0},
        "A b.\nQuestion: is c d?\nAnswer:",
        ("no", "yes"),
        1,
    ),
    (
        "piqa",
        {"goal": "To sit,", "sol1": " use it ", "sol2": "do", "label": 0},
        "Question: To sit,\nAnswer:",
        (" use it ", "do"),
        0,
    ),
    (
        "hellaswag",
        {
            "activity_label": "Lifting",
            "ctx_a": "[header] A man. [title] He sits.",
            "ctx_b": "then he SAID Bob",
            "endings": ["[step] goes.", "runs."],
            "label": "1",
        },
        "Lifting: A man.. He sits. Then he said bob",
        (" goes.", "runs."),
        1,
    ),
    (
        "mmlu",
        {"question": "What?", "subject": "law", "choices": ["a", "b"], "answer": 0},
        "The following are multiple choice questions (with answers) about law.\n\n"
        "What?\nA. a\nB. b\nAnswer:",
        ("A", "B"),
        0,
    ),
    (
        "xstorycloze_en",
        {
            **{f"input_sentence_{i}": f"{i}." for i in range(1, 5)},
            "sentence_quiz1": "x",
            "sentence_quiz2": "y",
            "answer_right_ending": 2,
        },
        "1. 2. 3. 4.",
        ("x", "y"),
        1,
    ),
    (
        "xstorycloze",
        {
            **{f"input_sentence_{i}": f"{i}." for i in range(1, 5)},
            "sentence_quiz1": "x",
            "sentence_quiz2": "y",
            "answer_right_ending": 1,
            "lang": "eu",
        },
        "1. 2. 3. 4.",
        ("x", "y"),
        0,
    ),
    (
        "storycloze_2016",
        {
            **{f"InputSentence{i}": f"{i}." for i in range(1, 5)},
            "RandomFifthSentenceQuiz1": "x",
            "RandomFifthSentenceQuiz2": "y",
            "AnswerRightEnding": 2,
        },
        "1. 2. 3. 4.",
        ("x", "y"),
        1,
    ),
    (
        "xcopa",
        {
            "premise": "Lui cadde.",
            "choice1": "A",
            "choice2": "B",
            "question": "effect",
            "label": 0,
            "lang": "it",
        },
        "Lui cadde quindi",
        ("a", "b"),
        0,
    ),
]


@pytest.mark.parametrize(("task", "row", "context", "choices", "gold"), PUBLISHED)
def test_rows_as_published_read_the_same(
    write: Write,
    task: str,
    row: Mapping[str, Any],
    context: str,
    choices: tuple[str, ...],
    gold: int,
) -> None:
    (item,) = load(f"{task}={write(row)}")
    assert (item.context, item.choices, item.gold) == (context, choices, gold)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a barbell. [title] How", "a barbell.. How"),
        ("a   b", "a  b"),
        (
            "[header] How to boil eggs [title] Fill the pot. [step]",
            " How to boil eggs. Fill the pot. ",
        ),
    ],
)
def test_hellaswag_text_rule(text: str, clean: str) -> None:
    assert prepare.clean_wikihow(text) == clean


def test_boolq_splits_at_the_last_question_line() -> None:
    text = "One.\nQuestion: not this?\nTwo.\nQuestion: is this it?"
    fields, _ = prepare.boolq({"context": text}, ("no", "yes"))
    assert fields == {"passage": "One.\nQuestion: not this?\nTwo.", "question": "is this it"}


@pytest.mark.parametrize(("task", "row"), [case[:2] for case in CASES])
def test_alt_form_changes_the_wording_only(write: Write, task: str, row: Mapping[str, Any]) -> None:
    spec = f"{task}={write({**GOOD, **row})}"
    (main,), (alt,) = load(spec), load(spec, form="alt")
    assert main.context != alt.context
    assert (main.id, main.gold, main.slices) == (alt.id, alt.gold, alt.slices)
    assert [c.lower() for c in main.choices] == [c.lower() for c in alt.choices]


def test_xcopa_question_is_taken_from_estonian(write: Write) -> None:
    rows = [
        {**GOOD, "id": f"xcopa-{lang}-{i}", "lang": lang, "question": question}
        for lang, questions in (("et", ("cause", "effect")), ("th", ("effect", "effect")))
        for i, question in enumerate(questions)
    ]
    path = write(*rows, {**GOOD, "id": "xcopa-th-9", "lang": "th", "question": "cause"})
    loaded = read(f"xcopa={path}")
    assert loaded.items[2].context.endswith(" เพราะ")
    assert [item.slices["question"] for item in loaded.items[2:]] == ["cause", "effect", "cause"]
    assert any("1 wrong 'question'" in note for note in loaded.notes)
    assert any("1 'question' fields unchecked" in note for note in loaded.notes)
    assert load(f"xcopa={path}", repair=False)[2].context.endswith(" ดังนั้น")


# --- names, slices, ids -----------------------------------------------------------------------


def test_a_sample_never_carries_the_name_of_the_task(write: Write) -> None:
    loaded = read(f"arc_easy={write(GOOD, {**GOOD, 'label': 0})}")
    assert {item.task for item in loaded.items} == {"arc_easy_2"}
    assert loaded.notes == ("arc_easy: 2 of 2376 items, a sample; reported as such",)


def test_full_split_carries_the_name_of_the_task(write: Write) -> None:
    loaded = read(f"openbookqa={write(*[GOOD] * 500)}")
    assert {item.task for item in loaded.items} == {"openbookqa"}
    assert loaded.notes == ()


def test_hellaswag_in_the_other_form_says_so(write: Write) -> None:
    assert load(f"hellaswag={write(*[GOOD] * 10042)}")[0].task == "hellaswag_llamacpp"


def test_verbatim_rows_of_a_known_task_say_so(write: Write) -> None:
    assert load(str(write(GOOD, name="arc_easy.jsonl")))[0].task == "arc_easy_verbatim"
    assert load(str(write({**GOOD, "task": "piqa"})))[0].task == "piqa_verbatim"
    assert load(str(write({**GOOD, "task": "mine"})))[0].task == "mine"


def test_local_file_is_used_as_it_stands(write: Write) -> None:
    first, second, third = load(
        str(
            write(
                {**GOOD, "id": "a", "lang": "en", "domain": "sums", "level": 3},
                {"context": "", "choices": [" 3", "4 ", "4 "]},
                {**GOOD, "id": 7, "label": None},
            )
        )
    )
    assert first == Item("a", "rows", "2 + 2 =", ("3", "4"), 1, {"lang": "en", "domain": "sums"})
    assert (second.id, second.context, second.choices) == ("rows-1", "", (" 3", "4 ", "4 "))
    assert second.gold is None
    assert (third.id, third.gold) == ("7", None)


def test_an_object_of_slices_is_read(write: Write) -> None:
    row = {**GOOD, "lang": "en", "slices": {"domain": "law", "lang": "de"}}
    (item,) = load(str(write(row)))
    assert item.slices == {"lang": "de", "domain": "law"}
    (prompt,) = load(str(write({"prompt": "2 +", "answer": "3", "slices": {"kind": "sum"}})))
    assert prompt.slices == {"kind": "sum"}
    for wrong in (["law"], {"domain": 3}, 7):
        with pytest.raises(ValueError, match=r"line 1: expected 'slices' to be an object of strin"):
            load(str(write({**GOOD, "slices": wrong})))


def test_a_label_as_text_is_no_slice_and_a_task_is_a_name(write: Write) -> None:
    (item,) = load(str(write({**GOOD, "label": "1", "task": None})))
    assert (item.gold, item.slices, item.task) == (1, {}, "rows")
    for wrong in (["a"], "", True):
        with pytest.raises(ValueError, match="line 1: expected 'task' to be a name"):
            load(str(write({**GOOD, "task": wrong})))


def test_two_equal_choices_of_an_item_are_noted(write: Write) -> None:
    row = {"context": "", "choices": ["3", "4", "4"], "label": 0}
    path = str(write({**GOOD, "id": "good"}, {**row, "id": "a"}, {**row, "id": "b"}))
    assert read(path).notes == (
        "a and 1 more: two choices have the same text, so the later one is never the answer; "
        "correct or leave out such items",
    )
    assert read(str(write(GOOD))).notes == ()
    assert read("probe").notes == read("arithmetic_steps").notes == ()


def test_a_path_with_an_equals_sign_is_a_path(write: Write) -> None:
    assert load(str(write(GOOD, name="probe=x.jsonl")))[0].task == "probe=x"


def test_slice_values_select_items(write: Write) -> None:
    assert {item.slices["lang"] for item in load("probe:de,es")} == {"de", "es"}
    assert {item.slices["domain"] for item in load("probe:colors")} == {"colors"}
    rows = [{**GOOD, "subject": subject} for subject in ("law", "art", "law")]
    assert [item.id for item in load(f"mmlu:law={write(*rows)}")] == ["mmlu-0", "mmlu-2"]


def test_byte_order_mark_and_crlf_and_blank_lines(write: Write) -> None:
    line = json.dumps(GOOD)
    path = write(b"\xef\xbb\xbf" + line.encode(), "", "  ", line, end=b"\r\n")
    assert [item.context for item in load(str(path))] == ["2 + 2 =", "2 + 2 ="]


def test_line_separators_inside_strings_do_not_end_a_line(write: Write) -> None:
    row = json.dumps({**GOOD, "context": "a\u2028b\x85c"}, ensure_ascii=False)
    assert load(str(write(row)))[0].context == "a\u2028b\x85c"


def test_last_line_may_lack_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    assert len(load(str(path))) == 1


# --- bad input --------------------------------------------------------------------------------


BAD = [
    ("{", r"expected a JSON object, got '\{'.*write one complete object per line"),
    ('{"context": "x", "choices": ["a", "b"],}', "expected a JSON object"),
    ("[1, 2]", r"expected a JSON object, got '\[1, 2\]'"),
    ("[" * 100_000, "expected a JSON object"),
    (b'{"context": "\xff"}', "expected UTF-8 text"),
    ('{"context": "\\ud800", "choices": ["a", "b"]}', "expected UTF-8 text"),
    ({"choices": ["a", "b"]}, r"expected 'context' to be a string, got no field 'context'"),
    ({**GOOD, "context": 3}, r"expected 'context' to be a string, got 3"),
    ({"context": "x"}, r"'choices' to be a list of at least 2 non-empty strings, got None"),
    ({**GOOD, "choices": ["a"]}, r"at least 2 non-empty strings, got \['a'\]"),
    ({**GOOD, "choices": "ab"}, r"at least 2 non-empty strings, got 'ab'"),
    ({**GOOD, "choices": ["a", 2]}, r"at least 2 non-empty strings"),
    ({**GOOD, "choices": ["a", ""]}, r"at least 2 non-empty strings"),
    ({**GOOD, "label": 2}, r"expected 'label' to be an integer from 0 to 1, got 2"),
    ({**GOOD, "label": -1}, r"'label' to be an integer from 0 to 1, got -1"),
    ({**GOOD, "label": True}, r"'label' to be an integer from 0 to 1, got True"),
    ({**GOOD, "label": "B"}, r"'label' to be an integer from 0 to 1, got 'B'"),
    ({**GOOD, "label": 1.0}, r"'label' to be an integer from 0 to 1, got 1.0"),
    ({**GOOD, "id": "first"}, r"an id of its own, got 'first'; the same id stands in .*line 1"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_row_is_named_by_file_and_line(write: Write, row: object, message: str) -> None:
    path = write({**GOOD, "id": "first"}, "", row)
    with pytest.raises(ValueError, match=rf"\[tasks\] .*rows\.jsonl, line 3: .*{message}"):
        load(str(path))


BAD_TASK_ROWS = [
    ("boolq", {"context": "no question here"}, "to hold a passage, then a line 'Question:"),
    ("xcopa", {"lang": "xx", "question": "cause"}, r"expected 'lang' to be one of et, ht"),
    ("xcopa", {"lang": "it", "question": "why"}, "expected 'question' to be 'cause' or 'effect'"),
    ("xcopa", {"question": "cause"}, "expected 'lang' to be a string"),
    ("mmlu", {}, "expected 'subject' to be a string"),
    (
        "arc_easy",
        {
            "context": None,
            "question": "x",
            "choices": {"text": ["a", "b"], "label": ["A", "B"]},
            "answerKey": "C",
        },
        r"expected 'answerKey' to be one of \['A', 'B'\], got 'C'",
    ),
]


@pytest.mark.parametrize(("task", "row", "message"), BAD_TASK_ROWS)
def test_bad_row_of_a_task(write: Write, task: str, row: Mapping[str, Any], message: str) -> None:
    fields = {k: v for k, v in {**GOOD, **row}.items() if v is not None}
    with pytest.raises(ValueError, match=rf"\[tasks\] .*rows\.jsonl, line 1: .*{message}"):
        load(f"{task}={write(fields)}")


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"empty\.jsonl: .* got an empty file; write rows such as"):
        load(str(path))


@pytest.mark.parametrize("spec", ["nonesuch", "nonesuch=rows.jsonl"])
def test_unknown_task_lists_the_known_ones(spec: str) -> None:
    with pytest.raises(
        ValueError, match=r"expected one of the known tasks probe, .*arc_easy.*xcopa"
    ):
        load(spec)


@pytest.mark.parametrize("spec", ["nonesuch.jsonl", "here/nonesuch", "arc_easy=nonesuch.jsonl"])
def test_unknown_file(spec: str) -> None:
    with pytest.raises(ValueError, match=r"nonesuch.*: no such file"):
        load(spec)


def test_unknown_slice_value_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"expected slice values among .*en.*got fr in 'probe:fr'"):
        load("probe:fr")


def test_the_probe_set_takes_no_file() -> None:
    with pytest.raises(ValueError, match="expected 'probe' without a file"):
        load("probe=rows.jsonl")


def test_unknown_form_and_form_of_a_plain_file(write: Write) -> None:
    with pytest.raises(ValueError, match="expected a form among main, alt"):
        load("probe", form="second")
    with pytest.raises(ValueError, match="expected a task with a second wording"):
        load(str(write(GOOD)), form="alt")


# --- the hub ----------------------------------------------------------------------------------


def test_without_datasets_the_message_names_package_and_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeError, match=r"pip install datasets, or .*piqa=FILE\.jsonl"):
        load("piqa")


def test_hub_rows_of_every_language(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(path: str, name: str | None, *, split: str) -> Sequence[Mapping[str, Any]]:
        asked.append((path, name, split))
        fields = {"premise": "X.", "choice1": "A", "choice2": "B", "question": "cause"}
        return [{**fields, "label": 1, "idx": 0, "changed": False}]

    fake = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    items = load("xcopa")
    assert [item.slices["lang"] for item in items] == list(prepare.XCOPA_CONNECTORS)
    assert asked[0] == ("cambridgeltl/xcopa", "et", "test")
    assert len({item.id for item in items}) == 11


def test_failed_download_offers_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(RuntimeError, match=r"download baber/piqa/validation, got no route; check"):
        load("piqa")


# --- subsamples -------------------------------------------------------------------------------


def _items(*cells: tuple[str, str, int]) -> list[Item]:
    return [
        Item(f"{lang}-{domain}-{i}", "t", "x", ("a", "b"), 0, {"domain": domain, "lang": lang})
        for lang, domain, count in cells
        for i in range(count)
    ]


@pytest.mark.parametrize("n", [10, 16, 50, 100, 333])
def test_limit_keeps_the_share_of_languages_and_domains(n: int) -> None:
    items = load("probe")
    drawn = limit(items, n, seed=3)
    assert len(drawn) == n
    for key in ("lang", "domain"):
        whole, part = (Counter(item.slices[key] for item in x) for x in (items, drawn))
        slack = 1 if key == "lang" else 3  # a domain is spread over three languages, each +-1
        for value, count in whole.items():
            assert abs(part[value] - n * count / len(items)) <= slack, (key, value)


def test_limit_keeps_order_and_draws_no_item_twice() -> None:
    items = load("probe")
    place = {item.id: i for i, item in enumerate(items)}
    places = [place[item.id] for item in limit(items, 200)]
    assert places == sorted(set(places))


def test_limit_depends_on_the_seed_alone() -> None:
    items = load("probe")
    assert limit(items, 50, seed=1) == limit(items, 50, seed=1)
    assert limit(items, 50, seed=1) != limit(items, 50, seed=2)
    assert limit(items, len(items) + 5) == items


def test_limit_is_the_same_on_every_machine() -> None:
    items = _items(("en", "a", 6), ("de", "a", 3), ("de", "b", 3))
    assert [item.id for item in limit(items, 4, seed=0)] == PINNED


PINNED = ["en-a-3", "en-a-4", "de-a-0", "de-b-0"]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    share=st.floats(0.01, 1.0),
    seed=st.integers(0, 10_000),
)
def test_limit_gives_every_stratum_its_share(counts: list[int], share: float, seed: int) -> None:
    names = [("en", "a"), ("en", "b"), ("de", "a"), ("de", "b")]
    items = _items(*[(*name, count) for name, count in zip(names, counts, strict=True)])
    n = max(1, int(share * len(items)))
    drawn = limit(items, n, seed=seed)
    assert len(drawn) == n
    for lang, domain in names:
        size = sum(item.slices == {"lang": lang, "domain": domain} for item in items)
        got = sum(item.slices == {"lang": lang, "domain": domain} for item in drawn)
        assert abs(got - n * size / len(items)) < 1 + 1e-9


def test_every_item_can_be_drawn() -> None:
    items = _items(("en", "a", 5), ("de", "b", 5))
    seen = {item.id for seed in range(60) for item in limit(items, 2, seed=seed)}
    assert len(seen) == 10


@pytest.mark.parametrize("n", [0, -1])
def test_limit_below_one_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=rf"\[limit\] expected .* at least 1, got {n}"):
        limit(load("probe"), n)


# --- texts ------------------------------------------------------------------------------------


def test_pydoc_text_names_the_python_version() -> None:
    text = load_text("pydoc")
    assert text.name == f"pydoc-{platform.python_version()}"
    assert len(text.text) > 100_000
    assert text.sha256 == hashlib.sha256(text.text.encode()).hexdigest()
    assert text == load_text("pydoc")


def test_text_file_is_kept_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo \xc3\xa9\n")
    text = load_text(str(path))
    assert (text.name, text.text) == ("a.txt", "one\r\n\r\ntwo é\n")
    assert text.sha256 == hashlib.sha256("one\r\n\r\ntwo é\n".encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b" \n", "got an empty file"), (b"ab\xffc", "expected UTF-8, got byte 0xff at position 2")],
)
def test_bad_text_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"\[text\] .*a\.txt: .*{message}"):
        load_text(str(path))


def test_missing_text_file() -> None:
    with pytest.raises(ValueError, match=r"\[text\] expected a text file or 'pydoc', got 'none"):
        load_text("nonesuch.txt")


def test_python_without_pydoc_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(RuntimeError, match=r"\[text\] expected the standard module pydoc_data"):
        load_text("pydoc")


# --- the real sets ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "task"),
    [
        ("arc_easy", 2376, "arc_easy"),
        ("arc_challenge", 1172, "arc_challenge"),
        ("openbookqa", 500, "openbookqa"),
        ("piqa", 1838, "piqa"),
        ("boolq", 2000, "boolq_2000"),
        ("hellaswag", 2000, "hellaswag_llamacpp_2000"),
        ("mmlu", 1995, "mmlu_1995"),
    ],
)
def test_staged_set(shared_data: Path, name: str, count: int, task: str) -> None:
    path = shared_data / f"{name}.jsonl"
    items = load(f"{name}={path}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert len(items) == len(rows) == count
    assert {item.task for item in items} == {task}
    for item, row in zip(items, rows, strict=True):
        assert (item.id, item.gold) == (row["id"], row["label"])
        if name != "mmlu":
            assert item.choices == tuple(row["choices"])
        if name == "boolq":
            assert item.context == row["context"] + "\nAnswer:"


def test_staged_xcopa(shared_data: Path) -> None:
    loaded = read(f"xcopa={shared_data / 'xcopa.jsonl'}")
    assert loaded.notes == ("xcopa: 346 wrong 'question' fields taken from Estonian",)
    assert set(Counter(item.task for item in loaded.items).values()) == {500}
    published = load(f"xcopa={shared_data / 'xcopa.jsonl'}", repair=False)
    changed = Counter(
        one.slices["lang"]
        for one, two in zip(loaded.items, published, strict=True)
        if one.context != two.context
    )
    assert changed == {"th": 250, "tr": 51, "sw": 37, "id": 4, "it": 4}


def test_every_catalogued_task_is_known() -> None:
    assert known() == ("probe", *WRITTEN, *TASKS)
    assert all(task.size > 0 and task.hub.path.count("/") == 1 for task in TASKS.values())
