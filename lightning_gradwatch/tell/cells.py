"""Text in the cells of a terminal: how many it takes, wrapping, tables, colour. Names from a run pass escaped.

A few lines of our own: a library for this changes what other packages print as soon as it can be imported (Lightning turns
to another progress bar for rich, tabulate to another alignment for wcwidth), and that must not arrive with a monitor.
"""

from __future__ import annotations

import os
import textwrap
import unicodedata
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, TextIO

from lightning_gradwatch.record.escape import escape, is_command, uncut

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold red": "1;31"}
"""Styles, as the numbers that a terminal knows them by."""
_GAP = "  "
_ELLIPSIS = "…"
_ON_TOP = {"Mn", "Me", "Cf"}  # accents and the like, which stand on the character before


class Cell(NamedTuple):
    """What one cell of a table says."""

    text: str
    style: str = ""


def cells_of(text: str) -> int:
    """Return how many cells of a terminal a line of text takes.

    >>> cells_of("net.0"), cells_of("层.0"), cells_of("e" + chr(0x301))
    (5, 4, 1)
    """
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.category(character) in _ON_TOP or "\u1160" <= character <= "\u11ff":  # Hangul's parts of a syllable
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def cut(text: str, width: int) -> str:
    """Return a line that takes at most so many cells; an ellipsis stands for what had no room.

    >>> cut("encoder.layer", 8), cut("编码器.层", 8)
    ('encoder…', '编码器.…')
    """
    if cells_of(text) <= width:
        return text
    return text[: _fitting(text, width - cells_of(_ELLIPSIS))] + _ELLIPSIS


def _fitting(text: str, width: int) -> int:
    """Return how many of the first characters take at most so many cells."""
    return sum(taken <= width for taken in accumulate(map(_cells, text)))


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Escape a text and wrap it to so many cells, the first line indented by `first`, the others by `rest`."""
    spelled = escape(text)
    lines = _lines(spelled, width, first, rest)
    # A word that is longer than a line was cut where a command begins.
    return _lines(uncut(spelled), width, first, rest) if any(map(is_command, lines)) else lines


def _lines(text: str, width: int, first: str, rest: str) -> list[str]:
    if cells_of(text) == len(text):
        return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    lines, line, begun = [], first, False
    for word in text.split():
        left = word
        while left:
            joined = f"{line} {left}" if begun else line + left
            if cells_of(joined) <= width:
                line, begun, left = joined, True, ""
            elif begun:
                lines.append(line)
                line, begun = rest, False
            else:  # too long for any line
                taken = max(_fitting(joined, width), len(line) + 1)
                lines.append(joined[:taken])
                line, left = rest, joined[taken:]
    return [*lines, line] if begun else lines


def paint(text: str, style: str) -> str:
    r"""Return one line of text in a style, as a terminal reads it.

    >>> paint("3 errors", "red")
    '\x1b[31m3 errors\x1b[0m'
    """
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if style and text else text


def widths_of(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[int]:
    """Return how many cells each column of a table takes."""
    columns = zip(heads, *([cell.text for cell in row] for row in rows), strict=True)
    return [max(cells_of(escape(text)) for text in column) for column in columns]


def width_of_table(widths: Sequence[int]) -> int:
    """Return how many cells a line of a table with such columns takes, which keeps off the terminal's edge."""
    return sum(widths) + len(_GAP) * len(widths)


def table_lines(
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    widths: Sequence[int],
    *,
    right: Collection[int] = (),
    colour: bool = False,
) -> list[str]:
    """Lay out a table, a line a row; what is too long for its column is cut off.

    Args:
        heads: A title a column.
        rows: As many cells each.
        widths: Cells of the terminal a column.
        right: Columns that are aligned to the right.
        colour: Whether to use a terminal's colours.
    """
    titles = [Cell(head, "bold") for head in heads]
    return [_line(row, widths, right, colour=colour) for row in (titles, *rows)]


def _line(row: Sequence[Cell], widths: Sequence[int], right: Collection[int], *, colour: bool) -> str:
    told = []
    for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
        text = cut(escape(cell.text), width)
        room = " " * (width - cells_of(text))
        painted = paint(text, cell.style) if colour else text
        told.append(room + painted if place in right else painted + room)
    return _GAP.join(told).rstrip()


def wants_colour(stream: TextIO) -> bool:
    """Whether a stream is a terminal whose user hasn't said that he wants no colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def write(stream: TextIO, text: str) -> None:
    """Print in whatever the terminal can spell: a name or an ellipsis must not end in an encoding error."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
