"""Runs on disk: what is written, resuming, refusing, and being killed at any moment."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
import tiny_tokenizers
from calibit.evaluation import Text, evaluate
from calibit.evaluation.folder import RunFolder
from calibit.evaluation.identity import items_hash, tokenizer_hash
from calibit.fingerprint import weight_hash
from calibit.locking import alone_in
from calibit.runs import Run, TokenLosses
from killed_runs import TEXT, run_into, start, start_server
from toy_tasks import Item, toy_items

UNSTABLE = ("times", "footprint", "resumed_with")
"""Entries of run.json that are measured, not computed."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def _fork_server() -> None:
    with pytest.MonkeyPatch.context() as patch:
        start_server(patch)


def content(folder: Path) -> dict[str, Any]:
    """Every file of a run but the manifest, the measured entries of run.json left out."""
    files: dict[str, Any] = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }
    meta = json.loads(files["run.json"])
    files["run.json"] = {key: value for key, value in meta.items() if key not in UNSTABLE}
    return files


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_into(folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_folder_holds_the_promised_files(finished: Path) -> None:
    names = {str(file.relative_to(finished)) for file in finished.rglob("*") if file.is_file()}
    shards = {name for name in names if name.startswith("tokens/")}
    assert names - shards == {"run.json", "items.jsonl", "docs.jsonl", "manifest.json"}
    assert "tokens/0000.npz" in shards
    meta = json.loads((finished / "run.json").read_text())
    assert len(meta["batch_plan"]["choices"]) >= 5
    assert len(shards) >= 2
    for key in (
        "model", "scheme", "weight_hash", "dtype", "kernels", "threads", "tokenizer_hash", "bos",
        "tasks", "scoring", "text", "batch_plan", "seeds", "versions", "command", "footprint",
        "speed", "times",
    ):  # fmt: skip
        assert key in meta


def test_run_reads_back_what_was_returned(tmp_path: Path) -> None:
    run = run_into(tmp_path / "run")
    again = Run.load(tmp_path / "run")
    assert again.items() == run.items()
    assert again.meta == run.meta
    assert again.docs() == run.docs()
    assert np.array_equal(again.text_nll("story"), run.text_nll("story"))
    kept = evaluate(
        tiny_models.build("llama"),
        tiny_tokenizers.build(),
        toy_items(16),
        text=TEXT,
        batch_tokens=24,
    )
    assert kept.items() == run.items()


def test_lines_are_in_item_order_and_floats_round_trip(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "items.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [item.id for item in toy_items(16)]
    planned = [i for b in Run.load(finished).meta["batch_plan"]["choices"] for i in b["items"]]
    assert planned != sorted(planned)
    for line in lines:
        assert all(json.loads(json.dumps(value)) == value for value in line["ll"])


def test_docs_hold_prompts_and_can_be_left_out(finished: Path, tmp_path: Path) -> None:
    [first, *_] = Run.load(finished).docs() or []
    item = toy_items(1)[0]
    assert first["context"] == item.context
    assert first["choices"] == list(item.choices)
    without = run_into(tmp_path / "run", store_docs=False)
    assert without.docs() is None
    assert not (tmp_path / "run" / "docs.jsonl").exists()


def test_finished_run_is_returned_untouched(copy: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in copy.rglob("*")}
    calls: list[int] = []
    model = tiny_models.build("llama")
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    run_into(copy, model=model)
    assert not calls
    assert {file: file.stat().st_mtime_ns for file in copy.rglob("*")} == before


OTHER_JOBS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "scheme": (lambda: {"scheme": "nf4"}, r"which has scheme \"none\", got \"nf4\""),
    "items": (lambda: {"items": toy_items(15)}, r"which has tasks\[0\].n 16, got 15"),
    "gold": (
        lambda: {"items": [replace(item, gold=0) for item in toy_items(16)]},
        r"which has tasks\[0\].items_hash ",
    ),
    "text": (
        lambda: {"text": Text("story", TEXT.parts, window=8)},
        r"which has text\[0\].protocol \"gptq@w9\", got \"gptq@w8\"",
    ),
    "bos": (lambda: {"bos": "never"}, 'which has bos "tokenizer", got "never"'),
    "batch": (lambda: {"batch_tokens": 25}, "which has batch_tokens 24, got 25"),
    "docs": (lambda: {"store_docs": False}, "which has docs true, got false"),
    "dtype": (lambda: {"model": tiny_models.build("llama", dtype=torch.float64)}, "has dtype "),
    "weights": (lambda: {"model": tiny_models.build("llama", seed=1)}, "which has weight_hash "),
}


@pytest.mark.parametrize("other", OTHER_JOBS)
def test_another_job_is_refused_and_the_difference_is_named(other: str, copy: Path) -> None:
    before = content(copy)
    options, message = OTHER_JOBS[other]
    expected = r"\[evaluate\] expected the same job as the run in .*" + message
    with pytest.raises(ValueError, match=expected):
        run_into(copy, **options())
    assert content(copy) == before


def test_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"expected a new or empty folder.*holds 'notes\.txt'"):
        run_into(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match=r"expected a folder for the run, got the file"):
        run_into(tmp_path / "run")


def test_resume_can_be_forbidden(copy: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder without a run"):
        run_into(copy, resume=False)


def test_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        RunFolder.open(tmp_path / "run", {}),
        pytest.raises(RuntimeError, match=r"expected to be alone in"),
        RunFolder.open(tmp_path / "run", {}),
    ):
        pass


def test_load_names_what_is_wrong(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a run folder with run\.json"):
        Run.load(tmp_path / "nowhere")
    (copy / "items.jsonl").write_bytes((copy / "items.jsonl").read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"items\.jsonl as the manifest records it.*was cut"):
        Run.load(copy)
    (copy / "items.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected items\.jsonl .* the run lost a file"):
        Run.load(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"expected valid JSON in .*manifest\.json"):
        Run.load(copy)


def test_load_refuses_an_unfinished_run(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", {}) as folder:
        folder.start({"text": []})
        folder.append({"batch": 0})
    with pytest.raises(ValueError, match=r"expected a finished run in .* with 1 finished batches"):
        Run.load(tmp_path / "run")


def test_text_must_be_named_where_there_is_not_one(finished: Path) -> None:
    run = Run.load(finished)
    with pytest.raises(ValueError, match=r"name of a text of the run \(story\), got 'novel'"):
        run.text_nll("novel")
    with pytest.raises(ValueError, match=r"expected the name of a text, got none"):
        replace(run, _tokens={}).text_nll()


@pytest.mark.parametrize(
    "tail", [b'{"batch":2,"scor', b'{"batch":2}', b"\0\0\0\n", b'{"batch":7}\n']
)
def test_resuming_cuts_back_to_the_last_whole_batch(tail: bytes, tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, {"a": 1}) as folder:
        folder.start({"a": 1})
        folder.append({"batch": 0})
        folder.append({"batch": 1})
    part = tmp_path / "items.part.jsonl"
    whole = part.read_bytes()
    part.write_bytes(whole + tail)
    with RunFolder.open(tmp_path, {"a": 1}) as folder:
        assert folder.batches == [{"batch": 0}, {"batch": 1}]
    assert part.read_bytes() == whole


def test_shards_are_joined_in_text_order(tmp_path: Path) -> None:
    def losses(*window: int) -> TokenLosses:
        own = np.array(window)
        return TokenLosses(own / 10, own, np.ones(len(own), dtype=np.int64))

    with RunFolder.open(tmp_path, {}) as folder:
        folder.add_tokens(0, losses(2, 0))
        folder.add_tokens(1, losses(1, 3))
        assert folder.read_tokens([0, 1]).nll.tolist() == [0.0, 0.1, 0.2, 0.3]


@pytest.mark.parametrize("wanted", [4, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("_fork_server")
def test_run_killed_at_random_moments_ends_byte_identical(
    wanted: int, finished: Path, tmp_path: Path
) -> None:
    folder, draw, kills = tmp_path / "run", random.Random(0), 0
    for _ in range(5 * wanted):
        process = start(folder)
        while process.is_alive() and not (folder / "run.json").exists():
            time.sleep(0.001)
        process.join(timeout=draw.uniform(0.0, 0.1))
        kills += process.is_alive()
        process.kill()
        process.join()
        if kills == wanted:
            break
        if (folder / "manifest.json").exists():
            run_into(folder)
            assert content(folder) == content(finished)
            shutil.rmtree(folder)
    assert kills >= wanted // 2  # a loaded machine may end runs before they can be killed
    run_into(folder)
    assert content(folder) == content(finished)


def test_the_lock_of_a_run_killed_at_its_very_end_goes_with_the_next(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "lock").touch()
    run_into(folder)
    assert content(folder) == content(finished)
    with alone_in(folder, op="test"):  # held: it stays, and a finished run can be read meanwhile
        run_into(folder)
        assert (folder / "lock").exists()


@pytest.mark.parametrize("batch", [1, 3, 7])
@pytest.mark.usefixtures("_fork_server")
def test_run_killed_after_a_batch_ends_byte_identical(
    batch: int, finished: Path, tmp_path: Path
) -> None:
    process = start(tmp_path / "run", batch=batch)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "run" / "manifest.json").exists()
    run_into(tmp_path / "run")
    assert content(tmp_path / "run") == content(finished)


@pytest.mark.usefixtures("_fork_server")
def test_run_killed_before_each_rename_ends_byte_identical(finished: Path, tmp_path: Path) -> None:
    """One folder, killed before its first rename, its second, ... until a run survives."""
    folder, rename = tmp_path / "run", 1
    while True:
        process = start(folder, rename=rename)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert not (folder / "manifest.json").exists()
        shutil.rmtree(folder) if rename % 2 else None  # sometimes from the start, sometimes on
        rename += 1
    assert rename > 5
    assert content(folder) == content(finished)


@pytest.mark.usefixtures("_fork_server")
def test_resuming_with_other_threads_is_recorded(finished: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "run", batch=2)
    process.join()
    torch.set_num_threads(2)
    try:
        run = run_into(tmp_path / "run")
    finally:
        torch.set_num_threads(1)
    assert run.meta["threads"] == 1
    assert [environment["threads"] for environment in run.meta["resumed_with"]] == [2]
    assert "resumed_with" not in Run.load(finished).meta


def test_weight_hash_follows_content_names_and_dtype() -> None:
    model = tiny_models.build("llama")
    assert weight_hash(model) == weight_hash(tiny_models.build("llama"))
    assert weight_hash(model) != weight_hash(tiny_models.build("llama", seed=1))
    assert weight_hash(model) != weight_hash(tiny_models.build("llama", dtype=torch.float64))
    renamed = torch.nn.Sequential(model)
    assert weight_hash(renamed) != weight_hash(model)


def test_weight_hash_of_a_quantized_layer_is_that_of_its_canonical_tensors() -> None:
    import calibit

    torch.manual_seed(0)
    layer = calibit.QuantizedLinear.from_linear(torch.nn.Linear(48, 32), "nf4")
    before = weight_hash(torch.nn.Sequential(layer))
    layer(torch.randn(2, 48))
    assert weight_hash(torch.nn.Sequential(layer)) == before


def test_tokenizer_hash_ignores_settings_of_the_last_call() -> None:
    tokenizer = tiny_tokenizers.build()
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "bb"], padding=True, truncation=True, max_length=4)
    assert tokenizer_hash(tokenizer) == before
    assert tokenizer_hash(tiny_tokenizers.build(merges=[("a", "b")])) != before
    assert tokenizer_hash(tiny_tokenizers.build(template="")) != before


@pytest.mark.parametrize("field", ["id", "task", "context", "delimiter"])
def test_items_hash_follows_every_field(field: str) -> None:
    item = Item("a", "b", ("c", "d"))
    assert items_hash([item]) == items_hash([Item("a", "b", ("c", "d"))])
    assert items_hash([replace(item, **{field: "other"})]) != items_hash([item])
    assert items_hash([replace(item, choices=("d", "c"))]) != items_hash([item])
