"""Continuations put through two models: workloads and parallel texts, from prompt to report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import calibit
import tiny_models
import tiny_tokenizers
from audit_cases import job_of, prepare
from calibit import numbers
from calibit.auditing import run_job
from calibit.cli import main
from calibit.evaluation import outputs
from calibit.evaluation.forcing import Reference
from calibit.evaluation.generation import continue_greedily, plan_prompts
from calibit.reporting import tokens
from calibit.runs import WORKLOAD, Run
from calibit.tasks import Prompt, read_parallel, read_prompts
from calibit.tasks.answers import Answer, first_json
from calibit.verdict import Policy

TOLERANCE = 1e-5
"""KL of float32 logits near 10: exponentials are right to some 1e-7, their products with logits to
1e-6."""

NTREX = Path(__file__).resolve().parents[2] / "shared" / "data" / "ntrex"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring to models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prompts(count: int = 9) -> list[Prompt]:
    return [
        Prompt(
            f"p{i}",
            "mine",
            f"{'the dog ' * (i % 3)}saw {i}",
            max_new_tokens=6 + i % 2,
            answer=Answer("regex", pattern="[a-m]") if i % 2 else None,
            slices={"parity": str(i % 2)},
        )
        for i in range(count)
    ]


def parallel_folder(folder: Path) -> Path:
    folder.mkdir()
    for lang, word in {"aa": "dog", "bb": "cat", "cc": "FEE"}.items():
        lines = [f"a {word} saw {n}" + ("\n" if n % 2 else "") for n in range(8)]
        (folder / f"{lang}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def quantized(scheme: str = "int4-g32") -> Any:
    model = tiny_models.build("llama")
    calibit.quantize_model(model, scheme)
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The reference, itself again, and a quantized candidate."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = tiny_tokenizers.build()
    text = read_parallel(parallel_folder(folder / "text"))
    base = calibit.evaluate(
        tiny_models.build("llama"),
        tokenizer,
        workload=prompts(),
        parallel=text,
        out=folder / "base",
        batch_tokens=64,
    )
    again, other = (
        calibit.evaluate(model, tokenizer, reference=base, out=folder / name)
        for name, model in (("again", tiny_models.build("llama")), ("other", quantized()))
    )
    return {"base": base, "again": again, "other": other}


def plain_greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The definition: the whole text through the model for every token."""
    row = list(ids)
    for _ in range(count):
        with torch.no_grad():
            row.append(int(model(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
        if row[-1] == 2:
            break
    return row[len(ids) :]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mistral", "gemma3"])
def test_batched_continuations_equal_the_plain_loop(name: str) -> None:
    model, tokenizer = tiny_models.build(name), tiny_tokenizers.build()
    model.generation_config.repetition_penalty = 1.7  # a setting of the model's that must not count
    rows = [(1, *tiny_tokenizers.ids(text)) for text in ("the dog", "a", "be a cat or not")]
    found = continue_greedily(model, tokenizer, rows, max_new_tokens=8)
    for row, one in zip(rows, found, strict=True):
        expected = plain_greedy(model, list(row), 8)
        assert list(one.ids) == expected
        assert one.ended == (expected[-1] == 2)


def test_stop_texts_end_a_row_and_are_cut_off() -> None:
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    rows = [(1, *tiny_tokenizers.ids(text)) for text in ("the dog", "a")]
    whole = continue_greedily(model, tokenizer, rows, max_new_tokens=8)
    stop = tokenizer.decode(whole[0].ids[3:4])
    cut, other = continue_greedily(model, tokenizer, rows, max_new_tokens=8, stops=[(stop,), ()])
    assert cut.text == whole[0].text.split(stop)[0] and cut.ended
    assert len(cut.ids) <= 4 and other == whole[1]


def test_batches_hold_one_limit_and_fit_the_cache() -> None:
    lengths, limits = [5, 9, 7, 3, 40], [4, 4, 8, 8, 4]
    batches = plan_prompts(lengths, limits, batch_tokens=10)
    assert sorted(i for batch in batches for i in batch) == list(range(5))
    for batch in batches:
        assert len({limits[i] for i in batch}) == 1
        longest = max(lengths[i] for i in batch) + limits[batch[0]]
        assert len(batch) == 1 or len(batch) * longest <= 40


def test_divergence_equals_the_definition(runs: dict[str, Run]) -> None:
    base, other = tiny_models.build("llama"), quantized()
    forced = runs["other"].forced()
    for number, line in enumerate(forced.sequences):
        fed = [*line["context"], *line["target"]][:-1]
        start = len(line["context"]) - 1
        with torch.no_grad():
            p, q = (
                model(input_ids=torch.tensor([fed])).logits[0, start:].double().log_softmax(-1)
                for model in (base, other)
            )
        kl = (p.exp() * (p - q)).sum(-1).numpy()
        own = {k: v[forced.measures["sequence"] == number] for k, v in forced.measures.items()}
        np.testing.assert_allclose(own["kl"], kl, atol=TOLERANCE, rtol=1e-4)
        true = q[range(len(line["target"])), line["target"]].numpy()
        np.testing.assert_allclose(own["log_true"], true, atol=TOLERANCE, rtol=0)
        assert own["argmax"].tolist() == q.argmax(-1).tolist()
        assert own["token"].tolist() == line["target"]


def test_a_model_has_no_divergence_from_itself(runs: dict[str, Run]) -> None:
    """Through the stored states, bit for bit."""
    assert runs["again"].forced().measures["kl"].max() == 0.0
    found = calibit.compare(runs["base"], runs["again"], resamples=200).workload
    assert found.same_top == 1.0 and found.greedy_prefix == 1.0 and found.d_p_true == 0.0


def test_greedy_prefix_is_that_of_the_candidates_own_text(runs: dict[str, Run]) -> None:
    found = calibit.compare(runs["base"], runs["other"], resamples=200).workload
    model, shares, tokens = quantized(), [], []
    lines = [line for line in runs["base"].forced().sequences if line["source"] == WORKLOAD]
    for line in lines:
        own = plain_greedy(model, line["context"], len(line["target"]))
        pairs = zip(line["target"], own, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), len(line["target"]))
        shares.append(common / len(line["target"]))
        tokens.append(common)
    assert found.greedy_prefix == pytest.approx(np.mean(shares))
    assert 0.0 < found.greedy_prefix < 1.0
    assert found.greedy_prefix.extra["tokens"] == pytest.approx(np.mean(tokens))
    assert found.greedy_prefix.extra["own"] == 1.0


def test_intervals_take_whole_prompts(runs: dict[str, Run]) -> None:
    """Student's interval of a ratio of sums over 9 prompts, by hand."""
    from scipy import stats

    found = calibit.compare(runs["base"], runs["other"], resamples=200).workload
    forced = runs["other"].forced()
    kl = [forced.measures["kl"][forced.measures["sequence"] == i] for i in range(9)]
    sums, sizes = np.array([k.sum() for k in kl]), np.array([len(k) for k in kl])
    mean = sums.sum() / sizes.sum()
    error = np.sqrt(np.sum((sums - mean * sizes) ** 2) * 9 / 8) / sizes.sum()
    half = stats.t.ppf(0.975, 8) * error
    assert (found.prompts, found.tokens) == (9, sizes.sum())
    assert found.kl == pytest.approx(mean)
    assert (found.kl.lower, found.kl.upper) == pytest.approx((mean - half, mean + half))
    assert found.fidelity["kl"]["max"] == pytest.approx(max(k.max() for k in kl))


def test_token_lines_stand_in_the_report(runs: dict[str, Run], tmp_path: Path) -> None:
    """Mean and share of the KL at the tokens of highest entropy, by definition."""
    found = calibit.compare(runs["base"], runs["other"], resamples=200)
    forced, base = runs["other"].forced(), runs["base"].forced()
    own = forced.measures["sequence"] < 9  # the prompts; segments follow
    kl, entropy = forced.measures["kl"][own], base.measures["entropy"][own]
    share = found.workload.fidelity["kl_by_entropy"]["share"]
    most = np.argsort(-entropy, kind="stable")[: int(np.ceil(0.2 * len(kl) - 1e-9))]
    assert float(share) == pytest.approx(kl[most].sum() / kl.sum())
    assert share.lower < float(share) < share.upper
    same = np.mean(base.measures["argmax"][own] == forced.measures["argmax"][own])
    assert found.workload.fidelity["same_top"]["share"] == pytest.approx(same)
    lines = dict(tokens.table([{"comparison": found.to_dict()}]))
    error = kl.std() / np.sqrt(len(kl) - 1)
    shown = [numbers.small(value, digits=6) for value in (kl.mean(), error)]
    assert lines["KL, nats: mean"] == f"{shown[0]} ± {shown[1]}"
    assert lines["KL, nats: maximum"] == numbers.small(kl.max(), digits=6)
    names = list(lines)
    assert names[0] == "mean PPL(quantized)" and names.index("KL, nats: 99.9 %") < names.index(
        "KL, nats: minimum"
    )
    page = found.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(name.replace("&", "&amp;") in page for name in names)


def test_answers_are_compared_too(runs: dict[str, Run]) -> None:
    [task] = calibit.compare(runs["base"], runs["other"], resamples=200).generated
    before, after = (
        {line["id"]: line["correct"] for line in runs[name].generated()}
        for name in ("base", "other")
    )
    assert (task.task, task.n, set(before)) == ("mine", 4, {"p1", "p3", "p5", "p7"})
    assert task.rw == sum(before[i] and not after[i] for i in before)
    assert not task.judged and "of 4 prompts of mine right, fewer than 30" in task.note


def test_languages_have_their_own_perplexity_and_the_worst_is_named(runs: dict[str, Run]) -> None:
    [text] = calibit.compare(runs["base"], runs["other"], resamples=200).parallel
    assert [row["lang"] for row in text.languages] == ["aa", "bb", "cc"]
    base = runs["base"].forced()
    for row in text.languages:
        chosen = [i for i, line in enumerate(base.sequences) if line["group"] == row["lang"]]
        loss = -base.measures["log_true"][np.isin(base.measures["sequence"], chosen)]
        assert row["ppl_a"] == pytest.approx(np.exp(loss.mean())) and row["n"] == 8
        assert row["documents"] == 4 and row["tokens"] == len(loss)
        assert row["ratio"]["value"] == pytest.approx(row["ppl_b"] / row["ppl_a"])
    lower = {row["lang"]: row["d_nll"].lower for row in text.languages}
    worst = text.worst
    assert worst["d_nll"].level == pytest.approx(1 - 0.05 / 3) and worst["searched"] == 3
    assert worst["d_nll"].lower < lower[worst["lang"]]


def test_killed_run_continues_to_the_same_bytes(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, text = tiny_tokenizers.build(), read_parallel(parallel_folder(tmp_path / "text"))
    whole = outputs.Forcer.measure
    calls = []

    def dies(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, *args)

    def run() -> Run:
        return calibit.evaluate(
            tiny_models.build("llama"), tokenizer, workload=prompts(), parallel=text,
            out=tmp_path / "run", batch_tokens=64,
        )  # fmt: skip

    monkeypatch.setattr(outputs.Forcer, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(list((tmp_path / "run" / "forced").glob("*.npz"))) == 2
    monkeypatch.setattr(outputs.Forcer, "measure", whole)
    run()
    stored = runs["base"].path
    assert stored is not None
    for file in sorted(stored.rglob("*")):
        name = file.relative_to(stored)
        if file.is_file() and name.name not in ("run.json", "manifest.json"):
            assert (tmp_path / "run" / name).read_bytes() == file.read_bytes(), name


def test_killed_generation_goes_on_with_the_next_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = outputs.continue_greedily, []

    def dies(*args: Any, **options: Any) -> Any:
        calls.append(len(args[2]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **options)

    def run(name: str) -> Run:
        return calibit.evaluate(
            tiny_models.build("llama"), tiny_tokenizers.build(), workload=prompts(),
            out=tmp_path / name, batch_tokens=16,
        )  # fmt: skip

    expected = run("whole")
    monkeypatch.setattr(outputs, "continue_greedily", dies)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    found = run("killed")
    assert len(calls) > 3 and sum(calls[:1] + calls[2:]) == len(prompts())
    assert found.generated() == expected.generated()
    assert found.forced().sequences == expected.forced().sequences


def test_another_workload_in_the_folder_is_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    shutil.copytree(str(runs["base"].path), tmp_path / "run")
    with pytest.raises(ValueError, match=r"same job as the run in .* outputs.forced.workload"):
        calibit.evaluate(
            tiny_models.build("llama"), tiny_tokenizers.build(), workload=prompts(3),
            out=tmp_path / "run", batch_tokens=64,
        )  # fmt: skip


def test_references_that_cannot_serve_are_refused(runs: dict[str, Run]) -> None:
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    for run in (runs["other"], runs["base"].detached()):
        with pytest.raises(ValueError, match="expected as reference a run on disk with a workload"):
            Reference(run)
    with pytest.raises(ValueError, match="expected a reference or a workload"):
        calibit.evaluate(model, tokenizer, workload=prompts(), reference=runs["base"])
    with pytest.raises(ValueError, match="expected the tokenizer of the reference"):
        other = tiny_tokenizers.build(merges=[("a", "b")])
        calibit.evaluate(model, other, reference=runs["base"])
    with pytest.raises(ValueError, match=r"below 64, .* for prompt 'p' of 'mine', got 64"):
        long = Prompt("p", "mine", "a", max_new_tokens=64)
        calibit.evaluate(model, tokenizer, workload=[long])


def test_prompts_longer_than_the_model_are_counted(tmp_path: Path) -> None:
    """Of 64 positions 60 are kept for the answers: four tokens of each prompt are left."""
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    long = [Prompt(f"l{i}", "mine", "the dog saw " * 9, max_new_tokens=60) for i in range(2)]
    short = [Prompt(f"s{i}", "mine", "a", max_new_tokens=4) for i in range(3)]
    for name in ("a", "b"):
        calibit.evaluate(
            model, tokenizer, workload=long + short if name == "a" else (), out=tmp_path / name,
            reference=None if name == "a" else tmp_path / "a",
        )  # fmt: skip
    scoring = Run.load(tmp_path / "a").meta["scoring"]
    assert (scoring["prompts"], scoring["prompts_truncated"]) == (5, 2)
    found = calibit.compare(tmp_path / "a", tmp_path / "b", resamples=999)
    assert any(text.startswith("2 of 5 prompts were cut on the left") for text in found.warnings)
    failed = [check for check in found.checks if not check.passed]
    assert [(check.check, check.count) for check in failed] == [("cut prompts", 2)]
    verdict = found.verdict(Policy({"token_kl": 0.5}))
    assert verdict.verdict == "inconclusive" and "cut prompts" in verdict.reasons[0]


def test_segments_longer_than_the_model_are_counted(tmp_path: Path) -> None:
    """Of 64 positions; one segment of "bb" is too long, scored in part and named."""
    folder = parallel_folder(tmp_path / "text")
    lines = (folder / "bb.txt").read_text().splitlines(keepends=True)
    (folder / "bb.txt").write_text("a cat saw " * 40 + lines[0] + "".join(lines[1:]))
    tokenizer, text = tiny_tokenizers.build(), read_parallel(folder)
    base = calibit.evaluate(
        tiny_models.build("llama"), tokenizer, parallel=text, out=tmp_path / "a"
    )
    other = calibit.evaluate(quantized(), tokenizer, reference=base, out=tmp_path / "b")
    for run in (base, other):
        scoring = run.meta["scoring"]
        assert (scoring["segments"], scoring["segments_truncated"]) == (24, 1)
    found = calibit.compare(base, other, resamples=200)
    assert any(note.startswith("1 of 24 segments of parallel texts") for note in found.warnings)
    rows = {row["lang"]: row for row in found.parallel[0].languages}
    assert {lang: row["cut"] for lang, row in rows.items()} == {"aa": 0, "bb": 1, "cc": 0}
    long = text.segments[[s.lang for s in text.segments].index("bb")].text
    whole = [one.text for one in text.segments if one.lang == "bb"]
    assert long == whole[0]
    tokens = sum(len(tokenizer(one, add_special_tokens=False)["input_ids"]) for one in whole)
    size = sum(len(one.encode()) for one in whole)
    assert rows["bb"]["tokens"] < tokens and rows["bb"]["tokens_per_byte"] == tokens / size
    page = found.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "(1 segment cut)" in page


def test_runs_without_the_reference_are_not_compared(runs: dict[str, Run], tmp_path: Path) -> None:
    alone = calibit.evaluate(
        quantized(), tiny_tokenizers.build(), workload=prompts(), out=tmp_path / "alone"
    )
    found = calibit.compare(runs["base"], alone, resamples=200)
    assert found.workload is None and not found.parallel
    assert any("(--reference)" in warning for warning in found.warnings)
    assert any("'text' is in one run only" in warning for warning in found.warnings)


def test_languages_are_compared_without_the_reference_too(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    """The segments are the same anyway; only the divergence needs the reference's distributions."""
    text = read_parallel(parallel_folder(tmp_path / "text"))
    tokenizer = tiny_tokenizers.build()
    alone = calibit.evaluate(quantized(), tokenizer, parallel=text)
    [found] = calibit.compare(runs["base"], alone, resamples=200, allow_partial=True).parallel
    [expected] = calibit.compare(runs["base"], runs["other"], resamples=200).parallel
    for row, other in zip(found.languages, expected.languages, strict=True):
        assert row["ratio"]["value"] == pytest.approx(other["ratio"]["value"], rel=1e-5)
        assert row["kl"].value is None and "without the reference" in row["kl"].reason


def test_a_comparison_prints_what_was_written(runs: dict[str, Run]) -> None:
    found = calibit.compare(runs["base"], runs["other"], resamples=200)
    shown = str(found)
    assert "right answers, mine" in shown and "token KL on the workload" in shown
    [text] = found.parallel
    for known, words in ((True, text.worst["lang"]), (False, "none shown")):
        own = replace(text, worst={**text.worst, "shown": known})
        [line] = [
            line
            for line in str(replace(found, parallel=(own,))).splitlines()
            if "largest rise of perplexity shown" in line
        ]
        assert words in line and ("[" in line) == known


def test_token_divergence_can_be_gated(runs: dict[str, Run]) -> None:
    found = calibit.compare(runs["base"], runs["other"], resamples=200)
    # Nine prompts can show damage; to pass, a mean needs thirty.
    for margin, verdict in ((10.0, "inconclusive"), (1e-6, "hold")):
        judged = found.verdict(Policy({"token_kl": margin}))
        [gate] = judged.gates
        assert (judged.verdict, gate.units, gate.n) == (verdict, "prompts", 9)
        assert gate.upper == pytest.approx(found.workload.kl.upper)
    assert "Token KL on the workload" in judged.reasons[0]


def test_logits_are_kept_where_something_follows_the_output_layer(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma2", vocab_size=96, hidden_size=48, num_hidden_layers=2, intermediate_size=80,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12, final_logit_softcapping=2.0,
        max_position_embeddings=64,
    )  # fmt: skip
    model, tokenizer = AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizers.build()
    base = calibit.evaluate(model, tokenizer, workload=prompts(3), out=tmp_path / "base")
    assert base.meta["forced"]["states"] == "logits"
    again = calibit.evaluate(model, tokenizer, reference=base, out=tmp_path / "again")
    assert again.forced().measures["kl"].max() == 0.0


def test_logits_are_kept_where_the_output_layer_is_more_than_its_weight(tmp_path: Path) -> None:
    class Scaled(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 3.0 * super().forward(hidden)

    def scaled() -> Any:
        model = tiny_models.build("stablelm")
        model.lm_head.__class__ = Scaled
        return model

    tokenizer = tiny_tokenizers.build()
    base = calibit.evaluate(scaled(), tokenizer, workload=prompts(3), out=tmp_path / "base")
    assert base.meta["scoring"]["head"] == "sliced" and base.meta["forced"]["states"] == "logits"
    again = calibit.evaluate(scaled(), tokenizer, reference=base, out=tmp_path / "again")
    assert again.forced().measures["kl"].max() == 0.0


def test_a_quantized_reference_gives_its_own_distributions_back(tmp_path: Path) -> None:
    """Its output layer is stored as the values that its codes stand for. The fused layer rounds
    otherwise than a plain product; float32 exponentials, right to 2e-7, then leave some 1e-7."""
    tokenizer = tiny_tokenizers.build()
    base = calibit.evaluate(
        quantized("int8-head"), tokenizer, workload=prompts(3), out=tmp_path / "base"
    )
    again = calibit.evaluate(quantized("int8-head"), tokenizer, reference=base)
    assert 0.0 <= again.forced().measures["kl"].max() < 1e-6


def test_audit_reports_workload_and_languages(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    rows = [{"prompt": f"the cat {i} sat", "topic": ("a", "b")[i % 2]} for i in range(6)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {
        "workload": str(folder / "prompts.jsonl"),
        "max_new_tokens": 5,
        "parallel_text": str(parallel_folder(folder / "text")),
        "schemes": ("int8", "int4-g32"),
    }
    found = run_job(job_of(folder, **changes), folder / "audit", progress=None)
    for one in found.data["candidates"]:
        comparison = one["comparison"]
        assert comparison["workload"]["prompts"] == 6
        assert {row["lang"] for row in comparison["parallel"][0]["languages"]} == {"aa", "bb", "cc"}
    small, large = (
        one["comparison"]["workload"]["kl"]["value"] for one in found.data["candidates"]
    )
    assert 0.0 < small < large
    page = (folder / "audit" / "report.html").read_text(encoding="utf-8")
    assert 'id="workload"' in page and 'id="languages"' in page
    table = str(found.table())
    assert "token KL" in table and "greedy" in table and "rise shown" in table
    assert run_job(job_of(folder, **changes), folder / "audit", progress=None).data


def test_separate_runs_by_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare(tmp_path)
    rows = [{"prompt": f"the cat {i} sat", "answer": "a"} for i in range(4)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    calibit.save_model(quantized(), folder / "small", tokenizer=tiny_tokenizers.build())

    def ran(*words: str) -> int:
        return main([*words, "--tasks", str(folder / "items.jsonl"), "--text", "none", "-q"])

    asked = ["--workload", str(folder / "prompts.jsonl"), "--max_new_tokens", "4"]
    texts = ["--parallel_text", str(parallel_folder(folder / "text")), "--parallel_segments", "4"]
    more = ["--speed", "none", "--resamples", "200"]
    base, own = str(folder / "base"), str(folder / "own")
    assert ran("eval", str(folder / "model"), *asked, *texts, *more, "-o", base) == 0
    shown = capsys.readouterr().out
    assert "accuracy of prompts, in free text" in shown and "perplexity of text, aa" in shown
    assert ran("eval", str(folder / "small"), *more, "--reference", base, "-o", own) == 0
    words = ["compare", base, own, "--resamples", "200", "-o", str(folder / "compared")]
    assert main(words) == 0, capsys.readouterr().err
    found = json.loads((folder / "compared" / "comparison.json").read_text())
    assert found["workload"]["prompts"] == 4 and found["workload"]["kl"]["value"] > 0
    assert found["generated"][0]["n"] == 4 and found["parallel"][0]["worst"]["lang"] in "aabbcc"
    assert 'id="workload"' in (folder / "compared" / "report.html").read_text()
    other = str(folder / "other")
    assert ran("eval", str(folder / "small"), *asked, "--reference", base, "-o", other) == 3
    assert "expected --reference or --workload" in capsys.readouterr().err


def test_prompts_are_read_with_their_turns_answers_and_slices(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": "2 + 2 =", "answer": "4", "topic": "sums"},
        {"messages": [{"role": "user", "content": "hi"}], "id": "hello"},
        {"prompt": "call", "answer": {"json_schema": {"type": "object"}, "value": {"a": 1}}},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third = read_prompts(file, max_new_tokens=7)
    assert (first.id, first.task, first.slices) == ("mine-0", "mine", {"topic": "sums"})
    assert first.answer == Answer("exact", "4") and first.max_new_tokens == 7
    assert second.id == "hello" and second.messages[0]["content"] == "hi" and not second.answer
    assert third.answer is not None and third.answer.judge('so {"a": 1}')[0]
    tokenizer = tiny_tokenizers.build()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }} {{ m.content }}. {% endfor %}"
    run = calibit.evaluate(tiny_models.build("llama"), tokenizer, workload=[second])
    assert run.docs()[0]["prompt"] == "u hi. "
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="expected a tokenizer with one chat template"):
        calibit.evaluate(tiny_models.build("llama"), tokenizer, workload=[second])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, r"line 1: expected 'prompt' to be a text"),
        ({"question": "?"}, r"expected 'prompt' to be a string"),
        ({"messages": []}, r"expected 'messages' to be a list of objects"),
        ({"messages": [{"role": "user"}]}, r"expected 'messages' to be a list of objects"),
        ({"prompt": "a", "answer": {"is": 1}}, r"expected a text or one of exact, regex"),
        ({"prompt": "a", "answer": {"regex": "("}}, r"expected a regular expression"),
        ({"prompt": "a", "answer": {"json_schema": {"type": 7}}}, r"expected a JSON Schema"),
        ({"prompt": "a", "answer": {"regex": ["a"]}}, r"expected a pattern for regex, got \['a'\]"),
    ],
)
def test_prompts_that_cannot_be_read_name_the_line(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        read_prompts(file)


@pytest.mark.parametrize(
    ("answer", "text", "right", "got"),
    [
        (Answer("exact", "Paris"), "  Paris\n", True, "Paris"),
        (Answer("exact", "Paris"), "Paris.", False, "Paris."),
        (Answer("regex", "12", pattern=r"= (-?\d+)"), "3 = 12 or = 13", True, "12"),
        (Answer("regex", "12", pattern=r"= (-?\d+)"), "12", False, None),
        (Answer("json_schema", schema={"required": ["a"]}), 'x {"a": 2} y', True, '{"a": 2}'),
        (Answer("json_schema", schema={"required": ["a"]}), '{"b": 2}', False, '{"b": 2}'),
        (Answer("json_schema", schema={}, value={"a": 1}), '{"a": 2}', False, '{"a": 2}'),
        (Answer("json_schema", schema={}), "no { json", False, None),
        (Answer("json_schema", schema={}, value={"a": 1}), '{"a": 1.0}', True, '{"a": 1.0}'),
        (Answer("json_schema", value={"a": [True]}), '{"a": [1]}', False, '{"a": [1]}'),
        (Answer("json_schema", value={"a": 0}), '{"a": false}', False, '{"a": false}'),
        (Answer("json_schema", schema={}), '{"a":' * 3000, False, None),
    ],
)
def test_answers_are_judged(answer: Answer, text: str, right: bool, got: str | None) -> None:
    assert answer.judge(text) == (right, got)
    assert Answer.of(answer.to_dict()) == answer


def test_json_is_found_behind_broken_brackets() -> None:
    assert first_json('{ not { this {"a": {"b": 1}} }') == {"a": {"b": 1}}


def test_parallel_texts_keep_documents_and_take_the_same_segments(tmp_path: Path) -> None:
    folder = parallel_folder(tmp_path / "text")
    whole, some = read_parallel(folder, segments=None), read_parallel(folder, segments=2)
    assert whole.languages == ("aa", "bb", "cc") and len(whole.segments) == 24
    assert [one.document for one in whole.segments[:8]] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [(one.lang, one.number) for one in some.segments] == [
        (lang, number) for lang in ("aa", "bb", "cc") for number in (2, 6)
    ]
    (folder / "dd.txt").write_text("one\n")
    with pytest.raises(ValueError, match=r"as many segments in dd.txt as in aa.txt \(8\), got 1"):
        read_parallel(folder)
    with pytest.raises(ValueError, match="expected a folder with at least two files"):
        read_parallel(tmp_path)


def test_a_segment_that_one_language_lacks_is_no_parallel_text(tmp_path: Path) -> None:
    """Each lacks another segment: as many lines, and not the same content."""
    (tmp_path / "aa.txt").write_text("1\n2\n\n4\n5\n")
    (tmp_path / "bb.txt").write_text("1\n\n3\n4\n5\n")
    with pytest.raises(ValueError, match=r"blank lines at the same places .* before segment 2"):
        read_parallel(tmp_path)


@pytest.mark.skipif(not NTREX.is_dir(), reason="the parallel text is not beside the checkout")
def test_the_news_segments_are_parallel() -> None:
    text = read_parallel(NTREX)
    assert len(text.languages) == 23 and len(text.segments) == 23 * 40
    documents = {lang: [] for lang in text.languages}
    for one in text.segments:
        documents[one.lang].append((one.number, one.document))
    assert len({tuple(own) for own in documents.values()}) == 1
    assert len({document for _, document in documents["eng"]}) > 20
