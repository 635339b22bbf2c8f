"""Quality of GPTQ schemes: perplexity on WikiText-2 and on text of the calibration's kind.

    python benchmarks/quality_gptq.py --data FOLDER --model FOLDER [--schemes ...] [--out FILE]
    python benchmarks/quality_gptq.py --data FOLDER --model FOLDER --stories [--out FILE]

Calibration: 64 x 512 tokens of calib/c4.txt, the first ones, or with `--draw SEED` segments that
begin anywhere. Measured: the first 40 windows of 2,048 tokens of the raw test text of WikiText-2
(`gptq@40`: every token of a window but its first), the next 10, and 8 windows from the end of
calib/c4.txt, which no calibration reaches. `--stories` is for stories260K: 64 x 256 tokens of
calib/tiny.txt, 60 windows of 256 from its end. Beside each perplexity the mean difference of the
loss from the float model's, in nats a token, with its standard error over windows. Models are
quantized in float32; `--dtype bfloat16` measures them, and the float model, with dense weights of
that type, several times as fast where the processor has a matrix unit. With `--out FILE` rows that
the file holds already are not made again.
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

FORMATS = ("nf4", "nf4-dq", "int4-g64", "int4-g128", "int4-g128-asym", "int3-g128")
SOLVERS = ("{}", "gptq-{}", "gptq-{}-actorder", "gptaq-{}-actorder-mse")
SCHEMES = tuple(solver.format(each) for each in FORMATS for solver in SOLVERS)
SEGMENTS, LENGTH, WINDOW = 64, 512, 2048
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
    parser.add_argument("--draw", type=int, default=0, help="seed of the segments; 0: the first")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--stories", action="store_true", help="the texts of stories260K")
    parser.add_argument("--out", type=Path, help="append JSON lines here")
    options = parser.parse_args()
    known = read_rows(options.out)
    model, tokenizer = read(options.model)
    text = Texts(tokenizer, options.data)
    segments, windows = text.stories() if options.stories else text.web(options)
    dtype = getattr(torch, options.dtype)
    base = known.get(("none", 0)) or row_of("none", measured(model, dtype), windows, None)
    show(base, options.out if ("none", 0) not in known else None)
    for scheme in options.schemes.split(","):
        if (scheme, options.draw) in known:
            show(known[scheme, options.draw], None)
            continue
        model, _ = read(options.model)
        begun = time.perf_counter()
        report = calibit.quantize_model(
            model, scheme, calibration=segments if scheme.startswith("gpt") else None
        )
        seconds = time.perf_counter() - begun
        row = row_of(scheme, measured(model, dtype), windows, base)
        row |= {"seconds": seconds, "bits_per_weight": report.bits_per_weight}
        row |= {"draw": options.draw, "dtype": options.dtype}
        show(row, options.out)


def read(folder: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


class Texts:
    """Calibration segments `[n, length]`, and windows `[n, length]` of each text."""

    def __init__(self, tokenizer: Any, data: Path) -> None:
        self.tokenizer = tokenizer
        self.data = data

    def ids(self, text: str) -> Tensor:
        """Token ids of a text."""
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(encoded)

    def read(self, name: str) -> Tensor:
        """Token ids of a calibration text."""
        return self.ids((self.data / "calib" / name).read_text(encoding="utf-8"))

    def web(self, options: argparse.Namespace) -> tuple[Tensor, dict[str, Tensor]]:
        """C4 and WikiText-2."""
        web = self.read("c4.txt")
        held, web = web[len(web) - 8 * WINDOW :], web[: len(web) - 8 * WINDOW]
        starts = LENGTH * torch.arange(SEGMENTS)
        if options.draw:
            random = torch.Generator().manual_seed(options.draw)
            starts = torch.randint(len(web) - LENGTH, (SEGMENTS,), generator=random)
        segments = torch.stack([web[start : start + LENGTH] for start in starts.tolist()])
        wiki = self.ids("\n\n".join(wikitext_rows(self.data / "wikitext2_test_raw.txt")))
        wiki = wiki[: len(wiki) // WINDOW * WINDOW].reshape(-1, WINDOW)
        return segments, {
            f"gptq@{options.windows}": wiki[: options.windows],
            "wikitext, later": wiki[40:50],
            "c4, held out": held.reshape(-1, WINDOW),
        }

    def stories(self) -> tuple[Tensor, dict[str, Tensor]]:
        """TinyStories."""
        ids = self.read("tiny.txt")
        held = ids[len(ids) - 60 * 256 :].reshape(-1, 256)
        return ids[: 64 * 256].reshape(64, 256), {"stories, held out": held}


def measured(model: Any, dtype: torch.dtype) -> Any:
    """The model in the dtype of the passes: itself, or with dense layers in another one."""
    if dtype == torch.float32:
        return model
    for name, module in list(model.named_modules()):
        if isinstance(module, calibit.QuantizedLinear):
            weight = module.dequantize()
            dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None)
            dense.weight = torch.nn.Parameter(weight)
            if module.bias is not None:
                dense.bias = torch.nn.Parameter(module.bias.float())
            model.set_submodule(name, dense)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


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


def read_rows(out: Path | None) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows by scheme and draw that a file holds."""
    if out is None or not out.is_file():
        return {}
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {(row["scheme"], row.get("draw", 0)): row for row in rows}


if __name__ == "__main__":
    main()
