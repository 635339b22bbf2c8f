"""What can be refused of a job before a model is loaded and anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calibit import loading
from calibit.auditing import job as jobs
from calibit.auditing.job import Job
from calibit.auditing.models import Entry

if TYPE_CHECKING:
    from calibit.evaluation import Text
    from calibit.tasks import Item


def check_settings(job: Job) -> None:
    """Refuse words and numbers that mean nothing, and what this machine lacks.

    Raises:
        ValueError: naming the setting and what it may be.
        FileNotFoundError: the path of a model that does not exist.
    """
    from calibit.evaluation.encoding import BOS_RULES
    from calibit.evaluation.text import PROTOCOLS
    from calibit.measures import RULES, Resampling
    from calibit.registry import active_kernels

    for name, value, known in (
        ("rigor", job.rigor, jobs.RIGOR),
        ("speed", job.speed, jobs.SPEEDS),
        ("rule", job.rule, RULES),
        ("bos", job.bos, BOS_RULES),
        ("text_protocol", job.text_protocol, PROTOCOLS),
    ):
        if value not in known:
            raise ValueError(
                f"[audit] expected {name} to be one of {', '.join(known)}, got {value!r}"
            )
    for name, number in (
        ("limit", job.limit),
        ("batch_tokens", job.batch_tokens),
        ("calibration_tokens", job.calibration_tokens),
        ("max_new_tokens", job.max_new_tokens),
        ("parallel_segments", job.parallel_segments),
    ):
        if number is not None and number < 1:
            raise ValueError(f"[audit] expected {name} of at least 1, got {number}")
    Resampling(level=job.level, resamples=job.resamples, seed=job.seed)
    loading.check_dtype(job.dtype)
    loading.check_device(job.device)
    active_kernels()  # refuses a forced table that cannot run
    loading.locate(job.model, "MODEL")
    for source in job.candidates:
        loading.locate(source, "--candidates")


def check_texts(
    job: Job, text: Text | None, entries: Sequence[Entry] = (), items: Sequence[Item] = ()
) -> list[str]:
    """Refuse a tokenizer that is missing and texts that are too short, before weights are read.

    Args:
        job: the job.
        text: the text to score, or None.
        entries: the models of an audit; where GPTQ is among them its text is checked too.
        items: what the models will be asked; the calibration text is compared with it.

    Returns:
        Sentences for the report.

    Raises:
        ValueError: no model or tokenizer there, or too little text.
        FileNotFoundError: a calibration text that does not exist.
    """
    from calibit.evaluation.encoding import Encoder, context_length
    from calibit.evaluation.text import make_windows
    from calibit.quantization import calibration_text, self_written

    options = {"trust_remote_code": job.trust_remote_code}
    config = loading.read_config(job.model, **options)
    tokenizer = loading.read_tokenizer(job.model, **options)
    encoder = Encoder(tokenizer, bos=job.bos)
    if text is not None:
        make_windows(encoder, text, max_length=context_length(config, tokenizer))
    if not any(entry.uses_gptq for entry in entries):
        return []
    if self_written.is_source(job.calibration):  # not there yet
        self_written.temperature_of(job.calibration)
        return []
    calibration = calibration_text.for_model(
        job.calibration,
        tokenizer,
        config,
        tokens=job.calibration_tokens,
        seed=next(iter(job.seeds), None),
    )
    note = calibration_text.foreign_text(calibration, tokenizer, [item.context for item in items])
    return [note] if note is not None else []
