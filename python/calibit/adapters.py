"""LoRA adapters of PEFT on quantized layers (QLoRA: Dettmers et al., arXiv 2305.14314).

PEFT asks a configuration for layers that it does not know itself; `register_lora` tells it. The
quantized weight stays as it is, gradients pass through it to the adapters below:

    config = calibit.register_lora(peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    model = peft.get_peft_model(model, config)
    ...
    model.save_pretrained(folder)  # the adapters alone
    config = calibit.register_lora(peft.LoraConfig.from_pretrained(folder))
    model = peft.PeftModel.from_pretrained(calibit.load_model(quantized), folder, config=config)
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

from calibit.modules import QuantizedLinear

if TYPE_CHECKING:
    from peft import LoraConfig


def register_lora(config: LoraConfig) -> LoraConfig:
    """Let PEFT put adapters on `calibit.QuantizedLinear`, through its `_register_custom_module`.

    `target_modules` must name layers: PEFT's "all-linear" looks for `torch.nn.Linear` only.

    Args:
        config: of PEFT; changed in place. A configuration read from a folder needs it again: PEFT
            does not store what was registered.

    Returns:
        The configuration.

    Raises:
        ImportError: PEFT is not installed.
        TypeError: another kind of configuration.
        ValueError: settings that need the float weight (DoRA and other variants; initial values
            from a decomposition of the weight).
    """
    if find_spec("peft") is None:
        raise ImportError(
            "[register_lora] expected PEFT to be installed, got none: pip install 'calibit[peft]'"
        )
    layer = importlib.import_module("calibit._lora_layer")
    layer.check(config)
    config._register_custom_module({QuantizedLinear: layer.LoraQuantizedLinear})
    return config
