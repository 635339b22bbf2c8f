"""Quantizing from files: one float block in memory at a time, and going on after a kill."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import tiny_models
from calibit import loading, structure
from calibit.io import filling, native, renaming, shards
from calibit.quantization import (
    calibration_text,
    finished,
    plans,
    quantize_checkpoint,
    quantize_model,
    residency,
)
from calibit.quantization.checkpoint import unfinished
from calibit.quantization.estimate import Estimate, estimate
from calibit.quantization.model import quantize_weights, survey

SCHEMES = ("nf4-dq", "gptq-int4-g16-actorder")


class Stopped(Exception):
    """A progress callback ends the run with it."""


@pytest.fixture
def ids() -> torch.Tensor:
    """Calibration, `[8, 24]`."""
    return tiny_models.tokens(8, 24)


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def source_of(name: str, folder: Path, **options: object) -> Path:
    tiny_models.build(name).save_pretrained(folder / name, **options)
    return folder / name


def stop_after(layers: int):
    def progress(done: int, total: int, name: str) -> None:
        if done == layers:
            raise Stopped

    return progress


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", tiny_models.CONFIGURATIONS)
def test_same_files_as_from_memory(name: str, scheme: str, tmp_path: Path, ids) -> None:
    source = source_of(name, tmp_path)
    plan = {"lm_head": "keep", "*": scheme} if name == "llama" else scheme
    report = quantize_checkpoint(source, plan, tmp_path / "stored", calibration=ids)
    model = type(tiny_models.build(name)).from_pretrained(source)
    quantize_model(model, plan, calibration=ids)
    native.save(model, tmp_path / "memory")
    assert content(tmp_path / "stored") == content(tmp_path / "memory")
    assert report.source_hash and not unfinished(tmp_path / "stored").exists()


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mixtral", "gpt_oss"])
def test_no_more_than_one_block_is_loaded(name: str, tmp_path: Path, ids) -> None:
    """At every layer's end the float weights of linear layers in memory are of one block."""
    source = source_of(name, tmp_path, max_shard_size="40KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    with residency.opened(str(source)) as weights:
        assert isinstance(weights, residency.StoredWeights)
        model = weights.model
        blocks = structure.blocks(model)[1]

        def check(*_: object) -> None:
            full = [
                any(p.dim() == 2 and not p.is_meta for p in block.parameters()) for block in blocks
            ]
            seen.append(sum(full))

        seen: list[int] = []

        quantize_weights(weights, plans.load("gptq-int4-g16"), calibration=ids, progress=check)
        assert max(seen) == 1 and len(seen) >= 2 * 4
        weights.detach_()
        assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", ["gpt_neox", "mixtral", "qwen3_moe", "olmoe"])
def test_files_with_other_names_and_separate_experts_stay_in_place(
    name: str, tmp_path: Path
) -> None:
    source = source_of(name, tmp_path, max_shard_size="40KB")
    expected = dict(structure.tensors(type(tiny_models.build(name)).from_pretrained(source)))
    with shards.Reader(source) as files, residency.opened(str(source)) as weights:
        assert isinstance(weights, residency.StoredWeights)
        assert set(files.names()) != set(expected)
        found = dict(weights.tensors())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype"])
def test_experts_that_do_not_fit_together_are_left_to_transformers(
    change: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    source = source_of("olmoe", tmp_path)
    file = source / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.experts.{}.gate_proj.weight"
    if change == "missing":
        del tensors[name.format(2)]
    elif change == "extra":
        tensors[name.format(9)] = tensors[name.format(2)].clone()
    elif change == "shape":
        tensors[name.format(2)] = torch.zeros(3, 48)
    else:
        tensors[name.format(2)] = tensors[name.format(2)].half()
    save_file(tensors, file, metadata={"format": "pt"})
    with shards.Reader(source) as files:
        model = filling.skeleton(loading.read_config(source), False)
        named = renaming.under_names_of(model, files)
        assert named is None or not residency._one_to_one(model, named)


def test_steps_of_transformers_other_than_stacking_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import conversion_mapping

    source = source_of("olmoe", tmp_path)
    model = filling.skeleton(loading.read_config(source), False)
    steps = conversion_mapping.get_model_conversion_mapping(model)
    for step in steps:
        if hasattr(step, "operations"):
            step.operations = step.operations[::-1]
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda _: steps)
    with shards.Reader(source) as files:
        assert renaming.under_names_of(model, files) is None
        monkeypatch.delattr(conversion_mapping, "get_model_conversion_mapping")
        assert renaming.under_names_of(model, files) is None  # a release without the tables


def test_files_that_are_not_the_models_are_read_by_transformers(tmp_path: Path) -> None:
    """A tensor more, or another dtype, than the model has."""
    from safetensors.torch import load_file, save_file

    source = source_of("llama", tmp_path)
    file = source / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "spare": torch.zeros(2)}, file, metadata={"format": "pt"})
    with residency.opened(str(source)) as weights:
        assert not isinstance(weights, residency.StoredWeights)
        assert not any(parameter.is_meta for parameter in weights.model.parameters())
    first = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, first: tensors[first].half()}, file, metadata={"format": "pt"})
    with residency.opened(str(source)) as weights:
        assert not isinstance(weights, residency.StoredWeights)


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, ids, monkeypatch) -> None:
    source, scheme = source_of("llama", tmp_path), "gptq-int4-g16"
    whole = quantize_checkpoint(source, scheme, tmp_path / "whole", calibration=ids)
    out = tmp_path / "out"
    per_block = len(whole.modules) // tiny_models.BLOCKS
    with pytest.raises(Stopped):
        quantize_checkpoint(
            source, scheme, out, calibration=ids, progress=stop_after(per_block + 2)
        )
    assert not out.exists() and len(list(unfinished(out).glob("block-*"))) == 1
    solved = []
    from calibit.quantization import gptq

    original = gptq.quantize_layer_
    monkeypatch.setattr(
        gptq, "quantize_layer_", lambda *a: solved.append(a[1].name) or original(*a)
    )
    seen = []
    report = quantize_checkpoint(
        source, scheme, out, calibration=ids, progress=lambda *a: seen.append(a)
    )
    assert solved and all(name.startswith("model.layers.1.") for name in solved)
    assert len(seen) == len(whole.modules)
    assert content(out) == content(tmp_path / "whole")
    assert [row.name for row in report.modules] == [row.name for row in whole.modules]
    assert [row.loss for row in report.modules] == [row.loss for row in whole.modules]
    assert not unfinished(out).exists()


def test_work_of_another_job_is_not_taken(tmp_path: Path, ids) -> None:
    source, out = source_of("llama", tmp_path), tmp_path / "out"
    with pytest.raises(Stopped):
        quantize_checkpoint(source, "gptq-int4-g16", out, calibration=ids, progress=stop_after(8))
    for scheme, text in (("gptq-int3-g16", ids), ("gptq-int4-g16", ids.flip(0))):
        with pytest.raises(RuntimeError, match=r"another model, scheme or calibration: remove"):
            quantize_checkpoint(source, scheme, out, calibration=text)
    assert len(list(unfinished(out).glob("block-*"))) == 1  # and nothing of it was lost


def test_work_with_another_codebook_is_not_taken(tmp_path: Path, ids) -> None:
    """The scheme has the same words, the file behind them other values."""
    source, out, book = source_of("llama", tmp_path), tmp_path / "out", tmp_path / "book.txt"
    book.write_text("-1 -0.5 0 1")
    with pytest.raises(Stopped):
        quantize_checkpoint(source, f"gptq-{book}", out, calibration=ids, progress=stop_after(8))
    book.write_text("-1 0 0.5 1")
    with pytest.raises(RuntimeError, match=r"another model, scheme or calibration: remove"):
        quantize_checkpoint(source, f"gptq-{book}", out, calibration=ids)
    book.write_text("-1 -0.5 0 1 # as it was")
    quantize_checkpoint(source, f"gptq-{book}", out, calibration=ids)
    assert out.is_dir() and not unfinished(out).exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "block-model.layers.0.safetensors",
            r"finished block in '.*0\.safetensors', got a damaged",
        ),
        (
            "job.json",
            r"expected JSON in '.*job\.json', got .* remove the folder '\.out\.unfinished'",
        ),
    ],
)
def test_damaged_work_is_named(tmp_path: Path, ids, name: str, message: str) -> None:
    source, out = source_of("llama", tmp_path), tmp_path / "out"
    with pytest.raises(Stopped):
        quantize_checkpoint(source, "gptq-int4-g16", out, calibration=ids, progress=stop_after(8))
    file = unfinished(out) / name
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    with pytest.raises(ValueError, match=message):
        quantize_checkpoint(source, "gptq-int4-g16", out, calibration=ids)
    file.write_bytes(whole)
    quantize_checkpoint(source, "gptq-int4-g16", out, calibration=ids)


def test_files_are_readable_for_whom_the_others_are(tmp_path: Path) -> None:
    """safetensors leaves files that only their owner may read."""
    before = os.umask(0o027)
    try:
        quantize_checkpoint(source_of("llama", tmp_path), "nf4", tmp_path / "out")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] == 0o640


def test_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    source = source_of("llama", tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"\[save\] cannot write '.*\.part'.*File too large"):
            quantize_checkpoint(source, "int8", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handled)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_a_link_that_leads_nowhere_is_no_new_folder(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError, match=r"\[quantize\] expected a new folder"):
        quantize_checkpoint(source_of("llama", tmp_path), "nf4", tmp_path / "out")


def test_output_that_cannot_be_made_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, opened = source_of("llama", tmp_path), []
    monkeypatch.setattr(residency, "opened", lambda *a, **k: opened.append(a))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"\[quantize\] cannot create '.*x': '.*file' is no folder"):
        quantize_checkpoint(source, "nf4", tmp_path / "file" / "deep" / "x")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write anywhere
    with pytest.raises(OSError, match=r"cannot create '.*x': '.*' cannot be written"):
        quantize_checkpoint(source, "nf4", tmp_path / "new" / "x")
    assert opened == []


def test_a_job_that_fails_at_once_leaves_nothing(tmp_path: Path) -> None:
    source = source_of("llama", tmp_path)
    with pytest.raises(ValueError, match="token ids below"):
        quantize_checkpoint(
            source, "gptq-int4", tmp_path / "out", calibration=torch.full((1, 8), 10_000)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_two_processes_do_not_share_work(tmp_path: Path) -> None:
    with (
        finished.opened(tmp_path / "work", {}),
        pytest.raises(RuntimeError, match="another process"),
        finished.opened(tmp_path / "work", {}),
    ):
        pass


SCRIPT = """
    import os, signal, sys
    import torch
    from calibit.quantization import quantize_checkpoint
    sys.path.insert(0, {tests!r})
    import tiny_models
    def progress(done, total, name):
        if done == {stop}:
            os.kill(os.getpid(), signal.SIGKILL)
    quantize_checkpoint({source!r}, "gptq-nf4-g16", {out!r},
                        calibration=tiny_models.tokens(8, 24), progress=progress)
"""


@pytest.mark.parametrize("stop", [1, 7, 9, 14])
def test_kill_at_any_layer_loses_at_most_a_block(tmp_path: Path, ids, stop: int) -> None:
    source, out = source_of("llama", tmp_path), tmp_path / "out"
    quantize_checkpoint(source, "gptq-nf4-g16", tmp_path / "whole", calibration=ids)
    script = textwrap.dedent(SCRIPT).format(
        tests=str(Path(__file__).parent), source=str(source), out=str(out), stop=stop
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL and not out.exists()
    assert len(list(unfinished(out).glob("block-*.safetensors"))) == (stop > 7)
    quantize_checkpoint(source, "gptq-nf4-g16", out, calibration=ids)
    assert content(out) == content(tmp_path / "whole")


# --- what it will take --------------------------------------------------------------------------


def estimated(source: Path, scheme: str, ids: torch.Tensor | None, *, stored: bool = True):
    with residency.opened(str(source)) as weights:
        if not stored:
            weights = residency.Weights(type(weights.model).from_pretrained(source))
        jobs = survey(weights.model, plans.load(scheme)).jobs
        data = None if ids is None else calibration_text.load(ids)
        return estimate(weights, jobs, data)


def test_estimate_counts_one_float_block_where_weights_stay_in_files(tmp_path: Path) -> None:
    source = source_of("llama", tmp_path)
    stored, memory = (estimated(source, "nf4", None, stored=which) for which in (True, False))
    block = 4 * (48 * 48 * 2 + 48 * 24 * 2 + 48 * 80 * 3 + 2 * 48)
    assert memory.bytes - stored.bytes == block * (tiny_models.BLOCKS - 1)


def test_estimate_grows_with_the_work(tmp_path: Path, ids) -> None:
    source = source_of("llama", tmp_path)
    nearest = estimated(source, "int4-g16", None)
    few, many = (estimated(source, "gptq-int4-g16", each) for each in (ids[:1], ids.repeat(64, 1)))
    assert nearest.bytes < few.bytes < many.bytes
    assert 0 < nearest.seconds < few.seconds < many.seconds


def test_reader_closes_its_files_now_and_then(tmp_path: Path, monkeypatch) -> None:
    source = source_of("llama", tmp_path)
    monkeypatch.setattr(shards, "_MAPPED", 10_000)
    with shards.Reader(source) as files:
        values = {name: files.read(name) for name in files.names()}
        files.check_all_read()
    whole = type(tiny_models.build("llama")).from_pretrained(source).state_dict()
    assert values and all(torch.equal(whole[name], value) for name, value in values.items())


def test_estimate_says_when_memory_will_not_do() -> None:
    short = Estimate(bytes=3_000_000_000, seconds=500, available=2_000_000_000)
    assert str(short) == "about 3.0 GB of memory and 8 min"
    assert short.note is not None and "needs about 3.0 GB of memory, of which 2.0" in short.note
    assert Estimate(1, 1, None).note is None
