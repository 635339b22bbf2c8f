"""`calibit.doctor`: facts that are true here, and advice only where something is missing."""

from __future__ import annotations

import importlib.metadata
import io
import json

import pytest
import torch
from rich.console import Console

import calibit
from calibit import doctor


def shown(facts: dict[str, object]) -> str:
    """What `render` prints on a wide terminal."""
    console = Console(file=io.StringIO(), width=200)
    console.print(doctor.render(facts))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_facts_are_plain_and_true() -> None:
    facts = doctor.diagnose()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["calibit"]["version"] == facts["build"]["version"] == calibit.__version__
    assert [row["active"] for row in facts["kernels"]].count(True) == 1
    assert all(row["supported"] for row in facts["kernels"] if row["active"])
    installed = {row["name"]: row["installed"] for row in facts["packages"]}
    assert installed["torch"] == importlib.metadata.version("torch")
    assert torch.__version__.startswith(installed["torch"].split("+")[0])


def test_report_names_the_kernels_that_run() -> None:
    facts = doctor.diagnose()
    active = next(row["name"] for row in facts["kernels"] if row["active"])
    assert f"{active} (runs)" in shown(facts)


def test_a_missing_package_is_named_with_the_command_that_gets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = ["numpy>=1.26", "no-such-package>=2", 'other-absent; extra == "demo"', "torch>=99"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    facts = doctor.diagnose()
    core, demo = facts["advice"][:2]
    assert "calibit itself" in core and "'no-such-package>=2' 'torch>=99'" in core
    assert "numpy" not in core
    assert "GGUF" in demo and "pip install 'other-absent'" in demo
    assert core in shown(facts)


def test_requirements_of_another_platform_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ['absent-here; sys_platform == "nowhere"', "numpy"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    assert [row["name"] for row in doctor.diagnose()["packages"]] == ["numpy"]
