"""Option types shared by the commands: words of lm-evaluation-harness where it has them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Code(IntEnum):
    """Exit codes; what is no Code, such as the library's own 1 and 2, is no answer of ours."""

    DONE = 0
    HOLD = 1
    INCONCLUSIVE = 2
    FAILED = 3


VERDICT_CODES = {"ship": Code.DONE, "hold": Code.HOLD, "inconclusive": Code.INCONCLUSIVE}

SMALLEST_BATCH = 64
"""Tokens; whoever asks for less means items."""

RUN = "run, or its output folder of lm-evaluation-harness (--log_samples)"

MEASURE, QUANTIZE = "What to measure", "Quantization"
JUDGE, MACHINE, OUTPUT = "Statistics and verdict", "Machine", "Output"
"""Groups of options in `--help`."""


def option(help_: str, panel: str, *names: str, **more: Any) -> Any:
    """A typer option that stands in a group of the help."""
    return typer.Option(*names, help=help_, rich_help_panel=panel, **more)


def words(values: Sequence[str] | None) -> tuple[str, ...]:
    """An option that may be repeated and may hold commas, as one list."""
    return tuple(word for value in values or () for word in value.split(",") if word)


def task_words(values: Sequence[str], include_path: Path | None = None) -> tuple[str, ...]:
    """Tasks as one list; a comma may also stand inside one, as in "probe:en,de"."""
    from calibit.tasks import known

    names = known(include_path)
    found: list[str] = []
    for word in words(values):
        name = word.partition("=")[0].partition(":")[0]
        inside = found and ":" in found[-1] and "=" not in found[-1]
        if inside and name not in names and not Path(name).is_file():
            found[-1] += f",{word}"
        else:
            found.append(word)
    return tuple(found)


def limit_of(text: str) -> int | None:
    """Items per task; None for `all`.

    Raises:
        typer.BadParameter: neither a number above 0 nor `all`.
    """
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(
            f"--limit: expected a number of items above 0, or all; got {text!r}."
        )
    return int(text)


def batch_tokens_of(size: int | None) -> int | None:
    """Tokens per forward pass.

    Raises:
        typer.BadParameter: a size that must have been meant as items.
    """
    if size is not None and size < SMALLEST_BATCH:
        raise typer.BadParameter(
            f"--batch_size: expected tokens per forward pass, {SMALLEST_BATCH} or more, got "
            f"{size}; batches are planned by tokens, not by items."
        )
    return size


def _keep_traceback(context: typer.Context, wanted: bool) -> None:
    if wanted and context.obj is not None:
        context.obj["traceback"] = True


Model = Annotated[str, typer.Argument(help="Folder or hub name of the model.")]
Original = Annotated[str, typer.Argument(help="Folder or hub name of the original model.")]

Tasks = Annotated[
    list[str],
    option(
        "Tasks, separated by commas: probe, probe:en, arc_easy=FILE.jsonl, FILE.jsonl.",
        MEASURE,
        "--tasks",
    ),
]
Limit = Annotated[
    str,
    option(
        "Items per task, a fixed sample that keeps the share of every slice; or all.",
        MEASURE,
        "--limit",
    ),
]
NumFewshot = Annotated[
    int, option("Answered examples before each question.", MEASURE, "--num_fewshot", min=0)
]
ChatTemplate = Annotated[
    bool,
    option("Put prompts into the model's chat template.", MEASURE, "--apply_chat_template"),
]
IncludePath = Annotated[
    Path | None,
    option(
        "Folder with multiple-choice tasks of lm-evaluation-harness (YAML).",
        MEASURE,
        "--include_path",
        show_default="none",
    ),
]
Text = Annotated[str, option("Text for the perplexity: pydoc, a file, or none.", MEASURE, "--text")]
TextProtocol = Annotated[
    str,
    option(
        "How the text is cut and its perplexity normalised: gptq, documents, llama_cpp, lm_eval or "
        "hf_stride.",
        MEASURE,
        "--text_protocol",
    ),
]
TextTokens = Annotated[
    int, option("Tokens of the text that are scored.", MEASURE, "--text_tokens", min=1)
]
TextWindow = Annotated[
    int, option("Window of the text, in tokens.", MEASURE, "--text_window", min=2)
]
Workload = Annotated[
    Path | None,
    option(
        "Your prompts (JSON Lines with prompt or messages): the baseline continues them, and every "
        "token of that is put through both models.",
        MEASURE,
        "--workload",
        show_default="none",
    ),
]
NewTokens = Annotated[
    int, option("Longest continuation of a prompt, in tokens.", MEASURE, "--max_new_tokens", min=1)
]
ParallelText = Annotated[
    Path | None,
    option(
        "Folder with a file LANGUAGE.txt for each language, line n the same content in all.",
        MEASURE,
        "--parallel_text",
        show_default="none",
    ),
]
Segments = Annotated[
    int,
    option("Segments of each of its languages.", MEASURE, "--parallel_segments", min=1),
]
WordFrequency = Annotated[
    str | None,
    option(
        "Slice items by how common their words are, counted in this text (a file or pydoc) or in "
        "the items themselves (own).",
        MEASURE,
        "--word_frequency",
        show_default="none",
    ),
]
Bos = Annotated[
    str, option("BOS token: tokenizer (by its own rule), always, never.", MEASURE, "--bos")
]
Seed = Annotated[int, option("Seed of samples and intervals.", MEASURE, "--seed")]

Calibration = Annotated[
    str,
    option(
        "GPTQ calibrates on it: pydoc, a text or .jsonl file, c4, hub:NAME[:SPLIT[:COLUMN]], or "
        "self[:TEMPERATURE]: what the float model writes (it is loaded whole).",
        QUANTIZE,
        "--calib",
    ),
]

CalibrationTokens = Annotated[
    int | None,
    option("Tokens of that text.", QUANTIZE, "--calib_tokens", min=1, show_default="8192"),
]

CalibrationSeed = Annotated[
    int | None,
    option(
        "Draws the calibration segments at random; of self the seed of the sampling.",
        QUANTIZE,
        "--calib_seed",
        min=0,
        show_default="segments at equal distances",
    ),
]

Rule = Annotated[str, option("Scoring rule: sum, token, char, byte, pmi.", JUDGE, "--rule")]
Level = Annotated[float, option("Level of the intervals.", JUDGE, "--level", min=0.5, max=0.999)]
Resamples = Annotated[int, option("Bootstrap resamples.", JUDGE, "--resamples", min=100)]
PolicyFile = Annotated[
    Path | None,
    option(
        "YAML file with the margins of the verdict.",
        JUDGE,
        "--policy",
        show_default="accuracy 3 points, right-answer confidence 2 points, its NLL 0.03 nats, in "
        "the worst slice twice those",
    ),
]

Speed = Annotated[
    str, option("How long tokens per second are measured: none, quick, full.", MACHINE, "--speed")
]
Device = Annotated[str, option("Where models run: cpu, cuda, cuda:1.", MACHINE, "--device")]
Dtype = Annotated[
    str, option("auto (as stored), float32, bfloat16 or float16.", MACHINE, "--dtype")
]
Threads = Annotated[
    int | None,
    option("CPU threads.", MACHINE, "--threads", min=1, show_default="all that torch takes"),
]
BatchSize = Annotated[
    int | None,
    option("Tokens (not items) per forward pass.", MACHINE, "--batch_size", show_default="2048"),
]
TrustRemoteCode = Annotated[
    bool, option("Let models bring code of their own.", MACHINE, "--trust_remote_code")
]

LogSamples = Annotated[
    bool, option("Store prompts and choices.", OUTPUT, "--log_samples/--no_log_samples")
]
Json = Annotated[bool, option("Print the result as JSON and nothing else.", OUTPUT, "--json")]
Quiet = Annotated[bool, option("Show no progress.", OUTPUT, "--quiet", "-q")]
Traceback = Annotated[
    bool,
    option(
        "On an error, also show where it happened.",
        OUTPUT,
        "--traceback",
        callback=_keep_traceback,
    ),
]
