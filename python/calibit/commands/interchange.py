"""The command `convert`, and the options of those that write the layouts of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibit.commands import options as given
from calibit.commands.options import OUTPUT, Code, option
from calibit.commands.output import finish, prepare

LAYOUTS = "gptq, gptq_v2, compressed-tensors, int-quantized, bitsandbytes, calibit"
"""Words of `--to` and `--export` for the help, which is shown without importing torch."""

Engines = Annotated[
    list[str] | None,
    option(
        "Engines that must be able to load it, separated by commas: vllm, sglang.",
        OUTPUT,
        "--for",
        show_default="what they cannot load is noted",
    ),
]
ExportTo = Annotated[
    str, option(f"Layout of the checkpoint: {LAYOUTS}.", OUTPUT, "--export", metavar="FORMAT")
]


def convert(
    source: Annotated[
        Path, typer.Argument(help="Folder of a quantized checkpoint.", metavar="SRC")
    ],
    out: Annotated[
        Path, typer.Argument(help="Folder to create; an existing one is refused.", metavar="DST")
    ],
    to: Annotated[str, option(f"Layout to write: {LAYOUTS}.", OUTPUT, "--to", metavar="FORMAT")],
    engines: Engines = None,
    float_activations: Annotated[
        bool,
        option(
            "Read the weights alone of a checkpoint whose inputs of layers or cache are quantized "
            "too.",
            OUTPUT,
        ),
    ] = False,
    trust_remote_code: given.TrustRemoteCode = False,
    as_json: given.Json = False,
    quiet: given.Quiet = False,
    traceback: given.Traceback = False,
) -> Code:
    """Write a quantized checkpoint in the layout of another tool, codes and scales unchanged.

    Reads checkpoints of calibit, GPTQ tools, compressed-tensors and bitsandbytes. What a layout
    cannot hold is refused with the reason; the new folder is read back and compared before it gets
    its name.

    Examples:

    - `calibit convert ./model-gptq ./model-calibit --to calibit`

    - `calibit convert ./smollm2-int4 ./smollm2-gptq --to gptq --for vllm`
    """
    from calibit.io.checkpoints import convert as convert_checkpoint

    prepare(None, quiet=quiet)
    wrote = convert_checkpoint(
        source,
        out,
        to,
        required=given.words(engines),
        trust_remote_code=trust_remote_code,
        float_activations=float_activations,
    )
    finish(wrote.to_dict(), out, what="Checkpoint", as_json=as_json, show=lambda: str(wrote))
    return Code.DONE
