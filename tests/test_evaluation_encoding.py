"""Tokenisation of contexts and choices, the BOS rule, perplexity windows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import tiny_tokenizers
from calibit.evaluation import Text, wikitext_rows
from calibit.evaluation.encoding import EncodedChoices, Encoder, encode_items
from calibit.evaluation.text import make_windows, plan_windows

BOS, EOS = 1, 2
ids = tiny_tokenizers.ids


def encode(
    context: str, *choices: str, bos: str = "tokenizer", max_length: int = 64, **tokenizer: object
) -> EncodedChoices:
    encoder = Encoder(tiny_tokenizers.build(**tokenizer), bos=bos)  # type: ignore[arg-type]
    return encode_items(encoder, [(context, choices)], max_length=max_length)[0]


def test_input_leaves_off_the_last_token_and_the_targets_are_the_continuation() -> None:
    found = encode("ab", " cd", " e")
    assert found.inputs == ((BOS, *ids("ab c")), (BOS, *ids("ab ")))
    assert found.targets == (tuple(ids(" cd")), tuple(ids(" e")))
    assert not found.truncated
    assert not found.boundary_merge
    assert found.reason is None


def test_trailing_white_space_of_the_context_moves_to_the_choice() -> None:
    found = encode("ab \n", "c")
    assert found.inputs == ((BOS, *ids("ab \n")),)
    assert found.targets == (tuple(ids(" \nc")),)


def test_context_of_white_space_alone_is_an_empty_context() -> None:
    assert encode(" ", "c") == encode("", " c")


def test_empty_context_is_the_bos_token() -> None:
    found = encode("", "cd")
    assert found.inputs == ((BOS, *ids("c")),)
    assert found.targets == (tuple(ids("cd")),)


def test_empty_context_is_eos_where_the_tokenizer_has_no_bos() -> None:
    tokenizer = tiny_tokenizers.build(template="")
    tokenizer.bos_token = None
    found = encode_items(Encoder(tokenizer), [("", ["cd"])], max_length=64)[0]
    assert found.inputs == ((EOS, *ids("c")),)


def test_choice_that_starts_with_bos_uses_it_as_its_empty_context() -> None:
    found = encode("", "<bos>cd")
    assert found.inputs == ((BOS, *ids("c")),)
    assert found.targets == (tuple(ids("cd")),)


def test_merge_across_the_boundary_is_recorded_and_the_lengths_decide() -> None:
    found = encode("xa", "bc", merges=[("a", "b")])
    merged = 3 + len(tiny_tokenizers.CHARACTERS)
    # whole = bos x ab c, context = bos x a: what is beyond the context's length is "c".
    assert found.targets == (tuple(ids("c")),)
    assert found.inputs == ((BOS, *ids("xa")),)
    assert merged not in found.inputs[0]
    assert found.boundary_merge


def test_merge_that_swallows_the_choice_is_cut_at_the_common_prefix() -> None:
    found = encode("xa", "b", merges=[("a", "b")])
    assert found.inputs == ((BOS, *ids("x")),)
    assert found.targets == ((3 + len(tiny_tokenizers.CHARACTERS),),)
    assert found.boundary_merge
    assert found.reason is None


def test_merge_without_any_common_token_starts_from_the_prefix_token() -> None:
    found = encode("a", "b", merges=[("a", "b")], bos="never")
    assert found.inputs == ((BOS,),)
    assert found.targets == ((3 + len(tiny_tokenizers.CHARACTERS),),)


def test_long_context_is_cut_on_the_left_and_counted() -> None:
    found = encode("abcdef", "gh", max_length=4)
    assert found.inputs == (tuple(ids("defg")),)
    assert found.targets == (tuple(ids("gh")),)
    assert found.truncated


def test_context_that_just_fits_is_not_cut() -> None:
    assert not encode("ab", "cd", max_length=4).truncated
    assert encode("ab", "cd", max_length=3).truncated


def test_choice_longer_than_the_model_cannot_be_scored() -> None:
    reason = encode("a", "bcde", "f", max_length=3).reason
    assert reason == "choice 0 has 4 tokens, the model takes 3"


def test_choice_without_tokens_cannot_be_scored() -> None:
    assert encode("a", "b", "").reason == "choice 1 has no tokens"


def test_item_without_choices_cannot_be_scored() -> None:
    assert encode("a").reason == "the item has no choices"


@pytest.mark.parametrize(
    ("bos", "template", "text", "expected"),
    [
        ("tokenizer", "<bos> $A", "ab", [BOS, *ids("ab")]),
        ("tokenizer", "", "ab", ids("ab")),
        ("tokenizer", "<bos> $A", "<bos>ab", [BOS, *ids("ab")]),
        ("always", "", "ab", [BOS, *ids("ab")]),
        ("always", "<bos> $A", "<bos>ab", [BOS, *ids("ab")]),
        ("never", "<bos> $A", "ab", ids("ab")),
        ("tokenizer", "<bos> $A <eos>", "ab", [BOS, *ids("ab")]),
    ],
)
def test_bos_rule(bos: str, template: str, text: str, expected: list[int]) -> None:
    encoder = Encoder(tiny_tokenizers.build(template=template), bos=bos)
    assert encoder([text])[text] == expected


def test_unknown_bos_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[evaluate\] expected bos to be one of tokenizer, alw"):
        Encoder(tiny_tokenizers.build(), bos="sometimes")


def test_bos_always_needs_a_bos_token() -> None:
    tokenizer = tiny_tokenizers.build(template="")
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match=r"expected a tokenizer with a BOS token"):
        Encoder(tokenizer, bos="always")


def windows(text: Text, *, max_length: int = 64):  # type: ignore[no-untyped-def]
    return make_windows(Encoder(tiny_tokenizers.build()), text, max_length=max_length)


def test_gptq_windows_are_disjoint_and_the_tail_is_dropped() -> None:
    found = windows(Text("t", "abcdefghij", window=4))
    assert found.rows == ((BOS, *ids("abc")), tuple(ids("defg")))
    assert found.protocol == "gptq@w4"
    assert found.scored == 6
    assert found.bytes == 7  # "abcdefg"


def test_gptq_joins_parts_with_blank_lines() -> None:
    assert windows(Text("t", ("a", "b"), window=5)).rows == ((BOS, *ids("a\n\nb")),)


def test_gptq_limit_is_part_of_the_protocol() -> None:
    text = Text("t", "abcdefghijklmnop", window=4, max_tokens=4)
    found = windows(text)
    assert found.protocol == "gptq@w4@2"  # 4 tokens need two windows of 3 scored tokens
    assert len(found.rows) == 2


def test_gptq_window_is_capped_by_the_model() -> None:
    assert windows(Text("t", "abcdefghij"), max_length=4).protocol == "gptq@w4"


def test_gptq_refuses_a_text_shorter_than_a_window() -> None:
    with pytest.raises(ValueError, match=r"at least one window of 20 tokens, got 4 tokens in 't'"):
        windows(Text("t", "abc", window=20))


def test_documents_are_cut_and_counted_until_the_limit_is_reached() -> None:
    text = Text("t", ("abc", "de", "fghijk", "l"), "documents", window=5, max_tokens=6)
    found = windows(text)
    assert found.rows == ((BOS, *ids("abc")), (BOS, *ids("de")), (BOS, *ids("fghi")))
    assert found.protocol == "documents@w5@3"
    assert found.scored == 9
    assert found.bytes == 9


def test_bytes_are_counted_in_utf8() -> None:
    assert windows(Text("t", "ab", "documents")).bytes == 2
    assert windows(Text("t", "aé", "documents")).bytes == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "other"}, r"\[Text\] expected a protocol of gptq, documents"),
        ({"window": 1}, r"\[Text\] expected window of at least 2"),
        ({"max_tokens": 0}, r"\[Text\] expected max_tokens of at least 1"),
        ({"parts": ""}, r"\[Text\] expected some text in 't'"),
    ],
)
def test_text_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Text(**{"name": "t", "parts": "abc", **options})  # type: ignore[arg-type]


def test_text_from_file_splits_at_the_separator(tmp_path: Path) -> None:
    file = tmp_path / "stories.txt"
    file.write_bytes(b"one\n--\ntwo\n--\n \n")
    assert Text.from_file(file, separator="\n--\n").documents == ("one", "two")
    assert Text.from_file(file).documents == ("one\n--\ntwo\n--\n \n",)


def test_windows_are_batched_longest_first_and_each_once() -> None:
    rows = [(0,) * n for n in (3, 9, 5, 9, 2)]
    assert plan_windows(rows, batch_tokens=18) == [(1, 3), (2, 0, 4)]
    assert plan_windows(rows, batch_tokens=1) == [(1,), (3,), (2,), (0,), (4,)]


def test_wikitext_rows_make_the_published_text(shared_data: Path) -> None:
    joined = "\n\n".join(wikitext_rows(shared_data / "wikitext2_test_raw.txt")).encode()
    assert len(joined) == 1_296_370
    expected = "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83"
    assert hashlib.sha256(joined).hexdigest() == expected
