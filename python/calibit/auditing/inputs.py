"""What a job reads besides models: items and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calibit.auditing import job as jobs
from calibit.auditing.job import Job

if TYPE_CHECKING:
    from calibit.evaluation import Text


def read_inputs(job: Job) -> tuple[list[Any], list[str], Text | None]:
    """Items, notes of their readers, and text: what is wrong with them shows before anything runs.

    Raises:
        ValueError: unknown task, a line that is not valid, one id twice, an empty text.
        FileNotFoundError: a file that does not exist.
    """
    from calibit.evaluation.job import collect_items
    from calibit.tasks import limit, read

    tasks = [read(spec, **jobs.task_options(job)) for spec in job.tasks]
    samples = [
        task.items if job.limit is None else limit(task.items, job.limit, seed=job.seed)
        for task in tasks
    ]
    items = collect_items([item for sample in samples for item in sample], limit=None, seed=0)
    text = _text(job)
    if not items and text is None:
        raise ValueError("[audit] expected tasks with items, or a text, got neither")
    return items, [note for task in tasks for note in task.notes], text


def _text(job: Job) -> Text | None:
    from calibit.evaluation import Text

    if job.text == jobs.NO_TEXT:
        return None
    return Text.from_file(job.text, window=job.text_window, max_tokens=job.text_tokens)
