"""Checks of the measurement that need a further run."""

from __future__ import annotations

import numpy as np
import pytest

import golden
from calibit.measures import Distributions, Scores
from calibit.measures.run_checks import eight_bit_control, identical_run
from calibit.measures.self_audit import (
    MOST_OUTSIDE,
    ORACLE_DRAWS,
    calibrated_oracle,
    perfect_oracle,
    self_comparison,
)


def scores(logits: np.ndarray, gold: np.ndarray) -> Scores:
    ids = [f"item-{i}" for i in range(len(gold))]
    return Scores.from_arrays(list(logits / 1e4), gold, ids=ids)


def lines(*likelihoods: list[float] | None) -> list[dict]:
    return [{"id": f"i{n}", "ll": ll} for n, ll in enumerate(likelihoods)]


def test_identical_run_names_the_first_item_that_moved() -> None:
    once = lines([-1.0, -2.0], None, [-3.0, -0.5])
    assert identical_run(once, lines([-1.0, -2.0], None, [-3.0, -0.5])).passed
    moved = identical_run(once, lines([-1.0, -2.0], None, [-3.0, np.nextafter(-0.5, 0)]))
    assert (moved.passed, moved.count, moved.first) == (False, 1, "i2")


def test_eight_bit_control_fails_only_when_it_is_further_off_than_the_candidate() -> None:
    v1 = golden.v1()
    a, b, gold = v1.A, v1.B, v1.y
    near = a + np.random.default_rng(0).integers(-50, 50, a.shape)
    reference, candidate, control = (scores(x, gold) for x in (a, b, near))
    assert [c.passed for c in eight_bit_control(reference, control, candidate)] == [True, True]
    failed = eight_bit_control(reference, candidate, control)
    assert not failed[0].passed
    assert "suspect the loader" in failed[0].detail
    assert all(c.passed for c in eight_bit_control(reference, candidate, candidate))


def test_unlabelled_items_have_the_answers_alone() -> None:
    v1 = golden.v1()
    reference, candidate = (scores(x, np.full(len(v1.y), -1)) for x in (v1.A, v1.B))
    assert [c.check for c in eight_bit_control(reference, candidate, candidate)] == [
        "8-bit control, all_flips"
    ]


def mixed(n: int = 300) -> Scores:
    """Items with 2, 3 and 5 choices."""
    rng = np.random.default_rng(2)
    z = [rng.normal(0, 1.5, (2, 3, 5)[i % 3]) for i in range(n)]
    return Scores.from_arrays(z, [i % 2 for i in range(n)])


def test_perfect_oracle_has_its_known_values() -> None:
    check = perfect_oracle(mixed())
    assert check.passed and check.detail.endswith("acc 1, ece 0.01, nll 0.0100503")
    unlabelled = Scores.from_arrays([[0.0, -1.0], [-1.0, 0.0]])
    assert perfect_oracle(unlabelled).passed


def test_perfect_oracle_fails_where_normalising_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Distributions.from_scores

    def flatter(scores: object, *, op: str = "scores") -> Distributions:
        return right([row * 0.99 for row in scores], op=op)

    monkeypatch.setattr(Distributions, "from_scores", flatter)
    check = perfect_oracle(mixed())
    assert (check.passed, check.first) == (False, "ece") and check.count == 2


def test_calibrated_oracle_is_inside_the_null_band() -> None:
    """About 5 of 100 draws lie above the 95 % point."""
    for seed in range(5):
        z = np.random.default_rng(seed).normal(0, 1.5, (400, 4))
        check = calibrated_oracle(Scores.from_arrays(z))
        assert check.passed and check.count <= MOST_OUTSIDE < ORACLE_DRAWS / 5
    assert calibrated_oracle(Scores.from_arrays([[0.0, -1.0]])).passed


def test_calibrated_oracle_fails_where_confidence_is_no_probability() -> None:
    found = mixed()
    object.__setattr__(found.distributions, "confidence", found.distributions.confidence**0.3)
    check = calibrated_oracle(found)
    assert not check.passed and check.count > 90


def test_self_comparison_finds_a_moved_bit_a_flip_and_a_lost_item() -> None:
    found = mixed(30)
    assert self_comparison(found, mixed(30), name="a").passed
    z = [np.array(row) for row in found.z]
    z[4][0] += 1e-9
    z[7] = z[7][::-1]
    moved = self_comparison(found, Scores.from_arrays(z, found.gold), name="a")
    assert (moved.passed, moved.count, moved.first) == (False, 2, "4")
    lost = self_comparison(found, found.take(np.arange(29)), name="b")
    assert (lost.passed, lost.count) == (False, 1) and lost.detail.startswith("b: 29 items")
