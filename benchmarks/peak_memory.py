"""Peak memory of GPTQ from the files of a checkpoint that is shaped as a 7B Llama.

    python benchmarks/peak_memory.py FOLDER [--blocks 4] [--scheme SCHEME] [--out FILE.jsonl]

Writes a random model (hidden size 4096, intermediate 11008, 32 heads, vocabulary 32,000, bfloat16,
sharded safetensors; 0.4 GB a block and 0.5 GB beside them) into FOLDER, quantizes it in a process
of its own on 4 x 256 random tokens, and removes what it wrote. Recorded are the largest resident
set that the kernel counted for that process (VmHWM), after each block and at the end, with the
files that were mapped; its resident set after each block; and seconds. From block to block only the
packed weights may stay: by that growth, of memory that is no file, the peak of all 32 blocks is
extrapolated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import workbench

from calibit.io import shards
from calibit.quantization import quantize_checkpoint

VOCABULARY, HIDDEN, INNER, HEADS = 32_000, 4096, 11_008, 32
BLOCKS = 32  # of the whole model
SEGMENTS, LENGTH = 4, 256
LIMIT = 16 * 1024**3
DEVIATION = 0.02


def main() -> None:
    """Write, quantize in a process of its own, report, remove."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the checkpoints lie meanwhile")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--scheme", default="gptq-int4-g128")
    parser.add_argument("--out", type=Path, help="write JSON lines here")
    parser.add_argument("--quantize", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quantize:
        print(json.dumps(quantized(options.folder, options.scheme)), flush=True)
        return
    rows = workbench.Rows("peak_memory", options.out)
    options.folder.mkdir(parents=True)
    try:
        write_model(options.folder / "float", options.blocks)
        command = [sys.executable, __file__, str(options.folder), "--quantize"]
        ended = subprocess.run(
            [*command, "--scheme", options.scheme], stdout=subprocess.PIPE, text=True, check=True
        )
    finally:
        shutil.rmtree(options.folder)
    report(rows, options.scheme, options.blocks, json.loads(ended.stdout.splitlines()[-1]))


def write_model(folder: Path, blocks: int) -> None:
    """A random Llama; no more than one file of it in memory."""
    from transformers import LlamaConfig

    folder.mkdir()
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=blocks,
        num_attention_heads=HEADS,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    shards.write(folder, tensors(blocks), max_bytes=1_000_000_000)


def tensors(blocks: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and random values, as transformers calls them."""
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        drawn = torch.randn(rows, columns, generator=generator, dtype=torch.float32)
        return drawn.mul_(DEVIATION).to(torch.bfloat16)

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    yield "model.embed_tokens.weight", matrix(VOCABULARY, HIDDEN)
    for index in range(blocks):
        block = f"model.layers.{index}"
        for name in "qkvo":
            yield f"{block}.self_attn.{name}_proj.weight", matrix(HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            yield f"{block}.mlp.{name}_proj.weight", matrix(INNER, HIDDEN)
        yield f"{block}.mlp.down_proj.weight", matrix(HIDDEN, INNER)
        yield f"{block}.input_layernorm.weight", ones.clone()
        yield f"{block}.post_attention_layernorm.weight", ones.clone()
    yield "model.norm.weight", ones
    yield "lm_head.weight", matrix(VOCABULARY, HIDDEN)


def quantized(folder: Path, scheme: str) -> dict[str, Any]:
    """What quantizing took, measured inside the process that did it."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (SEGMENTS, LENGTH), generator=generator)
    begun = time.perf_counter()
    found: dict[str, Any] = {"blocks": [], "before": resident()}
    last = "down_proj"  # the layer of a block that runs last

    def progress(done: int, total: int, name: str) -> None:
        if name.endswith(last):
            spent = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time()}
            found["blocks"].append({**resident(), **spent})
        print(f"{done}/{total} {name} {resident()}", file=sys.stderr, flush=True)

    made = quantize_checkpoint(
        folder / "float",
        scheme,
        folder / "quantized",
        calibration=ids,
        progress=progress,
        estimated=lambda each: found.update(estimated={"bytes": each.bytes, "s": each.seconds}),
    )
    stored = sum(file.stat().st_size for file in (folder / "quantized").glob("*.safetensors"))
    solvers = sorted({row.solver for row in made.modules})
    packed = sum(row.nbytes for row in made.modules)
    spent = time.perf_counter() - begun
    return {**found, "end": resident(), "seconds": spent, "bytes_stored": stored,
            "bytes_packed": packed, "solvers": solvers}  # fmt: skip


def resident() -> dict[str, int]:
    """Bytes of this process's resident set: now, the most so far, and of it mapped files now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    kept = {"VmRSS": "now", "VmHWM": "peak", "RssFile": "files"}
    values = (line.split() for line in lines if line.split(":")[0] in kept)
    return {kept[name.rstrip(":")]: int(size) * 1024 for name, size, *_ in values}


def report(rows: workbench.Rows, scheme: str, blocks: int, found: dict[str, Any]) -> None:
    """Print and store the peak, its growth by block, and what it comes to for the whole model."""
    peaks = [each["peak"] for each in found["blocks"]]
    own = [each["now"] - each["files"] for each in found["blocks"]]
    growth = (own[-1] - own[0]) / max(1, blocks - 1)
    whole = found["end"]["peak"] + max(0.0, growth) * (BLOCKS - blocks)
    seconds = found["blocks"][-1].get("cpu_seconds", float("nan")) / blocks
    rows.add(
        f"{scheme} {blocks} blocks: peak {found['end']['peak'] / 1e9:.2f} GB (after each block "
        f"{', '.join(f'{peak / 1e9:.2f}' for peak in peaks)}), resident grows by "
        f"{growth / 1e9:.3f} GB a block, so about {whole / 1e9:.1f} GB for {BLOCKS}; "
        f"{seconds:.0f} s of CPU a block",
        {
            "scheme": scheme,
            "blocks": blocks,
            "tokens": SEGMENTS * LENGTH,
            "bytes_a_block": growth,
            "peak_of_whole_extrapolated": whole,
            "cpu_seconds_a_block": seconds,
            "below_limit": whole < LIMIT,
            "measured": found,
        },
    )


if __name__ == "__main__":
    main()
