"""From a float checkpoint to a quantized one: what `calibit quantize` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    skip: Sequence[str] = (),
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Load a float model, quantize it and write a calibit checkpoint to a new folder.

    Args:
        model_path: a Hugging Face folder, or the name of a model on the hub.
        scheme: a scheme, or a plan as a mapping or a JSON file.
        out: the folder to create.
        calibration: as in `quantize_model`; GPTQ without it takes the built-in text.
        skip: patterns of layers to keep in floating point.
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
    model, tokenizer = _load(model_path, trust_remote_code)
    report = quantize_model(
        model,
        plan,
        calibration=texts.PYDOC if calibration is None else calibration,
        tokenizer=tokenizer,
        skip=skip,
        progress=progress,
    )
    native.save(model, out, tokenizer=tokenizer)
    return report


def _load(model_path: str | Path, trust_remote_code: bool) -> tuple[Any, Any]:
    """A float model and its tokenizer (None when it has none)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = Path(model_path)
    looks_local = isinstance(model_path, Path) or str(model_path).count("/") != 1
    if not local.exists() and looks_local and (len(local.parts) > 1):
        raise FileNotFoundError(
            "[quantize] expected a model folder or a name on the hub, got "
            f"{str(model_path)!r} which does not exist"
        )
    if native.is_checkpoint(local):
        raise ValueError(
            f"[quantize] expected a float model, got {str(model_path)!r} which is quantized"
        )
    options = {"trust_remote_code": trust_remote_code}
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype="auto", **options)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path, **options)
    except (OSError, ValueError):  # a folder without tokenizer files
        tokenizer = None
    return model, tokenizer
