"""calibit's own checkpoint: a Hugging Face folder with each quantized layer in canonical form.

    config.json            the model's configuration; `quantization_config` as below
    model*.safetensors     `<layer>.codes`, `<layer>.scales` …; every other tensor as it was, but
                           for experts of a mixture of which some are quantized: each is a layer,
                           `<experts>.down_proj.3`, quantized or `<experts>.down_proj.3.weight`
    generation_config.json, tokenizer files

`quantization_config` holds `quant_method` ("calibit"), `format` (version of this layout), `scheme`
(as the user wrote it), `modules` (the scheme of each quantized layer), `cache_bits` (of rounded
keys and values, else null), `finetuning` (where weights were trained first), `tied` (parameters
stored under another name) and `source_hash` (of the original model's weights). A folder is written
under another name and renamed when it is complete; an existing one is never touched. Loading is
strict: every tensor must be there with its shape and dtype, nothing else may be, and the values
arrive bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from calibit import kv_cache, structure
from calibit.io import filling, shards
from calibit.modules import QuantizedLinear
from calibit.weight import QuantizedWeight

METHOD = "calibit"
"""`quant_method` of this checkpoint."""

FORMAT = 1
"""Version of the layout; a reader refuses another one."""


FINETUNING = "finetuning"
"""Entry of the `quantization_config` about training before quantization."""


def is_checkpoint(path: str | Path) -> bool:
    """Is this a folder that `save` wrote?"""
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    section = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(section, dict) and section.get("quant_method") == METHOD


def describe(
    model: nn.Module,
    scheme: str | None,
    source_hash: str | None,
    finetuning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `quantization_config` of a quantized model.

    Args:
        model: the model.
        scheme: the scheme or plan as the user wrote it; None lists the schemes found.
        source_hash: hash of the float weights, where known.
        finetuning: how they were trained before they were quantized.
    """
    modules = {
        name: str(module.scheme)
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "scheme": scheme or ", ".join(sorted(set(modules.values()))),
        "modules": modules,
        "cache_bits": kv_cache.bits_of(model),
        **({} if finetuning is None else {FINETUNING: dict(finetuning)}),
        "tied": structure.aliases(model),
        "source_hash": source_hash,
    }


def finetuning_of(model: Any) -> dict[str, Any] | None:
    """How a model's weights were trained before they were quantized, where it says so."""
    section = getattr(getattr(model, "config", None), "quantization_config", None)
    found = section.get(FINETUNING) if isinstance(section, dict) else None
    return found if isinstance(found, dict) else None


def record_(
    model: Any,
    scheme: str,
    source_hash: str,
    *,
    finetuning: Mapping[str, Any] | None = None,
) -> None:
    """Write what was done to a model into its configuration, where it has one."""
    if hasattr(model, "config"):
        model.config.quantization_config = describe(model, scheme, source_hash, finetuning)


def save(
    model: Any,
    path: str | Path,
    *,
    tokenizer: Any | None = None,
    max_shard_bytes: int = shards.MAX_BYTES,
) -> Path:
    """Write a quantized model to a new folder.

    Canonical tensors are made layer by layer and written file by file, so that saving takes the
    memory of one file.

    Args:
        model: a Hugging Face model with quantized layers.
        path: the folder to create.
        tokenizer: written beside the model when given.
        max_shard_bytes: size at which a new file is begun.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder exists.
        ValueError: the model has neither a quantized layer nor a rounded cache, or no
            configuration.
    """
    path = Path(path)
    shards.check_new(path, "save")
    with shards.new_folder(path) as folder:
        write(model, folder, tokenizer=tokenizer, max_shard_bytes=max_shard_bytes)
    return path


def write(
    model: Any,
    folder: Path,
    *,
    tokenizer: Any | None = None,
    max_shard_bytes: int = shards.MAX_BYTES,
) -> None:
    """Write a quantized model into an existing, empty folder; arguments and errors as `save`."""
    if not hasattr(model, "config"):
        raise ValueError(
            f"[save] expected a Hugging Face model with a configuration, got {type(model).__name__}"
        )
    recorded = getattr(model.config, "quantization_config", None)
    known = recorded if isinstance(recorded, dict) else {}
    facts = (known.get(key) for key in ("scheme", "source_hash", FINETUNING))
    section = describe(model, *facts)
    if not section["modules"] and section["cache_bits"] is None:
        raise ValueError(
            "[save] expected a model with quantized layers, got none: use save_pretrained for a "
            "float model"
        )
    shards.write(folder, structure.tensors(model), max_bytes=max_shard_bytes)
    filling.write_config(model, folder, section)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Read a model that `save` wrote; arguments as of `calibit.io.checkpoints.load`.

    Returns:
        The model in its stored dtype on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: the folder or one of its files does not exist.
        ValueError: the folder is no calibit checkpoint, or a tensor is missing, unexpected, of
            another shape or dtype, or unreadable; the message names the file and the tensor.
    """
    path = Path(path)
    section = _read_section(path)
    model = filling.empty(path, trust_remote_code)
    with shards.Reader(path) as files:
        _fill_quantized_(model, section["modules"], files)
        filling.fill_float_(model, section["tied"], files)
        files.check_all_read()
    if section.get("cache_bits") is not None:
        kv_cache.round_(model, section["cache_bits"])
    filling.read_generation_config_(model, path)
    return model.eval()


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: no JSON object.
    """
    path = file.parent
    if not path.is_dir():
        raise FileNotFoundError(f"[load] expected a folder, got {str(path)!r} which does not exist")
    if not file.is_file():
        raise FileNotFoundError(f"[load] expected {file.name} in {str(path)!r}, got none")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"[load] expected JSON in {str(file)!r}, got {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"[load] expected a JSON object in {str(file)!r}, got {content!r:.80}")
    return content


def _read_section(path: Path) -> dict[str, Any]:
    """The checked `quantization_config` of a folder."""
    file = path / "config.json"
    section = read_json(file).get("quantization_config")
    method = section.get("quant_method") if isinstance(section, dict) else None
    if not isinstance(section, dict) or method != METHOD:
        raise ValueError(
            f"[load] expected quant_method {METHOD!r} in {str(file)!r}, got {method!r}"
        )
    if section.get("format") != FORMAT:
        raise ValueError(
            f"[load] expected format {FORMAT} in {str(file)!r}, got {section.get('format')!r}: use "
            "the calibit that wrote it"
        )
    if section.get("cache_bits") not in (None, *kv_cache.BITS):
        raise ValueError(
            f"[load] expected 'cache_bits' in {str(file)!r} of {kv_cache.BITS} or null, got "
            f"{section['cache_bits']!r:.80}"
        )
    for key in ("modules", "tied"):
        value = section.get(key)
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise ValueError(
                f"[load] expected {key!r} in {str(file)!r} to map names to strings, got "
                f"{value!r:.80}"
            )
    return section


def _fill_quantized_(model: nn.Module, modules: Mapping[str, str], files: shards.Reader) -> None:
    """Put a QuantizedLinear with its stored tensors in the place of each quantized layer."""
    structure.open_experts_(model, structure.experts_of(model, modules))
    layers = structure.linear_layers(model)
    for name, text in modules.items():
        layer = layers.get(name)
        if layer is None:
            raise ValueError(f"[load] expected a linear layer {name!r} in the model, got none")
        stored = {key: files.read(f"{name}.{key}") for key in files.below(name)}
        file = files.file_of(f"{name}.codes")
        bias = stored.pop("bias", None)
        filling.check_bias(name, bias, layer.bias(model), files, file)
        try:
            quantized = QuantizedWeight.from_tensors(stored, scheme=text, shape=layer.shape)
        except ValueError as error:
            raise ValueError(
                f"[load] cannot read {name!r} as {text} from {file}: {error}"
            ) from error
        filling.check_finite(name, stored, file)
        dtype = model.get_submodule(name).get_parameter("weight").dtype
        structure.replace_(model, layer.names, QuantizedLinear.from_weight(quantized, bias, dtype))
