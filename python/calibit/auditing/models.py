"""Models of an audit: the baseline, a scheme applied to its fresh weights, a checkpoint made
elsewhere; and how closely such a checkpoint is related to the baseline."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calibit import loading
from calibit.auditing.job import Job

SOURCE_FILE = "calibit_source.json"
"""Optional file beside a model: `{"model": name, "notes": [sentences a report must show]}`."""

BASELINE = "baseline"

FLOAT, NATIVE = "float", "calibit"
"""`checkpoint` in the record of an unquantized model, and of one that calibit wrote."""

_LINEAGE_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
)


@dataclass(frozen=True)
class Entry:
    """One model of an audit.

    Attributes:
        name: label in tables.
        folder: name of its run folder.
        scheme: scheme string or plan file; None for the baseline and for a checkpoint.
        source: folder or hub name of a checkpoint made elsewhere; None otherwise.
    """

    name: str
    folder: str
    scheme: str | None = None
    source: str | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether this is the model the others are compared with."""
        return self.scheme is None and self.source is None

    @property
    def kind(self) -> str:
        """Models of one kind take similar time: baseline, checkpoint, gptq or nearest."""
        if self.scheme is None:
            return BASELINE if self.is_baseline else "checkpoint"
        return "gptq" if self.uses_gptq else "nearest"

    @property
    def uses_gptq(self) -> bool:
        """Whether its scheme, or one of its plan, is solved on calibration text."""
        from calibit.quantization import plans

        found = () if self.scheme is None else plans.load(self.scheme).schemes
        return any(scheme.is_solved for scheme in found)


@dataclass(frozen=True)
class Loaded:
    """A model ready to be evaluated.

    Attributes:
        model, tokenizer: as transformers has them.
        record: what is kept about how the weights came about, JSON types.
    """

    model: Any
    tokenizer: Any
    record: Mapping[str, Any] = field(default_factory=dict)


def entries(job: Job) -> list[Entry]:
    """The models of a job, the baseline first, each with a folder of its own.

    Raises:
        ValueError: unknown scheme, nothing to compare, or one thing named twice.
        FileNotFoundError: a plan file that does not exist.
    """
    found = [Entry(BASELINE, BASELINE)]
    for text in job.schemes:
        name = scheme_name(text)
        found.append(Entry(name, _folder_name(name), scheme=text))
    for source in job.candidates:
        found.append(Entry(model_name(source), _folder_name(model_name(source)), source=source))
    if len(found) == 1:
        raise ValueError(
            "[audit] expected at least one scheme or candidate, got none: give --schemes or "
            "--candidates"
        )
    folders = [entry.folder.lower() for entry in found]
    repeated = [entry.name for entry in found[1:] if folders.count(entry.folder.lower()) > 1]
    if repeated:
        raise ValueError(
            f"[audit] expected candidates with different names, got {repeated[0]!r} more than "
            "once: leave the repetition out, or rename the folder"
        )
    return found


def scheme_name(text: str) -> str:
    """What an audit calls a scheme: its canonical string, or the name of the plan file.

    Raises:
        ValueError: unknown scheme, or a file that is no plan.
        FileNotFoundError: a plan file that does not exist.
    """
    from calibit.quantization import plans

    plan = plans.load(text)
    return Path(text).stem if text.endswith(".json") else plan.text


def model_name(source: str) -> str:
    """The last part of a path or hub name."""
    return Path(source).name or source


def load(
    entry: Entry,
    job: Job,
    progress: Callable[[int, int, str], None],
    *,
    calibration: Any = None,
    seed: int | None = None,
) -> Loaded:
    """The model of an entry: the baseline, its fresh weights quantized, or a checkpoint.

    Args:
        entry: which.
        job: the audit.
        progress: called with layers done, layers in all and a name while quantizing.
        calibration: what GPTQ calibrates on; the job's text where omitted.
        seed: of the calibration draw; the job's first where omitted.
    """
    if entry.source is not None:
        return open_model(
            entry.source,
            device=job.device,
            trust_remote_code=job.trust_remote_code,
            other_tokenizer=job.model,
        )
    loaded = open_model(
        job.model, device=job.device, dtype=job.dtype, trust_remote_code=job.trust_remote_code
    )
    if entry.scheme is None:
        return loaded
    from calibit.quantization import quantize_model

    report = quantize_model(
        loaded.model,
        entry.scheme,
        calibration=job.calibration if calibration is None else calibration,
        calibration_tokens=job.calibration_tokens,
        calibration_seed=next(iter(job.seeds), None) if seed is None else seed,
        tokenizer=loaded.tokenizer,
        progress=progress,
    )
    return replace(loaded, record=report.to_dict())


def open_model(
    source: str,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    other_tokenizer: str | None = None,
) -> Loaded:
    """A model and its tokenizer: calibit's own checkpoints, and those of tools that are not
    installed, through its readers and on its kernels; all others through transformers.

    Args:
        source: folder or hub name.
        device: where the model runs.
        dtype: name of a torch dtype, or `auto` for the stored one.
        trust_remote_code: let the model bring code of its own.
        other_tokenizer: where to take the tokenizer from when the folder holds none.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: nothing that transformers can load, or a damaged file.
    """
    import torch

    from calibit import kv_cache
    from calibit.io.native import FINETUNING

    vocabulary = other_tokenizer if loading.lacks_tokenizer(source) and other_tokenizer else source
    tokenizer = loading.read_tokenizer(vocabulary, trust_remote_code=trust_remote_code)
    model = _read(source, dtype, trust_remote_code)
    if model.device != torch.device(device):
        model = model.to(device)
    section = model.config.to_dict().get("quantization_config") or {}
    record: dict[str, Any] = {
        "checkpoint": str(section.get("quant_method", FLOAT)),
        "scheme": section.get("scheme"),
        "source_hash": section.get("source_hash"),
        FINETUNING: section.get(FINETUNING),
    }
    if kv_cache.bits_of(model) is not None:
        record["notes"] = [kv_cache.measure(model).note]
    return Loaded(model.eval(), tokenizer, record)


def settle_tokenizer(loaded: Loaded, job: Job, texts: Iterable[str]) -> Loaded:
    """Give a checkpoint the baseline's tokenizer where both encode every text of the audit alike.

    Tools that quantize often save the tokenizer again with a padding token or in another layout;
    such files differ although no token does. Where a token differs the checkpoint keeps its own,
    and the comparison refuses it.
    """
    from calibit.evaluation.identity import tokenizer_hash

    base = loading.read_tokenizer(job.model, trust_remote_code=job.trust_remote_code)
    if tokenizer_hash(base) == tokenizer_hash(loaded.tokenizer):
        return loaded
    rows = list(dict.fromkeys(texts))
    first, second = (
        tokenizer(rows, verbose=False)["input_ids"] for tokenizer in (base, loaded.tokenizer)
    )
    if first != second:
        return loaded
    note = (
        "its tokenizer files differ from the baseline's but encode every text of this audit "
        "alike; the baseline's were used"
    )
    return Loaded(
        loaded.model, base, {**loaded.record, "notes": [*loaded.record.get("notes", ()), note]}
    )


def notes_of(source: str) -> list[str]:
    """Sentences that the model's own folder asks a report to show."""
    file = Path(source) / SOURCE_FILE
    if not file.is_file():
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    return [str(note) for note in content.get("notes", [])]


def lineage(
    entry: Entry, job: Job, base: Mapping[str, Any], record: Mapping[str, Any]
) -> list[str]:
    """Reasons to doubt that a checkpoint made elsewhere is the baseline, only quantized.

    Args:
        entry: which; a scheme is of the baseline by construction.
        job: the audit.
        base: `run.json` of the baseline.
        record: how the entry's weights came about.

    Returns:
        Sentences; none where everything agrees.
    """
    if entry.source is None:
        return []
    doubts = []
    first, second = _config(job.model, job), _config(entry.source, job)
    differs = [key for key in _LINEAGE_KEYS if first.get(key) != second.get(key)]
    if differs:
        doubts.append(f"{entry.name} differs from the baseline in {', '.join(differs)}")
    if record.get("finetuning"):
        from calibit.quantization.finetuning import describe

        doubts.append(f"{entry.name} was {describe(record['finetuning'])}")
    made_from = record.get("source_hash")
    if made_from is not None and made_from != base.get("weight_hash"):
        doubts.append(f"{entry.name} was made from other weights than the baseline's")
    return [f"{doubt}: its changes are not those of precision alone." for doubt in doubts]


def _read(source: str, dtype: str, trust_remote_code: bool) -> Any:
    import torch

    from calibit.io import checkpoints, foreign, native

    place = loading.locate(source)
    if native.is_checkpoint(place) or foreign.lacks_package(place):
        chosen = None if dtype == "auto" else getattr(torch, dtype)
        return checkpoints.load(place, dtype=chosen, trust_remote_code=trust_remote_code)
    return loading.read_model(source, dtype=dtype, trust_remote_code=trust_remote_code)


def _config(source: str, job: Job) -> Mapping[str, Any]:
    config = loading.read_config(source, trust_remote_code=job.trust_remote_code)
    return config.get_text_config().to_dict()


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name).strip(".") or "candidate"
