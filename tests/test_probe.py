"""The probe set: every fact asked once, one right answer each, balanced, and the same everywhere.

The tables are read here a second time with the csv module, so that the renderer is not its own
witness.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import string
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from calibit.tasks import Item, probe

FOLDER = Path(probe.__file__).parent
NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
"""
MAIN_SHA256 = "92ced83f4a33b729f0ab38f054eae61048483c01c53c6dcb6d273c328c35aa9c"
ALT_SHA256 = "13e22e3c3dbf34799e72a836b0eb2927aea671cd43ecbd25bdf86fcc8de92784"


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return probe.render()


def table(domain: str) -> list[dict[str, str]]:
    with (FOLDER / f"{domain}.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
        return list(rows)


def domains() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.tsv") if path.stem != "templates")


def asked() -> dict[str, tuple[str, str, set[str]]]:
    """Item id -> (kind, question, every answer its row lists as right)."""
    found = {}
    for domain in domains():
        for row in table(domain):
            for lang in probe.LANGUAGES:
                if row.get(lang):
                    right = set(row[f"{lang}_answer"].split("|"))
                    key = f"probe-{lang}-{domain}-{row['slug']}"
                    assert key not in found, f"two rows make {key}"
                    found[key] = (row["kind"], row[lang], right)
    return found


def ambiguous(items: Iterable[Item], rows: dict[str, tuple[str, str, set[str]]]) -> list[str]:
    """Ids whose distractors hold an answer that the tables give for the same question."""
    right = defaultdict(set)
    for key, (kind, question, answers) in rows.items():
        _, lang, domain, _ = key.split("-", 3)
        right[lang, domain, kind, question.casefold()] |= {text.casefold() for text in answers}
    found = []
    for item in items:
        kind, question, _ = rows[item.id]
        known = right[item.slices["lang"], item.slices["domain"], kind, question.casefold()]
        wrong = [text for k, text in enumerate(item.choices) if k != item.gold]
        if known & {text.casefold() for text in wrong}:
            found.append(item.id)
    return found


def duplicates(items: Sequence[Item]) -> list[str]:
    """Ids of items that ask the same, whatever the order of their choices."""
    count = Counter((item.context.casefold(), frozenset(item.choices)) for item in items)
    return [i.id for i in items if count[i.context.casefold(), frozenset(i.choices)] > 1]


def digest(items: Sequence[Item]) -> str:
    lines = [
        json.dumps([i.id, i.context, i.choices, i.gold, i.slices, i.delimiter], ensure_ascii=False)
        for i in items
    ]
    return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()


def test_size_domains_and_languages(items: list[Item]) -> None:
    languages = Counter(item.slices["lang"] for item in items)
    assert 1000 <= len(items) <= 2000
    assert len({item.slices["domain"] for item in items}) >= 8
    assert set(languages) == {"en", "de", "es"}
    assert min(languages.values()) >= 200
    assert languages.most_common(1)[0][0] == "en"
    cells = Counter((item.slices["lang"], item.slices["domain"]) for item in items)
    assert min(cells.values()) >= 24, cells


def test_every_table_cell_becomes_one_item(items: list[Item]) -> None:
    assert {item.id for item in items} == set(asked())
    assert len(items) == len(asked())


def test_items_have_four_different_choices_and_ask_for_the_first_answer(items: list[Item]) -> None:
    answers = {
        f"probe-{lang}-{domain}-{row['slug']}": row[f"{lang}_answer"].split("|")[0]
        for domain in domains()
        for row in table(domain)
        for lang in probe.LANGUAGES
        if row.get(lang)
    }
    for item in items:
        assert len({text.casefold() for text in item.choices}) == 4, item
        assert item.gold is not None
        assert item.choices[item.gold] == answers[item.id]
        assert (item.task, item.delimiter) == ("probe", " ")


def test_ids_are_stable_words(items: list[Item]) -> None:
    for item in items:
        expected = rf"probe-{item.slices['lang']}-{item.slices['domain']}-[a-z0-9-]+"
        assert re.fullmatch(expected, item.id), item.id


@pytest.mark.parametrize("form", ["main", "alt"])
def test_no_question_stands_twice(form: str) -> None:
    assert duplicates(probe.render(form)) == []


def test_the_duplicate_check_can_fail(items: list[Item]) -> None:
    first = items[0]
    again = replace(first, id="probe-en-capitals-again", choices=first.choices[::-1])
    assert duplicates([*items, again]) == [first.id, again.id]


def test_no_distractor_is_another_right_answer(items: list[Item]) -> None:
    assert ambiguous(items, asked()) == []


def test_the_ambiguity_check_can_fail(items: list[Item]) -> None:
    rows = asked()
    item = next(item for item in items if len(rows[item.id][2]) > 1)
    also_right = next(text for text in rows[item.id][2] if text not in item.choices)
    choices = list(item.choices)
    choices[(item.gold or 0) - 1] = also_right
    assert ambiguous([replace(item, choices=tuple(choices))], rows) == [item.id]


def test_listed_wrong_answers_are_not_listed_as_right() -> None:
    for domain in domains():
        for row in table(domain):
            for lang in probe.LANGUAGES:
                right = set(row.get(f"{lang}_answer", "").split("|")) - {""}
                wrong = row.get(f"{lang}_wrong", "").split("|")
                assert not right & set(wrong), (domain, row["slug"])
                assert wrong == [""] or len(set(wrong)) == len(wrong) >= 3, (domain, row["slug"])


def test_the_right_answer_stands_equally_often_in_each_place(items: list[Item]) -> None:
    cells = defaultdict(Counter)
    for item in items:
        cells[item.slices["lang"], item.slices["domain"]][item.gold] += 1
    for cell, places in cells.items():
        for place in range(4):
            assert abs(places[place] / places.total() - 0.25) <= 0.03, (cell, places)


@pytest.mark.parametrize("form", ["main", "alt"])
def test_texts_have_no_stray_white_space_and_are_normalised(form: str) -> None:
    for item in probe.render(form):
        for text in (item.context, *item.choices):
            assert text == text.strip()
            assert not re.search(r"  |\t|\r| \n|\n ", text), text
            assert unicodedata.is_normalized("NFC", text), text
            assert text
        assert not any("\n" in text or "|" in text for text in item.choices)
        assert not set("{}|") & set(item.context), item.context


def test_choices_have_comparable_length(items: list[Item]) -> None:
    for item in items:
        lengths = sorted(len(text) for text in item.choices)
        assert lengths[-1] - lengths[0] <= 12, item
        assert lengths[-1] <= 3.5 * lengths[0], item


def test_the_right_answer_is_not_the_odd_one_in_length(items: list[Item]) -> None:
    """Picking the longest, or the shortest, choice must not pay: chance is 25 %."""
    for pick in (min, max):
        hits = [
            item.choices[item.gold or 0] == pick(item.choices, key=len)
            for item in items
            if len({len(text) for text in item.choices}) > 1
        ]
        assert 0.17 < sum(hits) / len(hits) < 0.33, pick


def test_forms_differ_only_in_wording(items: list[Item]) -> None:
    for one, two in zip(items, probe.render("alt"), strict=True):
        assert one.context != two.context, one.id
        assert replace(one, context="") == replace(two, context="")


def test_templates_are_all_used_and_ask_about_the_row() -> None:
    used = {
        (domain, row["kind"], lang)
        for domain in domains()
        for row in table(domain)
        for lang in probe.LANGUAGES
        if row.get(lang)
    }
    rows = table("templates")
    assert {(row["domain"], row["kind"], row["lang"]) for row in rows} == used
    assert len(rows) == len(used)
    for row in rows:
        for form in ("main", "alt"):
            names = {name for _, name, _, _ in string.Formatter().parse(row[form]) if name}
            assert names and names <= {"q", "Q"}, row


def test_arithmetic_is_right() -> None:
    number = {word: n for n, word in enumerate(NUMBERS.split())}
    sign = {"+": "+", "plus": "+", "-": "-", "minus": "-", "x": "*"}
    for row in table("arithmetic"):
        left, operator, right = row["en"].split()
        a, b, answer = (number.get(w, w) for w in (left, right, row["en_answer"]))
        expected = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
        assert int(answer) == expected[sign[operator]], row


@pytest.mark.parametrize("lang", ["de", "es"])
def test_arithmetic_is_the_same_in_every_language(lang: str) -> None:
    words = {row[lang] for row in table("arithmetic") if row[lang]}
    assert len(words) == 28
    translated: dict[str, str] = {}
    for row in table("arithmetic"):
        if row[lang]:
            for one, two in zip(row["en"].split(), row[lang].split(), strict=True):
                assert translated.setdefault(one, two) == two, row
            answer = translated.setdefault(row["en_answer"], row[f"{lang}_answer"])
            assert answer == row[f"{lang}_answer"], row


@pytest.mark.parametrize(
    ("lang", "days"),
    [
        ("en", "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
        ("de", "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag"),
        ("es", "lunes martes miércoles jueves viernes sábado domingo"),
    ],
)
def test_days_follow_each_other(lang: str, days: str) -> None:
    week = days.split()
    step = {"day_after": 1, "day_before": -1}
    rows = [row for row in table("calendar") if row["kind"] in step]
    assert len(rows) == 14
    for row in rows:
        expected = week[(week.index(row[lang]) + step[row["kind"]]) % 7]
        assert row[f"{lang}_answer"].split("|")[0] == expected


def test_elements_have_one_symbol_in_every_language() -> None:
    rows = [row for row in table("elements") if row["kind"] == "symbol"]
    assert len({row["en_answer"] for row in rows}) == len(rows)
    for row in rows:
        answers = {row[f"{lang}_answer"] for lang in probe.LANGUAGES if row[lang]}
        assert len(answers) == 1, row


def test_rendered_bytes_are_pinned(items: list[Item]) -> None:
    """A change of any table, template or rule must be seen; update the digests on purpose."""
    assert digest(items) == MAIN_SHA256
    assert digest(probe.render("alt")) == ALT_SHA256


def test_rendering_is_fast() -> None:
    """Meant to stay below 100 ms from cold tables; the bound leaves room for a busy machine."""
    spent = []
    for _ in range(3):
        for cached in (probe._read, probe._facts, probe._answers, probe._render):
            cached.cache_clear()
        start = time.process_time()
        probe.render()
        spent.append(time.process_time() - start)
    assert min(spent) < 0.25


def test_too_few_distractors_are_refused_with_the_id() -> None:
    facts = [fact for fact in probe.facts() if fact.id.startswith("probe-en-colors-")][:3]
    with pytest.raises(ValueError, match=r"\[probe\] expected at least 3 distractors for probe-en"):
        probe._distractors(facts)


def test_the_folder_says_it_is_cc0() -> None:
    assert "CC0 1.0 Universal" in (FOLDER / "LICENSE").read_text(encoding="utf-8")
