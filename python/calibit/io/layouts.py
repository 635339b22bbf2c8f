"""The foreign layouts that can be read and written: one list."""

from __future__ import annotations

from calibit.io import gptq
from calibit.io.layout import Reader, Writer

READERS: dict[str, Reader] = {module.READER.method: module.READER for module in (gptq,)}
"""Readers by `quant_method`."""

WRITERS: dict[str, Writer] = {w.name: w for module in (gptq,) for w in module.WRITERS}
"""Writers by the name that `--to` and `--export` take."""
