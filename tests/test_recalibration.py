"""Recalibration maps as files: round trips, and every refusal of a map that does not belong."""

from __future__ import annotations

import json

import numpy as np
import pytest

import golden
from calibit import measures as m
from calibit.recalibration import FILE, IDENTITY, Recalibration, items_hash

FEW = m.Resampling(resamples=200)
WEIGHTS = "0f" * 32


def scores(heat: float, *, rule: str = "sum", n: int = 600) -> m.Scores:
    """Labels drawn from the model's own distribution; heat above 1 makes it too sure."""
    rng = np.random.default_rng(0)
    z = rng.normal(0.0, 1.5, (n, 4))
    gold = np.array([rng.choice(4, p=p) for p in golden.softmax(z)])
    return m.Scores.from_arrays(z * heat, gold, rule=rule)


def slices(n: int = 600) -> list[str]:
    return ["even" if index % 2 == 0 else "odd" for index in range(n)]


def fitted(method: str = "temperature", heat: float = 2.5) -> Recalibration:
    return Recalibration.fit(
        scores(heat),
        model_hash=WEIGHTS,
        method=method,
        reference=scores(1.0),
        slices=slices(),
        resampling=FEW,
    )


@pytest.mark.parametrize("method", ["temperature", "label_free", "slice_temperature", "platt"])
def test_maps_survive_a_round_trip(tmp_path, method):
    made = fitted(method)
    assert made.method == method and made.n == 600
    path = made.save(tmp_path)
    assert path == tmp_path / FILE
    read = Recalibration.load(tmp_path, model_hash=WEIGHTS)
    assert read == made or read.to_dict() == made.to_dict()
    before, after = (x.confidence(scores(2.5), slices()) for x in (made, read))
    assert before.tolist() == after.tolist()
    right = scores(2.5).correct
    assert float(m.ece(after, right)) < float(m.ece(scores(2.5).distributions.confidence, right))


def test_a_map_without_shown_gain_is_the_identity(tmp_path):
    made = fitted(heat=1.0)
    assert made.method == IDENTITY and made.map is None and "not shown" in made.reason
    assert made.table["method"] == "temperature" and made.table["shown"] is False
    read = Recalibration.load(made.save(tmp_path / "map.json"), model_hash=WEIGHTS)
    given = scores(1.0)
    assert read.confidence(given).tolist() == given.distributions.confidence.tolist()


def test_isotonic_maps_that_call_answers_certain_are_not_shipped():
    made = fitted("isotonic")
    assert made.method == IDENTITY and "certain" in made.reason


def test_the_table_names_what_decided():
    table = fitted().table
    assert table["decides"] == "nll" and table["shown"] is True and table["folds"] == 5
    assert table["change"]["nll"]["upper"] < 0
    assert set(table["before"]) == set(table["after"]) == {
        "nll", "brier", "brier_top1", "ece", "debiased_l2", "auroc", "acc",
    }  # fmt: skip
    json.dumps(fitted().to_dict(), allow_nan=False)


def test_another_model_or_rule_is_refused(tmp_path):
    path = fitted().save(tmp_path)
    with pytest.raises(ValueError, match=r"a map for weights 'ab', got one for '0f0f"):
        Recalibration.load(path, model_hash="ab")
    with pytest.raises(ValueError, match="a map for scoring rule 'char', got one for 'sum'"):
        Recalibration.load(path, model_hash=WEIGHTS, rule="char")
    made = fitted()
    with pytest.raises(ValueError, match="expected scores of rule 'sum', got 'char'"):
        made.confidence(scores(2.5, rule="char"))
    with pytest.raises(ValueError, match="expected scores of rule 'sum', got 'char'"):
        fitted("platt").confidence(scores(2.5, rule="char"))


def test_what_a_map_needs_is_asked_for():
    with pytest.raises(ValueError, match="expected 600 slices, got none"):
        fitted("slice_temperature").confidence(scores(2.5))
    with pytest.raises(ValueError, match="a map of whole distributions, got 'platt'"):
        fitted("platt").distributions(scores(2.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "calibit.calibration/9"}, "expected schema calibit.calibration/1"),
        ({"method": "spline"}, "expected a method of identity, temperature"),
        ({"parameters": {}}, "expected the parameters of temperature"),
        ({"n": None, "extra": 1}, "expected all fields once in .*extra"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, message):
    content = {**fitted().to_dict(), **change}
    path = tmp_path / FILE
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        Recalibration.load(path, model_hash=WEIGHTS)


def test_files_that_are_no_map_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Recalibration.load(tmp_path, model_hash=WEIGHTS)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match="expected JSON in"):
        Recalibration.load(tmp_path, model_hash=WEIGHTS)
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(ValueError, match="expected an object in"):
        Recalibration.load(tmp_path, model_hash=WEIGHTS)


def test_hash_of_items_does_not_depend_on_their_order():
    z, gold = np.zeros((3, 2)), np.array([0, 1, -1])
    first = m.Scores.from_arrays(z, gold, ids=["a", "b", "c"])
    assert items_hash(first) == items_hash(first.take(np.array([2, 1, 0])))
    other = m.Scores.from_arrays(z, [1, 1, -1], ids=["a", "b", "c"])
    assert items_hash(first) != items_hash(other)
    unlabelled = first.take(np.array([0, 1]))
    assert items_hash(first) == items_hash(unlabelled)
