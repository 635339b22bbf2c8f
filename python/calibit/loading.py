"""Models, tokenizers and configurations by folder or hub name; one sentence where that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

HUB_SECONDS = 5.0
"""How long an answer of the hub is waited for."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""What a model may be loaded in; `auto` keeps the stored dtype."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
_CONFIG_FILE = "config.json"
_LONGEST_REASON = 300


def check_dtype(name: str) -> None:
    """Refuse a dtype that models are not loaded in.

    Raises:
        ValueError: for another name than those of `DTYPES`.
    """
    if name not in DTYPES:
        raise ValueError(f"[model] expected dtype to be one of {', '.join(DTYPES)}, got {name!r}")


def check_device(name: str) -> None:
    """Refuse a device that this machine, or this torch, does not have.

    Raises:
        ValueError: for a name that is no device, or a GPU that is not there.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"[model] expected device to be cpu, cuda or cuda:NUMBER, got {name!r}")
    if device.type == "cpu":
        return
    if torch.version.cuda is None and torch.version.hip is None:
        raise ValueError(
            f"[model] expected a torch with CUDA for device {name!r}, got torch "
            f"{torch.__version__}: install one with CUDA, or use device cpu"
        )
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise ValueError(
            f"[model] expected one of the {count} GPUs of this machine, got device {name!r}: use "
            "another number, or device cpu"
        )


def is_hub_name(text: str) -> bool:
    """Whether a text has the form `name` or `owner/name`, not that of a path."""
    return not text.startswith((".", "/", "~")) and text.count("/") <= 1


def check_exists(source: str | Path, what: str) -> None:
    """Refuse a path that cannot be a model; `name` and `owner/name` may be on the hub.

    Args:
        source: folder or hub name.
        what: whose it is, for the message.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a file, or a folder that holds no model.
    """
    path, text = Path(source).expanduser(), str(source)
    if path.is_dir():
        if not (path / _CONFIG_FILE).is_file():
            raise ValueError(
                f"[model] expected the folder of a Hugging Face model for {what}, got {text!r} "
                f"without {_CONFIG_FILE}"
            )
    elif path.exists():
        raise ValueError(
            f"[model] expected a folder or a hub name for {what}, got the file {text!r}"
        )
    elif isinstance(source, Path) or not is_hub_name(text):
        raise FileNotFoundError(
            f"[model] expected a folder or a hub name for {what}, got {text!r}, which does not "
            "exist"
        )


def locate(source: str | Path, what: str = "a model") -> str:
    """What transformers shall read: the folder, or the hub name; where the hub cannot be reached,
    the folder of its copy in the cache.

    Args:
        source: folder or hub name.
        what: whose it is, for messages.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without a model, or a name that the hub does not have.
    """
    check_exists(source, what)
    path = Path(source).expanduser()
    return str(path) if path.is_dir() else _on_hub(str(source))


def lacks_tokenizer(source: str | Path) -> bool:
    """Whether a folder holds no tokenizer files; False for a hub name."""
    folder = Path(source)
    return folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES)


def read_config(source: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model; errors as for `read_model`."""
    from transformers import AutoConfig

    place = locate(source)
    with reading(source):
        return AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)


def read_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model; errors as for `read_model`, and for a folder without one."""
    from transformers import AutoTokenizer

    place = locate(source)
    if lacks_tokenizer(place):
        raise ValueError(
            f"[model] expected tokenizer files in {str(source)!r}, got none: copy "
            f"{_TOKENIZER_FILES[0]} and {_TOKENIZER_FILES[1]} from the model it was made from"
        )
    with reading(source):
        return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)


def read_model(source: str | Path, *, dtype: str = "auto", trust_remote_code: bool = False) -> Any:
    """A causal language model on the CPU, through transformers.

    Args:
        source: folder or hub name.
        dtype: one of `DTYPES`.
        trust_remote_code: let the model bring code of its own.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: nothing that transformers can load, or a damaged file, which is named.
    """
    from transformers import AutoModelForCausalLM

    place = locate(source)
    with reading(source):
        return AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, trust_remote_code=trust_remote_code
        )


@contextmanager
def reading(source: str | Path) -> Iterator[None]:
    """Name the source, and a damaged file, in what is said about a failure inside the block."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"[model] expected whole weights in {str(source)!r}, got a damaged file, "
            f"{_damaged(Path(source))} ({error}): copy or download it again"
        ) from error
    except (
        OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError,
        RuntimeError, StrictDataclassError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]}…"
        raise ValueError(
            f"[model] expected a model with a tokenizer that transformers can load, got "
            f"{str(source)!r}: {reason}"
        ) from error


def _damaged(folder: Path) -> str:
    """Name of the first safetensors file of a folder that does not open."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError:
            return file.name
    return "one of its safetensors"


@cache
def _on_hub(name: str) -> str:
    """The name where the hub has it, else the folder of its copy in the cache."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except (HfHubHTTPError, ValueError) as error:
        raise ValueError(
            f"[model] expected a folder or the name of a model on the hub, got {name!r}: there is "
            "no such folder, and the hub shows no such model (log in to it if the model is private)"
        ) from error
    except Exception as error:  # what a failed connection raises differs between HTTP clients
        try:
            return snapshot_download(name, local_files_only=True)
        except LocalEntryNotFoundError:
            raise ValueError(
                f"[model] expected a folder or the name of a model on the hub, got {name!r}: there "
                "is no such folder, the hub cannot be reached, and its cache holds no copy; give "
                "a folder, or check the name and the network"
            ) from error
    return name
