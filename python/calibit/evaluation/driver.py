"""evaluate(): from a model and tasks to a Run, resumable at every batch."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from calibit.evaluation.batching import Batch, plan, tokens_of
from calibit.evaluation.chat import in_template, template_hash
from calibit.evaluation.checking import choose_method
from calibit.evaluation.folder import RunFolder
from calibit.evaluation.forcing import Reference
from calibit.evaluation.job import Job, Options, collect_items, collect_texts
from calibit.evaluation.outputs import Asking
from calibit.evaluation.records import doc_lines, item_lines, prompt_lines
from calibit.evaluation.scoring import ChoiceScores, Scorer
from calibit.evaluation.text import Text
from calibit.footprint import PeakMemory, measure_memory, measure_speed, versions
from calibit.io import native
from calibit.runs import Run, TokenLosses

if TYPE_CHECKING:
    from calibit.recalibration import Recalibration
    from calibit.tasks import Item, Prompt
    from calibit.tasks.parallel import ParallelText

BATCH_TOKENS = 2048
"""Tokens of a batch by default: a few seconds of a small model on a CPU, which is what a killed run
loses."""

SPEEDS = ("quick", "full")


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is.

    Attributes:
        stage: `items`, `text`, `generate` or `forced`.
        done, total: tokens through the model, all stages together.
        seconds: since this process began to score.
        remaining: estimate of the seconds left; None before this process has finished a batch.
    """

    stage: str
    done: int
    total: int
    seconds: float
    remaining: float | None


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | Item | Prompt] = (),
    *,
    text: Text | str | Path | Sequence[Text] | None = None,
    workload: str | Path | Sequence[Prompt] | None = None,
    parallel: ParallelText | Sequence[ParallelText] | None = None,
    reference: Run | str | Path | None = None,
    out: str | Path | None = None,
    scheme: str = "none",
    limit: int | None = None,
    seed: int = 0,
    bos: str = "tokenizer",
    unconditional: bool = False,
    apply_chat_template: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    max_length: int | None = None,
    store_docs: bool = True,
    recalibration: Recalibration | None = None,
    speed: str | None = None,
    resume: bool = True,
    command: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Score answer choices and texts with a causal language model.

    Prompts are tokenized as lm-evaluation-harness does it (see `encoding`); the log-likelihood of a
    choice is a float64 sum of float32 log-softmax values. The context is encoded once for all
    choices of an item.

    Args:
        model: any Hugging Face causal language model, quantized or not.
        tokenizer: its tokenizer.
        tasks: task names as for `calibit.tasks.load`, or items and prompts.
        text: texts whose tokens are scored; a path is read as one text under the `gptq` protocol.
        workload: prompts of the user, or their file (`calibit.tasks.read_prompts`): the model
            continues them greedily, and every token of that is recorded.
        parallel: parallel texts (`calibit.tasks.read_parallel`), every token of which is recorded.
        reference: the run of the model to compare with, on disk: its workload and parallel texts
            are put through this model token by token, and the divergence at every one is recorded.
            Takes the place of `workload` and `parallel`.
        out: folder of the run. A run of the same job in it is continued, or returned where it is
            finished; anything else is refused. None keeps the run in memory.
        scheme: label of what was done to the weights.
        limit: number of items of each task, a sample that keeps the share of every slice; None
            takes all.
        seed: of that sample, and of models with a random part.
        bos: `tokenizer`, `always` or `never`.
        unconditional: also score the choices after an empty context, for rule `pmi`.
        apply_chat_template: put every prompt into the tokenizer's chat template; choices then
            follow without a space in front.
        batch_tokens: tokens of a batch, which is the unit of work that is stored.
        max_length: longest input in tokens; default the model's context.
        store_docs: write prompts and choices beside the numbers.
        recalibration: map that the run's scores go through, recorded in run.json; the item lines
            keep what the model said. A map of the top answer only leaves the scores alone.
        speed: `quick` or `full` also measures tokens per second.
        resume: False refuses a folder that holds a run.
        command: recorded in run.json; default the command line of this process.
        progress: called after every batch.

    Returns:
        The finished run.

    Raises:
        ValueError: for an unknown option, repeated item ids, or a folder that holds something else.
        RuntimeError: if another process is writing the folder.

    Example:
        >>> run = evaluate(model, tokenizer, ["probe"], out="runs/nf4")  # doctest: +SKIP
        >>> run.scores().n, run.path.name                                # doctest: +SKIP
        (1452, 'nf4')
    """
    if speed is not None and speed not in SPEEDS:
        raise ValueError(f"[evaluate] expected speed to be {' or '.join(SPEEDS)}, got {speed!r}")
    for name, value in (("batch_tokens", batch_tokens), ("max_length", max_length)):
        if value is not None and value < 1:
            raise ValueError(f"[evaluate] expected {name} of at least 1, got {value}")
    options = Options(
        scheme,
        seed,
        bos,
        unconditional,
        batch_tokens,
        max_length,
        store_docs,
        template_hash(tokenizer) if apply_chat_template else None,
        recalibration,
    )
    items, texts = collect_items(tasks, limit=limit, seed=seed), collect_texts(text)
    asked = _asking(items, workload, parallel, reference)
    free = set(map(id, asked.prompts))
    items = [item for item in items if id(item) not in free]
    items = in_template(items, tokenizer) if apply_chat_template else items
    if not items and not texts and not asked:
        raise ValueError("[evaluate] expected tasks with items, or a text, got neither")
    with (
        _evaluating(model),
        nullcontext(out) if out is not None else tempfile.TemporaryDirectory() as folder,
    ):
        job = Job.prepare(model, tokenizer, items, texts, options, asked)
        with RunFolder.open(folder, job.identity, resume=resume) as stored:
            if not stored.complete:
                _run(job, tokenizer, stored, speed=speed, command=command, progress=progress)
        run = Run.load(folder)
    return run if out is not None else run.detached()


def _asking(
    items: Sequence[Any],
    workload: str | Path | Sequence[Prompt] | None,
    parallel: ParallelText | Sequence[ParallelText] | None,
    reference: Run | str | Path | None,
) -> Asking:
    from calibit.tasks.parallel import ParallelText
    from calibit.tasks.prompts import Prompt, read_prompts

    prompts = [item for item in items if isinstance(item, Prompt)]
    if reference is not None:
        if workload or parallel:
            raise ValueError(
                "[evaluate] expected a reference or a workload and parallel texts, got both: the "
                "reference's own are taken"
            )
        return Asking(prompts, reference=Reference(reference))
    texts = [parallel] if isinstance(parallel, ParallelText) else list(parallel or ())
    own = read_prompts(workload) if isinstance(workload, str | Path) else list(workload or ())
    return Asking(prompts, own, texts)


def _run(
    job: Job,
    tokenizer: Any,
    folder: RunFolder,
    *,
    speed: str | None,
    command: str | None,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Do what the folder still lacks, then finish it."""
    begun = time.perf_counter()
    meta = _begin(job, folder, command)
    batches = [Batch(tuple(b["items"]), tuple(b["cuts"])) for b in meta["batch_plan"]["choices"]]
    report = _Reporter(job, batches, folder, progress)
    scorer = Scorer(job.model, head=meta["scoring"]["head"])
    with PeakMemory() as peak:
        _score_items(job, folder, scorer, batches, report)
        meta["scoring"]["nonfinite_tokens"] = _score_texts(job, folder, scorer, report)
        more, answered = job.outputs.run(
            job.model,
            tokenizer,
            scorer.head,
            folder,
            report,
            store_docs=job.options.store_docs,
        )
    meta |= more
    meta["footprint"] = measure_memory(job.model).to_dict()
    meta["footprint"] |= {"peak_rss": peak.bytes, "peak_rss_since": peak.since}
    meta["speed"] = measure_speed(job.model, quick=speed == "quick").to_dict() if speed else None
    meta["times"] |= {"ended": _now(), "seconds": time.perf_counter() - begun}
    scores = _collect(folder, batches, len(job.encoded))
    without = [scores[index] for index in job.alone] if job.alone else None
    n = len(job.items)
    lines = chain(item_lines(job.items, job.encoded[:n], scores[:n], without), answered)
    docs = chain(doc_lines(job.items), prompt_lines(job.outputs.asked))
    folder.finish(meta, lines, docs if job.options.store_docs else None)


def _begin(job: Job, folder: RunFolder, command: str | None) -> dict[str, Any]:
    """run.json of the run: the stored one, or a new one with the way of scoring and the batch
    plan."""
    environment = {"threads": torch.get_num_threads(), "versions": versions()}
    if folder.meta is not None:
        meta = folder.meta
        if environment != {key: meta[key] for key in environment}:
            meta["resumed_with"] = [*meta.get("resumed_with", []), environment]
        return meta
    method = choose_method(job.model, job.encoded)
    batches = plan(job.encoded, batch_tokens=job.options.batch_tokens, share=method.shared_context)
    n = len(job.items)
    meta = {
        **job.identity,
        "model": {
            "name": str(getattr(job.model, "name_or_path", "")),
            "class": type(job.model).__name__,
            "parameters": measure_memory(job.model).parameters,
            native.FINETUNING: native.finetuning_of(job.model),
        },
        **environment,
        "command": command or shlex.join(sys.argv),
        "scoring": {
            **asdict(method),
            "softmax": "float32",
            "sum": "float64",
            "items": n,
            "unscored": sum(ids.reason is not None for ids in job.encoded[:n]),
            "truncated": sum(ids.truncated for ids in job.encoded[:n]),
            "prompts": len(job.outputs.asked),
            "prompts_truncated": sum(one.cut for one in job.outputs.asked),
            **job.outputs.segment_counts(),
            "boundary_merges": sum(ids.boundary_merge for ids in job.encoded[:n]),
        },
        "times": {"started": _now()},
        "batch_plan": {
            "choices": [{"items": list(b.items), "cuts": list(b.cuts)} for b in batches],
            "text": [[list(shard) for shard in own] for own in job.shards],
        },
    }
    folder.start(meta)
    return meta


def _score_items(
    job: Job, folder: RunFolder, scorer: Scorer, batches: Sequence[Batch], report: _Reporter
) -> None:
    for number, batch in enumerate(batches):
        if number < len(folder.batches):
            continue
        with _seeded(job, number):
            scores = scorer.choices(job.encoded, batch)
        found = [{"ll": score.ll, "greedy": score.greedy} for score in scores]
        folder.append({"batch": number, "scores": found})
        report("items", number)


def _score_texts(job: Job, folder: RunFolder, scorer: Scorer, report: _Reporter) -> dict[str, int]:
    """Store the missing shards; the number of non-finite losses per text."""
    bad: dict[str, int] = {}
    shard = 0
    for windows, batches in zip(job.texts, job.shards, strict=True):
        begin = shard
        for batch in batches:
            if not folder.has_tokens(shard):
                first = [windows.firsts[index] for index in batch]
                with _seeded(job, shard):
                    losses = scorer.sequences([windows.rows[index] for index in batch], first)
                folder.add_tokens(shard, _table(batch, losses, first))
                report("text", shard)
            shard += 1
        bad[windows.text.name] = int(np.isnan(folder.read_tokens(range(begin, shard)).nll).sum())
    return bad


def _table(batch: Sequence[int], losses: Sequence[np.ndarray], first: Sequence[int]) -> TokenLosses:
    """Losses of the windows of a batch from position `first` on; a non-finite one becomes NaN."""
    nll = np.concatenate(losses)
    window = np.repeat(np.array(batch, dtype=np.int64), [len(loss) for loss in losses])
    position = np.concatenate(
        [
            np.arange(start, start + len(loss), dtype=np.int64)
            for start, loss in zip(first, losses, strict=True)
        ]
    )
    return TokenLosses(np.where(np.isfinite(nll), nll, np.nan), window, position)


def _collect(folder: RunFolder, batches: Sequence[Batch], count: int) -> list[ChoiceScores | None]:
    """Scores by index of the encoded item, from the stored batches."""
    scores: list[ChoiceScores | None] = [None] * count
    for batch, record in zip(batches, folder.batches, strict=True):
        for index, found in zip(batch.items, record["scores"], strict=True):
            scores[index] = ChoiceScores(tuple(found["ll"]), tuple(found["greedy"]))
    return scores


class _Reporter:
    """Calls `progress` with tokens done and an estimate of the time left."""

    def __init__(
        self,
        job: Job,
        batches: Sequence[Batch],
        folder: RunFolder,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.progress = progress
        self.cost: dict[tuple[str, int], int] = {}
        if progress is None:
            return
        self.cost = {("items", i): tokens_of(batch, job.encoded) for i, batch in enumerate(batches)}
        rows = [
            (w.rows, shard) for w, own in zip(job.texts, job.shards, strict=True) for shard in own
        ]
        self.cost |= {
            ("text", i): len(shard) * max(len(windows[j]) for j in shard)
            for i, (windows, shard) in enumerate(rows)
        }
        self.cost |= job.outputs.costs()
        self.total = sum(self.cost.values())
        stored = [("items", i) for i in range(len(folder.batches))]
        stored += [("text", i) for i in range(len(rows)) if folder.has_tokens(i)]
        stored += job.outputs.stored(folder)
        self.before = self.done = sum(self.cost[key] for key in stored)
        self.begun = time.perf_counter()

    def __call__(self, stage: str, number: int) -> None:
        if self.progress is None:
            return
        self.done += self.cost[stage, number]
        seconds = time.perf_counter() - self.begun
        here = self.done - self.before
        remaining = seconds * (self.total - self.done) / here if here else None
        self.progress(Progress(stage, self.done, self.total, seconds, remaining))


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, the mode of before after it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _seeded(job: Job, number: int) -> Iterator[None]:
    """A random state that depends on the seed and the batch alone, so that a resumed run draws the
    same numbers."""
    devices = [job.model.device] if job.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(job.options.seed * 1_000_003 + number)
        yield


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
