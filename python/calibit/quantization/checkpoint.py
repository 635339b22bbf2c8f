"""From a float checkpoint to a quantized one: what `calibit quantize` does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calibit import loading, registry
from calibit.io import export, foreign, native, shards
from calibit.io.layout import LayerFacts
from calibit.io.layouts import READERS
from calibit.quantization import calibration_text, kept_text, plans, residency, self_written
from calibit.quantization.estimate import Estimate
from calibit.quantization.model import Progress, quantize_weights, survey, writing
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
    calibration_seed: int | None = None,
    skip: str | Sequence[str] = (),
    layout: str = native.METHOD,
    required: Sequence[str] = (),
    progress: Progress | None = None,
    estimated: Callable[[Estimate], None] | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Quantize a float model and write a checkpoint to a new folder.

    Where the model's files hold its tensors one to one, only one decoder block at a time is in
    memory in floating point. Calibration text that the model writes itself (`self`) needs the whole
    model in memory first; that is freed before the quantizing begins. A GPTQ run keeps such text
    and its finished blocks in `unfinished(out)` until the checkpoint is written: the same call
    after an interruption goes on with the next block, and the result is the same.

    Args:
        model_path: a Hugging Face folder, or the name of a model on the hub.
        scheme: a scheme, or a plan as a mapping or a JSON file.
        out: the folder to create.
        calibration: as in `quantize_model`; GPTQ without it takes the built-in text.
        calibration_tokens, calibration_seed: as in `quantize_model`.
        skip: pattern, or patterns, of layers to keep in floating point.
        layout: what the checkpoint looks like, one of `calibit.io.export.NAMES`.
        required: engines that must be able to load it (`calibit.io.engines.ENGINES`).
        progress: called after each layer.
        estimated: called with the memory and time that the job will take, before it begins.
        trust_remote_code: let the model bring code of its own.

    Returns:
        The report of `quantize_model`.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: the model folder does not exist.
        ValueError: as `quantize_model`, for a scheme that quantizes nothing, and for one that the
            layout or a required engine cannot hold.
        RuntimeError: another process writes the same output, or `unfinished(out)` holds blocks of
            another job.
    """
    out = Path(out)
    export.check_names(layout, required)
    shards.check_new(out, "quantize")
    plan = plans.load(scheme)
    if plan.changes_nothing:
        raise ValueError(f"[quantize] expected a scheme that quantizes, got {plan.text!r}")
    registry.active_kernels()  # refuses a forced table that cannot run
    place = loading.locate(model_path)
    if foreign.method_of(place) in (native.METHOD, *READERS):
        raise ValueError(
            f"[quantize] expected a float model, got {str(model_path)!r} which is quantized"
        )
    tokenizer = None
    if not loading.lacks_tokenizer(place):
        tokenizer = loading.read_tokenizer(model_path, trust_remote_code=trust_remote_code)
    source = texts.PYDOC if calibration is None else calibration
    work = unfinished(out) if any(one.is_solved for one in plan.schemes) else None
    if any(one.solver == "gptq" for one in plan.schemes):  # before the weights, which take longer
        if tokenizer is None and isinstance(source, str | Path):
            tokenizer = loading.read_tokenizer(model_path)  # says what is missing
        config = loading.read_config(model_path, trust_remote_code=trust_remote_code)
        if isinstance(source, str) and self_written.is_source(source):
            self_written.temperature_of(source)
        else:
            source = calibration_text.for_model(
                source, tokenizer, config, tokens=calibration_tokens, seed=calibration_seed
            )
    with residency.opened(place, trust_remote_code=trust_remote_code) as weights:
        planned = _planned(weights.model, plan, skip)
        export.check_planned(weights.model, planned, layout, required, cache_bits=plan.cache_bits)
        if work is not None and isinstance(source, str) and self_written.is_source(source):
            text = {"tokens": calibration_tokens, "seed": calibration_seed}
            make = partial(_written, source, place, tokenizer, text, progress, trust_remote_code)
            file = kept_text.file_name(f"{source} {text}")
            source = kept_text.kept(work / file, make, tokenizer)
        report = quantize_weights(
            weights,
            plan,
            calibration=source,
            tokenizer=tokenizer,
            skip=skip,
            progress=progress,
            work=work,
            estimated=estimated,
        )
        weights.detach_()
        notes = [*report.notes, *_save(weights.model, out, layout, tokenizer, required)]
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)
    if tokenizer is None:
        notes.append(f"{str(model_path)!r} holds no tokenizer, so none was written")
    return replace(report, notes=tuple(notes))


def _written(
    source: str,
    place: str,
    tokenizer: Any,
    text: Mapping[str, Any],
    progress: Progress | None,
    trust_remote_code: bool,
) -> calibration_text.Calibration:
    """What the whole float model writes; its memory is free again afterwards."""
    model = loading.read_model(place, trust_remote_code=trust_remote_code)
    return calibration_text.for_model(
        source,
        tokenizer,
        model.config,
        **text,
        model=model,
        progress=writing(progress),
    )


def _save(model: Any, out: Path, layout: str, tokenizer: Any, required: Sequence[str]) -> list[str]:
    """Write the checkpoint; what is to be said about its layout."""
    if layout == native.METHOD:
        native.save(model, out, tokenizer=tokenizer)
        return []
    wrote = export.save(model, out, layout, tokenizer=tokenizer, required=required)
    return [*map(str, wrote.findings), *wrote.notes]


def _planned(model: Any, plan: plans.Plan, skip: str | Sequence[str]) -> list[LayerFacts]:
    """The quantized layers that a plan will make, as far as they are known before."""
    return [
        LayerFacts(
            layer.name,
            layer.shape,
            scheme,
            ordered=False,
            scale_dtype=torch.float32 if "s32" in scheme.options else torch.float16,
            expert=layer.experts is not None,
        )
        for layer, scheme in survey(model, plan, skip=skip).jobs
    ]


def unfinished(out: str | Path) -> Path:
    """Where a run that writes `out` keeps its finished blocks."""
    out = Path(out)
    return out.parent / f".{out.name}.unfinished"
