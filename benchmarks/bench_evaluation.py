"""Scoring answer choices beside lm-evaluation-harness, on one model and the same strings.

    python benchmarks/bench_evaluation.py --data FOLDER --model FOLDER [--items 100] [--out FILE]

Both get prompts and choices as text and give log-likelihoods: the harness through its
`loglikelihood`, at the batch size that is fastest on every fourth item, calibit through `evaluate`.
The answers of every turn are compared. Beside
the ratio stands what sharing a context among the choices of an item allows: tokens of all requests,
a context of one-token choices counted once as the harness does, by tokens with every context once.
Threads: `--threads`. Needs the extras `demo` and `lm-eval`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workbench

import calibit
from calibit.evaluation.batching import shared_length
from calibit.evaluation.encoding import Encoder, encode_items
from calibit.tasks import Item, load

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import lm_eval_oracle as oracle

MIXES: Mapping[str, tuple[str, ...]] = {
    "mix": ("arc_easy", "piqa", "hellaswag", "openbookqa"),
    "boolq": ("boolq",),
}
BATCHES = (1, 8, 16, 32)


def main() -> None:
    """One row per mix of tasks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the rows, TASK.jsonl")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--items", type=int, default=100, help="of each task")
    parser.add_argument("--mixes", default=",".join(MIXES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write JSON lines here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = read(options.model)
    rows = workbench.Rows("evaluation", options.out)
    for name in options.mixes.split(","):
        items = [
            item
            for task in MIXES[name]
            for item in load(f"{task}={options.data / (task + '.jsonl')}")[: options.items]
        ]
        case(rows, name, (model, tokenizer), items, options.turns)


def read(folder: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def case(
    rows: workbench.Rows, name: str, subject: tuple[Any, Any], items: Sequence[Item], turns: int
) -> None:
    """Check, time, print and store one row."""
    harnesses = {batch: oracle.hf_model(*subject, batch_size=batch) for batch in BATCHES}
    tried: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for batch, harness in harnesses.items():
        timed(partial(oracle.answers, harness, items[::4]), tried[batch])
    best = min(BATCHES, key=lambda batch: tried[batch][0])
    work = {
        "calibit": partial(calibit.evaluate, *subject, items),
        "lm-eval": partial(oracle.answers, harnesses[best], items),
    }
    spent: dict[str, list[float]] = {key: [] for key in work}
    for _ in range(turns):
        answers = {key: timed(call, spent[key]) for key, call in work.items()}
        check(oracle.compared(answers["calibit"], answers["lm-eval"]))
    ratio = workbench.Ratio.of(np.array(spent["lm-eval"]), np.array(spent["calibit"]))
    bound = sharing_bound(subject[1], items)
    rows.add(
        f"{name:6} {len(items)} items: lm-eval (batch {best}) takes {ratio} times as long; sharing "
        f"allows {bound:.2f}: {ratio.value / bound:.2f} of it",
        {
            "mix": name, "items": len(items), "batch": best, "tried": tried, "seconds": spent,
            "times_as_long": vars(ratio), "bound": bound, "share_of_bound": ratio.value / bound,
        },
    )  # fmt: skip


def timed(call: Callable[[], Any], spent: list[float]) -> Any:
    """The call's answer; its seconds are appended."""
    begun = time.perf_counter()
    answer = call()
    spent.append(time.perf_counter() - begun)
    return answer


def check(found: Sequence[Sequence[oracle.Compared]]) -> None:
    """End the benchmark where an answer differs by more than rounding."""
    wrong = [choice for item in found for choice in item if not choice.right]
    if wrong:
        workbench.fail(f"{len(wrong)} answers differ, the first is {wrong[0]}")


def sharing_bound(tokenizer: Any, items: Sequence[Item]) -> float:
    """Tokens of the distinct inputs of all requests by tokens with each item's context once."""
    pairs = [(item.context, [item.delimiter + choice for choice in item.choices]) for item in items]
    encoded = encode_items(Encoder(tokenizer), pairs, max_length=1 << 20)
    alone = sum(len(tokens) for tokens in {each for item in encoded for each in item.inputs})
    shared = 0
    for item in encoded:
        common = shared_length(item)
        shared += common + sum(len(tokens) - common for tokens in set(item.inputs))
    return alone / shared


if __name__ == "__main__":
    main()
