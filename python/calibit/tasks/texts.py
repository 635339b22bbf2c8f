"""Running text: a file, or the manual that every CPython carries, for measuring or calibrating.

The manual (`pydoc_data.topics`) is divided by alphabet: topics 0, 2, 4 ... calibrate, topics 1, 3,
5 ... measure. Topics repeat each other in part, so paragraphs of the measuring half are taken out
of the other one: no model is judged on text it was fitted to.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

PYDOC = "pydoc"


@dataclass(frozen=True)
class Text:
    """A text and the name under which a perplexity on it is reported.

    Attributes:
        name: file name, or "pydoc-<Python version>".
        text: the text itself, unchanged.
        sha256: hex digest of its UTF-8 bytes.
    """

    name: str
    text: str
    sha256: str


def load_text(spec: str) -> Text:
    """Load a text for perplexity.

    Args:
        spec: a path to a UTF-8 file, or "pydoc" for the measuring half of the running Python's
            manual. It differs between Python versions, so the version is part of the name: only
            compare equal names.

    Returns:
        The text; line ends as in the file, a byte order mark dropped.

    Raises:
        ValueError: no such file, a file that is not UTF-8, or one without any text.
        RuntimeError: this Python was installed without `pydoc_data`.
    """
    if spec == PYDOC:
        return _text(f"{PYDOC}-{platform.python_version()}", pydoc_text("evaluation"))
    path = Path(spec)
    if not path.is_file():
        raise ValueError(f"[text] expected a text file or {PYDOC!r}, got {spec!r}: no such file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"[text] {path}: expected UTF-8, got byte 0x{error.object[error.start]:02x} at "
            f"position {error.start}; save the file as UTF-8"
        ) from error
    if not text.strip():
        raise ValueError(f"[text] {path}: expected some text, got an empty file")
    return _text(path.name, text)


def _text(name: str, text: str) -> Text:
    return Text(name, text, hashlib.sha256(text.encode("utf-8")).hexdigest())


def pydoc_text(part: str) -> str:
    """One half of Python's manual.

    Args:
        part: `"calibration"` (topics 0, 2, 4 ... by alphabet, without the paragraphs that the other
            half has too) or `"evaluation"` (topics 1, 3, 5 ...).

    Raises:
        ValueError: another part.
        RuntimeError: this Python was installed without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise RuntimeError(
            f"[text] expected the standard module pydoc_data for {PYDOC!r}: install the full "
            "standard library, or give a text file"
        ) from error
    if part not in ("calibration", "evaluation"):
        raise ValueError(f"[pydoc_text] expected part 'calibration' or 'evaluation', got {part!r}")
    names = sorted(topics)
    evaluation = [p for name in names[1::2] for p in topics[name].strip().split("\n\n")]
    if part == "evaluation":
        return "\n\n".join(evaluation)
    taken = {" ".join(paragraph.split()) for paragraph in evaluation}
    calibration = [p for name in names[0::2] for p in topics[name].strip().split("\n\n")]
    return "\n\n".join(p for p in calibration if " ".join(p.split()) not in taken)
