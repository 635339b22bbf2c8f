"""Importing calibit is quiet, light and needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys

HEAVY = ("scipy", "transformers", "matplotlib", "jinja2", "typer", "rich", "datasets", "ray")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_import_without_a_gpu_prints_nothing() -> None:
    done = run("import calibit", CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_import_loads_no_heavy_package() -> None:
    """Beyond what torch itself brings."""
    code = (
        "import sys, torch; before = set(sys.modules); import calibit;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert not set(HEAVY) & set(done.stdout.split())
    assert "calibit" in done.stdout.split()


def test_import_leaves_the_settings_of_torch_alone() -> None:
    code = (
        "import torch; facts = lambda: (torch.get_num_threads(), torch.get_default_dtype(),"
        " torch.is_grad_enabled(), torch.initial_seed()); torch.manual_seed(7); before = facts();"
        "import calibit; assert facts() == before, (before, facts())"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists() -> None:
    done = run("import calibit; [getattr(calibit, name) for name in calibit.__all__]")
    assert done.returncode == 0, done.stderr
