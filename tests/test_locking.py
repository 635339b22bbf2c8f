"""A folder is written by one process at a time: runs, audits, blocks of a GPTQ run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from calibit.auditing.job import Job, claim
from calibit.evaluation.folder import RunFolder
from calibit.locking import LOCK, alone_in
from calibit.quantization import finished

fcntl = pytest.importorskip("fcntl", reason="the platform has no file locks")

HOLD = """
import sys, time
from pathlib import Path
from calibit.locking import alone_in
with alone_in(Path(sys.argv[1]), op="first"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_everyone_who_writes_a_folder_waits_for_the_other_process(tmp_path: Path) -> None:
    with another_process(tmp_path):
        for op, enter in (
            ("mine", lambda: alone_in(tmp_path, op="mine")),
            ("evaluate", lambda: RunFolder.open(tmp_path, {})),
            ("audit", lambda: claim(tmp_path, Job(str(tmp_path)))),
            ("quantize", lambda: finished.opened(tmp_path, {})),
        ):
            said = rf"\[{op}\] expected to be alone in .*, got another process that writes it: wait"
            with pytest.raises(RuntimeError, match=said), enter():
                pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK).is_file()
        with alone_in(tmp_path, op="mine"):
            pass
    assert not list(tmp_path.iterdir())


def test_the_lock_is_left_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), alone_in(tmp_path, op="mine"):
        raise KeyError("x")
    with alone_in(tmp_path, op="mine"):
        assert [file.name for file in tmp_path.iterdir()] == [LOCK]
    assert not list(tmp_path.iterdir())


def test_a_lock_that_its_holder_removed_in_between_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is opened, its holder removes it and a third process makes a new one: the lock on
    the removed file would keep nobody out."""
    real, seen = fcntl.flock, []

    def late(stream: object, how: int) -> None:
        seen.append(how)
        if len(seen) == 1:
            (tmp_path / LOCK).unlink()
            (tmp_path / LOCK).touch()
        real(stream, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with alone_in(tmp_path, op="mine"):
        assert len(seen) == 2
        monkeypatch.undo()
        with pytest.raises(RuntimeError, match="alone"), alone_in(tmp_path, op="other"):
            pass
