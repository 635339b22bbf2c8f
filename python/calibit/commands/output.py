"""What every command prints: its result, and as the last line where the output lies."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from calibit.quantization.estimate import Estimate

NOWHERE = "Nothing was written: give -o DIR to keep it."


def finish(
    content: Mapping[str, Any],
    place: Path | None,
    *,
    what: str,
    as_json: bool,
    show: Callable[[], Any],
) -> None:
    """Print a result, and last of all where it lies.

    Args:
        content: the result as JSON types.
        place: file or folder that holds it; None where nothing was written.
        what: name of that place.
        as_json: print `content` with the place as entry `output`, and nothing else.
        show: makes the rich renderable for people.
    """
    if as_json:
        where = None if place is None else str(place)
        print(json.dumps({**content, "output": where}, ensure_ascii=False, indent=1))
        return
    console().print(show())
    print(NOWHERE if place is None else f"{what}: {place}")


def console() -> Console:
    """Standard output; where it is no terminal, plain text of the width in COLUMNS, else 100."""
    from rich.console import Console

    from calibit.reporting.terminal import PLAIN_WIDTH

    if sys.stdout.isatty():
        return Console(highlight=False)
    width = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
    return Console(file=sys.stdout, width=width, highlight=False, color_system=None)


def progress_to(quiet: bool) -> TextIO | None:
    """Where progress is shown."""
    return None if quiet else sys.stderr


def announce(estimate: Estimate) -> None:
    """Say on standard error what a job will take, and what speaks against it."""
    print(f"will take {estimate} (estimated)", file=sys.stderr, flush=True)
    if estimate.note is not None:
        print(f"warning: {estimate.note}", file=sys.stderr, flush=True)


def command_line() -> str:
    """The command as it was given, for records."""
    return shlex.join(["calibit", *sys.argv[1:]])


def prepare(threads: int | None, *models: str, quiet: bool = False) -> None:
    """Silence what breaks the progress bar or is said in the result anyway; set the threads; say
    which models are looked for on the hub."""
    import logging as standard
    import warnings

    import torch
    from transformers.utils import logging

    from calibit.loading import is_hub_name

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    standard.getLogger("huggingface_hub").setLevel(standard.ERROR)
    warnings.filterwarnings("ignore", message=r"\[calibration\]")
    if threads is not None:
        torch.set_num_threads(threads)
    for model in () if quiet else models:
        if not Path(model).expanduser().exists() and is_hub_name(model):
            print(f"no such folder; trying the hub as {model!r}", file=sys.stderr, flush=True)
