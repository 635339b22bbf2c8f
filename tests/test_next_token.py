"""Confidence statistics of vocabulary-sized rows: every table, dtype and form against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import reference
from calibit import _C, ops
from calibit.next_token import TILE, TokenConfidence, head_confidence, token_confidence

TABLES = [k["name"] for k in _C.kernels() if k["supported"]]
# One vector and its tails, one run of 1,024 columns and its neighbours, many runs.
WIDTHS = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 1023, 1024, 1025, 5000]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# A term's exponential has a relative error of 2e-7, a sum of at most 1,024 / 32 terms a lane adds
# 32 * 6e-8; both are relative to sums of terms of one sign, and logits reach about 25 here, which
# the weighted sums multiply by: 25 * 2e-6.
ABSOLUTE = 5e-5
LOG_SUM = 3e-6


def rows(width: int, seed: int = 0, scale: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = (scale * random.standard_normal((5, width))).astype(np.float32)
    return x, (x + random.standard_normal(x.shape)).astype(np.float32)


def assert_is(found: TokenConfidence, x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> None:
    want = reference.token_confidence(x, y)
    each = np.arange(len(x))
    np.testing.assert_allclose(found.log_sum_exp, want["log_sum_exp"], rtol=0, atol=LOG_SUM)
    np.testing.assert_allclose(found.entropy, want["entropy"], rtol=0, atol=ABSOLUTE)
    np.testing.assert_array_equal(found.argmax, x.argmax(axis=1))
    best = want["log_probs"].max(axis=1)
    np.testing.assert_allclose(found.log_top, best, rtol=0, atol=LOG_SUM)
    true = want["log_probs"][each, labels]
    np.testing.assert_allclose(found.log_true, true, rtol=0, atol=LOG_SUM)
    np.testing.assert_allclose(found.kl, want["kl"], rtol=0, atol=ABSOLUTE)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_table_matches_float64(table: str, width: int, monkeypatch) -> None:
    x, y = rows(width)
    labels = np.random.default_rng(1).integers(0, width, len(x))
    twin = _C.confidence
    monkeypatch.setattr(_C, "confidence", lambda *a, **k: twin(*a, **k, kernels=table))
    assert_is(token_confidence(x, labels, other=y, top_k=3), x, y, labels)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("width", [17, 1025, 5000])
def test_top_k_of_every_table(table: str, width: int) -> None:
    x = np.round(rows(width)[0])  # with ties: the first column comes first
    _, argmax, values, indices = _C.confidence(x, top_k=7, kernels=table)
    order = np.argsort(-x, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, axis=1))
    np.testing.assert_array_equal(argmax, order[:, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_precisions_are_read_as_they_are(dtype: torch.dtype) -> None:
    x, y = (torch.from_numpy(a).to(dtype) for a in rows(3000))
    labels = np.arange(5) * 600
    found = token_confidence(x, labels, other=y)
    assert_is(found, x.float().numpy(), y.float().numpy(), labels)


def test_torch_and_numpy_give_the_same_bits() -> None:
    x, y = rows(5000)
    mine = token_confidence(x, np.arange(5), other=y, top_k=4)
    theirs = token_confidence(
        torch.from_numpy(x), torch.arange(5), other=torch.from_numpy(y), top_k=4
    )
    for name, value in vars(mine).items():
        np.testing.assert_array_equal(value, getattr(theirs, name), err_msg=name)


def test_a_row_depends_on_no_other_row_and_on_no_thread() -> None:
    x = torch.from_numpy(np.concatenate([rows(5000, seed)[0] for seed in range(4)]))
    whole = token_confidence(x, top_k=2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        again = token_confidence(x, top_k=2)
    finally:
        torch.set_num_threads(threads)
    one = token_confidence(x[7:8], top_k=2)
    for name in ("log_sum_exp", "entropy", "log_top", "top_log_probs"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(again, name))
        np.testing.assert_array_equal(getattr(whole, name)[7:8], getattr(one, name))


@pytest.mark.parametrize("size", [1024, 3072])
def test_tiles_of_whole_runs_change_no_bit(size: int) -> None:
    x, y = (torch.from_numpy(a) for a in rows(5000))
    whole, tiled = ops.confidence_state(5, 3), ops.confidence_state(5, 3)
    labels = torch.tensor([0, 1023, 1024, 4999, -1])
    ops.confidence_update(*whole, x, labels, y)
    for first in range(0, 5000, size):
        part = slice(first, first + size)
        ops.confidence_update(*tiled, x[:, part], labels, y[:, part], first=first)
    for one, other in zip(whole, tiled, strict=True):
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


@pytest.mark.parametrize("vocabulary", [10, TILE, TILE + 1, 3 * TILE - 5])
def test_hidden_states_give_what_their_logits_give(vocabulary: int) -> None:
    random = np.random.default_rng(0)
    hidden, head = (
        torch.from_numpy(random.standard_normal(shape).astype(np.float32))
        for shape in ((600, 24), (vocabulary, 24))
    )
    second = hidden + 0.1 * torch.randn(600, 24, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(random.integers(0, vocabulary, 600))
    found = head_confidence(hidden, head, labels, other=(second, head), top_k=2)
    x, y = (hidden @ head.T).numpy(), (second @ head.T).numpy()
    want = reference.token_confidence(x, y)
    # Besides the statistics' own errors: two products of 24 terms of size up to 30, summed in
    # another order, move a logit by 24 * 30 * 6e-8.
    np.testing.assert_allclose(found.log_sum_exp, want["log_sum_exp"], rtol=0, atol=5e-5)
    np.testing.assert_allclose(found.entropy, want["entropy"], rtol=0, atol=3e-4)
    np.testing.assert_allclose(found.kl, want["kl"], rtol=0, atol=3e-4)
    true = want["log_probs"][np.arange(600), labels.numpy()]
    np.testing.assert_allclose(found.log_true, true, rtol=0, atol=5e-5)


def test_equal_distributions_have_no_divergence() -> None:
    x = rows(5000)[0]
    assert (token_confidence(x, other=x).kl <= 1e-12).all()


def test_excluded_tokens_count_as_nothing() -> None:
    x, y = rows(3000)
    x[:, ::3] = -np.inf
    x[1, :2000] = -np.inf  # whole runs
    labels = np.full(5, 2999)
    found = token_confidence(x, labels, other=y)
    want = reference.token_confidence(x, y)
    np.testing.assert_allclose(found.entropy, want["entropy"], rtol=0, atol=ABSOLUTE)
    np.testing.assert_allclose(found.kl, want["kl"], rtol=0, atol=ABSOLUTE)
    assert token_confidence(x, np.zeros(5, np.int64)).log_true.tolist() == [-np.inf] * 5


def test_divergence_is_infinite_where_the_other_excludes_a_likely_token() -> None:
    x, y = rows(3000)
    y[2, x[2].argmax()] = -np.inf
    found = token_confidence(x, other=y).kl
    assert np.isinf(found).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("offset", [-1e4, 1e4, -1e6])
def test_logits_far_from_zero(offset: float) -> None:
    x = np.float32(offset) + rows(2000)[0]
    found = token_confidence(x)
    want = reference.token_confidence(x)
    np.testing.assert_allclose(found.entropy, want["entropy"], rtol=0, atol=ABSOLUTE)


def test_rising_logits_move_the_shift_again_and_again() -> None:
    x = np.linspace(-1000, 1000, 20_000, dtype=np.float32)[None]
    found = token_confidence(x, other=x[:, ::-1].copy())
    want = reference.token_confidence(x, x[:, ::-1])
    np.testing.assert_allclose(found.log_sum_exp, want["log_sum_exp"], rtol=1e-7)
    np.testing.assert_allclose(found.entropy, want["entropy"], rtol=0, atol=ABSOLUTE)
    np.testing.assert_allclose(found.kl, want["kl"], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("width", [5, 1500])
def test_nan_and_infinity_are_refused_with_their_row(bad: float, width: int) -> None:
    x = rows(width)[0]
    x[3, -2] = bad
    with pytest.raises(ValueError, match="in row 3"):
        token_confidence(x)
    y = rows(width)[0]
    with pytest.raises(ValueError, match="in row 3"):
        token_confidence(y, other=x)


def test_wrong_input_has_a_sentence() -> None:
    x = rows(10)[0]
    with pytest.raises(ValueError, match=r"no finite logit in row 0"):
        token_confidence(np.full((2, 5), -np.inf, np.float32))
    with pytest.raises(ValueError, match=r"expected labels below 10, got 10 in row 4"):
        token_confidence(x, np.array([0, 1, -1, 9, 10]))
    with pytest.raises(ValueError, match=r"\[confidence\] expected logits of dtype float32"):
        token_confidence(x.astype(np.float64))
    with pytest.raises(ValueError, match=r"\[confidence\] expected labels of shape \[5\]"):
        token_confidence(x, np.array([1]))
    with pytest.raises(ValueError, match=r"\[confidence\] expected other"):
        token_confidence(x, other=x[:, :5].copy())
    with pytest.raises(ValueError, match=r"\[confidence\] expected logits of shape \[M, V\]"):
        token_confidence(torch.zeros(2, 0))
    with pytest.raises(ValueError, match=r"\[head_confidence\] expected hidden \[M, D\] and head"):
        head_confidence(torch.zeros(2, 3), torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"heads of one vocabulary, got 5 and 6"):
        head_confidence(
            torch.zeros(2, 3), torch.zeros(5, 3), other=(torch.zeros(2, 3), torch.zeros(6, 3))
        )


def test_no_rows_give_empty_arrays() -> None:
    found = token_confidence(np.zeros((0, 7), np.float32), top_k=2)
    assert found.entropy.shape == (0,)
    assert found.top_indices.shape == (0, 2)
