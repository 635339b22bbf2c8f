"""The command `finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibit.commands import options as given
from calibit.commands.options import OUTPUT, QUANTIZE, Code, option
from calibit.commands.output import finish, prepare, progress_to


def finetune(
    model: given.Original,
    scheme: Annotated[
        str, typer.Argument(help="Scheme with nearest rounding, or a plan file (.json).")
    ],
    out: Annotated[
        Path, option("Folder to create; an existing one is refused.", OUTPUT, "--output_path", "-o")
    ],
    text: Annotated[
        str,
        option(
            "What to train on: pydoc, c4, a text or JSONL file, or self; not the text of an "
            "evaluation.",
            QUANTIZE,
            "--text",
        ),
    ] = "pydoc",
    tokens: Annotated[
        int | None,
        option(
            "Tokens of the text that are used, in segments of 512.",
            QUANTIZE,
            "--tokens",
            min=2,
            show_default="8192",
        ),
    ] = None,
    steps: Annotated[int, option("Updates.", QUANTIZE, "--steps", min=1)] = 100,
    batch: Annotated[int, option("Sequences per update.", QUANTIZE, "--batch", min=1)] = 4,
    learning_rate: Annotated[
        float | None,
        option(
            "Constant rate of AdamW.",
            QUANTIZE,
            "--learning_rate",
            show_default="2e-5, with --rank 5e-4",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        option(
            "Train factors of this rank that are added to the weights.",
            QUANTIZE,
            "--rank",
            min=1,
            show_default="train the weights",
        ),
    ] = None,
    seed: Annotated[
        int, option("Of the order of the sequences and of the factors.", QUANTIZE, "--seed")
    ] = 0,
    threads: given.Threads = None,
    trust_remote_code: given.TrustRemoteCode = False,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
    traceback: given.Traceback = False,
) -> Code:
    """Fine-tune a model with the rounding of a scheme in place, and write it quantized.

    The checkpoint says how it was made; an audit says so too, as its changes are not those of
    precision alone.

    Examples:

    - `calibit finetune ./smollm2 int4-g32 --text texts.txt --steps 200 -o smollm2-qat`

    - `calibit audit ./smollm2 --schemes int4-g32 --candidates ./smollm2-qat`
    """
    from calibit.quantization.finetuning import finetune_checkpoint
    from calibit.reporting.progress import JobProgress, Stage

    prepare(threads, model, quiet=quiet)
    bar = JobProgress([Stage("train", "training")], {"train": 1.0}, stream=progress_to(quiet))
    bar.enter(0)
    try:
        report = finetune_checkpoint(
            model,
            scheme,
            out,
            text,
            tokens=tokens,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            rank=rank,
            seed=seed,
            progress=lambda done, total, _: bar.advance(done, total),
            trust_remote_code=trust_remote_code,
        )
    finally:
        bar.close()
    lines = [str(report), *(f"Note: {note}." for note in report.notes)]
    finish(report.to_dict(), out, what="Checkpoint", as_json=as_json, show=lambda: "\n".join(lines))
    return Code.DONE
