"""What an evaluation does with prompts and continuations: generate, judge, force, record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibit.evaluation.chat import rendered_prompt
from calibit.evaluation.encoding import Encoder
from calibit.evaluation.folder import RunFolder
from calibit.evaluation.forcing import (
    HEAD,
    Forcer,
    Reference,
    Sequence_,
    shard_name,
    states_name,
)
from calibit.evaluation.generation import Continued, continue_greedily, plan_prompts
from calibit.evaluation.identity import text_hash, tokenizer_hash
from calibit.evaluation.text import plan_windows
from calibit.measures.repetition import repetition_of
from calibit.runs import FORCED, GENERATE, GENERATED, SEQUENCES, WORKLOAD, read_lines
from calibit.tasks.answers import Answer
from calibit.tasks.prompts import Prompt

if TYPE_CHECKING:
    from calibit.tasks.parallel import ParallelText

Tokens = tuple[int, ...]
Report = Callable[[str, int], None]


@dataclass(frozen=True)
class Asked:
    """A prompt as token ids.

    Attributes:
        prompt: what is asked.
        text: as the model is shown it.
        ids: token ids, cut on the left to fit the model.
        forced: whether its continuation is forced on other models: a prompt of the workload.
        cut: whether tokens were cut.
    """

    prompt: Prompt
    text: str
    ids: Tokens
    forced: bool
    cut: bool = False


@dataclass(frozen=True)
class Asking:
    """What an evaluation is given besides items and texts.

    Attributes:
        prompts: of the tasks that are answered in free text.
        workload: prompts whose continuations are compared token by token.
        texts: parallel texts.
        reference: the run whose workload and texts are taken instead.
    """

    prompts: Sequence[Prompt] = ()
    workload: Sequence[Prompt] = ()
    texts: Sequence[ParallelText] = ()
    reference: Reference | None = None

    def __bool__(self) -> bool:
        return bool(self.prompts or self.workload or self.texts or self.reference)


@dataclass(frozen=True)
class Outputs:
    """The prompts and continuations of one evaluation.

    Attributes:
        asked: the prompts, those of the workload first.
        given: continuations known from the start: segments of parallel texts, or all those of the
            reference.
        reference: the run whose continuations these are; None where the model makes its own.
        batches: prompts that are continued together.
        shards: continuations that go through the model together: first those of the workload's
            prompts, then the given ones.
        identity: what makes two jobs the same.
    """

    asked: tuple[Asked, ...]
    given: tuple[Sequence_, ...]
    reference: Reference | None
    batches: tuple[tuple[int, ...], ...]
    shards: tuple[tuple[int, ...], ...]
    identity: Mapping[str, Any]

    @classmethod
    def prepare(
        cls,
        encoder: Encoder,
        given: Asking,
        *,
        max_length: int,
        batch_tokens: int,
        chat: bool,
    ) -> Outputs:
        """Encode prompts and segments, plan the batches.

        Args:
            encoder: tokenizer and BOS rule.
            given: prompts and texts.
            max_length: positions the model can take.
            batch_tokens: as for `evaluate`.
            chat: put every prompt into the chat template.
        """
        reference = given.reference
        if reference is not None and reference.tokenizer_hash != tokenizer_hash(encoder.tokenizer):
            raise ValueError(
                "[evaluate] expected the tokenizer of the reference, got another: its "
                "continuations are token ids and mean something else here"
            )
        if reference is None:
            asked = [_asked(encoder, one, True, max_length, chat) for one in given.workload]
            sequences = [one for t in given.texts for one in _segments(encoder, t, max_length)]
        else:
            asked, sequences = _answerable(reference), list(reference.sequences)
        asked += [_asked(encoder, one, False, max_length, chat) for one in given.prompts]
        batches = plan_prompts(
            [len(one.ids) for one in asked],
            [one.prompt.max_new_tokens for one in asked],
            batch_tokens=batch_tokens,
        )
        shards = _shards(asked, sequences, batch_tokens) if reference is None else reference.shards
        identity = _identity(asked, sequences, reference)
        return cls(
            tuple(asked), tuple(sequences), reference, tuple(batches), tuple(shards), identity
        )

    def __bool__(self) -> bool:
        return bool(self.asked or self.given)

    def segment_counts(self) -> dict[str, int]:
        """Segments of parallel texts, and how many of them are cut to fit; empty without any."""
        own = [one for one in self.given if one.source != WORKLOAD]
        cut = sum("uncut" in one.more for one in own)
        return {"segments": len(own), "segments_truncated": cut} if own else {}

    def costs(self) -> dict[tuple[str, int], int]:
        """Tokens of every unit of work, for the estimate of the time left."""
        found = {
            ("generate", i): sum(
                len(self.asked[k].ids) + self.asked[k].prompt.max_new_tokens for k in batch
            )
            for i, batch in enumerate(self.batches)
        }
        sizes = [len(one.ids) + one.prompt.max_new_tokens for one in self.asked if one.forced]
        sizes += [len(one.context) + len(one.target) for one in self.given]
        forced = {("forced", i): sum(sizes[k] for k in s) for i, s in enumerate(self.shards)}
        return {**found, **forced}

    def stored(self, folder: RunFolder) -> list[tuple[str, int]]:
        """Units of work that the folder holds."""
        done = [("generate", i) for i in range(len(self.batches)) if folder.has(part_name(i))]
        return done + [("forced", i) for i in range(len(self.shards)) if folder.has(shard_name(i))]

    def run(
        self,
        model: Any,
        tokenizer: Any,
        head: str,
        folder: RunFolder,
        report: Report,
        *,
        store_docs: bool = True,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Do what the folder lacks.

        Args:
            model, tokenizer: what is evaluated.
            head: how its output layer is reached.
            folder: where the work is stored.
            report: called after every batch.
            store_docs: keep the answers' texts, and not their hashes alone.

        Returns:
            Entries for run.json, and lines for items.jsonl.
        """
        continued = self._generate(model, tokenizer, folder, report)
        sequences = self._sequences(continued)
        forcer = Forcer(model, head)
        for shard in range(len(self.shards)):
            if not folder.has(shard_name(shard)):
                self._force(forcer, shard, sequences, folder)
                report("forced", shard)
        lines = [
            _line(one, found, store_docs)
            for one, found in zip(self.asked, continued, strict=True)
            if one.prompt.answer is not None
        ]
        if not sequences:
            return {}, lines
        if self.reference is None and forcer.head():
            folder.add_tensors(HEAD, forcer.head())
        folder.add_lines(SEQUENCES, [one.to_line() for one in sequences])
        described = {
            **self.identity[FORCED],
            "states": forcer.kind if self.reference is None else None,
            "shards": [list(shard) for shard in self.shards],
            "tokens": sum(len(one.target) for one in sequences),
        }
        return {FORCED: described}, lines

    def _generate(
        self, model: Any, tokenizer: Any, folder: RunFolder, report: Report
    ) -> list[Continued]:
        found: dict[int, Continued] = {}
        for number, batch in enumerate(self.batches):
            name = part_name(number)
            if not folder.has(name):
                chosen = [self.asked[index] for index in batch]
                rows = continue_greedily(
                    model,
                    tokenizer,
                    [one.ids for one in chosen],
                    max_new_tokens=chosen[0].prompt.max_new_tokens,
                    stops=[one.prompt.stop for one in chosen],
                )
                folder.add_lines(name, [asdict(row) for row in rows])
                report("generate", number)
            lines = read_lines(folder.path / name)
            for index, line in zip(batch, lines, strict=True):
                found[index] = Continued(tuple(line["ids"]), line["text"], line["ended"])
        return [found[index] for index in range(len(self.asked))]

    def _sequences(self, continued: Sequence[Continued]) -> list[Sequence_]:
        """All continuations that are forced: of the workload, then the given ones."""
        if self.reference is not None:
            return list(self.given)
        pairs = zip(self.asked, continued, strict=True)
        return [_sequence(one, found) for one, found in pairs if one.forced] + list(self.given)

    def _force(
        self, forcer: Forcer, shard: int, sequences: Sequence[Sequence_], folder: RunFolder
    ) -> None:
        rows = [sequences[index] for index in self.shards[shard]]
        states = forcer.states(rows)
        if self.reference is None:
            folder.add_array(states_name(shard), states.float().cpu().numpy())
        found = forcer.measure(rows, states, self.reference, shard)
        sizes = [len(row.target) for row in rows]
        found["sequence"] = np.repeat(np.array(self.shards[shard], dtype=np.int64), sizes)
        found["position"] = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes])
        folder.add_arrays(shard_name(shard), found)


def _shards(
    asked: Sequence[Asked], given: Sequence[Sequence_], batch_tokens: int
) -> list[tuple[int, ...]]:
    """Continuations that go through the model together, by the length they may get: the plan does
    not depend on what is generated."""
    rows = [one.ids + (0,) * one.prompt.max_new_tokens for one in asked if one.forced]
    rows += [one.context + one.target for one in given]
    return plan_windows(rows, batch_tokens=batch_tokens)


def part_name(number: int) -> str:
    """File of a finished batch of continuations, while the run is written."""
    return f"{GENERATED}/{number:04d}.jsonl"


def _asked(encoder: Encoder, one: Prompt, forced: bool, max_length: int, chat: bool) -> Asked:
    text = rendered_prompt(one, encoder.tokenizer, chat=chat)
    ids = encoder([text])[text] if text else []
    room = max_length - one.max_new_tokens
    if room < 1:
        raise ValueError(
            f"[evaluate] expected max_new_tokens below {max_length}, the positions of the model, "
            f"for prompt {one.id!r} of {one.task!r}, got {one.max_new_tokens}"
        )
    kept = tuple(ids[-room:] or [encoder.prefix_token])
    return Asked(one, text, kept, forced, cut=len(ids) > room)


def _answerable(reference: Reference) -> list[Asked]:
    """The reference's prompts with an answer: another model continues them by itself too."""
    found = []
    for one in reference.sequences:
        if one.more.get("answer") is not None:
            prompt = Prompt(
                id=one.id,
                task=one.more["task"],
                answer=Answer.of(one.more["answer"]),
                slices=one.slices,
                max_new_tokens=one.more["max_new_tokens"],
            )
            found.append(Asked(prompt, "", one.context, forced=False))
    return found


def _sequence(one: Asked, found: Continued) -> Sequence_:
    prompt = one.prompt
    return Sequence_(
        source=WORKLOAD,
        id=prompt.id,
        group="",
        cluster=prompt.id,
        slices=prompt.slices,
        context=one.ids,
        target=found.ids,
        more={
            "task": prompt.task,
            "answer": None if prompt.answer is None else prompt.answer.to_dict(),
            "max_new_tokens": prompt.max_new_tokens,
            "ended": found.ended,
        },
    )


def _segments(encoder: Encoder, text: ParallelText, max_length: int) -> Iterator[Sequence_]:
    """The segments of a parallel text; every token of one is predicted, the first from BOS. One
    that is too long for the model is cut on the right and carries its whole length."""
    ids = encoder(segment.text for segment in text.segments)
    bos = encoder.tokenizer.bos_token_id
    for segment in text.segments:
        row = ids[segment.text]
        context, target = (row[:1], row[1:]) if row[:1] == [bos] else ([encoder.prefix_token], row)
        if target:
            yield Sequence_(
                source=text.name,
                id=f"{segment.lang}-{segment.number}",
                group=segment.lang,
                cluster=str(segment.document),
                slices={"lang": segment.lang},
                context=tuple(context),
                target=tuple(target[:max_length]),
                more={
                    "bytes": len(segment.text.encode()),
                    **({"uncut": len(target)} if len(target) > max_length else {}),
                },
            )


def _identity(
    asked: Sequence[Asked], given: Sequence[Sequence_], reference: Reference | None
) -> dict[str, Any]:
    """What makes two jobs the same; empty where nothing is asked."""
    own = [one for one in asked if not one.forced]
    found: dict[str, Any] = {}
    if own:
        tasks = dict.fromkeys(one.prompt.task for one in own)
        found[GENERATED] = [
            _described(name, [one for one in own if one.prompt.task == name]) for name in tasks
        ]
    workload = [one for one in asked if one.forced]
    if workload or given:
        found[FORCED] = {
            "reference": None if reference is None else reference.sha256,
            "workload": _described(workload[0].prompt.task, workload) if workload else None,
            "given": len(given),
            "given_hash": text_hash([one.to_line() for one in given]),
        }
    return found


def _described(name: str, asked: Sequence[Asked]) -> dict[str, Any]:
    shown = [[one.prompt.to_dict(), one.text, list(one.ids)] for one in asked]
    return {"name": name, "n": len(asked), "prompts_hash": text_hash(shown)}


def _line(one: Asked, found: Continued, store_docs: bool) -> dict[str, Any]:
    """Line of items.jsonl; without texts where prompts are not stored either."""
    prompt = one.prompt
    assert prompt.answer is not None
    correct, got = prompt.answer.judge(found.text)
    return {
        "kind": GENERATE,
        "id": prompt.id,
        "task": prompt.task,
        "slices": dict(prompt.slices),
        "correct": correct,
        **({"got": got, "text": found.text} if store_docs else {}),
        "text_hash": text_hash(found.text),
        "tokens": len(found.ids),
        "ended": found.ended,
        "repetition": repetition_of(found.ids, found.text),
        "context_hash": text_hash(list(one.ids)),
        "choices_hash": text_hash(prompt.answer.to_dict()),
    }
