"""What identifies an audit, and the folder it owns: created, continued or refused, never
overwritten."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from calibit.locking import LOCK, alone_in

SCHEMA = "calibit.job/1"
JOB_FILE, RUNS = "job.json", "runs"
CALIBRATION_FILE = "calibration.jsonl"
"""What the baseline wrote to calibrate on."""

SCHEMES = ("nf4", "gptq-int4-g128")
TASKS = ("probe",)
TEXT = "pydoc"
NO_TEXT = "none"
RIGOR = QUICK, STANDARD, FULL = ("quick", "standard", "full")
SPEEDS = ("none", "quick", "full")

QUICK_LIMIT = 800
"""Items of each task: six models of 135M parameters then fit six minutes on two cores."""

TEXT_WINDOW = 512
TEXT_TOKENS = 6144
"""Short windows: the interval of a perplexity resamples windows, so twelve of 512 say more than
three of 2,048."""

NEW_TOKENS, SEGMENTS = 64, 40
"""Tokens of a continuation, and segments of each language: a few minutes of a small model."""

_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


class Claiming(Protocol):
    """What may own a folder: an audit, or another job that records runs below it."""

    what: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """All that decides the numbers, as JSON types."""


@dataclass(frozen=True)
class Job:
    """Everything that decides the numbers of an audit.

    Attributes:
        model: folder or hub name of the baseline.
        schemes: scheme strings or plan files, in the order of the report.
        candidates: folders or hub names of checkpoints made elsewhere.
        tasks: task names as for `calibit.tasks.load`.
        text: `pydoc`, the path of a text file, or `none`.
        limit: items per task; None takes all.
        text_protocol: how the text is cut and its perplexity normalised; see
            `calibit.evaluation.Text`.
        text_window, text_tokens: window length and number of scored tokens of the text.
        calibration: text the solver calibrates on, as `calibit.quantization.documents` reads it.
        calibration_tokens: how much of it; None takes the default of `quantize_model`.
        calibration_seed: draws its segments at random; None takes them at equal distances.
        calibration_draws: builds of every GPTQ scheme with different draws; None for one build.
        rigor: how many controls run: `quick`, `standard` or `full`.
        speed: how long tokens per second are measured: `none`, `quick` or `full`.
        dtype: dtype the baseline is loaded in; `auto` keeps the stored one.
        device: where models run.
        batch_tokens: tokens per forward pass; None takes the default of `evaluate`.
        bos: BOS rule.
        rule: scoring rule of the comparison.
        level, resamples, seed: of the intervals.
        policy: margins of the verdict as a mapping; None takes the default policy.
        trust_remote_code: let models bring code of their own.
        store_docs: write prompts and choices beside the numbers.
        num_fewshot: answered examples in front of each question.
        apply_chat_template: put prompts into the chat template of each model's tokenizer.
        include_path: folder with YAML tasks of lm-evaluation-harness.
        workload: file of prompts that the baseline continues; every token of that is compared.
        max_new_tokens: longest continuation of them.
        parallel_text: folder of a parallel text, a file for each language.
        parallel_segments: segments of each language.
        word_frequency: where the frequencies of words come from that slice the items: a text,
            `own` (the items themselves), or None for no such slices.
    """

    what: ClassVar[str] = "audit"
    model: str
    schemes: tuple[str, ...] = SCHEMES
    candidates: tuple[str, ...] = ()
    tasks: tuple[str, ...] = TASKS
    text: str = TEXT
    limit: int | None = QUICK_LIMIT
    text_protocol: str = "gptq"
    text_window: int = TEXT_WINDOW
    text_tokens: int = TEXT_TOKENS
    calibration: str = TEXT
    calibration_tokens: int | None = None
    calibration_seed: int | None = None
    calibration_draws: int | None = None
    rigor: str = RIGOR[0]
    speed: str = SPEEDS[1]
    dtype: str = "auto"
    device: str = "cpu"
    batch_tokens: int | None = None
    bos: str = "tokenizer"
    rule: str = "sum"
    level: float = 0.95
    resamples: int = 9999
    seed: int = 0
    policy: Mapping[str, Any] | None = field(default=None, hash=False)
    trust_remote_code: bool = False
    store_docs: bool = True
    num_fewshot: int = 0
    apply_chat_template: bool = False
    include_path: str | None = None
    workload: str | None = None
    max_new_tokens: int = NEW_TOKENS
    parallel_text: str | None = None
    parallel_segments: int = SEGMENTS
    word_frequency: str | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the calibration draws, that of the candidate itself first; none where its
        segments are not drawn."""
        if self.calibration_draws is None:
            return () if self.calibration_seed is None else (self.calibration_seed,)
        first = self.calibration_seed or 0
        return tuple(range(first, first + self.calibration_draws))

    def to_dict(self) -> dict[str, Any]:
        """The job with a fingerprint of every local input, as JSON types."""
        inputs = {name: fingerprint(Path(name)) for name in self._local_inputs()}
        return json.loads(json.dumps({"schema": SCHEMA, **asdict(self), "inputs": inputs}))

    def _local_inputs(self) -> list[str]:
        named = [self.model, *self.candidates, *self.schemes, self.text, self.calibration]
        named += [task.rpartition("=")[2] for task in self.tasks]
        named += filter(None, _optional(self))
        named += codebook_files(self.schemes)
        return [name for name in dict.fromkeys(named) if Path(name).exists()]


def _optional(job: Job) -> tuple[str | None, ...]:
    return job.include_path, job.workload, job.parallel_text, job.word_frequency


def codebook_files(schemes: Iterable[str]) -> list[str]:
    """The codebook files that schemes, or the plans in files, name.

    Raises:
        ValueError: unknown scheme, or a file that is no plan.
        FileNotFoundError: a plan file that does not exist.
    """
    from calibit.quantization import plans

    found = (scheme for text in schemes for scheme in plans.load(text).schemes)
    return [scheme.format for scheme in found if scheme.codebook is not None]


def local(source: str | Path) -> str:
    """An absolute path where something exists there, else the text as it is (a hub name, a built-in
    text)."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else str(source)


def several(values: Any) -> tuple[Any, ...]:
    """One value (a string or a path) or a sequence of them, as a tuple."""
    return (values,) if isinstance(values, (str, Path)) else tuple(values)


def batch_options(job: Job) -> dict[str, Any]:
    """The batch size as an argument of `evaluate`; nothing where its default is wanted."""
    return {} if job.batch_tokens is None else {"batch_tokens": job.batch_tokens}


def task_options(job: Job) -> dict[str, Any]:
    """How tasks are read, as arguments of `calibit.tasks.read`."""
    return {"num_fewshot": job.num_fewshot, "include_path": job.include_path}


def speed_option(job: Job) -> str | None:
    """How speed is measured, as an argument of `evaluate`."""
    return None if job.speed == SPEEDS[0] else job.speed


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of the names, sizes and contents of the files directly in a folder.

    Of a large file 64 blocks at equal distances stand for the whole: enough to tell two checkpoints
    apart without reading gigabytes. Runs record the full hash of the weights besides.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(stream.read())
                continue
            for index in range(_SAMPLES):
                stream.seek(index * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


@contextmanager
def claim(folder: Path, job: Claiming) -> Iterator[None]:
    """Own a folder for a job while the block runs: new, empty, or one that holds the same job.

    The job is on record as long as something was measured for it: a job of which nothing was
    measured leaves nothing behind, and gives way to another one.

    Raises:
        ValueError: the folder holds another job (the message names what differs) or something else.
        RuntimeError: another process is writing it.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"[{job.what}] expected a folder for the output, got the file {folder}; choose "
            "another -o"
        )
    wanted, fresh = job.to_dict(), not folder.exists()
    if not fresh and _foreign(folder):
        raise ValueError(
            f"[{job.what}] expected a new or empty output folder, got {folder}, which holds other "
            "files; nothing is overwritten: choose another -o"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with alone_in(folder, op=job.what), _recorded(folder, wanted, job.what):
            yield
    finally:
        if fresh and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _recorded(folder: Path, wanted: Mapping[str, Any], what: str) -> Iterator[None]:
    """Keep a job on record, unless nothing is there to keep when the block ends."""
    record = folder / JOB_FILE
    if _begun(folder):
        _check_same(folder, json.loads(record.read_text(encoding="utf-8")), wanted, what)
    else:
        write_json(record, wanted)
    try:
        yield
    finally:
        if not (folder / RUNS).exists() and not (folder / CALIBRATION_FILE).exists():
            record.unlink()


def _begun(folder: Path) -> bool:
    """Whether the folder holds anything that took work to measure."""
    from calibit.evaluation.folder import holds_work

    if (folder / CALIBRATION_FILE).is_file():
        return True
    return any(holds_work(run) for run in (folder / RUNS).glob("*"))


def _foreign(folder: Path) -> bool:
    """Whether the folder holds files, none of which is an audit's record."""
    names = {file.name for file in folder.iterdir()} - {LOCK}
    return bool(names) and JOB_FILE not in names


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the whole new one."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(
        json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    draft.replace(path)


def _check_same(
    folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], what: str = Job.what
) -> None:
    differs = [
        key for key in dict.fromkeys([*wanted, *stored]) if stored.get(key) != wanted.get(key)
    ]
    if not differs:
        return
    shown = "; ".join(_difference(key, stored.get(key), wanted.get(key)) for key in differs)
    raise ValueError(
        f"[{what}] expected the same job as the {what} in {folder}, got another: {shown}. Nothing "
        "is overwritten: choose another -o, or repeat the first command to continue it"
    )


def _difference(key: str, stored: Any, wanted: Any) -> str:
    if key == "inputs":
        names = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
        return f"the content of {', '.join(names)} has changed"
    before, now = (json.dumps(value, ensure_ascii=False) for value in (stored, wanted))
    return f"{key} was {before}, is {now}"
