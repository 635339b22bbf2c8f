"""Bad input as a user meets it: each kind once through the public calls, with what must be said.

The checks of single arguments are in test_measures_edges.py, those of files in test_tasks.py,
test_runs.py and test_io_lm_eval.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibit import compare
from calibit import measures as m
from calibit.cli import main
from calibit.runs import Run
from calibit.tasks import read_prompts
from comparison_runs import MemoryRun, simulated

QUICK = {"resamples": 200}
GOOD = [[0.6, 0.4], [0.3, 0.7]]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([0.6, 0.3], "sum to 1, got a sum of 0.9 in item 2"),
        ([0.6, 0.400002], "sum to 1, got a sum of 1.000002 in item 2"),
        ([math.nan, 1.0], "got NaN in item 2"),
        ([1.1, -0.1], "got a negative value in item 2"),
        ([math.inf, 0.0], "sum to 1, got a sum of inf in item 2"),
        ([], "item 2"),
    ],
)
def test_what_is_no_distribution_is_refused_by_item(row: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        m.Distributions.from_probabilities([*GOOD, row])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_by_id(value: float) -> None:
    with pytest.raises(ValueError, match=r"expected finite scores, got .* in item 'b' of task 't'"):
        m.Scores.from_arrays([[0.0, -1.0], [0.0, value]], [0, 1], ids=["a", "b"], task="t")


def test_empty_input_gives_no_value_and_a_reason() -> None:
    for metric, found in m.summarize(m.Scores.from_arrays([])).items():
        assert found.value is None and found.reason, metric
    assert m.ece([], []).reason == "no items"
    with pytest.raises(ValueError, match="expected the same items in both runs, got 0 only in a"):
        compare(MemoryRun([]), simulated(4)[1], **QUICK)


def test_one_class_only_leaves_ranking_undefined_and_the_rest_given() -> None:
    """All right, then all wrong: AUROC has no value, and says which class is missing."""
    z = np.random.default_rng(0).normal(size=(60, 3))
    for gold, words in ((z.argmax(1), "all items are right"), (z.argmin(1), "all items are wrong")):
        table = m.summarize(m.Scores.from_arrays(z, gold))
        assert table["auroc"].value is None and table["auroc"].reason == words
        assert all(table[name].value is not None for name in ("acc", "ece", "nll", "brier", "aurc"))
        result = compare(MemoryRun(z, gold), MemoryRun(z * 0.5, gold), **QUICK)
        assert result.deltas["auroc"].value is None and result.deltas["nll"].value is not None
        json.dumps(result.to_dict(), allow_nan=False)


def test_mixed_numbers_of_choices_leave_classwise_measures_undefined() -> None:
    z = [[0.0, -1.0], [0.0, -1.0, -2.0], [-1.0, 0.0, -1.0, -3.0]] * 20
    table = m.summarize(m.Scores.from_arrays(z, [0, 1, 1] * 20))
    for name in ("sce", "ace_nixon", "tace", "debiased_l2_marginal"):
        assert table[name].value is None
        assert "the number of choices differs between items (2, 3, 4)" in str(table[name].reason)
    assert all(table[name].value is not None for name in ("acc", "ece", "nll", "brier", "auroc"))


def test_items_with_a_single_choice_raise_the_alarm() -> None:
    a, b = ([[0.0, -1.0], [-2.0], [0.0, -2.0]] * 10, [[0.0, -1.5], [-3.0], [0.0, -2.5]] * 10)
    result = compare(MemoryRun(a, [0] * 30), MemoryRun(b, [0] * 30), **QUICK)
    failed = [check for check in result.checks if not check.passed]
    assert {(c.check, c.count, c.first) for c in failed} == {("single choice", 10, "1")}
    assert result.verdict().verdict == "inconclusive"


def damaged(change: Callable[[dict[str, Any], list[dict[str, Any]]], Any]) -> tuple[Run, Run]:
    """Two equal runs, the second one changed."""
    meta = {"tokenizer_hash": "aa", "bos": "tokenizer", "text": [], "scheme": "none"}
    rows = np.random.default_rng(3).uniform(-6.0, -1.0, (40, 3)).tolist()
    lines = [
        {"kind": "choice", "id": f"q{i}", "task": "t", "gold": i % 3, "ll": row, "slices": {}}
        for i, row in enumerate(rows)
    ]
    other, copy = dict(meta), json.loads(json.dumps(lines))
    change(other, copy)
    return Run.of(meta, lines), Run.of(other, copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda meta, lines: lines.pop(7), r"1 only in a \(t/q7\) and 0 only in b"),
        (lambda meta, lines: lines[7].update(id="new"), r"1 only in a \(t/q7\).*\(t/new\)"),
        (lambda meta, lines: lines.append(lines[7]), r"every \(task, id\) once.*t/q7"),
        (lambda meta, lines: lines[7].update(gold=0), r"same right answer.*\(t/q7\)"),
        (lambda meta, lines: lines[7]["ll"].pop(), r"same number of choices.*\(t/q7\)"),
        (lambda meta, lines: meta.update(tokenizer_hash="bb"), "same tokenizer in both"),
        (lambda meta, lines: meta.update(bos="never"), "same BOS rule in both"),
    ],
)
def test_runs_that_do_not_pair_are_refused_by_item(change: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare(*damaged(change), **QUICK)


def written(folder: Path, run: Run) -> Path:
    """A run as a folder with a manifest."""
    from calibit.evaluation.folder import RunFolder

    with RunFolder.open(folder, {}) as stored:
        stored.start({**run.meta})
        stored.finish({**run.meta}, run.items(), None)
    return folder


@pytest.mark.parametrize("word", ["--allow-partial", "--allow_partial"])
def test_the_command_compares_a_part_only_where_allowed(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = damaged(lambda meta, lines: lines.pop(7))
    folders = [str(written(tmp_path / name, run)) for name, run in (("a", a), ("b", b))]
    words = ["compare", *folders, "--resamples", "100"]
    assert main(words) == 3
    assert "1 only in a (t/q7)" in capsys.readouterr().err
    assert main([*words, word]) == 0
    assert "only 39 items are in both runs" in " ".join(capsys.readouterr().out.split()).lower()


def test_the_command_takes_clusters_and_names_what_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def grouped(meta: Any, lines: list[dict[str, Any]]) -> None:
        for index, line in enumerate(lines):
            line["slices"] = {"passage": str(index // 4)}

    _, run = damaged(grouped)
    folders = [str(written(tmp_path / name, run)) for name in ("a", "b")]
    words = ["compare", *folders, "--resamples", "100"]
    assert main([*words, "--clusters", "passage", "--json"]) == 0
    protocol = json.loads(capsys.readouterr().out)["protocol"]
    assert protocol["clusters"] == 10 and protocol["few_clusters"]
    assert main([*words, "--clusters", "chapter"]) == 3
    assert "expected a slice key or item field for clusters" in capsys.readouterr().err


def test_the_alarm_stands_above_the_results_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = damaged(lambda meta, lines: lines[7]["ll"].__setitem__(0, 0.25))
    folders = [str(written(tmp_path / name, run)) for name, run in (("a", a), ("b", b))]
    words = ["compare", *folders, "--resamples", "100", "-o", str(tmp_path / "out")]
    assert main(words) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("ALARM: the measurement failed its own checks")
    assert "log-probabilities failed" in text and "first q7" in text and "INCONCLUSIVE" in text
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.index('role="alert"') < page.index('class="cards"')


def test_a_truncated_run_names_file_and_line(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", damaged(lambda meta, lines: None)[0])
    file, manifest = folder / "items.jsonl", folder / "manifest.json"
    file.write_bytes(file.read_bytes()[:-25])
    with pytest.raises(ValueError, match="cut or changed after the run ended"):
        Run.load(folder)
    content = json.loads(manifest.read_text())
    content["sha256"]["items.jsonl"] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"expected a JSON object in .*items\.jsonl, line 40"):
        Run.load(folder)


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ('{"context": "x", "choices": ["a", "b"], "lab', "line 3"),
        ('{"id": "one", "context": "x", "choices": ["a", "b"], "label": 1}', "one"),
    ],
)
def test_truncated_and_repeated_rows_of_a_task_are_named(
    tail: str, words: str, tmp_path: Path
) -> None:
    from calibit.tasks import load

    rows = [
        {"id": name, "context": "c", "choices": ["a", "b"], "label": 0} for name in ("one", "two")
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([*map(json.dumps, rows), tail]), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        load(str(file))


def test_missing_items_name_the_option_and_what_was_not_scored() -> None:
    def unscored(meta: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        lines[7] |= {"ll": None, "reason": "the log-likelihood of choice 1 is nan"}

    with pytest.raises(ValueError, match="--allow_partial") as caught:
        compare(*damaged(unscored), **QUICK)
    assert "t/q7 was not scored in b: the log-likelihood of choice 1 is nan" in str(caught.value)
    with pytest.raises(ValueError, match="--allow_partial") as caught:
        compare(*damaged(lambda meta, lines: lines.pop(7)), **QUICK)
    assert "not scored" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "\xff"])
def test_a_damaged_map_is_named_with_its_remedy(text: str, tmp_path: Path) -> None:
    from calibit.auditing.recalibrating import load_map

    (tmp_path / "calibration.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"calibration\.json, got a damaged file .*fit it again"):
        load_map(str(tmp_path), rule="sum")


def test_the_gate_refuses_half_an_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "audit.json").write_text('{"schema": "calibit.audit/1", "protocol": {}}')
    assert main(["gate", str(tmp_path)]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "expected a whole audit" in said and "without baseline, candidates, model;" in said


def test_a_workload_is_explained_with_prompts(tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text("")
    with pytest.raises(ValueError, match=r'write rows such as \{"prompt"'):
        read_prompts(file)
    with pytest.raises(ValueError, match="is a folder"):
        read_prompts(tmp_path)


def test_two_files_that_make_one_task_are_named(tmp_path: Path) -> None:
    from calibit.auditing.inputs import _apart
    from calibit.tasks import read

    row = json.dumps({"context": "2 + 2 =", "choices": ["3", "4"], "label": 1})
    specs = [str(tmp_path / name) for name in ("a.jsonl", "sub/a.jsonl", "b.jsonl")]
    (tmp_path / "sub").mkdir()
    for spec in specs:
        Path(spec).write_text(row + "\n")
    tasks = [read(spec) for spec in specs]
    _apart([specs[0], specs[2]], [tasks[0], tasks[2]])
    with pytest.raises(ValueError, match="make task 'a'; rename one") as caught:
        _apart(specs, tasks)
    assert specs[0] in str(caught.value) and specs[1] in str(caught.value)
