"""GPTQ layers against GPTQModel, which packs and unpacks them with code of its own.

Its requirements name a newer torch than calibit's; it works without them installed by
`pip install --no-deps gptqmodel logbar device-smi tokenicer defuser threadpoolctl pypcre`.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import calibit
import foreign_files
from calibit.io import export
from foreign_files import check_same

kernels = pytest.importorskip(
    "gptqmodel.nn_modules.qlinear.torch", reason="gptqmodel is not installed"
)
VERSIONS = {"gptq": "GPTQ", "gptq_v2": "GPTQ_V2", "gptq_p": "GPTQ_P"}


def empty(n: int, k: int, bits: int, group: int, version: str, symmetric: bool) -> Any:
    from gptqmodel.quantization import FORMAT

    return kernels.TorchLinear(
        bits=bits, group_size=group, sym=symmetric, desc_act=True, in_features=k, out_features=n,
        bias=False, format=getattr(FORMAT, VERSIONS[version]), register_buffers=True,
    )  # fmt: skip


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("ordered", [False, True], ids=["plain", "desc_act"])
@pytest.mark.parametrize(
    ("bits", "version"),
    [(b, v) for v in VERSIONS for b in range(2, 9) if v == "gptq_p" or b in (2, 3, 4, 8)],
)
def test_layers_that_it_packs(
    tmp_path: Path, bits: int, version: str, ordered: bool, symmetric: bool
) -> None:
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    def layer(name: str, n: int, k: int, seed: int) -> Any:
        index = np.arange(k) // 32
        if ordered:
            index = np.random.default_rng(k).permutation(index)
        zeros = np.random.default_rng(seed).integers(1, 2**bits, (n, k // 32))
        if symmetric:
            zeros = np.full((n, k // 32), 2 ** (bits - 1))
        # float32 weights on the grid: packing rounds (w + s z) / s, which is a whole number.
        made, weight = foreign_files.gptq_layer(
            n, k, bits=bits, group=32, version="gptq", symmetric=symmetric, group_index=index,
            seed=seed, zeros=zeros,
        )  # fmt: skip
        linear = nn.Linear(k, n, bias=False)
        linear.weight.data = weight
        module = empty(n, k, bits, 32, version, symmetric)
        module.pack_original(
            linear,
            made["scales"].t().float(),
            torch.from_numpy(zeros).float(),
            torch.from_numpy(index.astype(np.int32)),
        )
        if version == "gptq":
            convert_gptq_v2_to_v1_format_module(
                module, SimpleNamespace(bits=bits, pack_dtype=torch.int32)
            )
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}, weight

    section = foreign_files.gptq_section(
        bits=bits, checkpoint_format=version, sym=symmetric, desc_act=ordered
    )
    model = foreign_files.small_llama(num_hidden_layers=1)
    weights = foreign_files.write_checkpoint(tmp_path / "model", model, section, layer)
    check_same(tmp_path / "model", model, weights)


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize(
    "scheme", ["int4-g32", "int4-g32-asym", "int8-row", "int3-g32", "int2-g16"]
)
def test_layers_that_it_unpacks(tmp_path: Path, scheme: str, version: str) -> None:
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    model = foreign_files.small_llama(num_hidden_layers=1)
    calibit.quantize_model(model, scheme)
    export.save(model, tmp_path / "model", version)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    for name, layer in model.named_modules():
        if not isinstance(layer, calibit.QuantizedLinear):
            continue
        q = layer.quantized_weight()
        (n, k), group = q.shape, q.scheme.group or -1
        module = empty(n, k, q.scheme.bits, group, version, q.zeros is None)
        parts = {key: stored[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales", "g_idx")}
        module.load_state_dict(parts)
        if version == "gptq":
            convert_gptq_v1_to_v2_format_module(module, q.scheme.bits, torch.int32)
        theirs = module.eval().dequantize_weight().t()
        # A float16 scale times an integer, rounded to float16 once.
        assert torch.equal(theirs.float(), layer.dequantize().half().float()), name
