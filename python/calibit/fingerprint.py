"""A hash of a model's weights, so that every record can say which weights it is about."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import nn

from calibit import structure

_THREADS = 2


def weight_hash(model: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a model's tensors.

    Tensors enter in the order of their names, a tied one once; a quantized layer enters in
    canonical form. The result depends neither on the device nor on the kernels. Tensors are hashed
    on a few threads as they are made, so that only a few canonical copies exist at a time.

    Args:
        model: a model whose weights are in memory.

    Returns:
        64 hexadecimal digits.
    """
    return hash_of(structure.tensors(model))


def hash_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """`weight_hash` of the model that has these tensors, by name, each once."""
    digests: dict[str, bytes] = {}
    waiting: deque[tuple[str, Future[bytes]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, tensor in tensors:
            if len(waiting) > _THREADS:
                done, digest = waiting.popleft()
                digests[done] = digest.result()
            waiting.append((name, pool.submit(_digest, tensor)))
        digests.update((name, digest.result()) for name, digest in waiting)
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(name.encode() + b"\0" + digests[name])
    return whole.hexdigest()


def _digest(tensor: torch.Tensor) -> bytes:
    """SHA-256 of one tensor; its values are not copied where they lie in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()
