"""The calibration text of an audit: named by the job, or written by the baseline, once for all of
its schemes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibit.auditing.job import CALIBRATION_FILE, FULL, Job
from calibit.auditing.models import Entry, Loaded

if TYPE_CHECKING:
    from calibit.quantization.calibration_text import Calibration


def is_written(job: Job, entries: Sequence[Entry]) -> bool:
    """Whether the baseline has to write the calibration text."""
    from calibit.quantization.self_written import is_source

    schemes = [entry for entry in entries if entry.scheme is not None]
    return is_source(job.calibration) and any(
        entry.uses_gptq or job.rigor == FULL for entry in schemes
    )


def written(
    job: Job, folder: Path, model: Callable[[], Loaded], progress: Callable[[int, int], None]
) -> dict[int | None, Calibration]:
    """What the baseline writes, or has written into the folder before, by the seed of the draw.

    Args:
        job: the audit.
        folder: of the audit.
        model: gives the baseline.
        progress: called with tokens done and tokens in all, of each draw.
    """
    from calibit.loading import read_tokenizer
    from calibit.quantization import calibration_text, kept_text

    def make(seed: int | None) -> Calibration:
        return calibration_text.for_model(
            job.calibration,
            model().tokenizer,
            model().model.config,
            tokens=job.calibration_tokens,
            seed=seed,
            model=model().model,
            progress=progress,
        )

    tokenizer = read_tokenizer(job.model, trust_remote_code=job.trust_remote_code)
    first = next(iter(job.seeds), None)
    return {
        seed: kept_text.kept(folder / _file(seed, first), partial(make, seed), tokenizer)
        for seed in job.seeds or (None,)
    }


def _file(seed: int | None, first: int | None) -> str:
    """The candidates' own draw has the plain name."""
    stem, _, suffix = CALIBRATION_FILE.rpartition(".")
    return CALIBRATION_FILE if seed == first else f"{stem}-{seed}.{suffix}"


def foreign(job: Job, calibration: Any, contexts: Sequence[str]) -> list[str]:
    """A sentence for the report where the text is of another kind than what the models are
    asked."""
    from calibit.loading import read_tokenizer
    from calibit.quantization.calibration_text import foreign_text

    tokenizer = read_tokenizer(job.model, trust_remote_code=job.trust_remote_code)
    note = foreign_text(calibration, tokenizer, contexts)
    return [] if note is None else [note]
