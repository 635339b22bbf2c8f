"""Quality of GPTQ schemes: perplexity on WikiText-2 and on text of the calibration's kind.

    python benchmarks/quality_gptq.py --data FOLDER --model FOLDER [--schemes ...] [--out FILE]

Calibration: the first 64 x 512 tokens of calib/c4.txt. Measured: the first 40 windows of 2,048
tokens of the raw test text of WikiText-2 (`gptq@40`: every token of a window but its first), the
next 20, and 16 windows from the end of calib/c4.txt, which the calibration does not reach. Beside
each perplexity the mean difference of the loss from the float model's, in nats a token, with its
standard error over windows. With `--out FILE` rows that the file holds already are not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import workbench

import calibit
from calibit.evaluation.scoring import Scorer
from calibit.evaluation.text import wikitext_rows

Tensor = torch.Tensor

SCHEMES = (
    "nf4", "nf4-dq", "int4-g128", "int4-g64", "int4-g128-asym", "int3-g128",
    "gptq-int4-g128", "gptq-int4-g128-actorder", "gptq-int4-g64-actorder",
    "gptq-int4-g128-asym-actorder", "gptq-nf4", "gptq-nf4-actorder", "gptq-nf4-dq-actorder",
    "gptq-int3-g128-actorder",
)  # fmt: skip
SEGMENTS, LENGTH = 64, 512
WINDOW = 2048
BATCH = 2


def main() -> None:
    """One row per scheme, after the float model's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--out", type=Path, help="append JSON lines here")
    options = parser.parse_args()
    known = read_rows(options.out)
    model, tokenizer = read(options.model)
    segments, windows = texts(tokenizer, options.data, options.windows)
    base = known.get("none") or row_of("none", model, windows, None)
    show(base, options.out if "none" not in known else None)
    for scheme in options.schemes.split(","):
        if scheme in known:
            show(known[scheme], None)
            continue
        model, _ = read(options.model)
        begun = time.perf_counter()
        report = calibit.quantize_model(
            model, scheme, calibration=segments if scheme.startswith("gpt") else None
        )
        row = row_of(scheme, model, windows, base)
        row |= {"seconds": time.perf_counter() - begun, "bits_per_weight": report.bits_per_weight}
        show(row, options.out)


def read(folder: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def texts(tokenizer: Any, data: Path, windows: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Calibration segments `[64, 512]`, and windows `[n, 2048]` of each text."""

    def ids(text: str) -> Tensor:
        return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    web = ids((data / "calib" / "c4.txt").read_text(encoding="utf-8"))
    used = SEGMENTS * LENGTH
    held = web[used:]
    count = min(16, len(held) // WINDOW)
    wiki = ids("\n\n".join(wikitext_rows(data / "wikitext2_test_raw.txt")))
    wiki = wiki[: len(wiki) // WINDOW * WINDOW].reshape(-1, WINDOW)
    return web[:used].reshape(SEGMENTS, LENGTH), {
        f"gptq@{windows}": wiki[:windows],
        "wikitext, later": wiki[windows : windows + 20],
        "c4, held out": held[len(held) - count * WINDOW :].reshape(count, WINDOW),
    }


def row_of(
    scheme: str, model: Any, windows: Mapping[str, Tensor], base: dict[str, Any] | None
) -> dict[str, Any]:
    """Loss of every window, and what the table shows of it."""
    scorer = Scorer(model)
    row: dict[str, Any] = {"scheme": scheme, "nll": {}, "ppl": {}, "difference": {}}
    for name, ids in windows.items():
        losses = []
        for start in range(0, len(ids), BATCH):
            rows = [tuple(each.tolist()) for each in ids[start : start + BATCH]]
            losses += [float(each.mean()) for each in scorer.sequences(rows)]
        row["nll"][name] = losses
        row["ppl"][name] = float(np.exp(np.mean(losses)))
        if base is not None:
            change = np.subtract(losses, base["nll"][name])
            error = float(change.std(ddof=1) / len(change) ** 0.5)
            row["difference"][name] = [float(change.mean()), error]
    return row


def show(row: dict[str, Any], out: Path | None) -> None:
    """Print a row; append it to the file."""
    parts = []
    for name, value in row["ppl"].items():
        change = row["difference"].get(name)
        parts.append(
            f"{name} {value:8.3f}" + (f" {change[0]:+.4f} ({change[1]:.4f})" if change else "")
        )
    print(f"{row['scheme']:32} {'   '.join(parts)}", flush=True)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**workbench.machine(), **row}) + "\n")


def read_rows(out: Path | None) -> dict[str, dict[str, Any]]:
    """Rows by scheme that a file holds."""
    if out is None or not out.is_file():
        return {}
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {row["scheme"]: row for row in rows}


if __name__ == "__main__":
    main()
