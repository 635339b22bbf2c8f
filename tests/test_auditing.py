"""Audits of a tiny model: end to end, continued, refused, with failing and foreign candidates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
import tiny_tokenizers
from audit_cases import job_of, prepare, save_model
from calibit.attribution.job import AttributionJob
from calibit.auditing import Audit, Job, assembly, audit, driver, models, run_job
from calibit.auditing import job as jobs
from calibit.auditing.assembly import policy_of
from calibit.auditing.judging import judge_audit
from calibit.auditing.result import SEVERITY
from calibit.comparison import compare
from calibit.runs import MANIFEST, Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, items and a text on disk."""
    return prepare(tmp_path_factory.mktemp("audit"))


def whole_job(folder: Path, **changes: Any) -> Job:
    """The job of `finished`."""
    return job_of(folder, **{"speed": "quick", **changes})


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads cost more than they gain on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(folder: Path) -> Audit:
    """An audit of two schemes; tests must not write into it."""
    return run_job(whole_job(folder), folder / "finished", progress=None)


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def items_of(folder: Path) -> bytes:
    return (folder / "items.jsonl").read_bytes()


# End to end ------------------------------------------------------------------------------------


def test_audit_writes_its_parts(finished: Audit) -> None:
    assert {file.name for file in finished.path.iterdir()} >= {"audit.json", "report.html", "runs"}
    assert {file.name for file in (finished.path / "runs").iterdir()} == {
        "baseline", "int8-g128", "gptq-int4-g32",
    }  # fmt: skip
    assert Audit.load(finished.path).data == json.loads(
        (finished.path / "audit.json").read_text(encoding="utf-8")
    )
    page = (finished.path / "report.html").read_text(encoding="utf-8")
    assert "gptq-int4-g32" in page


def test_audit_json_has_the_promised_entries(finished: Audit) -> None:
    data = finished.data
    assert data["schema"] == "calibit.audit/1"
    assert data["machine"]["threads"] == torch.get_num_threads()
    assert data["protocol"]["tasks"] == [{"name": "items", "n": 80}]
    assert data["protocol"]["text"]["tokens"] == 310
    calibration = data["candidates"][1]["quantization"]["calibration"]
    assert data["protocol"]["calibration_tokens"] == calibration["tokens"] == 13 * 64
    for one in (data["baseline"], *data["candidates"]):
        assert one["footprint"]["bits_per_weight_model"] > 0
        assert one["speed"]["decode_tok_s"]["value"] > 0 and one["speed"]["kernels"]
        for metric, estimate in one["metrics"].items():
            assert estimate["metric"] == metric
            assert estimate["estimator"] and "n" in estimate and "interval" in estimate
    for one in data["candidates"]:
        assert one["verdict"]["verdict"] in SEVERITY
        assert len(one["modules"]) == 14 and one["quantization"]["seconds"] > 0
        assert set(one["comparison"]["deltas"]) > {"acc", "conf_true", "ece", "nll"}


def test_audit_equals_a_comparison_of_its_runs(finished: Audit) -> None:
    runs = finished.path / "runs"
    again = compare(runs / "baseline", runs / "gptq-int4-g32", resamples=120)
    recorded = finished.candidates["gptq-int4-g32"]["comparison"]
    by_controls = [check["check"] for check in recorded["checks"][len(again.checks) :]]
    assert by_controls == ["identical run", "8-bit control, all_flips", "8-bit control, nll"]
    assert {**again.to_dict(), "checks": recorded["checks"]} == recorded
    assert again.verdict().verdict == finished.verdicts["gptq-int4-g32"]
    assert finished.comparison("gptq-int4-g32").to_dict() == recorded
    with pytest.raises(ValueError, match=r"\[audit\] expected a measured candidate"):
        finished.comparison("nf4")


def test_models_run_on_the_kernels_that_are_named(finished: Audit) -> None:
    assert finished.data["baseline"]["speed"]["kernels"] == "torch"
    ours = finished.data["machine"]["kernels"]
    assert ours != "torch"
    assert all(one["speed"]["kernels"] == ours for one in finished.data["candidates"])


def test_worst_verdict_counts(finished: Audit) -> None:
    assert finished.verdict == max(finished.verdicts.values(), key=SEVERITY.index)


def test_python_function_and_table(folder: Path, tmp_path: Path) -> None:
    made = audit(
        folder / "model",
        schemes="int8-row",
        tasks=str(folder / "items.jsonl"),
        text=None,
        limit=30,
        speed="none",
        out=tmp_path / "out",
    )
    from rich.console import Console

    console = Console(width=100, record=True, file=open(tmp_path / "log", "w"))  # noqa: SIM115, PTH123
    console.print(made.table())
    assert "int8-row" in console.export_text()
    assert made.data["protocol"]["text"] is None
    assert made.data["protocol"]["tasks"][0]["n"] == 30


# Continued, refused ----------------------------------------------------------------------------


def test_finished_audit_is_returned_without_a_model(
    finished: Audit, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(finished.path)

    def unwanted(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "open_model", unwanted)
    again = run_job(whole_job(folder), finished.path, progress=None)
    assert again.data == finished.data and files_of(finished.path) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schemes": ("int8",)}, 'schemes was ["int8", "gptq-int4-g32"], is ["int8"]'),
        ({"seed": 7}, "seed was 0, is 7"),
        ({"limit": 5}, "limit was null, is 5"),
    ],
)
def test_folder_of_another_job_is_refused_and_untouched(
    finished: Audit, folder: Path, changes: dict[str, Any], named: str
) -> None:
    before = files_of(finished.path)
    with pytest.raises(ValueError, match=r"\[audit\] expected the same job") as caught:
        run_job(whole_job(folder, **changes), finished.path, progress=None)
    assert named in str(caught.value) and "Nothing is overwritten" in str(caught.value)
    assert files_of(finished.path) == before


def test_changed_input_is_another_job(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a cat. " * 100, encoding="utf-8")
    first = job_of(folder, text=str(text)).to_dict()
    text.write_text("a dog. " * 100, encoding="utf-8")
    second = job_of(folder, text=str(text)).to_dict()
    assert [key for key in first if first[key] != second[key]] == ["inputs"]
    with pytest.raises(ValueError, match=r"the content of .*text\.txt has changed"):
        jobs._check_same(tmp_path, first, second)


def test_changed_codebook_is_another_job(folder: Path, tmp_path: Path) -> None:
    """Named by a scheme, or by a scheme of a plan."""
    book, plan = tmp_path / "book.txt", tmp_path / "plan.json"
    plan.write_text(json.dumps({"*": f"gptq-{book}-g32"}))
    for scheme in (f"{book}-g32", str(plan)):
        found = []
        for values in ("-1 -0.5 0 1", "-1 0 0.5 1"):
            book.write_text(values)
            found.append(job_of(folder, schemes=(scheme,)).to_dict())
        with pytest.raises(ValueError, match=r"the content of .*book\.txt has changed"):
            jobs._check_same(tmp_path, *found)
        audit = job_of(folder, schemes=())
        ours = AttributionJob(audit, f"{book}-g32", ("int8", "keep")).to_dict()
        assert ours["inputs"][str(book)] == found[1]["inputs"][str(book)]


def test_folder_with_other_files_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="which holds other files"):
        run_job(job_of(folder), tmp_path, progress=None)
    assert files_of(tmp_path) == {"thesis.txt": b"precious"}
    with pytest.raises(ValueError, match=r"expected a folder .* got the file"):
        run_job(job_of(folder), tmp_path / "thesis.txt", progress=None)


def test_two_processes_do_not_share_a_folder(folder: Path, tmp_path: Path) -> None:
    job = job_of(folder)
    with (
        jobs.claim(tmp_path / "out", job),
        pytest.raises(RuntimeError, match="another process that writes it"),
        jobs.claim(tmp_path / "out", job),
    ):
        pass
    with jobs.claim(tmp_path / "out", job):
        pass


def test_job_of_which_nothing_was_measured_gives_way(folder: Path, tmp_path: Path) -> None:
    """A process that was killed before the first batch leaves a record and an empty run."""
    out = tmp_path / "out"
    (out / "runs" / "baseline" / "tokens").mkdir(parents=True)
    jobs.write_json(out / "job.json", job_of(folder, seed=7).to_dict())
    jobs.write_json(out / "runs" / "baseline" / "run.json", {"schema": "calibit.run/1"})
    job = job_of(folder, schemes=("int8",), limit=16, text="none")
    made = run_job(job, out, progress=None)
    assert not made.failed
    assert json.loads((out / "job.json").read_text(encoding="utf-8")) == job.to_dict()
    with pytest.raises(ValueError, match=r"\[audit\] expected the same job"):
        run_job(job_of(folder, seed=7), out, progress=None)


def test_failed_first_batch_leaves_a_folder_that_another_job_may_take(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    job = job_of(folder, schemes=("int8",), limit=16, text="none")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr("calibit.evaluation.driver._score_items", fail)
        run_job(replace(job, batch_tokens=4096), tmp_path / "out", progress=None)
    assert not run_job(job, tmp_path / "out", progress=None).failed


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_second_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """End the audit at the third batch of the second model that is scored."""
    begun = []

    def paced(_: Any) -> Any:
        begun.append(0)

        def report(_: Any) -> None:
            begun[-1] += 1
            if len(begun) == 4 and begun[-1] == 3:  # the baseline's first items come twice more
                raise Killed

        return report

    monkeypatch.setattr(driver, "_tokens_to", paced)


def test_killed_audit_continues_to_the_same_answers(folder: Path, tmp_path: Path) -> None:
    job = job_of(folder, schemes=("int8",), limit=16, batch_tokens=64, text_tokens=62)
    whole = run_job(job, tmp_path / "whole", progress=None)
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_second_model(patch)
        run_job(job, out, progress=None)
    assert not (out / "audit.json").exists()
    assert [file.parent.name for file in (out / "runs").rglob(MANIFEST)] == ["baseline"]
    assert (out / "runs/int8-g128/items.part.jsonl").stat().st_size > 0
    moment = (out / "runs/baseline" / MANIFEST).stat().st_mtime_ns
    second = run_job(job, out, progress=None)
    assert (out / "runs/baseline" / MANIFEST).stat().st_mtime_ns == moment
    for name in ("baseline", "int8-g128"):
        assert items_of(out / "runs" / name) == items_of(whole.path / "runs" / name)
    assert second.data["candidates"][0]["comparison"] == whole.data["candidates"][0]["comparison"]


# Candidates ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit of checkpoints of all sorts, named after what is special about them."""
    from calibit.quantization import quantize_checkpoint

    place = tmp_path_factory.mktemp("foreign")
    quantize_checkpoint(folder / "model", "int8", place / "made-elsewhere")
    save_model(place / "other", seed=1)
    quantize_checkpoint(place / "other", "int8", place / "of-other-weights")
    save_model(place / "gpt2", architecture="gpt2")
    save_model(place / "padded")
    tokenizer = tiny_tokenizers.build()
    tokenizer.pad_token = "<eos>"
    tokenizer.save_pretrained(place / "padded")
    save_model(place / "without-tokenizer")
    for file in (place / "without-tokenizer").glob("tokenizer*"):
        file.unlink()
    save_model(place / "merged")
    tiny_tokenizers.build(merges=[("t", "h")]).save_pretrained(place / "merged")
    (place / "broken").mkdir()
    (place / "broken" / "config.json").write_text("{}")
    names = ("made-elsewhere", "of-other-weights", "gpt2", "padded", "without-tokenizer")
    sources = tuple(str(place / name) for name in (*names, "merged", "broken"))
    job = job_of(folder, schemes=("int8",), candidates=sources, limit=40, text="none")
    return run_job(job, place / "out", progress=None)


def test_failing_candidates_are_reported_and_the_others_go_on(foreign: Audit) -> None:
    assert list(foreign.failed) == ["merged", "broken"] and foreign.verdict is None
    assert "tokenizer" in foreign.failed["merged"]
    assert "broken" in foreign.failed["broken"]
    assert len(foreign.verdicts) == 6
    assert "Failed" in (foreign.path / "report.html").read_text(encoding="utf-8")


def test_checkpoint_of_ours_scores_like_its_scheme(foreign: Audit) -> None:
    runs = foreign.path / "runs"
    ours, theirs = (Run.load(runs / name).scores() for name in ("int8-g128", "made-elsewhere"))
    assert all((a == b).all() for a, b in zip(ours.z, theirs.z, strict=True))
    one = foreign.candidates["made-elsewhere"]
    assert one["quantization"]["checkpoint"] == "calibit"
    assert one["quantization"]["scheme"] == "int8-g128"
    assert one["footprint"] | {"peak_rss": 0} == foreign.candidates["int8-g128"]["footprint"] | {
        "peak_rss": 0
    }


def test_lineage_is_checked(foreign: Audit) -> None:
    warnings = foreign.data["warnings"]
    doubted = [text.split()[0] for text in warnings if "not those of precision alone" in text]
    assert doubted == ["of-other-weights", "gpt2"]
    assert any("gpt2 differs from the baseline in model_type" in text for text in warnings)
    for name, one in foreign.candidates.items():
        if "error" in one:
            continue
        checks = {check["check"]: check for check in one["comparison"]["checks"]}
        assert checks["pair identity"]["passed"] == (name not in doubted)
        if name in doubted:
            assert "not those of precision alone" in checks["pair identity"]["detail"]
            assert foreign.verdicts[name] == "inconclusive"
    page = (foreign.path / "report.html").read_text(encoding="utf-8")
    assert page.count("pair identity failed") == len(doubted)


def test_tokenizer_saved_in_another_way_is_accepted_and_noted(foreign: Audit) -> None:
    noted = [text for text in foreign.data["warnings"] if "tokenizer files differ" in text]
    assert len(noted) == 1 and noted[0].startswith("padded: ")
    for name in ("padded", "without-tokenizer"):
        assert foreign.candidates[name]["comparison"]["flips"]["all_flips"] == 0


def test_failed_candidate_is_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = models.load, []

    def flaky(entry: models.Entry, *more: Any, **named: Any) -> models.Loaded:
        tries.append(entry.name)
        if entry.name == "nf4" and tries.count("nf4") == 1:
            raise RuntimeError("no space left on device")
        return real(entry, *more, **named)

    monkeypatch.setattr(models, "load", flaky)
    job = job_of(folder, schemes=("nf4", "int8"), limit=20, text="none")
    first = run_job(job, tmp_path / "out", progress=None)
    assert first.failed == {"nf4": "no space left on device"}
    second = run_job(job, tmp_path / "out", progress=None)
    assert not second.failed and tries == ["baseline", "nf4", "int8-g128", "nf4"]


def test_failing_baseline_stops_the_audit(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"\[model\] expected a model"):
        run_job(job_of(folder, model=str(tmp_path / "model")), tmp_path / "out", progress=None)


def test_notes_beside_the_model_reach_the_report(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "noted"
    shutil.copytree(folder / "model", model)
    (model / models.SOURCE_FILE).write_text(json.dumps({"notes": ["Stored in 4 bits before."]}))
    job = job_of(folder, model=str(model), schemes=("int8",), limit=10, text="none")
    found = run_job(job, tmp_path / "out", progress=None)
    assert found.data["model"]["notes"] == ["Stored in 4 bits before."]
    assert "Stored in 4 bits before." in (found.path / "report.html").read_text(encoding="utf-8")


def test_busy_machine_is_noticed() -> None:
    def speed(rate: float) -> dict[str, Any]:
        return {"reference": {"matmul_gflop_s": {"value": rate}}}

    assert not assembly._busy_machine([speed(10.0), None, speed(12.0)])
    (doubt,) = assembly._busy_machine([speed(10.0), speed(25.0)])
    assert "2.5 times" in doubt and not assembly._busy_machine([])


# Jobs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schemes": ("int4", "zz9")}, r"zz9.*nf4"),
        ({"schemes": ()}, "expected at least one scheme or candidate"),
        ({"schemes": ("int8", "g128-int8")}, "'int8-g128' more than once"),
        ({"rigor": "total"}, "expected rigor to be one of"),
        ({"speed": "total"}, "expected speed to be one of"),
        ({"limit": 0}, "expected limit of at least 1"),
        ({"calibration_tokens": 0}, "expected calibration_tokens of at least 1"),
        ({"level": 2.0}, "expected a level between 0 and 1"),
        ({"resamples": 5}, "expected at least 100 resamples"),
        ({"tasks": (), "text": "none"}, "expected tasks with items, or a text, got neither"),
        ({"tasks": ("no-such-task",)}, "no-such-task"),
        ({"text": "./missing.txt"}, "missing.txt"),
        ({"model": "./missing/model"}, "which does not exist"),
        ({"candidates": ("./missing/candidate",)}, "which does not exist"),
    ],
)
def test_wrong_job_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_job(job_of(folder, **changes), tmp_path / "out", progress=None)
    assert not (tmp_path / "out").exists()


def test_bad_line_of_a_task_names_file_and_line(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"context": "a", "choices": ["b", "c"], "label": 0}\n{"context":\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2"):
        run_job(job_of(folder, tasks=(str(file),)), tmp_path / "out", progress=None)


def test_entries_name_schemes_plans_and_checkpoints(tmp_path: Path) -> None:
    plan = tmp_path / "mixed.json"
    plan.write_text('{"mlp.*": "int4", "*": "gptq-int8"}')
    found = models.entries(
        Job("m", schemes=("g32-int4", str(plan)), candidates=("org/Model-GPTQ",))
    )
    assert [(one.name, one.folder, one.kind) for one in found] == [
        ("baseline", "baseline", "baseline"),
        ("int4-g32", "int4-g32", "nearest"),
        ("mixed", "mixed", "gptq"),
        ("Model-GPTQ", "Model-GPTQ", "checkpoint"),
    ]


def test_fingerprint_tells_large_files_of_one_size_apart(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    content = bytearray(6_000_000)
    file.write_bytes(content)
    first = jobs.fingerprint(file)
    content[2_000_000:4_000_000:1000] = bytes([1]) * 2000
    file.write_bytes(content)
    assert jobs.fingerprint(file) != first
    assert jobs.fingerprint(tmp_path) != jobs.fingerprint(file)


# Judging again ---------------------------------------------------------------------------------


def test_verdicts_under_another_policy(finished: Audit, tmp_path: Path) -> None:
    loose = {"margins": {"text_nll": 9.9}}
    assert judge_audit(finished, policy=loose).worst == "ship"  # labels do not: the model guesses
    assert (
        judge_audit(finished, policy={"margins": {"acc": 0.9}}).worst == "inconclusive"
    )  # guesses
    strict = tmp_path / "strict.yaml"
    strict.write_text("name: strict\nmargins: {nll: 0.000001, conf_true: 0.000001}\n")
    judged = judge_audit(finished, scheme="gptq-int4-g32", policy=strict)
    assert judged.worst == "hold" and set(judged.verdicts) == {"gptq-int4-g32"}
    assert judge_audit(finished).worst == finished.verdict
    with pytest.raises(ValueError, match="expected a candidate of the audit"):
        judge_audit(finished, scheme="nf4")


def test_policy_that_is_wrong_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        policy_of(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="cannot be gated"):
        policy_of({"margins": {"ece": 0.1}})


def test_audit_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"without audit\.json"):
        Audit.load(tmp_path)
    (tmp_path / "audit.json").write_text('{"schema": "calibit.audit/99"}')
    with pytest.raises(ValueError, match=r"calibit\.audit/99"):
        Audit.load(tmp_path)


def test_baseline_is_the_float_model(finished: Audit, folder: Path) -> None:
    """The first item's scores are those of the model itself."""
    model, tokenizer = tiny_models.build("llama"), tiny_tokenizers.build()
    run = Run.load(finished.path / "runs" / "baseline")
    doc, line = (run.docs() or [])[0], run.items()[0]
    text = doc["context"] + doc["delimiter"] + doc["choices"][0]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
    count = line["tokens"][0]
    steps = range(ids.shape[1] - count - 1, ids.shape[1] - 1)
    expected = sum(float(logits[i, ids[0, i + 1]]) for i in steps)
    assert line["ll"][0] == pytest.approx(expected, abs=1e-4)


def test_rigor_adds_control_runs(folder: Path, tmp_path: Path) -> None:
    job = job_of(folder, schemes=("nf4",), limit=6, text="none", rigor="full", speed="none")
    run_job(job, tmp_path / "out", progress=None)
    made = {path.parent.name for path in (tmp_path / "out" / "controls").glob("*/manifest.json")}
    copies = {f"copy-nf4-{seed}" for seed in range(8)}
    assert made == {"repeat-1", "repeat-2", "batches-1", "batches-1024", "int8"} | copies
    items = {
        name: (tmp_path / "out" / "controls" / name / "items.jsonl").read_bytes() for name in made
    }
    assert items["repeat-1"] == items["repeat-2"]
    assert len({items[name] for name in copies}) == 8


def test_second_wording_is_scored_where_a_task_has_one(folder: Path, tmp_path: Path) -> None:
    job = job_of(
        folder, schemes=("nf4",), tasks=("probe",), limit=4, text="none", rigor="standard",
        speed="none",
    )  # fmt: skip
    run_job(job, tmp_path / "out", progress=None)
    runs = [Run.load(tmp_path / "out" / "controls" / f"wording-{n}") for n in ("baseline", "nf4")]
    main = Run.load(tmp_path / "out" / "runs" / "nf4")
    for run in runs:
        assert {line["id"] for line in run.items()} == {line["id"] for line in main.items()}
