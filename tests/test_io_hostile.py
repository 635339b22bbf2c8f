"""Damaged and hostile checkpoints of other tools: one sentence with file and tensor, no crash, and
never a partial output folder.

Attacks on a safetensors file go to its header, which is 8 bytes of length and then JSON with dtype,
shape and place of each tensor.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import foreign_files
from calibit.io import checkpoints, foreign
from test_io_bitsandbytes import layer4
from test_io_bitsandbytes import section as bitsandbytes_section

LAYER = "model.layers.0.mlp.up_proj"
LAYOUTS: dict[str, tuple[dict[str, Any], Callable[..., Any]]] = {
    "gptq": (
        foreign_files.gptq_section(sym=False, desc_act=True),
        lambda name, n, k, seed: foreign_files.gptq_layer(
            n, k, bits=4, group=32, version="gptq", symmetric=False, seed=seed
        ),
    ),
    "compressed-tensors": (
        foreign_files.packed_section(symmetric=False),
        lambda name, n, k, seed: foreign_files.packed_layer(
            n, k, bits=4, group=32, symmetric=False, seed=seed
        ),
    ),
    "bitsandbytes": (
        bitsandbytes_section(),
        lambda name, n, k, seed: layer4(n, k, seed, block=32, nested=256),
    ),
}
SETTINGS = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", params=LAYOUTS)
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that reads well, of each layout; small, for many readings."""
    section, make = LAYOUTS[request.param]
    folder = tmp_path_factory.mktemp("hostile") / "model"
    model = foreign_files.small_llama(num_hidden_layers=1)
    foreign_files.write_checkpoint(folder, model, section, make)
    foreign.load(folder)
    return folder


def copied(good: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for file in good.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def parts(file: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(file: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def attacked(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of a file; what `change` returns, if anything, replaces it."""
    file = folder / "model.safetensors"
    header, data = parts(file)
    changed = change(header)
    join(file, header if changed is None else changed, data)


def victim(header: dict[str, Any]) -> dict[str, Any]:
    """The entry of some tensor of the layer."""
    return header[min(name for name in header if name.startswith(LAYER))]


def overlap(header: dict[str, Any]) -> None:
    names = sorted(name for name in header if name.startswith(LAYER))
    first, second = header[names[0]], header[names[1]]
    second.update(first)


ATTACKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "overlapping": overlap,
    "beyond the end": lambda h: victim(h).update(data_offsets=[10**9, 10**9 + 8]),
    "backwards": lambda h: victim(h).update(data_offsets=victim(h)["data_offsets"][::-1]),
    "negative offset": lambda h: victim(h).update(data_offsets=[-8, 8]),
    "offsets beyond 64 bits": lambda h: victim(h).update(data_offsets=[0, 2**70]),
    "more elements than bytes": lambda h: victim(h).update(shape=[10**6, 10**6]),
    "product beyond 64 bits": lambda h: victim(h).update(shape=[2**40, 2**40]),
    "negative shape": lambda h: victim(h).update(shape=[-1, -8]),
    "shape of words": lambda h: victim(h).update(shape=["a"]),
    "another dtype": lambda h: victim(h).update(dtype="F64"),
    "no such dtype": lambda h: victim(h).update(dtype="X9"),
    "no shape": lambda h: victim(h).pop("shape") and None,
    "entry is a list": lambda h: h.update({LAYER: []}),
    "no object": lambda h: b"[1, 2]",
    "no JSON": lambda h: b"{" * 50,
    "deep JSON": lambda h: b"[" * 100_000,
    "not UTF-8": lambda h: b'{"\xff": 1}',
    "nothing": lambda h: b"",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_header_is_refused(good: Path, tmp_path: Path, attack: str) -> None:
    folder = copied(good, tmp_path / "model")
    attacked(folder, ATTACKS[attack])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        checkpoints.convert(folder, tmp_path / "out", "calibit")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**62, 2**64 - 1])
def test_length_of_the_header_that_is_a_lie(good: Path, tmp_path: Path, length: int) -> None:
    folder = copied(good, tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        checkpoints.load(folder)


def test_names_that_lead_elsewhere_are_only_names(good: Path, tmp_path: Path) -> None:
    folder = copied(good, tmp_path / "model")
    file = folder / "model.safetensors"
    header, data = parts(file)
    header["../../evil.weight"] = {
        "dtype": "U8", "shape": [4], "data_offsets": [len(data), len(data) + 4],
    }  # fmt: skip
    join(file, header, data + bytes(4))
    with pytest.raises(ValueError, match=r"got 1 more: '\.\./\.\./evil\.weight' in model"):
        checkpoints.convert(folder, tmp_path / "out", "calibit")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@SETTINGS
@given(data=st.data())
def test_truncated_anywhere(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = copied(good, tmp_path / "model")
    file = folder / "model.safetensors"
    raw = (good / file.name).read_bytes()
    file.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        checkpoints.load(folder)


DTYPES = st.sampled_from(["F16", "BF16", "F32", "F64", "I8", "U8", "I16", "I32", "I64", "BOOL"])
SHAPES = st.lists(st.integers(0, 200), max_size=3)


@SETTINGS
@given(data=st.data())
def test_header_fuzz(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Any dtype, shape or place for any tensor: refused with file, or the values did not change."""
    folder = copied(good, tmp_path / "model")
    header, _ = parts(folder / "model.safetensors")
    name = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
    entry = header[name]
    entry["dtype"] = data.draw(st.just(entry["dtype"]) | DTYPES)
    entry["shape"] = data.draw(st.just(entry["shape"]) | st.permutations(entry["shape"]) | SHAPES)
    shift = data.draw(st.integers(-64, 64))
    entry["data_offsets"] = [offset + shift for offset in entry["data_offsets"]]
    attacked(folder, lambda _: header)
    try:
        read = checkpoints.load(folder)
    except ValueError as error:
        assert "model.safetensors" in str(error) or str(folder) in str(error)
        return
    original = checkpoints.load(good)
    for key, tensor in original.state_dict().items():
        if torch.is_floating_point(tensor) and key != name:
            assert torch.equal(read.state_dict()[key].float(), tensor.float()) or key in name


@SETTINGS
@given(data=st.data())
def test_any_byte_of_the_header(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    """One byte of the header changed: a ValueError, or a model of the right shape."""
    folder = copied(good, tmp_path / "model")
    file = folder / "model.safetensors"
    raw = bytearray((good / file.name).read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    raw[data.draw(st.integers(0, 7 + length))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(raw))
    try:
        checkpoints.load(folder)
    except ValueError as error:
        assert "model.safetensors" in str(error) or str(folder) in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def leaves(content: Any, trail: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a JSON object."""
    found = [trail] if trail else []
    for key in content if isinstance(content, dict) else ():
        found += leaves(content[key], (*trail, key))
    return found


@SETTINGS
@given(data=st.data())
def test_any_value_in_the_section(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Anything in the place of any setting: a ValueError that names a file, or a model."""
    folder = copied(good, tmp_path / "model")
    config = json.loads((good / "config.json").read_text())
    trail = data.draw(st.sampled_from(leaves(config["quantization_config"])))
    place = config["quantization_config"]
    for key in trail[:-1]:
        place = place[key]
    place[trail[-1]] = data.draw(JSON)
    (folder / "config.json").write_text(json.dumps(config))
    try:
        checkpoints.load(folder)
    except ValueError as error:
        assert "config.json" in str(error) or "model.safetensors" in str(error)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '"gptq"', "[" * 100_000, "\x00", '{"model_type": "llama"']
)
def test_configuration_that_is_no_object(good: Path, tmp_path: Path, content: str) -> None:
    folder = copied(good, tmp_path / "model")
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        checkpoints.convert(folder, tmp_path / "out", "calibit")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_index_is_checked(good: Path, tmp_path: Path) -> None:
    folder = copied(good, tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    for content in ({"weight_map": {"x": "../model.safetensors"}}, {"weight_map": 1}, []):
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="index"):
            checkpoints.load(folder)
    index.write_text(json.dumps({"weight_map": {"x": "other.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"expected other\.safetensors"):
        checkpoints.load(folder)


def test_pickled_weights_are_not_read(good: Path, tmp_path: Path) -> None:
    """A folder with pytorch_model.bin only: nothing that runs code is opened."""
    folder = copied(good, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors"):
        checkpoints.load(folder)
