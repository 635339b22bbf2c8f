"""Calibration text: where it comes from, how it is drawn, whether it is of the prompts' kind."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tiny_models
from calibit.quantization import calibration_text, documents, quantize_model
from calibit.quantization.calibration_text import Calibration


class Words:
    """A tokenizer that takes words for tokens; ids are the numbers in them."""

    def __call__(self, text, **_):
        if isinstance(text, str):
            return {"input_ids": [int(word) for word in text.split()]}
        return {"input_ids": [self(each)["input_ids"] for each in text]}

    def decode(self, ids):
        return " ".join(map(str, ids))


def text_of(count: int, first: int = 0) -> str:
    return " ".join(str(first + i) for i in range(count))


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl_fields(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    file = write(
        tmp_path / "rows.jsonl", {"text": "a"}, {"messages": turns}, {"prompt": "d"},
        {"content": "e", "id": 3},
    )  # fmt: skip
    assert documents.read(file) == (["a", "b\nc", "d", "e"], "rows.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"txt": "b"}\n', r"one of text, prompt, content, messages in line 2"),
        ('{"text": "a"}\n{"text": ', r"JSON object in line 2 of rows.jsonl"),
        ('["a"]\n', r"in line 1 of rows.jsonl, got \[\"a\"\]"),
        (b"\xff\xfe", "expected UTF-8, got rows.jsonl"),
        ('{"text": "\\ud800"}', r"line 1 of rows.jsonl, got half of a surrogate pair"),
    ],
)
def test_jsonl_that_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        documents.read(file)


def test_lines_of_jsonl_end_at_line_ends_only(tmp_path: Path) -> None:
    """Strings of JSON may hold U+0085, U+2028 and U+2029, where str.splitlines splits."""
    file = tmp_path / "texts.jsonl"
    texts = ["a\u2028b", "c\x85d", "e\u2029f"]
    rows = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    file.write_bytes("\r\n".join(rows).encode())
    assert documents.read(file)[0] == texts


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, content in (("a.JSONL", '{"text": "b c"}'), ("a.txt", "b c")):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert documents.read(tmp_path / name)[0] == ["b c"]


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"text": "a"}]')
    with pytest.raises(ValueError, match=r"JSON Lines in a file \*\.jsonl, got rows\.json"):
        documents.read(tmp_path / "rows.json")
    with pytest.raises(FileNotFoundError, match="which is a folder"):
        documents.read(tmp_path)


def test_a_name_that_is_nothing() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"'pydoc', 'c4', 'self', 'hub:NAME' or a text file"
    ):
        documents.read("nowhere.txt")


def test_drawn_segments_are_windows_of_documents(tmp_path: Path) -> None:
    texts = [text_of(10), text_of(40, 20), text_of(5), text_of(30, 60)]
    file = write(tmp_path / "rows.jsonl", *({"text": text} for text in texts))
    found = calibration_text.load(file, Words(), segments=6, length=25, seed=1)
    assert found.source == "rows.jsonl, seed 1" and len(found.sequences) == 6
    for sequence in found.sequences:
        first = int(sequence[0])
        assert sequence.tolist() == [first + i for i in range(25)]
        assert 20 <= first <= 35 or 60 <= first <= 65
    again = calibration_text.load(file, Words(), segments=6, length=25, seed=1)
    other = calibration_text.load(file, Words(), segments=6, length=25, seed=2)
    assert found.sha256 == again.sha256 != other.sha256


def test_held_out_windows_are_of_other_documents() -> None:
    texts = [text_of(12, 1000 * i) for i in range(40)]
    ids = Words()(texts)["input_ids"]
    found = calibration_text.load(texts, Words(), segments=8, length=10, seed=0)

    def document(window: torch.Tensor) -> int:
        row = window.tolist()
        return next(i for i, own in enumerate(ids) if any(own[k : k + 10] == row for k in range(3)))

    used = {document(each) for each in found.sequences}
    held = [document(each) for each in found.held_out]
    assert len(held) == len(set(held)) == calibration_text.HELD_OUT and used.isdisjoint(held)


def test_documents_that_are_all_too_short() -> None:
    with pytest.raises(ValueError, match=r"document of at least 30 tokens, got none in 2 texts"):
        calibration_text.load([text_of(10), text_of(20)], Words(), segments=2, length=30, seed=0)


def test_c4_is_drawn_as_in_the_paper(tmp_path: Path, monkeypatch) -> None:
    """128 segments of 2,048 tokens of one shard, seed 0; fewer for a model with less context."""
    shard = tmp_path / "shard.json.gz"
    with gzip.open(shard, "wt", encoding="utf-8") as stream:
        for i in range(30):
            stream.write(json.dumps({"text": text_of(2100, i), "url": "x"}) + "\n")
    asked = []

    def download(name: str, file: str, *, repo_type: str) -> str:
        asked.append((name, file, repo_type))
        return str(shard)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    wide = SimpleNamespace(max_position_embeddings=4096)
    found = calibration_text.for_model("c4", Words(), wide)
    assert asked == [("allenai/c4", "en/c4-train.00000-of-01024.json.gz", "dataset")]
    assert len(found.sequences) == 128 and {len(s) for s in found.sequences} == {2048}
    assert found.source == "allenai/c4/en/c4-train.00000-of-01024.json.gz, seed 0"
    narrow = SimpleNamespace(max_position_embeddings=64)
    few = calibration_text.for_model("c4", Words(), narrow, tokens=200, seed=3)
    assert len(few.sequences) == 4 and {len(s) for s in few.sequences} == {64}


def test_c4_without_network(monkeypatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(ValueError, match=r"from the hub or its cache, got OSError.*give a text"):
        documents.read("c4")


def test_a_data_set_of_the_hub(monkeypatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")

    def load_dataset(name: str, *, split: str, streaming: bool):
        assert streaming
        if name == "none":
            raise ConnectionError("offline")
        return iter([{"text": f"{name} {split}", "body": "b", "n": 1}] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert documents.read("hub:org/set") == (["org/set train"] * 3, "hub:org/set")
    assert documents.read("hub:org/set:test:body")[0] == ["b"] * 3
    with pytest.raises(ValueError, match="no text in column n"):
        documents.read("hub:org/set:test:n")
    with pytest.raises(ValueError, match=r"expected a data set of the hub.*offline"):
        documents.read("hub:none")


def test_text_of_another_kind_is_noticed() -> None:
    prompts = [text_of(20, first) for first in range(0, 400, 4)]  # 2 to 4 bytes a token
    same = calibration_text.load([text_of(400, 10)], Words(), segments=4, length=40)
    assert calibration_text.foreign_text(same, Words(), prompts) is None
    other = Calibration((torch.arange(8).repeat(8),), "digits")  # a little below 2
    found = calibration_text.foreign_text(other, Words(), prompts)
    assert found is not None and "(digits) has 0.504 tokens a byte, the prompts 0.25" in found
    assert calibration_text.foreign_text(other, Words(), prompts[:1]) is None


def test_short_sequences_are_noted() -> None:
    model = tiny_models.build("llama")
    report = quantize_model(model, "gptq-int4-g16", calibration=tiny_models.tokens(20, 24))
    assert any("sequences of 24 tokens on average" in note for note in report.notes)
