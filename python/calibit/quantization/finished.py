"""Blocks that a GPTQ run has finished, kept in a folder so that a run that was cut off goes on.

    job.json                 what is being made: hash of the float weights, schemes, calibration
    text-<hash>.jsonl        calibration text that the model wrote (`kept_text`)
    block-<name>.safetensors canonical tensors of the block's quantized layers; its metadata holds
                             the layers' rows of the report

Each file appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calibit import structure
from calibit.io import shards
from calibit.locking import alone_in
from calibit.modules import QuantizedLinear
from calibit.quantization.kept_text import PREFIX
from calibit.quantization.report import ModuleReport
from calibit.weight import QuantizedWeight

_JOB = "job.json"
_ROWS = "rows"


class FinishedBlocks:
    """Keeps nothing."""

    def restore_(
        self, model: nn.Module, block: str, layers: Sequence[structure.LinearLayer]
    ) -> list[ModuleReport] | None:
        """Put the stored layers of a block in place; None where the block is not finished."""
        return None

    def add(self, model: nn.Module, block: str, rows: Sequence[ModuleReport]) -> None:
        """Keep a finished block."""


class StoredBlocks(FinishedBlocks):
    """Keeps blocks in a folder; use `opened`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def restore_(
        self, model: nn.Module, block: str, layers: Sequence[structure.LinearLayer]
    ) -> list[ModuleReport] | None:
        file = self._file(block)
        if not file.is_file():
            return None
        rows, tensors = _read(file)
        known = {row.name: row for row in rows}
        for layer in layers:
            own = {
                name.removeprefix(f"{layer.name}."): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{layer.name}.")
            }
            own.pop("bias", None)
            old = model.get_submodule(layer.name)
            dense = old.get_parameter("weight")
            own = {name: tensor.to(dense.device) for name, tensor in own.items()}
            scheme = known[layer.name].scheme
            quantized = QuantizedWeight.from_tensors(own, scheme=scheme, shape=layer.shape)
            new = QuantizedLinear.from_weight(quantized, layer.bias(model), dense.dtype)
            structure.replace_(model, layer.names, new.train(old.training))
        return rows

    def add(self, model: nn.Module, block: str, rows: Sequence[ModuleReport]) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for row in rows:
            own = structure.tensors(model.get_submodule(row.name))
            tensors |= {f"{row.name}.{key}": value.cpu().clone() for key, value in own}
        lines = json.dumps([asdict(row) for row in rows])
        file = self._file(block)
        draft = file.with_suffix(".draft")
        shards.write_file(draft, tensors, {_ROWS: lines})
        with draft.open("rb") as stream:
            os.fsync(stream.fileno())
        draft.replace(file)

    def _file(self, block: str) -> Path:
        return self._folder / f"block-{block}.safetensors"


@contextmanager
def opened(folder: str | Path | None, job: Mapping[str, Any]) -> Iterator[FinishedBlocks]:
    """The finished blocks of a job.

    A job that fails before its first block is finished leaves no folder; one that is interrupted
    keeps the text that the model wrote.

    Args:
        folder: where they are; made if missing. None keeps nothing.
        job: what is being made, JSON types.

    Raises:
        RuntimeError: another process is writing the folder, or it holds blocks of another job.
        ValueError: a damaged file in the folder.
    """
    if folder is None:
        yield FinishedBlocks()
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with alone_in(path, op="quantize"):
        file = path / _JOB
        if not file.is_file():
            draft = file.with_suffix(".draft")
            draft.write_text(json.dumps(job, indent=2), encoding="utf-8")
            draft.replace(file)
        elif _job_of(file) != job:
            raise RuntimeError(
                f"[quantize] expected unfinished work of the same job in {str(path)!r}, got that "
                "of another model, scheme or calibration: remove the folder, or give another output"
            )
        try:
            yield StoredBlocks(path)
        except BaseException as error:
            cut_off = isinstance(error, KeyboardInterrupt) and any(path.glob(f"{PREFIX}*"))
            if not cut_off and not any(path.glob("block-*.safetensors")):
                shutil.rmtree(path, ignore_errors=True)
            raise


def _job_of(file: Path) -> Any:
    """What a folder's blocks were made for."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"[quantize] expected JSON in {str(file)!r}, got {error}: remove the folder "
            f"{file.parent.name!r} to begin anew"
        ) from error


def _read(file: Path) -> tuple[list[ModuleReport], dict[str, torch.Tensor]]:
    """Rows and tensors of a block's file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as stored:
            rows = [_row(line) for line in json.loads((stored.metadata() or {})[_ROWS])]
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"[quantize] expected a finished block in {str(file)!r}, got a damaged file "
            f"({error}): remove it to have the block solved again"
        ) from error
    return rows, tensors


def _row(line: Mapping[str, Any]) -> ModuleReport:
    values = {**line, "shape": tuple(line["shape"]), "notes": tuple(line["notes"])}
    return ModuleReport(**values)
