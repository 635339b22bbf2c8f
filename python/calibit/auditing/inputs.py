"""What a job reads besides models: items, prompts and texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calibit.auditing import job as jobs
from calibit.auditing.job import Job

if TYPE_CHECKING:
    from calibit.evaluation import Text
    from calibit.tasks import Item, ParallelText, Prompt
    from calibit.tasks.loading import Loaded


@dataclass(frozen=True)
class Inputs:
    """What the models of a job are measured on.

    Attributes:
        items: items and prompts of the tasks.
        notes: what their readers want said.
        text: the text to score, or None.
        workload: the user's prompts.
        parallel: parallel texts.
    """

    items: Sequence[Any]
    notes: Sequence[str]
    text: Text | None
    workload: Sequence[Prompt] = ()
    parallel: Sequence[ParallelText] = ()

    @property
    def choices(self) -> list[Item]:
        """The multiple-choice items: what control runs repeat."""
        from calibit.tasks import Prompt

        return [item for item in self.items if not isinstance(item, Prompt)]

    def continued(self) -> dict[str, Any]:
        """Workload and parallel texts as arguments of `evaluate`; empty without any."""
        if not (self.workload or self.parallel):
            return {}
        return {"workload": self.workload, "parallel": self.parallel}

    def strings(self) -> Iterator[str]:
        """Every text that is encoded."""
        from calibit.evaluation.identity import contexts_of
        from calibit.tasks import Prompt

        for item in self.choices:
            pairs = zip(contexts_of(item), item.choices, strict=True)
            yield from (context + item.delimiter + choice for context, choice in pairs)
        for one in (*self.workload, *(item for item in self.items if isinstance(item, Prompt))):
            yield from filter(None, (one.prompt, *(turn["content"] for turn in one.messages)))
        for text in self.parallel:
            yield from (segment.text for segment in text.segments)
        if self.text is not None:
            yield from self.text.documents


def _apart(specs: Sequence[str], tasks: Sequence[Loaded]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for spec, loaded in zip(specs, tasks, strict=True):
        for item in loaded.items:
            other = seen.setdefault((item.task, item.id), spec)
            if other != spec:
                raise ValueError(
                    f"[tasks] expected items of their own in {other} and {spec}, got {item.id!r} "
                    f"in both: the two make task {item.task!r}; rename one file or its task"
                )


def read_inputs(job: Job) -> Inputs:
    """Items, prompts and texts: what is wrong with them shows before anything runs.

    Raises:
        ValueError: unknown task, a line that is not valid, one id twice, an empty text.
        FileNotFoundError: a file that does not exist.
    """
    from calibit.evaluation.job import collect_items
    from calibit.tasks import limit, read, read_parallel, read_prompts

    tasks = [read(spec, **jobs.task_options(job)) for spec in job.tasks]
    samples = [
        task.items if job.limit is None else limit(task.items, job.limit, seed=job.seed)
        for task in tasks
    ]
    _apart(job.tasks, tasks)
    items = collect_items([item for sample in samples for item in sample], limit=None, seed=0)
    text = _text(job)
    workload = read_prompts(job.workload, max_new_tokens=job.max_new_tokens) if job.workload else []
    parallel = (
        [read_parallel(job.parallel_text, segments=job.parallel_segments)]
        if job.parallel_text
        else []
    )
    if not items and text is None and not workload and not parallel:
        raise ValueError("[audit] expected tasks with items, or a text, got neither")
    notes = [note for task in tasks for note in task.notes]
    if job.word_frequency is not None:
        items, workload, said = _by_rarity(job, items, workload)
        notes.append(said)
    return Inputs(items, notes, text, workload, parallel)


def _by_rarity(
    job: Job, items: Sequence[Any], workload: Sequence[Prompt]
) -> tuple[list[Any], list[Prompt], str]:
    """Items and prompts with slices by word frequency, and a note of where that comes from."""
    from calibit.tasks import rarity, read

    assert job.word_frequency is not None
    plain = None
    if job.num_fewshot:  # the examples in front are not the question
        options = {**jobs.task_options(job), "num_fewshot": 0}
        bare = [item for spec in job.tasks for item in read(spec, **options).items]
        plain = {(item.task, item.id): rarity.text_of(item) for item in bare}
    asked = (*items, *workload)
    texts = [(plain or {}).get((one.task, one.id)) or rarity.text_of(one) for one in asked]
    known, said = rarity.frequencies(job.word_frequency, texts)
    return (
        rarity.with_rarity(items, known, plain),
        rarity.with_rarity(list(workload), known),
        said,
    )


def _text(job: Job) -> Text | None:
    from calibit.evaluation import Text

    if job.text == jobs.NO_TEXT:
        return None
    return Text.from_file(
        job.text,
        protocol=job.text_protocol,
        window=job.text_window,
        max_tokens=job.text_tokens,
    )
