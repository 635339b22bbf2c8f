"""What readers and writers of checkpoints share: an empty model filled from files, its
configuration written."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calibit import loading
from calibit.io import shards
from calibit.io.renaming import Files
from calibit.modules import QuantizedLinear


def empty(path: Path, trust_remote_code: bool) -> Any:
    """The model that a folder's config.json describes, without values.

    Raises:
        ValueError: the configuration describes no model.
    """
    config = loading.read_config(path, trust_remote_code=trust_remote_code)
    try:
        return skeleton(config, trust_remote_code)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        raise ValueError(
            f"[load] cannot build the model that {str(path / 'config.json')!r} describes: {error}"
        ) from error


def skeleton(config: Any, trust_remote_code: bool) -> Any:
    """The model of a configuration: parameters on the meta device, computed buffers real.

    A model built wholly on the meta device would lose its rotary frequencies and other buffers
    that no file holds; so only parameters are moved there, each as soon as its module registers it.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook
    from transformers import AutoModelForCausalLM

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return None  # leave it
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)
    try:
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    finally:
        handle.remove()


def write_config(
    model: Any, folder: Path, section: dict[str, Any], changes: Mapping[str, Any] | None = None
) -> None:
    """config.json and generation_config.json; the model's own configuration stays as it is.

    Args:
        model: whose configuration is written.
        folder: where to.
        section: its `quantization_config`.
        changes: entries that differ in the file.
    """
    config = deepcopy(model.config)
    for key, value in (changes or {}).items():
        setattr(config, key, value)
    config.quantization_config = section
    config.architectures = [type(model).__name__]
    config.dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    config.save_pretrained(folder)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        # Not save_pretrained: it refuses settings that do not matter here, such as greedy decoding
        # with a temperature.
        generation.to_json_file(folder / "generation_config.json")


def read_generation_config_(model: Any, path: Path) -> None:
    """Take over the generation settings of a folder, where it has some."""
    from transformers import GenerationConfig

    if (path / "generation_config.json").is_file() and hasattr(model, "generation_config"):
        model.generation_config = GenerationConfig.from_pretrained(path)


def fill_float_(model: nn.Module, tied: Mapping[str, str], files: shards.Reader) -> None:
    """Fill every other parameter and saved buffer, and tie what was tied."""
    for prefix, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            continue
        for key, parameter in list(module.named_parameters(recurse=False)):
            name = f"{prefix}.{key}" if prefix else key
            if name not in tied:
                value = read_like(name, parameter, files)
                check_finite(prefix, {key: value}, files.file_of(name))
                setattr(module, key, nn.Parameter(value, requires_grad=parameter.requires_grad))
        for key, buffer in list(module.named_buffers(recurse=False)):
            if key not in module._non_persistent_buffers_set:
                setattr(module, key, read_like(f"{prefix}.{key}" if prefix else key, buffer, files))
    for name, source in tied.items():
        owner, _, key = name.rpartition(".")
        try:
            setattr(model.get_submodule(owner), key, model.get_parameter(source))
        except AttributeError as error:
            raise ValueError(
                f"[load] expected parameters {name!r} and {source!r} to tie, got: {error}"
            ) from error


def read_like(name: str, expected: torch.Tensor, files: Files) -> torch.Tensor:
    """A stored tensor of the shape and kind of the model's."""
    value = files.read(name)
    check_like(name, value, expected, files)
    return value


def check_like(name: str, value: torch.Tensor, expected: torch.Tensor, files: Files) -> None:
    """Refuse a stored tensor of another shape or kind than the model's."""
    same_kind = value.is_floating_point() == expected.is_floating_point()
    if value.shape != expected.shape or not same_kind:
        raise ValueError(
            f"[load] expected {name!r} as {expected.dtype} {list(expected.shape)}, got "
            f"{value.dtype} {list(value.shape)} in {files.file_of(name)}"
        )


def check_bias(
    name: str,
    bias: torch.Tensor | None,
    expected: torch.Tensor | None,
    files: shards.Reader,
    file: str,
) -> None:
    """Refuse a bias that the model's layer does not have, the lack of one, and another shape."""
    if bias is None and expected is not None:
        raise ValueError(f"[load] expected tensor '{name}.bias' in {file}, got none")
    if bias is None:
        return
    if expected is None:
        raise ValueError(f"[load] expected {name!r} without bias, got one in {file}")
    check_like(f"{name}.bias", bias, expected, files)


def check_finite(name: str, stored: Mapping[str, torch.Tensor], file: str) -> None:
    """Refuse NaN and Inf in parameters, scales, zero points and codebooks."""
    for key, tensor in stored.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"[load] expected finite values, got NaN or Inf in '{name}.{key}' in {file}"
            )
