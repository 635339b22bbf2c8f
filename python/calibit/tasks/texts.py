"""Running text for perplexity: a file, or the help texts that every CPython carries."""

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
        name: file name, or "pydoc-full-<Python version>".
        text: the text itself, unchanged.
        sha256: hex digest of its UTF-8 bytes.
    """

    name: str
    text: str
    sha256: str


def load_text(spec: str) -> Text:
    """Load a text for perplexity.

    Args:
        spec: a path to a UTF-8 file, or "pydoc" for the concatenated help topics of the running
            Python (`pydoc_data.topics`, values in sorted key order). These differ between Python
            versions, so the version is part of the name: only compare equal names. All topics:
            the built-in calibration text is a part of it, so do not judge a model on it that was
            calibrated there.

    Returns:
        The text; line ends as in the file, a byte order mark dropped.

    Raises:
        ValueError: no such file, a file that is not UTF-8, or one without any text.
        RuntimeError: this Python was installed without `pydoc_data`.
    """
    if spec == PYDOC:
        return _text(f"{PYDOC}-full-{platform.python_version()}", _pydoc_topics())
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


def _pydoc_topics() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise RuntimeError(
            f"[text] expected the standard module pydoc_data for {PYDOC!r}: install the full "
            "standard library, or give a text file"
        ) from error
    return "".join(topics[key] for key in sorted(topics))
