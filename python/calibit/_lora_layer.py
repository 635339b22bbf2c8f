"""PEFT's LoRA layer around a QuantizedLinear; imported where PEFT is installed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners import lora

Tensor = torch.Tensor

_STARTS = (True, False, "gaussian", "orthogonal")
"""Initial values of adapters that need no float weight."""


class LoraQuantizedLinear(lora.Linear):
    """``y = QuantizedLinear(x) + scaling * B(A(dropout(x)))``; the quantized weight is constant.

    PEFT makes it; its arguments are those of PEFT's own layers.
    """

    def __init__(self, base_layer: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # PEFT warns of every class that it does not know itself.
            warnings.filterwarnings("ignore", message="Unsupported layer type")
            super().__init__(base_layer, adapter_name, *args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: the sum would have to be rounded once more.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "[lora] cannot merge adapters into a quantized weight, which would round it again: "
            "keep them apart (save_pretrained), or merge them into the float model and quantize "
            "that"
        )


def check(config: Any) -> None:
    """Refuse what cannot work on a quantized layer."""
    if not isinstance(config, LoraConfig):
        raise TypeError(f"[register_lora] expected a peft.LoraConfig, got {type(config).__name__}")
    if config.init_lora_weights not in _STARTS:
        raise ValueError(
            f"[register_lora] expected init_lora_weights of {', '.join(map(str, _STARTS))}, got "
            f"{config.init_lora_weights!r}, which decomposes the float weight"
        )
    if getattr(config, "use_dora", False):
        raise ValueError(
            "[register_lora] expected LoRA, got use_dora=True, which needs the norms of the float "
            "weight at every step"
        )
