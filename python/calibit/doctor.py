"""What was built, which kernels run here, which packages are there, and what to do about the rest.

The requirements are read from the installed package's own metadata, so that pyproject.toml stays
their one home.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from calibit import _C

if TYPE_CHECKING:
    from rich.console import Group

EXTRAS = {
    "demo": "reading the demo's GGUF model",
    "dev": "tests, linters, notebooks",
}
"""What each optional group of pyproject.toml is for; groups not named here are listed without."""


def diagnose() -> dict[str, Any]:
    """Look at the build, the machine and the installed packages; change nothing.

    Returns:
        A plain dictionary, ready for JSON: `calibit` (version, folder), `build` (what the extension
        was compiled with), `kernels` (list of name, supported, active; best first), `machine`
        (Python, platform, CPU, cores, threads of torch), `gpu` (state of the CUDA library and what
        torch sees), `packages` (list of name, wanted, installed or None, group, ok) and `advice`
        (sentences; empty when nothing is missing).
    """
    facts: dict[str, Any] = {
        "calibit": _own_facts(),
        "build": _C.build_info(),
        "kernels": _C.kernels(),
        "machine": _machine_facts(),
        "gpu": _gpu_facts(),
        "packages": _package_facts(),
    }
    return {**facts, "advice": _advice(facts)}


def render(facts: dict[str, Any]) -> Group:
    """Lay the result of `diagnose` out for a terminal.

    Args:
        facts: what `diagnose` returned.

    Returns:
        A rich renderable: one table of facts, one of packages, and the advice.
    """
    from rich.console import Group
    from rich.text import Text

    advice = [Text(f"- {sentence}") for sentence in facts["advice"]]
    closing = [Text("What to do", style="bold"), *advice] if advice else [Text("Nothing missing.")]
    return Group(_facts_table(facts), "", _packages_table(facts["packages"]), "", *closing)


def _own_facts() -> dict[str, str]:
    return {
        "version": importlib.metadata.version("calibit"),
        "folder": str(Path(__file__).resolve().parent),
        "extension": str(_C.__file__),
    }


def _machine_facts() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _gpu_facts() -> dict[str, Any]:
    build = _C.build_info()
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "library": build["cuda"],
        "status": build["cuda_status"],
        "torch_cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(index) for index in range(devices)],
    }


def _package_facts() -> list[dict[str, Any]]:
    """Every requirement of the installed package, with what is there."""
    from packaging.requirements import Requirement

    rows = []
    for text in importlib.metadata.requires("calibit") or []:
        requirement = Requirement(text)
        group = _group_of(str(requirement.marker or ""))
        if requirement.marker and not requirement.marker.evaluate({"extra": group}):
            continue  # of another platform or Python
        installed = _installed(requirement.name)
        fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
        rows.append(
            {
                "name": requirement.name,
                "wanted": str(requirement.specifier),
                "installed": installed,
                "group": group,
                "ok": fits,
            }
        )
    return rows


def _group_of(marker: str) -> str:
    """The extra a requirement's marker names, or an empty string for the core."""
    _, found, rest = marker.partition("extra == ")
    return rest.split('"')[1] if found else ""


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _advice(facts: dict[str, Any]) -> list[str]:
    """One sentence for each thing that is missing, with the way to get it."""
    return [*_package_advice(facts["packages"]), *_kernel_advice(facts), *_gpu_advice(facts["gpu"])]


def _package_advice(packages: list[dict[str, Any]]) -> list[str]:
    advice = []
    for group in dict.fromkeys(row["group"] for row in packages):
        missing = [row for row in packages if row["group"] == group and not row["ok"]]
        if not missing:
            continue
        names = ", ".join(f"{row['name']} {row['wanted']}".strip() for row in missing)
        words = " ".join(f"'{row['name']}{row['wanted']}'" for row in missing)
        purpose = f"{EXTRAS.get(group, group)} (optional)" if group else "calibit itself"
        advice.append(f"Missing for {purpose}: {names}. Get it: pip install {words}")
    return advice


def _kernel_advice(facts: dict[str, Any]) -> list[str]:
    active = [row["name"] for row in facts["kernels"] if row["active"]]
    if active == ["portable"] and len(facts["kernels"]) > 1:
        return ["Only the slow portable kernels run: unset CALIBIT_ISA, or use a CPU with AVX2."]
    return []


def _gpu_advice(gpu: dict[str, Any]) -> list[str]:
    """Only where torch sees a GPU: a machine without one misses nothing."""
    if gpu["devices"] and gpu["status"] != "ready":
        return [f"torch sees {gpu['devices'][0]}, but calibit cannot use it: {gpu['status']}."]
    return []


def _facts_table(facts: dict[str, Any]) -> Any:
    from rich.table import Table

    build, machine, gpu = facts["build"], facts["machine"], facts["gpu"]
    states = {row["name"]: row for row in facts["kernels"]}
    kernels = ", ".join(_kernel_state(name, row) for name, row in states.items())
    devices = ", ".join(gpu["devices"]) or "none that torch sees"
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("calibit", f"{facts['calibit']['version']} in {facts['calibit']['folder']}")
    table.add_row(
        "extension",
        f"g++ {build['compiler']}, built with torch {build['torch_version']}"
        f" and pybind11 {build['pybind11']}",
    )
    table.add_row("kernels", kernels)
    table.add_row("CUDA", f"library {gpu['library']}: {gpu['status']}; devices: {devices}")
    table.add_row("machine", f"{machine['cpu']}, {machine['cores']} cores, {machine['platform']}")
    table.add_row("Python", f"{machine['python']}; torch uses {machine['threads']} threads")
    return table


def _kernel_state(name: str, row: dict[str, Any]) -> str:
    if row["active"]:
        return f"{name} (runs)"
    return name if row["supported"] else f"{name} (not on this CPU)"


def _packages_table(packages: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("package", "wanted", "installed", "needed for", box=None, pad_edge=False)
    for row in packages:
        purpose = EXTRAS.get(row["group"], row["group"])
        style = "" if row["ok"] else "yellow"
        table.add_row(row["name"], row["wanted"], row["installed"] or "-", purpose, style=style)
    return table
