"""The registry against tables typed from the specifications, and scheme strings."""

from __future__ import annotations

import numpy as np
import pytest

import calibit
import reference
from calibit import schemes


@pytest.mark.parametrize("name", reference.GOLDEN_CODEBOOKS)
def test_codebook_equals_the_published_table(name: str) -> None:
    golden = np.array(reference.GOLDEN_CODEBOOKS[name], np.float32)
    built = np.array(calibit.formats()[name].codebook, np.float32)
    assert (built == golden).all()
    assert (np.signbit(built) == np.signbit(golden)).all()


def test_registry_holds_the_integer_formats() -> None:
    integers = {n: f for n, f in calibit.formats().items() if f.is_integer}
    assert {n: f.bits for n, f in integers.items()} == {f"int{b}": b for b in range(2, 9)}
    assert {f.scale_type for f in integers.values()} == {"f16"}


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("nf4", "nf4"),
        ("NF4-g64", "nf4"),
        ("nf4-g32", "nf4-g32"),
        ("dq-fp4", "fp4-dq"),
        ("int8", "int8-g128"),
        ("g128-int4-gptq", "gptq-int4-g128"),
        ("int4-fzero-g32", "int4-g32-fzero"),
        ("int4-asym-fzero-g32", "int4-g32-fzero"),
        ("int4-row", "int4-row"),
        ("actorder-gptq-nf4-dq", "gptq-nf4-dq-actorder"),
        ("bf16", "bf16"),
    ],
)
def test_scheme_is_parsed_in_any_order_and_printed_in_one(text: str, canonical: str) -> None:
    assert str(schemes.parse(text)) == canonical
    assert schemes.parse(canonical) == schemes.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nf5", r"unknown token 'nf5'.*did you mean 'nf4'.*known: gptq, gptaq, nf4, fp4"),
        ("", r"expected a format"),
        ("gptq", r"expected a format"),
        ("nf4-int4", r"expected one format"),
        ("int4-g32-g64", r"expected one group"),
        ("nf4-asym", r"integer format"),
        ("int4-dq", r"dq needs"),
        ("nf4-asym-fzero", r"integer format"),
        ("int4--g32", r"single hyphens, got 'int4--g32'"),
        ("nf4-", r"single hyphens"),
        ("-nf4", r"single hyphens"),
        ("my.txt-", r"single hyphens"),
        ("int4-asym-asym", r"expected 'asym' once"),
        ("int4-int4", r"expected 'int4' once"),
        ("int4-actorder", r"option of the solvers gptq and gptaq"),
        ("bf16-g64", r"no other token"),
        ("mxfp4-g64", r"groups of 32"),
        ("int4-g12", r"multiple of 8"),
    ],
)
def test_scheme_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schemes.parse(text)


@pytest.mark.parametrize("value", [None, 4, ["nf4"]])
def test_scheme_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"\[scheme\] expected a string such as 'nf4' or a Scheme"):
        schemes.parse(value)  # type: ignore[arg-type]


def test_codebook_file_that_is_not_text_is_named(tmp_path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"-1 1 # \xe9")
    with pytest.raises(ValueError, match=r"UTF-8 text in '.*latin\.txt', got byte 0xe9"):
        schemes.parse(str(path))


def test_codebook_file_is_a_format(tmp_path) -> None:
    path = tmp_path / "my-book.txt"
    path.write_text("# three bits\n-1, -0.5 -0.25 0\n0.1 0.3 0.6 1\n")
    scheme = schemes.parse(f"{path}-g32-dq")
    assert scheme.bits == 3 and scheme.group == 32 and scheme.options == {"dq"}
    assert schemes.parse(str(scheme)) == scheme
    w = np.random.default_rng(0).normal(size=(5, 70)).astype(np.float32)
    q = calibit.quantize(w, f"{path}-g32")
    want = reference.quantize(w, 3, 32, codebook=scheme.weight_format.codebook)
    assert (reference.unstream(q.codes.numpy(), 70, 3) == want.codes).all()


def test_codebook_file_is_read_once(tmp_path) -> None:
    """What was quantized with it does not need it any longer."""
    path = tmp_path / "book.txt"
    path.write_text("-1 -0.3 0.1 1")
    w = np.random.default_rng(0).normal(size=(5, 70)).astype(np.float32)
    q = calibit.quantize(w, f"{path}-g32")
    layer = calibit.QuantizedLinear.from_weight(q)
    want = q.dequantize()
    stored, scheme = q.tensors(), str(q.scheme)
    for change in (lambda: path.write_text("0 1"), path.unlink):
        change()
        assert q.scheme.bits == 2 and (q.dequantize() == want).all()
        assert (layer.quantized_weight().dequantize() == want).all()
        again = calibit.QuantizedWeight.from_tensors(stored, scheme=scheme, shape=(5, 70))
        assert again.scheme == q.scheme and (again.dequantize() == want).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 2 3", "2, 4, 8 or 16"),
        ("1 x", "expected numbers"),
        ("0 1 1 2", "distinct"),
        ("0 1 1e-46 2", "distinct"),  # 0 in float32
        ("0 1 1e39 2", "finite"),  # Inf in float32
    ],
)
def test_codebook_file_refuses(tmp_path, content: str, message: str) -> None:
    path = tmp_path / "book.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        schemes.parse(str(path))
    with pytest.raises(ValueError, match="cannot read"):
        schemes.parse(str(tmp_path / "absent.txt"))
