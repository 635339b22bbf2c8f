"""The command line: exit codes, JSON, last lines, sentences instead of tracebacks, quick help."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import tiny_models
from audit_cases import prepare
from calibit import cli, commands
from calibit.commands import options
from calibit.evaluation.driver import BATCH_TOKENS
from calibit.io import native
from calibit.quantization import calibration_text
from report_data import audit_of

SMALL = ["--resamples", "120", "--text_window", "32", "--text_tokens", "62", "--speed", "none"]


@dataclass(frozen=True)
class Answer:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on standard output."""
        return self.out.splitlines()[-1] if self.out else ""


@pytest.fixture
def calibit(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process."""

    def run(*words: str | Path) -> Answer:
        code = cli.main([str(word) for word in words])
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, whole and in ways that it is not; items; texts, also too short ones."""
    place = prepare(tmp_path_factory.mktemp("cli"))
    model = place / "model"
    shutil.copytree(model, place / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree(model, place / "broken")
    weights = place / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (place / "empty_folder").mkdir()
    (place / "short.txt").write_text("a cat.", encoding="utf-8")
    (place / "empty.txt").touch()
    return place


@pytest.fixture(scope="module")
def words(folder: Path) -> list[str]:
    """The options of a small audit, without the schemes and the place."""
    tasks, text = str(folder / "items.jsonl"), str(folder / "text.txt")
    return ["audit", str(folder / "model"), "--tasks", tasks, "--text", text, *SMALL]


@pytest.fixture(scope="module")
def audited(folder: Path, words: list[str]) -> Path:
    """An audit made by the command line."""
    place = folder / "audited"
    assert cli.main([*words, "--schemes", "int8,nf4", "-o", str(place), "--quiet"]) == 0
    return place


def write_audit(folder: Path, verdicts: dict[str, str], *, failed: tuple[str, ...] = ()) -> Path:
    """A made-up audit with these verdicts."""
    content, _ = audit_of(*verdicts, n=60, resamples=100, errors=dict.fromkeys(failed, "no memory"))
    for one in content["candidates"]:
        if one["scheme"] in verdicts:
            one["verdict"]["verdict"] = verdicts[one["scheme"]]
    (folder / "audit.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


# Help and usage --------------------------------------------------------------------------------


def test_help_answers_without_torch() -> None:
    code = (
        "import sys; from calibit.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'scipy', 'matplotlib', 'numpy'} & set(sys.modules);"
        "print('heavy:', *heavy); sys.exit(code)"
    )
    for given in (["--help"], ["audit", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *given], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("heavy:\n")


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_help_with_examples(calibit: Any, name: str) -> None:
    answer = calibit(name, "--help")
    assert answer.code == 0 and f"calibit {name}" in answer.out and "Examples" in answer.out
    assert "--json" in answer.out and "--traceback" in answer.out


def test_help_lists_every_command_and_the_exit_codes(calibit: Any) -> None:
    answer = calibit("--help")
    assert answer.code == 0 and not answer.err
    for text in (*commands.COMMANDS, "0 ship", "1 hold", "2 inconclusive"):
        assert text in answer.out


def test_defaults_are_shown(calibit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = calibit("audit", "--help").out
    numbers = (BATCH_TOKENS, calibration_text.SEGMENTS * calibration_text.LENGTH)
    words = ("probe", "pydoc", "800", "6144", "9999", "0.95", "audit-MODEL", "accuracy 3")
    for default in (*words, *map(str, numbers)):
        assert re.search(rf"default: \(?{re.escape(default)}", text), default


def test_version(calibit: Any) -> None:
    answer = calibit("--version")
    assert (answer.code, answer.err) == (0, "") and re.fullmatch(r"calibit \d.*\n", answer.out)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "A command is missing."),
        (["frobnicate"], "No such command"),
        (["audit"], "Missing argument"),
        (["audit", "m", "--nonsense"], "No such option"),
        (["audit", "m", "--limit", "0"], "--limit: expected a number of items above 0, or all"),
        (["audit", "m", "--limit", "-3"], "--limit"),
        (["audit", "m", "--resamples", "many"], "--resamples"),
        (["audit", "m", "--batch_size", "8"], "batches are planned by tokens"),
        (["quantize", "m", "nf4"], "-o"),
        (["compare", "a"], "Missing argument"),
    ],
)
def test_usage_errors_exit_with_3_and_point_to_help(
    calibit: Any, given: list[str], message: str
) -> None:
    answer = calibit(*given)
    assert answer.code == 3 and answer.out == ""
    assert message in answer.err and "--help'" in answer.err
    assert len(answer.err.splitlines()) == 1 and answer.err.startswith("calibit: ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["audit", "./missing/model"], "does not exist"),
        (["audit", "{model}", "--schemes", "zz9"], "nf4"),
        (["audit", "{model}", "--schemes", "int8", "--tasks", "nothing"], "known tasks"),
        (["audit", "{model}", "--schemes", "int8", "--policy", "no.yaml"], "does not exist"),
        (["audit", "{model}", "--candidates", "./missing/candidate"], "does not exist"),
        (["audit", "{model}", "--rigor", "utmost"], "expected rigor"),
        (["audit", "{model}", "--device", "foo"], "expected device to be cpu, cuda"),
        (["audit", "{model}", "--dtype", "float8"], "expected dtype to be one of auto, float32"),
        (["audit", "{model}", "--rule", "foo"], "expected rule to be one of sum"),
        (["audit", "{model}", "--bos", "foo"], "expected bos to be one of tokenizer"),
        (["audit", "{model}", "--speed", "foo"], "expected speed to be one of none"),
        (["audit", "{model}", "--text", "{short}"], "at least one window"),
        (["audit", "{model}", "--text", "none", "--calib", "{short}"], "[calibration] expected at"),
        (["audit", "{model}", "--text", "none", "--calib", "{empty}"], "[calibration] expected at"),
        (["audit", "{bare}", "--text", "none"], "expected tokenizer files"),
        (["audit", "{empty_folder}"], "without config.json"),
        (["audit", "{broken}", "--text", "none"], "got a damaged file, model.safetensors"),
        (["audit", "{model}", "--text", "none", "--tasks", "{empty}"], "empty.txt"),
        (["eval", "{model}", "-o", "{new}", "--device", "foo"], "expected device"),
        (["eval", "{model}", "-o", "{new}", "--dtype", "float8"], "expected dtype"),
        (["eval", "{model}", "-o", "{new}", "--rule", "foo"], "expected rule"),
        (["eval", "{model}", "-o", "{new}", "--text", "{short}"], "at least one window"),
        (["eval", "{bare}", "-o", "{new}", "--text", "none"], "expected tokenizer files"),
        (["eval", "{broken}", "-o", "{new}", "--text", "none"], "got a damaged file"),
        (["quantize", "{empty_folder}", "nf4", "-o", "{new}"], "without config.json"),
        (["quantize", "{broken}", "nf4", "-o", "{new}"], "got a damaged file, model.safetensors"),
        (["quantize", "{model}", "gptq-int4", "--calib", "{short}", "-o", "{new}"], "at least 64"),
        (["quantize", "{bare}", "gptq-int4", "-o", "{new}"], "expected tokenizer files"),
        (["quantize", "./missing/model", "nf4", "-o", "{new}"], "does not exist"),
        (["quantize", "{model}", "zz9", "-o", "{new}"], "nf4"),
        (["quantize", "{model}", "int4", "-o", "{new}", "--export", "gguf"], "a layout of gptq"),
        (["quantize", "{model}", "nf4", "-o", "{new}", "--export", "gptq"], "nf4 has a codebook"),
        (
            [
                "quantize",
                "{model}",
                "int4-g16",
                "-o",
                "{new}",
                "--export",
                "gptq",
                "--for",
                "sglang",
            ],
            "groups of -1, 32, 64, 128",
        ),
        (["convert", "{model}", "{new}", "--to", "gptq"], "expected a quantized checkpoint"),
        (["convert", "./missing/model", "{new}", "--to", "gptq"], "does not exist"),
        (["convert", "{model}", "{new}", "--to", "gguf"], "expected a layout of gptq"),
        (["convert", "{model}", "{new}", "--to", "gptq", "--for", "tgi"], "an engine of vllm"),
        (["convert", "{empty_folder}", "{new}", "--to", "gptq"], "expected config.json"),
        (["eval", "./missing/model", "-o", "{new}"], "does not exist"),
        (["compare", "{model}", "{model}"], "run.json"),
        (["gate", "{model}"], "audit.json"),
    ],
)
def test_failures_exit_with_3_and_one_sentence(
    calibit: Any, folder: Path, tmp_path: Path, given: list[str], message: str
) -> None:
    fill = {name: folder / name for name in ("model", "bare", "broken", "empty_folder")}
    fill |= {"new": tmp_path / "new", "short": folder / "short.txt", "empty": folder / "empty.txt"}
    given = [word.format(**fill) for word in given]
    placed = ("quantize", "convert", "compare", "gate", "eval")
    place = [] if given[0] in placed else ["-o", tmp_path / "out"]
    answer = calibit(*given, *place)
    assert answer.code == 3 and answer.out == ""
    assert message in answer.err and "Traceback" not in answer.err
    assert answer.err.splitlines()[-1].startswith("calibit: ")
    assert not list(tmp_path.iterdir())


def test_corrected_command_runs_after_a_failed_one(
    calibit: Any, folder: Path, words: Any, tmp_path: Path
) -> None:
    """Weights are damaged, then repaired: what failed holds no place."""
    shutil.copytree(folder / "broken", tmp_path / "model")
    given = ["audit", tmp_path / "model", *words[2:], "--schemes", "int8", "-o", tmp_path / "out"]
    failed = calibit(*given, "-q")
    assert failed.code == 3 and "damaged" in failed.err and not (tmp_path / "out").exists()
    shutil.copy(folder / "model" / "model.safetensors", tmp_path / "model")
    assert calibit(*given, "-q", "--limit", "20").code == 0


@pytest.mark.parametrize("command", ["audit", "quantize", "eval"])
def test_kernels_that_cannot_run_are_refused_before_a_model_is_read(
    calibit: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, command: str
) -> None:
    def refuse() -> list[Any]:
        raise ValueError("[CALIBIT_ISA] expected kernels that this CPU can run")

    def unwanted(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("calibit._C.kernels", refuse)
    monkeypatch.setattr("calibit.loading.read_model", unwanted)
    scheme = ["nf4"] if command == "quantize" else []
    answer = calibit(command, folder / "model", *scheme, "-o", tmp_path / "out", "-q")
    assert answer.code == 3 and "CALIBIT_ISA" in answer.err and not list(tmp_path.iterdir())


def test_model_that_is_nowhere_is_said_at_once(
    calibit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for command, scheme in (("audit", []), ("eval", []), ("quantize", ["nf4"])):
        answer = calibit(command, "no-such-model", *scheme, "-o", tmp_path / "out")
        assert answer.code == 3 and answer.out == ""
        first, *_, last = answer.err.splitlines()
        assert len(answer.err.splitlines()) <= 3  # quantize shows its progress in between
        assert first == "no such folder; trying the hub as 'no-such-model'"
        assert "got 'no-such-model': there is no such folder" in last and "give a folder" in last
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [1, 2, 77])
@pytest.mark.parametrize("kind", [typer.Exit, SystemExit])
def test_exit_codes_of_the_library_are_no_verdicts(
    calibit: Any, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], code: int
) -> None:
    def leave() -> None:
        raise kind(code)

    monkeypatch.setattr("calibit.doctor.diagnose", leave)
    assert calibit("doctor").code == 3


def test_traceback_on_request(calibit: Any) -> None:
    answer = calibit("gate", "./missing", "--traceback")
    assert answer.code == 3 and "Traceback" in answer.err
    assert answer.err.splitlines()[-1].startswith("calibit: [audit]")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("x"), "unexpected KeyError: 'x'; --traceback shows where"),
        (ValueError("[op] expected a,\n got b"), "[op] expected a, got b"),
        (RuntimeError(""), "unexpected RuntimeError: no message"),
        (KeyboardInterrupt(), "interrupted; the same command continues"),
        (typer.Abort(), "interrupted"),
    ],
)
def test_errors_become_sentences(
    calibit: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("calibit.doctor.diagnose", fail)
    answer = calibit("doctor")
    assert answer.code == 3 and message in answer.err and answer.out == ""


def test_a_request_to_end_removes_what_is_half_written(
    calibit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, as `timeout`, schedulers and containers send it, while the weights are written."""
    folder, before = tmp_path / "model", signal.getsignal(signal.SIGTERM)
    tiny_models.build("llama").save_pretrained(folder)
    write = native.write

    def ended(model: Any, place: Path, **options: Any) -> None:
        write(model, place, **options)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(native, "write", ended)
    answer = calibit("quantize", folder, "nf4", "-o", tmp_path / "out", "--quiet")
    assert answer.code == 3 and answer.err.startswith("calibit: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert signal.getsignal(signal.SIGTERM) is before


# Verdicts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ({"nf4": "ship"}, 0),
        ({"nf4": "ship", "int8-g128": "hold"}, 1),
        ({"nf4": "inconclusive", "int8-g128": "ship"}, 2),
        ({"nf4": "inconclusive", "int8-g128": "hold"}, 1),
    ],
)
def test_gate_answers_with_the_worst_verdict(
    calibit: Any, tmp_path: Path, verdicts: dict[str, str], code: int
) -> None:
    answer = calibit("gate", write_audit(tmp_path, verdicts))
    assert answer.code == code and answer.last == f"Report: {tmp_path / 'report.html'}"
    for name, verdict in verdicts.items():
        assert name in answer.out and verdict.upper() in answer.out


def test_gate_of_one_candidate(calibit: Any, tmp_path: Path) -> None:
    place = write_audit(tmp_path, {"nf4": "ship", "int8-g128": "hold"}, failed=("fp4",))
    assert calibit("gate", place, "--scheme", "nf4").code == 0
    for spelling in ("int8-g128", "int8", "INT8", "g128-int8"):
        assert calibit("gate", place, "--scheme", spelling).code == 1
    assert calibit("gate", place, "--scheme", "fp4").code == 3
    missing = calibit("gate", place, "--scheme", "int2")
    assert missing.code == 3 and "nf4, int8-g128, fp4" in missing.err


def test_gate_does_not_pass_where_a_candidate_failed(calibit: Any, tmp_path: Path) -> None:
    answer = calibit("gate", write_audit(tmp_path, {"nf4": "ship"}, failed=("fp4",)))
    assert answer.code == 3 and "not measured: fp4" in answer.err
    assert "no memory" in answer.out


def test_gate_under_another_policy(calibit: Any, audited: Path, tmp_path: Path) -> None:
    loose, strict = tmp_path / "loose.yaml", tmp_path / "strict.yaml"
    loose.write_text("margins: {text_nll: 9.9}\n")  # labels ship nothing: the model guesses
    strict.write_text("margins: {nll: 0.0000001, conf_true: 0.0000001, acc: 0.0000001}\n")
    assert calibit("gate", audited, "--policy", loose).code == 0
    assert calibit("gate", audited, "--policy", strict).code in (1, 2)
    answer = calibit("gate", audited, "--policy", loose, "--json")
    assert json.loads(answer.out)["verdict"] == "ship"
    assert json.loads(answer.out)["policy"] == "loose"


def test_gate_under_another_policy_says_whose_verdict_the_report_shows(
    calibit: Any, audited: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "loose.yaml"
    policy.write_text("margins: {acc: 0.9}\n")
    said = "the report shows the audit's own policy"
    answer = calibit("gate", audited, "--policy", policy)
    assert f"Judged under loose; {said}." in answer.out and "Report: " in answer.last
    assert said not in calibit("gate", audited).out


def test_gate_takes_the_file_of_an_audit(calibit: Any, tmp_path: Path) -> None:
    file = write_audit(tmp_path, {"nf4": "ship"}) / "audit.json"
    answer = calibit("gate", file)
    assert answer.code == 0 and answer.last == f"Report: {tmp_path / 'report.html'}"


# The commands ----------------------------------------------------------------------------------


def test_audit_prints_table_verdicts_and_place(calibit: Any, audited: Path, words: Any) -> None:
    """The audit is finished: the same command prints it again."""
    answer = calibit(*words, "--schemes", "int8,nf4", "-o", audited)
    assert answer.code == 0 and answer.last == f"Report: {audited / 'report.html'}"
    assert "accuracy %" in answer.out and "int8-g128" in answer.out and "nf4" in answer.out
    assert max(map(len, answer.out.splitlines()[:-1])) <= 100
    assert "\x1b" not in answer.out and answer.err == ""


def test_audit_as_json_prints_nothing_else(calibit: Any, audited: Path, words: Any) -> None:
    answer = calibit(*words, "--schemes", "int8,nf4", "-o", audited, "--json")
    content = json.loads(answer.out)
    assert content["output"] == str(audited / "report.html")
    stored = json.loads((audited / "audit.json").read_text(encoding="utf-8"))
    assert {key: content[key] for key in stored} == stored


def test_audit_with_gate_exits_with_its_verdict(calibit: Any, audited: Path, words: Any) -> None:
    given = [*words, "--schemes", "int8,nf4", "-o", audited, "--gate"]
    worst = calibit("gate", audited).code
    assert worst in (1, 2)  # eighty items settle little
    assert calibit(*given).code == worst


def test_audit_in_the_folder_of_another_is_refused(calibit: Any, audited: Path, words: Any) -> None:
    answer = calibit(*words, "--schemes", "int8", "-o", audited)
    assert answer.code == 3 and "schemes was" in answer.err and answer.out == ""


def test_audit_with_a_failed_candidate_exits_with_3(
    calibit: Any, words: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    answer = calibit(
        *words, "--limit", "20", "--schemes", "int8", "--candidates", broken,
        "-o", tmp_path / "out", "--gate",
    )  # fmt: skip
    assert answer.code == 3 and "not measured: broken" in answer.err
    assert "FAILED" in answer.out and answer.last.startswith("Report: ")
    assert "scoring items and text" in answer.err  # progress, on standard error


def test_export_and_convert(calibit: Any, folder: Path, tmp_path: Path) -> None:
    own, foreign = tmp_path / "own", tmp_path / "gptq"
    made = calibit("quantize", folder / "model", "int4-g16", "--export", "gptq", "-o", foreign)
    assert made.code == 0 and made.last == f"Checkpoint: {foreign}"
    section = json.loads((foreign / "config.json").read_text())["quantization_config"]
    assert (section["quant_method"], section["bits"], section["group_size"]) == ("gptq", 4, 16)
    assert (foreign / "tokenizer.json").is_file()
    back = calibit("convert", foreign, own, "--to", "calibit")
    assert back.code == 0 and "the logits of 16 tokens are equal" in " ".join(back.out.split())
    content = json.loads(calibit("convert", own, tmp_path / "v2", "--to", "gptq_v2", "--json").out)
    assert content["logit_difference"] == 0.0 and content["output"] == str(tmp_path / "v2")
    assert any(finding["engine"] == "sglang" for finding in content["findings"])
    refused = calibit("convert", own, tmp_path / "no", "--to", "gptq", "--for", "sglang")
    assert refused.code == 3 and "groups of -1, 32, 64, 128" in refused.err
    assert not (tmp_path / "no").exists()
    again = calibit("convert", own, foreign, "--to", "gptq")
    assert again.code == 3 and "which exists" in again.err


def test_checkpoint_of_a_tool_that_is_not_installed_is_evaluated(
    calibit: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers cannot load GPTQ files without GPTQModel; calibit reads them itself."""
    from calibit.io import foreign

    monkeypatch.setattr(foreign, "find_spec", lambda _: None)
    places = [tmp_path / "own", tmp_path / "gptq"]
    for place, layout in zip(places, ("calibit", "gptq"), strict=True):
        given = ["quantize", folder / "model", "int4-g16", "--export", layout, "-o", place, "-q"]
        assert calibit(*given).code == 0
    tasks = ["--tasks", folder / "items.jsonl", "--text", "none", "--limit", "20", "-q"]
    found = [
        json.loads(calibit("eval", place, *tasks, "-o", f"{place}-run", "--json").out)
        for place in places
    ]
    assert found[0]["metrics"] == found[1]["metrics"]


def test_quantize_eval_compare(calibit: Any, folder: Path, tmp_path: Path) -> None:
    model, checkpoint = folder / "model", tmp_path / "nf4"
    made = calibit("quantize", model, "nf4", "-o", checkpoint, "-q")
    assert made.code == 0 and made.last == f"Checkpoint: {checkpoint}"
    assert "tokenizer" not in made.out
    bare = calibit("quantize", folder / "bare", "nf4", "-o", tmp_path / "bare", "-q")
    assert bare.code == 0 and "no tokenizer" in bare.out.replace("\n", " ")
    again = calibit("quantize", model, "nf4", "-o", checkpoint, "-q")
    assert again.code == 3 and "exist" in again.err

    tasks = ["--tasks", folder / "items.jsonl", "--text", "none", "--limit", "40", "-q"]
    for source, run in ((model, "base"), (checkpoint, "own")):
        answer = calibit("eval", source, *tasks, "-o", tmp_path / run, "--resamples", "120")
        assert answer.code == 0 and answer.last == f"Run: {tmp_path / run}"
        assert "accuracy" in answer.out and "weight memory" in answer.out
    content = json.loads(
        calibit("eval", model, *tasks, "-o", tmp_path / "base", "--json", "--resamples", "120").out
    )
    assert content["metrics"]["acc"]["n"] == 40 and content["output"] == str(tmp_path / "base")

    pair = ["compare", tmp_path / "base", tmp_path / "own", "--resamples", "120"]
    plain = calibit(*pair)
    assert plain.code == 0 and plain.last.startswith("Nothing was written")
    assert "nf4" in plain.out and "conf_true" in plain.out
    written = calibit(*pair, "-o", tmp_path / "compared")
    assert written.last == f"Report: {tmp_path / 'compared' / 'report.html'}"
    stored = json.loads((tmp_path / "compared" / "comparison.json").read_text(encoding="utf-8"))
    assert stored["verdict"]["verdict"] in options.VERDICT_CODES
    refused = calibit(*pair, "-o", tmp_path / "compared")
    assert refused.code == 3 and "nothing is overwritten" in refused.err
    assert json.loads(calibit(*pair, "--json").out)["output"] is None


def test_doctor(calibit: Any) -> None:
    answer = calibit("doctor")
    assert answer.code == 0 and answer.last.startswith("Installed: ") and "kernels" in answer.out
    assert json.loads(calibit("doctor", "--json").out)["kernels"]


# Options ---------------------------------------------------------------------------------------


def test_lists_take_commas_and_repetition() -> None:
    assert options.words(["nf4,int8", "int4"]) == ("nf4", "int8", "int4")
    assert options.words(None) == ()


def test_commas_inside_a_task_stay() -> None:
    given = ["probe:en,de,boolq=b.jsonl", "mmlu:anatomy,astronomy=mmlu.jsonl"]
    assert options.task_words(given) == (
        "probe:en,de", "boolq=b.jsonl", "mmlu:anatomy,astronomy=mmlu.jsonl",
    )  # fmt: skip


def test_schemes_default_to_none_beside_candidates() -> None:
    assert commands._schemes(None, None)
    assert commands._schemes(None, ["x"]) == ()
    assert commands._schemes(["nf4"], ["x"]) == ("nf4",)


def test_closed_pipe_is_no_traceback(folder: Path) -> None:
    """`calibit --help | true`: whoever reads may stop reading."""
    code = "import sys; from calibit.cli import main; sys.exit(main(['--help']))"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{code}" | true; echo ${{PIPESTATUS[0]}}'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() in ("0", "3") and "Traceback" not in done.stderr
