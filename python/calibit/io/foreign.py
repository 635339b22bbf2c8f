"""Reading checkpoints of other tools into a model with calibit's layers.

Strict, as `calibit.io.native`: every tensor of the model must be there with its shape and kind,
nothing else may be, and what a file says must agree with its configuration. The weights keep their
codes and scales; nothing is rounded again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calibit import structure
from calibit.io import filling, native, shards
from calibit.io.layout import Decode, Reader
from calibit.io.layouts import READERS
from calibit.modules import QuantizedLinear

_COPY = "quantize_config.json"
"""Where AutoGPTQ keeps what newer tools write into config.json."""

_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")
"""Buffers that old files hold although models compute them."""


def method_of(path: str | Path) -> str | None:
    """The `quant_method` of a folder; None for a float model or a folder without configuration."""
    try:
        section, _ = _section(Path(path))
    except (OSError, ValueError):
        return None
    method = section.get("quant_method")
    return method if isinstance(method, str) else None


def lacks_package(path: str | Path) -> bool:
    """Whether a folder is of a tool whose package is not installed, so that transformers cannot
    load it and `load` can."""
    reader = READERS.get(method_of(path) or "")
    return reader is not None and find_spec(reader.package) is None


def load(
    path: str | Path, *, trust_remote_code: bool = False, float_activations: bool = False
) -> Any:
    """Read a checkpoint that another tool wrote; arguments as of `calibit.io.checkpoints.load`.

    Layers whose inputs the tool rounds token by token (8 bits; LLM.int8()) compute so here as well:
    their schemes have the options `a8` or `llm`.

    Returns:
        The model in its stored dtype on the CPU, in evaluation mode. A layer's `notes` say what a
        reader of a report should know.

    Raises:
        FileNotFoundError: the folder or one of its files does not exist.
        ValueError: a layout that is not known, a configuration that contradicts itself or the
            tensors, a tensor that is missing, unexpected, of another shape or dtype, or unreadable;
            the message names the file and the tensor. Inputs or a cache that are quantized in a way
            that calibit does not compute, such as by a stored scale.
    """
    path = Path(path)
    section, file = _section(path)
    reader = _reader(section, file)
    try:
        decode = reader.decoder(section, float_activations)
    except ValueError as error:
        raise ValueError(f"[load] cannot use quantization_config in {file}: {error}") from error
    model = filling.empty(path, trust_remote_code)
    with shards.Reader(path) as files:
        _fill_quantized_(model, reader, decode, files)
        tied = _ties(model, files)
        filling.fill_float_(model, tied, files)
        _check_ties(model, tied, files)
        ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
        files.check_all_read([_COMPUTED, *map(re.compile, ignored)])
    filling.read_generation_config_(model, path)
    model.config.quantization_config = native.describe(model, None, None)
    return model.eval()


def _section(path: Path) -> tuple[Mapping[str, Any], str]:
    """The `quantization_config` of a folder, and the file it stands in."""
    config = native.read_json(path / "config.json")
    section = config.get("quantization_config") or config.get("compression_config")
    if section is None and (path / _COPY).is_file():
        return {"quant_method": "gptq", **native.read_json(path / _COPY)}, _COPY
    if not isinstance(section, dict):
        raise ValueError(
            f"[load] expected a quantization_config in {str(path / 'config.json')!r}, got "
            f"{section!r:.80}"
        )
    return section, "config.json"


def _reader(section: Mapping[str, Any], file: str) -> Reader:
    method = section.get("quant_method")
    if not isinstance(method, str) or method not in READERS:
        known = ", ".join([native.METHOD, *READERS])
        raise ValueError(f"[load] expected quant_method in {file} to be of {known}, got {method!r}")
    return READERS[method]


def _fill_quantized_(
    model: nn.Module, reader: Reader, decode: Decode, files: shards.Reader
) -> None:
    """Put a QuantizedLinear in the place of each layer that the files hold quantized."""
    layers = structure.linear_layers(model)
    found = _quantized(reader, files)
    if not found:
        raise ValueError(
            f"[load] expected quantized layers (tensors {', '.join(reader.markers)}), got none in "
            "the files"
        )
    for name, parts in found.items():
        file = files.file_of(f"{name}.{parts[0]}")
        layer = layers.get(name)
        if layer is None:
            raise ValueError(
                f"[load] expected a linear layer {name!r} in the model, as {file} holds, got none"
            )
        stored = {part: files.read(f"{name}.{part}") for part in parts}
        bias = stored.pop("bias", None)
        if bias is not None and layer.bias(model) is None and not bool(bias.any()):
            bias = None  # older tools gave every layer one, zero where the model has none
        filling.check_bias(name, bias, layer.bias(model), files, file)
        try:
            weight = decode(name, stored, layer.shape)
        except ValueError as error:
            raise ValueError(f"[load] cannot read {name!r} from {file}: {error}") from error
        dtype = model.get_submodule(name).get_parameter("weight").dtype
        structure.replace_(model, layer.names, QuantizedLinear.from_weight(weight, bias, dtype))


def _quantized(reader: Reader, files: shards.Reader) -> dict[str, list[str]]:
    """The quantized layers of the files: rests of the names of their tensors by layer name."""
    names = files.names()
    ends = tuple(f".{marker}" for marker in reader.markers)
    layers = {name[: -len(end)] for name in names for end in ends if name.endswith(end)}
    found: dict[str, list[str]] = {layer: [] for layer in sorted(layers)}
    for name in names:
        owner = name
        while owner and owner not in layers:
            owner = owner.rpartition(".")[0]
        if owner:
            found[owner].append(name[len(owner) + 1 :])
    return found


def _ties(model: nn.Module, files: shards.Reader) -> dict[str, str]:
    """Tied parameters that are to be filled from one tensor: `{name: name of the tensor's}`."""
    stored = set(files.names())
    return {
        **{name: first for name, first in structure.aliases(model).items() if first in stored},
        **{
            first: name
            for name, first in structure.aliases(model).items()
            if first not in stored and name in stored
        },
    }


def _check_ties(model: nn.Module, tied: Mapping[str, str], files: shards.Reader) -> None:
    """Refuse a second copy of a tied tensor that differs."""
    for name, source in tied.items():
        if name in files.names() and not torch.equal(files.read(name), model.get_parameter(source)):
            raise ValueError(
                f"[load] expected {name!r} in {files.file_of(name)} to equal {source!r}, as "
                "config.json ties them (tie_word_embeddings), got other values"
            )
