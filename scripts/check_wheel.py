"""Build the wheel as a user would, look into it, and import it from an empty folder.

The wheel is unpacked beside nothing else of the project and put first on the path of a fresh
process, which must find the version, the extension and the packaged data in it. Also refused: a
second OpenMP library in that process, and a module tied to the C++ symbols of one torch.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WANTED = ("calibit/__init__.py", "calibit/_C.", "calibit/py.typed", "licenses/LICENSE")
PROGRAM = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in type(f).__module__.lower()]
sys.path.insert(0, sys.argv[1])
import torch, calibit
assert calibit.__file__.startswith(sys.argv[1]), calibit.__file__
assert calibit._C.__file__.startswith(sys.argv[1]), calibit._C.__file__
weight = torch.randn(32, 96)
q = calibit.quantize(weight, "nf4")
y = calibit.linear(torch.randn(2, 96), q)
assert y.shape == (2, 32)
maps = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
openmp = sorted(path for path in maps if "omp" in path.rsplit("/", 1)[-1])
assert len(openmp) <= 1, openmp
print("wheel imports from", calibit.__file__)
"""


def build(folder: Path) -> Path:
    """Build the wheel into `folder` with the tools of this environment."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"]
    command += ["--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    return next(folder.glob("calibit-*.whl"))


def missing_members(names: list[str]) -> list[str]:
    """What the wheel must hold and does not; matched by the part of the name that is fixed."""
    return [wanted for wanted in WANTED if not any(wanted in name for name in names)]


def main() -> int:
    """Build, inspect, import; print one line, or say what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            archive.extractall(folder / "unpacked")
        absent = missing_members(names)
        strays = [n for n in names if n.split("/")[0] != "calibit" and ".dist-info/" not in n]
        if absent or strays:
            print(
                f"[check_wheel] expected {WANTED} in {wheel.name}; missing {absent}, also {strays}"
            )
            return 1
        size = wheel.stat().st_size / 1e6
        print(f"{wheel.name}: {len(names)} files, {size:.1f} MB")
        command = [sys.executable, "-c", PROGRAM, str(folder / "unpacked")]
        return subprocess.run(command, check=False, cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
