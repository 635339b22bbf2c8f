"""Keys and values rounded as they enter a model's cache (`kv8`, `kv4`), fake-quantized.

Each key and each value vector (one token, one key-value head, after rotary embedding) is a group:
codes 0 .. 2^b - 1, value = minimum + scale * code, minimum and scale in float16. This is the
asymmetric quantization by token of KIVI (Liu et al., arXiv 2402.02750, section 3.1) with groups of
the head's width. The rounded values are kept in the model's dtype: they show what such a cache does
to a model, and save no memory.

The seam is the cache's own `update`, which every decoder of transformers calls with the new keys
and values, and whose answer it attends to. A pre-hook on each decoder block hands the block its
cache in a wrapper that rounds first; a block that runs without a cache gets a wrapper around none.
So prompts, decoding, shared contexts and passes without a cache see the same rounded values, and
each is rounded once.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from calibit import structure
from calibit.activations import straight_through

Tensor = torch.Tensor

BITS = (8, 4)
"""Widths of a code."""

_META_BYTES = 4
"""Of a vector: its minimum and its scale, float16."""

_PARAMETERS = ("past_key_values", "layer_past", "past_key_value")
"""What the blocks of transformers call the cache."""

_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class CacheSize:
    """What the cache of a model takes for each token.

    Attributes:
        bits: of a rounded key or value; None where the cache is not rounded.
        bits_per_value: stored bits of a key or value, minimum and scale included.
        bytes_per_token: of all layers.
        bytes_per_token_float: the same with keys and values in the model's dtype.
    """

    bits: int | None
    bits_per_value: float
    bytes_per_token: int
    bytes_per_token_float: int

    @property
    def note(self) -> str:
        """What a report says about a rounded cache."""
        return (
            f"keys and values have {self.bits} bits by token and head, {self.bits_per_value:.2f} "
            f"with minimum and scale: {self.bytes_per_token:,} bytes per token instead of "
            f"{self.bytes_per_token_float:,}, were they stored so; here they are held in floating "
            "point"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def rounded(x: Tensor, bits: int) -> Tensor:
    """Keys or values as a cache of `bits` gives them back.

    Args:
        x: ``[..., D]``, any floating dtype; each vector of D entries is a group.
        bits: 2 to 8.

    Returns:
        ``[..., D]`` in x's dtype: at most half a step (range / (2^bits - 1)) away, and float16's
        rounding of minimum and scale. Its gradient towards `x` is that of the identity.
    """
    values, last = x.detach().float(), 2**bits - 1
    low = values.amin(-1, keepdim=True).clamp(-_LARGEST, _LARGEST).half().float()
    step = (values.amax(-1, keepdim=True) - low) / last
    step = step.clamp(0, _LARGEST).half().float()
    codes = (values - low) / step.clamp(min=torch.finfo(torch.float32).tiny)
    return straight_through(x, low + codes.round().clamp(0, last) * step)


class RoundedCache:
    """A cache as a block sees it: what is written to it is rounded first.

    Args:
        cache: the model's, or None where it runs without one.
        bits: of a key or value.
        config: the model's, which says what an empty cache holds.
    """

    def __init__(self, cache: Any, bits: int, config: Any) -> None:
        self._cache, self._bits, self._config = cache, bits, config
        self._empty: Any = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """All keys and values to attend to, as `transformers.Cache.update`."""
        keys, values = rounded(key_states, self._bits), rounded(value_states, self._bits)
        if self._cache is None:
            return keys, values
        return self._cache.update(keys, values, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._cache is not None:
            return getattr(self._cache, name)
        if self._empty is None:  # answers for none; other layers than attention may write to it
            from transformers import DynamicCache

            self._empty = DynamicCache(config=self._config)
        return getattr(self._empty, name)


@dataclass(frozen=True)
class Rounding:
    """The pre-hook of a decoder block.

    Attributes:
        bits: of a key or value.
        parameter: what the block calls its cache.
        position: of that parameter.
        config: the model's.
    """

    bits: int
    parameter: str
    position: int
    config: Any

    def __call__(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(args) > self.position:
            before, after = args[: self.position], args[self.position + 1 :]
            return (*before, self._wrapped(args[self.position]), *after), dict(kwargs)
        return args, {**kwargs, self.parameter: self._wrapped(kwargs.get(self.parameter))}

    def _wrapped(self, cache: Any) -> RoundedCache:
        return (
            cache
            if isinstance(cache, RoundedCache)
            else RoundedCache(cache, self.bits, self.config)
        )


def check(model: nn.Module) -> None:
    """Refuse a model whose blocks do not take a cache.

    Raises:
        ValueError: no decoder blocks, or blocks without a parameter for the cache.
    """
    for block in _blocks(model):
        _parameter(block)


def round_(model: nn.Module, bits: int) -> list[RemovableHandle]:
    """Let every decoder block of a model round the keys and values it writes to its cache.

    Args:
        model: causal language model of transformers, in place.
        bits: one of `BITS`.

    Returns:
        Handles whose `remove` ends the rounding.

    Raises:
        ValueError: another width, a model whose cache is rounded already, and as `check`.
    """
    if bits not in BITS:
        raise ValueError(f"[kv_cache] expected bits of {BITS}, got {bits!r}")
    if bits_of(model) is not None:
        raise ValueError(
            f"[kv_cache] expected a model with a float cache, got one of {bits_of(model)} bits"
        )
    config = getattr(model, "config", None)
    hooks = [(block, Rounding(bits, *_parameter(block), config)) for block in _blocks(model)]
    return [block.register_forward_pre_hook(hook, with_kwargs=True) for block, hook in hooks]


def bits_of(model: nn.Module) -> int | None:
    """Bits of a model's keys and values; None where they are not rounded."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, Rounding):
                return hook.bits
    return None


def measure(model: Any) -> CacheSize:
    """What the cache of a model takes, from the tensors that one token leaves in it.

    Raises:
        ValueError: the model keeps no keys and values.
    """
    bits = bits_of(model)
    ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    training = model.training
    with torch.no_grad():
        output = model.eval()(input_ids=ids, use_cache=True, return_dict=True)
    model.train(training)
    values = stored = plain = 0
    for tensor in _held(getattr(output, "past_key_values", None)):
        vectors, width = tensor.numel() // tensor.shape[-1], tensor.shape[-1]
        size = width * tensor.itemsize if bits is None else -(-width * bits // 8) + _META_BYTES
        values += tensor.numel()
        stored += vectors * size
        plain += tensor.nbytes
    if not values:
        raise ValueError(
            f"[kv_cache] expected a model that keeps keys and values, got {type(model).__name__}"
        )
    return CacheSize(bits, 8 * stored / values, stored, plain)


def _held(cache: Any) -> Iterator[Tensor]:
    """Keys and values of the layers that have them."""
    for layer in getattr(cache, "layers", ()):
        for name in ("keys", "values"):
            tensor = getattr(layer, name, None)
            if isinstance(tensor, Tensor) and tensor.numel():
                yield tensor


def _blocks(model: nn.Module) -> list[nn.Module]:
    found = structure.blocks(model)
    if found is None:
        raise ValueError(
            f"[kv_cache] expected a model with decoder blocks for kv8 or kv4, got "
            f"{type(model).__name__}"
        )
    return list(found[1])


def _parameter(block: nn.Module) -> tuple[str, int]:
    """Name and position of the cache among the parameters of a block."""
    names = list(inspect.signature(block.forward).parameters)
    for name in _PARAMETERS:
        if name in names:
            return name, names.index(name)
    raise ValueError(
        f"[kv_cache] expected decoder blocks with a parameter {' or '.join(_PARAMETERS)} for kv8 "
        f"or kv4, got {type(block).__name__} without"
    )
