"""From a recorded run to `calibration.json` beside a checkpoint, and back into an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
import tiny_tokenizers
from audit_cases import job_of, prepare, save_model
from calibit import Recalibration, compare, evaluate
from calibit.auditing import run_job
from calibit.auditing.recalibrating import recalibrate
from calibit.cli import main
from calibit.fingerprint import weight_hash
from calibit.recalibration import FILE
from calibit.runs import Run

FEW = {"resamples": 200}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, which is far too sure of its answers, with a run of 80 items."""
    place = prepare(tmp_path_factory.mktemp("recalibrate"))
    words = ["eval", str(place / "model"), "--tasks", str(place / "items.jsonl"), "--text", "none"]
    assert main([*words, "-o", str(place / "run"), "--resamples", "200", "-q"]) == 0
    return place


def copied(work: Path, tmp_path: Path) -> Path:
    """The same checkpoint in a folder of its own."""
    return save_model(tmp_path / "model")


def evaluated(work: Path, model: Path, out: Path, *more: str) -> int:
    words = ["eval", str(model), "--tasks", str(work / "items.jsonl"), "--text", "none", "-q"]
    return main([*words, "-o", str(out), "--resamples", "200", *more])


def test_temperature_from_run_to_evaluation(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copied(work, tmp_path)
    words = ["recalibrate", str(work / "run"), "--checkpoint", str(model), "--resamples", "200"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "temperature fitted on 80 labelled items" in text
    assert text.rstrip().endswith(f"Map: {model / FILE}")
    stored = json.loads((model / FILE).read_text(encoding="utf-8"))
    assert stored["method"] == "temperature" and stored["parameters"]["temperature"] > 1

    assert evaluated(work, model, tmp_path / "bare") == 0
    assert "was not applied" in capsys.readouterr().out
    assert evaluated(work, model, tmp_path / "warm", "--recalibrated") == 0
    assert "in sample and flatter the map" in capsys.readouterr().out
    bare, warm = (Run.load(tmp_path / name) for name in ("bare", "warm"))
    assert bare.meta["recalibration"] is None and warm.meta["recalibration"] == stored
    assert [line["ll"] for line in warm.items()] == [line["ll"] for line in bare.items()]
    heat = stored["parameters"]["temperature"]
    expected = bare.scores().distributions.tempered(heat)
    assert np.allclose(warm.scores().distributions.p, expected.p, atol=1e-12)
    result = compare(tmp_path / "bare", tmp_path / "warm", **FEW)
    assert float(result.deltas["nll"]) < 0 and result.flips.all_flips == 0
    assert any("b: its scores went through the temperature map" in w for w in result.warnings)
    assert all(check.passed for check in result.checks if check.check == "self-comparison")
    failed = [check.detail for check in result.checks if check.check == "calibration map"]
    assert failed == [
        "b: the temperature map was fitted on these very items: fit it on others",
    ]
    assert result.verdict().verdict == "inconclusive"
    assert result.verdict().reasons[0].startswith("The self-audit failed: calibration map (b:")
    other = Run.of({**warm.meta, "recalibration": {**stored, "items_hash": "0"}}, warm.items())
    found = compare(bare, other, **FEW).checks
    assert [check.passed for check in found if check.check == "calibration map"] == [True]


def test_a_run_with_and_one_without_the_map_are_other_jobs(work: Path, tmp_path: Path) -> None:
    model = copied(work, tmp_path)
    recalibrate(work / "run", model, **FEW)
    assert evaluated(work, model, tmp_path / "run", "--recalibrated") == 0
    assert evaluated(work, model, tmp_path / "run") == 3
    assert evaluated(work, model, tmp_path / "run", "--recalibrated") == 0


def test_a_map_of_the_top_answer_is_beside_the_scores(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copied(work, tmp_path)
    assert recalibrate(work / "run", model, method="platt", **FEW).map.method == "platt"
    assert evaluated(work, model, tmp_path / "run", "--recalibrated", "--json") == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["recalibrated:brier_top1"]["value"] < metrics["brier_top1"]["value"]
    run = Run.load(tmp_path / "run")
    bare = Run.load(work / "run")
    assert all((a == b).all() for a, b in zip(run.scores().z, bare.scores().z, strict=True))


def test_an_identity_says_why_and_changes_nothing(work: Path, tmp_path: Path) -> None:
    """80 items are too few for a step function: out of fold some certain answers are wrong."""
    model = copied(work, tmp_path)
    made = recalibrate(work / "run", model, method="isotonic", **FEW)
    assert made.map.method == "identity" and made.map.table["method"] == "isotonic"
    assert made.map.reason and "the identity was kept" in str(made._sentences())
    assert evaluated(work, model, tmp_path / "run", "--recalibrated") == 0
    scores, bare = (Run.load(path).scores() for path in (tmp_path / "run", work / "run"))
    assert np.allclose(scores.distributions.p, bare.distributions.p, atol=1e-15)


def test_slices_and_label_free_from_an_audit(work: Path, tmp_path: Path) -> None:
    job = job_of(work, schemes=("int2-g32",), text="none")
    audit = run_job(job, tmp_path / "audit", progress=None)
    words = ["quantize", str(work / "model"), "int2-g32", "-o", str(tmp_path / "two"), "-q"]
    assert main(words) == 0
    bare = [text for text in audit.data["warnings"] if FILE in text]
    made = recalibrate(audit.path, tmp_path / "two", method="label_free", **FEW)
    job = job_of(work, schemes=(), candidates=(str(tmp_path / "two"),), text="none", limit=30)
    again = run_job(job, tmp_path / "again", progress=None)
    noted = [text for text in again.data["warnings"] if FILE in text]
    assert not bare and len(noted) == 1 and "was not applied" in noted[0]
    assert made.run.name == "int2-g32" and made.map.table["method"] == "label_free"
    sliced = recalibrate(
        audit.path, tmp_path / "two", method="slice_temperature", slice_key="lang",
        overwrite=True, **FEW,
    )  # fmt: skip
    assert sliced.map.method == "slice_temperature"
    assert set(sliced.map.parameters["slices"]) == {"en", "de"}
    assert sliced.map.parameters["key"] == "lang"
    run = audit.path / "runs" / "int2-g32"
    scores = Run.load(run).scores()
    warm = sliced.map.scores(scores)
    heats = [sliced.map.parameters["slices"][one["lang"]] for one in scores.slices]
    assert np.allclose(
        warm.distributions.p, scores.distributions.tempered(np.array(heats)).p, atol=1e-12
    )


def test_another_model_is_refused(work: Path, tmp_path: Path) -> None:
    model = copied(work, tmp_path)
    recalibrate(work / "run", model, **FEW)
    other = save_model(tmp_path / "other", seed=1)
    (other / FILE).write_text((model / FILE).read_text(encoding="utf-8"), encoding="utf-8")
    assert evaluated(work, other, tmp_path / "run", "--recalibrated") == 3
    with pytest.raises(ValueError, match=r"expected a run of the weights in .*other"):
        recalibrate(work / "run", other, overwrite=True, **FEW)
    right, wrong = (tiny_models.build("llama", seed=seed) for seed in (0, 1))
    found = Recalibration.for_model(model, right)
    assert found.model_hash == weight_hash(right)
    with pytest.raises(ValueError, match="expected a map for weights"):
        Recalibration.for_model(model, wrong)
    with pytest.raises(ValueError, match="expected a recalibration map fitted for this model"):
        evaluate(wrong, tiny_tokenizers.build(), ["probe:en"], limit=2, recalibration=found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "beta"}, "expected a method of temperature"),
        ({"method": "slice_temperature"}, "expected --slice"),
        ({"slice_key": "lang"}, "expected --slice"),
        ({"method": "label_free"}, "expected --reference"),
        ({"method": "slice_temperature", "slice_key": "mood"}, "slice key of the items"),
    ],
)
def test_settings_are_refused(
    change: dict[str, Any], message: str, work: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        recalibrate(work / "run", copied(work, tmp_path), **FEW, **change)


def test_nothing_is_overwritten_and_what_is_missing_is_named(work: Path, tmp_path: Path) -> None:
    model = copied(work, tmp_path)
    assert evaluated(work, model, tmp_path / "run", "--recalibrated") == 3
    recalibrate(work / "run", model, **FEW)
    with pytest.raises(FileExistsError, match="--overwrite replaces it"):
        recalibrate(work / "run", model, **FEW)
    recalibrate(work / "run", model, overwrite=True, **FEW)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        recalibrate(work / "run", tmp_path / "nowhere", **FEW)


def test_maps_take_logits_and_probabilities() -> None:
    from calibit.measures import Distributions

    warm = Recalibration("temperature", {"temperature": 2.0, "clipped": False}, "sum", "", "", 9)
    logits = np.array([[2.0, 0.0, -2.0], [0.0, 1.0, 0.0]])
    expected = np.exp(logits / 2) / np.exp(logits / 2).sum(1, keepdims=True)
    assert np.allclose(warm.distributions(logits).p.reshape(2, 3), expected)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    given = Distributions.from_probabilities(p)
    assert np.allclose(warm.distributions(given).p.reshape(2, 3), expected)
    assert np.allclose(warm.confidence(logits), expected.max(1))
    platt = Recalibration("platt", {"alpha": 1.0, "beta": 0.0}, "sum", "", "", 9)
    assert np.allclose(platt.confidence(logits), p.max(1))
