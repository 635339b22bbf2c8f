"""Hashes that say what was evaluated: weights, tokenizer, items, texts."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

_THREADS = 2


def weight_hash(model: nn.Module) -> str:
    """SHA-256 over the tensors of a model in the order of their names: each one's name, dtype,
    shape and content.

    Quantized layers contribute their canonical tensors, so the hash depends neither on the device
    nor on the kernels. Tensors are hashed one by one on a few threads; nothing is copied on a CPU
    but what a layer converts for its `state_dict`.

    Returns:
        Hexadecimal digest.
    """
    digests: dict[str, bytes] = {}
    waiting: deque[Future[tuple[str, bytes]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for named in _named_tensors(model):
            if len(waiting) > _THREADS:  # at most a few converted tensors are alive at once
                digests.update([waiting.popleft().result()])
            waiting.append(pool.submit(_tensor_digest, named))
        digests.update(job.result() for job in waiting)
    total = hashlib.sha256()
    for name in sorted(digests):
        total.update(digests[name])
    return total.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what decides the token ids: the whole pipeline of a fast tokenizer, else
    vocabulary and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content.pop("padding", None)  # settings of the last call, not of the tokenizer
        content.pop("truncation", None)
    else:
        content = {"vocabulary": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
    return text_hash(
        {
            "tokenizer": content,
            "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        }
    )


def text_hash(value: Any) -> str:
    """SHA-256 of a string, or of any JSON value in canonical form."""
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(value.encode("utf-8", errors="surrogatepass")).hexdigest()


def items_hash(items: Iterable[Any]) -> str:
    """SHA-256 over everything that an evaluation takes from its items, in order."""
    return text_hash(
        [
            [
                item.id,
                item.task,
                item.context,
                item.delimiter,
                list(item.choices),
                item.gold,
                dict(item.slices),
            ]
            for item in items
        ]
    )


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of the state, one module's at a time: a quantized layer's canonical copies live only
    while they are hashed."""
    for prefix, module in model.named_modules():
        if next(module.children(), None) is None:
            state: Mapping[str, Any] = module.state_dict()
        else:
            state = {
                **dict(module.named_parameters(recurse=False)),
                **dict(module.named_buffers(recurse=False)),
            }
        for name, tensor in state.items():
            if isinstance(tensor, torch.Tensor):
                yield f"{prefix}.{name}".lstrip("."), tensor


def _tensor_digest(named: tuple[str, torch.Tensor]) -> tuple[str, bytes]:
    name, tensor = named
    plain = tensor.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{name}|{plain.dtype}|{tuple(plain.shape)}|".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return name, digest.digest()
