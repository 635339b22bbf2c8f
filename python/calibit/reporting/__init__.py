"""Reports: the terminal table, the self-contained page, the figures, the progress of a job."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibit.reporting.html import write_comparison, write_report
    from calibit.reporting.terminal import audit_table

_LAZY = {"audit_table": "terminal", "write_comparison": "html", "write_report": "html"}

__all__ = ["audit_table", "write_comparison", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'calibit.reporting' has no attribute '{name}'")
    return getattr(import_module(f"calibit.reporting.{_LAZY[name]}"), name)
