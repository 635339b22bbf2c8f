"""Calibration text that a model writes itself: what is sampled, kept, and calibrated on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny_models
import tiny_tokenizers
from audit_cases import job_of, prepare
from calibit import cli
from calibit.auditing import job as jobs
from calibit.auditing import run_job
from calibit.quantization import (
    calibration_text,
    documents,
    kept_text,
    quantize_checkpoint,
    quantize_model,
    self_written,
)
from calibit.quantization.checkpoint import unfinished

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny model whose tokens are far from equally probable."""
    return tiny_models.build("llama")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Characters; fewer of them than the model has tokens."""
    return tiny_tokenizers.build()


def rows_of(model: Any, tokenizer: Any, rows: int, length: int, **options: Any) -> torch.Tensor:
    """What the model writes, int64 [rows, length]."""
    return torch.stack(self_written.write(model, tokenizer, rows=rows, length=length, **options))


# Sampling --------------------------------------------------------------------------------------


def test_the_seed_decides(model: Any, tokenizer: Any) -> None:
    first = rows_of(model, tokenizer, 5, 20, seed=3)
    assert first.shape == (5, 20) and first.dtype == torch.int64
    assert torch.equal(first, rows_of(model, tokenizer, 5, 20, seed=3))
    assert not torch.equal(first, rows_of(model, tokenizer, 5, 20, seed=4))
    assert len({tuple(row.tolist()) for row in first}) == 5


def test_tokens_follow_the_model(model: Any, tokenizer: Any) -> None:
    """4,000 second tokens against the model's own distribution: a chi-square of about as many
    degrees as there are frequent tokens; mean + 5 sd is passed by chance less than once in 10^5."""
    n, known = 4000, len(tokenizer)
    second = rows_of(model, tokenizer, n, 2)[:, 1]
    logits = tiny_models.logits(model, torch.tensor([[BOS]]))[0, -1, :known].double()
    expected = n * torch.softmax(logits, dim=-1)
    counts = torch.bincount(second, minlength=known).double()
    frequent = expected >= 5
    statistic = float(((counts - expected) ** 2 / expected)[frequent].sum())
    degrees = int(frequent.sum())
    assert degrees > 5 and statistic < degrees + 5 * (2 * degrees) ** 0.5


def test_cold_text_is_greedy_without_a_cache(model: Any, tokenizer: Any) -> None:
    row = rows_of(model, tokenizer, 1, 16, temperature=1e-6)[0]
    assert row[0] == BOS
    for place in range(1, 16):
        if row[place - 1] == EOS:
            assert row[place] == BOS
            continue
        logits = tiny_models.logits(model, row[None, :place])[0, -1, : len(tokenizer)]
        assert row[place] == logits.argmax()


def test_an_end_is_followed_by_a_start(model: Any, tokenizer: Any) -> None:
    rows = rows_of(model, tokenizer, 40, 40, temperature=5.0)
    ends = (rows[:, :-1] == EOS).nonzero()
    assert len(ends) > 5
    assert all(rows[row, place + 1] == BOS for row, place in ends.tolist())
    assert int(rows.max()) < len(tokenizer) < tiny_models.VOCABULARY


def test_without_bos_texts_start_all_over_the_vocabulary(model: Any) -> None:
    bare = tiny_tokenizers.build(template="")
    bare.bos_token = None
    rows = rows_of(model, bare, 40, 3)
    starts = set(rows[:, 0].tolist())
    assert len(starts) > 15 and not starts & set(bare.all_special_ids)


def test_a_bos_that_is_also_the_end_is_not_doubled(model: Any) -> None:
    both = tiny_tokenizers.build()
    both.bos_token = both.eos_token
    rows = rows_of(model, both, 40, 40, temperature=5.0)
    after = rows[:, 1:][rows[:, :-1] == EOS]
    assert set(rows[:, 0].tolist()) == {EOS} and len(set(after.tolist())) > 5


def test_many_rows_go_through_in_parts(model: Any, tokenizer: Any, monkeypatch: Any) -> None:
    whole, seen = rows_of(model, tokenizer, 5, 8, seed=1), []
    monkeypatch.setattr(self_written, "_ROWS", 2)
    parts = rows_of(model, tokenizer, 5, 8, seed=1, progress=lambda *now: seen.append(now))
    assert torch.equal(whole, parts)  # the draws of a row are its own
    assert seen[-1] == (40, 40) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_cannot_write_is_refused(model: Any, tokenizer: Any) -> None:
    class Forgetful(torch.nn.Module):
        device = torch.device("cpu")

        def get_input_embeddings(self) -> Any:
            return model.get_input_embeddings()

        def forward(self, **_: Any) -> Any:
            return SimpleNamespace(logits=torch.zeros(1, 1, tiny_models.VOCABULARY))

    with pytest.raises(ValueError, match=r"key-value cache for 'self', got Forgetful: give a text"):
        rows_of(Forgetful(), tokenizer, 1, 4)
    broken = tiny_models.build("llama")
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="expected finite logits for 'self'"):
        rows_of(broken, tokenizer, 1, 4)


@pytest.mark.parametrize("source", ["self:", "self:0", "self:-1", "self:warm", "self:nan"])
def test_temperatures_that_are_none(source: str) -> None:
    with pytest.raises(ValueError, match=r"'self:TEMPERATURE' with a temperature above 0"):
        self_written.temperature_of(source)


# As a source -----------------------------------------------------------------------------------


def test_segments_and_held_out_rows(model: Any, tokenizer: Any) -> None:
    found = calibration_text.for_model(
        "self:0.9", tokenizer, model.config, tokens=100, seed=7, model=model
    )
    assert found.source == "self, temperature 0.9, seed 7"
    assert [len(row) for row in found.sequences] == [64, 64]  # the model's context
    assert [len(row) for row in found.held_out] == [64] * calibration_text.HELD_OUT
    rows = {tuple(row.tolist()) for row in (*found.sequences, *found.held_out)}
    assert len(rows) == 2 + calibration_text.HELD_OUT


def test_self_without_a_model(tokenizer: Any) -> None:
    with pytest.raises(TypeError, match=r"the model's weights for 'self'"):
        calibration_text.for_model("self", tokenizer, None)
    with pytest.raises(FileNotFoundError, match="'self'"):
        documents.read("self")


def test_kept_text_is_read_back(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    file = tmp_path / "deep" / "text.jsonl"

    def make() -> calibration_text.Calibration:
        return calibration_text.for_model("self", tokenizer, model.config, tokens=64, model=model)

    first = kept_text.kept(file, make, tokenizer)
    again = kept_text.kept(file, lambda: pytest.fail("written again"), tokenizer)
    assert again.sha256 == first.sha256 and again.source == first.source
    assert len(again.held_out) == len(first.held_out)
    assert all(map(torch.equal, again.held_out, first.held_out))
    texts, _ = documents.read(file)  # and as any other file of texts
    assert texts[0] == tokenizer.decode(first.sequences[0].tolist())
    file.write_text(file.read_text(encoding="utf-8")[:-50], encoding="utf-8")
    with pytest.raises(ValueError, match=r"got a changed file .* remove it"):
        kept_text.read(file)


def test_kept_text_may_hold_any_character(tmp_path: Path) -> None:
    """Among them those at which str.splitlines splits and JSON does not."""
    made = calibration_text.Calibration((torch.arange(4),), "self")
    odd = SimpleNamespace(decode=lambda _: "a\u2028b\x85c\u2029d\x0ce")
    file = tmp_path / "text.jsonl"
    kept_text.kept(file, lambda: made, odd)
    assert kept_text.read(file).sha256 == made.sha256


def test_a_model_in_memory(tokenizer: Any) -> None:
    told: list[tuple[int, int, str]] = []
    options = {"calibration": "self", "calibration_tokens": 128, "tokenizer": tokenizer}
    report = quantize_model(
        tiny_models.build("llama"),
        "gptq-int4-g16",
        progress=lambda *now: told.append(now),
        **options,
    )
    assert report.calibration is not None and report.held_out is not None
    assert report.calibration["source"] == "self, temperature 1, seed 0"
    assert (6 * 64, 6 * 64, "calibration text") in told and told[-1][:2] == (14, 14)
    again = quantize_model(tiny_models.build("llama"), "gptq-int4-g16", **options)
    other = quantize_model(
        tiny_models.build("llama"), "gptq-int4-g16", calibration_seed=1, **options
    )
    assert again.calibration == report.calibration
    assert other.calibration["sha256"] != report.calibration["sha256"]


# From files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, items and a text on disk."""
    return prepare(tmp_path_factory.mktemp("self"))


def test_interrupted_checkpoint_keeps_the_text(folder: Path, tmp_path: Path) -> None:
    options = {"calibration": "self", "calibration_tokens": 64}
    whole = quantize_checkpoint(folder / "model", "gptq-int4-g16", tmp_path / "whole", **options)

    def stop(done: int, total: int, what: str) -> None:
        if what != "calibration text":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(
            folder / "model", "gptq-int4-g16", tmp_path / "cut", progress=stop, **options
        )
    kept = list(unfinished(tmp_path / "cut").glob("text-*.jsonl"))
    assert len(kept) == 1
    told: list[str] = []
    report = quantize_checkpoint(
        folder / "model",
        "gptq-int4-g16",
        tmp_path / "cut",
        progress=lambda *now: told.append(now[2]),
        **options,
    )
    assert "calibration text" not in told and report.calibration == whole.calibration
    assert not unfinished(tmp_path / "cut").exists()
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = str(folder / "model"), str(tmp_path / "out")
    words = ["quantize", model, "gptq-int4-g16", "--calib", "self", "--calib_tokens", "64"]
    assert cli.main([*words, "--json", "-o", out]) == 0
    answer = capsys.readouterr()
    assert json.loads(answer.out)["calibration"]["source"] == "self, temperature 1, seed 0"
    assert "the whole float model writes its calibration text" in answer.err
    assert cli.main(["quantize", model, "gptq-int4", "--calib", "self:x", "-o", out + "2"]) == 3
    assert "a temperature above 0, got 'self:x'" in capsys.readouterr().err


def test_an_audit_writes_it_once(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    job = job_of(
        folder,
        calibration="self",
        calibration_tokens=128,
        schemes=("gptq-int4-g32", "gptq-nf4-g16"),
    )
    audit = run_job(job, tmp_path / "out", progress=None)
    assert not audit.failed
    records = [one["quantization"]["calibration"] for one in audit.data["candidates"]]
    assert records[0] == records[1] and records[0]["tokens"] == 128
    kept = kept_text.read(audit.path / jobs.CALIBRATION_FILE)
    assert kept.sha256 == records[0]["sha256"]
    assert any("tokens a byte" in line for line in audit.data["warnings"])  # gibberish, and said so
    # Cut off after the text was written: it is taken up again, and the folder is the job's.
    cut = tmp_path / "cut"
    cut.mkdir()
    for name in (jobs.JOB_FILE, jobs.CALIBRATION_FILE):
        (cut / name).write_bytes((audit.path / name).read_bytes())
    monkeypatch.setattr(self_written, "write", lambda *_, **__: pytest.fail("written again"))
    with pytest.raises(ValueError, match="expected the same job"):
        run_job(job_of(folder), cut, progress=None)
    assert (
        run_job(job, cut, progress=None).data["candidates"][0]["quantization"]["calibration"]
        == records[0]
    )
