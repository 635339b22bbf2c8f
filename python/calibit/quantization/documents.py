"""Where calibration text comes from: a file, a built-in text, C4, a data set of the hub.

pydoc                       the calibrating half of the running Python's manual
FILE                        UTF-8 text, one document
FILE.jsonl                  a document a line: its `text`, `prompt`, `content` or `messages`
c4                          `en/c4-train.00000-of-01024` of allenai/c4, as the GPTQ paper's code
hub:NAME[:SPLIT[:COLUMN]]   a data set of the hub (needs the package `datasets`)
self[:TEMPERATURE]          what the model itself writes; no document, see `self_written`
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibit.quantization.self_written import SELF
from calibit.tasks.texts import PYDOC, pydoc_text

C4 = "c4"
C4_SHARD = ("allenai/c4", "en/c4-train.00000-of-01024.json.gz")
HUB = "hub:"
FIELDS = ("text", "prompt", "content", "messages")
"""Fields of a JSON line that are looked for, in order."""

MOST = 20_000
"""Documents of a data set that are drawn from: its first ones."""


def read(source: str | Path) -> tuple[list[str], str]:
    """Documents and name of a source.

    Args:
        source: as the module's docstring says.

    Returns:
        Documents, at most `MOST` of a data set, and what records call the source.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not UTF-8, no JSON line with a known field, or a data set that cannot be read.
    """
    text = str(source)
    if text == PYDOC:
        return [pydoc_text("calibration")], PYDOC
    if text == C4 and not Path(text).exists():
        return _c4(), "/".join(C4_SHARD)
    if text.startswith(HUB):
        return _from_hub(text), text
    path = Path(source)
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"[calibration] expected '{PYDOC}', '{C4}', '{SELF}', '{HUB}NAME' or a text file, got "
            f"{text!r} which {wrong}"
        )
    kind = path.suffix.lower()
    if kind == ".jsonl":
        return list(_lines(path)), path.name
    if kind == ".json":
        raise ValueError(
            f"[calibration] expected text, or JSON Lines in a file *.jsonl, got {path.name}: its "
            "brackets and quotes are not what a model reads; write a JSON object a line, with "
            f"one of {', '.join(FIELDS)}"
        )
    return [_text_of(path)], path.name


def _text_of(path: Path) -> str:
    """The text of a file, without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"[calibration] expected UTF-8, got {path.name}: {error}") from error


def _lines(path: Path) -> Iterator[str]:
    """The documents of a JSONL file."""
    # Not splitlines: strings in JSON may hold U+0085, U+2028 and U+2029 as they are.
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"[calibration] expected a JSON object in line {number} of {path.name}, got {error}"
            ) from error
        document = _document(row) if isinstance(row, Mapping) else None
        if document is None:
            raise ValueError(
                f"[calibration] expected one of {', '.join(FIELDS)} in line {number} of "
                f"{path.name}, got {line:.60}"
            )
        try:
            document.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"[calibration] expected text in line {number} of {path.name}, got half of a "
                f"surrogate pair: {error}"
            ) from error
        yield document


def _document(row: Mapping[str, Any]) -> str | None:
    """The text of a row, the turns of a conversation joined by line ends."""
    for field in FIELDS:
        value = row.get(field)
        if isinstance(value, str):
            return value
        if field == "messages" and isinstance(value, Sequence):
            turns = [turn.get("content") for turn in value if isinstance(turn, Mapping)]
            if turns and all(isinstance(turn, str) for turn in turns):
                return "\n".join(str(turn) for turn in turns)
    return None


def _c4() -> list[str]:
    """The first documents of the shard of C4 that the GPTQ paper's code draws from."""
    from huggingface_hub import hf_hub_download

    name, file = C4_SHARD
    try:
        path = hf_hub_download(name, file, repo_type="dataset")
    except Exception as error:  # what a failed connection raises differs between HTTP clients
        raise ValueError(
            f"[calibration] expected {name}/{file} from the hub or its cache, got {error!r:.200}: "
            "check the network, or give a text file"
        ) from error
    found = []
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            found.append(str(json.loads(line)["text"]))
            if len(found) == MOST:
                break
    return found


def _from_hub(source: str) -> list[str]:
    """The first documents of any data set of the hub."""
    name, _, rest = source.removeprefix(HUB).partition(":")
    split, _, column = rest.partition(":")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            f"[calibration] expected the package 'datasets' for {source!r}, got none: pip install "
            "datasets, or give a text file"
        ) from error
    try:
        rows = load_dataset(name, split=split or "train", streaming=True)
        found = []
        for row in rows:
            document = row.get(column) if column else _document(row)
            if not isinstance(document, str):
                raise ValueError(f"no text in column {column or '/'.join(FIELDS)} of {list(row)}")
            found.append(document)
            if len(found) == MOST:
                break
    except Exception as error:
        raise ValueError(
            f"[calibration] expected a data set of the hub with text, got {source!r}: "
            f"{error!r:.200}"
        ) from error
    return found
