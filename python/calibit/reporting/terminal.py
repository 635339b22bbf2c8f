"""The audit as a terminal table: metrics as rows, candidates as columns, fitted to the width.

One line per value, the difference below it, its interval beside or below that. Candidates that do
not fit go into a further block with the baseline repeated; no number is ever wrapped.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.jupyter import JupyterMixin
from rich.text import Text

from calibit import numbers
from calibit.reporting import ablation, draws, view, wording, written
from calibit.reporting.view import Audit, Cell, Row

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

GAP = 2
PLAIN_WIDTH = 100
"""Width of what goes to a file or a pipe."""

STYLES = {
    "ship": "bold green",
    "hold": "bold red",
    "inconclusive": "bold yellow",
    "failed": "bold",
    "worse": "bold red",
    "better": "bold green",
    "faint": "dim",
    "head": "bold",
    "": "",
}

_ASCII = str.maketrans(
    {
        numbers.MINUS: "-",
        numbers.MISSING: "-",
        numbers.NO_BREAK: " ",
        "\u00d7": "x",
        "\u2192": ">",
        "\u2713": "+",
        "\u2715": "x",
        "\u2500": "-",
    }
)

BESIDE, STACKED, TIGHT, DENSE = "beside", "stacked", "tight", "dense"
STYLES_OF_CELLS = (BESIDE, STACKED, TIGHT, DENSE)
"""Interval beside the difference; below it; below it and without blanks and leading zeros; the same
with less room between the columns."""

Line = tuple[str, str]
"""Text and the name of its style."""


@dataclass(frozen=True)
class Block:
    """Candidates that stand side by side.

    Attributes:
        columns: indices of the candidates.
        style: how cells are written, one of STYLES_OF_CELLS.
        label: width of the column of names.
        widths: of the baseline's column and of each candidate's.
    """

    columns: tuple[int, ...]
    style: str
    label: int
    widths: tuple[int, ...]

    @property
    def gap(self) -> int:
        """Blanks between columns."""
        return 1 if self.style == DENSE else 2

    @property
    def width(self) -> int:
        """Characters of a whole line."""
        return self.label + sum(self.gap + width for width in self.widths)


def audit_table(audit: Audit) -> RenderableType:
    """The results and verdicts of an audit.

    Args:
        audit: the content of `audit.json`.
    """
    rows, measured = written.rows(audit), view.succeeded(audit)
    names = [str(one["scheme"]) for one in measured]
    verdicts = [str(one["verdict"]["verdict"]) for one in measured]

    def lines(width: int) -> list[Text]:
        found = [*_alarm_lines(audit, width), *_heading(audit, width)]
        for block in _blocks(rows, names, width):
            found += [_text([]), *_block_lines(rows, names, verdicts, block)]
        found += [_text([]), *_verdict_lines(audit, width)]
        for line in ablation.lines(audit):
            found += _wrapped("Ablation: ", line, width)
        for line in draws.lines(measured):
            found += _wrapped("Draws: ", line, width)
        for line in view.calibrations(audit):
            found += _wrapped("Note: ", line, width, style="faint")
        return found

    return _Lines(lines)


def verdict_list(
    verdicts: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str]
) -> RenderableType:
    """Verdicts with their reasons.

    Args:
        verdicts: candidate -> verdict as a mapping.
        failed: candidate -> why it could not be measured.
    """
    candidates = [{"scheme": name, "verdict": one} for name, one in verdicts.items()]
    candidates += [{"scheme": name, "error": error} for name, error in failed.items()]
    return _Lines(lambda width: _verdict_lines({"candidates": candidates}, width))


def run_table(
    meta: Mapping[str, Any], metrics: Mapping[str, Any], notes: Sequence[str]
) -> RenderableType:
    """One evaluated model: its measures with intervals, memory and speed.

    Args:
        meta: `run.json`.
        metrics: metric id -> Estimate.
        notes: what the readers of the tasks want said.
    """
    return _Lines(lambda width: _run_lines(meta, metrics, notes, width))


class _Lines(JupyterMixin):
    """Lines that depend on the width: for a rich console, a notebook, or `print`."""

    def __init__(self, make: Callable[[int], list[Text]]) -> None:
        self._make = make

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._make(options.max_width):
            if options.ascii_only:
                line.plain = line.plain.translate(_ASCII)
            line.rstrip()
            yield line

    def __str__(self) -> str:
        lines = self._make(PLAIN_WIDTH)
        return "\n".join(line.plain.rstrip() for line in lines)

    __repr__ = __str__


def _run_lines(
    meta: Mapping[str, Any], metrics: Mapping[str, Any], notes: Sequence[str], width: int
) -> list[Text]:
    rows = view.run_rows(meta, {name: one.to_dict() for name, one in metrics.items()})
    label = max(len(row[0]) for row in rows)
    value = max(len(row[1]) for row in rows)
    lines = [
        _text([(f"{name.ljust(label)}  {shown.rjust(value)}", ""), (f"  {bounds}", "faint")])
        for name, shown, bounds in rows
    ]
    return lines + [line for note in notes for line in _wrapped("Note: ", note, width)]


def _alarm_lines(audit: Audit, width: int) -> list[Text]:
    """What failed in the self-audit, above everything else; nothing where all is well."""
    alarms = view.alarms(audit)
    if not alarms:
        return []
    lines = _wrapped("ALARM: ", wording.ALARM, width, style="hold")
    return [*lines, *(line for one in alarms for line in _wrapped("  ", one, width)), _text([])]


def _heading(audit: Audit, width: int) -> list[Text]:
    title, *facts = view.headline(audit)
    lines = [(line, "head") for line in textwrap.wrap(title, width)]
    lines += [(line, "faint") for line in textwrap.wrap("; ".join(facts), width)]
    return [_text([line]) for line in lines]


def _blocks(rows: Sequence[Row], names: Sequence[str], width: int) -> list[Block]:
    """The columns side by side where they fit; else intervals stacked; else further blocks."""
    if not names:
        return []
    everything = tuple(range(len(names)))
    for style in STYLES_OF_CELLS:
        block = _block(rows, names, everything, style)
        if block.width <= width:
            return [block]
    blocks: list[Block] = []
    start = 0
    while start < len(names):
        stop = start + 1
        while (
            stop < len(names)
            and _block(rows, names, tuple(range(start, stop + 1)), DENSE).width <= width
        ):
            stop += 1
        blocks.append(_block(rows, names, tuple(range(start, stop)), DENSE))
        start = stop
    return blocks


def _block(
    rows: Sequence[Row], names: Sequence[str], columns: tuple[int, ...], style: str
) -> Block:
    label = max(len(part) for row in rows for part in _row_label(row))
    widths = [max(len("original"), *(_cell_width(row.cells[0], style) for row in rows))]
    for column in columns:
        cells = [_cell_width(row.cells[column + 1], style) for row in rows]
        title = max(len(part) for part in _name_parts(names[column]))
        widths.append(max(title, len("inconclusive"), *cells))
    return Block(columns, style, label, tuple(widths))


def _row_label(row: Row) -> list[str]:
    return _words(f"{row.short} {row.unit}".rstrip())


def _cell_lines(cell: Cell, style: str) -> list[Line]:
    lines: list[Line] = [(part, "") for part in _words(cell.value)] or [("", "")]
    if style == BESIDE:
        both = f"{cell.delta} {cell.interval}".strip()
        return [*lines, (both, cell.tone)] if both else lines
    lines += [(part, cell.tone) for part in _words(cell.delta)]
    if cell.interval:
        lines.append(
            (_tightened(cell.interval) if style in (TIGHT, DENSE) else cell.interval, "faint")
        )
    return lines


def _tightened(interval: str) -> str:
    return re.sub(r"(?<!\d)0\.(?=\d*[1-9])", ".", interval.replace(", ", ","))


def _words(text: str, most: int = 13) -> list[str]:
    """Long labels broken between words; numbers are short and stay whole."""
    return textwrap.wrap(text, most, break_long_words=False, break_on_hyphens=False)


def _cell_width(cell: Cell, style: str) -> int:
    return max(len(text) for text, _ in _cell_lines(cell, style))


def _name_parts(name: str, most: int = 14) -> list[str]:
    """A name broken after hyphens, underscores and dots; within a word only where it must be."""
    parts, line = [], ""
    for piece in name.replace("-", "-\0").replace("_", "_\0").replace(".", ".\0").split("\0"):
        if line and len(line) + len(piece) > most:
            parts.append(line)
            line = ""
        line += piece
    wide = [*parts, line]
    return [part[at : at + most] for part in wide for at in range(0, max(1, len(part)), most)]


def _block_lines(
    rows: Sequence[Row], names: Sequence[str], verdicts: Sequence[str], block: Block
) -> list[Text]:
    titles = [[("original", "head")]]
    titles += [[(part, "head") for part in _name_parts(names[column])] for column in block.columns]
    height = max(map(len, titles))
    lines = [
        _joined(
            "",
            [
                title[place - height + len(title)] if place >= height - len(title) else ("", "")
                for title in titles
            ],
            block,
        )
        for place in range(height)
    ]
    lines.append(_text([("\u2500" * block.width, "faint")]))
    group = rows[0].group
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append(_text([]))
        lines += _row_lines(row, block)
    lines.append(_text([("\u2500" * block.width, "faint")]))
    words = [("", "")] + [
        (wording.VERDICTS[verdicts[c]].word.upper(), verdicts[c]) for c in block.columns
    ]
    return [*lines, _joined("verdict", words, block)]


def _row_lines(row: Row, block: Block) -> list[Text]:
    cells = [_cell_lines(row.cells[0], block.style)]
    cells += [_cell_lines(row.cells[column + 1], block.style) for column in block.columns]
    label = _row_label(row)
    height = max(len(label), *map(len, cells))
    return [
        _joined(
            label[place] if place < len(label) else "",
            [lines[place] if place < len(lines) else ("", "") for lines in cells],
            block,
        )
        for place in range(height)
    ]


def _joined(label: str, cells: Sequence[Line], block: Block) -> Text:
    parts: list[Line] = [(label.ljust(block.label), "")]
    for (text, style), width in zip(cells, block.widths, strict=True):
        parts.append((" " * (block.gap + width - len(text)), ""))
        parts.append((text, style))
    return _text(parts)


def _verdict_lines(audit: Audit, width: int) -> list[Text]:
    """Every candidate with its verdict and the reasons that decide it."""
    entries = [
        (str(one["scheme"]), one["verdict"]["verdict"], wording.decisive(one["verdict"]))
        for one in view.succeeded(audit)
    ]
    entries += [(str(one["scheme"]), "failed", [str(one["error"])]) for one in view.failed(audit)]
    if not entries:
        return []
    name = max(len(entry[0]) for entry in entries)
    word = max(len(wording.VERDICTS[entry[1]].word) for entry in entries)
    lines = []
    for title, verdict, reasons in entries:
        lines += _entry_lines(title, verdict, reasons, name=name, word=word, width=width)
    for warning in (*audit.get("model", {}).get("notes", ()), *audit.get("warnings", ())):
        lines += _wrapped("Note: ", warning, width, style="faint")
    return lines


def _entry_lines(
    title: str, verdict: str, reasons: Sequence[str], *, name: int, word: int, width: int
) -> list[Text]:
    words = wording.VERDICTS[verdict]
    head: list[Line] = [
        (title.ljust(name + GAP), "head"),
        (words.word.upper().ljust(word + GAP), verdict),
    ]
    indent = name + word + 2 * GAP
    if width - indent < 40:  # a narrow terminal: reasons go below
        return [
            _text(head),
            *(line for reason in reasons for line in _wrapped("  ", reason, width)),
        ]
    wrapped = [part for reason in reasons for part in _hanging(reason, width - indent)]
    lines = [
        _text([*head, (part, "")]) if at == 0 else _text([(" " * indent + part, "")])
        for at, part in enumerate(wrapped)
    ]
    return lines or [_text(head)]


def _hanging(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)


def _wrapped(lead: str, text: str, width: int, *, style: str = "") -> list[Text]:
    lines = textwrap.wrap(text, width - len(lead), break_on_hyphens=False)
    return [
        _text([((lead if at == 0 else " " * len(lead)) + part, style)])
        for at, part in enumerate(lines)
    ]


def _text(parts: Iterable[Line]) -> Text:
    line = Text(no_wrap=True, overflow="crop")
    for text, style in parts:
        line.append(text, STYLES[style] or None)
    return line
