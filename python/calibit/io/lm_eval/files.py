"""Which files of a folder are an output of lm-evaluation-harness, and of which layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAYOUTS = ("write_out", "array", "lines")
"""`<task>_write_out_info.json` of 2023; one JSON array per task in `<model_args>_<task>.jsonl`,
0.4.0 to 0.4.2; `samples_<task>_<time>.jsonl`, since 0.4.3."""

_TIME = r"(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)"
_SAMPLES = re.compile(rf"samples_(?P<task>.+)_{_TIME}\.jsonl")
_RESULTS = re.compile(rf".+_{_TIME}\.json")
_WRITE_OUT = "_write_out_info.json"
_SECTIONS = ("results", "config", "configs", "versions", "n-shot", "n-samples")


@dataclass(frozen=True)
class Output:
    """The files of one output.

    Attributes:
        folder: where they lie.
        layout: one of LAYOUTS.
        samples: (task, file), by task.
        results: contents of the results files that belong to them.
    """

    folder: Path
    layout: str
    samples: tuple[tuple[str, Path], ...]
    results: tuple[Mapping[str, Any], ...]

    def config(self, task: str) -> Mapping[str, Any]:
        """What the results say of a task: its YAML configuration, `version`, `num_fewshot`."""
        for content in self.results:
            own = (content.get("configs") or {}).get(task)
            if own is not None:
                return own
        return {}

    def documents(self, task: str) -> int | None:
        """How many documents of a task the results state, where they do."""
        for content in self.results:
            own = (content.get("n-samples") or {}).get(task)
            if isinstance(own, dict) and isinstance(own.get("effective"), int):
                return own["effective"]
        return None


def is_output(path: Path) -> bool:
    """Whether a folder or results file looks like an output, or like the folder above one."""
    if path.is_file():
        return path.suffix == ".json"
    return path.is_dir() and bool(_holds(path) or _below(path))


def locate(path: Path) -> Output:
    """Find the files of an output.

    Args:
        path: its folder, the folder above, or one of its results files.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if there are several, or no per-item results.
    """
    if path.is_file():
        return _locate(path.parent, only=path)
    if path.is_dir() and _holds(path):
        return _locate(path, only=None)
    below = _below(path) if path.is_dir() else []
    if len(below) > 1:
        names = ", ".join(folder.name for folder in below)
        raise ValueError(
            f"[lm_eval] expected the output of one model in {path}, got several: {names}; name "
            "one of these folders"
        )
    if not below:
        raise FileNotFoundError(
            f"[lm_eval] expected an output folder of lm-evaluation-harness, got {path}, which "
            "holds none of its files"
        )
    return _locate(below[0], only=None)


def _locate(folder: Path, only: Path | None) -> Output:
    modern = [(found, file) for file, found in _matching(folder, _SAMPLES)]
    if only is not None and (stamp := _RESULTS.fullmatch(only.name)):
        modern = [(found, file) for found, file in modern if found["time"] == stamp["time"]]
    if modern:
        times = {found["time"] for found, _ in modern}
        stamped = [(found["time"], file) for file, found in _matching(folder, _RESULTS)]
        results = [_read_results(file) for time, file in stamped if time in times]
        return _output(folder, "lines", [(found["task"], file) for found, file in modern], results)
    written = [(file.name.removesuffix(_WRITE_OUT), file) for file in folder.glob(f"*{_WRITE_OUT}")]
    totals = [only] if only is not None else sorted(folder.glob("*.json"))
    contents = [
        _read_results(file)
        for file in totals
        if not file.name.endswith(_WRITE_OUT)
        and isinstance(content := read_json(file), dict)
        and "results" in content
    ]
    if written:
        return _output(folder, "write_out", written, contents)
    arrays = list(_arrays(folder, contents))
    if arrays:
        return _output(folder, "array", arrays, contents)
    raise ValueError(
        f"[lm_eval] expected results of each item in {folder}, got totals only; evaluate again "
        "with --log_samples (2023: --write_out)"
    )


def _read_results(file: Path) -> Mapping[str, Any]:
    """The content of a results file, with the sections that hold something: all are objects."""
    content = read_json(file)
    wrong = [] if isinstance(content, dict) else ["its content"]
    for name in () if wrong else _SECTIONS:
        wrong += [name] if not isinstance(content.get(name) or {}, dict) else []
    if wrong:
        raise ValueError(
            f"[lm_eval] {file}: expected {wrong[0]} to be a JSON object, got another kind of "
            "value; the file was changed: evaluate again"
        )
    return {key: value for key, value in content.items() if value or key not in _SECTIONS}


def _output(
    folder: Path, layout: str, samples: Sequence[tuple[str, Path]], results: Sequence[Any]
) -> Output:
    names = [task for task, _ in samples]
    repeated = sorted({task for task in names if names.count(task) > 1})
    if repeated:
        files = ", ".join(file.name for task, file in samples if task == repeated[0])
        raise ValueError(
            f"[lm_eval] expected one evaluation of {repeated[0]} in {folder}, got {files}; name "
            "the results file of the one that is meant"
        )
    return Output(folder, layout, tuple(sorted(samples)), tuple(results))


def _arrays(folder: Path, results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Path]]:
    """Files of 0.4.0 to 0.4.2; the end of a name that is a task of the results, longest first."""
    known = {task for content in results for task in content.get("results", ())}
    for file in sorted(folder.glob("*.jsonl")):
        tasks = [task for task in known if file.stem == task or file.stem.endswith(f"_{task}")]
        if tasks:
            yield max(tasks, key=len), file


def _holds(folder: Path) -> bool:
    return any(
        _SAMPLES.fullmatch(file.name)
        or file.name.endswith(_WRITE_OUT)
        or _RESULTS.fullmatch(file.name)
        or file.name == "results.json"
        for file in folder.iterdir()
    )


def _below(folder: Path) -> list[Path]:
    return sorted(below for below in folder.iterdir() if below.is_dir() and _holds(below))


def _matching(folder: Path, name: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    for file in sorted(folder.iterdir()):
        if found := name.fullmatch(file.name):
            yield file, found


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: if it is not valid; the message names file and line.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"[lm_eval] {path}, line {error.lineno}: expected valid JSON, got {error.msg}; the "
            "file was cut or changed"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"[lm_eval] {path}: expected UTF-8, got {error}") from error
