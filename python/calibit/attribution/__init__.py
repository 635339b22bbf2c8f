"""Which layer did it, and what the bits should be spent on: attribution of a scheme's damage to
blocks or layers, and a plan of schemes under a budget."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibit.attribution.driver import attribute_model
    from calibit.attribution.result import Attributed

_LAZY = {"Attributed": "result", "attribute_model": "driver"}

__all__ = ["Attributed", "attribute_model"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'calibit.attribution' has no attribute '{name}'")
    return getattr(import_module(f"calibit.attribution.{_LAZY[name]}"), name)
