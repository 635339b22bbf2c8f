"""Print the requirements of one bootstrap mode, one a line, read from pyproject.toml.

    python scripts/requirements.py build|demo|test

`build` is what compiling and importing the extension needs beside torch, `demo` adds the run-time
dependencies and the `demo` extra, `test` adds the `dev` extra. torch is left out: it is installed
first and alone (scripts/bootstrap.sh). cmake and ninja are left out where the machine has a usable
program, so that such a machine fetches nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
OLDEST_CMAKE = (3, 25)
EXTRAS = {"build": (), "demo": ("demo",), "test": ("demo", "dev")}


def system_program(name: str) -> str | None:
    """Return the path of a program outside `.venv`, active or not, or None."""
    own = str(ROOT / ".venv")
    folders = [f for f in os.environ.get("PATH", "").split(os.pathsep) if not f.startswith(own)]
    return shutil.which(name, path=os.pathsep.join(folders))


def has_cmake() -> bool:
    """Tell whether the machine has a new enough cmake."""
    program = system_program("cmake")
    if program is None:
        return False
    text = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r"version (\d+)\.(\d+)", text)
    return found is not None and (int(found[1]), int(found[2])) >= OLDEST_CMAKE


def name_of(requirement: str) -> str:
    """Return the project name a requirement string begins with, normalised."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def requirements(project: dict[str, Any], mode: str) -> list[str]:
    """Return the requirements of `mode` from a parsed pyproject.toml, torch left out."""
    run_time = project["project"]["dependencies"]
    wanted = list(project["build-system"]["requires"])
    wanted += [] if has_cmake() else [f"cmake>={'.'.join(map(str, OLDEST_CMAKE))}"]
    wanted += [] if system_program("ninja") else ["ninja"]
    wanted += [text for text in run_time if mode != "build" or name_of(text) == "numpy"]
    for extra in EXTRAS[mode]:
        wanted += project["project"]["optional-dependencies"][extra]
    own = project["project"]["name"]
    return [text for text in dict.fromkeys(wanted) if name_of(text) not in ("torch", own)]


def main() -> int:
    """Print the requirements of the mode named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1] not in EXTRAS:
        print(
            f"[requirements] expected one of {', '.join(EXTRAS)}, got {sys.argv[1:]}",
            file=sys.stderr,
        )
        return 3
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    print("\n".join(requirements(project, sys.argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
