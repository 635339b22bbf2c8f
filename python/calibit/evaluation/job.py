"""Job: all that one evaluation needs, computed before its folder is touched, and what identifies
it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibit.evaluation.encoding import EncodedChoices, Encoder, context_length, encode_items
from calibit.evaluation.identity import contexts_of, tokenizer_hash
from calibit.evaluation.outputs import Asking, Outputs
from calibit.evaluation.records import describe_tasks, describe_texts
from calibit.evaluation.text import Text, Windows, make_windows, plan_windows
from calibit.fingerprint import weight_hash
from calibit.footprint import kernels_of
from calibit.runs import RECALIBRATION, SCHEMA

if TYPE_CHECKING:
    from calibit.recalibration import Recalibration
    from calibit.tasks import Item, Prompt


@dataclass(frozen=True)
class Options:
    """Settings that are part of a job's identity; see `evaluate`."""

    scheme: str
    seed: int
    bos: str
    unconditional: bool
    batch_tokens: int
    max_length: int | None
    store_docs: bool
    chat_template: str | None = None
    recalibration: Recalibration | None = None


@dataclass(frozen=True)
class Job:
    """One evaluation, ready to run.

    Attributes:
        model: the model.
        items: the items.
        encoded: the items as token ids, followed by each distinct set of choices after an empty
            context where asked for.
        alone: per item the index of its set among those; empty where not asked for.
        texts: the texts as windows.
        shards: per text the window indices of each shard of token losses.
        options: settings.
        outputs: prompts and continuations.
        identity: the entries of run.json that make two jobs the same.
    """

    model: Any
    items: Sequence[Item]
    encoded: Sequence[EncodedChoices]
    alone: Sequence[int]
    texts: Sequence[Windows]
    shards: Sequence[Sequence[tuple[int, ...]]]
    options: Options
    outputs: Outputs
    identity: Mapping[str, Any]

    @classmethod
    def prepare(
        cls,
        model: Any,
        tokenizer: Any,
        items: Sequence[Item],
        texts: Sequence[Text],
        options: Options,
        asked: Asking,
    ) -> Job:
        """Encode items, texts and prompts, plan the shards, hash what identifies the job."""
        length = options.max_length or context_length(model.config, tokenizer)
        encoder = Encoder(tokenizer, bos=options.bos)
        pairs = [(contexts_of(item), _continuations(item)) for item in items]
        sets = list(dict.fromkeys(choices for _, choices in pairs)) if options.unconditional else []
        index = {choices: len(pairs) + place for place, choices in enumerate(sets)}
        windows = [make_windows(encoder, text, max_length=length) for text in texts]
        shards = [plan_windows(each.rows, batch_tokens=options.batch_tokens) for each in windows]
        outputs = Outputs.prepare(
            encoder,
            asked,
            max_length=length,
            batch_tokens=options.batch_tokens,
            chat=options.chat_template is not None,
        )
        identity = {
            "schema": SCHEMA,
            "scheme": options.scheme,
            "bos": options.bos,
            "max_length": length,
            "batch_tokens": options.batch_tokens,
            "unconditional": options.unconditional,
            "docs": options.store_docs,
            "seeds": {"evaluate": options.seed},
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "kernels": kernels_of(model),
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "tasks": describe_tasks(items),
            "text": describe_texts(windows, shards),
            "weight_hash": weight_hash(model),
        }
        # Also where there is none: a stored run that has one is another job.
        identity["outputs"] = outputs.identity if outputs else None
        identity["chat_template_hash"] = options.chat_template
        identity[RECALIBRATION] = _map_for(options.recalibration, identity["weight_hash"])
        encoded = encode_items(
            encoder,
            [*pairs, *((("",) * len(choices), choices) for choices in sets)],
            max_length=length,
        )
        alone = [index[choices] for _, choices in pairs] if sets else []
        return cls(model, items, encoded, alone, windows, shards, options, outputs, identity)


def _map_for(recalibration: Recalibration | None, weights: str) -> dict[str, Any] | None:
    """The map as it is recorded; refused for a model that it was not fitted for."""
    if recalibration is None:
        return None
    if recalibration.model_hash != weights:
        raise ValueError(
            f"[evaluate] expected a recalibration map fitted for this model (weights {weights}), "
            f"got one for {recalibration.model_hash}; fit it again: calibit recalibrate"
        )
    return recalibration.to_dict()


def _continuations(item: Any) -> tuple[str, ...]:
    return tuple(item.delimiter + choice for choice in item.choices)


def collect_items(
    tasks: Sequence[str | Item | Prompt], *, limit: int | None, seed: int
) -> list[Any]:
    """Load tasks given by name, keep items and prompts as they are, sample each task down to
    `limit`.

    Raises:
        ValueError: if an id comes twice in a task.
    """
    items: list[Any] = []
    for task in [tasks] if isinstance(tasks, str) else tasks:
        if isinstance(task, str):
            from calibit.tasks import load

            items.extend(load(task))
        else:
            items.append(task)
    by_task: dict[str, list[Any]] = {}
    seen: set[tuple[str, str]] = set()
    for item in items:
        if (item.task, item.id) in seen:
            raise ValueError(
                f"[evaluate] expected every id once in a task, got {item.id!r} twice "
                f"in {item.task!r}"
            )
        seen.add((item.task, item.id))
        by_task.setdefault(item.task, []).append(item)
    if limit is None:
        return items
    from calibit.tasks import limit as sample

    return [item for own in by_task.values() for item in sample(own, limit, seed=seed)]


def collect_texts(text: Text | str | Path | Sequence[Text] | None) -> list[Text]:
    """One text, a path or several texts as a list.

    Raises:
        ValueError: if two texts have the same name.
    """
    if text is None:
        return []
    if isinstance(text, (str, Path)):
        return [Text.from_file(text)]
    texts = [text] if isinstance(text, Text) else list(text)
    names = [each.name for each in texts]
    if len(set(names)) < len(names):
        raise ValueError(f"[evaluate] expected texts of different names, got {', '.join(names)}")
    return texts
