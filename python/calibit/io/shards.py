"""Tensors in the safetensors files of a Hugging Face folder: streamed out, checked on the way in.

One file is called `model.safetensors`; several are `model-00001-of-00003.safetensors` … beside
`model.safetensors.index.json`, whose `weight_map` says which tensor lies where.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

MAX_BYTES = 2_000_000_000
"""Files are closed before they grow beyond this; it bounds the memory that writing takes."""

_MAPPED = 500_000_000
"""Bytes that a reader may have read of open files."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of dtypes in a safetensors header."""

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def check_new(path: Path, what: str) -> None:
    """Refuse an output folder that exists, be it a link that leads nowhere, and one that cannot be
    made: before work that takes hours.

    Raises:
        FileExistsError: it exists.
        OSError: the folder above it is none, or nothing can be written into it.
    """
    if os.path.lexists(path):
        raise FileExistsError(
            f"[{what}] expected a new folder, got {str(path)!r} which exists: choose another name "
            "or remove it"
        )
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "cannot be written" if above.is_dir() else "is no folder"
        raise OSError(f"[{what}] cannot create {str(path)!r}: {str(above)!r} {reason}")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder under another name: becomes `path` when the block ends well, vanishes when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    folder.mkdir()
    try:
        yield folder
        folder.rename(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], *, max_bytes: int = MAX_BYTES
) -> None:
    """Write tensors into a folder, holding no more than one file of them in memory.

    Args:
        folder: an existing folder.
        tensors: names and values; they may be made as they are asked for.
        max_bytes: size at which a new file is begun; a larger tensor gets a file of its own.
    """
    written: list[tuple[Path, list[str]]] = []
    total = 0
    for shard in _shards(tensors, max_bytes):
        written.append((write_file(folder / f"{len(written):05d}.part", shard), list(shard)))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(written) == 1:
        written[0][0].rename(folder / _SINGLE)
        return
    weight_map = {}
    for number, (file, names) in enumerate(written, start=1):
        final = f"model-{number:05d}-of-{len(written):05d}.safetensors"
        file.rename(folder / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


class Reader:
    """The tensors of a folder, with the file of each for messages; a context manager.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated or no safetensors file, the index is damaged, or a tensor
            lies in two files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}
        self._mapped = 0  # bytes read since the files were opened
        self._where: dict[str, str] = {}
        self._unread: set[str] = set()

    def __enter__(self) -> Reader:
        for file in self._files():
            for name in self._opened(file).keys():  # noqa: SIM118 - a file handle, no mapping
                if name in self._where:
                    raise ValueError(
                        f"[load] expected each tensor once, got {name!r} in {self._where[name]} "
                        f"and {file}"
                    )
                self._where[name] = file
        self._unread = set(self._where)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        """Close the files; they are opened again when needed. What was read of a file stays in the
        process's memory as long as it is open."""
        self._mapped = 0
        for handle in self._open.values():
            handle.__exit__(None, None, None)
        self._open.clear()

    def file_of(self, name: str) -> str:
        """File of a tensor, for messages."""
        return self._where.get(name, str(self._folder))

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._where)

    def kind(self, name: str) -> tuple[tuple[int, ...], torch.dtype | None]:
        """Shape and dtype of a tensor, from its file's header; None for a dtype of other tools."""
        part = self._opened(self._where[name]).get_slice(name)
        return tuple(part.get_shape()), _DTYPES.get(part.get_dtype())

    def below(self, module: str) -> list[str]:
        """Names of the tensors directly below a module, without its prefix."""
        prefix = f"{module}."
        rest = (name[len(prefix) :] for name in self._where if name.startswith(prefix))
        return [name for name in rest if "." not in name]

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """One tensor, or its part at an index of the first dimension, in memory of its own.

        Raises:
            ValueError: there is none of this name, or its data cannot be read.
        """
        from safetensors import SafetensorError

        if name not in self._where:
            raise ValueError(
                f"[load] expected tensor {name!r} in {str(self._folder)!r}, got none: the "
                "checkpoint is incomplete or of another model"
            )
        file = self._where[name]
        try:
            opened = self._opened(file)
            value: torch.Tensor = (
                opened.get_tensor(name) if index is None else opened.get_slice(name)[index]
            )
        except SafetensorError as error:
            raise ValueError(f"[load] expected {name!r} readable in {file}, got {error}") from error
        self._unread.discard(name)
        value = value.clone()  # the file's own memory must not be needed any longer
        self._mapped += value.nbytes
        if self._mapped > _MAPPED:
            self._close()
        return value

    def check_all_read(self, ignored: Iterable[re.Pattern[str]] = ()) -> None:
        """Refuse tensors that nothing asked for, but for names that match a pattern."""
        patterns = tuple(ignored)
        unread = [n for n in self._unread if not any(p.search(n) for p in patterns)]
        if unread:
            first = min(unread)
            raise ValueError(
                f"[load] expected only the model's tensors, got {len(unread)} more: "
                f"{first!r} in {self.file_of(first)}"
            )

    def _files(self) -> list[str]:
        """File names, from the index where there is one; a lone file may have any name."""
        index = self._folder / _INDEX
        if not index.is_file():
            found = [file.name for file in self._folder.glob("*.safetensors")]
            return found if len(found) == 1 else [_SINGLE]
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"[load] expected a weight_map in {_INDEX}, got {error!r}") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"[load] expected plain file names in {_INDEX}, got {name!r}")
        return names

    def _opened(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._open:
            if not (self._folder / file).is_file():
                raise FileNotFoundError(
                    f"[load] expected {file} in {str(self._folder)!r}, got none"
                )
            try:
                self._open[file] = safe_open(self._folder / file, framework="pt").__enter__()
            except SafetensorError as error:
                raise ValueError(
                    f"[load] expected a whole safetensors file, got {file}: {error}"
                ) from error
        return self._open[file]


def _shards(
    tensors: Iterable[tuple[str, torch.Tensor]], max_bytes: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Tensors in groups of at most `max_bytes`, on the CPU, each in memory of its own."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = _own(tensor.cpu().contiguous(), shard)
        size += tensor.nbytes
    yield shard


def _own(tensor: torch.Tensor, others: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tensor, copied when it shares memory: the file format refuses tensors that overlap."""
    memory = tensor.untyped_storage()
    pointers = {other.untyped_storage().data_ptr() for other in others.values()}
    shares = memory.nbytes() != tensor.nbytes or memory.data_ptr() in pointers
    return tensor.clone() if shares else tensor


def write_file(
    file: Path, tensors: dict[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write one safetensors file, readable for whom the process's other files are.

    Args:
        file: where to; its folder exists.
        tensors: on the CPU, contiguous, each in memory of its own.
        metadata: of the header, beside `format`.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written, for example on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(tensors, file, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        file.unlink(missing_ok=True)
        raise OSError(f"[save] cannot write {str(file)!r}: {error}") from error
    file.chmod(mode)  # safetensors writes a temporary file, which only its owner may read
    return file
