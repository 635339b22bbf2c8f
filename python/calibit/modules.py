"""QuantizedLinear: a linear layer that holds its weight packed and computes with fused kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from calibit import activations, ops
from calibit.schemes import Scheme
from calibit.solver import Factored
from calibit.weight import TENSOR_NAMES, QuantizedWeight, quantize

Tensor = torch.Tensor

_UNPACKED = ("codes", "scales", "zeros", "nested_scales", "nested_codebook", "nested_offset")


class QuantizedLinear(nn.Module):
    """``y = x W^T + bias`` with a quantized W; a drop-in replacement for `torch.nn.Linear`.

    The weight lives in one uint8 buffer, `packed`, in the kernels' layout. `state_dict` yields and
    accepts the canonical tensors (`calibit.weight.TENSOR_NAMES`), bit for bit, whatever was done to
    the module in between: ``.to(device)``, ``.to(dtype)``, ``.half()``, ``deepcopy`` and pickling
    change no code and no scale. The bias stays a parameter and follows dtype changes.

    Attributes:
        in_features, out_features: K and N.
        scheme: how the weight was quantized.
        bits_per_weight, nbytes_codes, nbytes_meta: stored size, metadata counted.
    """

    packed: Tensor

    def __init__(
        self, weight: QuantizedWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Hold a quantized weight.

        Args:
            weight: ``[N, K]``.
            bias: ``[N]`` or None; becomes a parameter.
            dtype: floating dtype that `weight` reports (default: the bias's, else float32).
        """
        super().__init__()
        if bias is not None and bias.shape != (weight.shape[0],):
            raise ValueError(
                f"[QuantizedLinear] expected bias [{weight.shape[0]}], got {list(bias.shape)}"
            )
        self.register_buffer("packed", None)
        self._float_dtype = dtype or (torch.float32 if bias is None else bias.dtype)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self._hold(weight)

    def _hold(self, weight: QuantizedWeight) -> None:
        self.out_features, self.in_features = weight.shape
        self.scheme: Scheme = weight.scheme
        self.bits_per_weight = weight.bits_per_weight
        self.nbytes_codes, self.nbytes_meta = weight.nbytes_codes, weight.nbytes_meta
        self.notes = weight.notes
        self._layout = weight.layout
        self._numbers = tuple(weight.layout.values())
        self._codebook, self._input_order = weight.codebook, weight.input_order
        self.packed = weight.pack()

    @classmethod
    def from_weight(
        cls, weight: QuantizedWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> QuantizedLinear:
        """A layer around an existing quantized weight; arguments as in the constructor."""
        return cls(weight, bias, dtype)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        scheme: str | Scheme,
        *,
        hessian: Tensor | Factored | None = None,
    ) -> QuantizedLinear:
        """Quantize a float layer.

        Args:
            linear: `torch.nn.Linear`, or transformers' Conv1D (GPT-2), whose weight is ``[K, N]``.
            scheme: such as ``"nf4-dq"``.
            hessian: for gptq schemes, as in `calibit.quantize`.

        Raises:
            ValueError: as `calibit.quantize`.
            TypeError: another kind of module.
        """
        weight = float_weight(linear)
        q = quantize(weight, scheme, hessian=hessian)
        bias = getattr(linear, "bias", None)
        return cls(q, bias, weight.dtype).train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]`` in x's dtype; the arithmetic is float32, on an input that
        the scheme may round first (`calibit.activations`)."""
        x = activations.prepare(x, self.scheme)
        if self._input_order is not None:
            x = x.index_select(-1, self._input_order)
        return ops.apply_linear(x, self.packed, self._codebook, self.bias, *self._numbers)

    def quantized_weight(self) -> QuantizedWeight:
        """The weight in canonical form (a copy, unpacked from the kernels' buffer)."""
        unpacked = dict(zip(_UNPACKED, ops.unpack_weight(self.packed, **self._layout), strict=True))
        named: dict[str, Any] = {name: t if t.numel() else None for name, t in unpacked.items()}
        return QuantizedWeight(
            (self.out_features, self.in_features),
            self.scheme,
            codebook=self._codebook,
            input_order=self._input_order,
            notes=self.notes,
            **named,
        )

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The float weight ``[N, K]`` the codes stand for, a new tensor."""
        return self.quantized_weight().dequantize(dtype or self._float_dtype)

    @property
    def weight(self) -> DequantizedWeight:
        """Read-only stand-in for a float weight: its facts are free, its use dequantizes."""
        return DequantizedWeight(self)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, scheme={self.scheme}, "
            f"bits_per_weight={self.bits_per_weight:.3f}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        super()._apply(fn, recurse)
        # The float32 codebook moves with the buffer but must not follow a change of dtype.
        device = self.packed.device
        move = (
            (lambda t: None if t is None else t.to(device))
            if device.type != "meta"
            else lambda t: t
        )
        self._codebook, self._input_order = move(self._codebook), move(self._input_order)
        self._float_dtype = fn(torch.empty(0, dtype=self._float_dtype)).dtype
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, tensor in self.quantized_weight().tensors().items():
            destination[prefix + name] = tensor
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = self.quantized_weight().tensors()
        found = {n: state_dict[prefix + n] for n in TENSOR_NAMES if prefix + n in state_dict}
        bias = state_dict.get(prefix + "bias")
        missing_keys += [prefix + n for n in own if n not in found]
        if self.bias is not None and bias is None:
            missing_keys.append(prefix + "bias")
        if strict:
            known = set(own) | ({"bias"} if self.bias is not None else set())
            unexpected_keys += [
                key
                for key in state_dict
                if key.startswith(prefix) and key[len(prefix) :] not in known
            ]
        if not set(own) <= set(found):
            return
        try:
            self._hold(
                QuantizedWeight.from_tensors(
                    {n: found[n].to(self.packed.device) for n in own},
                    scheme=self.scheme,
                    shape=(self.out_features, self.in_features),
                )
            )
            if self.bias is not None and bias is not None:
                with torch.no_grad():
                    self.bias.copy_(bias)
        except (ValueError, RuntimeError) as error:
            error_msgs.append(f"{prefix.rstrip('.') or 'QuantizedLinear'}: {error}")


class DequantizedWeight:
    """What `QuantizedLinear.weight` returns: facts at no cost, values by dequantization on use.

    Works where a tensor is expected by torch functions, operators and NumPy; every such use makes a
    fresh float copy. Read-only: changing it in place is refused.
    """

    def __init__(self, layer: QuantizedLinear) -> None:
        self._layer = layer

    @property
    def device(self) -> torch.device:
        """Where the packed weight lies."""
        return self._layer.packed.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype the layer stands for."""
        return self._layer._float_dtype

    @property
    def shape(self) -> torch.Size:
        """(N, K)."""
        return torch.Size((self._layer.out_features, self._layer.in_features))

    def size(self, dim: int | None = None) -> torch.Size | int:
        """As `torch.Tensor.size`."""
        return self.shape if dim is None else self.shape[dim]

    def dequantize(self) -> Tensor:
        """The float weight ``[N, K]``."""
        return self._layer.dequantize()

    def requires_grad_(self, requires_grad: bool = True) -> DequantizedWeight:
        """Nothing to do: a quantized weight has no gradient."""
        return self

    def __len__(self) -> int:
        return self._layer.out_features

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        array = self.dequantize().float().numpy()
        return array if dtype is None else array.astype(dtype)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(_READ_ONLY)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.endswith("_"):
            raise TypeError(_READ_ONLY)
        return getattr(self.dequantize(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            raise TypeError(_READ_ONLY)
        args, kwargs = tree_map(_value, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __repr__(self) -> str:
        return f"DequantizedWeight({list(self.shape)}, {self.dtype}, {self._layer.scheme})"


_READ_ONLY = (
    "[QuantizedLinear] the weight is read-only: change a float layer and quantize it again with "
    "QuantizedLinear.from_linear"
)


def _value(item: Any) -> Any:
    """The tensor that a stand-in stands for; anything else as it is."""
    return item.dequantize() if isinstance(item, DequantizedWeight) else item


def _operator(name: str) -> Callable[..., Any]:
    def method(self: DequantizedWeight, *others: Any) -> Any:
        return getattr(self.dequantize(), name)(*map(_value, others))

    method.__name__ = name
    return method


# Python looks operators up on the class, not through __getattr__.
_OPERATORS = """getitem iter neg abs add radd sub rsub mul rmul truediv rtruediv pow matmul rmatmul
eq ne lt le gt ge"""
for _name in _OPERATORS.split():
    setattr(DequantizedWeight, f"__{_name}__", _operator(f"__{_name}__"))


def float_weight(module: nn.Module) -> Tensor:
    """The weight of a float layer as ``[N, K]``: of Linear, or of transformers' Conv1D transposed.

    Raises:
        TypeError: the module is neither.
    """
    if isinstance(module, nn.Linear):
        return module.weight
    if type(module).__name__ == "Conv1D" and getattr(module, "weight", None) is not None:
        return module.weight.t()  # type: ignore[operator]
    raise TypeError(
        "[QuantizedLinear] expected torch.nn.Linear or transformers Conv1D, got "
        f"{type(module).__name__}"
    )


def linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """``x W^T + bias`` on a quantized weight, fused; packs the weight on every call.

    For repeated use build a `QuantizedLinear`, which packs once. Differentiable in `x` and `bias`.

    Args:
        x: ``[..., K]``, float32, bfloat16 or float16.
        weight: ``[N, K]``.
        bias: ``[N]`` or None.

    Returns:
        ``[..., N]`` in x's dtype.
    """
    x = activations.prepare(x, weight.scheme)
    if weight.input_order is not None:
        x = x.index_select(-1, weight.input_order)
    return ops.linear(x, weight.pack(), weight.codebook, bias, **weight.layout)
