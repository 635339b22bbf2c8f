"""Parallel texts: the same segments in several languages, one file a language."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SEGMENTS = 40
"""Segments of each language by default, at equal distances."""


@dataclass(frozen=True)
class Segment:
    """One segment in one language.

    Attributes:
        lang: name of its file.
        number: its place, the same in every language.
        document: number of the document it belongs to; segments of one are no independent sample.
        text: the segment.
    """

    lang: str
    number: int
    document: int
    text: str


@dataclass(frozen=True)
class ParallelText:
    """Segments of one content in several languages.

    Attributes:
        name: of the folder.
        segments: language by language, in order.
    """

    name: str
    segments: tuple[Segment, ...]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, sorted."""
        return tuple(dict.fromkeys(segment.lang for segment in self.segments))


def read_parallel(folder: str | Path, *, segments: int | None = SEGMENTS) -> ParallelText:
    """Read a parallel text.

    Args:
        folder: one UTF-8 file `LANGUAGE.txt` for each language, one segment a line, line n the same
            content in every file; blank lines, the same in every file, stand between documents.
        segments: number of segments taken of each language, the same in all, at equal distances;
            None takes all.

    Raises:
        ValueError: no such folder, fewer than two languages, files with different numbers of
            segments or other blank lines, or a file that is not UTF-8.
    """
    place = Path(folder)
    files = sorted(place.glob("*.txt")) if place.is_dir() else []
    if len(files) < 2:
        raise ValueError(
            f"[parallel] expected a folder with at least two files LANGUAGE.txt, got {folder}"
        )
    if segments is not None and segments < 1:
        raise ValueError(f"[parallel] expected at least 1 segment, got {segments}")
    rows = {file.stem: _rows(file) for file in files}
    first = next(iter(rows))
    for lang, own in rows.items():
        if len(own) != len(rows[first]):
            raise ValueError(
                f"[parallel] expected as many segments in {lang}.txt as in {first}.txt "
                f"({len(rows[first])}), got {len(own)}"
            )
        pairs = enumerate(zip(own, rows[first], strict=True), 1)
        apart = [number for number, (one, other) in pairs if one[0] != other[0]]
        if apart:
            raise ValueError(
                f"[parallel] expected blank lines at the same places in {lang}.txt and "
                f"{first}.txt, got other ones before segment {apart[0]}: they stand between "
                "documents; leave a segment that one language lacks out of all"
            )
    total = len(rows[first])
    count = total if segments is None else min(segments, total)
    chosen = [(2 * k + 1) * total // (2 * count) for k in range(count)]
    documents = [document for document, _ in rows[first]]
    found = [
        Segment(lang, number, documents[number], own[number][1])
        for lang, own in rows.items()
        for number in chosen
    ]
    return ParallelText(place.name, tuple(found))


def _rows(file: Path) -> list[tuple[int, str]]:
    """(number of the document, text) of each segment."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"[parallel] expected UTF-8 in {file}, got byte 0x{error.object[error.start]:02x} at "
            f"position {error.start}; save the file as UTF-8"
        ) from error
    found: list[tuple[int, str]] = []
    document = 0
    for line in text.split("\n"):
        if line.strip():
            found.append((document, line.strip()))
        elif found and found[-1][0] == document:
            document += 1
    if not found:
        raise ValueError(f"[parallel] expected segments in {file}, got an empty file")
    return found
