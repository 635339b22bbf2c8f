"""The solved model beside nearest rounding on held-out text."""

from __future__ import annotations

import copy
import random
import string
from dataclasses import replace

import pytest
import torch

import tiny_models
from calibit.quantization import calibration_text, quantize_model
from calibit.quantization.calibration_text import Calibration
from calibit.quantization.guard import HeldOut


def data(rows: int = 12) -> Calibration:
    ids = tiny_models.tokens(rows, 24)
    return Calibration(tuple(ids[:-3]), "test", held_out=tuple(ids[-3:]))


def divergence(model, other, rows) -> torch.Tensor:
    """KL(model || other) of every position, float64."""
    found = []
    for row in rows:
        with torch.no_grad():
            p, q = (each(row[None]).logits[0].double().log_softmax(-1) for each in (model, other))
        found.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(found)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "falcon"])
def test_divergences_are_those_of_the_whole_models(name: str) -> None:
    before = tiny_models.build(name).eval()
    solved, nearest, calibration = copy.deepcopy(before), copy.deepcopy(before), data()
    outside = [pattern for pattern in ("project_*",) if name == "opt"]
    report = quantize_model(solved, "gptq-int3-g16", calibration=calibration, skip=outside)
    quantize_model(nearest, "int3-g16", skip=outside)
    found = report.held_out
    assert found is not None and found.tokens == 3 * 24
    rows = calibration.held_out
    kl, kl_nearest = divergence(before, solved, rows), divergence(before, nearest, rows)
    # Sums of float32 logits in another order; the divergences are about 0.1.
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-3, abs=1e-6)
    assert found.kl_nearest == pytest.approx(float(kl_nearest.mean()), rel=1e-3, abs=1e-6)
    change = kl - kl_nearest
    assert found.standard_error == pytest.approx(
        float(change.std() / len(change) ** 0.5), rel=1e-2, abs=1e-6
    )
    assert len(found.drift) == len(found.drift_nearest) == tiny_models.BLOCKS
    assert min(found.drift) > 0 and report.to_dict()["held_out"]["kl"] == found.kl


def test_the_guard_changes_no_weight() -> None:
    calibration = data()
    models = [tiny_models.build("llama") for _ in range(2)]
    quantize_model(models[0], "gptq-int4-g16", calibration=calibration)
    quantize_model(models[1], "gptq-int4-g16", calibration=replace(calibration, held_out=()))
    first, second = (model.state_dict() for model in models)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_without_held_out_text_nothing_is_said() -> None:
    model = tiny_models.build("llama")
    report = quantize_model(model, "gptq-int4-g16", calibration=tiny_models.tokens(4, 24))
    assert report.held_out is None and report.to_dict()["held_out"] is None


@pytest.mark.parametrize(
    ("difference", "says"),
    [(0.03, "WORSE THAN NEAREST ROUNDING"), (0.015, "not shown to be better"), (-0.03, None)],
)
def test_a_recipe_that_does_harm_is_called_so(difference: float, says: str | None) -> None:
    found = HeldOut(100, 0.2 + difference, 0.2, difference, 0.01, (0.1,), (0.1,))
    assert (says is None and found.note is None) or (found.note and says in found.note)


class Letters:
    """A tokenizer that takes characters for tokens."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 90 for letter in text]}


@pytest.mark.parametrize(("letters", "windows"), [(40, 0), (60, 0), (96, 3), (1000, 3)])
def test_held_out_windows_touch_no_segment(letters: int, windows: int) -> None:
    text = "".join(random.Random(0).choices(string.printable, k=letters))
    found = calibration_text.load([text], Letters(), segments=4, length=10)
    ids = Letters()(text)["input_ids"]
    used = set()
    for segment in found.sequences:
        start = next(i for i in range(letters) if ids[i : i + 10] == segment.tolist())
        used |= set(range(start, start + 10))
    assert len(found.held_out) == windows
    for window in found.held_out:
        starts = [i for i in range(letters) if ids[i : i + len(window)] == window.tolist()]
        assert any(used.isdisjoint(range(s, s + len(window))) for s in starts)
