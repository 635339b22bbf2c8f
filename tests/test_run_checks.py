"""Checks of the measurement that need a further run."""

from __future__ import annotations

import numpy as np

import golden
from calibit.measures import Scores
from calibit.measures.run_checks import eight_bit_control, identical_run


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
