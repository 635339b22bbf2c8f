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
    program = "import sys, torch, pybind11_stubgen; pybind11_stubgen.main(sys.argv[1:])"
    arguments = ["calibit._C", "-o", str(tmp_path), "--exit-code"]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True)
    made = tmp_path / "calibit" / "_C.pyi"
    config = str(repository / "pyproject.toml")
    subprocess.run(
        [sys.executable, "-m", "ruff", "format", "-q", "--config", config, str(made)], check=True
    )
    committed = repository / "python" / "calibit" / "_C.pyi"
    assert made.read_text() == committed.read_text(), (
        "regenerate: pybind11-stubgen calibit._C -o . and ruff format"
    )
