"""From a float checkpoint to a quantized one: what `calibit quantize` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from calibit import loading, registry
from calibit.io import native, shards
from calibit.quantization import calibration_text, plans
from calibit.quantization.model import Progress, quantize_model
from calibit.quantization.report import Report
from calibit.schemes import Scheme
from calibit.tasks import texts


def quantize_checkpoint(
    model_path: str | Path,
    scheme: str | Path | Scheme | Mapping[str, str | Scheme],
    out: str | Path,
    *,
    calibration: calibration_text.Source | None = None,
    calibration_tokens: int | None = None,
    skip: str | Sequence[str] = (),
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Load a float model, quantize it and write a calibit checkpoint to a new folder.

    Args:
        model_path: a Hugging Face folder, or the name of a model on the hub.
        scheme: a scheme, or a plan as a mapping or a JSON file.
        out: the folder to create.
        calibration: as in `quantize_model`; GPTQ without it takes the built-in text.
        calibration_tokens: as in `quantize_model`.
        skip: pattern, or patterns, of layers to keep in floating point.
        progress: called after each layer.
        trust_remote_code: let the model bring code of its own.

    Returns:
        The report of `quantize_model`.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: the model folder does not exist.
        ValueError: as `quantize_model`, and for a scheme that quantizes nothing.
    """
    out = Path(out)
    shards.check_new(out, "quantize")
    plan = plans.load(scheme)
    if all(rule.is_float for rule in plan.schemes):
        raise ValueError(f"[quantize] expected a scheme that quantizes, got {plan.text!r}")
    registry.active_kernels()  # refuses a forced table that cannot run
    place = loading.locate(model_path)
    if native.is_checkpoint(place):
        raise ValueError(
            f"[quantize] expected a float model, got {str(model_path)!r} which is quantized"
        )
    tokenizer = None
    if not loading.lacks_tokenizer(place):
        tokenizer = loading.read_tokenizer(model_path, trust_remote_code=trust_remote_code)
    source = texts.PYDOC if calibration is None else calibration
    if any(one.solver == "gptq" for one in plan.schemes):  # before the weights, which take longer
        if tokenizer is None and isinstance(source, str | Path):
            tokenizer = loading.read_tokenizer(model_path)  # says what is missing
        config = loading.read_config(model_path, trust_remote_code=trust_remote_code)
        source = calibration_text.for_model(source, tokenizer, config, tokens=calibration_tokens)
    model = loading.read_model(model_path, trust_remote_code=trust_remote_code)
    report = quantize_model(
        model, plan, calibration=source, tokenizer=tokenizer, skip=skip, progress=progress
    )
    native.save(model, out, tokenizer=tokenizer)
    if tokenizer is not None:
        return report
    note = f"{str(model_path)!r} holds no tokenizer, so none was written"
    return replace(report, notes=(*report.notes, note))
