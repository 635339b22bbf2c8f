"""Prompts and log-likelihoods beside lm-evaluation-harness, item by item.

    python benchmarks/proof_lm_eval.py --data FOLDER [--model FOLDER] [--items 300] [--out FILE]

The harness reads the same rows with its own tasks, in the schema of the published data sets
(HellaSwag: our strings through its `loglikelihood`). Per task: the largest difference of a choice's
log-likelihood as a share of what rounding explains, 1e-4 + 1e-6 |ll| + 2e-5 a token, and items on
which the two prefer another choice although the best two differ by more than that. Then the first
`--exact` items in float64 through this package, allowed 1e-4 + 1e-6 |ll|. Any excess ends the
script with an error. Needs the extras `demo` and `lm-eval`.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import workbench

import calibit
from calibit.runs import Run
from calibit.tasks import Item, load

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import lm_eval_oracle as oracle

TASKS = (*oracle.SCHEMAS, "hellaswag")


def main() -> None:
    """One row per task and model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the rows, TASK.jsonl")
    parser.add_argument("--model", type=Path, help="default: a tiny random Llama")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--exact", type=int, default=60, help="items that float64 repeats")
    parser.add_argument("--out", type=Path, help="write JSON lines here")
    options = parser.parse_args()
    model, tokenizer = oracle.tiny(options.data) if options.model is None else read(options.model)
    rows = workbench.Rows("proof_lm_eval", options.out)
    name = "tiny random Llama" if options.model is None else options.model.name
    wide = copy.deepcopy(model).double()
    wrong = 0
    for task in options.tasks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            items, theirs = asked(model, tokenizer, task, options, Path(folder))
        ours = calibit.evaluate(model, tokenizer, items)
        exact = calibit.evaluate(wide, tokenizer, items[: options.exact])
        wrong += report(rows, name, task, oracle.compared(ours, theirs), shares(ours, exact))
    if wrong:
        workbench.fail(f"{wrong} items differ by more than rounding")


def read(folder: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def asked(
    model: Any, tokenizer: Any, task: str, options: argparse.Namespace, folder: Path
) -> tuple[list[Item], dict[tuple[str, ...], list[float]]]:
    """Items of a task and the harness's answers to them."""
    harness = oracle.hf_model(model, tokenizer)
    if task == "hellaswag":
        items = load(f"hellaswag={options.data / 'hellaswag.jsonl'}")[: options.items]
        return items, oracle.answers(harness, items)
    rows = oracle.staged(options.data / f"{task}.jsonl", options.items)
    whole, files = oracle.write_sources(folder, task, rows)
    theirs = oracle.their_answers(harness, oracle.task_files(folder, files))
    return load(f"{task}={whole}", repair=False), oracle.by_prompt(theirs)


def shares(ours: Run, exact: Run) -> list[float]:
    """Per choice |ours - float64's| as a share of 1e-4 + 1e-6 |ll|."""
    return [
        abs(one - other) / (1e-4 + 1e-6 * abs(other))
        for a, b in zip(ours.items()[: len(exact.items())], exact.items(), strict=True)
        for one, other in zip(a["ll"], b["ll"], strict=True)
    ]


def report(
    rows: workbench.Rows,
    model: str,
    task: str,
    found: list[list[oracle.Compared]],
    wide: list[float],
) -> int:
    """Print and store a row; the number of items that differ by more than rounding."""
    choices = [choice for item in found for choice in item]
    largest = max(abs(each.ours - each.theirs) for each in choices)
    share = max(abs(each.ours - each.theirs) / each.limit for each in choices)
    same = [oracle.same_choice(item) for item in found]
    wrong = sum(
        not all(each.right for each in item) or kept is False
        for item, kept in zip(found, same, strict=True)
    ) + sum(each > 1 for each in wide)
    rows.add(
        f"{model}  {task:13} {len(found)} items, {len(choices)} choices: largest difference "
        f"{largest:.1e} nats, {share:.2f} of what is allowed; from float64 {max(wide):.2f} of what "
        f"is allowed; another choice on {same.count(False)}, too close to tell on "
        f"{same.count(None)}",
        {
            "model": model, "task": task, "items": len(found), "choices": len(choices),
            "largest": largest, "share_of_allowed": share, "float64_share_of_allowed": max(wide),
            "another_choice": same.count(False), "too_close": same.count(None),
        },
    )  # fmt: skip
    return wrong


if __name__ == "__main__":
    main()
