"""GPTQ of a whole model beside llm-compressor and GPTQModel, on one machine and the same tokens.

    python benchmarks/bench_quantize.py --data FOLDER --model FOLDER
        [--llm-compressor PYTHON] [--gptqmodel PYTHON] [--turns 3] [--out FILE]

int4 in groups of 64, activation order as each program's own default recommends, 64 x 512 tokens of
calib/c4.txt, float32. Every program runs in a process and with the interpreter of its own (theirs
want other versions of transformers), in turn; the seconds are those of its call that quantizes,
without reading and writing the model. Before a time counts, the perplexity of what came out is
measured here on two windows: it must lie between the float model's and twice that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

GROUP = 64
LAYERS_KEPT = "lm_head"


def main() -> None:
    """One row, or one program's work in its process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--llm-compressor", help="its Python interpreter")
    parser.add_argument("--gptqmodel", help="its Python interpreter")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--segments", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write JSON lines here")
    parser.add_argument("--worker", choices=list(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        WORKERS[options.worker](options.model, options.work)
    else:
        race(options)


# --- one program, in its own process -------------------------------------------------------------


def with_calibit(folder: Path, work: Path) -> None:
    """calibit's `quantize_model`."""
    import torch

    import calibit

    model = float_model(folder)
    ids = torch.from_numpy(np.load(work / "segments.npy"))
    begun = time.perf_counter()
    calibit.quantize_model(model, f"gptq-int4-g{GROUP}-actorder", calibration=ids)
    finish(work, time.perf_counter() - begun)
    calibit.save_model(model, work / "out")


def with_llm_compressor(folder: Path, work: Path) -> None:
    """llm-compressor's `oneshot`."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    model = float_model(folder)
    ids = np.load(work / "segments.npy").tolist()
    rows = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(i) for i in ids]})
    weights = QuantizationArgs(num_bits=4, group_size=GROUP, strategy="group", symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    recipe = GPTQModifier(config_groups={"all": scheme}, ignore=[LAYERS_KEPT])
    begun = time.perf_counter()
    oneshot(
        model=model,
        dataset=rows,
        recipe=recipe,
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
    )
    finish(work, time.perf_counter() - begun)
    model.save_pretrained(work / "out", save_compressed=True)


def with_gptqmodel(folder: Path, work: Path) -> None:
    """GPTQModel's `quantize`."""
    from gptqmodel import GPTQModel, QuantizeConfig

    ids = np.load(work / "segments.npy").tolist()
    rows = [{"input_ids": each, "attention_mask": [1] * len(each)} for each in ids]
    config = QuantizeConfig(bits=4, group_size=GROUP, sym=True)
    model = GPTQModel.load(str(folder), config, device="cpu", dtype="float32")
    begun = time.perf_counter()
    model.quantize(rows, batch_size=1)
    finish(work, time.perf_counter() - begun)
    model.save(str(work / "out"))


WORKERS = {
    "calibit": with_calibit,
    "llm-compressor": with_llm_compressor,
    "gptqmodel": with_gptqmodel,
}


def float_model(folder: Path) -> Any:
    """The model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def finish(work: Path, seconds: float) -> None:
    """Leave the seconds for the race."""
    (work / "seconds.json").write_text(json.dumps(seconds))


# --- the race ------------------------------------------------------------------------------------


def race(options: argparse.Namespace) -> None:
    """Run the programs in turn; print and store the row."""
    import quality_gptq
    import torch
    import workbench

    torch.set_num_threads(options.threads)
    interpreters = {
        "calibit": sys.executable,
        "llm-compressor": options.llm_compressor,
        "gptqmodel": options.gptqmodel,
    }
    model, tokenizer = quality_gptq.read(options.model)
    texts = quality_gptq.Texts(tokenizer, options.data)
    segments, windows = texts.web(argparse.Namespace(draw=0, windows=2))
    window = next(iter(windows.values()))
    exact = perplexity(model, window)
    rows = workbench.Rows("quantize", options.out)
    spent: dict[str, list[float]] = {name: [] for name, python in interpreters.items() if python}
    reached: dict[str, float] = {}
    for _ in range(options.turns):
        for name in spent:
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder)
                np.save(work / "segments.npy", segments[: options.segments].numpy())
                run(interpreters[name], name, options, work)
                spent[name].append(json.loads((work / "seconds.json").read_text()))
                if name not in reached:
                    reached[name] = perplexity(quantized(work / "out"), window)
            seconds, found = spent[name][-1], reached[name]
            print(f"{name:16} {seconds:7.1f} s   perplexity {found:.2f}", flush=True)
            if not exact < found < 2 * exact:
                workbench.fail(f"{name}: perplexity {found:.2f}, float {exact:.2f}")
    own = np.array(spent["calibit"])
    ratios = {
        name: workbench.Ratio.of(np.array(seconds), own)
        for name, seconds in spent.items()
        if name != "calibit"
    }
    rows.add(
        f"calibit {np.median(own):.1f} s; times as long: "
        + "; ".join(f"{name} {ratio}" for name, ratio in ratios.items()),
        {
            "model": options.model.name, "segments": list(segments[: options.segments].shape),
            "seconds": spent, "perplexity": {"float": exact, **reached},
            "times_as_long": {name: vars(ratio) for name, ratio in ratios.items()},
        },
    )  # fmt: skip


def run(python: str, name: str, options: argparse.Namespace, work: Path) -> None:
    """One program's work, with as many threads as the others have."""
    threads = str(options.threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "GPTQMODEL_CPU_WORKERS": threads,
        "CUDA_VISIBLE_DEVICES": "",
    }
    script, model = str(Path(__file__).resolve()), str(options.model.resolve())
    command = [python, script, "--worker", name, "--model", model, "--work", str(work)]
    done = subprocess.run(  # in a folder of its own: GPTQModel writes logs where it runs
        command, env=environment, capture_output=True, text=True, check=False, cwd=work
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")


def quantized(folder: Path) -> Any:
    """A checkpoint of any of the programs."""
    import calibit

    return calibit.load_model(folder)


def perplexity(model: Any, windows: Sequence[Any]) -> float:
    """Of every token of the windows but the first of each."""
    from calibit.evaluation.scoring import Scorer

    rows = [tuple(window.tolist()) for window in windows]
    return float(np.exp(np.mean(np.concatenate(Scorer(model).sequences(rows)))))


if __name__ == "__main__":
    main()
