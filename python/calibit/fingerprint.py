"""A hash of a model's weights, so that every record can say which weights it is about."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

import torch
from torch import nn

from calibit import activations, kv_cache, structure
from calibit.modules import QuantizedLinear

_THREADS = 2


def weight_hash(model: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a model's tensors.

    Tensors enter in the order of their names, a tied one once; a quantized layer enters in
    canonical form. Where inputs of layers or the cache are rounded too, that enters as well. The
    result depends neither on the device nor on the kernels. Tensors are hashed on a few threads as
    they are made, so that only a few canonical copies exist at a time.

    Args:
        model: a model whose weights are in memory.

    Returns:
        64 hexadecimal digits.
    """
    return hash_of(chain(structure.tensors(model), _roundings(model)))


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


def _roundings(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a model rounds beside its weights, as tensors with names that no weight has."""
    bits = kv_cache.bits_of(model)
    if bits is not None:
        yield "[cache bits]", torch.tensor(bits)
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            for option in sorted(activations.OPTIONS & module.scheme.options):
                yield f"{name}.[{option}]", torch.tensor(1)


def _digest(tensor: torch.Tensor) -> bytes:
    """SHA-256 of one tensor; its values are not copied where they lie in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()
