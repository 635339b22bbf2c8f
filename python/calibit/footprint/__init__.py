"""What a model costs: bytes of its weights, peak memory, tokens per second."""

from calibit.footprint.memory import (
    Memory,
    PeakMemory,
    bytes_kv,
    measure_memory,
    release_freed_memory,
)
from calibit.footprint.speed import (
    Rate,
    Speed,
    interleaved,
    kernels_of,
    measure_speed,
    versions,
)

__all__ = [
    "Memory",
    "PeakMemory",
    "Rate",
    "Speed",
    "bytes_kv",
    "interleaved",
    "kernels_of",
    "measure_memory",
    "measure_speed",
    "release_freed_memory",
    "versions",
]
