"""Fail the build when an ISA object exports or needs anything but its one kernel table.

Called by CMake: check_isa.py NM WANTED_SYMBOL OBJECT...
"""

import subprocess
import sys


def symbols(nm: str, path: str, kind: str) -> list[tuple[str, str]]:
    """(type letter, demangled name) of the object's symbols of one kind."""
    out = subprocess.check_output([nm, "-C", kind, path], text=True)
    rows = (line.split(None, 2) for line in out.splitlines() if line.strip())
    return [(r[-2], r[-1]) if len(r) > 1 else ("?", r[0]) for r in rows]


def main() -> None:
    nm, wanted, *objects = sys.argv[1:]
    # What compilers call on their own: copying and clearing memory, relative addressing.
    allowed = {"memcpy", "memset", "memmove", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
    for path in objects:
        exported = [
            line.split(None, 2)[1:]
            for line in subprocess.check_output(
                [nm, "-C", "--defined-only", "--extern-only", path], text=True
            ).splitlines()
            if line.strip()
        ]
        undefined = [name for _, name in symbols(nm, path, "--undefined-only")]
        leaked = [name for name in undefined if name not in allowed]
        if leaked:
            sys.exit(f"{path}: expected no undefined symbols, found {leaked}")
        if len(exported) != 1 or exported[0][1] != wanted or exported[0][0] not in "DR":
            sys.exit(f"{path}: expected one exported data symbol {wanted}, found {exported}")


if __name__ == "__main__":
    main()
