"""Perplexity under the conventions of other tools, against slow loops over their definitions."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models
import tiny_tokenizers
from calibit import compare
from calibit.auditing.job import Job
from calibit.auditing.single import evaluate_model
from calibit.comparison.texts import text_perplexity
from calibit.evaluation import Text, evaluate
from calibit.evaluation.encoding import Encoder
from calibit.evaluation.protocols import hf_stride_windows, lm_eval_windows
from calibit.evaluation.text import make_windows, wikitext_pages
from calibit.measures.perplexity import detokenize_wikitext, hf_stride_ppl
from calibit.reporting.wording import text_words

STORY = "the cat sat on a mat. the dog did not: why? no one knows. an eagle sees the cat."
PAGES = (" = The cat = \n the cat 's mat , ( see the dog ) .\n", " = The dog = \n no dog sat .\n")
FP32 = 1e-5  # of a mean of some 40 float32 losses of about 6 nats, each right to 1e-6


def losses(model, row: list[int]) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Loss of every token of a row but the first, by the definition, in float64."""
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=torch.tensor([row])).logits[0].double(), dim=-1)
    return -logp[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0]


def found(model, text: Text) -> float:  # type: ignore[no-untyped-def]
    run = evaluate(model, tiny_tokenizers.build(), text=text, batch_tokens=40)
    return math.log(text_perplexity(run, text.name).value or 0)


def test_llama_cpp_scores_the_second_half_after_bos() -> None:
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    ids = tokenizer(STORY)["input_ids"]
    total, count = 0.0, 0
    for start in range(0, len(ids) - 11, 12):
        row = [tokenizer.bos_token_id, *ids[start + 1 : start + 12]]
        own = losses(model, row)
        for position in range(12 // 2, 12 - 1):  # logits from the middle on, but for the last
            total, count = total + float(own[position]), count + 1
    text = Text("story", STORY, "llama_cpp", window=12)
    assert found(model, text) == pytest.approx(total / count, abs=FP32)
    assert count % 5 == 0


def test_llama_cpp_scores_255_of_512() -> None:
    text = Text("t", "ab" * 600, "llama_cpp")
    windows = make_windows(Encoder(tiny_tokenizers.build()), text, max_length=4096)
    assert windows.protocol == "llama_cpp"
    assert windows.scored == 255 * len(windows.rows) == 510


def test_llama_cpp_puts_no_bos_where_the_rule_has_none() -> None:
    encoder = Encoder(tiny_tokenizers.build(), bos="never")
    text = Text("t", "abcdefgh", "llama_cpp", window=4)
    rows = make_windows(encoder, text, max_length=64).rows
    assert rows == (tuple(tiny_tokenizers.ids("abcd")), tuple(tiny_tokenizers.ids("efgh")))


@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 5), (18, 18), (500, 100)])
def test_hf_stride_equals_the_guide_of_transformers(window: int, stride: int) -> None:
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    ids = torch.tensor([tokenizer(STORY)["input_ids"]])
    total, before = 0.0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        fed = ids[:, begin:end]
        labels = fed.clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            total += float(model(fed, labels=labels).loss) * (end - before)
        before = end
        if end == ids.shape[1]:
            break
    text = Text("story", STORY, "hf_stride", window=window, stride=stride)
    model.config.max_position_embeddings = 500
    assert found(model, text) == pytest.approx(total / ids.shape[1], abs=FP32)


def test_hf_stride_weights_equal_the_sums() -> None:
    model = tiny_models.build("llama")
    text = Text("story", STORY, "hf_stride", window=16, stride=16)
    run = evaluate(model, tiny_tokenizers.build(), text=text)
    label, nll = run.tokens().window, run.text_nll()
    scored = np.bincount(label)
    expected = hf_stride_ppl(np.bincount(label, nll), scored, scored + 1).value
    assert text_perplexity(run, "story").value == pytest.approx(expected, rel=1e-12)


def test_hf_stride_scores_every_token_but_the_first_once() -> None:
    for n, window, stride in ((20, 8, 4), (20, 8, 3), (21, 8, 4), (5, 8, 4)):
        seen = [
            token
            for row, first in hf_stride_windows(range(n), window=window, stride=stride)
            for token in row[first:]
        ]
        assert seen == list(range(1, n))


def test_lm_eval_windows_are_those_of_the_harness() -> None:
    rows = lm_eval_windows(range(10), window=4, prefix=99)
    assert [(row[:first], row[first:]) for row, first in rows] == [
        ((99,), (0, 1, 2, 3)),
        ((3,), (4, 5, 6, 7)),
        ((5, 6, 7), (8, 9)),
    ]


@pytest.mark.parametrize("n", [1, 4, 9, 16, 23])
def test_lm_eval_windows_equal_the_installed_harness(n: int) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    expected = [
        utils.make_disjoint_window(pair)
        for pair in utils.get_rolling_token_windows(list(range(n)), 99, 4, 1)
    ]
    own = lm_eval_windows(range(n), window=4, prefix=99)
    assert [(list(row[:first]), list(row[first:])) for row, first in own] == [
        (list(context), list(targets)) for context, targets in expected
    ]


def test_lm_eval_counts_words_and_bytes_of_the_raw_page() -> None:
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    total = 0.0
    for page in PAGES:
        ids = tokenizer(detokenize_wikitext(page), add_special_tokens=False)["input_ids"]
        for place in range(0, len(ids), 8):
            targets = ids[place : place + 8]
            end = place + len(targets)
            context = ids[max(0, end - 9) : place] if place else [tokenizer.bos_token_id]
            total += float(losses(model, [*context, *targets])[-len(targets) :].sum())
    run = evaluate(model, tokenizer, text=Text("wiki", PAGES, "lm_eval", window=8))
    value = text_perplexity(run, "wiki")
    words = sum(len(re.split(r"\s+", page)) for page in PAGES)
    size = sum(len(page.encode()) for page in PAGES)
    assert math.log(value.value or 0) == pytest.approx(total / words, abs=10 * FP32)
    assert math.log(value.extra["byte_ppl"]) == pytest.approx(total / size, abs=FP32)
    assert value.extra["bits_per_byte"] == pytest.approx(total / size / math.log(2), abs=FP32)
    assert run.meta["text"][0]["words"] == words


def test_limit_keeps_whole_pages() -> None:
    encoder = Encoder(tiny_tokenizers.build())
    text = Text("wiki", PAGES, "lm_eval", max_tokens=3)
    windows = make_windows(encoder, text, max_length=512)
    assert windows.protocol == "lm_eval@1"
    assert windows.bytes == len(PAGES[0].encode())


def test_pages_start_at_titles() -> None:
    text = "\n".join(["", " = One = ", "", " a b", " = = Part = = ", " c", " = Two = ", " d", ""])
    assert wikitext_pages(text) == (
        " = One = \n\n a b\n = = Part = = \n c\n",
        " = Two = \n d\n",
    )
    assert wikitext_pages("no title") == ("no title",)


def test_pages_of_the_staged_wikitext(shared_data: Path) -> None:
    file = shared_data / "wikitext2_test_raw.txt"
    assert len(wikitext_pages(file.read_bytes().decode())) == 62


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("llama_cpp", "second half"),
        ("lm_eval", "per word of the raw page"),
        ("hf_stride", "sliding"),
    ],
)
def test_comparison_keeps_protocol_ratio_and_delta(protocol: str, words: str) -> None:
    text = Text("wiki", PAGES * 2, protocol, window=12)
    runs = [
        evaluate(tiny_models.build("llama", seed=seed), tiny_tokenizers.build(), text=text)
        for seed in (0, 1)
    ]
    own = compare(*runs, resamples=120).texts[0]
    assert str(own.protocol).startswith(protocol)
    assert own.ratio.value == pytest.approx((own.b.value or 0) / (own.a.value or 1), rel=1e-9)
    assert own.delta.value == pytest.approx(
        float(np.mean(runs[1].text_nll() - runs[0].text_nll())), rel=1e-9
    )
    assert words in text_words(vars(own))


def test_stride_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(ValueError, match=r"a stride with protocol hf_stride alone, got gptq"):
        Text("t", "abc", stride=4)
    with pytest.raises(ValueError, match=r"stride of at most the window of 4 tokens, got 8"):
        make_windows(
            Encoder(tiny_tokenizers.build()),
            Text("t", "abcdefgh", "hf_stride", window=4, stride=8),
            max_length=64,
        )


def test_unknown_protocol_of_a_job_is_refused(tmp_path: Path) -> None:
    job = Job(str(tmp_path), text_protocol="mine")
    with pytest.raises(ValueError, match=r"text_protocol to be one of gptq, documents"):
        evaluate_model(job, tmp_path / "run", progress=None)
