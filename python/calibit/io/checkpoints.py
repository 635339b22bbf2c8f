"""Quantized checkpoints of any layout: read, converted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from calibit import loading, structure
from calibit.io import export, foreign, native, shards


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    float_activations: bool = False,
) -> Any:
    """Read a quantized model: calibit's own checkpoint, or one that another tool wrote.

    Args:
        path: the folder.
        device: where to put the model; None is the CPU.
        dtype: dtype of the floating-point parameters and of the arithmetic; None keeps the stored
            one. Codes and scales are the same whatever it is.
        trust_remote_code: let the configuration name model code of its own.
        float_activations: keep inputs of layers, and the cache, in floating point where another
            tool's checkpoint asks for something else.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: the folder or one of its files does not exist.
        ValueError: a float model or an unknown layout, or a tensor that is missing, unexpected, of
            another shape or dtype, or unreadable; the message names the file and the tensor. Inputs
            or a cache that are quantized in a way that calibit does not compute;
            `float_activations` for a checkpoint of calibit's own, which it computes as it is.
    """
    if foreign.method_of(path) in (None, native.METHOD):
        if float_activations:
            raise ValueError(
                "[load] expected float_activations for another tool's checkpoint, got one of "
                f"calibit's own in {str(path)!r}"
            )
        model = native.load(path, trust_remote_code=trust_remote_code)
    else:
        model = foreign.load(
            path, trust_remote_code=trust_remote_code, float_activations=float_activations
        )
    if dtype is not None:
        structure.cast_(model, dtype)
    return model if device is None else model.to(device)


def convert(
    source: str | Path,
    out: str | Path,
    layout: str,
    *,
    required: Sequence[str] = (),
    trust_remote_code: bool = False,
    float_activations: bool = False,
) -> export.Export:
    """Write a quantized checkpoint in another layout, codes and scales unchanged.

    Args:
        source: folder of a quantized checkpoint, in any layout that `load` reads.
        out: the folder to create.
        layout: one of `calibit.io.export.NAMES`.
        required: engines that must be able to load it (`calibit.io.engines.ENGINES`).
        trust_remote_code: let the configuration name model code of its own.
        float_activations: as for `load`: the new checkpoint's weights alone are quantized.

    Returns:
        What was written, with notes.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: the source or one of its files does not exist.
        ValueError: as `load` and `calibit.io.export.save`; nothing is written.
    """
    source, out = Path(source).expanduser(), Path(out)
    export.check_names(layout, required)
    shards.check_new(out, "convert")
    native.read_json(source / "config.json")  # says what is wrong with the folder
    if foreign.method_of(source) is None:
        raise ValueError(
            f"[convert] expected a quantized checkpoint, got {str(source)!r} without "
            "quantization_config: use `calibit quantize`"
        )
    model = load(source, trust_remote_code=trust_remote_code, float_activations=float_activations)
    tokenizer = None
    if not loading.lacks_tokenizer(source):
        tokenizer = loading.read_tokenizer(source, trust_remote_code=trust_remote_code)
    return export.save(model, out, layout, tokenizer=tokenizer, required=required)
