"""calibit: quantize language models and measure, item by item, what that did to them.

>>> import torch, calibit
>>> q = calibit.quantize(torch.randn(8, 64), "nf4")
>>> round(q.bits_per_weight, 1)
5.5
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibit import _C as _C
    from calibit.adapters import register_lora
    from calibit.attribution import attribute_model
    from calibit.auditing import audit
    from calibit.comparison import compare
    from calibit.evaluation import evaluate
    from calibit.io.checkpoints import convert as convert_checkpoint
    from calibit.io.checkpoints import load as load_model
    from calibit.io.export import save as export_model
    from calibit.io.native import save as save_model
    from calibit.modules import QuantizedLinear, linear
    from calibit.next_token import head_confidence, token_confidence
    from calibit.quantization.finetuning import finetune_model
    from calibit.quantization.model import quantize_model
    from calibit.recalibration import Recalibration
    from calibit.registry import Format, formats
    from calibit.runs import Run
    from calibit.schemes import Scheme
    from calibit.weight import QuantizedWeight, quantize

    __version__: str

# Imported when first used: `import calibit` costs milliseconds over torch, and `calibit --help`
# answers without torch.
_LAZY = {
    "Format": "calibit.registry",
    "QuantizedLinear": "calibit.modules",
    "QuantizedWeight": "calibit.weight",
    "Recalibration": "calibit.recalibration",
    "Run": "calibit.runs",
    "Scheme": "calibit.schemes",
    "attribute_model": "calibit.attribution",
    "audit": "calibit.auditing",
    "compare": "calibit.comparison",
    "convert_checkpoint": "calibit.io.checkpoints:convert",
    "evaluate": "calibit.evaluation",
    "export_model": "calibit.io.export:save",
    "finetune_model": "calibit.quantization.finetuning",
    "formats": "calibit.registry",
    "head_confidence": "calibit.next_token",
    "linear": "calibit.modules",
    "load_model": "calibit.io.checkpoints:load",
    "measures": "calibit.measures",
    "quantize": "calibit.weight",
    "quantize_model": "calibit.quantization.model",
    "register_lora": "calibit.adapters",
    "save_model": "calibit.io.native:save",
    "token_confidence": "calibit.next_token",
}


def __getattr__(name: str) -> Any:
    if name in ("_C", "__version__"):
        import torch  # noqa: F401  (first: it brings libtorch, which the extension links)

        extension = import_module("calibit._C")
        return extension if name == "_C" else extension.build_info()["version"]
    if name not in _LAZY:
        raise AttributeError(f"module 'calibit' has no attribute '{name}'")
    where, _, inside = _LAZY[name].partition(":")
    module = import_module(where)
    return module if where.endswith(f".{name}") else getattr(module, inside or name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))


__all__ = [
    "Format",
    "QuantizedLinear",
    "QuantizedWeight",
    "Recalibration",
    "Run",
    "Scheme",
    "attribute_model",
    "audit",
    "compare",
    "convert_checkpoint",
    "evaluate",
    "export_model",
    "finetune_model",
    "formats",
    "head_confidence",
    "linear",
    "load_model",
    "measures",
    "quantize",
    "quantize_model",
    "register_lora",
    "save_model",
    "token_confidence",
]

if "torch" in sys.modules:  # then torch.ops.calibit is wanted at once, and cheap
    import_module("calibit.modules")
