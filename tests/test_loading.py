"""Sentences about models that cannot be loaded, and what stands for a model of the hub."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import audit_cases
from calibit import loading


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer."""
    return audit_cases.save_model(tmp_path_factory.mktemp("loading") / "model")


@pytest.fixture(autouse=True)
def _no_memory_of_the_hub() -> Iterator[None]:
    loading._on_hub.cache_clear()
    yield
    loading._on_hub.cache_clear()


def truncated(model: Path, target: Path) -> Path:
    """A copy of a model whose weights end too early."""
    shutil.copytree(model, target)
    weights = target / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return target


def test_damaged_weights_are_named(model: Path, tmp_path: Path) -> None:
    broken = truncated(model, tmp_path / "broken")
    with pytest.raises(ValueError, match=r"whole weights in '.*broken', .*model\.safetensors"):
        loading.read_model(broken)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[model\] expected .* for MODEL, .* without config"):
        loading.check_exists(tmp_path, "MODEL")
    file = tmp_path / "model.gguf"
    file.write_text("x")
    with pytest.raises(ValueError, match=r"\[model\] expected .* got the file"):
        loading.check_exists(str(file), "MODEL")
    for missing in (tmp_path / "none", "./none", "a/b/c", "~/none"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            loading.check_exists(missing, "MODEL")
    loading.check_exists("owner/name", "MODEL")


def test_configuration_that_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"\[model\] expected a model .* transformers can load"):
        loading.read_model(tmp_path)


def test_folder_without_tokenizer(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    assert loading.lacks_tokenizer(tmp_path / "bare") and not loading.lacks_tokenizer(model)
    with pytest.raises(ValueError, match=r"tokenizer files in '.*bare', got none: copy tokenizer"):
        loading.read_tokenizer(tmp_path / "bare")


@pytest.mark.parametrize("name", ["float8", "int8", "", "Float32"])
def test_unknown_dtype(name: str) -> None:
    with pytest.raises(ValueError, match="expected dtype to be one of auto, float32"):
        loading.check_dtype(name)


def test_every_dtype_is_one_of_torch() -> None:
    for name in loading.DTYPES:
        loading.check_dtype(name)
        assert name == "auto" or getattr(torch, name).is_floating_point


@pytest.mark.parametrize("name", ["foo", "cuda:x", "meta", "mps", ""])
def test_unknown_device(name: str) -> None:
    with pytest.raises(ValueError, match="expected device to be cpu, cuda or cuda:NUMBER"):
        loading.check_device(name)


def test_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    loading.check_device("cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ValueError, match=r"expected a torch with CUDA .* or use device cpu"):
        loading.check_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    loading.check_device("cuda")
    with pytest.raises(ValueError, match="expected one of the 1 GPUs of this machine"):
        loading.check_device("cuda:" + "1")


def hub_that(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """Let the hub answer, or fail in this way."""

    def model_info(*_: Any, timeout: float, **__: Any) -> None:
        assert timeout == loading.HUB_SECONDS
        if error is not None:
            raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)


def test_name_that_the_hub_has_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_that(monkeypatch, None)
    assert loading.locate("owner/name") == "owner/name"


def test_name_that_the_hub_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_that(monkeypatch, ValueError("Repo id must be in the form ..."))
    with pytest.raises(ValueError, match="got 'nosuchmodel': there is no such folder, and the hub"):
        loading.read_tokenizer("nosuchmodel")


def test_hub_out_of_reach_is_one_sentence_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub_that(monkeypatch, ConnectionError("no route"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    begun = time.monotonic()
    with pytest.raises(ValueError, match="the hub cannot be reached, and its cache holds no copy"):
        loading.read_model("nosuchmodel")
    assert time.monotonic() - begun < 5


def test_copy_in_the_cache_serves_without_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub_that(monkeypatch, ConnectionError("no route"))
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, *, local_files_only: str(tmp_path / name) if local_files_only else None,
    )
    assert loading.locate("owner/name") == str(tmp_path / "owner/name")
