"""RunFolder: a run while it is written.

Batches are appended and synced one by one, every other file is written beside its place and renamed
into it, and the manifest comes last: at any moment the folder is a finished run, or one that the
same job can continue.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from calibit.locking import LOCK, alone_in, clear
from calibit.runs import (
    DOCS,
    FORCED,
    GENERATED,
    ITEMS,
    MANIFEST,
    META,
    PART,
    SCHEMA,
    SEQUENCES,
    TokenLosses,
    join_shards,
    read_json,
    sha256_of,
)


class RunFolder:
    """A run while it is written: batches are appended and synced, the manifest comes last.

    Use `RunFolder.open`; `complete` says whether there is nothing left to do.
    """

    def __init__(self, path: Path, meta: dict[str, Any] | None, batches: list[Any]) -> None:
        self.path = path
        self.meta = meta
        self.batches = batches

    @classmethod
    @contextmanager
    def open(
        cls, path: str | Path, job: Mapping[str, Any], *, resume: bool = True
    ) -> Iterator[RunFolder]:
        """Create a folder, or continue one that holds the same job; no other process may write it
        meanwhile.

        Args:
            path: the folder; new, empty or a run of the same job.
            job: what identifies the job; compared with what the folder holds.
            resume: False refuses a folder that holds a run.

        Raises:
            ValueError: if the folder holds another job (the message names what differs) or
                something else.
            RuntimeError: if another process is writing it.
        """
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"[evaluate] expected a folder for the run, got the file {folder}")
        if (folder / MANIFEST).is_file():
            clear(folder)
            yield cls(folder, _stored_meta(folder, job, resume=resume), [])
            return
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder, op="evaluate"):
            meta = _stored_meta(folder, job, resume=resume)
            (folder / "tokens").mkdir(exist_ok=True)
            yield cls(folder, meta, [] if meta is None else _whole_lines(folder / PART))

    @property
    def complete(self) -> bool:
        """Whether the manifest is in place."""
        return (self.path / MANIFEST).is_file()

    def start(self, meta: Mapping[str, Any]) -> None:
        """Write run.json before the first batch."""
        self.meta = dict(meta)
        _write_json(self.path / META, meta)

    def append(self, batch: Mapping[str, Any]) -> None:
        """Add one finished batch, on disk when this returns; its key `batch` counts from 0."""
        with (self.path / PART).open("ab") as stream:
            stream.write(json.dumps(batch, separators=(",", ":")).encode() + b"\n")
            os.fsync(stream.fileno())
        self.batches.append(batch)

    def has_tokens(self, shard: int) -> bool:
        """Whether a shard of token losses is stored."""
        return self._shard(shard).is_file()

    def add_tokens(self, shard: int, losses: TokenLosses) -> None:
        """Store one shard of token losses."""
        target = self._shard(shard)
        with _replacing(target) as draft, draft.open("wb") as stream:
            np.savez(stream, nll=losses.nll, window=losses.window, position=losses.position)

    def read_tokens(self, shards: Iterable[int]) -> TokenLosses:
        """The losses of several shards, sorted into text order."""
        return join_shards(self.path, shards)

    def has(self, name: str) -> bool:
        """Whether a file is in place."""
        return (self.path / name).is_file()

    def add_lines(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Store a JSON Lines file."""
        self._place(name)
        _write_lines(self.path / name, lines)

    def add_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Store named arrays (.npz)."""
        with _replacing(self._place(name)) as draft, draft.open("wb") as stream:
            np.savez(stream, **dict(arrays))  # type: ignore[arg-type]

    def add_array(self, name: str, array: np.ndarray) -> None:
        """Store one array (.npy)."""
        with _replacing(self._place(name)) as draft, draft.open("wb") as stream:
            np.save(stream, array)

    def add_tensors(self, name: str, tensors: Mapping[str, Any]) -> None:
        """Store tensors (safetensors)."""
        from safetensors.torch import save_file

        with _replacing(self._place(name)) as draft:
            save_file(dict(tensors), draft)

    def finish(
        self,
        meta: Mapping[str, Any],
        items: Iterable[Mapping[str, Any]],
        docs: Iterable[Mapping[str, Any]] | None,
    ) -> None:
        """Write the final files and, last, the manifest."""
        _write_lines(self.path / ITEMS, items)
        if docs is not None:
            _write_lines(self.path / DOCS, docs)
        _write_json(self.path / META, meta)
        names = [META, ITEMS, *([DOCS] if docs is not None else [])]
        names += sorted(f"tokens/{file.name}" for file in (self.path / "tokens").glob("*.npz"))
        names += [SEQUENCES] if self.has(SEQUENCES) else []
        names += sorted(
            f"{FORCED}/{file.name}"
            for file in (self.path / FORCED).glob("*")
            if file.suffix != ".tmp"
        )
        _write_json(
            self.path / MANIFEST,
            {"schema": SCHEMA, "sha256": {name: sha256_of(self.path / name) for name in names}},
        )
        for left in (self.path / PART, *self.path.glob("**/*.tmp")):
            left.unlink(missing_ok=True)
        if (self.path / GENERATED).is_dir():
            shutil.rmtree(self.path / GENERATED)

    def _place(self, name: str) -> Path:
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        return target

    def _shard(self, shard: int) -> Path:
        return self.path / "tokens" / f"{shard:04d}.npz"


def holds_work(folder: Path) -> bool:
    """Whether a run's folder holds anything that took work: the manifest, a batch, a shard."""
    kept = ("tokens/*.npz", f"{FORCED}/*.npz", f"{GENERATED}/*.jsonl")
    if (folder / MANIFEST).is_file() or any(any(folder.glob(one)) for one in kept):
        return True
    part = folder / PART
    return part.is_file() and part.stat().st_size > 0


def _stored_meta(folder: Path, job: Mapping[str, Any], *, resume: bool) -> dict[str, Any] | None:
    """run.json of the same job, or None for a folder that holds nothing worth keeping yet."""
    if not (folder / META).is_file():
        foreign = [
            file.name for file in folder.iterdir() if file.name != LOCK and file.suffix != ".tmp"
        ]
        if foreign and foreign != ["tokens"]:
            raise ValueError(
                f"[evaluate] expected a new or empty folder, or one with a run, got {folder}, "
                f"which holds {sorted(foreign)[0]!r}; nothing is overwritten, choose another folder"
            )
        return None
    meta = read_json(folder / META)
    if not resume:
        raise ValueError(
            f"[evaluate] expected a folder without a run, got {folder}; allow resuming or choose "
            "another folder"
        )
    for key, wanted in json.loads(json.dumps(job)).items():
        if meta.get(key) != wanted:
            if not holds_work(folder):  # another job failed here before its first batch
                return None
            name, stored, own = _first_difference(key, meta.get(key), wanted)
            raise ValueError(
                f"[evaluate] expected the same job as the run in {folder}, which has {name} "
                f"{_short(stored)}, got {_short(own)}; nothing is overwritten, choose another "
                "folder"
            )
    return meta


def _first_difference(name: str, a: Any, b: Any) -> tuple[str, Any, Any]:
    """Name and values of the innermost first entry in which two unequal JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        pairs = [(f"{name}.{key}", a.get(key), b.get(key)) for key in {**a, **b}]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(f"{name}[{i}]", *both) for i, both in enumerate(zip(a, b, strict=True))]
    else:
        return name, a, b
    return next(_first_difference(*pair) for pair in pairs if pair[1] != pair[2])


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _whole_lines(path: Path) -> list[Any]:
    """The batches on the whole lines of the part file; what follows the last one is cut off."""
    if not path.is_file():
        return []
    batches: list[Any] = []
    end = 0
    content = path.read_bytes()
    for line in content.splitlines(keepends=True):
        try:
            batch = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or batch["batch"] != len(batches):
            break
        batches.append(batch)
        end += len(line)
    if end < len(content):
        with path.open("r+b") as stream:
            stream.truncate(end)
            os.fsync(stream.fileno())
    return batches


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with _replacing(path) as draft:
        lines = [f"{json.dumps(key)}: {_dumps(part)}" for key, part in value.items()]
        draft.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with _replacing(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as stream:
        for line in lines:
            stream.write(_dumps(line) + "\n")


def _dumps(value: Any) -> str:
    """JSON on one line; floats as their shortest exact decimal, non-finite ones refused."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A draft beside `path` that takes its place, synced, when the block ends."""
    draft = path.with_name(path.name + ".tmp")
    yield draft
    with draft.open("rb") as stream:
        os.fsync(stream.fileno())
    draft.replace(path)
