"""calibit: quantize language models and measure, item by item, what that did to them.

>>> import torch, calibit
>>> q = calibit.quantize(torch.randn(8, 64), "nf4")
>>> round(q.bits_per_weight, 1)
5.5
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch  # noqa: F401  (first: it brings libtorch, which the extension links)

from calibit import _C
from calibit.modules import QuantizedLinear, linear
from calibit.registry import Format, formats
from calibit.schemes import Scheme
from calibit.weight import QuantizedWeight, quantize

__version__: str = _C.build_info()["version"]

if TYPE_CHECKING:
    from calibit.auditing import audit
    from calibit.comparison import compare
    from calibit.evaluation import evaluate
    from calibit.quantization.model import quantize_model
    from calibit.runs import Run

# Imported when first used, so that `import calibit` costs milliseconds over torch.
_LAZY = {
    "Run": "calibit.runs",
    "audit": "calibit.auditing",
    "compare": "calibit.comparison",
    "evaluate": "calibit.evaluation",
    "measures": "calibit.measures",
    "quantize_model": "calibit.quantization.model",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'calibit' has no attribute '{name}'")
    module = import_module(_LAZY[name])
    return module if _LAZY[name].endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))


__all__ = [
    "Format",
    "QuantizedLinear",
    "QuantizedWeight",
    "Run",
    "Scheme",
    "audit",
    "compare",
    "evaluate",
    "formats",
    "linear",
    "measures",
    "quantize",
    "quantize_model",
]
