"""Scores of evaluate() against the plain definition, for many architectures; the whole call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
import tiny_tokenizers
from calibit.evaluation import Progress, Text, evaluate
from calibit.evaluation.batching import Batch, plan
from calibit.evaluation.checking import choose_head, choose_method
from calibit.evaluation.encoding import EncodedChoices, Encoder, encode_items
from calibit.evaluation.scoring import HEADS, ChoiceScores, Scorer
from calibit.runs import Run
from toy_tasks import Item, toy_items

TOLERANCE = 1e-4
"""Two orders of additions of float32 logits near 10 differ by some 1e-6 a token; a wrong position
or mask moves a log-likelihood by more than 1e-2."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring to models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def encoded(items: Sequence[Item]) -> list[EncodedChoices]:
    pairs = [(item.context, [item.delimiter + c for c in item.choices]) for item in items]
    return encode_items(Encoder(tiny_tokenizers.build()), pairs, max_length=tiny_models.POSITIONS)


def definition(model: Any, item: EncodedChoices) -> tuple[list[float], list[bool]]:
    """Log-likelihoods and greediness from one plain forward pass per choice, in float64."""
    sums, greedy = [], []
    for fed, targets in zip(item.inputs, item.targets, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([fed]), use_cache=False).logits[0].double()
        logp = torch.log_softmax(logits, dim=-1)[-len(targets) :]
        sums.append(float(logp[range(len(targets)), list(targets)].sum()))
        greedy.append(logp.argmax(dim=-1).tolist() == list(targets))
    return sums, greedy


def scored(
    model: Any, items: Sequence[EncodedChoices], batches: Sequence[Batch], head: str
) -> list[ChoiceScores]:
    scorer = Scorer(model, head=head)
    found = {}
    for batch in batches:
        found.update(zip(batch.items, scorer.choices(items, batch), strict=True))
    return [found[index] for index in range(len(items))]


def flat(scores: Sequence[ChoiceScores]) -> np.ndarray:
    return np.concatenate([score.ll for score in scores])


@pytest.mark.parametrize("name", tiny_models.CONFIGURATIONS)
def test_scores_equal_the_definition(name: str) -> None:
    model, items = tiny_models.build(name), encoded(toy_items())
    method = choose_method(model, items)
    assert method.shared_context, method.reason
    batches = plan(items, batch_tokens=128)
    assert max(len(batch.cuts) for batch in batches) > 1
    for item, score in zip(items, scored(model, items, batches, method.head), strict=True):
        expected, greedy = definition(model, item)
        assert score.ll == pytest.approx(expected, abs=TOLERANCE, rel=0)
        assert list(score.greedy) == greedy


@pytest.mark.parametrize("name", ["llama", "bloom", "mistral"])
def test_every_chain_of_cuts_gives_the_same_scores(name: str) -> None:
    model, items = tiny_models.build(name), encoded(toy_items(4))
    longest = max(len(fed) for item in items for fed in item.inputs)
    every = tuple(range(len(items)))
    whole = flat(scored(model, items, [Batch(every, (longest,))], "sliced"))
    for cuts in [(1, longest), (3, 4, 9, longest), tuple(range(1, longest + 1))]:
        split = flat(scored(model, items, [Batch(every, cuts)], "sliced"))
        np.testing.assert_allclose(split, whole, atol=TOLERANCE, rtol=0)


def test_scores_do_not_depend_on_the_batch() -> None:
    model, items = tiny_models.build("llama"), encoded(toy_items())
    alone = flat(scored(model, items, plan(items, batch_tokens=1), "sliced"))
    together = flat(scored(model, items, plan(items, batch_tokens=4096), "sliced"))
    np.testing.assert_allclose(alone, together, atol=1e-5, rtol=0)


def test_padding_is_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    from calibit.evaluation import scoring

    model, items = tiny_models.build("gpt2"), encoded(toy_items())
    longest = max(len(fed) for item in items for fed in item.inputs)
    batch = [Batch(tuple(range(len(items))), (longest,))]
    before = flat(scored(model, items, batch, "sliced"))

    def padded(rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([list(row) + [77] * (width - len(row)) for row in rows])

    monkeypatch.setattr(scoring, "_padded", padded)
    assert np.array_equal(before, flat(scored(model, items, batch, "sliced")))


def test_one_token_choices_run_the_model_once() -> None:
    model, [item] = (
        tiny_models.build("llama"),
        encoded([Item("x", "abcdef", ("g", "h"), delimiter="")]),
    )
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    scored(model, [item], plan([item], batch_tokens=100), "sliced")
    assert len(calls) == 1


def test_output_layer_sees_each_needed_position_once() -> None:
    model, [item] = tiny_models.build("llama"), encoded([Item("x", "abcdef", ("gh", "gi", "j"))])
    sizes = []
    model.lm_head.register_forward_hook(lambda _, inputs, output: sizes.append(output.shape[0]))
    scored(model, [item], [Batch((0,), (7, 9))], "sliced")
    # After the context: " "; then "g" and "j" are asked for after " ", "h" and "i" after " g".
    assert sum(size for size in sizes if size > 1) + sizes.count(1) - 2 == 3


def special_model(model_type: str, **options: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        model_type, **{"vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 2, **options}
    )
    return AutoModelForCausalLM.from_config(config).eval()


DECODER = {
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("gemma2", {**DECODER, "head_dim": 12, "final_logit_softcapping": 5.0}),
        ("cohere", {**DECODER, "logit_scale": 0.3}),
        ("granite", {**DECODER, "logits_scaling": 3.0}),
    ],
)
def test_what_follows_the_output_layer_is_kept(model_type: str, options: dict[str, Any]) -> None:
    model, items = special_model(model_type, **options), encoded(toy_items(6))
    method = choose_method(model, items)
    assert method.head == "gathered"
    scores = scored(model, items, plan(items, batch_tokens=128), method.head)
    expected = np.concatenate([definition(model, item)[0] for item in items])
    np.testing.assert_allclose(flat(scores), expected, atol=TOLERANCE, rtol=0)


def test_heads_agree() -> None:
    model, items = tiny_models.build("llama"), encoded(toy_items(6))
    found = [flat(scored(model, items, plan(items, batch_tokens=128), head)) for head in HEADS]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found[0], found[2], atol=1e-5, rtol=0)


def test_model_without_an_output_module_is_scored_on_full_logits() -> None:
    model = tiny_models.build("llama")
    model.get_output_embeddings = lambda: None
    assert choose_head(model) == "full"


def test_model_whose_output_module_is_not_called_is_scored_on_full_logits() -> None:
    model = tiny_models.build("llama")
    unused = torch.nn.Linear(48, 96)
    model.get_output_embeddings = lambda: unused
    assert choose_head(model) == "full"


def forgetful(model: Any) -> Any:
    """A model whose cache lies: a continued pass starts again at position 0."""
    forward = model.model.forward

    def from_zero(**options: Any) -> Any:
        options["position_ids"] = torch.arange(options["input_ids"].shape[1])[None]
        return forward(**options)

    model.model.forward = from_zero
    return model


def test_wrong_cache_is_found_and_contexts_are_encoded_anew() -> None:
    model, items = forgetful(tiny_models.build("llama")), toy_items(6)
    run = evaluate(model, tiny_tokenizers.build(), items)
    assert run.meta["scoring"]["shared_context"] is False
    assert "differ by" in run.meta["scoring"]["reason"]
    assert all(len(batch["cuts"]) == 1 for batch in run.meta["batch_plan"]["choices"])
    expected = np.concatenate([definition(model, item)[0] for item in encoded(items)])
    found = np.concatenate([line["ll"] for line in run.items()])
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_model_without_a_cache_is_scored_too() -> None:
    model, items = special_model("rwkv", attention_hidden_size=48), encoded(toy_items(4))
    method = choose_method(model, items)
    assert not method.shared_context
    assert "cache" in str(method.reason)
    batches = plan(items, batch_tokens=128, share=method.shared_context)
    expected = np.concatenate([definition(model, item)[0] for item in items])
    found = flat(scored(model, items, batches, method.head))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_two_byte_floats_share_contexts_within_their_rounding() -> None:
    model, items = tiny_models.build("llama", dtype=torch.bfloat16), encoded(toy_items(6))
    assert choose_method(model, items).shared_context


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "qwen2"])
def test_scores_on_a_gpu_equal_the_definition_on_the_cpu(name: str) -> None:
    model, items = tiny_models.build(name), encoded(toy_items())
    expected = np.concatenate([definition(model, item)[0] for item in items])
    method = choose_method(model.to("cuda"), items)
    assert method.shared_context, method.reason
    scores = scored(model, items, plan(items, batch_tokens=128), method.head)
    np.testing.assert_allclose(flat(scores), expected, atol=TOLERANCE, rtol=0)


def test_run_holds_what_the_definition_says() -> None:
    model, items = tiny_models.build("llama"), toy_items(5)
    run = evaluate(model, tiny_tokenizers.build(), items)
    assert run.path is None
    for item, ids, line in zip(items, encoded(items), run.items(), strict=True):
        assert (line["id"], line["task"], line["gold"]) == (item.id, item.task, item.gold)
        assert line["ll"] == pytest.approx(definition(model, ids)[0], abs=TOLERANCE)
        assert line["tokens"] == [len(choice) + 1 for choice in item.choices]
        assert line["chars"] == line["bytes"] == [len(choice) for choice in item.choices]
        assert line["kind"] == "choice"
        assert line["reason"] is None
    assert run.scores().z[0].tolist() == run.items()[0]["ll"]
    token = np.array(run.items()[0]["ll"]) / run.items()[0]["tokens"]
    assert run.scores("token").z[0].tolist() == token.tolist()


def test_unconditional_scores_are_those_of_an_empty_context() -> None:
    model, items = tiny_models.build("llama"), toy_items(5)
    run = evaluate(model, tiny_tokenizers.build(), items, unconditional=True)
    alone = [Item(item.id, "", item.choices) for item in items]
    for ids, line, pmi in zip(encoded(alone), run.items(), run.scores("pmi").z, strict=True):
        assert line["unconditional"] == pytest.approx(definition(model, ids)[0], abs=TOLERANCE)
        assert pmi.tolist() == [
            a - b for a, b in zip(line["ll"], line["unconditional"], strict=True)
        ]


def test_item_that_cannot_be_scored_is_kept_with_its_reason() -> None:
    items = [*toy_items(3), Item("toy-long", "a", ("b" * 80, "c"))]
    run = evaluate(tiny_models.build("llama"), tiny_tokenizers.build(), items)
    last = run.items()[-1]
    assert last["ll"] is None
    assert last["is_greedy"] is None
    assert last["reason"] == "choice 0 has 81 tokens, the model takes 64"
    assert run.meta["scoring"]["unscored"] == 1
    assert run.scores().n == 3


def test_numbers_that_are_not_finite_become_null_with_a_reason() -> None:
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    text = Text("t", "abcdefgh", window=4)
    run = evaluate(model, tiny_tokenizers.build(), toy_items(2), text=text)
    assert [line["ll"] for line in run.items()] == [None, None]
    assert run.items()[0]["reason"] == "the log-likelihood of choice 0 is nan"
    assert run.meta["scoring"]["nonfinite_tokens"] == {"t": 6}
    assert np.isnan(run.text_nll("t")).all()


@pytest.mark.parametrize("name", ["llama", "bloom", "gemma"])
def test_text_losses_equal_the_definition(name: str) -> None:
    model, tokenizer = tiny_models.build(name), tiny_tokenizers.build()
    story = "the cat sat on a mat. the dog did not: why? no one knows."
    text = Text("story", story, window=9)
    run = evaluate(model, tokenizer, text=text, batch_tokens=18)
    ids = tokenizer(story)["input_ids"]
    rows = torch.tensor(ids[: len(ids) // 9 * 9]).reshape(-1, 9)
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=rows).logits[:, :-1].double(), dim=-1)
    expected = -logp.gather(2, rows[:, 1:, None])[..., 0].reshape(-1)
    np.testing.assert_allclose(run.text_nll("story"), expected, atol=1e-5, rtol=0)
    described = run.meta["text"][0]
    assert described["protocol"] == "gptq@w9"
    assert described["tokens"] == len(expected)
    table = run.tokens()
    assert table.window.tolist() == [w for w in range(len(rows)) for _ in range(8)]
    assert table.position.tolist() == list(range(1, 9)) * len(rows)


def test_documents_of_several_lengths_keep_their_order() -> None:
    model, parts = tiny_models.build("llama"), ("abc", "a cat sat", "de", "the dog")
    run = evaluate(
        model, tiny_tokenizers.build(), text=Text("d", parts, "documents"), batch_tokens=12
    )
    assert np.bincount(run.tokens("d").window).tolist() == [len(part) for part in parts]
    ids = torch.tensor([[1, *tiny_tokenizers.ids("de")]])
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
    expected = [-float(logp[i, ids[0, i + 1]]) for i in range(2)]
    found = run.text_nll("d")[run.tokens("d").window == 2]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_evaluation_mode_is_put_back() -> None:
    model = tiny_models.build("llama").train()
    evaluate(model, tiny_tokenizers.build(), toy_items(2))
    assert model.training


def test_progress_counts_up_to_the_total() -> None:
    seen: list[Progress] = []
    evaluate(
        tiny_models.build("llama"),
        tiny_tokenizers.build(),
        toy_items(12),
        text=Text("t", "abcdefgh" * 4, window=4),
        batch_tokens=32,
        progress=seen.append,
    )
    assert [now.done for now in seen] == sorted({now.done for now in seen})
    assert seen[-1].done == seen[-1].total
    assert seen[-1].remaining == 0
    assert {now.stage for now in seen} == {"items", "text"}


def test_limit_samples_each_task() -> None:
    items = [*toy_items(8), *(Item(f"b-{i}", "x", ("y", "z"), task="other") for i in range(3))]
    run = evaluate(tiny_models.build("llama"), tiny_tokenizers.build(), items, limit=4)
    assert [(task["name"], task["n"]) for task in run.meta["tasks"]] == [("toy", 4), ("other", 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": "fast"}, r"\[evaluate\] expected speed to be quick or full, got 'fast'"),
        ({"batch_tokens": 0}, r"\[evaluate\] expected batch_tokens of at least 1, got 0"),
        ({"max_length": 0}, r"\[evaluate\] expected max_length of at least 1, got 0"),
        ({"bos": "maybe"}, r"\[evaluate\] expected bos to be one of"),
        (
            {"text": [Text("t", "abc"), Text("t", "abd")]},
            r"\[evaluate\] expected texts of different names, got t, t",
        ),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_models.build("llama"), tiny_tokenizers.build(), toy_items(1), **options)


def test_nothing_to_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[evaluate\] expected tasks with items, or a text"):
        evaluate(tiny_models.build("llama"), tiny_tokenizers.build())


def test_repeated_ids_are_refused() -> None:
    items = [*toy_items(2), *toy_items(1)]
    with pytest.raises(ValueError, match=r"expected every id once in a task, got 'toy-0' twice"):
        evaluate(tiny_models.build("llama"), tiny_tokenizers.build(), items)


def stories(shared_data: Path) -> tuple[str, ...]:
    content = (shared_data / "calib" / "tiny.txt").read_text(encoding="utf-8")
    return tuple(part.strip() for part in content.split("<|endoftext|>") if part.strip())


def test_perplexity_of_stories260k_is_the_quoted_one(shared_data: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "models" / "stories260K" / "hf"
    model = AutoModelForCausalLM.from_pretrained(folder)
    text = Text("stories", stories(shared_data), "documents", max_tokens=12_600)
    run: Run = evaluate(model, AutoTokenizer.from_pretrained(folder), text=text)
    assert run.meta["text"][0]["tokens"] == 12_851
    assert f"{math.exp(run.text_nll().mean()):.4f}" == "3.4747"
