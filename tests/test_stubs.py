"""_C.pyi is what pybind11-stubgen makes of the built module."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(
    importlib.util.find_spec("pybind11_stubgen") is None, reason="pybind11-stubgen not installed"
)
def test_stub_file_matches_the_module(tmp_path: Path, repository: Path) -> None:
    run = [sys.executable, "-m"]
    subprocess.run(
        [*run, "pybind11_stubgen", "calibit._C", "-o", str(tmp_path), "--exit-code"],
        check=True, capture_output=True,
    )  # fmt: skip
    made = tmp_path / "calibit" / "_C.pyi"
    config = str(repository / "pyproject.toml")
    subprocess.run([*run, "ruff", "format", "-q", "--config", config, str(made)], check=True)
    committed = repository / "python" / "calibit" / "_C.pyi"
    assert made.read_text() == committed.read_text(), (
        "regenerate: pybind11-stubgen calibit._C -o . and ruff format"
    )
