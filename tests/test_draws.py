"""Calibration draws: variance components of several builds, in runs, audits and reports."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import golden
from audit_cases import job_of, prepare
from calibit.auditing import Audit, Job, driver, run_job
from calibit.auditing import job as jobs
from calibit.auditing.draws import Built, warnings
from calibit.comparison import compare_draws
from calibit.measures import draw_variance
from calibit.quantization import calibration_text, kept_text
from calibit.reporting.html import render
from calibit.runs import Run

K = 3


def run_with(logits: np.ndarray, gold: np.ndarray) -> Run:
    """A run in memory."""
    meta = {"tokenizer_hash": "00", "bos": "tokenizer", "text": [], "model": {"name": "m"}}
    ll = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    lines = [
        {"kind": "choice", "id": f"i{i}", "task": "t", "slices": {}, "gold": int(g), "ll": row}
        for i, (row, g) in enumerate(zip(ll.tolist(), gold, strict=True))
    ]
    return Run.of(meta, lines)


def test_golden_set_through_runs() -> None:
    """Set V6 of the specification: four builds of one candidate."""
    logits, gold = golden.v1().A, golden.v1().y
    builds = [run_with(own / 10000.0, gold) for own in golden.v6(logits)]
    found = compare_draws(run_with(logits / 10000.0, gold), builds, resamples=200)
    one = found.changes["conf_true"]
    assert one.builds == pytest.approx(
        (-0.0451309033, -0.0325374499, -0.0136395537, -0.0052582445), abs=1e-9
    )
    assert one.var_draw == pytest.approx(3.1003238998e-04, abs=1e-12)
    assert one.f == pytest.approx(20.4507472454, rel=1e-9)
    assert (one.recipe.lower, one.recipe.upper) == pytest.approx(
        (-0.0532734301, 0.0049903544), abs=1e-9
    )
    assert one.effect_below_draw and "conf_true" in found.below_draw
    assert one.p_permutation is None and found.changes["nll"].p_permutation is not None
    assert found.ece is not None and len(found.ece.values) == 4
    assert json.loads(json.dumps(found.to_dict()))["effect_below_draw"] == list(found.below_draw)


def test_builds_that_say_nothing() -> None:
    logits, gold = np.zeros((4, 3)) + np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 0])
    run = run_with(logits, gold)
    with pytest.raises(ValueError, match=r"\[draws\] expected at least 3 builds, got 2"):
        compare_draws(run, [run, run])
    unknown = run_with(logits, np.full(4, 0))
    for line in unknown._items:
        line["gold"] = None
    with pytest.raises(ValueError, match="expected labelled items or a text in the runs"):
        compare_draws(unknown, [unknown] * 3)


def test_windows_of_one_drawn_document_leave_room_for_held_out_ones() -> None:
    class Words:
        def __call__(self, text: str, **_: Any) -> dict[str, Any]:
            return {"input_ids": [int(word) for word in text.split()]}

    text = " ".join(map(str, range(3000)))
    found = calibration_text.load([text], Words(), segments=4, length=100, seed=2)
    used = {int(token) for row in found.sequences for token in row}
    held = [int(token) for row in found.held_out for token in row]
    assert len(found.held_out) == calibration_text.HELD_OUT
    assert len(held) == len(set(held)) == 4 * 100 and used.isdisjoint(held)


# Audits ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, items and a text on disk."""
    torch.set_num_threads(1)
    return prepare(tmp_path_factory.mktemp("draws"))


def draw_job(folder: Path, **changes: Any) -> Job:
    """Three draws of one scheme that calibrates, beside one that does not."""
    fields = {"calibration_draws": K, "calibration_tokens": 128, "calibration_seed": 5}
    return job_of(folder, **{**fields, **changes})


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Audit, str]:
    """The audit, and what it showed on the way."""
    said = io.StringIO()
    return run_job(draw_job(folder), folder / "finished", progress=said), said.getvalue()


def test_cost_is_said_first(finished: tuple[Audit, str]) -> None:
    first, *rest = finished[1].splitlines()
    assert first == (
        "3 calibration draws of 1 GPTQ scheme: 2 more builds, each evaluated, beside 3 models"
    )
    assert any("gptq-int4-g32: calibration draw 3 of 3" in line for line in rest)


def test_audit_holds_every_build(finished: tuple[Audit, str]) -> None:
    audit = finished[0]
    assert audit.candidates["int8-g128"]["draws"] is None
    found = audit.candidates["gptq-int4-g32"]["draws"]
    assert found["k"] == K and [one["seed"] for one in found["draws"]] == [5, 6, 7]
    assert len({one["text_sha256"] for one in found["draws"]}) == K
    runs = [Run.load(audit.path / one["run"]) for one in found["draws"]]
    assert len({run.meta["weight_hash"] for run in runs}) == K
    base = Run.load(audit.path / "runs" / "baseline")
    again = compare_draws(base, runs, resamples=120)
    assert again.to_dict() == {key: found[key] for key in again.to_dict()}
    assert set(found["changes"]) == {"conf_true", "nll", "acc", "text_nll"}
    gold = base.scores().gold
    change = [
        run.scores().distributions.of(gold)[0] - base.scores().distributions.of(gold)[0]
        for run in runs
    ]
    by_hand = draw_variance(np.stack(change, axis=1))
    assert by_hand.var_draw == found["changes"]["conf_true"]["var_draw"]
    # The candidate is the first of the builds.
    own = audit.candidates["gptq-int4-g32"]["quantization"]["calibration"]["sha256"]
    assert own == found["draws"][0]["text_sha256"]


def test_reports_show_them(finished: tuple[Audit, str]) -> None:
    audit = finished[0]
    page = (audit.path / "report.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="draws">') :]
    assert "gptq-int4-g32, 3 draws" in section and "ECE of the builds" in section
    assert '<a href="#draws">' in page
    text = re.sub(r"\s+", " ", str(audit.table()))
    assert "Draws: gptq-int4-g32, change over 3 calibration draws" in text
    plain = {**audit.data, "candidates": [{**one} for one in audit.data["candidates"]]}
    for one in plain["candidates"]:
        del one["draws"]  # an audit of before
    assert '<section id="draws">' not in render(plain, {})


def test_killed_audit_goes_on_at_finished_builds(
    finished: tuple[Audit, str], folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    whole, out = finished[0], tmp_path / "cut"
    shutil.copytree(whole.path, out)
    (out / jobs.JOB_FILE).write_bytes((whole.path / jobs.JOB_FILE).read_bytes())
    for name in ("audit.json", "report.html"):
        (out / name).unlink()
    shutil.rmtree(out / "controls" / "draw-gptq-int4-g32-7")
    loaded: list[tuple[str, int | None]] = []
    load = driver._load

    def noted(state: Any, entry: Any, *, seed: int | None = None) -> Any:
        loaded.append((entry.name, seed))
        return load(state, entry, seed=seed)

    monkeypatch.setattr(driver, "_load", noted)
    again = run_job(draw_job(folder), out, progress=None)
    assert loaded == [("gptq-int4-g32", 7)]
    assert again.data["candidates"][1]["draws"] == whole.data["candidates"][1]["draws"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration_draws": 2}, "expected at least 3 calibration draws, got 2"),
        ({"schemes": ("int8", "nf4")}, r"scheme that calibrates .* got int8, nf4: nearest"),
    ],
)
def test_draws_that_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_job(draw_job(folder, **changes), folder / "refused", progress=None)


def test_each_draw_of_self_is_written(folder: Path) -> None:
    job = draw_job(
        folder, calibration="self", calibration_tokens=64, schemes=("gptq-int4-g32",),
        calibration_seed=None,
    )  # fmt: skip
    audit = run_job(job, folder / "self", progress=None)
    names = ("calibration.jsonl", "calibration-1.jsonl", "calibration-2.jsonl")
    hashes = [kept_text.read(audit.path / name).sha256 for name in names]
    found = audit.data["candidates"][0]["draws"]["draws"]
    assert [one["text_sha256"] for one in found] == hashes and len(set(hashes)) == K
    assert audit.data["protocol"]["calibration_seeds"] == [0, 1, 2]


def test_an_effect_below_the_draws_is_a_warning() -> None:
    logits, gold = golden.v1().A, golden.v1().y
    builds = [run_with(own / 10000.0, gold) for own in golden.v6(logits)]
    found = compare_draws(run_with(logits / 10000.0, gold), builds, resamples=200)
    line = warnings("gptq-nf4", Built((0, 1, 2, 3), (None,) * 4, ("",) * 4, found))[0]
    assert line.startswith("gptq-nf4: effect_below_draw: over 4 calibration draws the mean change")
    assert "confidence in the right answer" in line
