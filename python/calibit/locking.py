"""A folder that one process writes at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LOCK = "lock"
"""Name of the file that is held while a folder is written, and removed afterwards."""


@contextmanager
def alone_in(folder: Path, *, op: str) -> Iterator[None]:
    """Be the only process that writes a folder while the block runs.

    The lock belongs to the open file, so it ends with the process however that ends. Where the
    platform has no such locks, nothing is held.

    Args:
        folder: an existing folder.
        op: who asks, for the message.

    Raises:
        RuntimeError: another process is writing it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    file = folder / LOCK
    while True:
        with file.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RuntimeError(
                    f"[{op}] expected to be alone in {folder}, got another process that writes "
                    "it: wait for it to end"
                ) from error
            if not _is_still(file, stream):  # its last holder removed it after it was opened here
                continue
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
            return


def clear(folder: Path) -> None:
    """Remove the lock of a process that was killed before it could; one that is held stays."""
    if (folder / LOCK).is_file():
        with suppress(RuntimeError, OSError), alone_in(folder, op="clear"):
            pass


def _is_still(file: Path, stream: IO[str]) -> bool:
    """Whether an open file is the one that has the name now."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), file.stat())
    except FileNotFoundError:
        return False
