"""A hash of a model's weights, so that every record can say which weights it is about."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from calibit import structure


def weight_hash(model: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a model's tensors.

    Tensors enter in the order of their names, a tied one once; a quantized layer enters in
    canonical form. The result does not depend on the device.

    Args:
        model: a model whose weights are in memory.

    Returns:
        `"sha256:"` and 64 hexadecimal digits.
    """
    digests = {}
    for name, tensor in structure.tensors(model):
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
        digests[name] = digest.hexdigest()
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(f"{name} {digests[name]}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's values in row-major order, not copied where they already lie so."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
