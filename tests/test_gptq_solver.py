"""The column solver on arrays: against the float64 definition, for every format and option."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import calibit
import reference
from calibit import _C, ops, schemes
from calibit.solver import factor
from calibit.weight import solve

TABLES = [k["name"] for k in _C.kernels() if k["supported"]]
N, K = 50, 72  # rows: a full tile of 48 and a rest; columns: no power of two


def weight(n: int = N, k: int = K, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, k)) * 0.05).astype(np.float32)


def hessian(k: int = K, seed: int = 1) -> np.ndarray:
    """Correlated inputs of very different size, as a model has them."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(3 * k, k)) * np.exp(random.normal(size=k)) + random.normal(
        size=(3 * k, 1)
    )
    return x.T @ x


def rule_of(scheme: schemes.Scheme) -> reference.Rule:
    f = scheme.weight_format
    zero = "u8" if "asym" in scheme.options else "f32" if "fzero" in scheme.options else "none"
    book = None if f.codebook is None else list(f.codebook)
    return reference.Rule(f.bits, zero, book, "mse" in scheme.options)


def expected(w: np.ndarray, h: np.ndarray, scheme: schemes.Scheme) -> np.ndarray:
    """The definition's result for a scheme."""
    rule, order, fixed = rule_of(scheme), None, None
    group = scheme.group if scheme.group > 0 else w.shape[1]
    if "actorder" in scheme.options:
        order = np.argsort(-np.diag(h), kind="stable")
    if scheme.options & {"dq"} or scheme.group == schemes.TENSOR:
        order = np.arange(w.shape[1]) if order is None else order  # scales from the original
        fixed = stored_scales(calibit.quantize(w, scheme.nearest))
    return reference.column_solver(w, h, rule, group, order=order, fixed=fixed)


def stored_scales(q: calibit.QuantizedWeight) -> np.ndarray:
    """Scales [N, G] of a quantized weight in float64."""
    if q.nested_scales is None:
        return q.scales.double().numpy()
    assert q.nested_codebook is not None and q.nested_offset is not None
    block = torch.arange(q.scales.numel()).reshape(q.scales.shape) // 256
    values = q.nested_codebook[q.scales.long()] * q.nested_scales[block] + q.nested_offset
    return values.double().numpy()


SCHEMES = [
    *(f"gptq-int{bits}-g24{option}" for bits in range(2, 9) for option in ("", "-asym", "-fzero")),
    "gptq-int4-g8", "gptq-int4-g64", "gptq-int4-row", "gptq-int4-g128", "gptq-int4-tensor",
    "gptq-nf4", "gptq-nf4-g16", "gptq-nf4-row", "gptq-fp4-g32", "gptq-nf4-dq", "gptq-fp4-g16-dq",
    "gptq-int4-g24-mse", "gptq-int3-g24-asym-mse", "gptq-int4-row-fzero-mse", "gptq-nf4-g24-mse",
    "gptq-int4-g24-actorder", "gptq-int4-g24-asym-actorder", "gptq-nf4-g24-actorder",
    "gptq-nf4-g24-dq-actorder", "gptq-int4-g24-actorder-mse", "gptq-nf4-row-actorder",
]  # fmt: skip


@pytest.mark.parametrize("text", SCHEMES)
def test_loss_is_that_of_the_definition_and_not_above_nearest(text: str) -> None:
    scheme, w, h = schemes.parse(text), weight(), hessian()
    q = calibit.quantize(w, scheme, hessian=torch.from_numpy(h))
    loss = reference.proxy_loss(q.dequantize().double().numpy() - w, h)
    want = reference.proxy_loss(expected(w, h, scheme) - w, h)
    # float32 against float64: one weight in 1e5 lies so close to a boundary that it may round the
    # other way, which moves the loss of its row alone.
    assert q.scheme == scheme and loss == pytest.approx(want, rel=1e-4)
    nearest = calibit.quantize(w, scheme.nearest).dequantize().double().numpy()
    assert loss < reference.proxy_loss(nearest - w, h)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 8), (47, 17), (49, 33), (97, 31), (3, 130)])
def test_sizes_with_tails(shape: tuple[int, int]) -> None:
    w, h = weight(*shape), hessian(shape[1])
    for text in ("gptq-int4-g16", "gptq-nf4-g8-actorder"):
        scheme = schemes.parse(text)
        q = calibit.quantize(w, scheme, hessian=torch.from_numpy(h))
        if q.scheme == scheme:  # one column leaves nothing to compensate
            want = reference.proxy_loss(expected(w, h, scheme) - w, h)
            loss = reference.proxy_loss(q.dequantize().double().numpy() - w, h)
            assert loss == pytest.approx(want, rel=1e-4)


def test_power_of_two_scales_lower_the_loss_too() -> None:
    w, h = weight(), hessian()
    q = calibit.quantize(w, "gptq-mxfp4", hessian=torch.from_numpy(h))
    nearest = calibit.quantize(w, "mxfp4").dequantize().double().numpy()
    loss = reference.proxy_loss(q.dequantize().double().numpy() - w, h)
    assert q.scheme.solver == "gptq" and loss < 0.8 * reference.proxy_loss(nearest - w, h)


def test_any_codebook_sorted_or_not(tmp_path: Path) -> None:
    """An unsorted file gives the values of the sorted one; only the codes are other numbers."""
    values = [-1.0, -0.6, -0.25, -0.1, 0.05, 0.2, 0.5, 1.3]
    w, h = weight(), torch.from_numpy(hessian())
    results = []
    for name, listed in (("sorted", values), ("mixed", values[::-2] + values[-2::-2])):
        path = tmp_path / f"{name}.txt"
        path.write_text(" ".join(map(str, listed)))
        scheme = schemes.parse(f"gptq-{path}-g24")
        q = calibit.quantize(w, scheme, hessian=h)
        want = reference.proxy_loss(expected(w, h.numpy(), scheme) - w, h.numpy())
        got = reference.proxy_loss(q.dequantize().double().numpy() - w, h.numpy())
        assert got == pytest.approx(want, rel=1e-4)
        results.append(q)
    assert torch.equal(results[0].dequantize(), results[1].dequantize())
    assert not torch.equal(results[0].codes, results[1].codes)


def test_group_longer_than_a_row_is_the_row() -> None:
    w, h = weight(), torch.from_numpy(hessian())
    long, row = (calibit.quantize(w, s, hessian=h) for s in ("gptq-int4-g1024", "gptq-int4-row"))
    assert long.scales.shape == (N, 1) and torch.equal(long.codes, row.codes)


def test_scales_come_from_the_updated_weights_or_are_fixed_first() -> None:
    w, h = weight(), torch.from_numpy(hessian())
    first = calibit.quantize(w, "int4-g24").scales
    updated = calibit.quantize(w, "gptq-int4-g24", hessian=h).scales
    fixed = calibit.quantize(w, "gptq-int4-g24-actorder", hessian=h).scales
    assert torch.equal(updated[:, 0], first[:, 0]) and torch.equal(fixed, first)
    assert float((updated[:, 1:] != first[:, 1:]).float().mean()) > 0.5


def same(got: tuple[np.ndarray | None, ...], want: tuple[np.ndarray | None, ...]) -> bool:
    """Equal arrays, absent ones in the same places."""
    pairs = zip(got, want, strict=True)
    return all(a is b is None or np.array_equal(a, b) for a, b in pairs)  # type: ignore[arg-type]


# --- clip search --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["int4-g24", "int2-g24-asym", "int3-row-fzero", "nf4-g24", "fp4"])
def test_clip_search_of_nearest_rounding_finds_the_smallest_error(text: str) -> None:
    w = weight(20)
    scheme = schemes.parse(f"{text}-mse")
    rule = rule_of(scheme)
    q = calibit.quantize(w, scheme).dequantize().double().numpy()
    for s in reference.column_groups(K, scheme.group or K):
        for row, got in zip(w[:, s].astype(np.float64), q[:, s], strict=True):
            best = rule.round(row, *rule.fit(row))[1]
            errors = [(np.abs(v - row) ** 2.4).sum() for v in (got, best)]
            # Candidates that are equally good to float32 may change places.
            assert errors[0] <= errors[1] * (1 + 1e-5) + 1e-30


@pytest.mark.parametrize("text", ["int4-g24", "int3-g24-asym", "int4-row-fzero", "nf4-g24"])
def test_clip_search_with_importance_finds_the_smallest_weighted_error(text: str) -> None:
    w, importance = weight(20), np.exp(3 * np.random.default_rng(2).normal(size=K))
    scheme = schemes.parse(f"{text}-mse")
    rule, f = rule_of(scheme), scheme.weight_format
    numbers = (f.bits, max(scheme.group, 0), ops.scale_kind(f.scale_type, rule.zero))
    book = None if f.codebook is None else np.array(f.codebook, np.float32)
    weights = importance.astype(np.float32)
    _, scales, zeros = _C.quantize(w, *numbers, codebook=book, clip=True, importance=weights)
    for g, s in enumerate(reference.column_groups(K, scheme.group or K)):
        for i, row in enumerate(w[:, s].astype(np.float64)):
            zero = 2.0 ** (f.bits - 1) if zeros is None else float(zeros[i, g])
            found = (float(scales[i, g]), zero)
            got, best = (
                (rule.round(row, *fit)[1] - row) ** 2 @ importance[s]
                for fit in (found, rule.fit(row, importance[s]))
            )
            # Candidates that are equally good to float32 may change places.
            assert got <= best * (1 + 1e-4) + 1e-30


def test_importance_is_what_an_error_costs_at_its_turn() -> None:
    h = torch.from_numpy(hessian())
    for ordered in (False, True):
        factored = factor(h, activation_order=ordered)
        order = np.arange(K) if factored.order is None else factored.order.numpy()
        damped = h.numpy() + 0.01 * np.diag(h.numpy()).mean() * np.eye(K)
        for t in (0, 5, K - 1):
            inverse = np.linalg.inv(damped[np.ix_(order[t:], order[t:])])
            cost = 1 / (inverse[0, 0] * float((1 / factored.upper.diagonal() ** 2).max()))
            assert float(factored.importance[order[t]]) == pytest.approx(cost, rel=1e-5)


def test_clip_search_helps_few_bits_most() -> None:
    w = weight(200, 128)
    for bits, gain in ((2, 0.7), (3, 0.9), (4, 0.97)):
        plain, clipped = (
            float(
                (calibit.quantize(w, f"int{bits}-row{o}").dequantize() - torch.from_numpy(w)).norm()
            )
            for o in ("", "-mse")
        )
        assert clipped < gain * plain


def test_power_in_the_search_is_2_4() -> None:
    """Two weights, one of them large: the share at which the loss is least has a closed form."""
    group = np.zeros((1, 16), np.float32)
    group[0, :15], group[0, 15] = 0.3, 1.0
    scheme = schemes.parse("int2-g16-mse")
    q = calibit.quantize(group, scheme)
    rule = reference.Rule(2, clip=True)
    assert float(q.scales[0, 0]) == pytest.approx(
        rule.fit(group[0].astype(np.float64))[0], rel=1e-6
    )


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("name", "zero"), [("int3", "u8"), ("int4", "f32"), ("nf4", "none")])
def test_clip_search_gives_the_same_bits_in_every_table(table: str, name: str, zero: str) -> None:
    f = calibit.formats()[name]
    book = None if f.codebook is None else np.array(f.codebook, np.float32)
    for k, group in ((72, 24), (131, 0), (130, 32)):
        arguments = (weight(9, k), f.bits, group, ops.scale_kind(f.scale_type, zero))
        for importance in (None, np.random.default_rng(k).random(k, np.float32)):
            options = {"codebook": book, "clip": True, "importance": importance}
            got = _C.quantize(*arguments, **options, kernels=table)
            assert same(got, _C.quantize(*arguments, **options, kernels="portable"))


# --- the operator -------------------------------------------------------------------------------


def upper(h: np.ndarray) -> np.ndarray:
    return factor(torch.from_numpy(h)).upper.float().numpy()


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("bits", "group", "scale", "zero", "codebook", "clip"),
    [
        (4, 24, "f16", "none", None, False),
        (3, 0, "f16", "u8", None, False),
        (5, 40, "f16", "f32", None, True),
        (4, 32, "f32", "none", "nf4", True),
        (4, 5, "f32", "none", "fp4", False),  # groups that are no multiple of a panel
    ],
)
def test_every_table_gives_the_same_codes(
    table: str, bits: int, group: int, scale: str, zero: str, codebook: str | None, clip: bool
) -> None:
    book = codebook and np.array(calibit.formats()[codebook].codebook, np.float32)
    kind = ops.scale_kind(scale, zero)
    for n, k in ((1, 8), (50, 131), (97, 40)):
        arguments = (weight(n, k), upper(hessian(k)), bits, group, kind)
        importance = np.random.default_rng(k).random(k, np.float32)
        for options in ({}, {"importance": importance}) if clip else ({},):
            options |= {"codebook": book, "clip": clip}
            got = _C.gptq_solve(*arguments, **options, kernels=table)
            assert same(got, _C.gptq_solve(*arguments, **options, kernels="portable"))


def test_codes_do_not_depend_on_threads_or_runs() -> None:
    w, h = weight(300, 200), torch.from_numpy(hessian(200))
    factored = factor(h, activation_order=True)
    plain = factor(h)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(
                [solve(w, "gptq-int4-g32-asym-mse", plain).weight,
                 solve(w, "gptq-nf4-actorder", factored).weight]
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for q, first in zip(result, results[0], strict=True):
            assert all(torch.equal(t, first.tensors()[name]) for name, t in q.tensors().items())


def test_rows_are_independent() -> None:
    w, u = weight(100), upper(hessian())
    kind = ops.scale_kind("f16")
    whole = _C.gptq_solve(w, u, 4, 24, kind)
    part = _C.gptq_solve(w[60:77], u, 4, 24, kind)
    assert same(tuple(a if a is None else a[60:77] for a in whole), part)


def test_weights_that_are_cut_off_are_counted() -> None:
    """With U = 1 nothing is passed on, and with given scales it is plain what lies outside."""
    w = np.zeros((2, 16), np.float32)
    w[0, :5] = [7.4, 7.6, -8.4, -8.6, 30]
    w[1, :4] = [1.0, 0.9, -1.2, -1.1]
    eye = np.eye(16, dtype=np.float32)
    ones = np.ones((2, 1), np.float16)
    *_, cut = _C.gptq_solve(w, eye, 4, 0, ops.scale_kind("f16"), scales=ones)
    assert cut.tolist() == [3, 0]  # 7.6, -8.6 and 30 are off by more than half a step
    book = np.array(calibit.formats()["nf4"].codebook, np.float32)
    *_, cut = _C.gptq_solve(
        w, eye, 4, 0, ops.scale_kind("f32"), codebook=book, scales=ones.astype(np.float32)
    )
    assert cut.tolist() == [5, 1]  # the last step of nf4 is 0.28 above and 0.30 below: 1.14, -1.15


def test_nothing_is_cut_off_by_a_range_of_its_own() -> None:
    eye = np.eye(K, dtype=np.float32)
    for zero in ("none", "u8", "f32"):
        *_, cut = _C.gptq_solve(weight(), eye, 4, 24, ops.scale_kind("f16", zero))
        assert cut.sum() <= N  # the scale is rounded to float16 and may fall short of half a step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": np.full((K, K), np.nan, np.float32)}, r"positive diagonal, got nan at 0"),
        ({"u": -np.eye(K, dtype=np.float32)}, r"positive diagonal, got -1 at 0"),
        ({"u": np.eye(K) * 1.0}, r"expected u of dtype float32"),
        ({"u": np.eye(5, dtype=np.float32)}, r"expected u of shape \[72, 72\]"),
        ({"w": np.full((2, K), np.inf, np.float32)}, r"expected finite weights.* row 0 of 2"),
        ({"w": np.zeros((2, K))}, r"expected w of dtype float32"),
        ({"w": np.zeros(K, np.float32)}, r"expected w of shape \[N, K\]"),
        ({"codebook": np.full(16, np.nan, np.float32)}, r"codebook of finite values, got nan"),
        ({"codebook": np.zeros(16, np.float32)}, r"a value other than zero"),
        ({"codebook": np.zeros(9, np.float32)}, r"expected codebook of shape \[16\]"),
        ({"order": np.arange(K, dtype=np.int32)}, r"expected scales together with an order"),
        (
            {"scales": np.ones((2, 3), np.float32), "clip": True},
            r"no clip search with given scales",
        ),
    ],
)
def test_bad_arrays_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"w": weight(2), "u": np.eye(K, dtype=np.float32), "bits": 4, "group": 24,
                 "scale_kind": ops.scale_kind("f32")} | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        _C.gptq_solve(**arguments)


def test_factor_with_inf_off_the_diagonal_and_overflow_are_named() -> None:
    kind = ops.scale_kind("f16")
    u = np.eye(K, dtype=np.float32)
    u[3, 40] = np.inf
    with pytest.raises(ValueError, match=r"finite upper factor.* row 3: raise the damping"):
        _C.gptq_solve(weight(2), u, 4, 24, kind)
    u[3, 40] = 3e38
    u[40, 50] = 3e38
    with pytest.raises(ValueError, match=r"stay finite, got an overflow in row \d+: raise the d"):
        _C.gptq_solve(
            weight(2), u, 4, 24, ops.scale_kind("f32"), scales=np.ones((2, 3), np.float32)
        )


# --- quantize() ---------------------------------------------------------------------------------


def test_nearest_rounding_is_kept_where_it_is_better_and_says_so() -> None:
    """A matrix that is nearly singular and heavily damped: GPTQ optimises another loss."""
    random = np.random.default_rng(3)
    x = random.normal(size=(2, 16))
    h = torch.from_numpy(x.T @ x)
    found = 0
    for seed in range(40):
        w = weight(1, 16, seed)
        solution = solve(w, "gptq-int2-row", factor(h, 1.0))
        nearest = calibit.quantize(w, "int2-row")
        kept = reference.proxy_loss(solution.weight.dequantize().numpy() - w, h.numpy())
        assert kept == pytest.approx(solution.loss, rel=1e-4)
        assert solution.loss <= solution.loss_nearest
        if solution.weight.scheme == nearest.scheme:
            found += 1
            assert torch.equal(solution.weight.codes, nearest.codes) and solution.clipped is None
            assert "times the loss of nearest rounding: nearest kept" in solution.weight.notes[-1]
    assert 0 < found < 40


def test_notes_of_a_raised_damping_reach_the_weight() -> None:
    h = torch.tensor([[1.0, 1.05], [1.05, 1.0]])  # an eigenvalue of -0.05
    q = calibit.quantize(weight(3, 2), "gptq-int4-row", hessian=h)
    assert q.notes[0] == "damping raised from 0.01 to 0.1"


def test_gptaq_fits_the_outputs_of_the_unquantized_model() -> None:
    """Inputs x of a layer behind quantized ones, y those of the original: the aim is W y."""
    random = np.random.default_rng(5)
    y = random.normal(size=(4000, 32)) + random.normal(size=(4000, 1))
    x = y + 0.3 * random.normal(size=(4000, 32)) @ random.normal(size=(32, 32)) / 6
    w = weight(24, 32)
    h, cross = torch.from_numpy(x.T @ x), torch.from_numpy((y - x).T @ x)

    def error(q: torch.Tensor) -> float:
        return float(np.square(x @ q.double().numpy().T - y @ w.T).sum())

    plain = calibit.quantize(w, "gptq-int8-row", hessian=h).dequantize()
    fitted = calibit.quantize(w, "gptaq-int8-row", hessian=h, cross=cross)
    # With q = w + a w D inv(H) the error falls by (1 - (1 - a)^2) of what a full step takes away.
    full = torch.from_numpy(w).double() + torch.from_numpy(w).double() @ cross @ torch.linalg.inv(h)
    share = calibit.solver.CROSS_SHARE
    want = error(torch.from_numpy(w)) - (1 - (1 - share) ** 2) * (
        error(torch.from_numpy(w)) - error(full)
    )
    assert str(fitted.scheme) == "gptaq-int8-row"
    assert error(fitted.dequantize()) == pytest.approx(want, rel=0.02)  # 8 bits are nearly exact
    assert error(fitted.dequantize()) < error(plain)
    ordered = calibit.quantize(w, "gptaq-int8-row-actorder", hessian=h, cross=cross).dequantize()
    assert error(ordered) == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("gptq-int4-g24", {"hessian": torch.eye(5)}, r"a Hessian \[72, 72\], got \[5, 5\]"),
        ("gptq-int4-g24", {"hessian": torch.zeros(K, K)}, r"other than zero.*round to nearest"),
        ("gptq-int4-g24", {"hessian": -torch.eye(K)}, r"diagonal >= 0, got -1"),
        ("gptq-int4-g24", {"hessian": torch.eye(K) * torch.nan}, r"finite Hessian, got NaN"),
        ("gptq-int4-g24", {"hessian": torch.eye(K), "damping": 0.0}, r"damping in \(0, 1\]"),
        ("gptq-int4-g24", {"hessian": factor(torch.eye(K), activation_order=True)},
         r"needs a factor without activation_order=True"),
        ("gptq-int4-g24-actorder", {"hessian": factor(torch.eye(K))},
         r"needs factor\(...\) with activation_order=True"),
        ("gptaq-int4-g24", {"hessian": torch.eye(K)}, r"expected cross= \[72, 72\] .* got none"),
        ("gptq-int4-g24", {"hessian": torch.eye(K), "cross": torch.eye(K)}, r"expected no cross="),
        ("gptaq-int4-g24", {"hessian": torch.eye(K), "cross": torch.eye(4)},
         r"expected a finite cross \[72, 72\], got \[4, 4\]"),
        ("gptaq-int4-g24", {"hessian": torch.eye(K), "cross": torch.eye(K) * torch.inf},
         r"expected a finite cross \[72, 72\], got NaN or Inf"),
    ],
)  # fmt: skip
def test_bad_curvature_is_named(scheme: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibit.quantize(weight(), scheme, **options)


def test_duplicates_in_a_codebook_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("0 0.5 0.5 1")
    with pytest.raises(ValueError, match=r"\[codebook\] expected finite, distinct values"):
        calibit.quantize(weight(), f"gptq-{path}", hessian=torch.eye(K))


def test_integer_and_float_hessians_in_any_scale_give_the_same_codes() -> None:
    w, h = weight(), torch.from_numpy(hessian())
    codes = [
        calibit.quantize(w, "gptq-int4-g24", hessian=scaled).codes for scaled in (h, h * 4096.0)
    ]
    assert torch.equal(*codes)


def test_solution_is_a_plain_value() -> None:
    solution = solve(weight(), "gptq-int4-g24", factor(torch.from_numpy(hessian())))
    assert solution.clipped is not None and 0 <= solution.clipped < 0.1
    with pytest.raises(dataclasses.FrozenInstanceError):
        solution.loss = 0.0  # type: ignore[misc]
