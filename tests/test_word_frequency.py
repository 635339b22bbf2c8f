"""Slices by how common an item's words are."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import calibit
import tiny_models
import tiny_tokenizers
from audit_cases import job_of, prepare, save_items
from calibit.auditing.inputs import read_inputs
from calibit.measures.word_frequency import QUARTERS, WordFrequencies, quarters, text_frequencies
from calibit.tasks import Item, Prompt, load, rarity

COMMON, RARE = "the cat saw the dog", "the cat saw the quagga"


def test_frequencies_by_hand() -> None:
    """Counts the 3, cat 2, 'saw' 1 of 6; one is added to each, and one word for all unseen ones."""
    known = WordFrequencies.of(["The cat, the CAT;", "the saw"])
    assert known.total == 6 and dict(known.counts) == {"the": 3, "cat": 2, "saw": 1}
    mean, rarest = text_frequencies(["the cat", "a saw", "..."], known)
    assert mean[0] == pytest.approx((math.log(4 / 10) + math.log(3 / 10)) / 2)
    assert rarest[:2] == pytest.approx([math.log(3 / 10), math.log(1 / 10)])
    assert np.isnan(mean[2]) and np.isnan(rarest[2])


def test_quarters_keep_equal_values_together() -> None:
    values = np.array([3.0, 1.0, 1.0, 2.0, np.nan, 4.0, 1.0, 5.0, 6.0])
    found = quarters(values)
    assert found[4] is None
    assert found[1] == found[2] == found[6] == "rarest 38 %"  # three of eight
    assert found[8] == QUARTERS[3] and found[0] in QUARTERS[1:3]


@pytest.mark.parametrize(
    ("counts", "names"),
    [
        ((25, 25, 25, 25), QUARTERS),
        ((29, 21, 25, 25), QUARTERS),  # within a twentieth of the items
        ((31, 19, 25, 25), ("rarest 31 %", "31 to 50 % from the rarest", *QUARTERS[2:])),
        ((60, 20, 20), ("rarest 60 %", "60 to 80 % from the rarest", QUARTERS[3])),
        ((10, 80, 10), ("rarest 90 %", "rarest 90 %", "commonest 10 %")),
        ((50, 50), ("rarest 50 %", "commonest 50 %")),
        ((100,), ("all alike",)),
    ],
)
def test_a_group_of_equal_values_is_named_by_what_it_holds(
    counts: tuple[int, ...], names: tuple[str, ...]
) -> None:
    values = np.repeat(np.arange(len(counts), dtype=np.float64), counts)
    found = quarters(values)
    assert [found[i] for i in np.cumsum(counts) - 1] == list(names)
    assert found == list(np.repeat(names, counts))
    order = np.random.default_rng(0).permutation(len(values))
    assert quarters(values[order]) == [found[i] for i in order]
    for name in set(names) & set(QUARTERS):
        assert 0.15 <= found.count(name) / len(found) <= 0.35


@pytest.mark.parametrize("n", [4, 6, 7, 9, 10, 130, 131, 1001])
def test_without_ties_quarters_are_quarters(n: int) -> None:
    """Parts of 1 and 2 of six items among them."""
    found = quarters(np.arange(float(n)))
    assert list(dict.fromkeys(found)) == list(QUARTERS)


def test_two_items_are_halves_and_not_quarters() -> None:
    assert quarters(np.array([2.0, 1.0])) == ["commonest 50 %", "rarest 50 %"]
    assert quarters(np.array([2.0])) == ["all alike"]


def test_items_and_prompts_are_sliced_by_their_rarest_word() -> None:
    rows = [COMMON] * 3 + [RARE]
    items = [Item(f"i{n}", "t", text, ("a", "b"), 0, {"lang": "en"}) for n, text in enumerate(rows)]
    asked = [Prompt(f"i{n}", "t", text) for n, text in enumerate(rows)]
    known, note = rarity.frequencies("own", rows)
    assert note.endswith("20 words of the evaluated items themselves were counted.")
    for given in (items, asked):
        found = rarity.with_rarity(given, known)
        names = [one.slices[rarity.RAREST] for one in found]
        first = f"{QUARTERS[0]} by {rarity.RAREST}"
        assert names[3] == first and names[0] == names[1] == names[2] != first
        assert set(found[0].slices) >= {rarity.RAREST, rarity.MEAN}
    assert rarity.with_rarity(items, known)[0].slices["lang"] == "en"


def test_quarters_are_those_of_a_task() -> None:
    """Else a task of rare words would be one slice."""
    rows = [
        ("a " * n + word, task) for task, word in (("t", "b"), ("u", "zz")) for n in range(1, 5)
    ]
    items = [Item(f"i{n}", task, text, ("a", "b"), 0) for n, (text, task) in enumerate(rows)]
    found = rarity.with_rarity(items, WordFrequencies.of(["a " * 50 + "b " * 9]))
    assert [one.slices[rarity.MEAN] for one in found] == [
        f"{quarter} by {rarity.MEAN}" for _ in range(2) for quarter in QUARTERS
    ]


def test_counts_come_from_the_text_that_is_given(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("quagga " * 50 + "dog")
    known, note = rarity.frequencies(str(file), [])
    assert note.endswith("51 words of words.txt were counted.")
    mean, _ = text_frequencies([COMMON, RARE], known)
    assert mean[1] > mean[0]
    with pytest.raises(ValueError, match="no such file"):
        rarity.frequencies(str(tmp_path / "none.txt"), [])


def test_examples_in_front_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    nested = [" ".join("abcdefgh"[: n + 1]) for n in range(8)]  # "a" is in all, "h" in one
    rows = [
        {"context": text, "choices": ["a", "b"], "label": 0, "id": f"i{n}"}
        for n, text in enumerate(nested)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = prepare(tmp_path / "job")
    changes = {"tasks": (str(file),), "word_frequency": "own"}
    plain, shown = (
        read_inputs(job_of(folder, num_fewshot=count, **changes)).items for count in (0, 3)
    )
    assert any(item.context.count("h") for item in shown[:7])
    same = [[item.slices[rarity.RAREST] for item in items] for items in (plain, shown)]
    named = [f"{name} by {rarity.RAREST}" for name in reversed(QUARTERS)]
    assert same[0] == same[1] == [name for name in named for _ in range(2)]


def test_slices_reach_the_comparison_and_the_verdict(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    rows = [
        {"context": "a " * (n % 13) + "cat " * (n % 7) + f"{n}", "choices": ["b", "c"], "label": 0}
        for n in range(130)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "items.jsonl").write_text(lines, encoding="utf-8")
    inputs = read_inputs(job_of(folder, word_frequency="own"))
    assert "words of the evaluated items themselves" in inputs.notes[-1]
    counts = Counter(item.slices[rarity.MEAN] for item in inputs.items)
    named = {f"{quarter} by {rarity.MEAN}" for quarter in QUARTERS}
    assert set(counts) == named and min(counts.values()) >= 30
    tokenizer = tiny_tokenizers.build()
    model = tiny_models.build("llama")
    calibit.quantize_model(model, "int4-g32")
    base, own = (
        calibit.evaluate(one, tokenizer, inputs.items)
        for one in (tiny_models.build("llama"), model)
    )
    found = calibit.compare(base, own, resamples=200)
    names = {row["name"] for row in found.slices}
    assert {f"{rarity.MEAN}={one}" for one in named} <= names
    lengths = {f"context length=quartile {k}" for k in (1, 2, 3, 4)}
    assert {row["name"] for row in found.to_dict()["search"]["slices"]} & lengths
    searched = [row["name"] for row in found.to_dict()["worst_slices"]["acc"]["slices"]]
    assert any(name.startswith(rarity.MEAN) for name in searched)


def test_exploratory_search_looks_at_word_frequency_by_itself(tmp_path: Path) -> None:
    items = load(str(save_items(tmp_path / "items.jsonl", count=130)))
    run = calibit.evaluate(tiny_models.build("llama"), tiny_tokenizers.build(), items)
    found = calibit.compare(run, run, resamples=200).to_dict()["search"]["slices"]
    names = [row["name"] for row in found]
    assert any(name.startswith("word frequency among the items=") for name in names), names
    assert not any(name.startswith("context length=") for name in names)  # all of one length
    without = calibit.evaluate(
        tiny_models.build("llama"), tiny_tokenizers.build(), items, store_docs=False
    )
    found = calibit.compare(without, without, resamples=200).to_dict()["search"]["slices"]
    assert not any("word frequency" in row["name"] for row in found)
