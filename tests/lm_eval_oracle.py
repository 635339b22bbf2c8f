"""Staged rows in the schema of the published data sets, read by lm-evaluation-harness's own tasks.

The tasks are the harness's own files; only the place of their rows is replaced, by its json loader,
so that nothing is downloaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import tiny_models

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

Row = dict[str, Any]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _arc(row: Row) -> Row:
    labels = [chr(ord("A") + k) for k in range(len(row["choices"]))]
    return {
        "id": row["id"],
        "question": row["context"],
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["label"]],
    }


def _openbookqa(row: Row) -> Row:
    found = _arc(row)
    return {**found, "question_stem": found.pop("question")}


def _piqa(row: Row) -> Row:
    one, two = row["choices"]
    return {"goal": row["context"], "sol1": one, "sol2": two, "label": row["label"]}


def _boolq(row: Row) -> Row:
    passage, _, question = row["context"].rpartition("\nQuestion: ")
    return {"question": question.removesuffix("?"), "passage": passage, "label": row["label"]}


def _mmlu(row: Row) -> Row:
    kept = {key: row[key] for key in ("subject", "choices")}
    return {"question": row["context"], "answer": row["label"], **kept}


def _xcopa(row: Row) -> Row:
    one, two = row["choices"]
    kept = {key: row[key] for key in ("question", "label", "lang")}
    return {"premise": row["context"], "choice1": one, "choice2": two, **kept}


SCHEMAS: Mapping[str, Callable[[Row], Row]] = {
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "openbookqa": _openbookqa,
    "piqa": _piqa,
    "boolq": _boolq,
    "mmlu": _mmlu,
    "xcopa": _xcopa,
}
"""Task -> from a staged row to the row of the published set."""


def their_task(task: str, row: Row) -> str:
    """Name of the harness's task that a row of ours belongs to."""
    if task == "mmlu":
        return f"mmlu_{row['subject']}"
    return f"xcopa_{row['lang']}" if task == "xcopa" else task


def staged(path: Path, count: int) -> list[Row]:
    """`count` rows at equal distances over a staged file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [rows[i * len(rows) // count] for i in range(min(count, len(rows)))]


def write_sources(folder: Path, task: str, rows: Sequence[Row]) -> tuple[Path, dict[str, Path]]:
    """Write the rows in the source's schema.

    Returns:
        One file of all rows, and a file per task of the harness.
    """
    made = [SCHEMAS[task](row) for row in rows]
    by_task: dict[str, list[Row]] = {}
    for row in made:
        by_task.setdefault(their_task(task, row), []).append(row)
    whole = _write(folder / f"{task}.jsonl", made)
    return whole, {
        name: _write(folder / f"their_{name}.jsonl", own) for name, own in by_task.items()
    }


def _write(path: Path, rows: Sequence[Row]) -> Path:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@cache
def _manager() -> Any:
    """The harness's index of its tasks, made once: it reads thousands of files."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def task_files(folder: Path, files: Mapping[str, Path], **more: Any) -> list[str]:
    """One YAML file per task: the harness's own, with its rows from a file."""
    index = _manager().task_index
    made = []
    for name, file in files.items():
        content = {
            "include": str(index[name].yaml_path),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {"test": str(file)},
                "cache_dir": str(folder / "cache"),
            },
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            "fewshot_split": "test",
            **more,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        made.append(str(path))
    return made


def their_answers(model: Any, tasks: Sequence[str], **options: Any) -> dict[str, Any]:
    """Results of `lm_eval.simple_evaluate` with the samples of every task.

    Args:
        model: an `lm_eval.api.model.LM`.
        tasks: YAML files.
        options: further arguments of it.
    """
    import lm_eval

    return lm_eval.simple_evaluate(
        model=model,
        tasks=list(tasks),
        task_manager=_manager(),
        log_samples=True,
        bootstrap_iters=0,
        **options,
    )


def by_prompt(results: Mapping[str, Any]) -> dict[tuple[str, ...], list[float]]:
    """(context, continuation, ...) of an item -> log-likelihoods of its choices."""
    found = {}
    for samples in results["samples"].values():
        for sample in samples:
            key = tuple(text for pair in sample["arguments"] for text in pair)
            found[key] = [answer[0][0] for answer in sample["resps"]]
    return found


def hf_model(model: Any, tokenizer: Any, *, batch_size: int = 8) -> Any:
    """The harness's own way to run a Hugging Face model, on the CPU."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu")


@dataclass(frozen=True)
class Compared:
    """One choice's log-likelihood here and there.

    Attributes:
        item: id.
        ours, theirs: nats.
        limit: largest difference that rounding explains, nats.
    """

    item: str
    ours: float
    theirs: float
    limit: float

    @property
    def right(self) -> bool:
        """Whether the difference is rounding."""
        return abs(self.ours - self.theirs) <= self.limit


def compared(run: Any, theirs: Mapping[tuple[str, ...], Sequence[float]]) -> list[list[Compared]]:
    """Every item's choices beside the harness's answers to the same strings.

    Raises:
        AssertionError: the harness asks for an item in other words.
    """
    docs = run.docs()
    assert docs is not None and len(docs) == len(theirs) > 0, (docs and len(docs), len(theirs))
    found = []
    for line, doc in zip(run.items(), docs, strict=True):
        contexts = doc.get("contexts") or [doc["context"]] * len(doc["choices"])
        key = tuple(
            text
            for context, choice in zip(contexts, doc["choices"], strict=True)
            for text in (context, doc["delimiter"] + choice)
        )
        assert key in theirs, f"the harness asks {line['id']} in other words"
        found.append(
            [
                Compared(line["id"], ours, other, allowed(ours, tokens))
                for ours, other, tokens in zip(line["ll"], theirs[key], line["tokens"], strict=True)
            ]
        )
    return found


def same_choice(item: Sequence[Compared]) -> bool | None:
    """Whether both prefer the same choice; None where the best two are closer than rounding."""
    ours, theirs = [each.ours for each in item], [each.theirs for each in item]
    first, second = sorted(ours)[-1:-3:-1]
    if first - second <= 2 * max(each.limit for each in item):
        return None
    return ours.index(first) == theirs.index(max(theirs))


def answers(model: Any, items: Sequence[Any]) -> dict[tuple[str, ...], list[float]]:
    """Log-likelihoods that the harness gives to our strings, as `by_prompt`.

    Args:
        model: an `lm_eval.api.model.LM`.
        items: of `calibit.tasks.load`.
    """
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (item.context, item.delimiter + choice), 0)
        for item in items
        for choice in item.choices
    ]
    found = iter(ll for ll, _ in model.loglikelihood(requests, disable_tqdm=True))
    theirs = {}
    for item in items:
        key = tuple(t for c in item.choices for t in (item.context, item.delimiter + c))
        theirs[key] = [next(found) for _ in item.choices]
    return theirs


def tiny(data: Path) -> tuple[Any, Any]:
    """A random Llama with the tokenizer of a staged model, whose vocabulary is 512."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(data / "models" / "stories260K" / "hf")
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    tiny_models._spread_(model)
    return model, tokenizer


def allowed(ll: float, tokens: int) -> float:
    """Largest difference of a log-likelihood from the harness's, nats.

    1e-4 for the model's own rounding under another batch, 1e-6 of its size for float32 sums, and
    2e-5 a token: torch's float32 log_softmax, which the harness uses, is about 8e-6 a token too
    high over 49,152 classes.
    """
    return 1e-4 + 1e-6 * abs(ll) + 2e-5 * tokens
