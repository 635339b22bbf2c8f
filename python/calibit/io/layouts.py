"""The foreign layouts that can be read and written: one list."""

from __future__ import annotations

from calibit.io import bitsandbytes, compressed_tensors, gptq
from calibit.io.layout import Reader, Writer

_MODULES = (gptq, compressed_tensors, bitsandbytes)

READERS: dict[str, Reader] = {module.READER.method: module.READER for module in _MODULES}
"""Readers by `quant_method`."""

WRITERS: dict[str, Writer] = {w.name: w for module in _MODULES for w in module.WRITERS}
"""Writers by the name that `--to` and `--export` take."""
