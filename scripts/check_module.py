"""Fail the build when the module needs a C++ symbol of torch or exports more than its init.

The operators use the LibTorch stable ABI, so that one binary serves every torch >= 2.11; one at::
or c10:: symbol would tie it to the torch it was built with.
Called by CMake: check_module.py NM MODULE
"""

import re
import subprocess
import sys


def main() -> None:
    nm, module = sys.argv[1:]
    undefined = subprocess.check_output([nm, "-D", "-C", "--undefined-only", module], text=True)
    unstable = [
        line.split(None, 1)[-1]
        for line in undefined.splitlines()
        if re.search(r"\b(at|c10|torch)::", line)
    ]
    if unstable:
        sys.exit(f"{module}: expected only torch's stable C symbols, found {unstable}")
    defined = subprocess.check_output([nm, "-D", "-C", "--defined-only", module], text=True)
    exported = [line.split()[-1] for line in defined.splitlines() if line.strip()]
    if exported != ["PyInit__C"]:
        sys.exit(f"{module}: expected PyInit__C as its only export, found {exported}")


if __name__ == "__main__":
    main()
